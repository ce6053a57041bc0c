//! The driver that is never killed: a crowd that takes, the ledger of what it was told, and the verdict against the
//! database (RELIABILITY B1).
//!
//! Each request has a key of its own. An unknown outcome (timeout, reset, 5xx) is repeated with the same key until it is
//! definite, as a good client does. In the end no accepted answer may be **lost**, no row may be a **phantom** that
//! nobody was told of, nothing may be **duplicated**.

#![expect(clippy::print_stderr, reason = "a test that passes tells what it saw")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use entities::{outbox, take, token_block};
use sea_orm::{ColumnTrait, DatabaseConnection, EntityTrait, QueryFilter, QueryOrder};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tombola::ports::clock::{Clock, SystemClock, Timestamp, to_micros};

use super::process::{Launch, PATIENCE};
use super::wire::{Said, Wire, post};

/// How long a crowd may take to learn every outcome.
const LONGEST_SALE: Duration = Duration::from_secs(120);

/// A running activity and those who want to take of it.
#[derive(Debug, Clone)]
pub(crate) struct Sale {
    pub(crate) activity: i64,
    pub(crate) stock: usize,
    limit: Option<usize>,
    tokens: Arc<Vec<String>>,
    keys: &'static str,
}

/// Somebody who runs activities.
pub(crate) struct Operator {
    address: SocketAddr,
    wire: Wire,
    token: String,
}

/// Customers who all take at once.
pub(crate) struct Crowd {
    shared: Arc<Shared>,
    customers: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    sale: Sale,
    nodes: Vec<SocketAddr>,
    demand: AtomicUsize,
    next: AtomicUsize,
    ledger: Mutex<Ledger>,
}

/// What everybody was told.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    entries: HashMap<usize, Entry>,
    /// How often an outcome was unknown, by reason.
    pub(crate) unknown: BTreeMap<String, usize>,
    first_sold_out: Option<Timestamp>,
}

/// One key: how often it was sent in vain, and every definite answer.
#[derive(Debug, Default)]
struct Entry {
    unknown: usize,
    answers: Vec<Answer>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Taken { take: i64, token: i32, replayed: bool },
    SoldOut,
    Refused(String),
}

/// The ledger held against the database.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) accepted: usize,
    pub(crate) sold_out: usize,
    pub(crate) refused: BTreeMap<String, usize>,
    pub(crate) unknown: BTreeMap<String, usize>,
    /// Unknown at first; the repeat told that it had happened.
    pub(crate) recovered: usize,
    pub(crate) lost: usize,
    pub(crate) phantom: usize,
    pub(crate) duplicated: usize,
    broken: Vec<String>,
}

impl Sale {
    /// A give-away of `stock` units that runs, and 50 customers.
    pub(crate) async fn open(launch: &Launch, stock: usize, limit: Option<usize>) -> Self {
        let activity = Operator::at(launch.address).await.open(stock, limit).await;
        let tokens = Arc::new(launch.customers(50));
        Self { activity: activity.parse().unwrap(), stock, limit, tokens, keys: "request" }
    }

    /// The same sale for a crowd with other keys.
    pub(crate) fn under(&self, keys: &'static str) -> Self {
        Self { keys, ..self.clone() }
    }

    /// The same sale for a crowd without keys: a take that it is not told of stays a phantom, and one that is made
    /// again because its commit was thought to have failed is a second one.
    pub(crate) fn without_keys(&self) -> Self {
        self.under("")
    }

    /// The request with this number: the same customer and the same key each time.
    pub(crate) fn request(&self, number: usize) -> String {
        let token = &self.tokens[number % self.tokens.len()];
        if self.keys.is_empty() {
            return post(&format!("/activities/{}/takes", self.activity), token, "", "");
        }
        post(&format!("/activities/{}/takes", self.activity), token, &format!("{}-{number}", self.keys), "")
    }
}

impl Operator {
    /// Logs in.
    pub(crate) async fn at(address: SocketAddr) -> Self {
        let mut operator = Self { address, wire: Wire::default(), token: String::new() };
        let roles = json!({"provider": "dev", "name": "olga", "roles": ["operator"]});
        let session = operator.ask("/sessions", &roles).await.unwrap();
        operator.token = session["access_token"].as_str().unwrap().to_owned();
        operator
    }

    /// The id of a new give-away of `stock` units that runs.
    pub(crate) async fn open(&mut self, stock: usize, limit: Option<usize>) -> String {
        let now = SystemClock.now();
        let offer = json!({
            "name": "The last mooncakes", "kind": "giveaway", "stock_total": stock, "take_limit_per_user": limit,
            "starts_at": now, "ends_at": now + TimeDelta::hours(6),
        });
        let activity = self.ask("/admin/activities", &offer).await.unwrap();
        let activity = activity["id"].as_str().unwrap();
        for event in ["submit", "approve", "start"] {
            let path = format!("/admin/activities/{activity}/transitions");
            self.ask(&path, &json!({"event": event})).await.unwrap();
        }
        activity.to_owned()
    }

