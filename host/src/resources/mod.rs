//! What the machine has.
pub mod gpu;
mod memory;

pub use memory::total_memory;
