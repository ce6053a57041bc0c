//! Stories of activities against a database of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::future::join_all;
use sea_orm::{ActiveValue::Set, EntityTrait, QueryOrder};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Handle;

use super::machine::{Event, State};
use super::model::*;
use super::*;
use crate::db::{Database, DatabaseSettings, DbFault};
use crate::idempotency::{Answered, KeyRefusal, RequestKey};
use crate::ids::{ActivityId, Ids, UserId};
use crate::ports::clock::{ManualClock, Timestamp};

const OPERATOR: UserId = UserId(1);
/// When the window of [`draft`] opens.
pub(crate) const START: Timestamp = Timestamp::from_timestamp(1_800_000_000, 0).expect("a date");
/// When it closes.
pub(crate) const END: Timestamp = Timestamp::from_timestamp(1_800_003_600, 0).expect("a date");

/// A database, a clock and the service over both.
pub(crate) struct Story {
    _directory: TempDir,
    pub(crate) db: Database,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) activities: ActivityService,
    told: Arc<AtomicUsize>,
}

impl Story {
    /// Begins a day before the activities of [`draft`] start.
    pub(crate) async fn begin() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("activity.db").display());
        let settings = DatabaseSettings::new(&url.into()).unwrap();
        let db = Database::connect(settings, Handle::current()).await.unwrap();
        db.migrate().await.unwrap();
        let clock = Arc::new(ManualClock::new(START - TimeDelta::days(1)));
        let ids = Ids::new(1, clock.as_ref(), Duration::from_secs(600));
        let told = Arc::new(AtomicUsize::new(0));
        let counter = told.clone();
        let on_change: OnChange = Arc::new(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let activities = ActivityService::new(db.clone(), clock.clone(), ids, on_change);
        Self { _directory: directory, db, clock, activities, told }
    }

    pub(crate) async fn create(&self) -> ActivityId {
        fresh(self.activities.create(OPERATOR, draft(), None).await).id
    }

    pub(crate) async fn approved(&self) -> ActivityId {
        let id = self.create().await;
        self.ask(id, Event::Submit).await.unwrap();
        self.ask(id, Event::Approve).await.unwrap();
        id
    }

    async fn ask(&self, id: ActivityId, event: Event) -> Result<Answered<ActivityView>, ActivityError> {
        self.activities.transition(Actor::User(OPERATOR), id, event, None).await
    }

    pub(crate) async fn state(&self, id: ActivityId) -> State {
        self.activities.get(id).await.unwrap().unwrap().state
    }

    /// `(from, to, version)` of each event, in the order they were written.
    async fn events(&self) -> Vec<(String, String, i64)> {
        let rows = self.db.read(|connection| async move {
            let query = entities::outbox::Entity::find().order_by_asc(entities::outbox::Column::Id);
            Ok::<_, DbFault>(query.all(&connection).await?)
        });
        let events = rows
            .await
            .unwrap()
            .into_iter()
            .flat_map(|row| serde_json::from_str::<Vec<Value>>(&row.events).unwrap());
        let word = |value: &Value| value.as_str().unwrap_or("nothing").to_owned();
        events
            .map(|event| {
                assert_eq!(event["type"], "activity.state_changed.v1");
                let data = &event["data"];
                assert_eq!(event["subject"], data["activity_id"]);
                assert_eq!(event["sequence"], data["version"]);
                (word(&data["from"]), word(&data["to"]), data["version"].as_i64().unwrap())
            })
            .collect()
    }

    /// The tokens of each block of an activity.
    async fn drum(&self) -> Vec<(i32, i32)> {
        let rows = self.db.read(|connection| async move {
            Ok::<_, DbFault>(entities::token_block::Entity::find().all(&connection).await?)
        });
        rows.await.unwrap().into_iter().map(|block| (block.first_token, block.last_token)).collect()
    }

    /// Books `units` of the only activity as taken.
    async fn sell(&self, units: i32) {
        let sold = entities::token_block::ActiveModel { sold: Set(units), ..Default::default() };
        let selling = self.db.transaction(move |tx| {
            let update = entities::token_block::Entity::update_many().set(sold.clone());
            async move { Ok::<_, DbFault>(update.exec(&tx).await.map(drop)?) }
        });
        selling.await.unwrap();
    }
}

