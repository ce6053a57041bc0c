//! What the server tells the world. An event is written in the transaction of its cause (outbox), so it exists exactly
//! if the cause does; publishing comes after.
//!
//! [`catalogue`] names every event and its payload; a module writes one with [`outbox::Events::push`], and whoever reads
//! it gets an [`Envelope`](envelope::Envelope), whichever way it came.

pub mod asyncapi;
pub mod catalogue;
pub mod envelope;
pub mod outbox;
