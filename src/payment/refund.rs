//! Refunds: money goes back once per payment, and once per order, whatever happens twice.
//!
//! A refund is born in the transaction of the order's change that calls for it. What is approved is performed at the
//! gateway by the consumer group of [`groups`](super::groups), which names the refund, so that the gateway recognises a
//! repeat; then the order is told, and what it held goes back by its events.

use entities::refund;
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder,
    QuerySelect,
};

use super::events::{RefundApproved, RefundRefused, RefundRequested};
use super::machine::refund_origins;
use super::model::{Refund, RefundCause, RefundState};
use super::store::Captured;
use crate::db::bulk::{Column, Rows, Script};
use crate::db::{DbFault, Tx};
use crate::ids::{Ids, OrderId, PaymentId, RefundId, UserId};
use crate::messaging::outbox;
use crate::money::Currency;
use crate::order::machine::State;
use crate::order::model::Order;
use crate::ports::clock::{Timestamp, to_micros};
use crate::ports::payment_gateway::Channel;

/// A refund that an order's change brings about.
#[derive(Debug, Clone)]
pub struct NewRefund {
    pub id: RefundId,
    pub order: OrderId,
    pub user: UserId,
    pub payment: Option<(PaymentId, Channel)>,
    /// Whether it undoes the order, or only returns a payment too many.
    pub undoes_order: bool,
    pub amount_minor: i64,
    pub balance_minor: i64,
    pub currency: Currency,
    pub state: RefundState,
    pub cause: RefundCause,
    pub reason: String,
}

impl NewRefund {
    /// Of a payment that came late or twice: the money does not belong to us, so nobody has to agree.
    pub fn of_surplus(id: RefundId, order: &Order, captured: &Captured) -> Self {
        let late = matches!(order.state, State::Draft | State::Invalid | State::Cancelled);
        let (cause, reason) = match late {
            true => (RefundCause::LatePayment, "the payment came after the order had ended"),
            false => (RefundCause::DoublePayment, "the order was paid already"),
        };
        Self {
            id,
            order: order.id,
            user: order.user_id,
            payment: Some((captured.payment, captured.channel)),
            undoes_order: false,
            amount_minor: captured.amount_minor,
            balance_minor: 0,
            currency: order.currency,
            state: RefundState::Approved,
            cause,
            reason: reason.to_owned(),
        }
    }

    /// Of a whole order.
    pub fn of_order(
        id: RefundId,
        order: &Order,
        captured: Option<&Captured>,
        reason: String,
        needs_approval: bool,
    ) -> Self {
        Self {
            id,
            order: order.id,
            user: order.user_id,
            payment: captured.map(|captured| (captured.payment, captured.channel)),
            undoes_order: true,
            amount_minor: captured.map_or(0, |captured| captured.amount_minor),
            balance_minor: order.amounts.balance_paid_minor,
            currency: order.currency,
            state: if needs_approval { RefundState::Requested } else { RefundState::Approved },
            cause: RefundCause::Order,
            reason,
        }
    }

    /// What is told of it.
    pub fn requested(&self, now: Timestamp) -> RefundRequested {
        RefundRequested {
            refund_id: self.id,
            order_id: self.order,
            user_id: self.user,
            payment_id: self.payment.map(|(payment, _)| payment),
            amount_minor: self.amount_minor,
            balance_minor: self.balance_minor,
            currency: self.currency,
            cause: self.cause,
            reason: self.reason.clone(),
            awaits_approval: self.state == RefundState::Requested,
            at: now,
        }
    }
}

/// Adds new refunds to `script`; one too many of a payment or an order fails it as a duplicate.
pub fn insert_all(refunds: &[NewRefund], now: Timestamp, script: &mut Script) {
    if refunds.is_empty() {
        return;
    }
    let big = |number: &dyn Fn(&NewRefund) -> i64| Column::Big(refunds.iter().map(number).collect());
    let text = |text: &dyn Fn(&NewRefund) -> &str| {
        Column::Text(refunds.iter().map(|refund| text(refund).to_owned()).collect())
    };
    let rows = Rows::new()
        .column("id", big(&|refund| refund.id.0))
        .column("order_id", big(&|refund| refund.order.0))
        .column("payment_id", big(&|refund| refund.payment.map_or(0, |(payment, _)| payment.0)))
        .column("undone", big(&|refund| if refund.undoes_order { refund.order.0 } else { 0 }))
        .column("user_id", big(&|refund| refund.user.0))
        .column("channel", text(&|refund| refund.payment.map_or("", |(_, channel)| channel.word())))
        .column("amount", big(&|refund| refund.amount_minor))
        .column("balance", big(&|refund| refund.balance_minor))
        .column("currency", text(&|refund| refund.currency.as_str()))
        .column("state", text(&|refund| refund.state.word()))
        .column("cause", text(&|refund| refund.cause.word()))
        .column("reason", text(&|refund| &refund.reason));
    script.push_rows(
        "INSERT INTO refund (id, order_id, payment_id, refunded_order_id, user_id, channel, amount_minor, balance_minor, \
         currency, state, cause, reason, version, created_at, updated_at) \
         SELECT r.id, r.order_id, NULLIF(r.payment_id, 0), NULLIF(r.undone, 0), r.user_id, NULLIF(r.channel, ''), \
         r.amount, r.balance, r.currency, r.state, r.cause, r.reason, 1, ?, ? FROM {rows}",
        [to_micros(now).into(), to_micros(now).into()],
        rows,
    );
}

