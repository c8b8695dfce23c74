//! The parts of an array that the devices of a mesh hold, and the array from its parts.

use crate::{Array, Error, Mesh, Result, Sharding, Type, bail};

/// The dims of one device's part of an array of these dims.
///
/// # Panics
/// Never; axes that are not of the mesh count as 1.
pub fn local_dims(dims: &[usize], sharding: &Sharding, mesh: &Mesh) -> Vec<usize> {
    dims.iter().enumerate().map(|(d, &n)| n / pieces(sharding, mesh, d)).collect()
}

/// The type of one device's part of a value.
pub fn local_type(ty: &Type, mesh: &Mesh) -> Type {
    Type::new(ty.dtype, local_dims(&ty.dims, &ty.sharding, mesh))
}

/// Into how many pieces dim `d` is split.
fn pieces(sharding: &Sharding, mesh: &Mesh, d: usize) -> usize {
    sharding.dim(d).iter().map(|a| mesh.size(a).unwrap_or(1)).product()
}

/// Which piece of dim `d` a device holds.
fn place(sharding: &Sharding, mesh: &Mesh, device: usize, d: usize) -> usize {
    sharding
        .dim(d)
        .iter()
        .fold(0, |at, axis| at * mesh.size(axis).unwrap_or(1) + mesh.coordinate(device, axis).unwrap_or(0))
}

/// Calls `f` with the byte ranges (in the whole, in the part) of every run of bytes of a device's part, in order.
fn runs(ty: &Type, mesh: &Mesh, device: usize, mut f: impl FnMut(usize, usize, usize)) {
    let (whole, part) = (&ty.dims, local_dims(&ty.dims, &ty.sharding, mesh));
    let rank = whole.len();
    // Dims after the last one that is split are one run.
    let last = (0..rank).rev().find(|&d| part[d] != whole[d]);
    let from = last.unwrap_or(0);
    let run: usize = part[from.min(rank)..].iter().product::<usize>() * ty.dtype.size();
    if run == 0 || part.contains(&0) {
        return;
    }
    let strides = ty.strides();
    let first: Vec<usize> = (0..rank).map(|d| place(&ty.sharding, mesh, device, d) * part[d]).collect();
    let base: usize = first.iter().zip(&strides).map(|(f, s)| f * s).sum::<usize>() * ty.dtype.size();
    let outer: usize = part[..from.min(rank)].iter().product();
    for n in 0..outer {
        let (mut left, mut at) = (n, 0);
        for d in (0..from).rev() {
            at += left % part[d] * strides[d];
            left /= part[d];
        }
        f(base + at * ty.dtype.size(), n * run, run);
    }
}

/// The part of `array` that `device` holds when it lies as `sharding` says.
///
/// # Errors
/// For a sharding that does not divide the array, or is a sum.
pub fn part(array: &Array, sharding: &Sharding, mesh: &Mesh, device: usize) -> Result<Array> {
    let ty = array.ty().clone().with_sharding(sharding.clone());
    check(&ty, mesh)?;
    let local = local_type(&ty, mesh);
    if local.dims == ty.dims {
        return Ok(array.clone());
    }
    let mut bytes = vec![0; local.elems() * local.dtype.size()];
    runs(&ty, mesh, device, |whole, part, n| bytes[part..part + n].copy_from_slice(&array.bytes()[whole..whole + n]));
    Ok(Array::from_bytes(local, bytes))
}

/// The array of type `ty` (global dims and their sharding) from the parts of all devices in order. Where several
/// devices hold the same part, the first one's is taken.
///
/// # Errors
/// If a part is missing or of another type than the sharding makes it, or the sharding is a sum.
pub fn whole(parts: &[Array], ty: &Type, mesh: &Mesh) -> Result<Array> {
    check(ty, mesh)?;
    let local = local_type(ty, mesh);
    if parts.len() != mesh.devices() {
        bail!("{ty} lies on {} devices, {} parts are given", mesh.devices(), parts.len());
    }
    if let Some((device, part)) = parts.iter().enumerate().find(|(_, p)| *p.ty() != local) {
        bail!("device {device} has {} of {ty}, which is in parts {local}", part.ty());
    }
    if local.dims == ty.dims {
        return Ok(parts[0].clone());
    }
    let mut bytes = vec![0; ty.elems() * ty.dtype.size()];
    for (device, own) in parts.iter().enumerate().rev() {
        runs(ty, mesh, device, |whole, part, n| bytes[whole..whole + n].copy_from_slice(&own.bytes()[part..part + n]));
    }
    Ok(Array::from_bytes(Type::new(ty.dtype, ty.dims.clone()), bytes))
}

fn check(ty: &Type, mesh: &Mesh) -> Result<()> {
    crate::infer::check_sharding(&ty.sharding, &ty.dims, mesh)?;
    if ty.sharding.unreduced.is_empty() { Ok(()) } else { Err(Error::new(format!("{ty} is a sum not yet taken"))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    fn split(dims: &[&[&str]]) -> Sharding {
        Sharding::new(dims.iter().map(|d| d.iter().map(|a| (*a).into()).collect()).collect(), vec![])
    }

    #[test]
    fn parts_are_blocks_and_make_the_whole_again() {
        let mesh = Mesh::new(&[("a", 2), ("b", 3)]);
        let shardings = [
            split(&[&[], &[], &[]]),
            split(&[&["a"], &[], &[]]),
            split(&[&[], &["b"], &[]]),
            split(&[&[], &[], &["a"]]),
            split(&[&["a"], &["b"], &[]]),
            split(&[&["b"], &[], &["a"]]),
            split(&[&["b", "a"], &[], &[]]),
        ];
        for dtype in [DType::F32, DType::F16, DType::Bool, DType::I32] {
            let ty = Type::new(dtype, [6, 3, 4]);
            let array = Array::from_f64(ty.clone(), &(0..72).map(|i| (i * 7 % 61) as f64).collect::<Vec<_>>());
            for s in &shardings {
                let parts: Vec<Array> = (0..6).map(|d| part(&array, s, &mesh, d).unwrap()).collect();
                assert_eq!(whole(&parts, &ty.clone().with_sharding(s.clone()), &mesh).unwrap(), array);
            }
        }
        let array = Array::i32([6], &[0, 1, 2, 3, 4, 5]);
        let both = split(&[&["b", "a"]]);
        // Device 3 is at a = 1, b = 0: piece 0 * 2 + 1.
        assert_eq!(part(&array, &both, &mesh, 3).unwrap().to_i32_vec(), [1]);
        let one = split(&[&["b"]]);
        assert_eq!(part(&array, &one, &mesh, 5).unwrap().to_i32_vec(), [4, 5]);
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let mesh = Mesh::new(&[("a", 4)]);
        let odd = part(&Array::i32([6], &[0; 6]), &split(&[&["a"]]), &mesh, 0).unwrap_err().to_string();
        assert!(odd.contains('6') && odd.contains('a'), "{odd}");
        let ty = Type::f32([8]).with_sharding(split(&[&["a"]]));
        let parts = vec![Array::f32([2], &[0.0; 2]); 3];
        assert!(whole(&parts, &ty, &mesh).unwrap_err().to_string().contains("3 parts"));
        let parts = vec![Array::f32([8], &[0.0; 8]); 4];
        assert!(whole(&parts, &ty, &mesh).unwrap_err().to_string().contains("device 0"));
        let sum = Type::f32([8]).with_sharding(Sharding::new(vec![], vec!["a".into()]));
        assert!(whole(&parts, &sum, &mesh).unwrap_err().to_string().contains("sum"));
    }
}
