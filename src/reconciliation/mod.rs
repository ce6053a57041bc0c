//! Compares what should agree, and names what does not (REC-1 to REC-3).
//!
//! Each module brings its [`Comparison`]s: what was sent against what was applied, stock against takes, a projection
//! against the truth. Nothing is repaired silently: a run keeps its differences, each with the action it proposes, and
//! an operator has that action applied with one call. Applying looks again first, so it does no harm if the difference
//! is gone, or if it is asked for twice. Where only a person can tell what is right, the action is [`LOOK_AT_IT`]:
//! applying it looks again and changes nothing.

pub mod api;
pub mod jobs;
mod model;
mod search;
mod service;

pub use model::{
    ComparisonError, Difference, DifferenceState, Found, LOOK_AT_IT, Reconciliation, ReconciliationError,
};
pub use search::{Search, settled_before};
pub use service::{Comparison, MANY, ReconciliationService, logs};
