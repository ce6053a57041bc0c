//! Orders in the database. [`advance`] is the one way an order changes, for many orders in one transaction.
//!
//! It locks the rows in the order of their ids, decides by what they say then, and writes what follows together: the
//! orders, fenced by their versions, a line of each timeline, refunds, and the events. Whoever calls it, the API, a
//! payment, the deadline, a repair, brings the transaction, so that what made them call commits with it.

use std::collections::{BTreeSet, HashMap, HashSet};

use chrono::TimeDelta;
use entities::{order_event, orders};
use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, DatabaseConnection, DbBackend, EntityTrait, FromQueryResult,
    QueryFilter, QueryOrder, QuerySelect,
};
use serde::Serialize;
use serde_json::json;

use super::events::{Cancelled, Created, Finished, Paid, Refunded, Shipped};
use super::machine::{Command, Decision, Refusal, State, decide};
use super::model::{CancelCause, Cause, Order, TimelineEntry};
use crate::db::bulk::{self, Column, Rows, Script};
use crate::db::{DbFault, Tx};
use crate::ids::{Ids, OrderId, PaymentId, UserId};
use crate::messaging::outbox::{self, Events};
use crate::money::Currency;
use crate::payment::refund::{self, NewRefund};
use crate::payment::store as payments;
use crate::ports::clock::{Timestamp, from_micros, to_micros};
use crate::ports::payment_gateway::Channel;

/// What one order is asked to do, and by whom.
#[derive(Debug, Clone)]
pub struct Step {
    pub order: OrderId,
    pub command: Command,
    pub cause: Cause,
    /// In words, for the timeline and for a refund.
    pub reason: Option<String>,
    /// Of a payment, what was captured, as whoever asks was told.
    pub captured: Option<(i64, Currency)>,
}

impl Step {
    pub fn new(order: OrderId, command: Command, cause: Cause) -> Self {
        Self { order, command, cause, reason: None, captured: None }
    }
}

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advanced {
    /// The order changed; this is it now.
    Changed(Order),
    /// It was so already.
    AlreadyDone(Order),
}

impl Advanced {
    pub fn into_order(self) -> Order {
        match self {
            Self::Changed(order) | Self::AlreadyDone(order) => order,
        }
    }
}

/// Why a step was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StepRefusal {
    #[error("there is no such order")]
    NotFound,
    #[error("the order is {0}: {1}")]
    Refused(State, Refusal),
}

/// What the shop has decided about its orders.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Whether an operator has to agree before an order's money goes back.
    pub refund_approval: bool,
    /// How long a customer has to pay.
    pub payment_timeout: TimeDelta,
}

/// Takes `steps` in their order; answers each in its place.
pub async fn advance(
    tx: &Tx,
    ids: &Ids,
    now: Timestamp,
    policy: Policy,
    steps: &[Step],
) -> Result<Vec<Result<Advanced, StepRefusal>>, DbFault> {
    let mut desk = Desk::open(tx, ids, now, policy, steps).await?;
    let mut answers = Vec::with_capacity(steps.len());
    for step in steps {
        answers.push(desk.take(step)?);
    }
    desk.write(tx).await?;
    Ok(answers)
}

/// The orders of one transaction while they are decided about.
struct Desk<'a> {
    ids: &'a Ids,
    now: Timestamp,
    policy: Policy,
    orders: HashMap<OrderId, Order>,
    /// Orders that a gateway may still capture money for.
    open: HashSet<OrderId>,
    /// What is known of payments that may have to go back.
    payments: HashMap<PaymentId, payments::Captured>,
    /// Versions as they were read.
    known: HashMap<OrderId, i64>,
    timeline: Vec<Entry>,
    refunds: Vec<NewRefund>,
    events: Events,
}

struct Entry {
    order: OrderId,
    version: i64,
    event_type: &'static str,
    cause: Cause,
    data: String,
}

