//! What a gateway says moved, against what we know moved (REC-3).
//!
//! A gateway that gives a statement of a day is compared line by line, and asked again about what its statement lacks.
//! One that gives none, or refuses it for once, is asked about the captures and refunds of the last day, the newest first
//! and not more than [`ASKED`]. Each gateway is a comparison of its own, so one that is down does not keep the others from
//! being compared.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{NaiveDate, NaiveTime, TimeDelta};
use futures_util::{StreamExt, stream};
use tracing::warn;

use super::model::{Payment, PaymentState, Refund, RefundState};
use super::service::{PaymentError, PaymentService};
use super::{refund, store};
use crate::db::{Database, DbFault};
use crate::ids::{PaymentId, RefundId};
use crate::ports::clock::{BEIJING, SharedClock, Timestamp};
use crate::ports::payment_gateway::{
    Capture, Channel, GatewayError, GatewayState, Movement, PaymentGateway, RefundState as AtGateway,
    StatementLine,
};
use crate::reconciliation::{Comparison, ComparisonError, Found, LOOK_AT_IT};

/// How many captures, and how many refunds, a gateway is asked about.
const ASKED: usize = 500;
/// How many of them at once.
const AT_ONCE: usize = 8;
/// Rows that are read at a time.
const PAGE: u64 = 500;
/// When the statement of a day is ready, counted from its end.
const READY: TimeDelta = TimeDelta::hours(10);
/// How long a payment may be open, or a refund under way, and still be found on the day it moved.
const OPEN: TimeDelta = TimeDelta::days(2);

/// See the module.
#[derive(Debug)]
pub struct GatewayAgainstPayments {
    pub db: Database,
    pub clock: SharedClock,
    pub payments: PaymentService,
    pub gateway: Arc<dyn PaymentGateway>,
}

impl From<GatewayError> for ComparisonError {
    fn from(error: GatewayError) -> Self {
        Self::Outside(error.to_string())
    }
}

/// What we know of what a statement names.
#[derive(Debug, Default)]
struct Known {
    payments: HashMap<PaymentId, Payment>,
    refunds: HashMap<RefundId, Refund>,
}

/// The last day whose statement is ready, as the gateways count days.
fn last_day(now: Timestamp) -> NaiveDate {
    (now - READY).with_timezone(&BEIJING).date_naive() - TimeDelta::days(1)
}

/// When `day` begins, as the gateways count days.
fn begin_of(day: NaiveDate) -> Timestamp {
    (day.and_time(NaiveTime::MIN) - BEIJING).and_utc()
}

fn look(subject: String, expected: impl Into<String>, found: impl Into<String>, detail: String) -> Found {
    Found { subject, expected: expected.into(), found: found.into(), detail, action: LOOK_AT_IT }
}

fn capture_subject(payment: PaymentId) -> String {
    format!("capture/{payment}")
}

fn refund_subject(refund: RefundId) -> String {
    format!("refund/{refund}")
}

/// How a line of the statement differs from what we know.
fn differs(channel: Channel, line: &StatementLine, known: &Known) -> Option<Found> {
    let payment = known.payments.get(&line.payment_id?);
    match &line.movement {
        Movement::Captured { amount_minor } => captured_differs(channel, line, *amount_minor, payment),
        Movement::Refunded { refund_id, amount_minor, arrived } => {
            let refund = refund_id.and_then(|id| known.refunds.get(&id));
            refunded_differs(line, *amount_minor, *arrived, payment, *refund_id, refund)
        }
    }
}

fn captured_differs(
    channel: Channel,
    line: &StatementLine,
    amount_minor: i64,
    payment: Option<&Payment>,
) -> Option<Found> {
    let id = line.payment_id?;
    let (subject, there) = (capture_subject(id), line.currency.amount(amount_minor));
    let Some(payment) = payment else {
        let detail = format!("The statement has {there} for payment {id}, which is unknown here.");
        return Some(look(subject, there, "nothing", detail));
    };
    let here = payment.currency.amount(payment.amount_minor);
    if (payment.channel, payment.amount_minor, payment.currency) != (channel, amount_minor, line.currency) {
        let detail = format!(
            "The statement has {there} for payment {id}, which is one of {here} through {}.",
            payment.channel
        );
        return Some(look(subject, there, here, detail));
    }
    if payment.state != PaymentState::Succeeded {
        let detail = format!("The statement has payment {id} as captured, here it is {}.", payment.state);
        let (expected, found) = (PaymentState::Succeeded.to_string(), payment.state.to_string());
        return Some(Found { subject, expected, found, detail, action: "settle" });
    }
    let known = payment.transaction_id.as_deref().unwrap_or_default();
    (known != line.transaction_id).then(|| {
        let detail = format!("The statement has another transaction for payment {id} than is known here.");
        look(subject, &line.transaction_id, known, detail)
    })
}

