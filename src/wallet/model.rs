//! Parsed values.

use entities::{points_entry, wallet_account, wallet_entry};
use serde::Serialize;
use thiserror::Error;
use utoipa::ToSchema;

use super::events::{BalanceChange, PointsChange};
use crate::db::{AsDbFault, DbFault};
use crate::idempotency::KeyRefusal;
use crate::ids::{LedgerEntryId, OrderId, UserId};
use crate::messaging::outbox::serialize_rfc3339;
use crate::money::{Currency, MOST_MINOR};
use crate::ports::clock::{Timestamp, from_micros};

/// The most points that an adjustment leaves a user with.
pub(super) const MOST_POINTS: i64 = 1_000_000_000_000;

/// What a user has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Account {
    pub balance_minor: i64,
    pub points: i64,
}

impl From<wallet_account::Model> for Account {
    fn from(row: wallet_account::Model) -> Self {
        Self { balance_minor: row.balance_minor, points: row.points }
    }
}

/// A wish to change a balance.
#[derive(Debug, Clone)]
pub struct Adjustment {
    pub user: UserId,
    /// What to add; to take, if negative; not 0.
    pub amount_minor: i64,
    pub reason: String,
    pub by: UserId,
}

/// A balance that was adjusted.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = BalanceAdjusted)]
pub struct Adjusted {
    pub id: LedgerEntryId,
    pub user_id: UserId,
    /// What was added; taken, if negative.
    pub amount_minor: i64,
    /// The balance since then.
    pub balance_minor: i64,
    pub currency: Currency,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// A change of a balance.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Entry {
    pub id: LedgerEntryId,
    pub kind: BalanceChange,
    /// What was added; taken, if negative.
    pub amount_minor: i64,
    /// The balance since then.
    pub balance_minor: i64,
    pub currency: Currency,
    /// Null for an adjustment.
    #[schema(required = true)]
    pub order_id: Option<OrderId>,
    /// Of an adjustment.
    #[schema(required = true)]
    pub reason: Option<String>,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

impl Entry {
    pub(super) fn new(row: wallet_entry::Model, currency: Currency) -> Result<Self, DbFault> {
        let kind = row.kind.parse()?;
        Ok(Self {
            id: LedgerEntryId(row.id),
            kind,
            amount_minor: row.amount_minor,
            balance_minor: row.balance_after_minor,
            currency,
            order_id: match kind {
                BalanceChange::Pay | BalanceChange::Refund => Some(OrderId(row.reference_id)),
                BalanceChange::Adjustment => None,
            },
            reason: row.reason,
            created_at: from_micros(row.created_at),
        })
    }
}

/// A wish to change a user's points.
#[derive(Debug, Clone)]
pub struct PointsAdjustment {
    pub user: UserId,
    /// What to add; to take, if negative; not 0.
    pub points: i64,
    pub reason: String,
    pub by: UserId,
}

/// Points that were adjusted.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PointsAdjusted {
    pub id: LedgerEntryId,
    pub user_id: UserId,
    /// What was added; taken, if negative.
    pub points: i64,
    /// The user's points since then.
    pub points_total: i64,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// A change of a user's points.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PointsEntry {
    pub id: LedgerEntryId,
    pub kind: PointsChange,
    /// What was added; taken, if negative.
    pub points: i64,
    /// The user's points since then.
    pub points_total: i64,
    /// Null for an adjustment.
    #[schema(required = true)]
    pub order_id: Option<OrderId>,
    /// Of an adjustment.
    #[schema(required = true)]
    pub reason: Option<String>,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

impl TryFrom<points_entry::Model> for PointsEntry {
    type Error = DbFault;

    fn try_from(row: points_entry::Model) -> Result<Self, DbFault> {
        let kind = row.kind.parse()?;
        Ok(Self {
            id: LedgerEntryId(row.id),
            kind,
            points: row.points,
            points_total: row.points_after,
            order_id: match kind {
                PointsChange::Earned | PointsChange::TakenBack => Some(OrderId(row.reference_id)),
                PointsChange::Adjustment => None,
            },
            reason: row.reason,
            created_at: from_micros(row.created_at),
        })
    }
}

/// Why a balance, or points, stay as they are.
#[derive(Debug, Error)]
pub enum WalletError {
    #[error("there is no such user")]
    UserUnknown,
    #[error("the balance is {balance_minor}")]
    Insufficient { balance_minor: i64 },
    #[error("a balance is at most {MOST_MINOR}")]
    TooMuch,
    #[error("the user has {points} points")]
    PointsInsufficient { points: i64 },
    #[error("a user has at most {MOST_POINTS} points")]
    TooManyPoints,
    #[error(transparent)]
    Key(#[from] KeyRefusal),
    #[error(transparent)]
    Db(#[from] DbFault),
}

impl AsDbFault for WalletError {
    fn db_fault(&self) -> Option<&DbFault> {
        match self {
            Self::Db(fault) => Some(fault),
            Self::UserUnknown
            | Self::Insufficient { .. }
            | Self::TooMuch
            | Self::PointsInsufficient { .. }
            | Self::TooManyPoints
            | Self::Key(_) => None,
        }
    }
}
