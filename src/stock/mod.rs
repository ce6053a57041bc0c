//! Who gets which unit: a drum of numbered tokens, drawn from memory and judged by the database.
//!
//! A take is one hop: [`service`] asks the activity's actor, which collects requests while a commit is in flight and
//! writes the next batch in one transaction ([`store`]); everyone is answered when their batch has committed
//! ([`batching`](crate::actors::batching)). The [`engine`] decides, in plain sequential code; [`window`] and
//! [`user_takes`] are its pure memory; [`blocks`] say which tokens this node may sell; [`hints`] answer from memory
//! what needs no actor.
//!
//! Two unique keys and a fence have the last word, so two nodes, or an actor started twice, sell no token twice.

pub mod api;
pub mod blocks;
pub mod changes;
pub mod engine;
pub mod events;
pub mod hints;
pub mod model;
pub mod projection;
pub mod range_set;
mod ranges;
pub mod reconcile;
pub mod reconcile_orders;
pub mod release;
pub mod service;
pub mod store;
#[cfg(test)]
mod tests;
pub mod user_takes;
pub mod window;

pub use model::{Take, TakeError, TakeState};
pub use service::StockService;

use crate::messaging::catalogue::EventType;

/// What every node wants to hear: it makes what its actors know old.
pub const HEARD: &[EventType] =
    &[EventType::ActivityStateChanged, EventType::ActivityStockAdjusted, EventType::ActivityTakeReleased];

/// This node as the owner of token blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThisNode {
    pub node: i32,
    /// Tells this run of the node from its former ones.
    pub incarnation: i64,
    /// Nodes that may be selling now, this one included.
    pub live_nodes: u32,
}
