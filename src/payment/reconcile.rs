//! Payments against orders, what gateways said that cannot be true, and refunds that do not get done (REC-3).

use async_trait::async_trait;
use chrono::TimeDelta;
use sea_orm::Value;

use super::model::{Refund, RefundState};
use super::refund;
use super::service::{PaymentError, PaymentService};
use crate::db::{Database, DbFault};
use crate::ids::{Ids, OrderId, PaymentId, PaymentRecordId, RefundId};
use crate::order::machine::{Command, State};
use crate::order::model::Cause;
use crate::order::store::{self as orders, Advanced, Policy, Step};
use crate::ports::clock::{SharedClock, to_micros};
use crate::reconciliation::{Comparison, ComparisonError, Found, LOOK_AT_IT, Search, settled_before};

/// How long a gateway may take to give money back.
const REFUND_PATIENCE: TimeDelta = TimeDelta::minutes(10);
/// How long what a gateway said and was not believed is named: only a person can find out what became of the money, and
/// nothing here tells that somebody did.
const DISPUTED: TimeDelta = TimeDelta::days(7);
/// Refunds that are read at a time.
const PAGE: u64 = 100;

impl From<PaymentError> for ComparisonError {
    fn from(error: PaymentError) -> Self {
        match error {
            PaymentError::Db(fault) => Self::Db(fault),
            error => Self::Outside(error.to_string()),
        }
    }
}

/// Every capture that is not on its way back pays an order, every paid order has its capture, and what goes back of a
/// capture is all of it.
#[derive(Debug)]
pub struct PaymentsAgainstOrders {
    pub db: Database,
    pub ids: Ids,
    pub clock: SharedClock,
    pub policy: Policy,
}

/// A capture that neither pays its order nor goes back.
struct Stray {
    payment: PaymentId,
    order: OrderId,
    /// None if there is no such order.
    state: Option<State>,
    pays_it: bool,
}

impl Stray {
    /// An order that counts the payment as its own and gives it back would not be told anything new.
    fn action(&self) -> &'static str {
        match (self.state, self.pays_it) {
            (None, _) | (Some(State::Refunding | State::Refunded), true) => LOOK_AT_IT,
            (Some(_), _) => "tell_order",
        }
    }

    fn found(&self) -> Found {
        let Self { payment, order, state, .. } = self;
        let state = state.map_or("missing", State::word);
        Found {
            subject: format!("payment/{payment}"),
            expected: "pays its order, or goes back".to_owned(),
            found: format!("order {state}"),
            detail: format!("Payment {payment} was captured for order {order}, which is {state} without it."),
            action: self.action(),
        }
    }
}

const STRAYS: Search<Stray> = Search {
    table: "payment",
    sql: "SELECT p.id, p.order_id, o.state, o.paid_payment_id FROM payment AS p \
        LEFT JOIN orders AS o ON o.id = p.order_id \
        WHERE p.id > ? AND p.id <= ? AND p.state = 'succeeded' AND p.settled_at < ? \
        AND NOT EXISTS (SELECT 1 FROM refund AS f WHERE f.payment_id = p.id) \
        AND (o.id IS NULL OR o.paid_payment_id IS NULL OR o.paid_payment_id <> p.id \
        OR o.state NOT IN ('paid', 'shipped', 'finished'))",
    read: |row| {
        let payment = PaymentId(row.try_get("", "id")?);
        let state = row.try_get::<Option<String>>("", "state")?;
        Ok(Stray {
            payment,
            order: OrderId(row.try_get("", "order_id")?),
            state: state.as_deref().map(str::parse).transpose()?,
            pays_it: row.try_get::<Option<i64>>("", "paid_payment_id")? == Some(payment.0),
        })
    },
};

/// An order that counts as paid, and by what.
struct Unpaid {
    order: OrderId,
    state: State,
    payment: Option<PaymentId>,
}

impl Unpaid {
    fn found(&self) -> Found {
        let Self { order, state, payment } = self;
        let by = payment.map_or_else(|| "no payment".to_owned(), |payment| format!("payment {payment}"));
        Found {
            subject: format!("order/{order}"),
            expected: "a capture of what was to pay".to_owned(),
            found: by.clone(),
            detail: format!("Order {order} is {state} by {by}, which is no capture of what was to pay."),
            action: LOOK_AT_IT,
        }
    }
}

const UNPAID: Search<Unpaid> = Search {
    table: "orders",
    sql: "SELECT o.id, o.state, o.paid_payment_id FROM orders AS o \
        LEFT JOIN payment AS p ON p.id = o.paid_payment_id AND p.order_id = o.id AND p.state = 'succeeded' \
        AND p.amount_minor = o.payable_minor AND p.currency = o.currency \
        WHERE o.id > ? AND o.id <= ? AND o.payable_minor > 0 AND p.id IS NULL \
        AND o.state IN ('paid', 'shipped', 'finished', 'refunding', 'refunded')",
    read: |row| {
        Ok(Unpaid {
            order: OrderId(row.try_get("", "id")?),
            state: row.try_get::<String>("", "state")?.parse()?,
            payment: row.try_get::<Option<i64>>("", "paid_payment_id")?.map(PaymentId),
        })
    },
};