fn refunded_differs(
    line: &StatementLine,
    amount_minor: i64,
    arrived: bool,
    payment: Option<&Payment>,
    refund_id: Option<RefundId>,
    refund: Option<&Refund>,
) -> Option<Found> {
    let there = line.currency.amount(amount_minor);
    let (payment, Some(refund)) = (line.payment_id?, refund) else {
        // Somebody else's, unless the payment is ours.
        let payment = payment?.id;
        let subject = refund_id.map_or_else(|| format!("returned/{payment}"), refund_subject);
        let detail = format!("The statement has {there} of payment {payment} given back, unknown here.");
        return Some(look(subject, "nothing", there, detail));
    };
    let (id, here) = (refund.id, refund.currency.amount(refund.amount_minor));
    let subject = refund_subject(id);
    if (refund.payment_id, refund.amount_minor, refund.currency)
        != (Some(payment), amount_minor, line.currency)
    {
        let detail =
            format!("The statement has {there} of payment {payment} for refund {id}, here it is {here}.");
        return Some(look(subject, here, there, detail));
    }
    let (expected, found) = (RefundState::Succeeded.to_string(), refund.state.to_string());
    let there = if arrived { "done" } else { "under way" };
    let detail = format!("The statement has refund {id} as {there}, here it is {}.", refund.state);
    match refund.state {
        RefundState::Succeeded => None,
        RefundState::Approved if !arrived => None,
        RefundState::Approved => Some(Found { subject, expected, found, detail, action: "perform" }),
        RefundState::Requested | RefundState::Failed | RefundState::Rejected => {
            Some(look(subject, expected, found, detail))
        }
    }
}

/// How what the gateway says of a capture of ours differs; `goes_back` if we are the ones who return it.
fn answer_differs(payment: &Payment, answer: &GatewayState, goes_back: bool) -> Option<Found> {
    let same = |capture: &Capture| {
        (capture.amount_minor, capture.currency) == (payment.amount_minor, payment.currency)
            && Some(&capture.transaction_id) == payment.transaction_id.as_ref()
    };
    let there = match answer {
        GatewayState::Succeeded(capture) if same(capture) => return None,
        GatewayState::Refunded(capture) if same(capture) && goes_back => return None,
        GatewayState::Refunded(capture) if same(capture) => "given back, and not by us".to_owned(),
        GatewayState::Succeeded(capture) | GatewayState::Refunded(capture) => {
            format!("{} by {}", capture.currency.amount(capture.amount_minor), capture.transaction_id)
        }
        GatewayState::NotFound => "unknown".to_owned(),
        GatewayState::Pending => "pending".to_owned(),
        GatewayState::Failed => "failed".to_owned(),
        GatewayState::Closed => "closed".to_owned(),
    };
    let transaction = payment.transaction_id.as_deref().unwrap_or("no transaction");
    let here = format!("{} by {transaction}", payment.currency.amount(payment.amount_minor));
    let detail = format!("Payment {} is captured here ({here}); to its gateway it is {there}.", payment.id);
    Some(look(capture_subject(payment.id), here, there, detail))
}

/// How what the gateway says of a refund of ours differs.
fn refund_answer_differs(refund: &Refund, answer: &AtGateway) -> Option<Found> {
    // Its money went another way.
    if refund.note.is_some() {
        return None;
    }
    let there = match answer {
        AtGateway::Succeeded => return None,
        AtGateway::NotFound => "unknown".to_owned(),
        AtGateway::Processing => "under way".to_owned(),
        AtGateway::Failed { reason } => format!("failed: {reason}"),
    };
    let detail = format!("Refund {} is done here; to its gateway it is {there}.", refund.id);
    Some(look(refund_subject(refund.id), RefundState::Succeeded.word(), there, detail))
}

impl GatewayAgainstPayments {
    /// The differences between the statement of `day` and what is known here.
    async fn against(&self, day: NaiveDate, lines: &[StatementLine]) -> Result<Vec<Found>, ComparisonError> {
        let mut differences = Vec::new();
        let (mut captured, mut refunded) = (HashSet::new(), HashSet::new());
        for lines in lines.chunks(PAGE as usize) {
            let known = self.known(lines).await?;
            for line in lines {
                match (line.payment_id, &line.movement) {
                    (Some(payment), Movement::Captured { .. }) => drop(captured.insert(payment)),
                    (_, Movement::Refunded { refund_id: Some(refund), arrived: true, .. }) => {
                        refunded.insert(*refund);
                    }
                    _ => {}
                }
                differences.extend(differs(self.gateway.channel(), line, &known));
            }
        }
        let (begin, end) = (begin_of(day), begin_of(day) + TimeDelta::days(1));
        let on_day = |at: Option<Timestamp>| at.is_some_and(|at| (begin..end).contains(&at));
        let lacking = |payment: &Payment, paid_at| on_day(paid_at) && !captured.contains(&payment.id);
        let payments = self.payments_since(begin - OPEN, lacking, ASKED + 1).await?;
        let lacking = |refund: &Refund| on_day(Some(refund.updated_at)) && !refunded.contains(&refund.id);
        let refunds = self.refunds_since(begin - OPEN, lacking, ASKED + 1).await?;
        let missing = payments.len().max(refunds.len());
        if missing > ASKED {
            let error = format!("the statement of {day} lacks more than {ASKED} captures or refunds of ours");
            return Err(ComparisonError::Outside(error));
        }
        self.ask_about(payments, refunds, differences).await
    }

