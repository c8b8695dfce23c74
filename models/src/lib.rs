//! dnx-models: networks, diffusion processes, losses, optimizers and samplers, all written as graph builders.
//!
//! Nothing here computes: a network, a loss or a whole training step is a [`dnx_ir::Func`] that the compiler
//! lowers. What runs on the host (coefficients of samplers, initial weights) is `f64` arithmetic and threefry.
//!
//! Vocabulary:
//! * *parameter*: a named tensor of a network, [`params::ParamSpec`]; its name is the published tensor name.
//! * *path*: how data and noise are mixed, `x_t = alpha x0 + sigma n`; *time*: the path's own coordinate, whose
//!   unit ([`process::TimeDomain`]) is part of the type; *level*: a point on the path.
//! * *prediction*: what the network's output means; *weighting*: how squared errors are weighted over noise
//!   levels; *time law*: how times are drawn in training. Together: a [`process::Process`].
//! * *program*: a compiled-to-be function with named ports, as [`step::TrainProgram`].

// `!(x > 0.0)` is meant where it stands: it refuses NaN too.
#![allow(clippy::neg_cmp_op_on_partial_ord)]

pub mod attention;
pub mod embed;
pub mod error;
pub mod gmm;
pub mod init;
pub mod layers;
pub mod layout;
pub mod loss;
pub mod network;
pub mod optim;
pub mod params;
pub mod patch;
pub mod process;
pub mod sample;
pub mod scaling;
pub mod step;
pub mod streams;

pub use error::{Error, Result};
pub use init::Init;
pub use layout::Layout;
pub use network::{DataSpec, Network};
pub use params::{ParamSpec, Params, Scope};
