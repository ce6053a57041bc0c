//! Where users are told something besides the app, which needs no port: there a notification is a row.

pub mod wechat;

use std::fmt;

use async_trait::async_trait;
use thiserror::Error;

use crate::ids::OrderId;
use crate::notification::events::NotificationKind;
use crate::ports::clock::Timestamp;

/// What somebody is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What the provider calls the user.
    pub recipient: String,
    pub kind: NotificationKind,
    pub order_id: Option<OrderId>,
    pub title: String,
    pub at: Timestamp,
}

/// What became of a notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    Sent,
    /// It is not wanted there, now or later: why.
    Declined(String),
}

/// The notice may or may not have been sent; later it may be.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("could not send a notice: {0}")]
pub struct NotifierError(pub String);

/// Tells users something.
#[async_trait]
pub trait Notifier: Send + Sync + fmt::Debug {
    /// Whose users it reaches, as identity calls them.
    fn provider(&self) -> &'static str;

    /// Sends `notice`; a repeat sends it again.
    async fn send(&self, notice: &Notice) -> Result<Delivery, NotifierError>;
}
