//! dnx: trains and samples diffusion and flow-matching models on any GPU.
