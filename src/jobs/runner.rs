//! Runs jobs, each at its period, each on one node at a time and never beside itself.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::db::Database;
use crate::lease::Lease;

/// How much longer than a job's period its lease lasts: within this time another node takes over from a dead one.
const LEASE_MARGIN: Duration = Duration::from_secs(10);

/// Why a run of a job failed as a whole.
pub type JobError = Box<dyn std::error::Error + Send + Sync>;

/// Work to be done again and again.
#[derive(Clone)]
pub struct Job {
    name: &'static str,
    period: Duration,
    work: Arc<dyn Fn() -> BoxFuture<'static, Result<(), JobError>> + Send + Sync>,
}

impl Job {
    /// `work` is to be done at once and then every `period`. It may be cut short at any `await`.
    pub fn new<F, Fut>(name: &'static str, period: Duration, work: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), JobError>> + Send + 'static,
    {
        Self { name, period, work: Arc::new(move || work().boxed()) }
    }

    /// Does the work now, whoever holds the lease.
    pub async fn run_once(&self) -> Result<(), JobError> {
        (self.work)().await
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("name", &self.name).field("period", &self.period).finish_non_exhaustive()
    }
}

/// Runs jobs on this node, whenever it is this node's turn.
#[derive(Debug)]
pub struct Runner {
    db: Database,
    holder: i64,
    jobs: Vec<Job>,
    lease_margin: Duration,
}

impl Runner {
    /// `holder` names this run of this node: no other process uses it, ever.
    pub fn new(db: Database, holder: i64, jobs: Vec<Job>) -> Self {
        Self { db, holder, jobs, lease_margin: LEASE_MARGIN }
    }

    /// Changes how long a dead node keeps its jobs from the others, ten seconds unless set.
    #[must_use]
    pub fn lease_margin(self, lease_margin: Duration) -> Self {
        Self { lease_margin, ..self }
    }

    /// Runs the jobs until `stop`, then gives their leases back.
    pub async fn run(self, stop: CancellationToken) {
        let runs = self.jobs.iter().map(|job| {
            let time = job.period + self.lease_margin;
            let lease = Lease::new(self.db.clone(), job.name, self.holder, time);
            repeat(job, lease, &stop)
        });
        join_all(runs).await;
    }
}

async fn repeat(job: &Job, lease: Lease, stop: &CancellationToken) {
    let mut ticks = interval(job.period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let work = async {
        let mut held = false;
        loop {
            ticks.tick().await;
            let holds = match lease.hold().await {
                Ok(holds) => holds,
                Err(fault) => {
                    warn!(job = job.name, error = %fault, "Cannot see whose turn job {} is", job.name);
                    continue;
                }
            };
            if holds && !held {
                info!(job = job.name, "Job {} runs on this node", job.name);
            }
            held = holds && run(job, &lease).await;
        }
    };
    if stop.run_until_cancelled(work).await.is_none()
        && let Err(fault) = lease.give_back().await
    {
        warn!(job = job.name, error = %fault, "Could not give back the lease of job {}; it expires", job.name);
    }
}

/// Runs `job` once, for as long as the lease is held; tells whether it was held to the end.
async fn run(job: &Job, lease: &Lease) -> bool {
    let started = Instant::now();
    let outcome = tokio::select! {
        done = AssertUnwindSafe(job.run_once()).catch_unwind() => match done {
            Ok(Ok(())) => "done",
            Ok(Err(error)) => {
                error!(job = job.name, error = %error, "Job {} failed", job.name);
                "failed"
            }
            Err(_) => {
                error!(job = job.name, "Job {} panicked", job.name);
                "panicked"
            }
        },
        () = lease.lost() => {
            warn!(job = job.name, "Job {} was cut short: its lease is lost", job.name);
            "lost"
        }
    };
    debug!(job = job.name, "Job {}: {outcome} after {:?}", job.name, started.elapsed());
    metrics::counter!("tombola_job_runs_total", "job" => job.name, "outcome" => outcome).increment(1);
    metrics::histogram!("tombola_job_duration_seconds", "job" => job.name).record(started.elapsed());
    outcome != "lost"
}
