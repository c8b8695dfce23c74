//! Where the tensors of a training step lie over a mesh of devices: what `[mesh]` of a configuration says.
//!
//! Four axes have a meaning of their own; a mesh may have any of them, and others that only rules name.
//!
//! | axis | splits | in the field |
//! |---|---|---|
//! | `data` | samples | data parallel |
//! | `fsdp` | samples, and the largest dim it divides of every large parameter, its moments and averages | FSDP, ZeRO 3 |
//! | `tensor` | heads and hidden units, by [`TENSOR`] | Megatron |
//! | `sequence` | tokens | context parallel |
//!
//! A parameter is *stored* split by all its axes and *used* whole over those that split samples: it is gathered where a
//! block begins, and its gradient is scattered where the block's backward pass ends. A rule gives the axes of each dim of the
//! parameters whose names fit its pattern, before the presets are asked.

use crate::{Error, ParamSpec, Result};
use dnx_ir::parts::local_dims;
use dnx_ir::{AxisName, Mesh, Sharding, Tensor, Type};

/// Axes that split samples.
const BATCH: [&str; 2] = ["data", "fsdp"];
/// The axis that splits parameters beside samples.
const FSDP: &str = "fsdp";
/// The axis that splits heads and hidden units.
const TENSOR_AXIS: &str = "tensor";
/// The axis that splits tokens.
const SEQUENCE: &str = "sequence";

/// Parameters of fewer elements stay whole under `fsdp`: gathering them would cost more than they take.
const WHOLE_BELOW: usize = 1 << 12;

/// By name pattern and rank the dim that axis `tensor` splits: layers that widen by their outputs, those that narrow again by
/// their inputs (Shoeybi et al., "Megatron-LM", 2019, section 3). Queries, keys and values are three stacked matrices, each
/// split by heads. Modulations of whole samples are stacked too: a third of a transformer's weights, of which little comes out
/// and is gathered. Those of single tokens have rank 2 and stay whole.
pub const TENSOR: [(&str, usize, usize); 8] = [
    ("*.attn.qkv.weight", 3, 1),
    ("*.attn.qkv.bias", 2, 1),
    ("*.attn.proj.weight", 2, 1),
    ("*.mlp.fc1.weight", 2, 0),
    ("*.mlp.fc1.bias", 1, 0),
    ("*.mlp.fc2.weight", 2, 1),
    ("*.adaLN_modulation.1.weight", 3, 1),
    ("*.adaLN_modulation.1.bias", 2, 1),
];

/// A mesh and where tensors lie on it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    mesh: Mesh,
    /// Pattern, and the axes of each dim.
    rules: Vec<(String, Vec<Vec<AxisName>>)>,
}

impl Layout {
    /// Everything on one device.
    pub fn single() -> Layout {
        Layout::default()
    }

    /// A mesh of these axes (those of size 1 are left out), and rules: a pattern of parameter names, in which `*` is any
    /// run of characters, and for each dim the axes that split it, separated by blanks (none: `""`).
    ///
    /// # Errors
    /// An axis of size 0, one that nothing is split by, or a rule with an axis that the mesh has not got.
    pub fn new<'a>(
        axes: impl IntoIterator<Item = (&'a str, usize)>,
        rules: impl IntoIterator<Item = (&'a str, &'a [String])>,
    ) -> Result<Layout> {
        let axes: Vec<(&str, usize)> = axes.into_iter().collect();
        let mut layout = Layout::default();
        for (pattern, dims) in rules {
            let mut split = Vec::with_capacity(dims.len());
            for names in dims {
                let names: Vec<&str> = names.split_whitespace().collect();
                if let Some(unknown) = names.iter().find(|n| !axes.iter().any(|(a, _)| a == *n)) {
                    let message = format!("names axis {unknown}, which mesh.axes has not got");
                    return Err(Error::config(format!("mesh.rules.{pattern}"), message));
                }
                let large = |n: &&&str| axes.iter().any(|&(a, size)| a == **n && size > 1);
                split.push(names.iter().filter(large).map(|n| AxisName::from(*n)).collect());
            }
            layout.rules.push((pattern.to_string(), split));
        }
        for &(name, size) in &axes {
            if size == 0 {
                let message = format!("axis {name} is 0; an axis has at least one device");
                return Err(Error::config("mesh.axes", message));
            }
            let known = BATCH.contains(&name) || [TENSOR_AXIS, SEQUENCE].contains(&name);
            let ruled = || layout.rules.iter().any(|(_, dims)| dims.iter().flatten().any(|a| &**a == name));
            if !known && size > 1 && !ruled() {
                let message = format!(
                    "axis {name} splits nothing: axes are data, fsdp, tensor and sequence, or what mesh.rules name"
                );
                return Err(Error::config("mesh.axes", message));
            }
        }
        let axes: Vec<(&str, usize)> = axes.into_iter().filter(|&(_, size)| size > 1).collect();
        layout.mesh = Mesh::new(&axes);
        Ok(layout)
    }

