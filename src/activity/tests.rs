//! Stories of activities against a database of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::future::join_all;
use sea_orm::{ActiveValue::Set, EntityTrait, QueryOrder};
use serde_json::Value;

use super::machine::{Event, State};
use super::model::*;
use super::*;
use crate::db::testing::{self, TestDatabase};
use crate::db::{Database, DbFault};
use crate::idempotency::{Answered, KeyRefusal, RequestKey};
use crate::ids::{ActivityId, GoodsId, Ids, UserId};
use crate::ports::clock::{ManualClock, Timestamp};

const OPERATOR: UserId = UserId(1);
/// When the window of [`draft`] opens.
pub(crate) const START: Timestamp = Timestamp::from_timestamp(1_800_000_000, 0).expect("a date");
/// When it closes.
pub(crate) const END: Timestamp = Timestamp::from_timestamp(1_800_003_600, 0).expect("a date");

/// A database, a clock and the service over both.
pub(crate) struct Story {
    _place: TestDatabase,
    pub(crate) db: Database,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) activities: ActivityService,
    told: Arc<AtomicUsize>,
}

impl Story {
    /// Begins a day before the activities of [`draft`] start.
    pub(crate) async fn begin() -> Self {
        let (place, db) = testing::fresh().await;
        let clock = Arc::new(ManualClock::new(START - TimeDelta::days(1)));
        let ids = Ids::new(1, clock.as_ref(), Duration::from_secs(600));
        let told = Arc::new(AtomicUsize::new(0));
        let counter = told.clone();
        let on_change: OnChange = Arc::new(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let activities =
            ActivityService::new(db.clone(), clock.clone(), ids, "CNY".parse().unwrap(), on_change);
        Self { _place: place, db, clock, activities, told }
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
        sale: None,
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
    let sale = Some(Sale { goods_id: Some(GoodsId(1)), price_minor: 100 });
    let flash_sale = Draft { kind: Kind::FlashSale, sale, ..draft() };
    let refusal = story.activities.create(OPERATOR, flash_sale, None).await.unwrap_err();
    assert!(matches!(refusal, ActivityError::Invalid(Invalid::Goods)), "{refusal:?}");
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

/// Bodies, roles and refusals over HTTP.
mod over_http {
    use actix_web::body::MessageBody;
    use actix_web::dev::{Service, ServiceResponse};
    use actix_web::http::StatusCode;
    use actix_web::test::{TestRequest, init_service, read_body_json};
    use actix_web::web::Data;
    use actix_web::{App, Error};
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::activity::api;
    use crate::error::{ApiError, Code};
    use crate::identity::{Role, Roles, SigningSecret, Tokens};

    async fn server(
        story: &Story,
    ) -> impl Service<actix_http::Request, Response = ServiceResponse<impl MessageBody>, Error = Error> {
        let tokens = tokens(story);
        init_service(
            App::new()
                .app_data(Data::new(tokens))
                .app_data(Data::new(story.activities.clone()))
                .service(api::show)
                .service(api::list_shown)
                .service(api::get)
                .service(api::list_all)
                .service(api::create)
                .service(api::edit)
                .service(api::transition),
        )
        .await
    }

    fn tokens(story: &Story) -> Tokens {
        let secret = SigningSecret::new("s".repeat(32).into()).unwrap();
        let ids = Ids::new(2, story.clock.as_ref(), Duration::from_secs(600));
        Tokens::new(&secret, &[], story.clock.clone(), ids)
    }

    fn by(story: &Story, role: Role, request: TestRequest) -> TestRequest {
        let token = tokens(story).issue(OPERATOR, Roles::from(role), Duration::from_secs(600)).unwrap();
        request.insert_header(("authorization", format!("Bearer {}", token.token)))
    }

    async fn ask(
        server: &impl Service<actix_http::Request, Response = ServiceResponse<impl MessageBody>, Error = Error>,
        request: TestRequest,
    ) -> Result<(StatusCode, Value), ApiError> {
        let response = server.call(request.to_request()).await.unwrap();
        if let Some(error) = response.response().error() {
            return Err(error.as_error::<ApiError>().expect("a refusal of ours").clone());
        }
        Ok((response.status(), read_body_json(response).await))
    }

    fn body() -> Value {
        json!({
            "name": "Mooncakes", "kind": "giveaway", "starts_at": START, "ends_at": END,
            "stock_total": 100, "take_limit_per_user": null,
        })
    }

    #[actix_web::test]
    async fn an_operator_runs_an_activity_and_a_customer_sees_it() {
        let story = Story::begin().await;
        let server = server(&story).await;
        let post = |path: &str, body: &Value| {
            by(&story, Role::Operator, TestRequest::post().uri(path).set_json(body))
        };
        let get = |role, path: &str| by(&story, role, TestRequest::get().uri(path));

        let create = || post("/admin/activities", &body()).insert_header(("idempotency-key", "k"));
        let (status, created) = ask(&server, create()).await.unwrap();
        assert_eq!((status, &created["state"]), (StatusCode::CREATED, &json!("editing")));
        assert_eq!(ask(&server, create()).await.unwrap(), (StatusCode::CREATED, created.clone()));
        let id = created["id"].as_str().unwrap();

        let shown = format!("/activities/{id}");
        let hidden = ask(&server, get(Role::Customer, &shown)).await.unwrap_err();
        assert_eq!(hidden.code, Code::NotFound);
        let (_, seen) = ask(&server, get(Role::Viewer, &format!("/admin{shown}"))).await.unwrap();
        assert_eq!(seen, created);

        let patch = TestRequest::patch().uri(&format!("/admin{shown}"));
        let patch = patch.set_json(json!({"stock_total": 5, "take_limit_per_user": 2}));
        let (_, edited) = ask(&server, by(&story, Role::Operator, patch)).await.unwrap();
        assert_eq!((&edited["stock"]["total"], &edited["take_limit_per_user"]), (&json!(5), &json!(2)));
        assert_eq!(edited["name"], "Mooncakes");

        let transitions = format!("/admin{shown}/transitions");
        for (event, state) in [("submit", "submitted"), ("approve", "approved")] {
            let (_, moved) = ask(&server, post(&transitions, &json!({"event": event}))).await.unwrap();
            assert_eq!(moved["state"], state);
        }
        let refused = ask(&server, post(&transitions, &json!({"event": "reopen"}))).await;
        assert_eq!(refused.unwrap().1["state"], "approved");
        let refused = ask(&server, post(&transitions, &json!({"event": "withdraw"}))).await.unwrap_err();
        assert_eq!(refused.code, Code::TransitionNotAllowed);
        assert!(refused.detail.ends_with("possible now: refuse, close"), "{}", refused.detail);

        let list = "/activities?state=approved&kind=giveaway";
        let (_, page) = ask(&server, get(Role::Customer, list)).await.unwrap();
        assert_eq!(page["items"][0]["id"], id);
        assert_eq!(page["items"][0]["stock"], json!({"total": 5, "remaining": 5}));
        let forbidden = ask(&server, get(Role::Customer, "/admin/activities")).await.unwrap_err();
        assert_eq!(forbidden.code, Code::Forbidden);
        let unknown = ask(&server, get(Role::Viewer, "/admin/activities?state=open")).await.unwrap_err();
        assert_eq!(unknown.errors[0].pointer, "?state");
    }

    #[rstest]
    #[case(json!({"name": ""}), &["/name"])]
    #[case(json!({"name": "x".repeat(129), "stock_total": 0, "take_limit_per_user": 0}),
        &["/name", "/stock_total", "/take_limit_per_user"])]
    #[case(json!({"stock_total": 2_147_483_648_i64}), &["/stock_total"])]
    #[case(json!({"stock_total": 1.5}), &["/stock_total"])]
    #[case(json!({"stock_total": "1"}), &["/stock_total"])]
    #[case(json!({"stock_total": null}), &["/stock_total"])]
    #[case(json!({"ends_at": START}), &["/ends_at"])]
    #[case(json!({"starts_at": "1969-12-31T23:59:59Z"}), &["/starts_at"])]
    #[case(json!({"starts_at": "2000-01-01T00:00:00Z", "ends_at": "2000-01-02T00:00:00Z"}), &["/ends_at"])]
    #[case(json!({"ends_at": "+10000-01-01T00:00:00Z"}), &["/ends_at"])]
    #[case(json!({"ends_at": "tomorrow"}), &["/ends_at"])]
    #[case(json!({"kind": "flash_sale"}), &["/sale_price_minor"])]
    #[case(json!({"sale_price_minor": 1}), &["/sale_price_minor"])]
    #[case(json!({"kind": "raffle"}), &["/kind"])]
    #[case(json!({"goods_id": "1"}), &["/goods_id"])]
    #[actix_web::test]
    async fn each_bad_member_is_named(#[case] wrong: Value, #[case] pointers: &[&str]) {
        let story = Story::begin().await;
        let server = server(&story).await;
        let mut body = body();
        body.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
        let id = story.create().await;
        let create = TestRequest::post().uri("/admin/activities").set_json(body);
        let edit = TestRequest::patch().uri(&format!("/admin/activities/{id}")).set_json(wrong);
        for request in [create, edit] {
            let refusal = ask(&server, by(&story, Role::Operator, request)).await.unwrap_err();
            assert_eq!(refusal.code, Code::ValidationFailed);
            let named: Vec<&str> = refusal.errors.iter().map(|error| error.pointer.as_str()).collect();
            assert_eq!(named, pointers, "{refusal:?}");
        }
        assert_eq!(story.activities.list(listing()).await.unwrap().len(), 1);
    }
}
