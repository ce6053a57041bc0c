//! F1 in the steps of an order, F29, and deadlines that pass while no server runs.
//!
//! Whatever strikes, afterwards goods, coupons, balances and payments are what the orders say ([`audit`]), and the orders
//! are what the customers were told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::iter::StepBy;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use entities::{
    goods, order_event, orders, payment, refund, take, user_coupon, users, wallet_account, wallet_entry,
};
use sea_orm::{DatabaseConnection, EntityTrait, QueryOrder};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tombola::ports::clock::{Clock, SystemClock, Timestamp};

use super::{Rig, faults, number, seeds, session};
use crate::support::payments::{SECRET, notice, signature};
use crate::support::process::{Launch, PATIENCE};
use crate::support::wire::{Said, Wire, notify, post};
use crate::support::{Client, Engine, invariants};

faults! {
    sqlite: f01_killed_between_the_steps, each_step_fails_once, a_repeat_comes_while_the_first_is_under_way,
        due_while_nobody_runs;
    postgres: f01_killed_between_the_steps, each_step_fails_once, a_repeat_comes_while_the_first_is_under_way,
        due_while_nobody_runs, f29_paid_and_cancelled_at_once;
    mariadb: f01_killed_between_the_steps, each_step_fails_once, a_repeat_comes_while_the_first_is_under_way,
        due_while_nobody_runs, f29_paid_and_cancelled_at_once;
}

/// Each place where an order is half made, and commits of all kinds. A server passes `before_commit` and `after_commit`
/// while it starts as well.
const KILLS: &[&str] = &[
    "saga_after_draft=kill@1",
    "after_goods_sale=kill@2",
    "saga_after_stock=kill@4",
    "saga_after_coupon=kill@1",
    "saga_after_balance=kill@2",
    "before_commit=kill@60",
    "after_commit=kill@80",
    "after_effect_commit=kill@1",
];

/// Customers who shop at the same time.
const CUSTOMERS: usize = 8;
/// What each customer has to spend.
const CREDIT_MINOR: i64 = 10_000_000;
/// What an order takes from the balance, if it does.
const BALANCE_MINOR: i64 = 500;
/// Units of each goods: more than are ever wanted.
const PLENTY: i64 = 1_000_000;

/// How far times of two servers may differ.
const SLACK_MICROS: i64 = 1_000_000;

/// Orders that F29 pays and cancels at once, for each seed: with `TOMBOLA_FAULT_SEEDS=100` the 10,000 of the matrix.
const CONTESTED: usize = 100;
/// Customers of F29.
const RIVALS: usize = 24;

async fn f01_killed_between_the_steps(engine: Engine) {
    let rig = Rig::on(engine).await;
    let launch = prompt(&rig.launch);
    let mut server = launch.start().await;
    let shop = Arc::new(Shop::open(&launch).await);
    let mut crowd = JoinSet::new();
    for customer in 0..CUSTOMERS {
        let customer = shop.customer(customer).await;
        crowd.spawn(shop.clone().serve(customer));
    }
    shop.until_served(CUSTOMERS).await;
    server.kill().await;
    for kill in KILLS {
        let mut server = launch.clone().with_faults(kill).spawn();
        let end = server.ended().await;
        assert_eq!(end.signal(), Some(9), "{kill}: {end}");
    }
    for _ in 0..seeds(4) {
        let mut server = launch.start().await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..400))).await;
        server.kill().await;
    }
    let mut server = launch.start().await;
    shop.until_served(shop.served() + CUSTOMERS).await;
    shop.closed.store(true, Ordering::SeqCst);
    let mut told = Vec::new();
    while let Some(customer) = crowd.join_next().await {
        told.extend(customer.expect("a customer who was told everything"));
    }
    let unknown: usize = told.iter().map(|told| told.unknown).sum();
    assert!(unknown >= KILLS.len(), "only {unknown} outcomes were unknown: the faults were not seen");
    let database = session(&rig.database.url).await;
    until_quiet(&database).await;
    server.kill().await;
    holds(&database, &told).await;
    end(rig, database).await;
}

