//! Payments in the database. [`settle`] is the one way a payment learns what its gateway says.

use std::collections::{BTreeSet, HashMap, HashSet};

use entities::{payment, payment_record};
use sea_orm::sea_query::{Expr, ExprTrait, Query, SelectStatement};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, Condition, ConnectionTrait, DbBackend, EntityTrait, FromQueryResult,
    IntoActiveModel, QueryFilter, QueryOrder, QuerySelect,
};

use super::events::{PaymentFailed, PaymentSucceeded};
use super::machine::{Contradiction, Report, Said, check, decide, recheck_at};
use super::model::{Payment, PaymentRecord, PaymentState};
use crate::db::bulk::{self, Column, Rows, Script, statement};
use crate::db::{DbFault, Tx, fit};
use crate::ids::{Ids, OrderId, PaymentId, PaymentRecordId};
use crate::messaging::outbox::{self, Events};
use crate::money::Currency;
use crate::ports::clock::{Timestamp, from_micros, to_micros};
use crate::ports::payment_gateway::{Capture, Channel};

/// Notes what gateways say, and announces what is new; answers each in its place with the payment as it is now. What is not
/// believed is recorded beside what is, each time that it is another thing.
pub async fn settle(
    tx: &Tx,
    ids: &Ids,
    now: Timestamp,
    reports: &[Report],
) -> Result<Vec<Result<Payment, Contradiction>>, DbFault> {
    let mut payments = lock(tx, reports.iter().map(|report| report.payment).collect()).await?;
    let mut taken = transactions(tx, reports).await?;
    let mut events = Events::at(now);
    let mut changed: BTreeSet<PaymentId> = BTreeSet::new();
    let mut records: Vec<payment_record::Model> = Vec::new();
    let mut answers = Vec::with_capacity(reports.len());
    for report in reports {
        let Some(payment) = payments.get_mut(&report.payment) else {
            answers.push(Err(Contradiction::Unknown));
            continue;
        };
        let capture = report.said.capture();
        let owner = capture.and_then(|capture| taken.get(&transaction(report.channel, capture)));
        if let Err(contradiction) = check(payment, report, owner.copied()) {
            let record = record(ids.next()?, payment, report, Some(&contradiction), now);
            let mut news = !records.iter().any(|known| says_the_same(known, &record));
            news = news && !is_recorded(tx, &record).await?;
            records.extend(news.then_some(record));
            answers.push(Err(contradiction));
            continue;
        }
        if learn(payment, &report.said, now) {
            changed.insert(payment.id);
            match &report.said {
                Said::Captured(capture) => {
                    taken.insert(transaction(report.channel, capture), payment.id);
                    events.push(ids.next()?, &succeeded(payment, capture))?;
                }
                Said::Failed { reason } => events.push(ids.next()?, &failed(payment, reason, now))?,
                Said::Closed | Said::Unknown { .. } | Said::GivenUp { .. } | Said::Untrue(_) => {}
            }
            records.push(record(ids.next()?, payment, report, None, now));
        }
        answers.push(Ok(payment.clone()));
    }
    if !changed.is_empty() {
        let changed: Vec<&Payment> = changed.iter().filter_map(|id| payments.get(id)).collect();
        let mut script = Script::new();
        update_all(tx.get_database_backend(), &changed, now, &mut script);
        if !events.is_empty() {
            outbox::add(ids.next()?, events, now, &mut script);
        }
        script.execute(tx).await?;
    }
    if !records.is_empty() {
        let records = records.into_iter().map(IntoActiveModel::into_active_model);
        payment_record::Entity::insert_many(records).exec_without_returning(tx).await?;
    }
    Ok(answers)
}