    /// The mesh.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// The number of devices.
    pub fn devices(&self) -> usize {
        self.mesh.devices()
    }

    /// The size of axis `tensor`.
    pub fn tensor(&self) -> usize {
        self.mesh.size(TENSOR_AXIS).unwrap_or(1)
    }

    /// Sees that axis `tensor` can split so many heads.
    ///
    /// # Errors
    /// If it does not divide them.
    pub fn check_heads(&self, heads: usize) -> Result<()> {
        if heads.is_multiple_of(self.tensor()) {
            return Ok(());
        }
        let message = format!("axis tensor is {}, which does not divide the {heads} heads", self.tensor());
        Err(Error::config("mesh.axes", message))
    }

    fn batch_axes(&self) -> Vec<AxisName> {
        BATCH.iter().filter(|a| self.mesh.size(a).is_some()).map(|&a| a.into()).collect()
    }

    /// Into how many parts samples are split.
    pub fn batch_parts(&self) -> usize {
        BATCH.iter().map(|a| self.mesh.size(a).unwrap_or(1)).product()
    }

    /// The type of a value with samples along dim `dim`.
    pub fn samples(&self, ty: Type, dim: usize) -> Type {
        let mut dims = vec![vec![]; ty.rank()];
        dims[dim] = self.batch_axes();
        ty.with_sharding(Sharding::new(dims, vec![]))
    }

    /// `x` with dim `dim`, along which tokens lie, split by axis `sequence` if there is one.
    pub fn along_sequence<'g>(&self, x: Tensor<'g>, dim: usize) -> Tensor<'g> {
        if self.mesh.size(SEQUENCE).is_none() {
            return x;
        }
        let sharding = x.ty().sharding;
        let mut dims: Vec<Vec<AxisName>> = (0..x.rank()).map(|d| sharding.dim(d).to_vec()).collect();
        dims[dim].push(SEQUENCE.into());
        x.reshard(Sharding::new(dims, vec![]))
    }

    /// The type of a parameter as it is stored.
    pub fn stored(&self, spec: &ParamSpec) -> Type {
        let ty = spec.ty();
        if self.mesh.axes.is_empty() {
            return ty;
        }
        let mut dims = self.ruled(&spec.name, &ty.dims).unwrap_or_else(|| self.preset(&spec.name, &ty.dims));
        let sharded_by = |dims: &[Vec<AxisName>]| Sharding::new(dims.to_vec(), vec![]);
        if let Some(n) = self.mesh.size(FSDP)
            && ty.elems() >= WHOLE_BELOW
            && !dims.iter().flatten().any(|a| &**a == FSDP)
        {
            let local = local_dims(&ty.dims, &sharded_by(&dims), &self.mesh);
            // The largest, and of equal ones the first; one that is split already only if no other can be.
            let fits = |&d: &usize| local[d].is_multiple_of(n);
            let best = (0..ty.rank()).rev().filter(fits).max_by_key(|&d| (dims[d].is_empty(), local[d]));
            if let Some(d) = best {
                dims[d].push(FSDP.into());
            }
        }
        ty.with_sharding(sharded_by(&dims))
    }

    /// The sharding in which a network computes with a parameter: whole over the axes that split samples.
    pub fn used(&self, spec: &ParamSpec) -> Sharding {
        let stored = self.stored(spec).sharding;
        let dims = stored.dims.into_iter().map(|mut axes| {
            axes.retain(|a| !BATCH.contains(&&**a));
            axes
        });
        Sharding::new(dims.collect(), vec![])
    }

    fn ruled(&self, name: &str, dims: &[usize]) -> Option<Vec<Vec<AxisName>>> {
        let fits = |pattern: &str, split: &[Vec<AxisName>]| split.len() == dims.len() && matches(pattern, name);
        self.rules.iter().find(|(p, split)| fits(p, split)).map(|(_, split)| split.clone())
    }

    fn preset(&self, name: &str, dims: &[usize]) -> Vec<Vec<AxisName>> {
        let mut split = vec![vec![]; dims.len()];
        if let Some(n) = self.mesh.size(TENSOR_AXIS)
            && let Some(&(.., d)) =
                TENSOR.iter().find(|(pattern, rank, _)| *rank == dims.len() && matches(pattern, name))
            && dims[d].is_multiple_of(n)
        {
            split[d].push(TENSOR_AXIS.into());
        }
        split
    }
}

/// Whether a name fits a pattern in which `*` is any run of characters.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or("")) else { return false };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.is_empty()
}