    /// Adds one unit to an activity's stock.
    pub(crate) async fn add_one(&mut self, activity: &str) -> Result<Value, String> {
        let path = format!("/admin/activities/{activity}/stock-adjustments");
        self.ask(&path, &json!({"delta": 1, "reason": "found one"})).await
    }

    async fn ask(&mut self, path: &str, body: &Value) -> Result<Value, String> {
        let request = post(path, &self.token, "", &body.to_string());
        let said = self.wire.ask(self.address, &request).await.map_err(|error| error.to_string())?;
        if said.status < 300 { Ok(said.json()) } else { Err(format!("{path}: {}", said.body)) }
    }
}

impl Crowd {
    /// `customers` at a time send `demand` requests to the nodes in turns.
    pub(crate) fn rush(sale: &Sale, nodes: &[SocketAddr], customers: usize, demand: usize) -> Self {
        Self::rush_again(sale, nodes, customers, demand, Ledger::default())
    }

    /// As [`Crowd::rush`], going on with a ledger: what it knows already is only repeated if it is not definite.
    pub(crate) fn rush_again(
        sale: &Sale,
        nodes: &[SocketAddr],
        customers: usize,
        demand: usize,
        ledger: Ledger,
    ) -> Self {
        let shared = Arc::new(Shared {
            sale: sale.clone(),
            nodes: nodes.to_vec(),
            demand: AtomicUsize::new(demand),
            next: AtomicUsize::new(0),
            ledger: Mutex::new(ledger),
        });
        let customers = (0..customers).map(|customer| shared.clone().shop(customer)).collect();
        Self { shared, customers }
    }

    /// Waits until so many takes were accepted.
    pub(crate) async fn until_taken(&self, least: usize) {
        self.until(format!("{least} takes"), |ledger| ledger.taken().count() >= least).await;
    }

    /// Waits until so many outcomes were unknown.
    pub(crate) async fn until_troubled(&self, least: usize) {
        self.until(format!("{least} unknown outcomes"), |ledger| ledger.troubles() >= least).await;
    }

    /// How many outcomes were unknown so far.
    pub(crate) fn troubles(&self) -> usize {
        self.shared.ledger().troubles()
    }

    async fn until(&self, what: String, reached: impl Fn(&Ledger) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !reached(&self.shared.ledger()) {
            assert!(
                Instant::now() < deadline,
                "{what} did not come about: {:?}",
                self.shared.ledger().unknown
            );
            assert!(!self.is_over(), "the sale was over before {what}: {}", self.shared.ledger().summary());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Whether every outcome is known.
    pub(crate) fn is_over(&self) -> bool {
        self.shared.ledger().definite() >= self.shared.demand()
    }

    /// The takes accepted so far.
    pub(crate) fn taken(&self) -> Vec<i64> {
        self.shared.ledger().taken().map(|(take, _)| take).collect()
    }

    /// Lets nobody begin another request: what was sent is the demand.
    pub(crate) fn close(&self) {
        // Far behind every demand: whoever counts on from here goes home.
        let sent = self.shared.next.fetch_add(usize::MAX / 2, Ordering::SeqCst);
        self.shared.demand.fetch_min(sent, Ordering::SeqCst);
    }

    /// Waits until every outcome is known, then asks some of the questions again, if they have keys.
    pub(crate) async fn finish(mut self) -> Ledger {
        let over =
            async { while self.customers.join_next().await.is_some_and(|customer| customer.is_ok()) {} };
        let in_time = tokio::time::timeout(LONGEST_SALE, over).await;
        let left = self.shared.demand() - self.shared.ledger().definite();
        assert!(
            in_time.is_ok() && left == 0,
            "{left} outcomes stayed unknown: {:?}",
            self.shared.ledger().unknown
        );
        let again = if self.shared.sale.keys.is_empty() { 0 } else { self.shared.demand() };
        let mut wire = Wire::default();
        for number in (0..again).step_by((again / 50).max(1)) {
            self.shared.settle(&mut wire, number, 0).await;
        }
        std::mem::take(&mut *self.shared.ledger())
    }
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    fn demand(&self) -> usize {
        self.demand.load(Ordering::SeqCst)
    }

    async fn shop(self: Arc<Self>, customer: usize) {
        let mut wire = Wire::default();
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.demand() {
                return;
            }
            if self.ledger().entries.get(&number).is_none_or(|entry| entry.answers.is_empty()) {
                self.settle(&mut wire, number, customer).await;
            }
        }
    }

    /// Sends request `number` until its outcome is definite, to another node after each failure.
    async fn settle(&self, wire: &mut Wire, number: usize, first_node: usize) {
        let request = self.sale.request(number);
        for node in first_node.. {
            let said = wire.ask(self.nodes[node % self.nodes.len()], &request).await;
            let outcome = said.map_err(|error| error.kind().to_string()).and_then(definite);
            if self.ledger().enter(number, outcome) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(rand::random_range(10..50))).await;
        }
    }
}

