//! Runs jobs on this node: each when it is due or asked for, if it is this node's turn, and never beside itself.

use std::any::Any;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::job::{Job, JobError, RunContext, Summary, Trigger};
use super::model::{Request, Run, RunState};
use super::schedule::Schedule;
use super::store::JobStore;
use crate::db::{Database, DbFault};
use crate::ids::Ids;
use crate::lease::Lease;
use crate::ports::clock::{SharedClock, Timestamp};
use crate::tasks::Tasks;

/// How much longer than a job's period its lease lasts: within this time another node takes over from a dead one.
pub(super) const LEASE_MARGIN: Duration = Duration::from_secs(10);

/// How often a node looks for runs that other nodes were asked for, and whether a moment has come: clocks may be set.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A run by schedule that takes longer than this is written down while it is under way.
const SLOW: Duration = Duration::from_secs(2);

/// How often it is written down that a job still runs with nothing to tell.
const NOTE_EVERY: Duration = Duration::from_secs(10);

/// How often the end of a run is written down anew after a failure of the database.
const END_ATTEMPTS: u32 = 5;

/// This node, as its jobs know it.
#[derive(Debug, Clone)]
pub struct Host {
    pub db: Database,
    pub clock: SharedClock,
    pub ids: Ids,
    /// Names this run of this node: no other process uses it, ever.
    pub holder: i64,
}

/// Runs jobs on this node, whenever it is this node's turn.
#[derive(Debug)]
pub struct Runner {
    host: Host,
    jobs: Vec<Job>,
    asked: Arc<Notify>,
    lease_margin: Duration,
}

impl Runner {
    /// `asked` tells that a run was asked for at this node.
    pub(super) fn new(host: Host, jobs: Vec<Job>, asked: Arc<Notify>) -> Self {
        Self { host, jobs, asked, lease_margin: LEASE_MARGIN }
    }

    /// Changes how long a dead node keeps its jobs from the others, ten seconds unless set.
    #[must_use]
    pub fn lease_margin(self, lease_margin: Duration) -> Self {
        Self { lease_margin, ..self }
    }

    /// Runs the jobs until `stop`, then gives their leases back.
    pub async fn run(self, stop: CancellationToken) {
        let mut tasks = Tasks::new(Handle::current(), stop);
        let mut bells = HashMap::new();
        for job in self.jobs {
            let bell = Arc::new(Notify::new());
            bells.insert(job.name(), bell.clone());
            let (host, lease_margin) = (self.host.clone(), self.lease_margin);
            tasks.keep(format!("job:{}", job.name()), move |stop| {
                Worker::new(&host, job.clone(), lease_margin).serve(bell.clone(), stop)
            });
        }
        let (store, bells) = (JobStore(self.host.db.clone()), Arc::new(bells));
        tasks
            .keep_until_stop("job_requests", move || watch(store.clone(), bells.clone(), self.asked.clone()));
        tasks.ended().await;
    }
}

/// Rings the bell of each job that a run is asked for of.
async fn watch(store: JobStore, bells: Arc<HashMap<&'static str, Arc<Notify>>>, asked: Arc<Notify>) {
    loop {
        match store.busy().await {
            Ok(busy) => {
                let asked_for = bells.iter().filter(|(job, _)| busy.contains(**job));
                asked_for.for_each(|(_, bell)| bell.notify_one());
            }
            Err(fault) => warn!(error = %fault, "Cannot see which runs of jobs are asked for"),
        }
        tokio::select! {
            () = sleep(LOOK_EVERY) => {}
            () = asked.notified() => {}
        }
    }
}

/// What a panic carries.
type Panic = Box<dyn Any + Send>;

/// What is known to be written down about the last run.
#[derive(Debug)]
struct Noted {
    state: RunState,
    error: Option<String>,
    at: Instant,
}

/// Sees to one job on this node.
#[derive(Debug)]
pub(super) struct Worker {
    job: Job,
    store: JobStore,
    lease: Lease,
    clock: SharedClock,
    ids: Ids,
    /// Before this there is no use in trying.
    rest_until: Instant,
    /// When a job with a period is due.
    next: Instant,
    /// Until when the moments of the schedule are served, as far as this node has seen.
    served_until: Option<Timestamp>,
    noted: Option<Noted>,
    /// Whether a run is under way that is written down.
    recorded: bool,
}

