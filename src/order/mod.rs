//! What was sold, until it ends well: created, paid, cancelled, shipped, refunded.
//!
//! [`machine`] decides, purely; [`store::advance`] is the one way an order changes, for many orders in one transaction,
//! whoever asks: the API, a payment, the deadline, a repair. Rows are locked and versions fenced, so two nodes never
//! both win. [`saga`] makes an order of the shop, step by step; [`flash_sale`] makes one in the batch that takes its
//! token. What an order held goes back by its events, each module undoing what its own rows say.

pub mod api;
pub mod checkout;
pub mod desk;
pub mod events;
pub mod flash_sale;
pub mod jobs;
pub mod machine;
pub mod model;
pub mod reconcile;
pub mod saga;
pub mod service;
pub mod store;
#[cfg(test)]
mod tests;

pub use service::OrderService;
