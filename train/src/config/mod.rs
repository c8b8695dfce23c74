//! Configurations: TOML files of sections, each a plain struct with visible defaults.

pub mod load;
