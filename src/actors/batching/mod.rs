//! Many requests, one transaction: what every actor that commits in groups has in common.
//!
//! While one batch commits, the requests that come meanwhile wait in the [`intake`] and are the next batch. So a batch
//! grows with the load and is one request when idle, without a timer. Whoever has requests to batch writes an
//! [`Engine`]; the [`Batcher`] is its front door: it finds the [`actor`] of a key, turns away who would wait too long
//! ([`load`]), waits for the answer, and asks the next actor when one went to rest.
//!
//! An [`Ask`] is always answered: by the engine, or, if that dies or goes, by being dropped.

pub mod actor;
mod ask;
mod batcher;
pub mod intake;
pub mod load;
#[cfg(test)]
mod tests;

use std::fmt::{Debug, Display};
use std::hash::Hash;

use thiserror::Error;

pub use ask::{Ask, Reply};
pub use batcher::{Asked, BatchSettings, Batcher};
pub use load::AdmissionLimits;

/// Serves the requests of one key, batch after batch, in plain sequential code.
pub trait Engine: Send + Sized + 'static {
    /// What actors of this kind are called in logs.
    const NAME: &'static str;

    /// One actor each.
    type Key: Copy + Eq + Hash + Debug + Display + Send + Sync + 'static;
    /// What is wanted. Cloned once per request, to be asked again if the actor goes.
    type Request: Clone + Debug + Send + 'static;
    type Answer: Send + 'static;
    type Error: From<Unserved> + Send + 'static;
    /// What the engine must learn from outside its batches.
    type Notice: Clone + Debug + Send + 'static;
    /// What callers may know without asking; shared with the engine, which keeps it true.
    type Hints: Default + Debug + Send + Sync + 'static;

    /// Takes note of what happened elsewhere.
    fn note(&mut self, notice: Self::Notice);

    /// Answers every one of `asks`; they have waited for each other, and more are waiting.
    fn serve(&mut self, asks: Vec<Ask<Self>>) -> impl Future<Output = ()> + Send;

    /// Whether anything is lost if it goes as soon as nobody waits; one that is not needed costs memory for nothing.
    fn is_needed(&self) -> bool {
        true
    }

    /// Gives up what it holds: it is not asked any more.
    fn rest(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Takes the hints back that `notice` makes wrong: at once, before the engine learns of it.
    fn hear(_hints: &Self::Hints, _notice: &Self::Notice) {}
}

/// Why a request got no answer of its engine.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum Unserved {
    #[error("too many requests are waiting")]
    Overloaded { retry_after_s: u32 },
    /// The actor ended before it looked at the request.
    #[error("the request was not begun")]
    NotBegun,
    /// The request may have been served.
    #[error("the outcome is not known yet")]
    Unanswered,
}