fn draft() -> Draft {
    Draft {
        name: Name::parse("Mooncakes".to_owned()).unwrap(),
        kind: Kind::Giveaway,
        window: Window::new(START, END).unwrap(),
        stock_total: Count::parse(100).unwrap(),
        take_limit_per_user: Some(Count::parse(2).unwrap()),
    }
}

fn fresh(answer: Result<Answered<ActivityView>, ActivityError>) -> ActivityView {
    match answer.unwrap() {
        Answered::Fresh(view) => view,
        Answered::Replayed(answer) => panic!("replayed {answer:?}"),
    }
}

fn listing() -> Listing {
    Listing { state: None, kind: None, before: None, limit: 100 }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activity_lives_from_draft_to_close() {
    let story = Story::begin().await;
    let created = fresh(story.activities.create(OPERATOR, draft(), None).await);
    assert_eq!((created.state, created.version), (State::Editing, 1));
    assert_eq!((created.stock.total, created.stock.remaining), (100, 100));
    assert_eq!(story.drum().await, [(1, 100)]);

    let id = created.id;
    story.ask(id, Event::Submit).await.unwrap();
    story.ask(id, Event::Approve).await.unwrap();
    let early = story.ask(id, Event::Start).await.unwrap_err();
    assert_eq!(
        early.to_string(),
        "the activity is approved: cannot start, it is before starts_at; possible now: refuse, close"
    );
    story.clock.set(START);
    let running = fresh(story.ask(id, Event::Start).await);
    assert_eq!((running.state, running.version), (State::Running, 4));
    let repeated = fresh(story.ask(id, Event::Start).await);
    assert_eq!(repeated, running);
    story.sell(30).await;
    let closed = fresh(story.ask(id, Event::Close).await);
    assert_eq!((closed.stock.remaining, closed.version), (70, 5));
    assert_eq!(story.activities.get(id).await.unwrap(), Some(closed));

    let word = str::to_owned;
    assert_eq!(
        story.events().await,
        [
            (word("nothing"), word("editing"), 1),
            (word("editing"), word("submitted"), 2),
            (word("submitted"), word("approved"), 3),
            (word("approved"), word("running"), 4),
            (word("running"), word("closed"), 5),
        ]
    );
    // Every change and the repeat, not the refusal.
    assert_eq!(story.told.load(Ordering::Relaxed), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_twenty_concurrent_requests_one_moves_the_activity() {
    let story = Story::begin().await;
    let id = story.create().await;
    for event in [Event::Submit, Event::Approve, Event::Close, Event::Reopen] {
        let before = story.events().await.len();
        let answers = join_all((0..20).map(|_| story.ask(id, event))).await;
        assert!(answers.iter().all(Result::is_ok), "{event}: {answers:?}");
        assert_eq!(story.events().await.len(), before + 1, "{event}");
    }
    assert_eq!(story.activities.get(id).await.unwrap().unwrap().version, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_with_the_same_key_answers_as_the_first_did() {
    let story = Story::begin().await;
    let key = |fingerprint| Some(RequestKey::new(OPERATOR, "POST /activities", "k", [fingerprint; 32]));
    let first = fresh(story.activities.create(OPERATOR, draft(), key(1)).await);
    match story.activities.create(OPERATOR, draft(), key(1)).await.unwrap() {
        Answered::Replayed(answer) => {
            assert_eq!((answer.status, answer.body), (201, serde_json::to_string(&first).unwrap()));
        }
        Answered::Fresh(second) => panic!("created {second:?} as well"),
    }
    let other = story.activities.create(OPERATOR, draft(), key(2)).await;
    assert!(matches!(other, Err(ActivityError::Key(KeyRefusal::Reused))), "{other:?}");
    assert_eq!(story.activities.list(listing()).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_not_created() {
    let story = Story::begin().await;
    let flash_sale = Draft { kind: Kind::FlashSale, ..draft() };
    let refusal = story.activities.create(OPERATOR, flash_sale, None).await.unwrap_err();
    assert!(matches!(refusal, ActivityError::Invalid(Invalid::FlashSale)), "{refusal:?}");
    story.clock.set(END);
    let refusal = story.activities.create(OPERATOR, draft(), None).await.unwrap_err();
    assert!(matches!(refusal, ActivityError::Invalid(Invalid::Over)), "{refusal:?}");
    assert_eq!(story.drum().await, []);
    assert_eq!(story.events().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activity_is_edited_until_it_is_submitted() {
    let story = Story::begin().await;
    let id = story.create().await;
    let edit = Edit {
        stock_total: Some(Count::parse(7).unwrap()),
        take_limit_per_user: Some(None),
        ends_at: Some(END + TimeDelta::hours(1)),
        ..Edit::default()
    };
    let edited = story.activities.edit(id, edit.clone()).await.unwrap();
    assert_eq!((edited.stock.total, edited.take_limit_per_user, edited.version), (7, None, 2));
    assert_eq!(
        (edited.name.as_str(), edited.starts_at, edited.ends_at),
        ("Mooncakes", START, END + TimeDelta::hours(1))
    );
    assert_eq!(story.drum().await, [(1, 7)]);
    assert_eq!(story.activities.edit(id, edit.clone()).await.unwrap(), edited, "the same edit is no change");

    let backwards = Edit { starts_at: Some(END + TimeDelta::hours(2)), ..Edit::default() };
    let refusal = story.activities.edit(id, backwards).await.unwrap_err();
    assert!(matches!(refusal, ActivityError::Invalid(Invalid::EndsAt)), "{refusal:?}");

    story.ask(id, Event::Submit).await.unwrap();
    let refusal = story.activities.edit(id, edit.clone()).await.unwrap_err();
    assert!(matches!(refusal, ActivityError::NotEditable(State::Submitted)), "{refusal:?}");
    story.ask(id, Event::Withdraw).await.unwrap();
    story.activities.edit(id, Edit { kind: Some(Kind::PrizeDraw), ..Edit::default() }).await.unwrap();
    assert_eq!(story.events().await.len(), 3, "edits change no state");
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_in_the_hands_of_users_is_not_laid_out_anew() {
    let story = Story::begin().await;
    let id = story.approved().await;
    story.sell(3).await;
    story.ask(id, Event::Refuse).await.unwrap();
    story.ask(id, Event::Withdraw).await.unwrap();
    let edit = |total| Edit { stock_total: Some(Count::parse(total).unwrap()), ..Edit::default() };
    let refusal = story.activities.edit(id, edit(50)).await.unwrap_err();
    assert!(matches!(refusal, ActivityError::Taken(3)), "{refusal:?}");
    story.activities.edit(id, edit(100)).await.unwrap();
    assert_eq!(story.drum().await, [(1, 100)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn customers_see_what_was_approved() {
    let story = Story::begin().await;
    let (hidden, visible) = (story.create().await, story.approved().await);
    assert_eq!(story.activities.shown(hidden).await.unwrap(), None);
    assert_eq!(story.activities.shown(ActivityId(5)).await.unwrap(), None);
    assert_eq!(story.activities.shown(visible).await.unwrap().unwrap().id, visible);
    let ids = |views: &[ActivityView]| views.iter().map(|view| view.id).collect::<Vec<_>>();
    assert_eq!(ids(&story.activities.shown_list(listing()).await.unwrap()), [visible]);
    let editing = Listing { state: Some(State::Editing), ..listing() };
    assert_eq!(ids(&story.activities.shown_list(editing).await.unwrap()), []);

    assert_eq!(ids(&story.activities.list(listing()).await.unwrap()), [visible, hidden]);
    assert_eq!(ids(&story.activities.list(editing).await.unwrap()), [hidden]);
    let behind = Listing { before: Some(visible), limit: 1, ..listing() };
    assert_eq!(ids(&story.activities.list(behind).await.unwrap()), [hidden]);
    let draws = Listing { kind: Some(Kind::PrizeDraw), ..listing() };
    assert_eq!(ids(&story.activities.list(draws).await.unwrap()), []);

    // The server's own change shows at once.
    story.ask(visible, Event::Close).await.unwrap();
    assert_eq!(story.activities.shown(visible).await.unwrap().unwrap().state, State::Closed);
}
