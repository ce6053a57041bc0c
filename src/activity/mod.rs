//! Campaigns: what is on offer, when, how many in all and how many to one user.
//!
//! An operator writes an activity, has it approved, and from then on the clock moves it: [`jobs`] asks for `start` and
//! `close` through the same [`ActivityService::transition`] as an operator. Each change locks the activity's row,
//! raises its `version` and writes its event in one transaction; each batch of takes checks that version, so no take
//! is accepted after an activity has closed, on any node. Whoever uses an activity looks at its state **and** its
//! window (ACT-4): the job is prompt, not exact.

pub mod api;
pub mod events;
pub mod jobs;
pub mod machine;
pub mod model;
mod service;
mod store;
#[cfg(test)]
pub(crate) mod tests;

pub use service::{ActivityError, ActivityService, Actor, OnChange};