impl<'a> Desk<'a> {
    async fn open(
        tx: &Tx,
        ids: &'a Ids,
        now: Timestamp,
        policy: Policy,
        steps: &[Step],
    ) -> Result<Self, DbFault> {
        let wanted: BTreeSet<OrderId> = steps.iter().map(|step| step.order).collect();
        let orders = lock(tx, wanted).await?;
        let ending = steps.iter().filter(|step| matches!(step.command, Command::Cancel | Command::Expire));
        let open = payments::open_of(tx, ending.map(|step| step.order).collect()).await?;
        let captured = steps.iter().filter_map(|step| match step.command {
            Command::Pay(payment) => Some(payment),
            Command::Refund => orders.get(&step.order).and_then(|order| order.paid_by),
            _ => None,
        });
        let payments = payments::captured(tx, captured.collect()).await?;
        let known = orders.iter().map(|(&id, order)| (id, order.version)).collect();
        let (timeline, refunds, events) = (Vec::new(), Vec::new(), Events::at(now));
        Ok(Self { ids, now, policy, orders, open, payments, known, timeline, refunds, events })
    }

    fn take(&mut self, step: &Step) -> Result<Result<Advanced, StepRefusal>, DbFault> {
        let Some(order) = self.orders.get(&step.order) else { return Ok(Err(StepRefusal::NotFound)) };
        if let Command::Pay(payment) = step.command {
            match self.payments.get(&payment).filter(|payment| is_capture(payment, step)) {
                None => return Ok(Err(StepRefusal::Refused(order.state, Refusal::NotItsPayment))),
                // Money that goes back pays nothing, whoever tells of it again.
                Some(captured) if captured.refunded => return Ok(Ok(Advanced::AlreadyDone(order.clone()))),
                Some(_) => {}
            }
        }
        let status = order.status(self.open.contains(&step.order));
        let decision = match decide(&status, step.command, self.now) {
            Ok(decision) => decision,
            Err(refusal) => return Ok(Err(StepRefusal::Refused(order.state, refusal))),
        };
        let mut order = order.clone();
        match decision {
            Decision::AlreadyDone => return Ok(Ok(Advanced::AlreadyDone(order))),
            Decision::ReturnPayment(payment) => {
                let captured =
                    self.payments.get_mut(&payment).ok_or(DbFault::Missing("a captured payment"))?;
                captured.refunded = true;
                let refund = NewRefund::of_surplus(self.ids.next()?, &order, captured);
                order.version += 1;
                order.updated_at = self.now;
                self.note(
                    &order,
                    step,
                    "refund_requested",
                    json!({ "refund_id": refund.id, "payment_id": payment }),
                );
                self.refunds.push(refund);
            }
            Decision::Move(State::Paid) if !self.is_enough(&order, step.command) => {
                return Ok(Err(StepRefusal::Refused(order.state, Refusal::NotItsPayment)));
            }
            Decision::Move(state) => self.move_to(&mut order, state, step)?,
        }
        self.orders.insert(order.id, order.clone());
        Ok(Ok(Advanced::Changed(order)))
    }

    /// Whether what `command` pays, if it pays, is what `order` costs.
    fn is_enough(&self, order: &Order, command: Command) -> bool {
        let Command::Pay(payment) = command else { return true };
        let captured = self.payments.get(&payment);
        captured.map(|captured| (captured.amount_minor, captured.currency))
            == Some((order.amounts.payable_minor, order.currency))
    }

