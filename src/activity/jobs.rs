//! What time does to activities: it starts and closes them (JOB-1).

use tracing::{info, warn};

use super::model::Due;
use super::{ActivityError, ActivityService, Actor};
use crate::ids::ActivityId;
use crate::jobs::{Job, JobError, RunContext, Schedule, Summary};

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

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use sea_orm::{ActiveValue::Set, EntityTrait};

    use super::super::machine::State;
    use super::super::tests::{END, START, Story};
    use super::*;
    use crate::db::DbFault;
    use crate::ids::JobRunId;
    use crate::jobs::Trigger;

    async fn run(story: &Story) -> Result<Summary, JobError> {
        let job = activity_states(story.activities.clone(), Schedule::OnDemand);
        job.run(RunContext { run: JobRunId(1), trigger: Trigger::Command, params: None }).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn activities_start_and_close_on_time() {
        let story = Story::begin().await;
        let mut ids = Vec::new();
        for _ in 0..23 {
            ids.push(story.approved().await);
        }
        let draft = story.create().await;
        let all = async |ids: &[ActivityId], state| {
            for &id in ids {
                assert_eq!(story.state(id).await, state);
            }
        };

        run(&story).await.unwrap();
        all(&ids, State::Approved).await;
        story.clock.set(START);
        run(&story).await.unwrap();
        all(&ids, State::Running).await;
        story.clock.set(END - TimeDelta::microseconds(1));
        let late = story.approved().await;
        story.clock.set(END);
        run(&story).await.unwrap();
        all(&ids, State::Running).await;
        all(&[late], State::Running).await;
        story.clock.set(END + TimeDelta::microseconds(1));
        run(&story).await.unwrap();
        all(&ids, State::Closed).await;
        assert_eq!(story.state(draft).await, State::Editing);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_activity_that_fails_does_not_stop_the_others() {
        let story = Story::begin().await;
        let broken = story.approved().await;
        let sound = story.approved().await;
        let breaking = story.db.transaction(move |tx| async move {
            let row = entities::activity::ActiveModel {
                id: Set(broken.0),
                name: Set(String::new()),
                ..Default::default()
            };
            Ok::<_, DbFault>(entities::activity::Entity::update(row).exec(&tx).await.map(drop)?)
        });
        breaking.await.unwrap();
        story.clock.set(START);
        let done = run(&story).await;
        assert!(done.unwrap_err().to_string().contains("nor start 1"));
        assert_eq!(story.state(sound).await, State::Running);
    }
}
