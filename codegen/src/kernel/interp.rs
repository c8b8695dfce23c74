//! The kernel interpreter: obviously what the kernel IR means, one point at a time.
