//! What the tests share: reproducible noise, and comparison.
#![allow(dead_code)]

use dnx_ir::{Array, DType, Func, Type};

/// Numbers in [-1, 1) that differ from element to element; integers from 0 to 6.
pub fn noise(ty: &Type, seed: u32) -> Array {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f64 / (1u32 << 23) as f64 - 1.0
    };
    for _ in 0..8 {
        next();
    }
    let data: Vec<f64> = (0..ty.elems())
        .map(|_| match ty.dtype {
            DType::F32 | DType::F16 | DType::BF16 | DType::F64 => next(),
            DType::Bool => f64::from(next() > 0.0),
            DType::I32 | DType::U32 => (next().abs() * 7.0).floor(),
        })
        .collect();
    Array::from_f64(ty.clone(), &data)
}

/// Noise for every parameter.
pub fn args(func: &Func) -> Vec<Array> {
    func.param_types().iter().enumerate().map(|(i, t)| noise(t, i as u32 + 1)).collect()
}

/// Fails unless the arrays are close: exactly equal for integers, else within a tolerance relative to the largest.
pub fn assert_close(what: &str, got: &Array, want: &Array) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    assert_eq!(got.dtype(), want.dtype(), "{what}");
    let (g, w) = (got.to_f64_vec(), want.to_f64_vec());
    let scale = w.iter().filter(|x| x.is_finite()).fold(1.0f64, |m, x| m.max(x.abs()));
    let tolerance = match got.dtype() {
        DType::F32 | DType::F64 => 2e-5,
        DType::F16 => 2e-3,
        DType::BF16 => 1.6e-2,
        DType::I32 | DType::U32 | DType::Bool => 0.0,
    };
    for (i, (a, b)) in g.iter().zip(&w).enumerate() {
        let close = (a - b).abs() <= tolerance * scale || (a.is_nan() && b.is_nan()) || a == b;
        assert!(close, "{what}: element {i} of {}: {a} is not {b}", got.ty());
    }
}

/// Runs this binary's tests but the one named once more, in a process whose plans go step by step: on a processor with
/// machine code for passes nothing else would.
pub fn pass_without_machine_code(caller: &str) {
    let binary = std::env::current_exe().unwrap();
    let again =
        std::process::Command::new(binary).env("DNX_CPU_NATIVE", "0").args(["--skip", caller]).output().unwrap();
    let text = String::from_utf8_lossy(&again.stdout);
    assert!(again.status.success(), "{text}{}", String::from_utf8_lossy(&again.stderr));
    assert!(!text.contains(" 0 passed"), "nothing ran: {text}");
}
