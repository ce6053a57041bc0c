//! The server under test, in this process: the real wiring on a free port, and a clock that the story owns.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use chrono::TimeDelta;
use entities::{outbox, parked_event, queued_events};
use futures_util::future::join_all;
use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, PaginatorTrait, QueryFilter};
use serde_json::{Value, json};
use tokio::sync::{Mutex, oneshot};
use tombola::app::{App, TimeSource};
use tombola::config::Config;
use tombola::db::{Database, DatabaseSettings};
use tombola::jobs::Schedule;
use tombola::ports::clock::{Clock, ManualClock, Timestamp};

use super::client::Client;
use super::database::{Engine, TestDatabase};
use super::invariants;
use super::payments::SECRET;

/// When every story begins: 2027-01-15 08:00 UTC.
pub(crate) const START: Timestamp = Timestamp::from_timestamp(1_800_000_000, 0).expect("a date");

/// A server on a database of its own, and the time it lives in.
pub(crate) struct TestApp {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) database: TestDatabase,
    pub(crate) config: Config,
    http: reqwest::Client,
    url: String,
    node: Mutex<Option<Node>>,
}

impl TestApp {
    /// Starts a server at [`START`].
    pub(crate) async fn start(engine: Engine) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_owned()))
            .with_test_writer()
            .try_init();
        // Fails only if a provider is there already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let database = TestDatabase::create(engine).await;
        let mut config = Config::defaults().unwrap();
        config.database.url = database.url.clone().into();
        config.http.address = "127.0.0.1:0".parse().unwrap();
        config.http.workers = 2;
        config.auth.dev_login = Some(true);
        config.auth.token_ttl = Duration::from_hours(48);
        config.rate_limit.per_user_per_s = 0;
        config.rate_limit.sessions_per_address_per_s = 0;
        // A busy machine is no reason to refuse.
        config.stock.max_wait = Duration::from_secs(30);
        config.messaging.retry_delays = [10, 20, 30].map(Duration::from_millis).to_vec();
        config.messaging.sweep_every = Duration::from_millis(100);
        config.payment.sandbox.secret = Some(SECRET.into());
        config.jobs.schedules.order_deadlines = Schedule::Every(Duration::from_millis(50));
        config.jobs.schedules.overdue_payments = Schedule::Every(Duration::from_millis(50));
        config.jobs.schedules.activity_states = Schedule::Every(Duration::from_millis(50));
        let clock = Arc::new(ManualClock::new(START));
        let node = Node::start(config.clone(), clock.clone()).await;
        config.http.address = node.address;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap();
        let url = node.url();
        Self { clock, database, config, http, url, node: Mutex::new(Some(node)) }
    }

    /// Another server on the same database.
    pub(crate) async fn another_node(&self) -> Node {
        self.another_node_with(|_| {}).await
    }

    /// Another server on the same database, with settings changed.
    pub(crate) async fn another_node_with(&self, change: impl FnOnce(&mut Config)) -> Node {
        let mut config = self.config.clone();
        config.http.address.set_port(0);
        change(&mut config);
        Node::start(config, self.clock.clone()).await
    }

    /// Stops the server and starts it again a minute later, at the same address.
    pub(crate) async fn restart(&self) {
        self.restart_with(|_| {}).await;
    }

    /// Stops the server and starts it again a minute later, at the same address, with settings changed.
    pub(crate) async fn restart_with(&self, change: impl FnOnce(&mut Config)) {
        let mut config = self.config.clone();
        change(&mut config);
        let mut node = self.node.lock().await;
        if let Some(node) = node.take() {
            node.stop().await;
        }
        self.pass(TimeDelta::minutes(1));
        *node = Some(Node::start(config, self.clock.clone()).await);
    }

    /// Lets `step` pass.
    pub(crate) fn pass(&self, step: TimeDelta) {
        self.clock.advance(step);
    }

    /// Somebody who has not signed in.
    pub(crate) fn nobody(&self) -> Client {
        Client::new(self.http.clone(), &self.url)
    }

    pub(crate) async fn operator(&self) -> Client {
        self.nobody().signed_in("olga", "operator").await
    }

    pub(crate) async fn viewer(&self) -> Client {
        self.nobody().signed_in("victor", "viewer").await
    }

    pub(crate) async fn customer(&self, name: &str) -> Client {
        self.nobody().signed_in(name, "customer").await
    }

    pub(crate) async fn customers(&self, count: usize) -> Vec<Client> {
        let names: Vec<String> = (0..count).map(|number| format!("customer {number}")).collect();
        join_all(names.iter().map(|name| self.customer(name))).await
    }

    /// The id of a new activity that is being edited.
    pub(crate) async fn editing(&self, offer: Offer) -> String {
        let created = self.operator().await.post("/admin/activities", offer.body(self.clock.now())).await;
        created.is(201)["id"].as_str().unwrap().to_owned()
    }

    /// The id of a new activity that is approved.
    pub(crate) async fn approved(&self, offer: Offer) -> String {
        let activity = self.editing(offer).await;
        let operator = self.operator().await;
        operator.asks(&activity, "submit").await.is(200);
        operator.asks(&activity, "approve").await.is(200);
        activity
    }

    /// The id of a new activity that runs.
    pub(crate) async fn running(&self, offer: Offer) -> String {
        let activity = self.approved(offer).await;
        self.operator().await.asks(&activity, "start").await.is(200);
        activity
    }

    /// The activity as operators see it.
    pub(crate) async fn activity(&self, id: &str) -> Value {
        self.operator().await.get(&format!("/admin/activities/{id}")).await.is(200)
    }

    /// How many units of an activity are left.
    pub(crate) async fn remaining(&self, id: &str) -> i64 {
        self.activity(id).await["stock"]["remaining"].as_i64().unwrap()
    }

    /// The events of one type about an activity, in the order they were written.
    pub(crate) async fn events(&self, activity: &str, event_type: &str) -> Vec<Value> {
        let connection = self.database.connect().await;
        let mut events = invariants::events_of(&connection, activity.parse().unwrap()).await;
        connection.close().await.unwrap();
        events.remove(event_type).unwrap_or_default()
    }

    /// The database, opened beside the server.
    pub(crate) async fn beside(&self) -> Database {
        let settings = DatabaseSettings::new(&self.database.url.clone().into()).unwrap();
        Database::connect(settings, tokio::runtime::Handle::current()).await.unwrap()
    }

    /// Changes the database behind the server's back.
    pub(crate) async fn execute(&self, sql: &str) {
        let connection = self.database.connect().await;
        connection.execute_unprepared(sql).await.unwrap();
        connection.close().await.unwrap();
    }

    /// Waits until nothing is under way: every event is sent and applied.
    pub(crate) async fn is_quiet(&self) {
        super::eventually(async || {
            let connection = self.database.connect().await;
            let unsent = outbox::Entity::find().filter(outbox::Column::SentAt.is_null());
            let quiet = unsent.count(&connection).await.unwrap() == 0
                && queued_events::Entity::find().count(&connection).await.unwrap() == 0
                && parked_event::Entity::find().count(&connection).await.unwrap() == 0;
            connection.close().await.unwrap();
            quiet
        })
        .await;
    }

    /// The time of the story.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The time of the story, in seconds since the Unix epoch.
    pub(crate) fn clock_seconds(&self) -> i64 {
        self.clock.now().timestamp()
    }

    /// Stops the server and checks what must hold after every story.
    pub(crate) async fn end(self) {
        if let Some(node) = self.node.into_inner() {
            node.stop().await;
        }
        let connection = self.database.connect().await;
        invariants::check(&connection).await;
        connection.close().await.unwrap();
        self.database.remove().await;
    }
}

