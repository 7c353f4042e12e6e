//! What the machine has.
pub mod gpu;
