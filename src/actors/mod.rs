//! Actors that come and go: started by the first message, gone when idle, replaced when dead.

pub mod batching;
pub mod lanes;
pub mod registry;