/// Whether what is said is news; if so `payment` knows it now.
fn learn(payment: &mut Payment, said: &Said, now: Timestamp) -> bool {
    let Some(state) = decide(payment.state, said) else {
        // The question that was left open when it was closed has its answer.
        let answered = payment.recheck_at.is_some() && recheck_at(said, now).is_none();
        payment.recheck_at = payment.recheck_at.filter(|_| !answered);
        return answered;
    };
    payment.recheck_at = recheck_at(said, now);
    payment.failure = None;
    match said {
        Said::Captured(capture) => {
            payment.transaction_id = Some(capture.transaction_id.clone());
            payment.payer = capture.payer.as_ref().map(|payer| fit(payer, 128));
        }
        Said::Failed { reason } => payment.failure = Some(fit(reason, 256)),
        Said::Closed | Said::Unknown { .. } | Said::GivenUp { .. } | Said::Untrue(_) => {}
    }
    (payment.state, payment.settled_at) = (state, Some(now));
    true
}

fn succeeded(payment: &Payment, capture: &Capture) -> PaymentSucceeded {
    PaymentSucceeded {
        payment_id: payment.id,
        order_id: payment.order_id,
        user_id: payment.user_id,
        channel: payment.channel.word().to_owned(),
        transaction_id: capture.transaction_id.clone(),
        amount_minor: payment.amount_minor,
        currency: payment.currency,
        paid_at: capture.paid_at,
    }
}

fn failed(payment: &Payment, reason: &str, now: Timestamp) -> PaymentFailed {
    PaymentFailed {
        payment_id: payment.id,
        order_id: payment.order_id,
        user_id: payment.user_id,
        channel: payment.channel.word().to_owned(),
        amount_minor: payment.amount_minor,
        currency: payment.currency,
        reason: reason.to_owned(),
        at: now,
    }
}

fn record(
    id: PaymentRecordId,
    payment: &Payment,
    report: &Report,
    contradiction: Option<&Contradiction>,
    now: Timestamp,
) -> payment_record::Model {
    let captured = report.said.capture().map(|capture| fit(&capture.transaction_id, 64));
    payment_record::Model {
        id: id.0,
        payment_id: payment.id.0,
        channel: report.channel.word().to_owned(),
        kind: report.source.word().to_owned(),
        transaction_id: captured.or_else(|| payment.transaction_id.clone()),
        outcome: payment.state.word().to_owned(),
        body: report.body.clone(),
        headers: report.headers.clone(),
        contradiction: contradiction.map(|contradiction| fit(&contradiction.to_string(), 256)),
        received_at: to_micros(now),
    }
}

/// Whether what is not believed is no news: gateways repeat themselves for hours, each time in other bytes.
async fn is_recorded(tx: &Tx, record: &payment_record::Model) -> Result<bool, DbFault> {
    let known = payment_record::Entity::find()
        .filter(payment_record::Column::PaymentId.eq(record.payment_id))
        .filter(payment_record::Column::Contradiction.is_not_null())
        .all(tx)
        .await?;
    Ok(known.iter().any(|known| says_the_same(known, record)))
}

fn says_the_same(one: &payment_record::Model, other: &payment_record::Model) -> bool {
    (one.payment_id, &one.kind, &one.transaction_id, &one.contradiction)
        == (other.payment_id, &other.kind, &other.transaction_id, &other.contradiction)
}

async fn lock(tx: &Tx, ids: BTreeSet<PaymentId>) -> Result<HashMap<PaymentId, Payment>, DbFault> {
    let backend = tx.get_database_backend();
    let sql = bulk::select_for_update(backend, "payment", "id", "paid");
    let rows = Rows::new().column("paid", Column::Big(ids.into_iter().map(|id| id.0).collect()));
    let found = tx.query_all_raw(rows.statement(backend, &sql, [])).await?;
    found
        .iter()
        .map(|row| {
            let payment = Payment::try_from(payment::Model::from_query_result(row, "")?)?;
            Ok((payment.id, payment))
        })
        .collect()
}

/// What a capture is known by among all.
fn transaction(channel: Channel, capture: &Capture) -> (String, String) {
    (channel.word().to_owned(), capture.transaction_id.clone())
}

