//! Periodic work that one node does for all.
//!
//! A job runs on the node that holds its row in `job_lease`. The lease outlasts the pause between two runs and is
//! renewed during a run, by the database's clock (R23); a node that stops gives it back, a node that dies loses it
//! when it expires. A node that slept through its lease may wake in the middle of a run beside another node's run:
//! the lease saves work, and whatever a job does must be right if done twice.

mod activity_states;
mod job;
mod log_trimming;
mod params;
mod runner;
mod schedule;
#[cfg(test)]
mod tests;

pub use activity_states::activity_states;
pub use job::{Job, JobError, RunContext, Summary, Trigger};
pub use log_trimming::{Log, log_trimming};
pub use params::{InvalidParams, NoParams, Params, Partitions};
pub use runner::Runner;
pub use schedule::{CronSchedule, Schedule};