/// The steps fail one after the other, whatever was done before: nothing remains, and the repeat is judged anew.
async fn each_step_fails_once(engine: Engine) {
    const FAILING: &[&str] = &[
        "saga_after_draft",
        "after_goods_sale",
        "saga_after_stock",
        "saga_after_coupon",
        "saga_after_balance",
    ];
    let rig = Rig::on(engine).await;
    let once: Vec<String> = FAILING.iter().map(|point| format!("{point}=error@1")).collect();
    let launch = prompt(&rig.launch).with_faults(&once.join(","));
    let mut server = launch.start().await;
    let shop = Shop::open(&launch).await;
    let mut alice = shop.customer(0).await;
    let coupon = alice.coupon(&shop, 0).await;
    let request = post("/orders", &alice.token, "wanted", &shop.wish(1, Some(&coupon)).to_string());
    let database = session(&rig.database.url).await;
    for point in FAILING {
        let failed = alice.wire.ask(shop.address, &request).await.unwrap();
        assert_eq!(failed.status, 503, "{point}: {}", failed.body);
        until_quiet(&database).await;
        assert_eq!(number(&database, "SELECT count(*) FROM orders WHERE state <> 'invalid'").await, 0);
        let held = "SELECT count(*) FROM goods WHERE available <> stock_total";
        assert_eq!(number(&database, held).await, 0, "{point}: stock is held");
        let locked = "SELECT count(*) FROM user_coupon WHERE state <> 'unused' OR order_id IS NOT NULL";
        assert_eq!(number(&database, locked).await, 0, "{point}: a coupon is held");
        let spent =
            format!("SELECT count(*) FROM wallet_account WHERE balance_minor NOT IN (0, {CREDIT_MINOR})");
        assert_eq!(number(&database, &spent).await, 0, "{point}: a balance is spent");
    }
    let made = alice.wire.ask(shop.address, &request).await.unwrap();
    assert_eq!(made.status, 201, "{}", made.body);
    until_quiet(&database).await;
    server.kill().await;
    let told = Told { order: id(&made.json()["id"]), ..Told::default() };
    holds(&database, &[told]).await;
    end(rig, database).await;
}

/// The first took the last units, the coupon and the balance: that is no reason to refuse its own repeat.
async fn a_repeat_comes_while_the_first_is_under_way(engine: Engine) {
    let rig = Rig::on(engine).await;
    let launch = prompt(&rig.launch)
        .with("ORDER__DRAFT_TIMEOUT_S", 60)
        .with_faults("saga_after_coupon=sleep:1000,saga_after_balance=sleep:1000");
    let mut server = launch.start().await;
    let shop = Shop::open(&launch).await;
    let mut alice = shop.customer(0).await;
    let coupon = alice.coupon(&shop, 0).await;
    for goods in &shop.goods {
        let path = format!("/admin/goods/{goods}/stock-adjustments");
        let less = json!({"delta": 1 - PLENTY, "reason": "the last one"});
        shop.operator.post(&path, less).await.is(201);
    }
    let mut wish = shop.wish(1, Some(&coupon));
    wish["items"][0]["quantity"] = 1.into();
    wish["order_amount_minor"] = shop.prices(1).into();
    let request = post("/orders", &alice.token, "wanted", &wish.to_string());
    let first = async { Wire::default().ask(shop.address, &request).await.unwrap() };
    let database = session(&rig.database.url).await;
    let repeats = async {
        for held in [
            "SELECT count(*) FROM user_coupon WHERE state = 'locked'",
            "SELECT count(*) FROM wallet_entry WHERE kind = 'pay'",
        ] {
            eventually(async || number(&database, held).await == 1).await;
            let repeat = Wire::default().ask(shop.address, &request).await.unwrap();
            let code = repeat.json()["code"].clone();
            assert_eq!((repeat.status, code), (409, json!("idempotency_in_progress")), "{}", repeat.body);
        }
    };
    let (first, ()) = tokio::join!(first, repeats);
    assert_eq!(first.status, 201, "{}", first.body);
    let repeat = alice.wire.ask(shop.address, &request).await.unwrap();
    assert!(repeat.replayed, "{}", repeat.body);
    assert_eq!((repeat.status, repeat.json()), (201, first.json()));
    until_quiet(&database).await;
    server.kill().await;
    holds(&database, &[Told { order: id(&first.json()["id"]), ..Told::default() }]).await;
    end(rig, database).await;
}

