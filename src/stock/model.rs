//! Takes, and why there is none.

use serde::Serialize;
use thiserror::Error;
use utoipa::ToSchema;

use crate::actors::batching::Unserved;
use crate::db::{AsDbFault, DbFault};
use crate::idempotency::KeyRefusal;
use crate::ids::{ActivityId, TakeId, UserId};
use crate::messaging::outbox::serialize_rfc3339;
use crate::order::model::OrderView;
use crate::ports::clock::{Timestamp, from_micros};
use crate::words::words;

words! {
    /// What has become of a take.
    TakeState, "state of a take" {
        /// Held, and not yet turned into a draw.
        Unused = "unused",
        /// Held, and turned into what it stood for.
        Used = "used",
        /// Given back: its token may be sold again.
        Released = "released",
    }
}

/// A unit of an activity in the hands of a user: one numbered token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Take {
    pub id: TakeId,
    pub activity_id: ActivityId,
    pub user_id: UserId,
    /// Which of the activity's tokens, 1..=stock.
    #[schema(minimum = 1)]
    pub token_no: i32,
    /// Which of the user's takes in this activity, from 1.
    #[schema(minimum = 1)]
    pub take_no: i32,
    pub state: TakeState,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub taken_at: Timestamp,
}

/// What a take brings: the answer's body, now and to every repeat.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TakeAnswer {
    pub take: Take,
    /// What is to be paid, in a flash sale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<Box<OrderView>>,
}

impl TryFrom<entities::take::Model> for Take {
    type Error = DbFault;

    fn try_from(row: entities::take::Model) -> Result<Self, DbFault> {
        Ok(Self {
            id: TakeId(row.id),
            activity_id: ActivityId(row.activity_id),
            user_id: UserId(row.user_id),
            token_no: row.token_no,
            take_no: row.take_no,
            state: row.state.parse()?,
            taken_at: from_micros(row.taken_at),
        })
    }
}

/// Why an activity takes no requests now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// Its state is not `running`.
    NotStarted,
    /// It runs, but `starts_at` is still to come.
    TooEarly(Timestamp),
    /// `ends_at` has passed.
    Over(Timestamp),
}

/// Why there is no take.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum TakeError {
    #[error("there is no such activity")]
    NotFound,
    #[error("the activity is not running")]
    NotRunning(Closed),
    #[error("every token is taken")]
    SoldOut,
    #[error("the user holds {0} takes already")]
    LimitReached(u32),
    #[error(transparent)]
    Key(#[from] KeyRefusal),
    #[error("too many requests are waiting")]
    Overloaded { retry_after_s: u32 },
    /// The database failed before anything was written.
    #[error("the database is not available")]
    Unavailable,
    /// The request may have been served: only a repeat with its key can tell.
    #[error("the outcome is not known yet")]
    Unanswered,
    /// The actor ended before it looked at the request; ask the next one.
    #[error("the request was not begun")]
    NotBegun,
}

impl From<Unserved> for TakeError {
    fn from(unserved: Unserved) -> Self {
        match unserved {
            Unserved::Overloaded { retry_after_s } => Self::Overloaded { retry_after_s },
            Unserved::NotBegun => Self::NotBegun,
            Unserved::Unanswered => Self::Unanswered,
        }
    }
}

/// Why a take keeps its token.
#[derive(Debug, Error)]
pub enum ReleaseError {
    #[error("there is no such take")]
    NotFound,
    #[error("the take was used")]
    Used,
    #[error("the take has an order")]
    Ordered,
    #[error(transparent)]
    Key(#[from] KeyRefusal),
    #[error(transparent)]
    Db(#[from] DbFault),
}

impl AsDbFault for ReleaseError {
    fn db_fault(&self) -> Option<&DbFault> {
        match self {
            Self::Db(fault) => Some(fault),
            Self::NotFound | Self::Used | Self::Ordered | Self::Key(_) => None,
        }
    }
}

/// Why the stock stays as it is.
#[derive(Debug, Error)]
pub enum AdjustError {
    #[error("there is no such activity")]
    NotFound,
    #[error("the activity is closed")]
    Closed,
    #[error("only {free} tokens are free")]
    Insufficient { free: i64 },
    #[error("the stock would be {0}")]
    OutOfRange(i64),
    #[error(transparent)]
    Key(#[from] KeyRefusal),
    #[error(transparent)]
    Db(#[from] DbFault),
}

impl AsDbFault for AdjustError {
    fn db_fault(&self) -> Option<&DbFault> {
        match self {
            Self::Db(fault) => Some(fault),
            Self::NotFound
            | Self::Closed
            | Self::Insufficient { .. }
            | Self::OutOfRange(_)
            | Self::Key(_) => None,
        }
    }
}
