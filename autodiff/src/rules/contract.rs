//! Contractions: linear in each operand.

use super::{At, Rule};
use dnx_ir::{ConvDims, DotDims, Op, Result, ValueId};

pub(super) fn dot(dims: &DotDims) -> Rule<'_> {
    Rule::product(|a, i, ct| dot_cotangent(a, dims, i, ct)).note("the cotangent is rounded to the operands' dtype")
}

pub(super) fn conv(dims: &ConvDims) -> Rule<'_> {
    Rule::product(|a, i, ct| if i == 0 { conv_input(a, dims, ct) } else { conv_kernel(a, dims, ct) })
        .note("the cotangent is rounded to the operands' dtype")
}

/// Contracts the cotangent `[batch, left free, right free]` with the other operand over the latter's free dims.
///
/// The result has the batch dims, own free dims, and contracted dims (in the other operand's order), or with
/// the contraction's sides exchanged the last two exchanged. The side is chosen that needs no transpose after
/// it, if one does; for a plain matmul always.
fn dot_cotangent(a: &mut At, d: &DotDims, own: usize, ct: ValueId) -> Result<ValueId> {
    let (ranks, other) = ([a.ty[0].rank(), a.ty[1].rank()], 1 - own);
    let (batch, contract) = ([&d.lhs_batch, &d.rhs_batch], [&d.lhs_contract, &d.rhs_contract]);
    let free = [d.lhs_free(ranks[0]), d.rhs_free(ranks[1])];
    let batches = d.lhs_batch.len();
    let first = [batches, batches + free[0].len()];
    let ct_batch: Vec<usize> = (0..batches).collect();
    let ct_contract: Vec<usize> = (0..free[other].len()).map(|i| first[other] + i).collect();

    let mut pairs: Vec<(usize, usize)> = contract[other].iter().copied().zip(contract[own].iter().copied()).collect();
    pairs.sort_unstable();
    let contracted: Vec<usize> = pairs.into_iter().map(|(_, dim)| dim).collect();
    let ct_left = [&batch[own][..], &free[own], &contracted].concat();
    let ct_right = [&batch[own][..], &contracted, &free[own]].concat();

    let ct = a.b.convert(ct, a.ty[own].dtype)?;
    let out = a.ty[own].dtype;
    let (other_batch, other_contract) = (batch[other].clone(), free[other].clone());
    let (layout, product) = if ct_right.is_sorted() && !ct_left.is_sorted() {
        let dims = DotDims {
            lhs_batch: other_batch,
            lhs_contract: other_contract,
            rhs_batch: ct_batch,
            rhs_contract: ct_contract,
        };
        (ct_right, a.b.emit(Op::Dot { dims, out }, &[a.x[other], ct])?)
    } else {
        let dims = DotDims {
            lhs_batch: ct_batch,
            lhs_contract: ct_contract,
            rhs_batch: other_batch,
            rhs_contract: other_contract,
        };
        (ct_left, a.b.emit(Op::Dot { dims, out }, &[ct, a.x[other]])?)
    };
    let mut perm = vec![0; layout.len()];
    layout.iter().enumerate().for_each(|(at, &dim)| perm[dim] = at);
    a.b.transpose(product, &perm)
}

/// The size of `n` elements `dilation` apart.
fn dilated(n: usize, dilation: usize) -> i64 {
    ((n - 1) * dilation + 1) as i64
}

/// Convolves the cotangent (its elements `stride` apart) with the flipped kernel, input and output channels
/// exchanged within each group, at steps of the input's dilation.
///
/// Window position `p`, tap `k` and input element `i` meet where `p stride + k rhs_dilation = low + i lhs_dilation`.
/// Solved for the tap counted from the other end this is again a convolution, with low padding
/// `(K - 1) rhs_dilation - low`; the high padding is what makes the result as long as the input was.
fn conv_input(a: &mut At, c: &ConvDims, ct: ValueId) -> Result<ValueId> {
    let (input, kernel) = (a.ty[0].dims.clone(), a.ty[1].dims.clone());
    let (spatial, g) = (c.stride.len(), c.groups);
    let (inner, features) = (kernel[spatial], kernel[spatial + 1]);
    let taps = &kernel[..spatial];
    let windows = a.b.dims(ct)[1..=spatial].to_vec();

    let ct = a.b.convert(ct, a.ty[0].dtype)?;
    let order: Vec<usize> = (0..spatial).collect();
    let swapped = if g == 1 {
        a.b.transpose(a.x[1], &[&order[..], &[spatial + 1, spatial]].concat())?
    } else {
        let split = a.b.reshape(a.x[1], &[taps, &[inner, g, features / g]].concat())?;
        let swapped = a.b.transpose(split, &[&order[..], &[spatial + 2, spatial + 1, spatial]].concat())?;
        a.b.reshape(swapped, &[taps, &[features / g, g * inner]].concat())?
    };
    let flipped = a.b.emit(Op::Reverse { dims: order }, &[swapped])?;

    let padding = (0..spatial)
        .map(|d| {
            let taps = dilated(taps[d], c.rhs_dilation[d]);
            let low = taps - 1 - c.padding[d].0;
            let wanted = dilated(input[d + 1], c.lhs_dilation[d]) - 1 + taps;
            (low, wanted - dilated(windows[d], c.stride[d]) - low)
        })
        .collect();
    let dims = ConvDims {
        stride: c.lhs_dilation.clone(),
        padding,
        lhs_dilation: c.stride.clone(),
        rhs_dilation: c.rhs_dilation.clone(),
        groups: g,
    };
    a.b.emit(Op::Conv { dims, out: a.ty[0].dtype }, &[ct, flipped])
}