/// The payments that the captures among `reports` belong to already.
async fn transactions(tx: &Tx, reports: &[Report]) -> Result<HashMap<(String, String), PaymentId>, DbFault> {
    let captured =
        reports.iter().filter_map(|report| Some(transaction(report.channel, report.said.capture()?)));
    let (channels, transactions): (Vec<String>, Vec<String>) = captured.unzip();
    if channels.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = Rows::new()
        .column("channel", Column::Text(channels))
        .column("transaction_id", Column::Text(transactions));
    let sql = "SELECT p.channel, p.transaction_id, p.id FROM {rows} \
        JOIN payment p ON p.channel = r.channel AND p.transaction_id = r.transaction_id";
    let found = tx.query_all_raw(rows.statement(tx.get_database_backend(), sql, [])).await?;
    found
        .iter()
        .map(|row| {
            Ok((
                (row.try_get("", "channel")?, row.try_get("", "transaction_id")?),
                PaymentId(row.try_get("", "id")?),
            ))
        })
        .collect()
}

fn update_all(backend: DbBackend, changed: &[&Payment], now: Timestamp, script: &mut Script) {
    const SET: &str = "state = r.to_state, transaction_id = NULLIF(r.gateway_transaction, ''), payer = NULLIF(r.who, ''), \
        failure = NULLIF(r.why, ''), recheck_at = NULLIF(r.recheck, 0), \
        version = version + 1, settled_at = r.settled, updated_at = ?";
    let text = |text: &dyn Fn(&Payment) -> String| {
        Column::Text(changed.iter().map(|payment| text(payment)).collect())
    };
    let time = |time: &dyn Fn(&Payment) -> Option<Timestamp>| {
        Column::Big(changed.iter().map(|payment| time(payment).map_or(0, to_micros)).collect())
    };
    let rows = Rows::new()
        .column("paid", Column::Big(changed.iter().map(|payment| payment.id.0).collect()))
        .column("to_state", text(&|payment| payment.state.word().to_owned()))
        .column("gateway_transaction", text(&|payment| payment.transaction_id.clone().unwrap_or_default()))
        .column("who", text(&|payment| payment.payer.clone().unwrap_or_default()))
        .column("why", text(&|payment| payment.failure.clone().unwrap_or_default()))
        .column("recheck", time(&|payment| payment.recheck_at))
        .column("settled", time(&|payment| payment.settled_at));
    let template = bulk::update(backend, "payment", SET, "id = r.paid");
    script.push_rows(template, [to_micros(now).into()], rows);
}

/// Writes a new payment.
pub async fn insert(tx: &Tx, payment: &Payment) -> Result<(), DbFault> {
    let row = payment::ActiveModel {
        id: Set(payment.id.0),
        order_id: Set(payment.order_id.0),
        user_id: Set(payment.user_id.0),
        channel: Set(payment.channel.word().to_owned()),
        state: Set(payment.state.word().to_owned()),
        amount_minor: Set(payment.amount_minor),
        currency: Set(payment.currency.to_string()),
        transaction_id: Set(None),
        payer: Set(None),
        mode: Set(payment.wish.mode.map(|mode| mode.word().to_owned())),
        wished_payer: Set(payment.wish.payer.clone()),
        failure: Set(None),
        version: Set(1),
        created_at: Set(to_micros(payment.created_at)),
        updated_at: Set(to_micros(payment.created_at)),
        settled_at: Set(None),
        recheck_at: Set(None),
    };
    payment::Entity::insert(row).exec_without_returning(tx).await?;
    Ok(())
}

/// The payments of an order, of `channel` if one is named, for which a gateway may still capture money, or has: a subquery
/// of one on `orders`.
pub fn open(channel: Option<Channel>) -> SelectStatement {
    use entities::orders;
    use payment::Column::{Channel as ThroughChannel, OrderId, State};
    let states = [PaymentState::Pending, PaymentState::Succeeded].map(PaymentState::word);
    let mut open = Query::select();
    open.expr(Expr::val(1))
        .from(payment::Entity)
        .and_where(OrderId.into_expr().equals((orders::Entity, orders::Column::Id)))
        .and_where(State.is_in(states))
        .and_where_option(channel.map(|channel| ThroughChannel.eq(channel.word())));
    open
}

