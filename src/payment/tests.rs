//! A gateway's statement against what is known here, on a real SQLite file.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{NaiveDate, TimeDelta};
use sea_orm::ConnectionTrait;

use super::model::{Refund, RefundState as Stands};
use super::reconcile_gateway::GatewayAgainstPayments;
use super::{PaymentService, refund};
use crate::db::testing::{self, TestDatabase};
use crate::db::{Database, DbFault};
use crate::ids::{Ids, PaymentId, RefundId};
use crate::order::store::Policy;
use crate::ports::clock::{ManualClock, SharedClock, Timestamp, to_micros};
use crate::ports::payment_gateway::{
    Acknowledgement, Capture, Channel, Closing, GatewayError, GatewayState, Gateways, Movement, Notice,
    NoticeHeaders, NoticeRefusal, PaymentGateway, PaymentMode, PaymentOrder, PaymentParams, RefundOrder,
    RefundState, StatementLine,
};
use crate::reconciliation::{Comparison, ComparisonError};

/// WeChat Pay, with the statement that a test gives it. Asked about a payment or a refund, it says that it succeeded if
/// the number is even. It refuses refunds with numbers below ten.
#[derive(Debug, Default)]
struct Fake {
    lines: Mutex<Vec<StatementLine>>,
    days: Mutex<Vec<NaiveDate>>,
    /// Why there is no statement.
    refusal: Mutex<Option<GatewayError>>,
    /// Payments whose money went back.
    returned: Mutex<Vec<PaymentId>>,
}

