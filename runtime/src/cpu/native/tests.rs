//! Passes against the steps they stand for, bit for bit.

use super::body::{Body, Node, Storage};
use super::code::Stream;
use super::emit::{Output, Pass};
use crate::cpu::ops::{Pointwise, Src, ops};
use dnx_ir::ReduceKind;

/// Runs one operation as a pass; operands with `true` are one word for all.
fn native(op: Pointwise, n: usize, operands: &[(&[u32], bool)]) -> Option<Vec<u32>> {
    let mut body = Body::default();
    let mut ids = [0; 3];
    for (i, (_, one)) in operands.iter().enumerate() {
        ids[i] = body.node(if *one { Node::Splat(i) } else { Node::Load(i, Storage::Word) });
    }
    let y = body.point(op, ids)?;
    let stream = operands.len();
    let outputs = [(y, Output::Store { stream, late: true, storage: Storage::Word })];
    let code = Pass { nodes: &body.nodes, outputs: &outputs, streams: stream + 1 }.emit().unwrap();
    let mut out = vec![0xdead_beef; n + 16];
    let mut streams: Vec<Stream> =
        operands.iter().map(|(x, _)| Stream { ptr: x.as_ptr().cast_mut().cast(), row: 0 }).collect();
    streams.push(Stream { ptr: out.as_mut_ptr().cast(), row: 0 });
    // SAFETY: one row of n points.
    unsafe { code.run(&mut streams, 1, n) };
    assert!(out[n..].iter().all(|&w| w == 0xdead_beef), "{op:?} wrote beyond its end");
    out.truncate(n);
    Some(out)
}

fn steps(op: Pointwise, n: usize, operands: &[(&[u32], bool)]) -> Vec<u32> {
    let mut out = vec![0u32; n];
    let src = |i: usize| {
        let (x, one) = operands.get(i).copied().unwrap_or(operands[0]);
        Src { ptr: x.as_ptr(), step: usize::from(!one) }
    };
    // SAFETY: every operand has n words, or is one for all.
    unsafe { (ops().pointwise)(op, n, out.as_mut_ptr(), src(0), src(1), src(2)) };
    out
}

/// Words that as floats are ordinary, special, tiny and huge, and as integers anything.
fn words(n: usize, salt: u32) -> Vec<u32> {
    let special = [0, 0x8000_0000, 1, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0x3f80_0000, 0x0080_0000, 0x7f7f_ffff];
    let mut x = 0x9e37_79b9u32.wrapping_mul(salt + 1);
    (0..n)
        .map(|i| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            match i % 7 {
                0 => special[(x >> 8) as usize % special.len()],
                1 => x,
                2 => ((x as i32 as f32) / 1e8).to_bits(),
                3 => x % 5,
                _ => ((x as i32 as f32) / 1e9).to_bits(),
            }
        })
        .collect()
}

fn same(op: Pointwise, a: u32, b: u32) -> bool {
    // Which of two NaNs is kept is nobody's concern.
    let nan = |x: u32| f32::from_bits(x).is_nan();
    a == b || (!matches!(op, Pointwise::Copy) && nan(a) && nan(b))
}

#[rustfmt::skip]
const ALL: [Pointwise; 64] = {
    use Pointwise::*;
    [
        Copy, NegF, Exp, Log, Tanh, Erf, Sqrt, Rsqrt, AbsF, SignF, Floor, IsFinite, NegI, AbsI, Not, NotBool,
        AddF, SubF, MulF, DivF, MaxF, MinF, AddI, SubI, MulI, MaxI, MaxU, MinI, MinU, And, Or, Xor,
        EqF, NeF, LtF, LeF, GtF, GeF, EqI, NeI, LtI, LeI, GtI, GeI, LtU, LeU, GtU, GeU,
        Select, MulAdd, MulSub, SubMul, MulMul, AddAdd, AddThenMul, SubThenMul,
        IToFloat, UToFloat, FloatToBool, IntToBool, RoundF16, RoundBf16, Threefry, Copy,
    ]
};

