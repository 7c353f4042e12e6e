//! What the machine has, and who may use how much of it.
pub mod gpu;
pub mod scheduler;
