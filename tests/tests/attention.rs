//! Attention kernels against the decomposition: in the kernel interpreter, on the cpu device and on software
//! Vulkan; and how much memory they take.

use dnx_codegen::exec::BufRef;
use dnx_codegen::kernel::Kind;
use dnx_codegen::{GpuClass, GpuLimits, Options, Target, compile};
use dnx_ir::attention::{Form, attention};
use dnx_ir::{Array, DType, Func, Graph, Type};
use dnx_runtime::Device;
use dnx_tests::attention::{SHAPES, program};
use dnx_tests::differential::{Run, compare, interpreted, on_device};

const FORMS: [Form; 3] = [Form::Forward, Form::Jvp, Form::Backward];

fn same(run: Run, form: Form, shape: usize, dtype: DType, projected: bool) {
    same_as(run, form, shape, dtype, projected, &[false, true]);
}

fn same_as(run: Run, form: Form, shape: usize, dtype: DType, projected: bool, fusing: &[bool]) {
    let (func, args) = program(form, &SHAPES[shape], dtype, projected);
    let tolerance = if dtype == DType::F32 { 3e-5 } else { 2e-2 };
    for &fuse in fusing {
        if let Err(e) = compare(run, &func, &args, fuse, tolerance) {
            panic!("{form:?} of {dtype} over {:?}, projected {projected}, fuse {fuse}: {e}\n{func}", SHAPES[shape]);
        }
    }
}

fn on_cpu(func: &Func, args: &[Array], fuse: bool) -> Result<Vec<Array>, String> {
    on_device(&Device::cpu(), func, args, fuse)
}

#[test]
fn kernels_mean_the_decomposition() {
    for shape in [0, 1, 4, 5, 10] {
        FORMS.into_iter().for_each(|form| same(&interpreted, form, shape, DType::F32, shape == 10));
    }
    FORMS.into_iter().for_each(|form| same(&interpreted, form, 10, DType::F16, true));
}

#[test]
fn cpu() {
    for shape in 0..SHAPES.len() {
        FORMS.into_iter().for_each(|form| same(&on_cpu, form, shape, DType::F32, false));
    }
}

#[test]
fn cpu_through_views_and_of_half_floats() {
    for form in FORMS {
        same(&on_cpu, form, 0, DType::F32, true);
        same(&on_cpu, form, 10, DType::F32, true);
        same(&on_cpu, form, 10, DType::F16, true);
        same(&on_cpu, form, 4, DType::BF16, false);
    }
}

#[test]
fn gpu() {
    let device = match Device::open(Some("vulkan:llvmpipe")) {
        Ok(device) => std::panic::AssertUnwindSafe(device),
        Err(e) => panic!("{e}\nThis test needs software Vulkan: apt-get install mesa-vulkan-drivers libvulkan1"),
    };
    let target = device.target();
    let run = move |func: &Func, args: &[Array], fuse: bool| on_device(&device, func, args, fuse);
    for form in FORMS {
        let (func, _) = program(form, &SHAPES[1], DType::F32, false);
        assert_eq!(kernels(&func, Options::new(target).with_held_scores(0)), 1, "{form:?} is not one kernel");
        assert_eq!(kernels(&func, Options::new(target)), 0, "{form:?} of few scores is a kernel");
    }
    // Shaders take long to become machine code here: a few shapes, each for what it alone has.
    for form in FORMS {
        [1, 4, 9].into_iter().for_each(|shape| same_as(&run, form, shape, DType::F32, false, &[true]));
        same_as(&run, form, 10, DType::F16, true, &[true]);
    }
}

/// Attention kernels of a compiled function.
fn kernels(func: &Func, options: Options) -> usize {
    let exec = compile(func, &options).unwrap().exec;
    exec.kernels.iter().filter(|k| k.kernel.kind == Kind::Attention).count()
}

/// `sum(sin o)` of attention over `t` tokens, four heads of 64; with its gradient, or its jvp.
fn long(t: usize, reverse: bool) -> Func {
    let g = Graph::new("long");
    let x = g.param("x", Type::f32([1, t, 3 * 4 * 64]));
    let parts = x.split(2, 3);
    let [q, k, v] = [0, 1, 2].map(|i| parts[i].reshape(&[1, t, 4, 64]));
    let (o, _) = attention(q, k, v, None, 0.125, false);
    let f = g.finish(&[if reverse { o.sin().sum_all() } else { o }]).unwrap();
    if reverse { dnx_autodiff::grad(&f, &[0]).unwrap() } else { dnx_autodiff::jvp(&f, &[0]).unwrap() }
}

#[test]
fn rasterisers_hold_few_scores_and_no_others_do() {
    // Four heads: 16 MiB of scores, then 256 MiB.
    for (t, class, want) in [
        (1024, GpuClass::Software, 0),
        (1024, GpuClass::Other, 2),
        (4096, GpuClass::Software, 2),
        (4096, GpuClass::Other, 2),
    ] {
        let target = Target::Gpu(GpuLimits { class, ..GpuLimits::default() });
        assert_eq!(kernels(&long(t, false), Options::new(target)), want, "{t} tokens on {class:?}");
    }
}

#[test]
fn no_buffer_grows_with_the_square_of_the_length() {
    let t = 4096;
    let software = GpuLimits { class: GpuClass::Software, ..GpuLimits::default() };
    let gpus = [GpuLimits::default(), GpuLimits::webgpu(), software].map(Target::Gpu);
    let targets = [Target::Cpu].into_iter().chain(gpus);
    for (target, reverse) in targets.flat_map(|t| [(t, true), (t, false)]) {
        let exec = compile(&long(t, reverse), &Options::new(target)).unwrap().exec;
        let kinds: Vec<Kind> = exec.kernels.iter().map(|k| k.kernel.kind).collect();
        assert_eq!(kinds.iter().filter(|k| **k == Kind::Attention).count(), 2, "{kinds:?}");
        let largest = exec.steps.iter().flat_map(|s| match s {
            dnx_codegen::exec::Step::Dispatch { args, scratch, .. } => args.iter().chain(scratch).copied().collect(),
            _ => vec![],
        });
        let largest = largest.map(|r| if let BufRef::Slab { bytes, .. } = r { bytes } else { 0 }).max().unwrap();
        let activation = (t * 4 * 64 * 4) as u64;
        assert!(largest <= activation, "{largest} bytes");
        // Scores of one head alone would be 64 MiB.
        assert!(exec.peak_bytes < 12 * activation, "{} bytes", exec.peak_bytes);
    }
}
