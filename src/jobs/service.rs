//! The front door of jobs: what there is, when it runs, pause, run now, history.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use serde_json::Value;
use tokio::sync::Notify;
use tracing::info;

use super::job::{Job, Trigger};
use super::model::{JobView, JobsError, Request, Run, RunState, Standing};
use super::runner::{Host, LEASE_MARGIN, Runner, Worker};
use super::schedule::Schedule;
use super::store::{self, JobStore};
use crate::idempotency::{Answered, RequestKey, once};
use crate::ids::JobRunId;

/// How often a command looks whether its run is done.
const POLL: Duration = Duration::from_millis(100);

/// Every job there is. Clones share everything.
#[derive(Debug, Clone)]
pub struct JobService(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    host: Host,
    store: JobStore,
    jobs: Vec<Job>,
    asked: Arc<Notify>,
}

impl JobService {
    /// `jobs` are all there are, on every node of this version.
    pub fn new(host: Host, mut jobs: Vec<Job>) -> Self {
        jobs.sort_by_key(Job::name);
        debug_assert!(jobs.windows(2).all(|pair| pair[0].name() != pair[1].name()), "two jobs of one name");
        let store = JobStore(host.db.clone());
        Self(Arc::new(Inner { host, store, jobs, asked: Arc::default() }))
    }

    /// What runs them on this node.
    pub fn runner(&self) -> Runner {
        let Inner { host, jobs, asked, .. } = self.0.as_ref();
        Runner::new(host.clone(), jobs.clone(), asked.clone())
    }

    /// Every job, by name.
    pub async fn list(&self) -> Result<Vec<JobView>, JobsError> {
        let (standings, running) = self.0.store.all().await?;
        let view = |job: &Job| self.view(job, standings.get(job.name()), running.contains(job.name()));
        Ok(self.0.jobs.iter().map(view).collect())
    }

    /// Pauses a job or lets it run again. A run that is under way goes on; what passes during the pause is not caught
    /// up with.
    pub async fn set_paused(&self, name: &str, paused: bool) -> Result<JobView, JobsError> {
        let job = self.job(name)?;
        self.0.store.pause(job.name(), paused, self.0.host.clock.now()).await?;
        info!(job = name, paused, "Job {name} is {}", if paused { "paused" } else { "not paused" });
        let (standings, running) = self.0.store.all().await?;
        Ok(self.view(job, standings.get(name), running.contains(name)))
    }

    /// Asks for a run now, paused or not. The node whose turn it is does it, after those asked for before.
    pub async fn request(
        &self,
        name: &str,
        request: Request,
        key: Option<RequestKey>,
    ) -> Result<Answered<Run>, JobsError> {
        let job = self.job(name)?;
        request.params.as_ref().map_or(Ok(()), |params| job.check(params))?;
        let Host { db, clock, ids, .. } = &self.0.host;
        let run = Run::requested(ids.next()?, job.name(), request, clock.now());
        let asking = once(db, clock, key, 202, move |tx| {
            let run = run.clone();
            async move { store::request(&tx, &run).await.map(|()| run).map_err(JobsError::from) }
        });
        let asked = asking.await?;
        if let Answered::Fresh(run) = &asked {
            info!(job = name, job.run = %run.id, "Job {name} is asked for by {}", run.trigger);
            self.0.asked.notify_one();
        }
        Ok(asked)
    }

    /// Asks for a run and sees it through: here, unless another node has the job. Gives up if another node keeps it
    /// for longer than `patience` without starting this run.
    pub async fn perform(
        &self,
        name: &str,
        params: Option<Value>,
        patience: Duration,
    ) -> Result<Run, JobsError> {
        let request = Request { trigger: Trigger::Command, by: None, params };
        let Answered::Fresh(Run { id, .. }) = self.request(name, request, None).await? else {
            return Err(JobsError::NoSuchRun);
        };
        let job = self.job(name)?.clone();
        let mut worker = Worker::new(&self.0.host, job, LEASE_MARGIN);
        let asked = Instant::now();
        loop {
            worker.attend(false, false).await?;
            let run = self.run(name, id).await?;
            if run.state.is_final() {
                return Ok(run);
            }
            let impatient = run.state == RunState::Requested && asked.elapsed() >= patience;
            if impatient && self.0.store.withdraw(id).await? {
                return Err(JobsError::Busy { name: name.to_owned(), patience });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// A run of a job.
    pub async fn run(&self, name: &str, id: JobRunId) -> Result<Run, JobsError> {
        let job = self.job(name)?;
        self.0.store.run(job.name(), id).await?.ok_or(JobsError::NoSuchRun)
    }

    /// Up to `limit` runs of a job from before `before`, newest first.
    pub async fn runs(
        &self,
        name: &str,
        before: Option<JobRunId>,
        limit: u64,
    ) -> Result<Vec<Run>, JobsError> {
        let job = self.job(name)?;
        Ok(self.0.store.runs(job.name(), before, limit).await?)
    }

    fn job(&self, name: &str) -> Result<&Job, JobsError> {
        let found = self.0.jobs.iter().find(|job| job.name() == name);
        found.ok_or_else(|| JobsError::NoSuchJob {
            name: name.to_owned(),
            known: self.0.jobs.iter().map(Job::name).collect(),
        })
    }

    fn view(&self, job: &Job, standing: Option<&Standing>, running: bool) -> JobView {
        let now = self.0.host.clock.now();
        let paused = standing.is_some_and(|standing| standing.paused);
        let last_run = standing.and_then(|standing| standing.last_run.clone());
        let next_run_at = match job.schedule() {
            _ if paused => None,
            Schedule::Every(period) => {
                let next = last_run
                    .as_ref()
                    .and_then(|last| last.started_at.checked_add_signed(TimeDelta::from_std(*period).ok()?));
                Some(next.unwrap_or(now).max(now))
            }
            Schedule::Cron(cron) => cron.after(standing.map_or(now, |standing| standing.served_until)),
            Schedule::OnDemand => None,
        };
        JobView {
            name: job.name().to_owned(),
            schedule: job.schedule().to_string(),
            next_run_at,
            paused,
            running,
            last_run,
            last_success_at: standing.and_then(|standing| standing.last_success_at),
        }
    }
}
