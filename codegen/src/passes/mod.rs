//! Graph passes: a function in, an equivalent function out, each a rebuild through [`dnx_ir::Builder`].
