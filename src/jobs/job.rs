//! What a job is: a name, a schedule, and work that may take parameters.

use std::fmt;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;

use super::params::{self, InvalidParams, NoParams, Params};
use super::schedule::Schedule;
use crate::ids::JobRunId;
use crate::words::words;

/// Why a run of a job failed as a whole.
pub type JobError = Box<dyn std::error::Error + Send + Sync>;

words! {
    /// What a run came from.
    Trigger, "trigger" {
        Schedule = "schedule",
        Operator = "operator",
        Command = "command",
    }
}

/// One run, as its work sees it.
#[derive(Debug, Clone)]
pub struct RunContext<P = NoParams> {
    pub run: JobRunId,
    pub trigger: Trigger,
    pub params: P,
}

/// What a run did, in a few words. A run by schedule that did nothing leaves no trace in the history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary(Option<String>);

impl Summary {
    /// There was nothing to do.
    pub const NOTHING: Self = Self(None);

    /// What was done, as in `closed 3 activities`.
    pub fn of(done: impl Into<String>) -> Self {
        Self(Some(done.into()))
    }

    /// The words, if something was done.
    pub fn text(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

type Work = dyn Fn(RunContext<Option<Value>>) -> BoxFuture<'static, Result<Summary, JobError>> + Send + Sync;

/// Work to be done again and again, by one node at a time.
#[derive(Clone)]
pub struct Job {
    name: &'static str,
    schedule: Schedule,
    check: fn(&Value) -> Result<(), InvalidParams>,
    work: Arc<Work>,
}

impl Job {
    /// `work` is to be done by `schedule`, and whenever it is asked for.
    ///
    /// It may be cut short at any `await`, and what is cut short is done again; so it must be right if done twice.
    pub fn new<P, F, Fut>(name: &'static str, schedule: Schedule, work: F) -> Self
    where
        P: Params,
        F: Fn(RunContext<P>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Summary, JobError>> + Send + 'static,
    {
        let work = move |context: RunContext<Option<Value>>| {
            let RunContext { run, trigger, params } = context;
            match params::parse(params.as_ref()) {
                Ok(params) => work(RunContext { run, trigger, params }).boxed(),
                Err(invalid) => std::future::ready(Err(invalid.into())).boxed(),
            }
        };
        let check = |given: &Value| params::parse::<P>(Some(given)).map(drop);
        Self { name, schedule, check, work: Arc::new(work) }
    }

    /// What it is called: a lower-snake word of up to 64 letters, unique among the jobs.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// When it runs by itself.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Whether the job takes these parameters.
    pub fn check(&self, params: &Value) -> Result<(), InvalidParams> {
        (self.check)(params)
    }

    /// Does the work now, whoever holds the lease.
    pub async fn run(&self, context: RunContext<Option<Value>>) -> Result<Summary, JobError> {
        (self.work)(context).await
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("name", &self.name)
            .field("schedule", &self.schedule)
            .finish_non_exhaustive()
    }
}