/// A deadline is a column, not a timer: it survives the server.
async fn due_while_nobody_runs(engine: Engine) {
    const UNITS: usize = 40;
    let rig = Rig::on(engine).await;
    let hasty = prompt(&rig.launch).with("ORDER__PAYMENT_TIMEOUT_S", 3);
    let mut server = hasty.start().await;
    let shop = Shop::open(&hasty).await;
    let sale = shop.flash_sale(UNITS).await;
    let mut alice = shop.customer(0).await;
    for number in 0..6 {
        let coupon = if number % 3 == 0 { Some(alice.coupon(&shop, number).await) } else { None };
        let wish = shop.wish(number, coupon.as_deref()).to_string();
        alice.settles(shop.address, &post("/orders", &alice.token, &format!("o-{number}"), &wish), 201).await;
    }
    let take = |key: &str| post(&format!("/activities/{sale}/takes"), &alice.token, key, "");
    let mut wire = Wire::default();
    for number in 0..UNITS {
        let taken = wire.ask(shop.address, &take(&format!("t-{number}"))).await.unwrap();
        assert_eq!(taken.status, 201, "{}", taken.body);
    }
    server.kill().await;
    let database = session(&rig.database.url).await;
    let waiting = "SELECT count(*) FROM orders WHERE state = 'awaiting_payment'";
    assert!(number(&database, waiting).await > 0, "everything was due before the server was killed");
    tokio::time::sleep(Duration::from_secs(3)).await;

    let mut server = prompt(&rig.launch).start().await;
    let started = Instant::now();
    eventually(async || number(&database, waiting).await == 0).await;
    until_quiet(&database).await;
    assert!(started.elapsed() < Duration::from_secs(10), "deadlines came after {:?}", started.elapsed());
    let cancelled = "SELECT count(*) FROM orders WHERE state = 'cancelled' AND cancel_cause = 'timeout'";
    assert_eq!(number(&database, cancelled).await, i64::try_from(UNITS + 6).unwrap());
    let mut wire = Wire::default();
    for number in 0..UNITS {
        let again = wire.ask(shop.address, &take(&format!("again-{number}"))).await.unwrap();
        assert_eq!(again.status, 201, "{}", again.body);
    }
    until_quiet(&database).await;
    server.kill().await;
    audit(&database).await;
    end(rig, database).await;
}

/// One node is told that an order is paid while the other cancels it, or its time is up.
async fn f29_paid_and_cancelled_at_once(engine: Engine) {
    let rig = Rig::on(engine).await;
    let patient = prompt(&rig.launch);
    let hasty = prompt(&Launch::on(&rig.database.url)).with("ORDER__PAYMENT_TIMEOUT_S", 2);
    let (mut paying, mut cancelling) = (patient.start().await, hasty.start().await);
    let nodes = Nodes { paying: paying.address, cancelling: cancelling.address };
    let shop = Shop::open(&patient).await;
    let orders = CONTESTED * seeds(6);
    let sale: Arc<str> = shop.flash_sale(orders).await.into();
    let mut rivals = JoinSet::new();
    for (rival, token) in patient.customers(RIVALS).into_iter().enumerate() {
        rivals.spawn(contest(nodes, sale.clone(), token, (rival..orders).step_by(RIVALS)));
    }
    let mut contested = 0;
    while let Some(rival) = rivals.join_next().await {
        contested += rival.expect("a customer who was told everything");
    }
    assert_eq!(contested, orders);

    let database = session(&rig.database.url).await;
    let open = "SELECT count(*) FROM orders WHERE state = 'awaiting_payment'";
    eventually(async || number(&database, open).await == 0).await;
    until_quiet(&database).await;
    paying.kill().await;
    cancelling.kill().await;
    audit(&database).await;
    let ended = orders::Entity::find().all(&database).await.unwrap();
    let of_state = |state: &str| -> BTreeSet<i64> {
        ended.iter().filter(|order| order.state == state).map(|order| order.id).collect()
    };
    let (paid, cancelled) = (of_state("paid"), of_state("cancelled"));
    assert_eq!(paid.len() + cancelled.len(), orders, "orders that are neither paid nor cancelled");
    let released: BTreeSet<i64> = take::Entity::find()
        .all(&database)
        .await
        .unwrap()
        .into_iter()
        .filter(|take| take.state == "released")
        .map(|take| take.id)
        .collect();
    assert_eq!(released, cancelled, "the tokens of cancelled orders, and no others, are free");
    let by_cause =
        |cause: &str| ended.iter().filter(|order| order.cancel_cause.as_deref() == Some(cause)).count();
    let late = number(&database, "SELECT count(*) FROM refund WHERE cause = 'late_payment'").await;
    let seen = (paid.len(), by_cause("customer"), by_cause("timeout"), late);
    assert!(seen.0 > 0 && seen.1 > 0 && seen.2 > 0 && seen.3 > 0, "nobody was in the way: {seen:?}");
    end(rig, database).await;
}

