//! What the server tells the world. An event is written in the transaction of its cause (outbox), so it exists exactly
//! if the cause does. The [`relay`] hands it to the event bus, the bus to each [`consumer`] group, which applies it once;
//! what a group cannot apply is [parked](parking) and tried again, and what it never can lies in the [`dead_letter`]s.
//!
//! [`catalogue`] names every event and its payload; a module writes one with [`outbox::Events::push`], and whoever reads
//! it gets an [`Envelope`](envelope::Envelope), whichever way it came.

pub mod api;
pub mod asyncapi;
pub mod catalogue;
mod cemetery;
pub mod consumer;
pub mod dead_letter;
pub mod envelope;
pub mod groups;
pub mod jobs;
mod measure;
pub mod outbox;
pub mod outbox_rows;
pub mod parking;
pub mod reconcile;
pub mod relay;
