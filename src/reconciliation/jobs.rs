//! Compares what should agree, regularly (REC-3).

use super::ReconciliationService;
use crate::jobs::{Job, RunContext, Schedule, Summary};

/// The job that runs every comparison and keeps the differences; it repairs nothing.
pub fn reconciliation(service: ReconciliationService, schedule: Schedule) -> Job {
    Job::new("reconciliation", schedule, move |_: RunContext| {
        let service = service.clone();
        async move {
            let run = service.run().await?;
            match (run.failed, run.found) {
                (Some(failed), _) => Err(failed.into()),
                (None, 0) => Ok(Summary::NOTHING),
                (None, found) => Ok(Summary::of(format!("found {found} differences in run {}", run.id))),
            }
        }
    })
}
