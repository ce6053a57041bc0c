//! What the outside world gives the server, each behind a small trait so that tests can own it.

pub mod clock;
pub mod event_bus;
pub mod notifier;
pub mod payment_gateway;
pub(crate) mod wire;