/// Where one order is paid and where it is cancelled.
#[derive(Debug, Clone, Copy)]
struct Nodes {
    paying: SocketAddr,
    cancelling: SocketAddr,
}

/// A customer of F29 takes, pays and cancels; every third order is not cancelled, but due, when it is paid.
async fn contest(nodes: Nodes, sale: Arc<str>, token: String, numbers: StepBy<Range<usize>>) -> usize {
    let mut settling = JoinSet::new();
    let count = numbers.len();
    for number in numbers {
        let due = number % 3 == 0;
        let node = if due { nodes.cancelling } else { nodes.paying };
        let mut customer = Customer { wire: Wire::default(), token: token.clone(), user: 0, unknown: 0 };
        let take = post(&format!("/activities/{sale}/takes"), &token, &format!("take-{number}"), "");
        let order = customer.settles(node, &take, 201).await["order"].clone();
        let order_id = id(&order["id"]);
        let Some(paid) = customer.open_payment(node, order_id).await else { continue };
        if due {
            let due_at: Timestamp = order["payment_due_at"].as_str().unwrap().parse().unwrap();
            let until_due = (due_at - SystemClock.now()).to_std().unwrap_or_default();
            let nearly = Duration::from_millis(rand::random_range(0..1500));
            settling.spawn(async move {
                tokio::time::sleep((until_due + nearly).saturating_sub(Duration::from_millis(50))).await;
                customer.settles(nodes.paying, &signed(&paid), 200).await;
            });
        } else {
            let cancel = post(&format!("/orders/{order_id}/cancel"), &token, &format!("no-{order_id}"), "{}");
            let mut other = customer.elsewhere();
            let stagger = Duration::from_millis(rand::random_range(0..8));
            let cancelling = async {
                tokio::time::sleep(stagger).await;
                other.until_definite(nodes.cancelling, &cancel).await
            };
            let (_, cancelled) =
                tokio::join!(async { customer.settles(nodes.paying, &signed(&paid), 200).await }, cancelling);
            let code = cancelled.json()["code"].clone();
            let refused = cancelled.status == 409 && code == "order_not_cancellable";
            assert!(cancelled.status == 200 || refused, "{}", cancelled.body);
        }
    }
    settling.join_all().await;
    count
}

/// Goods and customers of a server.
struct Shop {
    address: SocketAddr,
    operator: Client,
    anybody: Client,
    /// The second costs more.
    goods: [String; 2],
    served: AtomicUsize,
    closed: AtomicBool,
}

/// Somebody who orders, and asks again until the answer is definite.
struct Customer {
    wire: Wire,
    token: String,
    user: i64,
    /// How often an outcome was unknown since they last told.
    unknown: usize,
}

/// What a customer was told of an order.
#[derive(Debug, Default)]
struct Told {
    order: i64,
    /// The payment whose notice was accepted.
    captured: Option<i64>,
    cancelled: bool,
    /// How often an outcome was unknown on the way.
    unknown: usize,
}