fn unclear<T>() -> Result<T, GatewayError> {
    Err(GatewayError::Unclear("not asked in these tests".to_owned()))
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[async_trait]
impl PaymentGateway for Fake {
    fn channel(&self) -> Channel {
        Channel::Wechat
    }

    fn fits(&self, _: Option<PaymentMode>, _: Option<&str>) -> Result<(), GatewayError> {
        Ok(())
    }

    async fn create(&self, _: &PaymentOrder) -> Result<PaymentParams, GatewayError> {
        unclear()
    }

    async fn query(&self, payment_id: PaymentId) -> Result<GatewayState, GatewayError> {
        let capture = Capture {
            transaction_id: format!("t-{payment_id}"),
            amount_minor: 100,
            currency: "CNY".parse().unwrap(),
            payer: None,
            paid_at: at("2026-06-01T04:00:00Z"),
        };
        Ok(match payment_id.0 % 2 {
            0 if self.returned.lock().unwrap().contains(&payment_id) => GatewayState::Refunded(capture),
            0 => GatewayState::Succeeded(capture),
            _ => GatewayState::NotFound,
        })
    }

    async fn close(&self, _: PaymentId) -> Result<Closing, GatewayError> {
        unclear()
    }

    async fn refund(&self, order: &RefundOrder) -> Result<RefundState, GatewayError> {
        match order.refund_id.0 {
            ..10 => Err(GatewayError::Refused { code: "NO_AUTH".to_owned(), message: "no more".to_owned() }),
            _ => unclear(),
        }
    }

    async fn query_refund(&self, _: PaymentId, refund: RefundId) -> Result<RefundState, GatewayError> {
        Ok(if refund.0 % 2 == 0 { RefundState::Succeeded } else { RefundState::NotFound })
    }

    fn notice(&self, _: &NoticeHeaders, _: &[u8], _: Timestamp) -> Result<Notice, NoticeRefusal> {
        Err(NoticeRefusal::Stale)
    }

    fn acknowledge(&self) -> Acknowledgement {
        Acknowledgement { status: 200, content_type: "text/plain", body: "" }
    }

    async fn statement(&self, day: NaiveDate) -> Result<Option<Vec<StatementLine>>, GatewayError> {
        self.days.lock().unwrap().push(day);
        match self.refusal.lock().unwrap().clone() {
            Some(refusal) => Err(refusal),
            None => Ok(Some(self.lines.lock().unwrap().clone())),
        }
    }
}

struct Books {
    _place: TestDatabase,
    db: Database,
    clock: Arc<ManualClock>,
    gateway: Arc<Fake>,
    comparison: GatewayAgainstPayments,
}

impl Books {
    async fn open() -> Self {
        let (place, db) = testing::fresh().await;
        // Noon in Beijing on the second of June.
        let clock = Arc::new(ManualClock::new(at("2026-06-02T04:00:00Z")));
        let (shared, gateway): (SharedClock, _) = (clock.clone(), Arc::new(Fake::default()));
        let ids = Ids::new(1, clock.as_ref(), Duration::from_secs(60));
        let gateways = Gateways::new(None, vec![gateway.clone()]);
        let policy = Policy { refund_approval: false, payment_timeout: TimeDelta::minutes(30) };
        let payments = PaymentService::new(db.clone(), ids, shared.clone(), gateways, policy, None);
        let comparison =
            GatewayAgainstPayments { db: db.clone(), clock: shared, payments, gateway: gateway.clone() };
        Self { _place: place, db, clock, gateway, comparison }
    }

    async fn execute(&self, sql: String) {
        let executing = self.db.transaction(move |tx| {
            let sql = sql.clone();
            async move { Ok::<_, DbFault>(tx.execute_unprepared(&sql).await?) }
        });
        executing.await.unwrap();
    }

    /// A payment of 1.00, captured at noon in Beijing on the first of June if it is `succeeded`.
    async fn payment(&self, id: i64, state: &str) {
        let at = to_micros(at("2026-06-01T04:00:00Z"));
        let captured = state == "succeeded";
        let (transaction, settled) =
            if captured { (format!("'t-{id}'"), at.to_string()) } else { ("NULL".into(), "NULL".into()) };
        self.execute(format!(
            "INSERT INTO payment (id, order_id, user_id, channel, state, amount_minor, currency, transaction_id, version, \
             created_at, updated_at, settled_at) \
             VALUES ({id}, {id}, 1, 'wechat', '{state}', 100, 'CNY', {transaction}, 1, {at}, {at}, {settled})"
        ))
        .await;
        if captured {
            self.execute(format!(
                "INSERT INTO payment_log (payment_id, order_id, user_id, channel, transaction_id, amount_minor, currency, \
                 paid_at, logged_at) VALUES ({id}, {id}, 1, 'wechat', 't-{id}', 100, 'CNY', {at}, {at})"
            ))
            .await;
        }
    }

    /// A refund of payment `payment`.
    async fn refund(&self, id: i64, payment: i64, state: &str) {
        let at = to_micros(at("2026-06-01T05:00:00Z"));
        self.execute(format!(
            "INSERT INTO refund (id, order_id, payment_id, user_id, channel, amount_minor, balance_minor, currency, state, \
             cause, reason, version, created_at, updated_at) \
             VALUES ({id}, {payment}, {payment}, 1, 'wechat', 100, 0, 'CNY', '{state}', 'order', '', 1, {at}, {at})"
        ))
        .await;
    }

    fn says(&self, payment: i64, movement: Movement) {
        self.gateway.lines.lock().unwrap().push(StatementLine {
            payment_id: Some(PaymentId(payment)),
            transaction_id: format!("t-{payment}"),
            movement,
            currency: "CNY".parse().unwrap(),
        });
    }

    fn captured(&self, payment: i64, amount_minor: i64) {
        self.says(payment, Movement::Captured { amount_minor });
    }

    fn refunded(&self, payment: i64, refund: Option<i64>) {
        self.returns(payment, refund, true);
    }

    /// A refund that had not reached the customer when the statement was made.
    fn refunding(&self, payment: i64, refund: Option<i64>) {
        self.returns(payment, refund, false);
    }

    fn returns(&self, payment: i64, refund: Option<i64>, arrived: bool) {
        let refund_id = refund.map(RefundId);
        self.says(payment, Movement::Refunded { refund_id, amount_minor: 100, arrived });
    }

    async fn state_of_refund(&self, id: i64) -> Refund {
        let read = move |db| async move { refund::find(&db, RefundId(id)).await };
        self.db.read(read).await.unwrap().unwrap()
    }

    /// Subject and action of each difference.
    async fn differences(&self) -> Vec<(String, &'static str)> {
        let found = self.comparison.compare().await.unwrap();
        found.into_iter().map(|found| (found.subject, found.action)).collect()
    }
}

#[tokio::test]
async fn a_statement_is_compared_line_by_line() {
    let books = Books::open().await;
    for (id, state) in
        [(2, "succeeded"), (4, "succeeded"), (6, "pending"), (8, "succeeded"), (10, "succeeded")]
    {
        books.payment(id, state).await;
    }
    books.refund(20, 8, "succeeded").await;
    books.refund(22, 10, "approved").await;
    books.captured(2, 100);
    books.captured(4, 99);
    books.captured(6, 100);
    books.captured(8, 100);
    books.captured(10, 100);
    books.refunded(8, Some(20));
    books.refunded(10, Some(22));
    books.refunded(2, None);
    // Of a payment that is unknown here; a refund of one may be another system's.
    books.captured(12, 100);
    books.refunded(14, None);

    let found = books.differences().await;
    let found: Vec<(&str, &str)> =
        found.iter().map(|(subject, action)| (subject.as_str(), *action)).collect();
    assert_eq!(
        found,
        [
            ("capture/4", "look_at_it"),
            ("capture/6", "settle"),
            ("refund/22", "perform"),
            ("returned/2", "look_at_it"),
            ("capture/12", "look_at_it"),
        ]
    );
    let applied = books.comparison.apply("capture/6").await.unwrap();
    assert_eq!(applied.as_deref(), Some("asked the gateway: payment 6 is succeeded"));
    assert!(!books.differences().await.iter().any(|(subject, _)| subject == "capture/6"));
    // A gateway that does not answer leaves it as it is.
    let unclear = books.comparison.apply("refund/22").await;
    assert!(matches!(unclear, Err(ComparisonError::Outside(_))), "{unclear:?}");
}

#[tokio::test]
async fn a_refund_under_way_in_a_statement_proves_nothing() {
    let books = Books::open().await;
    for id in [2, 4, 6, 8, 10] {
        books.payment(id, "succeeded").await;
        books.captured(id, 100);
    }
    // Done here: the gateway is asked, which knows what has an even number.
    books.refund(20, 2, "succeeded").await;
    books.refunding(2, Some(20));
    books.refund(21, 4, "succeeded").await;
    books.refunding(4, Some(21));
    // Under way here as well, not allowed here, and unknown here.
    books.refund(22, 6, "approved").await;
    books.refunding(6, Some(22));
    books.refund(24, 8, "requested").await;
    books.refunding(8, Some(24));
    books.refunding(10, None);
    let differences = ["refund/24", "returned/10", "refund/21"].map(|of| (of.to_owned(), "look_at_it"));
    assert_eq!(books.differences().await, differences);
}

#[tokio::test]
async fn what_a_statement_lacks_is_asked_for() {
    let books = Books::open().await;
    for id in [1, 2, 4] {
        books.payment(id, "succeeded").await;
    }
    books.refund(20, 2, "succeeded").await;
    books.refund(21, 4, "succeeded").await;
    // The gateway knows what has an even number.
    let lacking = [("capture/1".to_owned(), "look_at_it"), ("refund/21".to_owned(), "look_at_it")];
    assert_eq!(books.differences().await, lacking);
    assert!(books.comparison.apply("capture/1").await.unwrap().is_some());
    assert_eq!(books.comparison.apply("capture/2").await.unwrap(), None);
    // Of another day nothing is lacking.
    books.clock.advance(TimeDelta::days(1));
    assert_eq!(books.differences().await, []);

    // A statement is ready at ten in the morning.
    books.clock.set(at("2026-06-02T01:59:59Z"));
    books.differences().await;
    let days = books.gateway.days.lock().unwrap().clone();
    assert_eq!(
        days.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["2026-06-01", "2026-06-02", "2026-05-31"]
    );
}

#[tokio::test]
async fn without_a_statement_the_gateway_is_asked_one_by_one() {
    let books = Books::open().await;
    for id in [1, 2] {
        books.payment(id, "succeeded").await;
    }
    let refusal = GatewayError::Refused { code: "STATEMENT_CREATING".to_owned(), message: String::new() };
    *books.gateway.refusal.lock().unwrap() = Some(refusal);
    // Also in the evening, about all of the day before.
    for now in ["2026-06-02T02:00:00Z", "2026-06-02T14:00:00Z"] {
        books.clock.set(at(now));
        assert_eq!(books.differences().await, [("capture/1".to_owned(), "look_at_it")], "{now}");
    }
    // Of a gateway that is down nothing can be asked.
    *books.gateway.refusal.lock().unwrap() = Some(GatewayError::Unclear("down".to_owned()));
    assert!(matches!(books.comparison.compare().await, Err(ComparisonError::Outside(_))));
}

#[tokio::test]
async fn money_that_went_back_past_us_is_a_difference() {
    let books = Books::open().await;
    for id in [2, 4, 6, 8, 10] {
        books.payment(id, "succeeded").await;
        books.gateway.returned.lock().unwrap().push(PaymentId(id));
    }
    for (id, payment, state) in
        [(20, 2, "succeeded"), (22, 4, "approved"), (24, 6, "requested"), (26, 8, "failed")]
    {
        books.refund(id, payment, state).await;
    }
    let mut found = books.differences().await;
    found.sort();
    assert_eq!(found, ["capture/10", "capture/6", "capture/8"].map(|of| (of.to_owned(), "look_at_it")));
    let detail = books.comparison.apply("capture/10").await.unwrap().unwrap();
    assert!(detail.contains("given back"), "{detail}");
    assert_eq!(books.comparison.apply("capture/2").await.unwrap(), None);
}

#[tokio::test]
async fn a_repeat_that_is_refused_does_not_undo_what_was_done() {
    let books = Books::open().await;
    for (payment, refund) in [(2, 4), (6, 5)] {
        books.payment(payment, "succeeded").await;
        books.refund(refund, payment, "approved").await;
    }
    books.execute("UPDATE refund SET cause = 'late_payment'".to_owned()).await;
    for refund in [4, 5] {
        books.comparison.payments.perform(RefundId(refund)).await.unwrap();
    }
    // The gateway knows the one: its answer to an earlier try was lost.
    assert_eq!(books.state_of_refund(4).await.state, Stands::Succeeded);
    let refused = books.state_of_refund(5).await;
    assert_eq!(refused.state, Stands::Failed);
    assert!(refused.failure.is_some_and(|failure| failure.contains("NO_AUTH")));
}