    fn move_to(&mut self, order: &mut Order, state: State, step: &Step) -> Result<(), DbFault> {
        let from = std::mem::replace(&mut order.state, state);
        order.version += 1;
        order.updated_at = self.now;
        let reason = step.reason.as_deref();
        match (from, state) {
            (State::Draft, State::AwaitingPayment | State::Paid) => {
                order.due_at = self.now + self.policy.payment_timeout;
                self.tell(&Created::new(order, order.due_at))?;
                self.note(order, step, "created", json!({}));
                if state == State::Paid {
                    order.version += 1;
                    self.tell(&Paid::new(order, None))?;
                    self.note(order, step, "paid", json!({ "payment_id": null }));
                }
            }
            (_, State::Paid | State::Shipped | State::Finished) if from == State::Refunding => {
                order.refund_from = None;
                self.note(order, step, "refund_refused", json!({ "reason": reason }));
            }
            (_, State::Paid) => {
                if let Command::Pay(payment) = step.command {
                    order.paid_by = Some(payment);
                }
                self.tell(&Paid::new(order, order.paid_by))?;
                self.note(order, step, "paid", json!({ "payment_id": order.paid_by }));
            }
            (_, State::Cancelled | State::Invalid) => {
                let cause =
                    if from == State::Draft { CancelCause::Failed } else { step.cause.of_cancellation() };
                order.cancel_cause = Some(cause);
                self.tell(&Cancelled::new(order, cause))?;
                self.note(order, step, state.word(), json!({ "cause": cause, "reason": reason }));
            }
            (_, State::Shipped) => {
                self.tell(&Shipped::new(order))?;
                self.note(order, step, "shipped", json!({}));
            }
            (_, State::Finished) => {
                self.tell(&Finished::new(order))?;
                self.note(order, step, "finished", json!({}));
            }
            (_, State::Refunding) => {
                order.refund_from = Some(from);
                let captured = order.paid_by.and_then(|payment| self.payments.get_mut(&payment));
                let captured = captured.map(|captured| {
                    captured.refunded = true;
                    *captured
                });
                let reason = step.reason.clone().unwrap_or_default();
                let approval = self.policy.refund_approval;
                let refund =
                    NewRefund::of_order(self.ids.next()?, order, captured.as_ref(), reason, approval);
                self.note(
                    order,
                    step,
                    "refund_requested",
                    json!({ "refund_id": refund.id, "reason": refund.reason }),
                );
                self.refunds.push(refund);
            }
            (_, State::Refunded) => {
                let Cause::Refund(refund) = step.cause else { return Err(DbFault::Missing("the refund")) };
                let shipped = matches!(order.refund_from, Some(State::Shipped | State::Finished));
                self.tell(&Refunded::new(order, refund, shipped))?;
                self.note(order, step, "refunded", json!({ "refund_id": refund }));
            }
            (_, State::Draft | State::AwaitingPayment) => return Err(DbFault::Missing("a way back")),
        }
        Ok(())
    }

    fn tell(&mut self, event: &impl crate::messaging::catalogue::Event) -> Result<(), DbFault> {
        Ok(self.events.push(self.ids.next()?, event)?)
    }

    fn note(&mut self, order: &Order, step: &Step, event_type: &'static str, data: impl Serialize) {
        let data = serde_json::to_string(&data).unwrap_or_default();
        self.timeline.push(Entry {
            order: order.id,
            version: order.version,
            event_type,
            cause: step.cause,
            data,
        });
    }

    async fn write(mut self, tx: &Tx) -> Result<(), DbFault> {
        let mut changed: Vec<&Order> =
            self.orders.values().filter(|order| self.known.get(&order.id) != Some(&order.version)).collect();
        if changed.is_empty() {
            return Ok(());
        }
        changed.sort_unstable_by_key(|order| order.id);
        let mut script = Script::new();
        update_all(tx.get_database_backend(), &changed, &self.known, self.now, &mut script);
        insert_timeline(&self.timeline, self.now, &mut script);
        for refund in &self.refunds {
            self.events.push(self.ids.next()?, &refund.requested(self.now))?;
        }
        refund::insert_all(&self.refunds, self.now, &mut script);
        let mut rows = changed.len() + self.timeline.len() + self.refunds.len();
        if !self.events.is_empty() {
            outbox::add(self.ids.next()?, self.events, self.now, &mut script);
            rows += 1;
        }
        // The rows are locked, so nothing can be missing but what somebody changed past the lock.
        if script.execute(tx).await? == rows as u64 {
            Ok(())
        } else {
            Err(DbFault::Missing("an order as it was read"))
        }
    }
}