/// What an activity offers; by default a give-away without a limit, for an hour from now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offer {
    stock: i64,
    limit: Option<i64>,
    starts_in: TimeDelta,
    ends_in: TimeDelta,
    price_minor: Option<i64>,
}

impl Offer {
    pub(crate) fn of(stock: i64) -> Self {
        Self {
            stock,
            limit: None,
            starts_in: TimeDelta::zero(),
            ends_in: TimeDelta::hours(1),
            price_minor: None,
        }
    }

    pub(crate) fn limit(self, takes_per_user: i64) -> Self {
        Self { limit: Some(takes_per_user), ..self }
    }

    /// A flash sale at this price.
    pub(crate) fn at_price(self, price_minor: i64) -> Self {
        Self { price_minor: Some(price_minor), ..self }
    }

    pub(crate) fn between(self, starts_in: TimeDelta, ends_in: TimeDelta) -> Self {
        Self { starts_in, ends_in, ..self }
    }

    pub(crate) fn body(self, now: Timestamp) -> Value {
        json!({
            "name": "Mooncakes at noon", "sale_price_minor": self.price_minor,
            "kind": if self.price_minor.is_some() { "flash_sale" } else { "giveaway" }, "stock_total": self.stock,
            "take_limit_per_user": self.limit, "starts_at": now + self.starts_in, "ends_at": now + self.ends_in,
        })
    }
}

/// A server with a thread and an actix system of its own. Dropped, it stops in the background.
pub(crate) struct Node {
    address: std::net::SocketAddr,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Node {
    pub(crate) async fn start(config: Config, clock: Arc<ManualClock>) -> Self {
        let (started, address) = oneshot::channel();
        let (stop, stopping) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let running = App::start(config, TimeSource::Clock(clock)).await.expect("the server starts");
                started.send(running.address).expect("somebody waits for it");
                let _ = stopping.await;
                running.stop().await;
            });
        });
        Self { address: address.await.expect("the server starts"), stop, thread }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        let thread = self.thread;
        tokio::task::spawn_blocking(|| thread.join()).await.unwrap().expect("the server stops in peace");
    }
}