impl Shop {
    async fn open(launch: &Launch) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let anybody = Client::new(http, &format!("http://{}", launch.address));
        let operator = anybody.signed_in("olga", "operator").await;
        let mut goods = Vec::new();
        for price in [20_000, 30_000] {
            let new = json!({"name": "Mooncakes", "price_minor": price, "stock_total": PLENTY});
            goods.push(text(&operator.post("/admin/goods", new).await.is(201)["id"]));
        }
        Self {
            address: launch.address,
            operator,
            anybody,
            goods: goods.try_into().unwrap(),
            served: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        }
    }

    /// The id of a flash sale that runs.
    async fn flash_sale(&self, units: usize) -> String {
        let now = SystemClock.now();
        let offer = json!({
            "name": "Mooncakes at noon", "kind": "flash_sale", "sale_price_minor": 100, "stock_total": units,
            "take_limit_per_user": null, "starts_at": now, "ends_at": now + TimeDelta::hours(6),
        });
        let sale = text(&self.operator.post("/admin/activities", offer).await.is(201)["id"]);
        for event in ["submit", "approve", "start"] {
            self.operator.asks(&sale, event).await.is(200);
        }
        sale
    }

    /// A customer with a balance.
    async fn customer(&self, number: usize) -> Customer {
        let customer = self.anybody.signed_in(&format!("customer {number}"), "customer").await;
        let path = format!("/admin/users/{}/wallet-adjustments", customer.user_id);
        let credit = json!({"amount_minor": CREDIT_MINOR, "reason": "a gift"});
        self.operator.post(&path, credit).await.is(201);
        let user = customer.user_id.parse().unwrap();
        Customer { wire: Wire::default(), token: customer.token, user, unknown: 0 }
    }

    /// What order `number` of a customer is about: one or both goods, of the balance every other time.
    fn wish(&self, number: usize, coupon: Option<&str>) -> Value {
        let quantity = 1 + number % 3;
        let mut items =
            vec![json!({"goods_id": self.goods[1], "quantity": quantity, "unit_price_minor": 30_000})];
        if number % 2 == 1 {
            items.push(json!({"goods_id": self.goods[0], "quantity": 1, "unit_price_minor": 20_000}));
        }
        json!({
            "items": items, "shipping_fee_minor": 0, "order_amount_minor": quantity * 30_000 + number % 2 * 20_000,
            "coupon_id": coupon, "balance_minor": if number % 2 == 1 { BALANCE_MINOR } else { 0 },
            "address": {"consignee": "Alice", "phone": "123", "line": "1 Rabbit Hole"},
        })
    }

    /// What one unit of each of a wish's goods costs.
    fn prices(&self, number: usize) -> usize {
        30_000 + number % 2 * 20_000
    }

    /// Serves a customer until the shop closes.
    async fn serve(self: Arc<Self>, mut customer: Customer) -> Vec<Told> {
        let mut told = Vec::new();
        while !self.closed.load(Ordering::SeqCst) {
            told.push(customer.buy(&self, told.len()).await);
            self.served.fetch_add(1, Ordering::SeqCst);
        }
        told
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }

    async fn until_served(&self, least: usize) {
        eventually(async || self.served() >= least).await;
    }
}

impl Customer {
    /// The same customer on another connection.
    fn elsewhere(&self) -> Self {
        Self { wire: Wire::default(), token: self.token.clone(), unknown: 0, ..*self }
    }

    /// Orders, and then pays, cancels, both, or forgets it.
    async fn buy(&mut self, shop: &Shop, number: usize) -> Told {
        let coupon = if number.is_multiple_of(3) { Some(self.coupon(shop, number).await) } else { None };
        let wish = shop.wish(number, coupon.as_deref()).to_string();
        let request = post("/orders", &self.token, &format!("order-{number}"), &wish);
        // What a draft that came to nothing still holds, its own coupon, is no answer to a repeat.
        let made = self.until_definite(shop.address, &request).await;
        assert_eq!(made.status, 201, "{}", made.body);
        let order = id(&made.json()["id"]);
        let again = self.settles(shop.address, &request, 201).await;
        assert_eq!(id(&again["id"]), order, "two orders for one key");
        let mut told = Told { order, ..Told::default() };
        let fate = number % 5;
        if matches!(fate, 0 | 1 | 3) {
            let paid = self.open_payment(shop.address, order).await.expect("an order that waits for money");
            self.settles(shop.address, &signed(&paid), 200).await;
            told.captured = Some(id(&paid["payment_id"]));
        }
        if matches!(fate, 2 | 3) {
            let cancel = post(&format!("/orders/{order}/cancel"), &self.token, &format!("no-{order}"), "{}");
            let answer = self.until_definite(shop.address, &cancel).await;
            told.cancelled = answer.status == 200;
            let refused = answer.status == 409 && answer.json()["code"] == "order_not_cancellable";
            assert!(told.cancelled || fate == 3 && refused, "{}", answer.body);
        }
        told.unknown = std::mem::take(&mut self.unknown);
        told
    }

