//! Tests that cross the rooms of dnx.