/// The refund with this id.
pub async fn find(connection: &impl ConnectionTrait, id: RefundId) -> Result<Option<Refund>, DbFault> {
    refund::Entity::find_by_id(id.0).one(connection).await?.map(Refund::try_from).transpose()
}

/// The refund with this id, locked for this transaction.
pub async fn lock(tx: &Tx, id: RefundId) -> Result<Option<Refund>, DbFault> {
    refund::Entity::find_by_id(id.0).lock_exclusive().one(tx).await?.map(Refund::try_from).transpose()
}

/// Keeps how an operator settled a refund by hand.
pub async fn note(tx: &Tx, id: RefundId, note: &str) -> Result<(), DbFault> {
    use sea_orm::sea_query::Expr;
    let noting = refund::Entity::update_many().col_expr(refund::Column::Note, Expr::value(note));
    noting.filter(refund::Column::Id.eq(id.0)).exec(tx).await?;
    Ok(())
}

/// Those of `ids` that exist.
pub async fn find_all(connection: &impl ConnectionTrait, ids: Vec<RefundId>) -> Result<Vec<Refund>, DbFault> {
    let rows = Rows::new().column("id", Column::Big(ids.into_iter().map(|id| id.0).collect()));
    let sql = "SELECT f.* FROM refund AS f WHERE f.id IN (SELECT r.id FROM {rows})";
    let found = connection.query_all_raw(rows.statement(connection.get_database_backend(), sql, [])).await?;
    found.iter().map(|row| Refund::try_from(refund::Model::from_query_result(row, "")?)).collect()
}

/// The refunds of an order, oldest first.
pub async fn all_of(connection: &impl ConnectionTrait, order: OrderId) -> Result<Vec<Refund>, DbFault> {
    let rows = refund::Entity::find()
        .filter(refund::Column::OrderId.eq(order.0))
        .order_by_asc(refund::Column::Id)
        .all(connection)
        .await?;
    rows.into_iter().map(Refund::try_from).collect()
}

/// Which refunds to list.
#[derive(Debug, Clone, Copy)]
pub struct Listing {
    pub order: Option<OrderId>,
    pub state: Option<RefundState>,
    /// Only older ones.
    pub before: Option<RefundId>,
    pub limit: u64,
}

impl Listing {
    /// Those of any order in `state`.
    pub fn in_state(state: RefundState, before: Option<RefundId>, limit: u64) -> Self {
        Self { order: None, state: Some(state), before, limit }
    }
}

/// A page of refunds, newest first.
pub async fn page(connection: &impl ConnectionTrait, listing: Listing) -> Result<Vec<Refund>, DbFault> {
    use refund::Column;
    let conditions = Condition::all()
        .add_option(listing.order.map(|order| Column::OrderId.eq(order.0)))
        .add_option(listing.state.map(|state| Column::State.eq(state.word())))
        .add_option(listing.before.map(|before| Column::Id.lt(before.0)));
    let query = refund::Entity::find().filter(conditions).order_by_desc(Column::Id);
    let rows = query.limit(listing.limit).all(connection).await?;
    rows.into_iter().map(Refund::try_from).collect()
}

/// Moves a refund on; `false` if it is in no state that leads to `to`.
pub async fn advance(
    tx: &Tx,
    id: RefundId,
    to: RefundState,
    by: Option<UserId>,
    failure: Option<&str>,
    now: Timestamp,
) -> Result<bool, DbFault> {
    use sea_orm::sea_query::{Expr, ExprTrait};
    let settled = matches!(to, RefundState::Succeeded | RefundState::Rejected);
    let mut update = refund::Entity::update_many()
        .col_expr(refund::Column::State, to.word().into())
        .col_expr(refund::Column::Failure, failure.map(str::to_owned).into())
        .col_expr(refund::Column::Version, Expr::col(refund::Column::Version).add(1))
        .col_expr(refund::Column::UpdatedAt, to_micros(now).into())
        .filter(refund::Column::Id.eq(id.0))
        .filter(refund::Column::State.is_in(refund_origins(to).iter().map(|state| state.word())));
    if settled {
        update = update.col_expr(refund::Column::SettledAt, Some(to_micros(now)).into());
    }
    if to == RefundState::Rejected {
        // It undoes nothing, so that the next one can.
        update = update
            .col_expr(refund::Column::PaymentId, None::<i64>.into())
            .col_expr(refund::Column::RefundedOrderId, None::<i64>.into());
    }
    if let Some(by) = by {
        update = update.col_expr(refund::Column::DecidedBy, Some(by.0).into());
    }
    Ok(update.exec(tx).await?.rows_affected == 1)
}

/// Announces that a refund may be performed.
pub async fn announce_approved(tx: &Tx, ids: &Ids, refund: &Refund, now: Timestamp) -> Result<(), DbFault> {
    let approved = RefundApproved {
        refund_id: refund.id,
        order_id: refund.order_id,
        user_id: refund.user_id,
        amount_minor: refund.amount_minor,
        balance_minor: refund.balance_minor,
        currency: refund.currency,
        at: now,
    };
    outbox::append_one(tx, ids, now, &approved).await
}

/// Tells that `refund` is refused.
pub async fn announce_refused(
    tx: &Tx,
    ids: &Ids,
    refund: &Refund,
    reason: String,
    now: Timestamp,
) -> Result<(), DbFault> {
    let refused = RefundRefused {
        refund_id: refund.id,
        order_id: refund.order_id,
        user_id: refund.user_id,
        reason,
        at: now,
    };
    outbox::append_one(tx, ids, now, &refused).await
}
