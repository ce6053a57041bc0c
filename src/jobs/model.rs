//! Jobs and their runs as they are kept and shown.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde_json::Value;
use thiserror::Error;
use utoipa::ToSchema;

use super::job::Trigger;
use super::params::InvalidParams;
use crate::db::{AsDbFault, DbFault, fit};
use crate::idempotency::KeyRefusal;
use crate::ids::{JobRunId, NodeNumberLost, UserId};
use crate::ports::clock::Timestamp;
use crate::words::words;

words! {
    /// Where a run stands: asked for, under way, or how it ended. `lost`: its node died or stopped in the middle.
    RunState, "state of a run" {
        Requested = "requested",
        Running = "running",
        Done = "done",
        Failed = "failed",
        Panicked = "panicked",
        Lost = "lost",
    }
}

impl RunState {
    /// Whether the run has come to its end.
    pub fn is_final(self) -> bool {
        match self {
            Self::Requested | Self::Running => false,
            Self::Done | Self::Failed | Self::Panicked | Self::Lost => true,
        }
    }
}

/// A run of a job.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Run {
    pub id: JobRunId,
    pub job: String,
    pub state: RunState,
    pub trigger: Trigger,
    /// The operator who asked for it.
    #[schema(required = true)]
    pub requested_by: Option<UserId>,
    /// What the run was told; null: nothing.
    #[schema(required = true, value_type = Option<Object>)]
    pub params: Option<Value>,
    /// The number of the node that runs it or ran it.
    #[schema(required = true)]
    pub node: Option<i32>,
    pub created_at: DateTime<Utc>,
    #[schema(required = true)]
    pub started_at: Option<DateTime<Utc>>,
    #[schema(required = true)]
    pub finished_at: Option<DateTime<Utc>>,
    #[schema(required = true)]
    pub duration_ms: Option<i64>,
    /// What it did, in a few words; null: nothing.
    #[schema(required = true)]
    pub summary: Option<String>,
    /// Why it failed.
    #[schema(required = true)]
    pub error: Option<String>,
}

/// How the last run that ended came out.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct LastRun {
    pub started_at: DateTime<Utc>,
    pub finished_at: DateTime<Utc>,
    pub outcome: RunState,
    #[schema(required = true)]
    pub error: Option<String>,
}

/// A job as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct JobView {
    pub name: String,
    /// As it is written in the settings: a period, cron syntax in UTC, or `on demand`.
    #[schema(example = "*/10 * * * *")]
    pub schedule: String,
    /// When it runs by itself next; null: when it is asked to.
    #[schema(required = true)]
    pub next_run_at: Option<DateTime<Utc>>,
    /// A paused job runs only when it is asked to.
    pub paused: bool,
    /// Whether a run is under way; one of less than two seconds may go unseen.
    pub running: bool,
    /// At most ten seconds behind.
    #[schema(required = true)]
    pub last_run: Option<LastRun>,
    #[schema(required = true)]
    pub last_success_at: Option<DateTime<Utc>>,
}

/// A job's row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Standing {
    pub(super) paused: bool,
    /// The moments of its schedule up to here need no run any more.
    pub(super) served_until: Timestamp,
    pub(super) last_run: Option<LastRun>,
    pub(super) last_success_at: Option<Timestamp>,
}

/// What was asked for, by whom, and in which words.
#[derive(Debug, Clone)]
pub struct Request {
    pub trigger: Trigger,
    pub by: Option<UserId>,
    pub params: Option<Value>,
}

impl Run {
    /// A run that is only asked for.
    pub(super) fn requested(id: JobRunId, job: &str, request: Request, now: Timestamp) -> Self {
        Self {
            id,
            job: job.to_owned(),
            state: RunState::Requested,
            trigger: request.trigger,
            requested_by: request.by,
            params: request.params,
            node: None,
            created_at: now,
            started_at: None,
            finished_at: None,
            duration_ms: None,
            summary: None,
            error: None,
        }
    }

    pub(super) fn begun(self, node: i32, now: Timestamp) -> Self {
        Self { state: RunState::Running, node: Some(node), started_at: Some(now), ..self }
    }

    pub(super) fn ended(
        self,
        took: Duration,
        state: RunState,
        summary: Option<&str>,
        error: Option<&str>,
    ) -> Self {
        let took = TimeDelta::from_std(took).unwrap_or(TimeDelta::MAX);
        let finished_at = self.started_at.and_then(|started| started.checked_add_signed(took));
        Self {
            state,
            finished_at,
            duration_ms: Some(took.num_milliseconds()),
            summary: summary.map(|text| fit(text, 512)),
            error: error.map(|text| fit(text, 1024)),
            ..self
        }
    }
}

/// Why a job or a run could not be asked for or shown.
#[derive(Debug, Error)]
pub enum JobsError {
    #[error("there is no job {name:?}; there are {}", .known.join(", "))]
    NoSuchJob { name: String, known: Vec<&'static str> },
    #[error("there is no such run of this job")]
    NoSuchRun,
    #[error("another node keeps job {name} for longer than {} s; the run is withdrawn", .patience.as_secs())]
    Busy { name: String, patience: Duration },
    #[error(transparent)]
    Params(#[from] InvalidParams),
    #[error(transparent)]
    Key(#[from] KeyRefusal),
    #[error(transparent)]
    Fault(#[from] DbFault),
}

impl From<NodeNumberLost> for JobsError {
    fn from(lost: NodeNumberLost) -> Self {
        Self::Fault(lost.into())
    }
}

impl AsDbFault for JobsError {
    fn db_fault(&self) -> Option<&DbFault> {
        match self {
            Self::Fault(fault) => Some(fault),
            Self::NoSuchJob { .. } | Self::NoSuchRun | Self::Busy { .. } | Self::Params(_) | Self::Key(_) => {
                None
            }
        }
    }
}