/// Which of `orders` a gateway may still capture money for, or has: such an order is not cancelled before that is clear.
pub async fn open_of(tx: &Tx, orders: BTreeSet<OrderId>) -> Result<HashSet<OrderId>, DbFault> {
    if orders.is_empty() {
        return Ok(HashSet::new());
    }
    let rows = Rows::new().column("id", Column::Big(orders.into_iter().map(|id| id.0).collect()));
    let sql = "SELECT p.order_id FROM {rows} JOIN payment p ON p.order_id = r.id \
        WHERE p.state IN ('pending', 'succeeded')";
    let found = tx.query_all_raw(rows.statement(tx.get_database_backend(), sql, [])).await?;
    found.iter().map(|row| Ok(OrderId(row.try_get("", "order_id")?))).collect()
}

/// A payment, as far as its order needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Captured {
    pub payment: PaymentId,
    pub order: OrderId,
    pub channel: Channel,
    /// Whether there is a capture, or only the attempt.
    pub succeeded: bool,
    pub amount_minor: i64,
    pub currency: Currency,
    /// Whether it goes back already.
    pub refunded: bool,
}

/// What is known of `payments`.
pub async fn captured(
    tx: &Tx,
    payments: BTreeSet<PaymentId>,
) -> Result<HashMap<PaymentId, Captured>, DbFault> {
    if payments.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = Rows::new().column("id", Column::Big(payments.into_iter().map(|id| id.0).collect()));
    let sql = "SELECT p.id, p.order_id, p.channel, p.state, p.amount_minor, p.currency, \
        (SELECT f.id FROM refund f WHERE f.payment_id = p.id) AS refund_id \
        FROM {rows} JOIN payment p ON p.id = r.id";
    let found = tx.query_all_raw(rows.statement(tx.get_database_backend(), sql, [])).await?;
    found
        .iter()
        .map(|row| {
            let payment = PaymentId(row.try_get("", "id")?);
            let text = |column| row.try_get::<String>("", column);
            let captured = Captured {
                payment,
                order: OrderId(row.try_get("", "order_id")?),
                channel: text("channel")?.parse()?,
                succeeded: text("state")? == PaymentState::Succeeded.word(),
                amount_minor: row.try_get("", "amount_minor")?,
                currency: text("currency")?.parse().map_err(|_| DbFault::Missing("a known currency"))?,
                refunded: row.try_get::<Option<i64>>("", "refund_id")?.is_some(),
            };
            Ok((payment, captured))
        })
        .collect()
}

/// A payment.
pub async fn find(connection: &impl ConnectionTrait, id: PaymentId) -> Result<Option<Payment>, DbFault> {
    payment::Entity::find_by_id(id.0).one(connection).await?.map(Payment::try_from).transpose()
}

/// Those of `ids` that exist.
pub async fn find_all(
    connection: &impl ConnectionTrait,
    ids: Vec<PaymentId>,
) -> Result<Vec<Payment>, DbFault> {
    let rows = Rows::new().column("id", Column::Big(ids.into_iter().map(|id| id.0).collect()));
    let sql = "SELECT p.* FROM payment AS p WHERE p.id IN (SELECT r.id FROM {rows})";
    let found = connection.query_all_raw(rows.statement(connection.get_database_backend(), sql, [])).await?;
    found.iter().map(|row| Payment::try_from(payment::Model::from_query_result(row, "")?)).collect()
}

