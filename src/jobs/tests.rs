//! Runners beside each other on one database.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{EntityTrait, PaginatorTrait};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::db::testing::{self, TestDatabase};
use crate::db::{Database, DbFault};
use crate::idempotency::Answered;
use crate::ids::{Ids, JobRunId};
use crate::ports::clock::{Clock, ManualClock, SharedClock, SystemClock, Timestamp, to_micros};

const PERIOD: Duration = Duration::from_millis(10);
/// How long a dead node keeps its jobs: short, and still not lost on a busy machine.
const LEASE: Duration = Duration::from_secs(2);

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(Timestamp::from_timestamp(1_799_913_600, 0).unwrap()))
}

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
    let (_place, db) = testing::fresh().await;
    let first = Node::start(&db, 1, Duration::from_secs(60));
    first.has_run(2).await;
    let second = Node::start(&db, 2, LEASE);
    first.has_run(20).await;
    assert_eq!(second.runs(), 0);

    // One that stops gives the job back …
    first.stop.cancel();
    first.task.await.unwrap();
    // (for longer than one lease, hence renewed)
    second.has_run(50).await;

    // … one that dies loses it in time.
    second.task.abort();
    let third = Node::start(&db, 3, Duration::from_secs(60));
    third.has_run(1).await;
    let runs = second.runs();
    third.has_run(5).await;
    assert_eq!(second.runs(), runs);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_that_start_at_once_one_gets_the_job() {
    let (_place, db) = testing::fresh().await;
    let nodes: Vec<Node> = (1..=8).map(|holder| Node::start(&db, holder, Duration::from_secs(60))).collect();
    let busy = |nodes: &[Node]| nodes.iter().filter(|node| node.runs() > 0).count();
    while nodes.iter().map(Node::runs).sum::<usize>() < 20 {
        tokio::time::sleep(PERIOD).await;
    }
    assert_eq!(busy(&nodes), 1);
}

/// Jobs on a database and a clock of their own.
struct Stage {
    _place: TestDatabase,
    db: Database,
    clock: Arc<ManualClock>,
    jobs: Vec<Job>,
    ids: Vec<Ids>,
}

impl Stage {
    async fn with(job: Job) -> Self {
        let ((place, db), clock) = (testing::fresh().await, clock());
        let ids = (0..4).map(|node| Ids::new(node, clock.as_ref(), Duration::from_secs(600))).collect();
        Self { _place: place, db, clock, jobs: vec![job], ids }
    }

    /// The jobs as a node of this number knows them.
    fn node(&self, number: usize) -> JobService {
        let (clock, ids) = (self.clock.clone(), self.ids[number].clone());
        let holder = i64::try_from(number).unwrap();
        JobService::new(Host { db: self.db.clone(), clock, ids, holder }, self.jobs.clone())
    }

    fn start(&self, number: usize) -> (CancellationToken, JoinHandle<()>) {
        let stop = CancellationToken::new();
        let runner = self.node(number).runner().lease_margin(LEASE);
        (stop.clone(), tokio::spawn(runner.run(stop)))
    }

    async fn asked(&self, number: usize) -> JobRunId {
        let request = Request { trigger: Trigger::Operator, by: None, params: None };
        match self.node(number).request("work", request, None).await.unwrap() {
            Answered::Fresh(run) => run.id,
            Answered::Replayed(_) => panic!("there is no key"),
        }
    }

    /// Waits until a node has looked at the job.
    async fn is_seen(&self) {
        let seen = async || {
            let row = self.db.read(|connection| async move {
                Ok::<_, DbFault>(entities::job_state::Entity::find().one(&connection).await?)
            });
            row.await.unwrap().is_some()
        };
        eventually(seen).await;
    }

    async fn history(&self) -> Vec<Run> {
        self.node(1).runs("work", None, 100).await.unwrap()
    }

    async fn states(&self) -> Vec<RunState> {
        self.history().await.iter().map(|run| run.state).collect()
    }
}

async fn eventually(holds: impl AsyncFn() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("what was promised comes soon");
}

