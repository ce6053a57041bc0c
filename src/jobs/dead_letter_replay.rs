//! Replays dead letters (JOB-4).

use super::job::{Job, RunContext, Summary};
use super::schedule::Schedule;
use crate::messaging::dead_letter::{DeadLetters, LetterFilter, Replayed};

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
