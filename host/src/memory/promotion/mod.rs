//! Promotion: records that are used move from interact to insights and from there to assets, and those that
//! are not expire ([decision 15](../../../../docs/decisions/0015-promotion.md)).
//!
//! `score.rs` says what a record deserves, `interest.rs` what is used, and `cycle.rs` goes over the
//! records. A score only falls while its record is not used: recency fades, and nothing else changes. So
//! a cycle looks at what was used since it was last weighed, and at what is due, and at nothing else.
mod cycle;
mod interest;
mod score;
#[cfg(test)]
mod tests;

pub use cycle::{PromotionOptions, PromotionReport, Reason, Weighing, promote};
pub use score::{Policy, Share};
