//! What the server tells the world. An event is written in the transaction of its cause (outbox), so it exists exactly
//! if the cause does; publishing comes after.

pub mod event;
pub mod outbox;