/// Whether `payment` is a capture for the order of `step`, and of what was told.
fn is_capture(payment: &payments::Captured, step: &Step) -> bool {
    payment.succeeded
        && payment.order == step.order
        && step.captured.is_none_or(|told| told == (payment.amount_minor, payment.currency))
}

/// Reads `ids`, locked for this transaction.
async fn lock(tx: &Tx, ids: BTreeSet<OrderId>) -> Result<HashMap<OrderId, Order>, DbFault> {
    let backend = tx.get_database_backend();
    let sql = bulk::select_for_update(backend, "orders", "id", "order_id");
    let rows = Rows::new().column("order_id", Column::Big(ids.into_iter().map(|id| id.0).collect()));
    let found = tx.query_all_raw(rows.statement(backend, &sql, [])).await?;
    found
        .iter()
        .map(|row| {
            let order = Order::try_from(orders::Model::from_query_result(row, "")?)?;
            Ok((order.id, order))
        })
        .collect()
}

/// An order, locked for this transaction.
pub async fn lock_one(tx: &Tx, id: OrderId) -> Result<Option<Order>, DbFault> {
    Ok(lock(tx, BTreeSet::from([id])).await?.remove(&id))
}

/// Whether `id` is a draft; if so it stays one until `tx` ends.
pub async fn hold_draft(tx: &Tx, id: OrderId) -> Result<bool, DbFault> {
    let found = orders::Entity::find_by_id(id.0).lock_shared().one(tx).await?;
    Ok(found.is_some_and(|order| order.state == State::Draft.word()))
}

/// Notes where an order goes, as a change of its own; `order` must be locked.
pub async fn set_address(
    tx: &Tx,
    order: &mut Order,
    address: String,
    cause: Cause,
    now: Timestamp,
) -> Result<(), DbFault> {
    order.version += 1;
    (order.address, order.updated_at) = (Some(address.clone()), now);
    orders::Entity::update_many()
        .col_expr(orders::Column::Address, Expr::value(address))
        .col_expr(orders::Column::Version, Expr::value(order.version))
        .col_expr(orders::Column::UpdatedAt, Expr::value(to_micros(now)))
        .filter(orders::Column::Id.eq(order.id.0))
        .exec(tx)
        .await?;
    let (version, data) = (order.version, "{}".to_owned());
    let entry = Entry { order: order.id, version, event_type: "address_set", cause, data };
    let mut script = Script::new();
    insert_timeline(&[entry], now, &mut script);
    script.execute(tx).await?;
    Ok(())
}

/// Everything about an order that may change after it was made.
fn update_all(
    backend: DbBackend,
    changed: &[&Order],
    known: &HashMap<OrderId, i64>,
    now: Timestamp,
    script: &mut Script,
) {
    const SET: &str = "state = r.to_state, version = r.to_version, paid_payment_id = NULLIF(r.paid_by, 0), \
        refund_from = NULLIF(r.undone, ''), cancel_cause = NULLIF(r.cause, ''), due_at = r.due, updated_at = ?";
    let text = |word: fn(&Order) -> &'static str| {
        Column::Text(changed.iter().map(|order| word(order).to_owned()).collect())
    };
    let big =
        |number: &dyn Fn(&Order) -> i64| Column::Big(changed.iter().map(|order| number(order)).collect());
    let rows = Rows::new()
        .column("order_id", big(&|order| order.id.0))
        .column("known_version", big(&|order| known.get(&order.id).copied().unwrap_or(0)))
        .column("to_version", big(&|order| order.version))
        .column("to_state", text(|order| order.state.word()))
        .column("paid_by", big(&|order| order.paid_by.map_or(0, |payment| payment.0)))
        .column("undone", text(|order| order.refund_from.map_or("", State::word)))
        .column("due", big(&|order| to_micros(order.due_at)))
        .column("cause", text(|order| order.cancel_cause.map_or("", CancelCause::word)));
    let template = bulk::update(backend, "orders", SET, "id = r.order_id AND version = r.known_version");
    script.push_rows(template, [to_micros(now).into()], rows);
}

