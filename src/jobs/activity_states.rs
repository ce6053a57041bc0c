//! Starts and closes activities on time (JOB-1).

use std::time::Duration;

use tracing::{info, warn};

use super::runner::{Job, JobError};
use crate::activity::model::Due;
use crate::activity::{ActivityError, ActivityService, Actor};
use crate::ids::ActivityId;

/// Activities that are looked up at a time.
const PAGE: u64 = 10;

/// The job that moves each activity whose time has come, through the same door as an operator.
pub fn activity_states(activities: ActivityService, period: Duration) -> Job {
    Job::new("activity_states", period, move || {
        let activities = activities.clone();
        async move {
            // Closing first: what closes now sells too long, what starts late only sells less.
            move_all(&activities, Due::Close).await?;
            move_all(&activities, Due::Start).await
        }
    })
}

async fn move_all(activities: &ActivityService, due: Due) -> Result<(), JobError> {
    let mut after = ActivityId(0);
    loop {
        let page = activities.due(due, after, PAGE).await?;
        let Some(&last) = page.last() else { return Ok(()) };
        for id in page {
            match activities.transition(Actor::Schedule, id, due.event(), None).await {
                Ok(_) => {}
                // An operator was faster.
                Err(error @ ActivityError::Transition { .. }) => {
                    info!(activity.id = %id, "Left activity {id} as it is: {error}");
                }
                Err(error) => warn!(activity.id = %id, %error, "Could not {} activity {id}", due.event()),
            }
        }
        after = last;
    }
}
