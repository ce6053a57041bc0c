//! What users have: balance and points, each a ledger.

pub mod events;
