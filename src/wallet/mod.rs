//! What users have: balance and points, each a ledger.
//!
//! An account's number is the sum of its entries, and every change goes through [`Ledger`]: the account is locked, the
//! entry's key `(reference, user, kind)` tells a repeat, and entry, account and event are one transaction (WAL-1; defect
//! So an order is paid from a balance once (WAL-2), refunded once (REF-4), and no balance is ever negative.
//!
//! What an order took goes back when it is cancelled or refunded: by its entries, whatever the event says, so it does not
//! matter how far its creation came.
//!
//! Points are for paid orders, by what a gateway captured for them. They follow `order.paid.v1`, not
//! `payment.succeeded.v1`: a capture that comes late or twice succeeds as well, but pays no order and is sent back, and
//! must not leave points behind. A refund takes them back, and one that overtakes its payment keeps them from being given.
//! What operators add or take is told by no event: `points.added.v1` promises the order.

pub mod api;
pub mod events;
pub mod groups;
mod ledger;
mod model;
mod points;
pub mod reconcile;
pub mod reconcile_orders;
mod service;
#[cfg(test)]
mod tests;

pub use ledger::Ledger;
pub use model::{
    Account, Adjusted, Adjustment, Entry, PointsAdjusted, PointsAdjustment, PointsEntry, WalletError,
};
pub use service::WalletService;