/// A refund that does not return what was captured.
struct Uneven {
    refund: RefundId,
    order: OrderId,
    /// None if it names none.
    payment: Option<PaymentId>,
    refunded_minor: i64,
    /// For the same order; none if nothing was.
    captured_minor: Option<i64>,
}

impl Uneven {
    fn found(&self) -> Found {
        let Self { refund, order, payment, refunded_minor, captured_minor } = self;
        let captured_minor = captured_minor.unwrap_or(0);
        let by = payment.map_or_else(|| "no payment".to_owned(), |payment| format!("payment {payment}"));
        Found {
            subject: format!("refund/{refund}"),
            expected: format!("{captured_minor} minor units, as captured"),
            found: format!("{refunded_minor} minor units"),
            detail: format!(
                "Refund {refund} of order {order} is over {refunded_minor} minor units; {captured_minor} were captured \
                 for the order by {by}."
            ),
            action: LOOK_AT_IT,
        }
    }
}

/// A payment has one refund, so no order gets back more than was captured for it while each refund returns its payment.
const UNEVEN: Search<Uneven> = Search {
    table: "refund",
    sql: "SELECT f.id, f.order_id, f.payment_id, f.amount_minor, p.amount_minor AS captured FROM refund AS f \
        LEFT JOIN payment AS p ON p.id = f.payment_id AND p.order_id = f.order_id AND p.state = 'succeeded' \
        AND p.currency = f.currency \
        WHERE f.id > ? AND f.id <= ? AND f.state <> 'rejected' AND f.amount_minor <> COALESCE(p.amount_minor, 0)",
    read: |row| {
        Ok(Uneven {
            refund: RefundId(row.try_get("", "id")?),
            order: OrderId(row.try_get("", "order_id")?),
            payment: row.try_get::<Option<i64>>("", "payment_id")?.map(PaymentId),
            refunded_minor: row.try_get("", "amount_minor")?,
            captured_minor: row.try_get("", "captured")?,
        })
    },
};

impl PaymentsAgainstOrders {
    async fn tell(&self, stray: &Stray) -> Result<Option<String>, ComparisonError> {
        let (ids, clock, policy) = (self.ids.clone(), self.clock.clone(), self.policy);
        let step = Step::new(stray.order, Command::Pay(stray.payment), Cause::Payment(stray.payment));
        let telling = self.db.transaction(move |tx| {
            let (ids, clock, step) = (ids.clone(), clock.clone(), step.clone());
            async move { orders::advance(&tx, &ids, clock.now(), policy, &[step]).await }
        });
        let answers: Result<_, DbFault> = telling.await;
        Ok(match answers?.pop() {
            Some(Ok(Advanced::Changed(order))) if order.paid_by == Some(stray.payment) => {
                Some(format!("order {} is now {}", order.id, order.state))
            }
            Some(Ok(Advanced::Changed(order))) => {
                Some(format!("order {} is {}: the payment goes back", order.id, order.state))
            }
            Some(Ok(Advanced::AlreadyDone(_)) | Err(_)) | None => None,
        })
    }
}

#[async_trait]
impl Comparison for PaymentsAgainstOrders {
    fn name(&self) -> &'static str {
        "orders_payments"
    }

    async fn compare(&self) -> Result<Vec<Found>, ComparisonError> {
        let strays = STRAYS.all(&self.db, &settled_before(&self.clock)).await?;
        let unpaid = UNPAID.all(&self.db, &[]).await?;
        let uneven = UNEVEN.all(&self.db, &[]).await?;
        let orders = strays.iter().map(Stray::found).chain(unpaid.iter().map(Unpaid::found));
        Ok(orders.chain(uneven.iter().map(Uneven::found)).collect())
    }

    async fn apply(&self, subject: &str) -> Result<Option<String>, ComparisonError> {
        let Some((what, id)) = subject.split_once('/') else { return Ok(None) };
        let Ok(id) = id.parse::<PaymentId>() else { return Ok(None) };
        match what {
            "payment" => match STRAYS.one(&self.db, id.0, &settled_before(&self.clock)).await? {
                Some(stray) if stray.action() != LOOK_AT_IT => self.tell(&stray).await,
                stray => Ok(stray.map(|stray| stray.found().detail)),
            },
            "refund" => Ok(UNEVEN.one(&self.db, id.0, &[]).await?.map(|uneven| uneven.found().detail)),
            _ => Ok(UNPAID.one(&self.db, id.0, &[]).await?.map(|unpaid| unpaid.found().detail)),
        }
    }
}

