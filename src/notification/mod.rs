//! What users are told.
//!
//! Nobody waits for it (NTF-3): an event of an order or of its money makes the notification, which its user reads in the
//! app, and asks for it to be sent elsewhere; what cannot be sent there is tried again and changes nothing. [`messages`]
//! chooses by the event what is said (NTF-1), sending is the same for all (NTF-2).

pub mod api;
pub mod events;
pub mod groups;
mod messages;
mod model;
mod service;

pub use model::{Notification, NotificationError};
pub use service::NotificationService;