    /// The differences between what the gateway says of the captures and refunds since then and what is known here.
    async fn one_by_one(&self, since: Timestamp) -> Result<Vec<Found>, ComparisonError> {
        let recent = |payment: &Payment, _| payment.settled_at.is_some_and(|at| at >= since);
        let payments = self.payments_since(since - OPEN, recent, ASKED).await?;
        let recent = |refund: &Refund| refund.updated_at >= since;
        let refunds = self.refunds_since(since - OPEN, recent, ASKED).await?;
        self.ask_about(payments, refunds, Vec::new()).await
    }

    /// Adds to `differences` what the gateway says otherwise of these. It fails only if nothing at all was found.
    async fn ask_about(
        &self,
        payments: Vec<Payment>,
        refunds: Vec<Refund>,
        mut differences: Vec<Found>,
    ) -> Result<Vec<Found>, ComparisonError> {
        let gateway = &self.gateway;
        let captures =
            stream::iter(payments).map(|payment| async move { self.capture_differs(&payment).await });
        let refunds = stream::iter(refunds).map(|refund| async move {
            let Some(payment) = refund.payment_id else { return Ok(None) };
            let answer = gateway.query_refund(payment, refund.id).await?;
            Ok::<_, ComparisonError>(refund_answer_differs(&refund, &answer))
        });
        let mut answers = captures.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await;
        answers.extend(refunds.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await);
        let mut failure = None;
        for answer in answers {
            match answer {
                Ok(found) => differences.extend(found),
                Err(error) => {
                    warn!(channel = %gateway.channel(), %error, "Could not ask the gateway");
                    failure = Some(error);
                }
            }
        }
        match failure {
            Some(error) if differences.is_empty() => Err(error),
            _ => Ok(differences),
        }
    }

    /// Asks how a capture of ours stands at the gateway.
    async fn capture_differs(&self, payment: &Payment) -> Result<Option<Found>, ComparisonError> {
        let answer = self.gateway.query(payment.id).await?;
        let goes_back = matches!(answer, GatewayState::Refunded(_)) && self.goes_back(payment).await?;
        Ok(answer_differs(payment, &answer, goes_back))
    }

    /// Whether a refund of ours returns `payment`, or has returned it.
    async fn goes_back(&self, payment: &Payment) -> Result<bool, DbFault> {
        let (order, payment) = (payment.order_id, Some(payment.id));
        let read = move |connection| async move { refund::all_of(&connection, order).await };
        let refunds: Result<Vec<Refund>, DbFault> = self.db.read(read).await;
        Ok(refunds?.iter().any(|refund| {
            refund.payment_id == payment
                && matches!(refund.state, RefundState::Approved | RefundState::Succeeded)
        }))
    }

    async fn known(&self, lines: &[StatementLine]) -> Result<Known, DbFault> {
        let payments: Vec<PaymentId> = lines.iter().filter_map(|line| line.payment_id).collect();
        let refunds = lines.iter().filter_map(|line| match line.movement {
            Movement::Refunded { refund_id, .. } => refund_id,
            Movement::Captured { .. } => None,
        });
        let refunds: Vec<RefundId> = refunds.collect();
        let read = |connection| async move {
            let payments = store::find_all(&connection, payments).await?;
            let refunds = refund::find_all(&connection, refunds).await?;
            Ok(Known {
                payments: payments.into_iter().map(|payment| (payment.id, payment)).collect(),
                refunds: refunds.into_iter().map(|refund| (refund.id, refund)).collect(),
            })
        };
        self.db.read(read).await
    }