fn insert_timeline(entries: &[Entry], now: Timestamp, script: &mut Script) {
    let text = |text: &dyn Fn(&Entry) -> String| Column::Text(entries.iter().map(text).collect());
    let rows = Rows::new()
        .column("order_id", Column::Big(entries.iter().map(|entry| entry.order.0).collect()))
        .column("version", Column::Big(entries.iter().map(|entry| entry.version).collect()))
        .column("event_type", text(&|entry| entry.event_type.to_owned()))
        .column("cause", text(&|entry| entry.cause.to_string()))
        .column("data", text(&|entry| entry.data.clone()));
    script.push_rows(
        "INSERT INTO order_event (order_id, version, event_type, cause, data, created_at) \
         SELECT r.order_id, r.version, r.event_type, r.cause, r.data, ? FROM {rows}",
        [to_micros(now).into()],
        rows,
    );
}

/// An order, whoever's it is.
pub async fn find(connection: &impl ConnectionTrait, id: OrderId) -> Result<Option<Order>, DbFault> {
    orders::Entity::find_by_id(id.0).one(connection).await?.map(Order::try_from).transpose()
}

/// Which orders to list, newest first.
#[derive(Debug, Clone, Copy)]
pub struct Listing {
    pub user: Option<UserId>,
    /// Only what customers may see.
    pub visible: bool,
    pub state: Option<State>,
    pub before: Option<OrderId>,
    pub limit: u64,
}

/// A page of orders.
pub async fn page(connection: &DatabaseConnection, listing: Listing) -> Result<Vec<Order>, DbFault> {
    use orders::Column;
    let hidden = [State::Draft, State::Invalid].map(State::word);
    let conditions = Condition::all()
        .add_option(listing.user.map(|user| Column::UserId.eq(user.0)))
        .add_option(listing.visible.then(|| Column::State.is_not_in(hidden)))
        .add_option(listing.state.map(|state| Column::State.eq(state.word())))
        .add_option(listing.before.map(|before| Column::Id.lt(before.0)));
    let query = orders::Entity::find().filter(conditions).order_by_desc(Column::Id);
    let rows = query.limit(listing.limit).all(connection).await?;
    rows.into_iter().map(Order::try_from).collect()
}

/// Orders that time may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    Drafts,
    /// Unpaid, and no gateway may have taken money for them.
    Unpaid,
    /// Unpaid, with a payment, through this channel if one is named, that is pending, or captured without the order's
    /// knowing.
    Open(Option<Channel>),
}

/// Orders whose time is up, behind `after`, the longest overdue first.
pub async fn due(
    connection: &DatabaseConnection,
    due: Due,
    now: Timestamp,
    after: Overdue,
    limit: u64,
) -> Result<Vec<Overdue>, DbFault> {
    use orders::Column::{DueAt, Id};
    let behind = DueAt.gt(after.due_at).or(DueAt.eq(after.due_at).and(Id.gt(after.order.0)));
    let (state, payments) = match due {
        Due::Drafts => (State::Draft, None),
        Due::Unpaid => (State::AwaitingPayment, Some(Expr::exists(payments::open(None)).not())),
        Due::Open(channel) => (State::AwaitingPayment, Some(Expr::exists(payments::open(channel)))),
    };
    let found = orders::Entity::find()
        .select_only()
        .column(DueAt)
        .column(Id)
        .filter(orders::Column::State.eq(state.word()))
        .filter(DueAt.lte(to_micros(now)))
        .filter(behind)
        .filter(Condition::all().add_option(payments))
        .order_by_asc(DueAt)
        .order_by_asc(Id)
        .limit(limit)
        .into_tuple::<(i64, i64)>()
        .all(connection)
        .await?;
    Ok(found.into_iter().map(|(due_at, id)| Overdue { due_at, order: OrderId(id) }).collect())
}

