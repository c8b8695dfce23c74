//! Speed of the cpu device on the kernels that training is made of.
//!
//! `cargo run --release -p dnx-runtime --example kernels`. Prints milliseconds and GB/s (of the arguments touched
//! once) or GF/s per program; each is run until a second has passed and the median is taken.

use dnx_ir::{Array, DotDims, Func, Graph, Tensor, Type};
use dnx_runtime::Device;
use std::time::Instant;

fn graph(dims: &[&[usize]], body: impl for<'g> Fn(&[Tensor<'g>]) -> Tensor<'g>) -> Func {
    let g = Graph::new("bench");
    let params: Vec<Tensor> = dims.iter().enumerate().map(|(i, d)| g.param(&format!("p{i}"), Type::f32(*d))).collect();
    g.finish(&[body(&params)]).expect("well typed")
}

fn bench(name: &str, flops: usize, dims: &[&[usize]], body: impl for<'g> Fn(&[Tensor<'g>]) -> Tensor<'g>) {
    let func = graph(dims, body);
    let device = Device::cpu();
    let program = device.compile(&func, &[]).expect("compiles");
    let mut state = 1u32;
    let mut arrays = Vec::new();
    for d in dims {
        let n: usize = d.iter().product();
        let data: Vec<f32> = (0..n)
            .map(|_| {
                state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
            })
            .collect();
        arrays.push(Array::f32(*d, &data));
    }
    let bound = program.bind(&device.upload_all(&arrays).expect("fits")).expect("binds");
    let mut times = Vec::new();
    let begin = Instant::now();
    while begin.elapsed().as_secs_f64() < 0.5 || times.len() < 5 {
        let t = Instant::now();
        bound.run().expect("runs");
        times.push(t.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let bytes: usize = bound.inputs().iter().chain(bound.outputs()).map(|b| b.ty().device_bytes()).sum();
    let kinds: Vec<String> = program.exec().kernels.iter().map(|k| format!("{:?}", k.kernel.kind)).collect();
    let rate = match flops {
        0 => format!("{:7.1} GB/s", bytes as f64 / median / 1e9),
        f => format!("{:7.1} GF/s", f as f64 / median / 1e9),
    };
    println!("{name:<34} {:9.3} ms {rate}  (best {:.3})  {}", median * 1e3, times[0] * 1e3, kinds.join(" "));
}

fn layer_norm<'g>(x: Tensor<'g>) -> Tensor<'g> {
    let last = x.rank() - 1;
    let centred = x - x.mean(&[last]).unsqueeze(last);
    centred * (centred.square().mean(&[last]).unsqueeze(last) + 1e-6).rsqrt()
}

fn softmax<'g>(x: Tensor<'g>) -> Tensor<'g> {
    let last = x.rank() - 1;
    let e = (x - x.max(&[last]).unsqueeze(last)).exp();
    e / e.sum(&[last]).unsqueeze(last)
}

fn gelu<'g>(x: Tensor<'g>) -> Tensor<'g> {
    x * 0.5 * (((x + x * x * x * 0.044715) * 0.7978845608).tanh() + 1.0)
}

fn main() {
    let qk = DotDims { lhs_batch: vec![0], rhs_batch: vec![0], lhs_contract: vec![2], rhs_contract: vec![2] };
    let tn = DotDims { lhs_contract: vec![0], rhs_contract: vec![0], ..DotDims::default() };
    bench("add 1.5M", 0, &[&[2048, 768], &[2048, 768]], |p| p[0] + p[1]);
    bench("bias add 2048x768", 0, &[&[2048, 768], &[768]], |p| p[0] + p[1]);
    bench("gelu tanh 1.5M", 0, &[&[2048, 768]], |p| gelu(p[0]));
    bench("layer norm 4096x1024", 0, &[&[4096, 1024]], |p| layer_norm(p[0]));
    bench("layer norm 2048x192", 0, &[&[2048, 192]], |p| layer_norm(p[0]));
    bench("softmax 12288x64", 0, &[&[12288, 64]], |p| softmax(p[0]));
    bench("transpose 2048x768", 0, &[&[2048, 768]], |p| p[0].transpose(&[1, 0]) * 2.0);
    bench("bias gradient 2048x768", 0, &[&[2048, 768]], |p| p[0].sum(&[0]));
    bench("sum of squares 1.5M", 0, &[&[2048, 768]], |p| p[0].square().sum_all());
    let flops = 2 * 2048 * 768 * 192;
    bench("matmul 2048x192x768", flops, &[&[2048, 192], &[192, 768]], |p| p[0].matmul(p[1]));
    bench("  with bias and gelu", flops, &[&[2048, 192], &[192, 768], &[768]], |p| gelu(p[0].matmul(p[1]) + p[2]));
    bench("  weight in torch's layout", flops, &[&[2048, 192], &[768, 192], &[768]], |p| p[0].matmul_t(p[1]) + p[2]);
    bench("matmul 2048x768x192", flops, &[&[2048, 768], &[768, 192]], |p| p[0].matmul(p[1]));
    bench("  gelu prologue", flops, &[&[2048, 768], &[768, 192]], |p| gelu(p[0]).matmul(p[1]));
    bench("weight gradient 192x768, K 2048", flops, &[&[2048, 192], &[2048, 768]], |p| p[0].dot(p[1], tn.clone()));
    bench("mlp 512x256x256", 2 * 512 * 256 * 256, &[&[512, 256], &[256, 256]], |p| p[0].matmul(p[1]).tanh());
    let flops = 2 * 96 * 64 * 64 * 64;
    bench("attention scores 96x64x64x64", flops, &[&[96, 64, 64], &[96, 64, 64]], |p| {
        p[0].dot(p[1], qk.clone()) * 0.125
    });
    bench("matmul 1024x1024x1024", 2 << 30, &[&[1024, 1024], &[1024, 1024]], |p| p[0].matmul(p[1]));
}
