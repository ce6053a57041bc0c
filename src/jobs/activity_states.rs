//! Starts and closes activities on time (JOB-1).

use tracing::{info, warn};

use super::job::{Job, JobError, RunContext, Summary};
use super::schedule::Schedule;
use crate::activity::model::Due;
use crate::activity::{ActivityError, ActivityService, Actor};
use crate::ids::ActivityId;

/// Activities that are looked up at a time.
const PAGE: u64 = 10;

/// What became of the activities whose time had come.
#[derive(Default)]
struct Tally {
    moved: u32,
    failed: u32,
}

/// The job that moves each activity whose time has come, through the same door as an operator.
pub fn activity_states(activities: ActivityService, schedule: Schedule) -> Job {
    Job::new("activity_states", schedule, move |_: RunContext| {
        let activities = activities.clone();
        async move {
            // Closing first: what closes now sells too long, what starts late only sells less.
            let closed = move_all(&activities, Due::Close).await?;
            let started = move_all(&activities, Due::Start).await?;
            match (closed, started) {
                (Tally { moved: 0, failed: 0 }, Tally { moved: 0, failed: 0 }) => Ok(Summary::NOTHING),
                (Tally { moved: closed, failed: 0 }, Tally { moved: started, failed: 0 }) => {
                    Ok(Summary::of(format!("closed {closed} activities, started {started}")))
                }
                (closed, started) => Err(format!(
                    "could not close {} activities nor start {}; the log has the causes",
                    closed.failed, started.failed
                )
                .into()),
            }
        }
    })
}

async fn move_all(activities: &ActivityService, due: Due) -> Result<Tally, JobError> {
    let mut after = ActivityId(0);
    let mut tally = Tally::default();
    loop {
        let page = activities.due(due, after, PAGE).await?;
        let Some(&last) = page.last() else { return Ok(tally) };
        for id in page {
            match activities.transition(Actor::Schedule, id, due.event(), None).await {
                Ok(_) => tally.moved += 1,
                // An operator was faster.
                Err(error @ ActivityError::Transition { .. }) => {
                    info!(activity.id = %id, "Left activity {id} as it is: {error}");
                }
                Err(error) => {
                    tally.failed += 1;
                    warn!(activity.id = %id, %error, "Could not {} activity {id}", due.event());
                }
            }
        }
        after = last;
    }
}