fn cron(schedule: &str) -> Schedule {
    schedule.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn moments_that_were_missed_are_served_once() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counter = runs.clone();
    let stage = Stage::with(Job::new("work", cron("0 3 * * *"), move |_: RunContext| {
        counter.fetch_add(1, Ordering::Relaxed);
        async { Ok(Summary::NOTHING) }
    }))
    .await;
    let counted = async |count| eventually(async || runs.load(Ordering::Relaxed) == count).await;
    let served = async || stage.node(1).list().await.unwrap()[0].last_run.is_some();
    let (stop, first) = stage.start(1);
    // A job seen for the first time has missed nothing.
    stage.asked(1).await;
    counted(1).await;
    eventually(served).await;
    stop.cancel();
    first.await.unwrap();

    // While no node ran, and with more than one ready to catch up.
    stage.clock.advance(TimeDelta::days(3));
    let (_second, _third) = (stage.start(2), stage.start(3));
    counted(2).await;
    for count in 3..6 {
        stage.clock.advance(TimeDelta::days(1));
        counted(count).await;
    }
    assert_eq!(stage.states().await, [RunState::Done]);
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_do_not_overlap_whoever_asks() {
    let busy = Arc::new(AtomicUsize::new(0));
    let guard = busy.clone();
    let stage = Stage::with(Job::new("work", Schedule::Every(PERIOD), move |_: RunContext| {
        let guard = guard.clone();
        async move {
            assert_eq!(guard.fetch_add(1, Ordering::SeqCst), 0, "beside another run");
            tokio::time::sleep(Duration::from_millis(3)).await;
            guard.fetch_sub(1, Ordering::SeqCst);
            Ok(Summary::NOTHING)
        }
    }))
    .await;
    let _nodes = (stage.start(1), stage.start(2));
    for turn in 0..20 {
        stage.asked(1 + turn % 2).await;
    }
    let command = stage.node(3);
    let run = command.perform("work", None, Duration::from_secs(20)).await.unwrap();
    assert_eq!((run.state, run.trigger), (RunState::Done, Trigger::Command));
    eventually(async || stage.states().await == [RunState::Done; 21]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_cut_short_is_lost_and_its_moment_served_again() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counter = runs.clone();
    let stage = Stage::with(Job::new("work", cron("0 3 * * *"), move |_: RunContext| {
        let run = counter.fetch_add(1, Ordering::Relaxed);
        async move { if run < 2 { std::future::pending().await } else { Ok(Summary::of("worked")) } }
    }))
    .await;
    let (stop, first) = stage.start(1);
    stage.is_seen().await;
    stage.clock.advance(TimeDelta::days(1));
    // What takes long is seen while it is under way.
    eventually(async || stage.node(1).list().await.unwrap()[0].running).await;
    assert_eq!(stage.states().await, [RunState::Running]);
    stop.cancel();
    first.await.unwrap();
    assert_eq!(stage.states().await, [RunState::Lost]);

    // One that dies says nothing; the next holder of its lease does.
    let (_, second) = stage.start(2);
    eventually(async || stage.states().await == [RunState::Running, RunState::Lost]).await;
    second.abort();
    let _third = stage.start(3);
    eventually(async || stage.states().await == [RunState::Done, RunState::Lost, RunState::Lost]).await;
    let done = &stage.history().await[0];
    assert_eq!((done.summary.as_deref(), done.trigger), (Some("worked"), Trigger::Schedule));
}
#[tokio::test(flavor = "multi_thread")]
async fn a_command_gives_up_on_a_busy_job_and_a_run_without_its_lease_is_cut_short() {
    let cut_short = Arc::new(AtomicUsize::new(0));
    let counter = cut_short.clone();
    let stage = Stage::with(Job::new("work", Schedule::OnDemand, move |_: RunContext| {
        let dropped = Dropped(counter.clone());
        async move {
            let _dropped = dropped;
            std::future::pending().await
        }
    }))
    .await;
    let _node = stage.start(1);
    stage.asked(1).await;
    eventually(async || stage.states().await == [RunState::Running]).await;
    let refused = stage.node(2).perform("work", None, Duration::from_millis(100)).await;
    assert!(matches!(refused, Err(JobsError::Busy { .. })), "{refused:?}");
    assert_eq!(stage.states().await, [RunState::Running]);

    let stealing = stage.db.transaction(|tx| async move {
        let steal = entities::job_lease::Entity::update_many()
            .col_expr(entities::job_lease::Column::Holder, Expr::value(9))
            .col_expr(entities::job_lease::Column::ExpiresAt, Expr::value(i64::MAX));
        Ok::<_, DbFault>(steal.exec(&tx).await.map(drop)?)
    });
    stealing.await.unwrap();
    eventually(async || cut_short.load(Ordering::Relaxed) == 1).await;
}

struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_the_same_way_again_is_remembered_once() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counter = runs.clone();
    let stage = Stage::with(Job::new("work", Schedule::Every(PERIOD), move |_: RunContext| {
        let run = counter.fetch_add(1, Ordering::Relaxed);
        async move {
            match run {
                0..20 => panic!("in run of the first twenty"),
                20..40 => Err("no luck".into()),
                _ => Ok(Summary::NOTHING),
            }
        }
    }))
    .await;
    let _node = stage.start(1);
    eventually(async || runs.load(Ordering::Relaxed) > 60).await;
    let errors: Vec<_> =
        stage.history().await.into_iter().map(|run| (run.state, run.error.unwrap())).collect();
    let panicked = "panicked: in run of the first twenty".to_owned();
    assert_eq!(errors, [(RunState::Failed, "no luck".to_owned()), (RunState::Panicked, panicked)]);
    let job = stage.node(1).list().await.unwrap().swap_remove(0);
    assert_eq!(job.last_run.unwrap().outcome, RunState::Done);
    assert!(job.last_success_at.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_trimmed_by_age_batch_by_batch() {
    let ((_place, db), clock) = (testing::fresh().await, clock());
    let now = to_micros(clock.now());
    let day = TimeDelta::days(1).num_microseconds().unwrap();
    let filling = db.transaction(move |tx| async move {
        let row = |id: i64, finished_at| entities::job_run::ActiveModel {
            id: Set(id),
            job: Set("work".to_owned()),
            state: Set("done".to_owned()),
            triggered_by: Set("schedule".to_owned()),
            params: Set("null".to_owned()),
            created_at: Set(0),
            finished_at: Set(finished_at),
            ..Default::default()
        };
        for first in (0..2500).step_by(500) {
            let rows = (first..first + 500).map(|id| row(id, Some(now - day - 1)));
            entities::job_run::Entity::insert_many(rows).exec_without_returning(&tx).await?;
        }
        let kept = [row(2500, Some(now - day)), row(2501, Some(now)), row(2502, None)];
        entities::job_run::Entity::insert_many(kept).exec_without_returning(&tx).await?;
        Ok::<_, DbFault>(())
    });
    filling.await.unwrap();
    let logs =
        vec![Log { table: "no_such_table", ..history(TimeDelta::zero()) }, history(TimeDelta::days(1))];
    let trimming = |logs| log_trimming(db.clone(), clock.clone(), Schedule::OnDemand, logs);
    // One table that cannot be trimmed keeps no other from being.
    let failed = once(&trimming(logs)).await.unwrap_err().to_string();
    assert!(failed.contains("could not trim no_such_table"), "{failed}");
    let left = db.read(|connection| async move {
        Ok::<_, DbFault>(entities::job_run::Entity::find().count(&connection).await?)
    });
    assert_eq!(left.await.unwrap(), 3);
    assert_eq!(once(&trimming(vec![history(TimeDelta::days(1))])).await.unwrap(), Summary::NOTHING);
    assert_eq!(
        once(&trimming(vec![history(TimeDelta::hours(1))])).await.unwrap(),
        Summary::of("removed 1 of job_run")
    );
}

async fn once(job: &Job) -> Result<Summary, JobError> {
    job.run(RunContext { run: JobRunId(1), trigger: Trigger::Command, params: None }).await
}