/// The answer, or why it leaves the outcome open.
fn definite(said: Said) -> Result<Answer, String> {
    let body = said.json();
    let code = body["code"].as_str().unwrap_or("no code").to_owned();
    match said.status {
        201 => {
            let take = &body["take"];
            let id = take["id"].as_str().and_then(|id| id.parse().ok());
            let token = take["token_no"].as_i64().and_then(|token| i32::try_from(token).ok());
            match (id, token) {
                (Some(take), Some(token)) => Ok(Answer::Taken { take, token, replayed: said.replayed }),
                _ => panic!("not a take: {}", said.body),
            }
        }
        409 if code == "sold_out" => Ok(Answer::SoldOut),
        // 408: it slept while the request arrived.
        status @ (408 | 429 | 500..) => Err(format!("{status} {code}")),
        409 if code == "idempotency_in_progress" => Err(code),
        _ => Ok(Answer::Refused(code)),
    }
}

impl Ledger {
    /// Enters an outcome; answers whether it is definite.
    fn enter(&mut self, number: usize, outcome: Result<Answer, String>) -> bool {
        let entry = self.entries.entry(number).or_default();
        match outcome {
            Ok(answer) => {
                if answer == Answer::SoldOut {
                    self.first_sold_out.get_or_insert_with(|| SystemClock.now());
                }
                entry.answers.push(answer);
                true
            }
            Err(reason) => {
                entry.unknown += 1;
                *self.unknown.entry(reason).or_default() += 1;
                false
            }
        }
    }

    /// Enters that request `number` was sent and nobody waited for the answer.
    pub(crate) fn abandon(&mut self, number: usize) {
        self.enter(number, Err("abandoned".to_owned()));
    }

    fn troubles(&self) -> usize {
        self.unknown.values().sum()
    }

    fn definite(&self) -> usize {
        self.entries.values().filter(|entry| !entry.answers.is_empty()).count()
    }

    fn taken(&self) -> impl Iterator<Item = (i64, i32)> {
        self.entries.values().filter_map(|entry| match entry.answers.first() {
            Some(Answer::Taken { take, token, .. }) => Some((*take, *token)),
            _ => None,
        })
    }

    /// Holds the ledger against the database: nothing lost, phantom or duplicated, and every invariant holds.
    pub(crate) async fn judge(&self, sale: &Sale, database: &DatabaseConnection) -> Verdict {
        let mut verdict = self.summary();
        let takes = take::Entity::find()
            .filter(take::Column::ActivityId.eq(sale.activity))
            .all(database)
            .await
            .unwrap();
        let live: Vec<&take::Model> = takes.iter().filter(|take| take.live_token.is_some()).collect();
        self.compare(&live, &mut verdict);

        let mut expect = |holds: bool, what: String| {
            if !holds {
                verdict.broken.push(what);
            }
        };
        let stock = i32::try_from(sale.stock).unwrap();
        let tokens: HashSet<i32> = live.iter().filter_map(|take| take.live_token).collect();
        expect(tokens.len() == live.len(), "I1: a token is alive twice".to_owned());
        expect(
            tokens.iter().all(|token| (1..=stock).contains(token)),
            "I1: a token outside the stock".to_owned(),
        );
        let wanted = self.entries.len() - self.summary().refused.values().sum::<usize>();
        let due = sale.stock.min(wanted);
        expect(
            live.len() == due,
            format!("I2: {} sold of {} with a demand of {wanted}", live.len(), sale.stock),
        );
        let premature = live
            .iter()
            .filter(|take| self.first_sold_out.is_some_and(|told| take.taken_at > to_micros(told)));
        let premature = premature.count();
        expect(premature == 0, format!("I2: {premature} taken after somebody was told that all was sold"));
        if let Some(limit) = sale.limit {
            let mut by_user: HashMap<i64, usize> = HashMap::new();
            live.iter().for_each(|take| *by_user.entry(take.user_id).or_default() += 1);
            expect(by_user.values().all(|takes| *takes <= limit), "I5: a user over the limit".to_owned());
        }

        let blocks = token_block::Entity::find()
            .filter(token_block::Column::ActivityId.eq(sale.activity))
            .order_by_asc(token_block::Column::FirstToken)
            .all(database);
        let mut next = 1;
        for block in blocks.await.unwrap() {
            let range = block.first_token..=block.last_token;
            let sold = tokens.iter().filter(|token| range.contains(token)).count();
            expect(block.first_token == next, format!("blocks: {range:?} does not follow {next}"));
            expect(
                block.sold == i32::try_from(sold).unwrap(),
                format!("blocks: {range:?} counts {} of {sold}", block.sold),
            );
            next = block.last_token + 1;
        }
        expect(next == stock + 1, format!("blocks: they end before {next}"));

        let mut announced: HashMap<i64, usize> = HashMap::new();
        for row in outbox::Entity::find().all(database).await.unwrap() {
            let events: Vec<Value> = serde_json::from_str(&row.events).unwrap();
            for event in events.iter().filter(|event| event["type"] == "activity.taken.v1") {
                let take = event["data"]["take_id"].as_str().and_then(|id| id.parse().ok());
                *announced.entry(take.expect("an event of a take")).or_default() += 1;
            }
        }
        let once = takes.iter().all(|take| announced.get(&take.id) == Some(&1));
        expect(once && announced.len() == takes.len(), "outbox: not one event for each take".to_owned());
        verdict
    }

