//! Publishes what was left in the outbox (JOB-2, MSG-3).

use super::job::{Job, RunContext, Summary};
use super::schedule::Schedule;
use crate::messaging::outbox_rows::{OutboxRows, Swept};

/// The job that makes refused events due at once and wakes the relay, and tells what is unsent for too long.
///
/// The relay finds every unsent row by itself and pauses between tries; this ends a pause that a clock set back has made
/// long, and is how an operator has everything tried now. It takes no partitions, as the scans of JOB-2 do (SHD-3):
/// there is one outbox, and one relay reads all of it.
pub fn outbox_sweep(rows: OutboxRows, schedule: Schedule) -> Job {
    Job::new("outbox_sweep", schedule, move |_: RunContext| {
        let rows = rows.clone();
        async move {
            Ok(match rows.sweep().await? {
                Swept { made_due: 0, overdue: 0 } => Summary::NOTHING,
                Swept { made_due, overdue: 0 } => Summary::of(format!("made {made_due} rows due")),
                Swept { made_due, overdue } => Summary::of(format!(
                    "made {made_due} rows due; {overdue} are unsent for longer than half an hour"
                )),
            })
        }
    })
}
