//! Work that one node does for all, by schedule or when asked for.
//!
//! A [`Job`] is a name, a [`Schedule`] and work, which may take parameters. A node runs a job while it holds the job's
//! lease, so it runs on one node at a time and never beside itself, whoever asks. A job with a period stays with its
//! node; for a moment of a cron schedule, and for a run that is asked for, the lease is taken for that run. A node that
//! stops gives its leases back, a node that dies loses them when they expire. A node that slept through its lease may
//! wake in the middle of a run beside another node's run: the lease saves work, and whatever a job does must be right
//! if done twice.
//!
//! A moment of a cron schedule counts as served when its run has ended, so one that was missed, or whose run was cut
//! short, is run once afterwards. A run that is asked for is a row before it is answered, so any node may do it and no
//! crash forgets it; it is started once, and if its node dies in the middle it is `lost`, not repeated.
//!
//! Most runs find nothing to do. The history (`job_run`) has those that were asked for, did something, took longer than
//! two seconds, or failed otherwise than the one before; `job_state` has the last run of each job, whatever it was.
//!
//! Each module brings its jobs, in its `jobs.rs`; here is the one that serves them all.

pub mod api;
mod job;
mod log_trimming;
mod model;
mod params;
mod runner;
mod schedule;
mod service;
mod store;
#[cfg(test)]
mod tests;

pub use job::{Job, JobError, RunContext, Summary, Trigger};
#[cfg(test)]
pub(crate) use log_trimming::delete;
pub use log_trimming::{LOG_TRIMMING, Log, Stamp, history, history_of_others, log_trimming, none_of};
pub use model::{JobView, JobsError, LastRun, Request, Run, RunState};
pub use params::{InvalidParams, NoParams, Params, Partitions};
pub use runner::{Host, Runner};
pub use schedule::{CronSchedule, Schedule};
pub use service::JobService;