/// The value with the sums over devices taken that are still open.
pub fn settled(t: Tensor<'_>) -> Tensor<'_> {
    let sharding = t.ty().sharding;
    if sharding.unreduced.is_empty() { t } else { t.reshard(Sharding::new(sharding.dims, vec![])) }
}

/// The value with its last dim whole on every device.
pub fn whole_rows(t: Tensor<'_>) -> Tensor<'_> {
    let Some(last) = t.rank().checked_sub(1) else { return t };
    let sharding = t.ty().sharding;
    if sharding.dim(last).is_empty() {
        return t;
    }
    let mut dims = sharding.dims;
    dims[last].clear();
    t.reshard(Sharding::new(dims, sharding.unreduced))
}

/// Values `[B, ..]` that belong to the samples of `x` `[B, ..]`, split over the devices as the samples are.
pub fn beside<'g>(values: Tensor<'g>, x: Tensor<'g>) -> Tensor<'g> {
    let mut dims = vec![vec![]; values.rank()];
    dims[0] = x.ty().sharding.dim(0).to_vec();
    let samples = Sharding::new(dims, vec![]);
    if values.ty().sharding == samples { values } else { values.reshard(samples) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Init;

    fn spec(name: &str, dims: &[usize]) -> ParamSpec {
        ParamSpec { name: name.into(), dims: dims.to_vec(), init: Init::Zeros, trainable: true, stacked: 1 }
    }

    fn stored(layout: &Layout, name: &str, dims: &[usize]) -> String {
        layout.stored(&spec(name, dims)).to_string()
    }

    #[test]
    fn patterns() {
        for (pattern, name, wanted) in [
            ("*.weight", "blocks.0.weight", true),
            ("*.weight", "weight", false),
            ("blocks.*.fc1.*", "blocks.12.mlp.fc1.bias", true),
            ("blocks.*.fc1.*", "block.12.mlp.fc1.bias", false),
            ("*", "anything", true),
            ("a.b", "a.b", true),
            ("a.b", "a.bc", false),
            ("a*c", "abc.c", true),
            ("a*bc", "abc", true),
            ("ab*bc", "abc", false),
        ] {
            assert_eq!(matches(pattern, name), wanted, "{pattern} {name}");
        }
    }

    #[test]
    fn fsdp_takes_the_largest_dim_it_divides_of_what_is_large() {
        let layout = Layout::new([("fsdp", 4), ("data", 2)], []).unwrap();
        assert_eq!(stored(&layout, "w", &[64, 256]), "f32[64, 256@fsdp]");
        assert_eq!(stored(&layout, "w", &[64, 257]), "f32[64@fsdp, 257]");
        assert_eq!(stored(&layout, "w", &[128, 128]), "f32[128@fsdp, 128]");
        assert_eq!(stored(&layout, "w", &[63, 257]), "f32[63, 257]");
        assert_eq!(stored(&layout, "b", &[256]), "f32[256]");
        assert_eq!(layout.used(&spec("w", &[64, 256])), Sharding::replicated());
    }

    #[test]
    fn tensor_splits_what_widens_by_outputs_and_what_narrows_by_inputs() {
        let layout = Layout::new([("tensor", 2), ("fsdp", 2)], []).unwrap();
        assert_eq!(stored(&layout, "blocks.1.mlp.fc1.weight", &[256, 64]), "f32[256@tensor, 64@fsdp]");
        assert_eq!(stored(&layout, "blocks.1.mlp.fc2.weight", &[64, 256]), "f32[64@fsdp, 256@tensor]");
        assert_eq!(stored(&layout, "blocks.1.mlp.fc2.bias", &[64]), "f32[64]");
        let qkv = ParamSpec { stacked: 3, ..spec("blocks.1.attn.qkv.weight", &[192, 64]) };
        assert_eq!(layout.stored(&qkv).to_string(), "f32[3, 64@tensor, 64@fsdp]");
        let (name, dims) = ("blocks.1.adaLN_modulation.1.weight", [384, 64]);
        let modulations = ParamSpec { stacked: 6, ..spec(name, &dims) };
        assert_eq!(layout.stored(&modulations).to_string(), "f32[6, 64@tensor, 64@fsdp]");
        assert_eq!(stored(&layout, name, &dims), "f32[384@fsdp, 64]");
        assert_eq!(layout.used(&qkv), Sharding::new(vec![vec![], vec!["tensor".into()], vec![]], vec![]));
    }

    #[test]
    fn rules_come_first() {
        let axes = [("data", 2), ("rows", 2)];
        let rule = ["rows data".to_string(), String::new()];
        let layout = Layout::new(axes, [("head.*", &rule[..])]).unwrap();
        assert_eq!(stored(&layout, "head.weight", &[8, 3]), "f32[8@rows@data, 3]");
        assert_eq!(layout.used(&spec("head.weight", &[8, 3])).dims[0], ["rows".into()]);
        let of = |axes: &[(&'static str, usize)], rule: &[String]| {
            Layout::new(axes.iter().copied(), [("w", rule)]).unwrap_err().to_string()
        };
        assert!(of(&[("data", 2)], &["up".into()]).contains("axis up"));
        assert!(of(&[("odd", 2)], &["".into()]).contains("splits nothing"));
        assert!(of(&[("data", 0)], &["".into()]).contains("at least one"));
    }
}
