//! Money through gateways: attempts, captures, refunds.

pub mod events;
pub mod model;
