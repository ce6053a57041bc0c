//! What is done again for events: dead letters are replayed (JOB-4), what was left in the outbox is published (JOB-2,
//! MSG-3).

use serde::Deserialize;

use super::dead_letter::{DeadLetters, LetterFilter, Replayed};
use super::outbox_rows::{OUTBOX_PARTITIONS, OutboxRows, Swept};
use crate::jobs::{Job, Partitions, RunContext, Schedule, Summary};

/// The name of the job that replays dead letters.
pub const DEAD_LETTER_REPLAY: &str = "dead_letter_replay";

/// The job that puts each waiting dead letter up for another try, once in a run: all of them, or those that its
/// parameters name. How the tries end is written in the letters.
pub fn dead_letter_replay(letters: DeadLetters, schedule: Schedule) -> Job {
    Job::new(DEAD_LETTER_REPLAY, schedule, move |context: RunContext<LetterFilter>| {
        let letters = letters.clone();
        async move {
            Ok(match letters.replay_all(context.params).await? {
                Replayed { replayed: 0, refused: 0 } => Summary::NOTHING,
                Replayed { replayed, refused: 0 } => Summary::of(format!("replayed {replayed} dead letters")),
                Replayed { replayed, refused } => Summary::of(format!(
                    "replayed {replayed} dead letters; {refused} cannot be replayed, the log has the causes"
                )),
            })
        }
    })
}

/// What a sweep looks at.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SweepParams {
    partitions: Partitions<OUTBOX_PARTITIONS>,
}

/// The job that makes refused events due at once and wakes the relay, and tells what is unsent for too long.
///
/// The relay finds every unsent row by itself and pauses between tries; this ends a pause that a clock set back has made
/// long, and is how an operator has everything tried now, or what lies in some [partitions](OUTBOX_PARTITIONS) (SHD-3).
pub fn outbox_sweep(rows: OutboxRows, schedule: Schedule) -> Job {
    Job::new("outbox_sweep", schedule, move |context: RunContext<SweepParams>| {
        let rows = rows.clone();
        async move {
            Ok(match rows.sweep(context.params.partitions).await? {
                Swept { made_due: 0, overdue: 0 } => Summary::NOTHING,
                Swept { made_due, overdue: 0 } => Summary::of(format!("made {made_due} rows due")),
                Swept { made_due, overdue } => Summary::of(format!(
                    "made {made_due} rows due; {overdue} are unsent for longer than half an hour"
                )),
            })
        }
    })
}
