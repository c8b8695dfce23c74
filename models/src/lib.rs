//! Networks, diffusion processes, optimizers and samplers of dnx.
