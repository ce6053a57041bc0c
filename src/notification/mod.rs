//! What users are told.

pub mod events;