/// Captured payments opened before `before`, the newest first, each with the gateway's time of its capture, once that is
/// logged.
pub async fn captured_before(
    connection: &impl ConnectionTrait,
    before: PaymentId,
    limit: u64,
) -> Result<Vec<(Payment, Option<Timestamp>)>, DbFault> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let sql = statement(
        connection.get_database_backend(),
        "SELECT p.*, l.paid_at AS paid_at FROM payment AS p LEFT JOIN payment_log AS l ON l.payment_id = p.id \
         WHERE p.state = 'succeeded' AND p.id < ? ORDER BY p.id DESC LIMIT ?",
        [before.0.into(), limit.into()],
    );
    let found = connection.query_all_raw(sql).await?;
    found
        .iter()
        .map(|row| {
            let payment = Payment::try_from(payment::Model::from_query_result(row, "")?)?;
            Ok((payment, row.try_get::<Option<i64>>("", "paid_at")?.map(from_micros)))
        })
        .collect()
}

/// Which payments to list.
#[derive(Debug, Clone, Copy)]
pub struct Listing {
    pub order: Option<OrderId>,
    pub state: Option<PaymentState>,
    pub channel: Option<Channel>,
    /// Only older ones.
    pub before: Option<PaymentId>,
    pub limit: u64,
}

/// A page of payments, newest first.
pub async fn page(connection: &impl ConnectionTrait, listing: Listing) -> Result<Vec<Payment>, DbFault> {
    use payment::Column;
    let conditions = Condition::all()
        .add_option(listing.order.map(|order| Column::OrderId.eq(order.0)))
        .add_option(listing.state.map(|state| Column::State.eq(state.word())))
        .add_option(listing.channel.map(|channel| Column::Channel.eq(channel.word())))
        .add_option(listing.before.map(|before| Column::Id.lt(before.0)));
    let query = payment::Entity::find().filter(conditions).order_by_desc(Column::Id);
    let rows = query.limit(listing.limit).all(connection).await?;
    rows.into_iter().map(Payment::try_from).collect()
}

/// What its gateway said of a payment behind `after`, oldest first.
pub async fn records(
    connection: &impl ConnectionTrait,
    payment: PaymentId,
    after: PaymentRecordId,
    limit: u64,
) -> Result<Vec<PaymentRecord>, DbFault> {
    let rows = payment_record::Entity::find()
        .filter(payment_record::Column::PaymentId.eq(payment.0))
        .filter(payment_record::Column::Id.gt(after.0))
        .limit(limit)
        .order_by_asc(payment_record::Column::Id)
        .all(connection)
        .await?;
    rows.into_iter().map(PaymentRecord::try_from).collect()
}

/// An order's payments, oldest first.
pub async fn of_order(connection: &impl ConnectionTrait, order: OrderId) -> Result<Vec<Payment>, DbFault> {
    let rows = payment::Entity::find()
        .filter(payment::Column::OrderId.eq(order.0))
        .order_by_asc(payment::Column::Id)
        .all(connection)
        .await?;
    rows.into_iter().map(Payment::try_from).collect()
}

/// Why a gateway has to be asked about a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsettled {
    /// It has been pending since before then.
    PendingSince(Timestamp),
    /// It ended here while its gateway did not know it, and that was to be looked at again by then.
    RecheckBy(Timestamp),
}

impl Unsettled {
    fn condition(self) -> Condition {
        use payment::Column::{CreatedAt, RecheckAt, State};
        let all = Condition::all();
        match self {
            Self::PendingSince(at) => {
                all.add(State.eq(PaymentState::Pending.word())).add(CreatedAt.lt(to_micros(at)))
            }
            Self::RecheckBy(at) => all.add(RecheckAt.lte(to_micros(at))),
        }
    }
}

/// Payments through `channel` that have to be asked about, behind `after`.
pub async fn unsettled(
    connection: &impl ConnectionTrait,
    why: Unsettled,
    channel: Channel,
    after: PaymentId,
    limit: u64,
) -> Result<Vec<Payment>, DbFault> {
    let rows = payment::Entity::find()
        .filter(why.condition())
        .filter(payment::Column::Channel.eq(channel.word()))
        .filter(payment::Column::Id.gt(after.0))
        .order_by_asc(payment::Column::Id)
        .limit(limit)
        .all(connection)
        .await?;
    rows.into_iter().map(Payment::try_from).collect()
}
