//! Runs and differences.

use chrono::{DateTime, Utc};
use entities::{difference, reconciliation};
use sea_orm::DbErr;
use serde::Serialize;
use thiserror::Error;
use utoipa::ToSchema;

use crate::db::{AsDbFault, DbFault};
use crate::idempotency::KeyRefusal;
use crate::ids::{DifferenceId, ReconciliationId};
use crate::ports::clock::from_micros;
use crate::words::words;

words! {
    /// What became of a difference.
    DifferenceState, "state of a difference" {
        Open = "open",
        Applied = "applied",
        Gone = "gone",
    }
}

/// The action of a difference that only a person can settle.
pub const LOOK_AT_IT: &str = "look_at_it";

/// A difference, as a comparison finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it is about, so that the comparison finds it again.
    pub subject: String,
    pub expected: String,
    pub found: String,
    /// A sentence for people.
    pub detail: String,
    /// What is proposed: a lower-snake word.
    pub action: &'static str,
}

/// A difference, and what was done about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Difference {
    pub id: DifferenceId,
    /// Which comparison found it.
    #[schema(example = "stock_blocks")]
    pub comparison: String,
    pub subject: String,
    pub expected: String,
    pub found: String,
    pub detail: String,
    /// What applying it does.
    #[schema(example = "recount")]
    pub action: String,
    /// `open`; `applied`; `gone`, if it was no more when it was to be applied.
    pub state: DifferenceState,
    /// What applying it did, or found; a difference that is still there and only looked at stays open.
    #[schema(required = true)]
    pub outcome: Option<String>,
    #[schema(required = true)]
    pub settled_at: Option<DateTime<Utc>>,
}

/// A run: differences only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Reconciliation {
    pub id: ReconciliationId,
    pub started_at: DateTime<Utc>,
    pub finished_at: DateTime<Utc>,
    /// How many differences there were; of very many only the first of each comparison are kept.
    pub found: i32,
    /// Which comparisons could not be made, and why.
    #[schema(required = true)]
    pub failed: Option<String>,
    /// In a list, only the first of them: `/admin/reconciliations/{id}/differences` has the others.
    pub differences: Vec<Difference>,
}

impl TryFrom<difference::Model> for Difference {
    type Error = DbFault;

    fn try_from(row: difference::Model) -> Result<Self, DbFault> {
        Ok(Self {
            id: DifferenceId(row.id),
            comparison: row.comparison,
            subject: row.subject,
            expected: row.expected,
            found: row.found,
            detail: row.detail,
            action: row.action,
            state: row.state.parse()?,
            outcome: row.outcome,
            settled_at: row.settled_at.map(from_micros),
        })
    }
}

impl Reconciliation {
    pub(super) fn new(
        row: &reconciliation::Model,
        differences: Vec<difference::Model>,
    ) -> Result<Self, DbFault> {
        Ok(Self {
            id: ReconciliationId(row.id),
            started_at: from_micros(row.started_at),
            finished_at: from_micros(row.finished_at),
            found: row.found,
            failed: row.failed.clone(),
            differences: differences.into_iter().map(Difference::try_from).collect::<Result<_, _>>()?,
        })
    }
}

/// Why something was not compared, or not mended.
#[derive(Debug, Error)]
pub enum ComparisonError {
    #[error(transparent)]
    Db(#[from] DbFault),
    /// Somebody else has to be asked, and does not answer as needed.
    #[error("{0}")]
    Outside(String),
}

impl From<DbErr> for ComparisonError {
    fn from(error: DbErr) -> Self {
        Self::Db(error.into())
    }
}

impl AsDbFault for ComparisonError {
    fn db_fault(&self) -> Option<&DbFault> {
        match self {
            Self::Db(fault) => Some(fault),
            Self::Outside(_) => None,
        }
    }
}

/// Why a difference was not applied.
#[derive(Debug, Error)]
pub enum ReconciliationError {
    #[error("there is no such reconciliation or difference")]
    NotFound,
    #[error("the difference is {0} already")]
    Settled(DifferenceState),
    #[error("{0}")]
    Outside(String),
    #[error(transparent)]
    Key(#[from] KeyRefusal),
    #[error(transparent)]
    Db(#[from] DbFault),
}

impl From<ComparisonError> for ReconciliationError {
    fn from(error: ComparisonError) -> Self {
        match error {
            ComparisonError::Db(fault) => Self::Db(fault),
            ComparisonError::Outside(text) => Self::Outside(text),
        }
    }
}

impl AsDbFault for ReconciliationError {
    fn db_fault(&self) -> Option<&DbFault> {
        match self {
            Self::Db(fault) => Some(fault),
            Self::NotFound | Self::Settled(_) | Self::Outside(_) | Self::Key(_) => None,
        }
    }
}
