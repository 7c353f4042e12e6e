//! What the machine has, and who may use how much of it.
//!
//! [`pressure`] says how much memory there is and how much of it is taken; [`governor`] decides by it what caches and
//! indexes may hold, [`leak`] whether something grows that should not, [`fit`] whether a configuration can be at all.
//! All three decide by what they are given and touch nothing; `engine/govern.rs` samples and applies.
pub mod fit;
pub mod governor;
pub mod gpu;
pub mod leak;
pub mod pressure;
pub mod scheduler;

pub use pressure::total_memory;