impl Worker {
    pub(super) fn new(host: &Host, job: Job, lease_margin: Duration) -> Self {
        let time = match job.schedule() {
            Schedule::Every(period) => *period + lease_margin,
            Schedule::Cron(_) | Schedule::OnDemand => lease_margin,
        };
        Self {
            store: JobStore(host.db.clone()),
            lease: Lease::new(host.db.clone(), job.name(), host.holder, time),
            clock: host.clock.clone(),
            ids: host.ids.clone(),
            rest_until: Instant::now(),
            next: Instant::now(),
            served_until: None,
            noted: None,
            recorded: false,
            job,
        }
    }

    /// Sees to the job until `stop`; `bell` rings when a run is asked for.
    async fn serve(mut self, bell: Arc<Notify>, stop: CancellationToken) {
        let keep = matches!(self.job.schedule(), Schedule::Every(_));
        let work = async {
            loop {
                self.wait(&bell).await;
                self.rest_until = match Box::pin(self.attend(true, keep)).await {
                    Ok(true) => continue,
                    Ok(false) => Instant::now() + self.rest(),
                    Err(fault) => {
                        warn!(job = self.job.name(), error = %fault, "Cannot see whose turn job {} is", self.job.name());
                        Instant::now() + LOOK_EVERY
                    }
                };
            }
        };
        if stop.run_until_cancelled(work).await.is_none() {
            self.leave().await;
        }
    }

    /// Waits until the job may be due or is asked for.
    async fn wait(&self, bell: &Notify) {
        loop {
            let now = Instant::now();
            let pause = self.pause(now).max(self.rest_until.saturating_duration_since(now));
            if pause.is_zero() {
                return;
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = bell.notified() => return,
            }
        }
    }

    /// How long there is certainly nothing to do by schedule.
    fn pause(&self, now: Instant) -> Duration {
        match (self.job.schedule(), self.served_until) {
            (Schedule::Every(_), _) => self.next.saturating_duration_since(now),
            (Schedule::Cron(_), None) => Duration::ZERO,
            (Schedule::Cron(cron), Some(served)) => match cron.after(served) {
                Some(due) => (due - self.clock.now()).to_std().unwrap_or(Duration::ZERO).min(LOOK_EVERY),
                None => Duration::MAX,
            },
            (Schedule::OnDemand, _) => Duration::MAX,
        }
    }

    /// How long to let the node alone that has the lease.
    fn rest(&self) -> Duration {
        match self.job.schedule() {
            Schedule::Every(period) => *period,
            Schedule::Cron(_) | Schedule::OnDemand => LOOK_EVERY,
        }
    }

    /// Does what is asked for and, if `by_schedule`, what is due; tells whether the lease was this node's to the end.
    /// It is given back unless this node is to `keep` it.
    pub(super) async fn attend(&mut self, by_schedule: bool, keep: bool) -> Result<bool, DbFault> {
        while self.lease.hold().await? {
            match self.turn(by_schedule).await? {
                Some(run) => {
                    if !self.run(run).await {
                        return Ok(false);
                    }
                }
                None if keep => return Ok(true),
                None => return self.lease.give_back().await.map(|()| true),
            }
        }
        Ok(false)
    }

    /// The run whose turn it is; the lease is held.
    async fn turn(&mut self, by_schedule: bool) -> Result<Option<Run>, DbFault> {
        let (name, now) = (self.job.name(), self.clock.now());
        let look = self.store.look(name, now).await?;
        if look.running {
            let lost = self.store.lose(name, "its node died in the middle", now).await?;
            warn!(job = name, lost, "Lost {lost} runs of job {name}: their node is no more");
        }
        let paused = look.standing.paused;
        // What passes during a pause needs no run.
        let served_until = if paused { now } else { look.standing.served_until };
        self.served_until = Some(served_until);
        if let Some(requested) = look.requested {
            let run = requested.begun(self.ids.node(), now);
            return Ok(self.store.begin(&run).await?.then_some(run));
        }
        let due = match self.job.schedule() {
            Schedule::Every(period) => {
                let due = by_schedule && self.next <= Instant::now();
                if due {
                    self.next = Instant::now() + *period;
                }
                due
            }
            Schedule::Cron(cron) => by_schedule && cron.after(served_until).is_some_and(|due| due <= now),
            Schedule::OnDemand => false,
        };
        if !due || paused {
            return Ok(None);
        }
        let request = Request { trigger: Trigger::Schedule, by: None, params: None };
        let run = Run::requested(self.ids.next().map_err(DbFault::from)?, name, request, now);
        Ok(Some(run.begun(self.ids.node(), now)))
    }

