//! Automatic differentiation of dnx graphs: jvp, linearize, transpose, grad.
