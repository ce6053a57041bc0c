//! Notifications as they are shown.

use chrono::{DateTime, Utc};
use entities::notification;
use serde::Serialize;
use thiserror::Error;
use utoipa::ToSchema;

use super::events::NotificationKind;
use crate::db::{AsDbFault, DbFault};
use crate::ids::{NotificationId, OrderId};
use crate::messaging::outbox::serialize_rfc3339;
use crate::ports::clock::{Timestamp, from_micros};

/// Something a user was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Notification {
    pub id: NotificationId,
    pub kind: NotificationKind,
    /// What it is about.
    #[schema(required = true)]
    pub order_id: Option<OrderId>,
    pub title: String,
    pub body: String,
    /// When its user said to have read it.
    #[schema(required = true)]
    pub read_at: Option<DateTime<Utc>>,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

impl TryFrom<notification::Model> for Notification {
    type Error = DbFault;

    fn try_from(row: notification::Model) -> Result<Self, DbFault> {
        Ok(Self {
            id: NotificationId(row.id),
            kind: row.kind.parse()?,
            order_id: row.order_id.map(OrderId),
            title: row.title,
            body: row.body,
            read_at: row.read_at.map(from_micros),
            created_at: from_micros(row.created_at),
        })
    }
}

/// Why a notification was not marked.
#[derive(Debug, Error)]
pub enum NotificationError {
    #[error("you have no such notification")]
    NotFound,
    #[error(transparent)]
    Db(#[from] DbFault),
}

impl AsDbFault for NotificationError {
    fn db_fault(&self) -> Option<&DbFault> {
        match self {
            Self::Db(fault) => Some(fault),
            Self::NotFound => None,
        }
    }
}