/// What gateways said of our payments in the last [days](DISPUTED) and was not believed: money may have moved that is in
/// no book here (F40).
#[derive(Debug)]
pub struct Contradictions {
    pub db: Database,
    pub clock: SharedClock,
}

/// A record of what was not believed.
struct Unbelieved {
    record: PaymentRecordId,
    payment: PaymentId,
    channel: String,
    state: String,
    contradiction: String,
}

impl Unbelieved {
    fn found(&self) -> Found {
        let Self { record, payment, channel, state, contradiction } = self;
        Found {
            subject: record.to_string(),
            expected: state.clone(),
            found: contradiction.clone(),
            detail: format!(
                "What {channel} said of payment {payment}, which is {state} now, was not believed: {contradiction}. \
                 It is record {record} of the payment."
            ),
            action: LOOK_AT_IT,
        }
    }
}

const UNBELIEVED: Search<Unbelieved> = Search {
    table: "payment_record",
    sql: "SELECT r.id, r.payment_id, r.channel, r.contradiction, p.state FROM payment_record AS r \
        JOIN payment AS p ON p.id = r.payment_id \
        WHERE r.id > ? AND r.id <= ? AND r.contradiction IS NOT NULL AND r.received_at > ?",
    read: |row| {
        Ok(Unbelieved {
            record: PaymentRecordId(row.try_get("", "id")?),
            payment: PaymentId(row.try_get("", "payment_id")?),
            channel: row.try_get("", "channel")?,
            state: row.try_get("", "state")?,
            contradiction: row.try_get("", "contradiction")?,
        })
    },
};

impl Contradictions {
    fn since(&self) -> [Value; 1] {
        [to_micros(self.clock.now() - DISPUTED).into()]
    }
}

#[async_trait]
impl Comparison for Contradictions {
    fn name(&self) -> &'static str {
        "payment_contradictions"
    }

    async fn compare(&self) -> Result<Vec<Found>, ComparisonError> {
        let unbelieved = UNBELIEVED.all(&self.db, &self.since()).await?;
        Ok(unbelieved.iter().map(Unbelieved::found).collect())
    }

    async fn apply(&self, subject: &str) -> Result<Option<String>, ComparisonError> {
        let Ok(id) = subject.parse::<PaymentRecordId>() else { return Ok(None) };
        let unbelieved = UNBELIEVED.one(&self.db, id.0, &self.since()).await?;
        Ok(unbelieved.map(|unbelieved| unbelieved.found().detail))
    }
}

/// Refunds whose money does not go back.
#[derive(Debug)]
pub struct RefundsStuck {
    pub db: Database,
    pub clock: SharedClock,
    pub payments: PaymentService,
}

impl RefundsStuck {
    /// The difference that `refund` is, if it is one.
    fn found(&self, refund: &Refund) -> Option<Found> {
        let Refund { id, order_id, state, .. } = refund;
        let (detail, action) = match state {
            RefundState::Approved if refund.updated_at < self.clock.now() - REFUND_PATIENCE => {
                (format!("Refund {id} of order {order_id} was approved and is not done."), "perform")
            }
            RefundState::Failed => {
                let reason = refund.failure.as_deref().unwrap_or("no reason given");
                (format!("Refund {id} of order {order_id} failed at the gateway: {reason}"), LOOK_AT_IT)
            }
            RefundState::Approved
            | RefundState::Requested
            | RefundState::Succeeded
            | RefundState::Rejected => return None,
        };
        let (expected, found) = (RefundState::Succeeded.to_string(), state.to_string());
        Some(Found { subject: id.to_string(), expected, found, detail, action })
    }

    async fn find(&self, id: RefundId) -> Result<Option<Refund>, DbFault> {
        self.db.read(move |connection| async move { refund::find(&connection, id).await }).await
    }
}

#[async_trait]
impl Comparison for RefundsStuck {
    fn name(&self) -> &'static str {
        "refunds_stuck"
    }

    async fn compare(&self) -> Result<Vec<Found>, ComparisonError> {
        let mut differences = Vec::new();
        for state in [RefundState::Approved, RefundState::Failed] {
            let mut before = None;
            loop {
                let page = self.payments.refunds(refund::Listing::in_state(state, before, PAGE)).await?;
                let Some(last) = page.last() else { break };
                before = Some(last.id);
                differences.extend(page.iter().filter_map(|refund| self.found(refund)));
            }
        }
        Ok(differences)
    }

    async fn apply(&self, subject: &str) -> Result<Option<String>, ComparisonError> {
        let Ok(id) = subject.parse::<RefundId>() else { return Ok(None) };
        let refund = self.find(id).await?;
        let Some(found) = refund.and_then(|refund| self.found(&refund)) else { return Ok(None) };
        if found.action == LOOK_AT_IT {
            return Ok(Some(found.detail));
        }
        self.payments.perform(id).await?;
        let state = self.find(id).await?.map_or(RefundState::Approved, |refund| refund.state);
        Ok(Some(format!("asked the gateway: refund {id} is {state}")))
    }
}