    /// Does `run` for as long as the lease is held; tells whether it was held to the end.
    async fn run(&mut self, run: Run) -> bool {
        let name = self.job.name();
        let started = Instant::now();
        self.recorded = run.trigger != Trigger::Schedule;
        let done = self.see_through(&run).await;
        let took = started.elapsed();
        let (state, summary, error) = match done {
            Some(Ok(Ok(summary))) => (RunState::Done, summary, None),
            Some(Ok(Err(error))) => (RunState::Failed, Summary::NOTHING, Some(error.to_string())),
            Some(Err(panic)) => (RunState::Panicked, Summary::NOTHING, Some(words_of(panic.as_ref()))),
            None => (RunState::Lost, Summary::NOTHING, None),
        };
        metrics::counter!("tombola_job_runs_total", "job" => name, "outcome" => state.word()).increment(1);
        metrics::histogram!("tombola_job_duration_seconds", "job" => name).record(took);
        match (state, &error) {
            (RunState::Lost, _) => {
                self.recorded = false;
                warn!(job = name, job.run = %run.id, "Job {name} was cut short: its lease is lost");
                return false;
            }
            (RunState::Done, _) => {
                metrics::gauge!("tombola_job_last_success_timestamp_seconds", "job" => name)
                    .set(self.clock.now().timestamp() as f64);
                match summary.text() {
                    Some(text) => info!(job = name, job.run = %run.id, "Job {name}: {text}"),
                    None => debug!(job = name, "Job {name} had nothing to do"),
                }
            }
            (_, error) => {
                let error = error.as_deref().unwrap_or_default();
                error!(job = name, job.run = %run.id, error, "Job {name} {state}: {error}");
            }
        }
        self.note(run.ended(took, state, summary.text(), error.as_deref())).await;
        self.recorded = false;
        true
    }

    /// Does the work of `run`; `None` if the lease is lost before it is done.
    async fn see_through(&mut self, run: &Run) -> Option<Result<Result<Summary, JobError>, Panic>> {
        let (name, job) = (self.job.name(), self.job.clone());
        let context = RunContext { run: run.id, trigger: run.trigger, params: run.params.clone() };
        let mut work = pin!(AssertUnwindSafe(async move { job.run(context).await }).catch_unwind());
        let mut lost = pin!(self.lease.lost());
        let mut slow = pin!(sleep(SLOW));
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                () = &mut lost => return None,
                () = &mut slow, if !self.recorded => {
                    match self.store.insert(run).await {
                        Ok(()) => self.recorded = true,
                        Err(fault) => warn!(job = name, error = %fault, "Cannot write down that job {name} runs"),
                    }
                    slow.as_mut().reset((Instant::now() + SLOW).into());
                }
            }
        }
    }

    /// Writes down how a run ended, as far as it is news.
    async fn note(&mut self, ended: Run) {
        let name = self.job.name();
        let before = self.noted.as_ref();
        let differs = before.is_none_or(|noted| (noted.state, &noted.error) != (ended.state, &ended.error));
        let failed_anew = differs && ended.state != RunState::Done;
        let remembered = self.recorded || ended.summary.is_some() || failed_anew;
        let by_moment =
            ended.trigger == Trigger::Schedule && matches!(self.job.schedule(), Schedule::Cron(_));
        let served_until = ended.started_at.filter(|_| by_moment);
        let stale = before.is_none_or(|noted| noted.at.elapsed() >= NOTE_EVERY);
        if !(remembered || differs || by_moment || stale) {
            return;
        }
        for attempt in 1..=END_ATTEMPTS {
            match self.store.end(&ended, remembered, served_until).await {
                Ok(()) => {
                    self.noted = Some(Noted { state: ended.state, error: ended.error, at: Instant::now() });
                    return;
                }
                Err(fault) => {
                    warn!(job = name, error = %fault, attempt, "Cannot write down how job {name} ended");
                    sleep(LOOK_EVERY).await;
                }
            }
        }
    }

    /// Leaves the job to other nodes; what is under way here will not come to its end.
    async fn leave(self) {
        let name = self.job.name();
        if self.recorded
            && let Err(fault) = self.store.lose(name, "cut short: its node stopped", self.clock.now()).await
        {
            warn!(job = name, error = %fault, "Cannot write down that a run of job {name} was cut short");
        }
        if let Err(fault) = self.lease.give_back().await {
            warn!(job = name, error = %fault, "Could not give back the lease of job {name}; it expires");
        }
    }
}

fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panicked: {}", text.unwrap_or("without words"))
}
