//! What the machine has, and who may use how much of it.
pub mod gpu;
mod memory;
pub mod scheduler;

pub use memory::total_memory;
