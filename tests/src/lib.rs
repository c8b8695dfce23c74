//! Tests that cross the rooms of dnx.

pub mod random_graph;