/// An order whose time is up, and since when, in microseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overdue {
    pub due_at: i64,
    pub order: OrderId,
}

impl Overdue {
    /// Before all others.
    pub const FIRST: Self = Self { due_at: i64::MIN, order: OrderId(0) };
}

/// What made the versions of an order behind `after`, oldest first; its first line is the order itself.
pub async fn timeline(
    connection: &DatabaseConnection,
    order: &Order,
    after: i64,
    limit: u64,
) -> Result<Vec<TimelineEntry>, DbFault> {
    let rows = order_event::Entity::find()
        .filter(order_event::Column::OrderId.eq(order.id.0))
        .filter(order_event::Column::Version.gt(after))
        .order_by_asc(order_event::Column::Version)
        .limit(limit)
        .all(connection)
        .await?;
    let made = TimelineEntry {
        at: order.created_at,
        version: 1,
        event_type: if order.kind == super::model::Kind::Shop { "drafted" } else { "created" }.to_owned(),
        cause: Cause::Customer(order.user_id).to_string(),
        data: json!({}),
    };
    let later = rows.into_iter().map(|row| {
        Ok(TimelineEntry {
            at: from_micros(row.created_at),
            version: row.version,
            event_type: row.event_type,
            cause: row.cause,
            data: serde_json::from_str(&row.data)?,
        })
    });
    let first = (after < made.version).then_some(Ok(made));
    first.into_iter().chain(later).take(usize::try_from(limit).unwrap_or(usize::MAX)).collect()
}

/// Adds new orders to `script`, as they are.
pub fn insert_all(new: &[&Order], script: &mut Script) {
    let big = |number: &dyn Fn(&Order) -> i64| Column::Big(new.iter().map(|order| number(order)).collect());
    let text = |text: &dyn Fn(&Order) -> String| Column::Text(new.iter().map(|order| text(order)).collect());
    let rows = Rows::new()
        .column("id", big(&|order| order.id.0))
        .column("user_id", big(&|order| order.user_id.0))
        .column("kind", text(&|order| order.kind.word().to_owned()))
        .column("state", text(&|order| order.state.word().to_owned()))
        .column("activity_id", big(&|order| order.activity_id.map_or(0, |id| id.0)))
        .column("items", text(&|order| order.items.clone()))
        .column("address", text(&|order| order.address.clone().unwrap_or_default()))
        .column("goods", big(&|order| order.amounts.goods_amount_minor))
        .column("shipping", big(&|order| order.amounts.shipping_fee_minor))
        .column("total", big(&|order| order.amounts.order_amount_minor))
        .column("coupon_id", big(&|order| order.coupon_id.map_or(0, |id| id.0)))
        .column("coupon", big(&|order| order.amounts.coupon_deduction_minor))
        .column("balance", big(&|order| order.amounts.balance_paid_minor))
        .column("payable", big(&|order| order.amounts.payable_minor))
        .column("currency", text(&|order| order.currency.to_string()))
        .column("due_at", big(&|order| to_micros(order.due_at)))
        .column("created_at", big(&|order| to_micros(order.created_at)));
    script.push_rows(
        "INSERT INTO orders (id, user_id, kind, state, version, activity_id, items, address, goods_amount_minor, \
         shipping_fee_minor, order_amount_minor, coupon_id, coupon_deduction_minor, balance_paid_minor, payable_minor, \
         currency, due_at, created_at, updated_at) \
         SELECT r.id, r.user_id, r.kind, r.state, 1, NULLIF(r.activity_id, 0), r.items, NULLIF(r.address, ''), r.goods, \
         r.shipping, r.total, NULLIF(r.coupon_id, 0), r.coupon, r.balance, r.payable, r.currency, r.due_at, \
         r.created_at, r.created_at FROM {rows}",
        [],
        rows,
    );
}
