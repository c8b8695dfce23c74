//! Passes, fusion, kernel IR and WGSL of dnx.
