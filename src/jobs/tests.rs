//! Runners beside each other on one database.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::activity::machine::State;
use crate::activity::tests::{END, START, Story};
use crate::db::{Database, DbFault};
use crate::ids::{ActivityId, Ids, JobRunId};
use crate::ports::clock::{SharedClock, SystemClock};

const PERIOD: Duration = Duration::from_millis(10);

struct Node {
    runs: Arc<AtomicUsize>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Node {
    /// A node whose job counts its runs; the first of them panics.
    fn start(db: &Database, holder: i64, lease_margin: Duration) -> Self {
        let runs = Arc::new(AtomicUsize::new(0));
        let counter = runs.clone();
        let job = Job::new("count", Schedule::Every(PERIOD), move |_: RunContext| {
            let run = counter.fetch_add(1, Ordering::Relaxed);
            async move { if run == 0 { panic!("the first run") } else { Ok(Summary::NOTHING) } }
        });
        let stop = CancellationToken::new();
        let clock: SharedClock = Arc::new(SystemClock);
        let ids = Ids::new(1, clock.as_ref(), Duration::from_secs(600));
        let host = Host { db: db.clone(), clock, ids, holder };
        let runner = JobService::new(host, vec![job]).runner().lease_margin(lease_margin);
        let task = tokio::spawn(runner.run(stop.clone()));
        Self { runs, stop, task }
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::Relaxed)
    }

    async fn has_run(&self, times: usize) {
        let waiting = async {
            while self.runs() < times {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("the job runs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_runs_a_job_and_another_takes_it_over() {
    let story = Story::begin().await;
    let first = Node::start(&story.db, 1, Duration::from_secs(60));
    first.has_run(2).await;
    let second = Node::start(&story.db, 2, Duration::from_millis(400));
    first.has_run(20).await;
    assert_eq!(second.runs(), 0);

    // One that stops gives the job back …
    first.stop.cancel();
    first.task.await.unwrap();
    // (for longer than one lease, hence renewed)
    second.has_run(50).await;

    // … one that dies loses it in time.
    second.task.abort();
    let third = Node::start(&story.db, 3, Duration::from_secs(60));
    third.has_run(1).await;
    let runs = second.runs();
    third.has_run(5).await;
    assert_eq!(second.runs(), runs);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_that_start_at_once_one_gets_the_job() {
    let story = Story::begin().await;
    let nodes: Vec<Node> =
        (1..=8).map(|holder| Node::start(&story.db, holder, Duration::from_secs(60))).collect();
    let busy = |nodes: &[Node]| nodes.iter().filter(|node| node.runs() > 0).count();
    while nodes.iter().map(Node::runs).sum::<usize>() < 20 {
        tokio::time::sleep(PERIOD).await;
    }
    assert_eq!(busy(&nodes), 1);
}

async fn once(job: &Job) -> Result<Summary, JobError> {
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
    let job = activity_states(story.activities.clone(), Schedule::OnDemand);
    let all = async |ids: &[ActivityId], state| {
        for &id in ids {
            assert_eq!(story.state(id).await, state);
        }
    };

    once(&job).await.unwrap();
    all(&ids, State::Approved).await;
    story.clock.set(START);
    once(&job).await.unwrap();
    all(&ids, State::Running).await;
    story.clock.set(END - TimeDelta::microseconds(1));
    let late = story.approved().await;
    once(&job).await.unwrap();
    all(&[late], State::Running).await;
    story.clock.set(END);
    once(&job).await.unwrap();
    all(&ids, State::Closed).await;
    assert_eq!(story.state(draft).await, State::Editing);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activity_that_fails_does_not_stop_the_others() {
    use sea_orm::{ActiveValue::Set, EntityTrait};
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
    let done = once(&activity_states(story.activities.clone(), Schedule::OnDemand)).await;
    assert!(done.unwrap_err().to_string().contains("nor start 1"));
    assert_eq!(story.state(sound).await, State::Running);
}