/// Convolves the input with the cotangent as kernel (its taps `stride` apart) at steps of the kernel's dilation:
/// the sum over samples is the channel sum, input channels are the batch, and groups stay groups because each
/// group's samples are made its channels.
fn conv_kernel(a: &mut At, c: &ConvDims, ct: ValueId) -> Result<ValueId> {
    let (input, kernel) = (a.ty[0].dims.clone(), a.ty[1].dims.clone());
    let (spatial, g) = (c.stride.len(), c.groups);
    let (samples, inner) = (input[0], kernel[spatial]);
    let size = &input[1..=spatial];
    let windows = a.b.dims(ct)[1..=spatial].to_vec();
    let ct = a.b.convert(ct, a.ty[1].dtype)?;
    if g > 1 && !a.ty[0].sharding.dim(0).is_empty() {
        return conv_kernel_by_taps(a, c, ct);
    }
    let order: Vec<usize> = (1..=spatial).collect();
    let lhs = if g == 1 {
        a.b.transpose(a.x[0], &[&[spatial + 1], &order[..], &[0]].concat())?
    } else {
        let split = a.b.reshape(a.x[0], &[&input[..=spatial], &[g, inner]].concat())?;
        let swapped = a.b.transpose(split, &[&[spatial + 2], &order[..], &[spatial + 1, 0]].concat())?;
        a.b.reshape(swapped, &[&[inner], size, &[g * samples]].concat())?
    };
    let rhs = a.b.transpose(ct, &[&order[..], &[0, spatial + 1]].concat())?;

    let padding = (0..spatial)
        .map(|d| {
            let low = c.padding[d].0;
            let wanted = dilated(kernel[d], c.rhs_dilation[d]) - 1 + dilated(windows[d], c.stride[d]);
            (low, wanted - dilated(size[d], c.lhs_dilation[d]) - low)
        })
        .collect();
    let dims = ConvDims {
        stride: c.rhs_dilation.clone(),
        padding,
        lhs_dilation: c.lhs_dilation.clone(),
        rhs_dilation: c.stride.clone(),
        groups: g,
    };
    let product = a.b.emit(Op::Conv { dims, out: a.ty[1].dtype }, &[lhs, rhs])?;
    a.b.transpose(product, &[&order[..], &[0, spatial + 1]].concat())
}

/// [`conv_kernel`] of groups whose samples are split over devices. Each device then has some samples of all groups, so that they
/// can't be made the channels of their group. Instead a product per tap of the kernel, of the input at that tap's places and
/// the cotangent: groups are its batch, and the sum over samples and windows is a sum over devices too.
fn conv_kernel_by_taps(a: &mut At, c: &ConvDims, ct: ValueId) -> Result<ValueId> {
    let (input, kernel) = (a.ty[0].dims.clone(), a.ty[1].dims.clone());
    let (spatial, g) = (c.stride.len(), c.groups);
    let (inner, features) = (kernel[spatial], kernel[spatial + 1]);
    let windows = a.b.dims(ct)[1..=spatial].to_vec();

    // The input spread and padded as far as any tap reaches; where padding is negative, taps begin further in.
    let first: Vec<usize> = (0..spatial).map(|d| (-c.padding[d].0).max(0) as usize).collect();
    let span: Vec<usize> = (0..spatial).map(|d| windows[d].saturating_sub(1) * c.stride[d] + 1).collect();
    let (mut low, mut high, mut interior) = (vec![0; spatial + 2], vec![0; spatial + 2], vec![0; spatial + 2]);
    for d in 0..spatial {
        low[d + 1] = c.padding[d].0.max(0) as usize;
        interior[d + 1] = c.lhs_dilation[d] - 1;
        let has = low[d + 1] as i64 + dilated(input[d + 1], c.lhs_dilation[d]);
        let reach = (first[d] + (kernel[d] - 1) * c.rhs_dilation[d] + span[d]) as i64;
        high[d + 1] = (reach - has).max(0) as usize;
    }
    let zero = a.b.scalar(a.ty[0].dtype, 0.0);
    let x = a.b.emit(Op::Pad { low, high, interior }, &[a.x[0], zero])?;

    let dims = DotDims {
        lhs_batch: vec![spatial + 1],
        rhs_batch: vec![spatial + 1],
        lhs_contract: (0..=spatial).collect(),
        rhs_contract: (0..=spatial).collect(),
    };
    let ct = a.b.reshape(ct, &[&[input[0]], &windows[..], &[g, features / g]].concat())?;
    let mut taps = Vec::with_capacity(kernel[..spatial].iter().product());
    for tap in 0..kernel[..spatial].iter().product() {
        let (mut start, mut limit, mut stride) = (vec![0; spatial + 2], a.b.dims(x).to_vec(), vec![1; spatial + 2]);
        let mut rest = tap;
        for d in (0..spatial).rev() {
            start[d + 1] = first[d] + rest % kernel[d] * c.rhs_dilation[d];
            limit[d + 1] = start[d + 1] + span[d];
            stride[d + 1] = c.stride[d];
            rest /= kernel[d];
        }
        let here = a.b.emit(Op::Slice { start, limit, stride }, &[x])?;
        let here = a.b.reshape(here, &[&[input[0]], &windows[..], &[g, inner]].concat())?;
        // `[group, inner, features of a group]`.
        let product = a.b.emit(Op::Dot { dims: dims.clone(), out: a.ty[1].dtype }, &[here, ct])?;
        let product = a.b.transpose(product, &[1, 0, 2])?;
        taps.push(a.b.reshape(product, &[1, inner, features])?);
    }
    let all = a.b.emit(Op::Concat { dim: 0 }, &taps)?;
    a.b.reshape(all, &kernel)
}