    /// The newest captures of this gateway, of payments opened since then, that are `wanted`; each with the gateway's time
    /// of it, once that is logged.
    async fn payments_since(
        &self,
        since: Timestamp,
        wanted: impl Fn(&Payment, Option<Timestamp>) -> bool + Send,
        most: usize,
    ) -> Result<Vec<Payment>, DbFault> {
        let (mut before, mut found) = (PaymentId(i64::MAX), Vec::new());
        loop {
            let read =
                move |connection| async move { store::captured_before(&connection, before, PAGE).await };
            let page: Vec<(Payment, Option<Timestamp>)> = self.db.read(read).await?;
            let Some((last, _)) = page.last() else { return Ok(found) };
            before = last.id;
            let over = last.created_at < since;
            let channel = self.gateway.channel();
            let of_page = page
                .into_iter()
                .filter(|(payment, paid_at)| payment.channel == channel && wanted(payment, *paid_at));
            found.extend(of_page.map(|(payment, _)| payment).take(most - found.len()));
            if over || found.len() == most {
                return Ok(found);
            }
        }
    }

    /// The newest refunds that this gateway has done, of those asked for since then, that are `wanted`.
    async fn refunds_since(
        &self,
        since: Timestamp,
        wanted: impl Fn(&Refund) -> bool + Send,
        most: usize,
    ) -> Result<Vec<Refund>, DbFault> {
        let (mut before, mut found) = (None, Vec::new());
        loop {
            let page = self
                .payments
                .refunds(refund::Listing::in_state(RefundState::Succeeded, before, PAGE))
                .await?;
            let Some(last) = page.last() else { return Ok(found) };
            before = Some(last.id);
            let over = last.created_at < since;
            let channel = Some(self.gateway.channel());
            let of_page = page.into_iter().filter(|refund| refund.channel == channel && wanted(refund));
            found.extend(of_page.take(most - found.len()));
            if over || found.len() == most {
                return Ok(found);
            }
        }
    }

    async fn settle(&self, id: PaymentId) -> Result<Option<String>, ComparisonError> {
        let read = move |connection| async move { store::find(&connection, id).await };
        let found: Result<Option<Payment>, DbFault> = self.db.read(read).await;
        let Some(payment) = found? else {
            return Ok(Some(format!("payment {id} is unknown here")));
        };
        if payment.state != PaymentState::Succeeded {
            return Ok(Some(match self.payments.ask(&payment).await {
                Ok(settled) => {
                    let state = settled.map_or(payment.state, |payment| payment.state);
                    format!("asked the gateway: payment {id} is {state}")
                }
                Err(PaymentError::Contradiction(contradiction)) => {
                    format!("the gateway contradicts us about payment {id}: {contradiction}")
                }
                Err(error) => return Err(error.into()),
            }));
        }
        Ok(self.capture_differs(&payment).await?.map(|found| found.detail))
    }

    async fn perform(&self, id: RefundId) -> Result<Option<String>, ComparisonError> {
        let find = || async {
            let read = move |connection| async move { refund::find(&connection, id).await };
            let found: Result<Option<Refund>, DbFault> = self.db.read(read).await;
            found
        };
        let Some(refund) = find().await? else { return Ok(Some(format!("refund {id} is unknown here"))) };
        match (refund.state, refund.payment_id) {
            (RefundState::Approved, _) => {
                self.payments.perform(id).await?;
                let state = find().await?.map_or(refund.state, |refund| refund.state);
                Ok(Some(format!("asked the gateway: refund {id} is {state}")))
            }
            (RefundState::Succeeded, Some(payment)) => {
                let answer = self.gateway.query_refund(payment, id).await?;
                Ok(refund_answer_differs(&refund, &answer).map(|found| found.detail))
            }
            (state, _) => Ok(Some(format!("refund {id} is {state} here"))),
        }
    }
}

#[async_trait]
impl Comparison for GatewayAgainstPayments {
    fn name(&self) -> &'static str {
        match self.gateway.channel() {
            Channel::Sandbox => "gateway_sandbox",
            Channel::Wechat => "gateway_wechat",
            Channel::Alipay => "gateway_alipay",
        }
    }

    async fn compare(&self) -> Result<Vec<Found>, ComparisonError> {
        let day = last_day(self.clock.now());
        match self.gateway.statement(day).await {
            Ok(Some(lines)) => self.against(day, &lines).await,
            Ok(None) => self.one_by_one(self.clock.now() - TimeDelta::days(1)).await,
            // It is there, and has no statement: not yet, or not for us.
            Err(refusal @ GatewayError::Refused { .. }) => {
                warn!(channel = %self.gateway.channel(), %refusal, "There is no statement of {day}, asking one by one");
                self.one_by_one(begin_of(day)).await
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn apply(&self, subject: &str) -> Result<Option<String>, ComparisonError> {
        let Some((what, id)) = subject.split_once('/') else { return Ok(None) };
        let Ok(id) = id.parse::<PaymentId>() else { return Ok(None) };
        match what {
            "capture" => self.settle(id).await,
            "refund" => self.perform(RefundId(id.0)).await,
            _ => Ok(Some(format!("nobody here gave money of payment {id} back"))),
        }
    }
}
