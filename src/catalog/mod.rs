//! What the shop sells: goods with a price and a quantity, and each user's cart.
//!
//! Stock is a number, and a [`ledger`] that says what moved it: the opening, sales, returns, adjustments. The number is
//! the ledger's sum, in every commit; one row per order and kind makes each sale and each return happen once (STK-8,
//! STK-9). Each kind of goods has an actor that sells it ([`engine`]): many orders, one guarded update. Only drafts get
//! units, so nothing happens behind an order's back; what a cancelled or refunded order held comes back by its event
//! ([`returns`]).

pub mod api;
pub mod cart;
pub mod cart_api;
mod engine;
pub mod ledger;
pub mod model;
pub mod reconcile;
pub mod reconcile_orders;
pub mod returns;
mod sale;
pub mod service;
mod store;
#[cfg(test)]
mod tests;

pub use cart::CartService;
pub use model::{Goods, ReserveError};
pub use service::CatalogService;
