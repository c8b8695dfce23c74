//! Tests that cross the rooms of dnx.

pub mod attention;
pub mod differential;
pub mod random_graph;
