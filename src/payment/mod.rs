//! Money through gateways: attempts, captures, refunds.
//!
//! [`machine`] has the rules. [`store::settle`] is the one way a payment learns what its gateway says, whether the gateway
//! called back or was asked; it only records and announces (PAY-6). What a capture does to the order and to the log is done
//! by [`groups`], each on its own (PAY-7); points are the [wallet](crate::wallet::groups)'s. [`refund`]s return money once
//! per payment. [`service`] is the front door.

pub mod api;
pub mod events;
pub mod groups;
pub mod jobs;
pub mod machine;
pub mod model;
mod opening;
pub mod pay_page;
pub mod reconcile;
pub mod reconcile_gateway;
pub mod refund;
mod refunding;
pub mod service;
pub mod store;
#[cfg(test)]
mod tests;

pub use service::PaymentService;