#[test]
fn operations_give_the_bits_of_steps() {
    if !super::available() {
        eprintln!("this processor has no AVX-512: nothing to compare");
        return;
    }
    let data: Vec<Vec<u32>> = (0..3).map(|i| words(4099, i)).collect();
    for op in ALL {
        for n in [0, 1, 15, 16, 17, 63, 64, 65, 130, 4099] {
            for ones in 0..1usize << op.operands() {
                let operands: Vec<(&[u32], bool)> =
                    (0..op.operands()).map(|i| (&data[i][..n.max(1)], ones >> i & 1 == 1)).collect();
                let got = native(op, n, &operands).unwrap_or_else(|| panic!("{op:?} has no machine code"));
                let want = steps(op, n, &operands);
                let differs = (0..n).find(|&i| !same(op, got[i], want[i]));
                if let Some(i) = differs {
                    let at = |k: usize| operands.get(k).map(|(x, one)| if *one { x[0] } else { x[i] });
                    panic!("{op:?} of {:x?}: {:#x}, not {:#x} ({i} of {n})", [at(0), at(1), at(2)], got[i], want[i]);
                }
            }
        }
    }
}

#[test]
fn sums_have_the_lanes_of_steps() {
    if !super::available() {
        return;
    }
    let rows = 3;
    for cols in [1, 5, 16, 48, 63, 64, 65, 100, 128, 1000, 1024] {
        let x: Vec<f32> = (0..rows * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
        let mut body = Body::default();
        let load = body.node(Node::Load(0, Storage::Word));
        let square = body.point(Pointwise::MulF, [load, load, load]).unwrap();
        let outputs = [
            (load, Output::Reduce(ReduceKind::Max, 1)),
            (square, Output::Reduce(ReduceKind::Sum, 2)),
            (square, Output::Store { stream: 3, late: false, storage: Storage::Word }),
            (square, Output::Accumulate(ReduceKind::Sum, 4)),
        ];
        let code = Pass { nodes: &body.nodes, outputs: &outputs, streams: 5 }.emit().unwrap();
        let (mut max, mut sum) = (vec![0f32; rows], vec![0f32; rows]);
        let (mut squares, mut columns) = (vec![0f32; rows * cols], vec![0f32; cols]);
        let line = 4 * cols as isize;
        let mut streams = [
            Stream { ptr: x.as_ptr().cast_mut().cast(), row: line },
            Stream { ptr: max.as_mut_ptr().cast(), row: 4 },
            Stream { ptr: sum.as_mut_ptr().cast(), row: 4 },
            Stream { ptr: squares.as_mut_ptr().cast(), row: line },
            Stream { ptr: columns.as_mut_ptr().cast(), row: 0 },
        ];
        // SAFETY: the streams have these rows and points.
        unsafe { code.run(&mut streams, rows, cols) };
        for row in 0..rows {
            let line = &x[row * cols..(row + 1) * cols];
            let squared: Vec<f32> = line.iter().map(|x| x * x).collect();
            assert_eq!(&squares[row * cols..(row + 1) * cols], squared);
            // SAFETY: the lines have `cols` elements.
            let want = unsafe { ((ops().sum)(squared.as_ptr(), cols), (ops().max)(line.as_ptr(), cols)) };
            assert_eq!((sum[row].to_bits(), max[row].to_bits()), (want.0.to_bits(), want.1.to_bits()), "{cols}");
        }
        for col in 0..cols {
            let want = (0..rows).fold(0f32, |s, row| s + squares[row * cols + col]);
            assert_eq!(columns[col].to_bits(), want.to_bits());
        }
    }
}

#[test]
fn more_streams_than_registers_are_fetched() {
    if !super::available() {
        return;
    }
    let n = 77;
    let data: Vec<Vec<f32>> = (0..20).map(|s| (0..n).map(|i| (s * 100 + i) as f32).collect()).collect();
    let mut body = Body::default();
    let mut sum = body.node(Node::Load(0, Storage::Word));
    for s in 1..20 {
        let next = body.node(if s % 3 == 0 { Node::Splat(s) } else { Node::Load(s, Storage::Word) });
        sum = body.point(Pointwise::AddF, [sum, next, next]).unwrap();
    }
    let outputs = [(sum, Output::Store { stream: 20, late: false, storage: Storage::Word })];
    let code = Pass { nodes: &body.nodes, outputs: &outputs, streams: 21 }.emit().unwrap();
    let mut out = vec![0f32; 2 * n];
    let mut streams: Vec<Stream> = data.iter().map(|x| Stream { ptr: x.as_ptr().cast_mut().cast(), row: 0 }).collect();
    streams.push(Stream { ptr: out.as_mut_ptr().cast(), row: 4 * n as isize });
    // SAFETY: two rows of n points.
    unsafe { code.run(&mut streams, 2, n) };
    for i in 0..n {
        let want = (0..20).map(|s| if s % 3 == 0 && s > 0 { data[s][0] } else { data[s][i] }).sum::<f32>();
        assert_eq!((out[i], out[n + i]), (want, want));
    }
}

#[test]
fn halves_are_widened_and_narrowed_as_steps_do() {
    use half::{bf16, f16};
    if !super::available() {
        return;
    }
    // Every code, at every place in a vector that a ragged row leads to.
    let codes: Vec<u16> = (0..=u16::MAX).map(|i| i.wrapping_mul(40503)).collect();
    let floats: Vec<u32> = words(codes.len(), 7);
    for storage in [Storage::F16, Storage::Bf16] {
        let wide = |code: u16| match storage {
            Storage::F16 => f16::from_bits(code).to_f32(),
            _ => bf16::from_bits(code).to_f32(),
        };
        let narrow = |x: f32| match storage {
            Storage::F16 => f16::from_f32(x).to_bits(),
            _ => bf16::from_f32(x).to_bits(),
        };
        for (rows, cols) in [(1, 65536), (3, 77), (5, 1), (2, 200), (4, 63)] {
            let mut body = Body::default();
            let (load, float) = (body.node(Node::Load(0, storage)), body.node(Node::Load(1, Storage::Word)));
            let rounded = if storage == Storage::Bf16 { body.round_bf16(float) } else { float };
            let outputs = [
                (load, Output::Store { stream: 2, late: false, storage: Storage::Word }),
                (rounded, Output::Store { stream: 3, late: true, storage }),
            ];
            let code = Pass { nodes: &body.nodes, outputs: &outputs, streams: 4 }.emit().unwrap();
            let n = rows * cols;
            let (mut widened, mut narrowed) = (vec![7u32; n + 16], vec![7u16; n + 32]);
            let mut streams = [
                Stream { ptr: codes.as_ptr().cast_mut().cast(), row: 2 * cols as isize },
                Stream { ptr: floats.as_ptr().cast_mut().cast(), row: 4 * cols as isize },
                Stream { ptr: widened.as_mut_ptr().cast(), row: 4 * cols as isize },
                Stream { ptr: narrowed.as_mut_ptr().cast(), row: 2 * cols as isize },
            ];
            // SAFETY: the streams have these rows and points.
            unsafe { code.run(&mut streams, rows, cols) };
            for i in 0..n {
                let (got, want) = (f32::from_bits(widened[i]), wide(codes[i]));
                assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{:#x}", codes[i]);
                let (got, want) = (narrowed[i], narrow(f32::from_bits(floats[i])));
                let nan = wide(got).is_nan() && wide(want).is_nan();
                assert!(got == want || nan, "{storage:?} of {:#x}: {got:#x}, not {want:#x}", floats[i]);
            }
            assert!(widened[n..].iter().all(|&w| w == 7) && narrowed[n..].iter().all(|&w| w == 7), "{rows} x {cols}");
        }
    }
}