    fn summary(&self) -> Verdict {
        let mut verdict = Verdict { unknown: self.unknown.clone(), ..Verdict::default() };
        for entry in self.entries.values() {
            match entry.answers.first() {
                Some(Answer::Taken { replayed, .. }) => {
                    verdict.accepted += 1;
                    verdict.recovered += usize::from(*replayed && entry.unknown > 0);
                }
                Some(Answer::SoldOut) => verdict.sold_out += 1,
                Some(Answer::Refused(code)) => {
                    if code != "take_limit_reached" {
                        verdict.broken.push(format!("refused: {code}"));
                    }
                    *verdict.refused.entry(code.clone()).or_default() += 1;
                }
                None => verdict.broken.push("an outcome stayed unknown".to_owned()),
            }
        }
        verdict
    }

    fn compare(&self, live: &[&take::Model], verdict: &mut Verdict) {
        let rows: HashMap<i64, &take::Model> = live.iter().map(|take| (take.id, *take)).collect();
        let mut known: HashSet<i64> = HashSet::new();
        for entry in self.entries.values() {
            let told: HashSet<(i64, i32)> = entry
                .answers
                .iter()
                .filter_map(|answer| match answer {
                    Answer::Taken { take, token, .. } => Some((*take, *token)),
                    _ => None,
                })
                .collect();
            verdict.duplicated += told.len().saturating_sub(1);
            let fickle = !told.is_empty()
                && entry.answers.iter().any(|answer| !matches!(answer, Answer::Taken { .. }));
            verdict.duplicated += usize::from(fickle);
            for (take, token) in told {
                verdict.duplicated += usize::from(!known.insert(take));
                verdict.lost += usize::from(rows.get(&take).is_none_or(|row| row.live_token != Some(token)));
            }
        }
        verdict.phantom = live.iter().filter(|take| !known.contains(&take.id)).count();
        let tokens: HashSet<Option<i32>> = live.iter().map(|take| take.live_token).collect();
        verdict.duplicated += live.len() - tokens.len();
    }
}

impl Verdict {
    /// Fails the test unless every promise was kept.
    pub(crate) fn stands(&self) -> &Self {
        eprintln!("{self}");
        assert_eq!(
            (self.lost, self.phantom, self.duplicated),
            (0, 0, 0),
            "lost, phantom, duplicated; {self:?}"
        );
        assert!(self.broken.is_empty(), "{:#?}", self.broken);
        self
    }

    /// Fails the test unless the fault made outcomes unknown that turned out to have happened.
    pub(crate) fn recovered_some(&self) -> &Self {
        assert!(self.recovered > 0, "no outcome was recovered: the fault was never seen");
        self
    }

    /// Fails the test if anybody was answered 500.
    pub(crate) fn without_errors(&self) -> &Self {
        assert!(!self.unknown.keys().any(|reason| reason.starts_with("500")), "{:?}", self.unknown);
        self
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { accepted, sold_out, refused, unknown, recovered, lost, phantom, duplicated, .. } = self;
        let tries: usize = unknown.values().sum();
        write!(
            f,
            "accepted {accepted}, sold out {sold_out}, refused {refused:?}, unknown {tries} {unknown:?}, \
             recovered {recovered}, lost {lost}, phantom {phantom}, duplicated {duplicated}"
        )
    }
}
