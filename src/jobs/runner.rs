//! Runs jobs, each at its period, each on one node at a time and never beside itself.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::job::{Job, RunContext, Trigger};
use super::schedule::Schedule;
use crate::db::Database;
use crate::ids::{Ids, JobRunId};
use crate::lease::Lease;
use crate::ports::clock::{SharedClock, Timestamp};

/// How much longer than a job's period its lease lasts: within this time another node takes over from a dead one.
const LEASE_MARGIN: Duration = Duration::from_secs(10);

/// Runs jobs on this node, whenever it is this node's turn.
#[derive(Debug)]
pub struct Runner {
    db: Database,
    clock: SharedClock,
    ids: Ids,
    holder: i64,
    jobs: Vec<Job>,
    lease_margin: Duration,
}

impl Runner {
    /// `holder` names this run of this node: no other process uses it, ever.
    pub fn new(db: Database, clock: SharedClock, ids: Ids, holder: i64, jobs: Vec<Job>) -> Self {
        Self { db, clock, ids, holder, jobs, lease_margin: LEASE_MARGIN }
    }

    /// Changes how long a dead node keeps its jobs from the others, ten seconds unless set.
    #[must_use]
    pub fn lease_margin(self, lease_margin: Duration) -> Self {
        Self { lease_margin, ..self }
    }

    /// Runs the jobs until `stop`, then gives their leases back.
    pub async fn run(self, stop: CancellationToken) {
        join_all(self.jobs.iter().map(|job| self.repeat(job, &stop))).await;
    }

    async fn repeat(&self, job: &Job, stop: &CancellationToken) {
        let period = match job.schedule() {
            Schedule::Every(period) => *period,
            Schedule::Cron(_) | Schedule::OnDemand => Duration::ZERO,
        };
        let lease = Lease::new(self.db.clone(), job.name(), self.holder, period + self.lease_margin);
        let work = async {
            let mut last = self.clock.now();
            loop {
                last = self.wait(job.schedule(), last).await;
                match (lease.hold().await, self.ids.next::<JobRunId>()) {
                    (Ok(true), Ok(id)) => drop(run(job, id, &lease).await),
                    (Ok(false), _) => {}
                    (Err(fault), _) => {
                        warn!(job = job.name(), error = %fault, "Cannot see whose turn job {} is", job.name());
                    }
                    (_, Err(lost)) => warn!(job = job.name(), error = %lost, "Cannot run job {}", job.name()),
                }
                if let Schedule::Every(period) = job.schedule() {
                    sleep(*period).await;
                }
            }
        };
        if stop.run_until_cancelled(work).await.is_none()
            && let Err(fault) = lease.give_back().await
        {
            warn!(job = job.name(), error = %fault, "Could not give back the lease of job {}; it expires", job.name());
        }
    }

    /// Waits until it is time after `last`.
    async fn wait(&self, schedule: &Schedule, last: Timestamp) -> Timestamp {
        let due = match schedule {
            Schedule::Every(_) => return last,
            Schedule::Cron(cron) => cron.after(last),
            Schedule::OnDemand => None,
        };
        let Some(due) = due else { return std::future::pending().await };
        while self.clock.now() < due {
            sleep(Duration::from_millis(500)).await;
        }
        self.clock.now()
    }
}

/// Runs `job` once, for as long as the lease is held; tells whether it was held to the end.
async fn run(job: &Job, run: JobRunId, lease: &Lease) -> bool {
    let context = RunContext { run, trigger: Trigger::Schedule, params: None };
    let started = Instant::now();
    let outcome = tokio::select! {
        done = AssertUnwindSafe(async { job.run(context).await }).catch_unwind() => match done {
            Ok(Ok(_)) => "done",
            Ok(Err(error)) => {
                error!(job = job.name(), error = %error, "Job {} failed", job.name());
                "failed"
            }
            Err(_) => {
                error!(job = job.name(), "Job {} panicked", job.name());
                "panicked"
            }
        },
        () = lease.lost() => {
            warn!(job = job.name(), "Job {} was cut short: its lease is lost", job.name());
            "lost"
        }
    };
    debug!(job = job.name(), "Job {}: {outcome} after {:?}", job.name(), started.elapsed());
    metrics::counter!("tombola_job_runs_total", "job" => job.name(), "outcome" => outcome).increment(1);
    metrics::histogram!("tombola_job_duration_seconds", "job" => job.name()).record(started.elapsed());
    outcome != "lost"
}
