//! The stages of compilation, in order, and [`Dump`], which collects the text of the stages asked for.
//!
//! A stage is a point at which the whole program can be printed. The first three are made by the caller (a model,
//! its derivative, a training step); the others by [`crate::passes::prepare`] and [`crate::compile`].

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// A stage, in the order of compilation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The model as built.
    Model,
    /// Its forward derivative.
    Jvp,
    /// Its reverse derivative.
    Grad,
    /// The training step: loss, gradient, optimizer, averages.
    Step,
    /// Calls and composites replaced by their bodies.
    Inline,
    /// Algebra, common subexpressions, dead code, constants.
    Canonical,
    /// Conversions between storage and arithmetic types made explicit.
    Precision,
    /// Only ops that a kernel kind has.
    Decompose,
    /// The program of one device, collectives included.
    Partition,
    /// What is recomputed rather than kept.
    Remat,
    /// Ops grouped into kernels-to-be.
    Fuse,
    /// Kernel IR.
    Kernels,
    /// The order of kernels, copies and collectives.
    Schedule,
    /// Slabs and offsets.
    Memory,
    /// Shader text.
    Wgsl,
    /// The executable.
    Exec,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Stage; 16] = {
        use Stage::*;
        [
            Model, Jvp, Grad, Step, Inline, Canonical, Precision, Decompose, Partition, Remat, Fuse, Kernels, Schedule,
            Memory, Wgsl, Exec,
        ]
    };

    /// The name used on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Model => "model",
            Stage::Jvp => "jvp",
            Stage::Grad => "grad",
            Stage::Step => "step",
            Stage::Inline => "inline",
            Stage::Canonical => "canonical",
            Stage::Precision => "precision",
            Stage::Decompose => "decompose",
            Stage::Partition => "partition",
            Stage::Remat => "remat",
            Stage::Fuse => "fuse",
            Stage::Kernels => "kernels",
            Stage::Schedule => "schedule",
            Stage::Memory => "memory",
            Stage::Wgsl => "wgsl",
            Stage::Exec => "exec",
        }
    }

    /// One line about it.
    pub const fn about(self) -> &'static str {
        match self {
            Stage::Model => "the model as built",
            Stage::Jvp => "its forward derivative, where the loss takes one",
            Stage::Grad => "its reverse derivative",
            Stage::Step => "the whole step: loss, gradient, optimizer, averages",
            Stage::Inline => "calls and unclaimed composites replaced by their bodies",
            Stage::Canonical => "algebra, common subexpressions, dead code, constant folding",
            Stage::Precision => "conversions between storage and arithmetic types made explicit",
            Stage::Decompose => "only ops that a kernel kind has",
            Stage::Partition => "the program of one device: local shapes, collectives",
            Stage::Remat => "what is recomputed rather than kept",
            Stage::Fuse => "ops grouped into clusters, one per kernel",
            Stage::Kernels => "kernel IR of every unique kernel",
            Stage::Schedule => "the order of kernels, copies and collectives",
            Stage::Memory => "slabs, offsets and the peak",
            Stage::Wgsl => "shader text",
            Stage::Exec => "the executable",
        }
    }

    /// The stage of this name.
    pub fn from_name(name: &str) -> Option<Stage> {
        Stage::ALL.into_iter().find(|s| s.name() == name)
    }

    /// The list printed by `--dump-ir=help`: one stage a line, in order.
    pub fn help() -> String {
        Stage::ALL.iter().map(|s| format!("{:<10} {}\n", s.name(), s.about())).collect()
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Collects the text of stages. Text is made only for the stages asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    wanted: Vec<Stage>,
    texts: BTreeMap<Stage, String>,
}

impl Dump {
    /// Collects nothing.
    pub fn none() -> Dump {
        Dump::default()
    }

    /// Collects these stages.
    pub fn of(stages: &[Stage]) -> Dump {
        Dump { wanted: stages.to_vec(), texts: BTreeMap::new() }
    }

    /// Collects every stage.
    pub fn all() -> Dump {
        Dump::of(&Stage::ALL)
    }

    /// Whether the text of this stage is asked for.
    pub fn wants(&self, stage: Stage) -> bool {
        self.wanted.contains(&stage)
    }

    /// Records a stage, if asked for. Later text of the same stage replaces earlier text.
    pub fn record(&mut self, stage: Stage, text: impl FnOnce() -> String) {
        if self.wants(stage) {
            self.texts.insert(stage, text());
        }
    }

    /// The text of a stage, if it was asked for and reached.
    pub fn text(&self, stage: Stage) -> Option<&str> {
        self.texts.get(&stage).map(String::as_str)
    }

    /// All recorded stages, in order.
    pub fn texts(&self) -> impl Iterator<Item = (Stage, &str)> {
        self.texts.iter().map(|(s, t)| (*s, t.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_again_and_order_is_that_of_compilation() {
        for s in Stage::ALL {
            assert_eq!(Stage::from_name(s.name()), Some(s));
        }
        assert!(Stage::ALL.windows(2).all(|w| w[0] < w[1]));
        assert_eq!(Stage::from_name("canon"), None);
        assert_eq!(Stage::help().lines().count(), 16);
    }

    #[test]
    fn a_dump_makes_only_the_text_asked_for() {
        let mut d = Dump::of(&[Stage::Fuse]);
        d.record(Stage::Kernels, || unreachable!("not asked for"));
        d.record(Stage::Fuse, || "clusters".into());
        assert_eq!(d.texts().collect::<Vec<_>>(), [(Stage::Fuse, "clusters")]);
        assert_eq!(d.text(Stage::Kernels), None);
    }
}