    /// The id of a new coupon of theirs.
    async fn coupon(&mut self, shop: &Shop, number: usize) -> String {
        let new = json!({
            "name": "Welcome", "face_value_minor": 1000, "min_spend_minor": 0,
            "valid_until": "2199-01-01T00:00:00Z",
        });
        let path = format!("/admin/users/{}/coupons", self.user);
        let key = format!("coupon-{}-{number}", self.user);
        text(
            &self
                .settles(shop.address, &post(&path, &shop.operator.token, &key, &new.to_string()), 201)
                .await["id"],
        )
    }

    /// What the sandbox would tell of a new payment of `order`; `None` if it is too late for one.
    async fn open_payment(&mut self, node: SocketAddr, order: i64) -> Option<Value> {
        let path = format!("/orders/{order}/payments");
        let open = post(&path, &self.token, &format!("pay-{order}"), r#"{"channel": "sandbox"}"#);
        let opened = self.until_definite(node, &open).await;
        if opened.status == 409 && opened.json()["code"] == "order_not_payable" {
            return None;
        }
        assert_eq!(opened.status, 201, "{}", opened.body);
        let payment = &opened.json()["payment"];
        let amount_minor = payment["amount_minor"].as_i64().unwrap();
        Some(notice(payment["id"].as_str().unwrap(), &format!("t-{order}"), amount_minor))
    }

    /// The body of the definite answer, which has this status.
    async fn settles(&mut self, node: SocketAddr, request: &str, status: u16) -> Value {
        let said = self.until_definite(node, request).await;
        assert_eq!(said.status, status, "{}", said.body);
        said.json()
    }

    /// Asks until the answer is definite.
    async fn until_definite(&mut self, node: SocketAddr, request: &str) -> Said {
        let begun = Instant::now();
        loop {
            let last = match self.wire.ask(node, request).await {
                Ok(said) if !is_open(&said) => return said,
                Ok(said) => said.body,
                Err(error) => error.to_string(),
            };
            assert!(begun.elapsed() < PATIENCE, "an outcome stays unknown: {last}");
            self.unknown += 1;
            tokio::time::sleep(Duration::from_millis(rand::random_range(10..50))).await;
        }
    }
}

/// Whether an answer leaves the outcome open.
fn is_open(said: &Said) -> bool {
    matches!(said.status, 408 | 429 | 500..)
        || said.status == 409 && said.json()["code"] == "idempotency_in_progress"
}

/// With prompt deadlines, and a sandbox that signs with a known secret.
fn prompt(launch: &Launch) -> Launch {
    let launch = launch.clone().with("PAYMENT__SANDBOX__SECRET", SECRET);
    launch.with("ORDER__DRAFT_TIMEOUT_S", 1).with("JOBS__SCHEDULES__ORDER_DEADLINES", "every 200ms")
}

fn signed(notice: &Value) -> String {
    let body = notice.to_string();
    notify(&signature(SECRET, SystemClock.now().timestamp(), &body), &body)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn id(value: &Value) -> i64 {
    value.as_str().and_then(|id| id.parse().ok()).unwrap_or_else(|| panic!("{value} is no id"))
}

async fn eventually(holds: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < PATIENCE, "what was promised did not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until every event was applied and no draft is left.
pub(super) async fn until_quiet(database: &DatabaseConnection) {
    const UNDONE: &str = "SELECT (SELECT count(*) FROM outbox WHERE sent_at IS NULL) \
        + (SELECT count(*) FROM queued_events) + (SELECT count(*) FROM parked_event) \
        + (SELECT count(*) FROM orders WHERE state = 'draft')";
    eventually(async || number(database, UNDONE).await == 0).await;
}

async fn end(rig: Rig, database: DatabaseConnection) {
    database.close().await.unwrap();
    rig.database.remove().await;
}

/// Each order that a customer was told of exists once, as it was told, and there is no other.
async fn holds(database: &DatabaseConnection, told: &[Told]) {
    audit(database).await;
    let orders: HashMap<i64, orders::Model> = orders::Entity::find()
        .all(database)
        .await
        .unwrap()
        .into_iter()
        .map(|order| (order.id, order))
        .collect();
    let refunds = refund::Entity::find().all(database).await.unwrap();
    let mut known = BTreeSet::new();
    for told in told {
        assert!(known.insert(told.order), "one order for two keys: {told:?}");
        let order = orders.get(&told.order).unwrap_or_else(|| panic!("lost: {told:?}"));
        assert!(!told.cancelled || order.state == "cancelled", "{told:?} {order:?}");
        match told.captured {
            Some(payment) if order.state == "paid" => {
                assert_eq!(order.paid_payment_id, Some(payment), "{told:?} {order:?}");
            }
            Some(payment) => {
                let returned = refunds.iter().filter(|refund| refund.payment_id == Some(payment)).count();
                assert_eq!(returned, 1, "{told:?} {order:?}");
            }
            None => assert!(
                ["awaiting_payment", "cancelled"].contains(&order.state.as_str()),
                "{told:?} {order:?}"
            ),
        }
    }
    let phantoms: Vec<&orders::Model> =
        orders.values().filter(|order| order.state != "invalid" && !known.contains(&order.id)).collect();
    assert!(phantoms.is_empty(), "nobody was told of {phantoms:?}");
}

/// What orders hold is held for them, and for nobody else; if no server runs and every event was applied.
async fn audit(database: &DatabaseConnection) {
    invariants::check_within(database, SLACK_MICROS).await;
    assert_eq!(number(database, "SELECT count(*) FROM dead_letter").await, 0, "events could not be applied");
    let orders = orders::Entity::find().all(database).await.unwrap();
    let live: Vec<&orders::Model> = orders.iter().filter(|order| is_live(order)).collect();
    timelines_have_no_gap(database, &orders).await;
    goods_are_held_by_live_orders(database, &live).await;
    coupons_are_held_by_live_orders(database, &live).await;
    balances_were_spent_on_live_orders(database, &orders).await;
    captures_pay_or_go_back(database, &orders).await;
}

fn is_live(order: &orders::Model) -> bool {
    !["draft", "invalid", "cancelled", "refunded"].contains(&order.state.as_str())
}

async fn timelines_have_no_gap(database: &DatabaseConnection, orders: &[orders::Model]) {
    let mut versions: HashMap<i64, Vec<i64>> = HashMap::new();
    let lines = order_event::Entity::find().order_by_asc(order_event::Column::Version);
    for line in lines.all(database).await.unwrap() {
        versions.entry(line.order_id).or_default().push(line.version);
    }
    for order in orders {
        let versions = versions.remove(&order.id).unwrap_or_default();
        assert!(order.state != "draft", "a draft is left: {order:?}");
        assert!(versions.iter().copied().eq(2..=order.version), "{versions:?} of {order:?}");
    }
    assert!(versions.is_empty(), "timelines of no order: {versions:?}");
}

async fn goods_are_held_by_live_orders(database: &DatabaseConnection, live: &[&orders::Model]) {
    let mut held: HashMap<String, i64> = HashMap::new();
    for order in live.iter().filter(|order| order.kind == "shop") {
        for line in serde_json::from_str::<Vec<Value>>(&order.items).unwrap() {
            *held.entry(text(&line["goods_id"])).or_default() += line["quantity"].as_i64().unwrap();
        }
    }
    for goods in goods::Entity::find().all(database).await.unwrap() {
        let sold = i64::from(goods.stock_total - goods.available);
        assert_eq!(sold, held.remove(&goods.id.to_string()).unwrap_or(0), "units of {goods:?} in orders");
    }
}

async fn coupons_are_held_by_live_orders(database: &DatabaseConnection, live: &[&orders::Model]) {
    let mut holders: HashMap<i64, &orders::Model> = HashMap::new();
    for order in live {
        let Some(coupon) = order.coupon_id else { continue };
        assert!(holders.insert(coupon, order).is_none(), "two orders with coupon {coupon}");
    }
    for coupon in user_coupon::Entity::find().all(database).await.unwrap() {
        let holder = holders.remove(&coupon.id);
        let state = match holder {
            None => "unused",
            Some(order) if order.state == "awaiting_payment" => "locked",
            Some(_) => "used",
        };
        assert_eq!(
            (coupon.state.as_str(), coupon.order_id),
            (state, holder.map(|order| order.id)),
            "{coupon:?}"
        );
    }
    assert!(holders.is_empty(), "orders with coupons that there are not: {holders:?}");
}

async fn balances_were_spent_on_live_orders(database: &DatabaseConnection, orders: &[orders::Model]) {
    let mut sums: BTreeMap<i64, i64> = BTreeMap::new();
    let mut credit: BTreeMap<i64, i64> = BTreeMap::new();
    let mut of_order: HashMap<i64, i64> = HashMap::new();
    for entry in wallet_entry::Entity::find().all(database).await.unwrap() {
        *sums.entry(entry.user_id).or_default() += entry.amount_minor;
        match entry.kind.as_str() {
            "adjustment" => *credit.entry(entry.user_id).or_default() += entry.amount_minor,
            _ => *of_order.entry(entry.reference_id).or_default() += entry.amount_minor,
        }
    }
    for order in orders {
        let spent = if is_live(order) { order.balance_paid_minor } else { 0 };
        assert_eq!(of_order.remove(&order.id).unwrap_or(0), -spent, "the balance part of {order:?}");
        *credit.entry(order.user_id).or_default() -= spent;
    }
    assert!(of_order.is_empty(), "entries of no order: {of_order:?}");
    let accounts = wallet_account::Entity::find().all(database).await.unwrap();
    let mut accounts: BTreeMap<i64, i64> =
        accounts.into_iter().map(|account| (account.user_id, account.balance_minor)).collect();
    assert!(accounts.values().all(|balance| *balance >= 0), "{accounts:?}");
    for user in users::Entity::find().all(database).await.unwrap() {
        let balance = accounts.remove(&user.id).unwrap_or(0);
        let (sum, left) = (sums.get(&user.id), credit.get(&user.id));
        assert_eq!((balance, balance), (sum.copied().unwrap_or(0), left.copied().unwrap_or(0)), "{user:?}");
    }
}

/// A capture pays its order or goes back, once; and what is paid was captured.
async fn captures_pay_or_go_back(database: &DatabaseConnection, orders: &[orders::Model]) {
    let orders: HashMap<i64, &orders::Model> = orders.iter().map(|order| (order.id, order)).collect();
    let refunds = refund::Entity::find().all(database).await.unwrap();
    let payments = payment::Entity::find().all(database).await.unwrap();
    for payment in &payments {
        let order = orders[&payment.order_id];
        let returns: Vec<&str> = refunds
            .iter()
            .filter(|refund| refund.payment_id == Some(payment.id))
            .map(|refund| refund.state.as_str())
            .collect();
        let pays = is_live(order) && order.paid_payment_id == Some(payment.id);
        let due: &[&str] = if payment.state == "succeeded" && !pays { &["succeeded"] } else { &[] };
        assert_eq!(returns, due, "refunds of {payment:?} of {order:?}");
        assert!(!pays || payment.state == "succeeded", "{payment:?} pays {order:?}");
    }
    for order in orders.values().filter(|order| order.state == "paid" && order.payable_minor > 0) {
        let paid_by = payments.iter().find(|payment| Some(payment.id) == order.paid_payment_id);
        assert_eq!(paid_by.map(|payment| payment.order_id), Some(order.id), "{order:?}");
    }
}
