//! Random histories of a handful of orders on a real SQLite file: each goes where [`decide`] says, its timeline is the
//! way it went, and no money is kept or given back that should not be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use entities::{order_event, orders, outbox, payment, refund};
use proptest::prelude::*;
use sea_orm::{ConnectionTrait, EntityTrait, IntoActiveModel, QueryOrder};

use super::machine::{Command, Decision, Refusal, State, Status, decide};
use super::model::{Amounts, Cause, Kind, Order};
use super::store::{self, Advanced, Policy, Step, StepRefusal};
use crate::db::bulk::Script;
use crate::db::testing::{self, TestDatabase};
use crate::db::{Database, DbFault};
use crate::ids::{Ids, OrderId, PaymentId, RefundId, UserId};
use crate::payment::model::RefundState;
use crate::payment::refund as refunds;
use crate::ports::clock::{SystemClock, Timestamp};

/// The last of them has nothing left to pay.
const ORDERS: i64 = 4;
const PRICE_MINOR: i64 = 100;
const START: Timestamp = Timestamp::UNIX_EPOCH;
const POLICY: Policy = Policy { refund_approval: true, payment_timeout: TimeDelta::minutes(30) };

#[derive(Debug, Clone)]
enum Event {
    /// Steps of one transaction.
    Together(Vec<(i64, Command)>),
    /// An operator refuses the order's refund, or the gateway has performed it.
    Settle { order: i64, refused: bool },
    /// Everything that waits is due.
    Wait,
}

fn payment_of(order: i64, number: i64) -> PaymentId {
    PaymentId(100 * order + number)
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let step = (1..=ORDERS, 0..11_i64, 0..3_i64).prop_map(|(order, command, payment)| {
        let command = match command {
            0 | 1 => Command::Confirm,
            2 => Command::Abandon,
            3 => Command::Cancel,
            4 => Command::Expire,
            5 | 6 => Command::Pay(payment_of(order, payment)),
            7 => Command::Ship,
            8 => Command::Finish,
            _ => Command::Refund,
        };
        (order, command)
    });
    let event = prop_oneof![
        8 => proptest::collection::vec(step, 1..8).prop_map(Event::Together),
        3 => (1..=ORDERS, any::<bool>()).prop_map(|(order, refused)| Event::Settle { order, refused }),
        1 => Just(Event::Wait),
    ];
    proptest::collection::vec(event, 1..25)
}

/// What must be in the database, kept the plain way.
#[derive(Debug)]
struct Expected {
    status: Status,
    version: i64,
}

/// Everything that a step may write.
#[derive(Debug, PartialEq)]
struct Written {
    orders: Vec<orders::Model>,
    timeline: Vec<order_event::Model>,
    refunds: Vec<refund::Model>,
    outbox_rows: usize,
}

struct Shop {
    _place: TestDatabase,
    db: Database,
    ids: Ids,
    now: Timestamp,
    expected: BTreeMap<i64, Expected>,
    captured: BTreeSet<PaymentId>,
    going_back: BTreeSet<PaymentId>,
}

impl Shop {
    async fn open() -> Self {
        let (place, db) = testing::fresh().await;
        let ids = Ids::new(0, &SystemClock, Duration::from_secs(600));
        let drafts: Vec<Order> = (1..=ORDERS).map(draft).collect();
        let expected = drafts
            .iter()
            .map(|draft| (draft.id.0, Expected { status: draft.status(false), version: 1 }))
            .collect();
        let drafts = Arc::new(drafts);
        let inserting = db.transaction::<_, DbFault, _, _>(move |tx| {
            let drafts = drafts.clone();
            async move {
                let mut script = Script::new();
                store::insert_all(&drafts.iter().collect::<Vec<_>>(), &mut script);
                Ok(script.execute(&tx).await?)
            }
        });
        inserting.await.unwrap();
        let (captured, going_back) = (BTreeSet::new(), BTreeSet::new());
        Self { _place: place, db, ids, now: START, expected, captured, going_back }
    }

    async fn advance(&self, steps: Vec<Step>) -> Vec<Result<Advanced, StepRefusal>> {
        let (ids, now, steps) = (self.ids.clone(), self.now, Arc::new(steps));
        let advancing = self.db.transaction(move |tx| {
            let (ids, steps) = (ids.clone(), steps.clone());
            async move { store::advance(&tx, &ids, now, POLICY, &steps).await }
        });
        advancing.await.unwrap()
    }

    async fn execute(&self, sql: &'static str) {
        let executing =
            self.db.transaction(move |tx| async move { Ok::<_, DbFault>(tx.execute_unprepared(sql).await?) });
        executing.await.unwrap();
    }

    async fn capture(&mut self, order: i64, payment: PaymentId) {
        if !self.captured.insert(payment) {
            return;
        }
        let row = payment::Model {
            id: payment.0,
            order_id: order,
            user_id: 1,
            channel: "sandbox".to_owned(),
            state: "succeeded".to_owned(),
            amount_minor: PRICE_MINOR,
            currency: "CNY".to_owned(),
            transaction_id: Some(payment.to_string()),
            payer: None,
            mode: None,
            wished_payer: None,
            failure: None,
            version: 2,
            created_at: 0,
            updated_at: 0,
            settled_at: Some(0),
            recheck_at: None,
        };
        let inserting = self.db.transaction::<_, DbFault, _, _>(move |tx| {
            let row = row.clone();
            async move {
                payment::Entity::insert(row.into_active_model()).exec_without_returning(&tx).await?;
                Ok(())
            }
        });
        inserting.await.unwrap();
    }

    /// Takes `steps` in one transaction, each as it is expected to end.
    async fn together(&mut self, wanted: Vec<(i64, Command)>) {
        for &(order, command) in &wanted {
            if let Command::Pay(payment) = command {
                self.capture(order, payment).await;
            }
        }
        let steps: Vec<Step> = wanted
            .iter()
            .map(|&(order, command)| Step::new(OrderId(order), command, Cause::Operator(UserId(9))))
            .collect();
        let answers = self.advance(steps.clone()).await;
        let mut taken = Vec::new();
        for (step, answer) in steps.into_iter().zip(answers) {
            self.expect(step.order.0, step.command, &answer);
            if matches!(answer, Ok(Advanced::Changed(_))) {
                taken.push(step);
            }
        }
        let before = self.written().await;
        self.advance(taken).await;
        assert_eq!(self.written().await, before, "a repeat changed something");
    }

    fn expect(&mut self, id: i64, command: Command, answer: &Result<Advanced, StepRefusal>) {
        let order = self.expected.get_mut(&id).unwrap();
        let payments = 100 * id..100 * (id + 1);
        let payment_open = self.captured.iter().any(|payment| payments.contains(&payment.0));
        let from = order.status.state;
        let decision = match command {
            Command::Pay(payment) if self.going_back.contains(&payment) => Ok(Decision::AlreadyDone),
            _ => decide(&Status { payment_open, ..order.status }, command, self.now),
        };
        let changes = match decision {
            Err(refusal) => {
                assert_eq!(answer, &Err(StepRefusal::Refused(from, refusal)), "{command:?} of {order:?}");
                return;
            }
            Ok(Decision::AlreadyDone) => false,
            Ok(Decision::ReturnPayment(payment)) => self.going_back.insert(payment),
            Ok(Decision::Move(state)) => {
                order.status.state = state;
                match command {
                    Command::Confirm => order.status.due_at = self.now + POLICY.payment_timeout,
                    Command::Pay(payment) => order.status.paid_by = Some(payment),
                    Command::Refund => {
                        order.status.refund_from = Some(from);
                        self.going_back.extend(order.status.paid_by);
                    }
                    Command::RefuseRefund => order.status.refund_from = None,
                    _ => {}
                }
                true
            }
        };
        // With nothing left to pay it is confirmed, and then paid.
        let paid_at_once = changes && command == Command::Confirm && order.status.state == State::Paid;
        order.version += i64::from(changes) + i64::from(paid_at_once);
        match answer {
            Ok(Advanced::Changed(now)) if changes => {
                assert_eq!((now.state, now.version), (order.status.state, order.version), "{command:?}");
            }
            Ok(Advanced::AlreadyDone(_)) if !changes => {}
            other => panic!("{other:?} to {command:?} in {from}, which is {decision:?}"),
        }
    }

    /// As the payment module does it: the order first, then the refund.
    async fn settle(&mut self, order: i64, refused: bool) {
        let open = self.written().await.refunds.into_iter().find(|refund| {
            refund.refunded_order_id == Some(order) && refund.state == RefundState::Requested.word()
        });
        let Some(open) = open else { return };
        let (command, moves): (_, &[_]) = match refused {
            true => (Command::RefuseRefund, &[RefundState::Rejected]),
            false => (Command::CompleteRefund, &[RefundState::Approved, RefundState::Succeeded]),
        };
        let id = RefundId(open.id);
        let answers = self.advance(vec![Step::new(OrderId(order), command, Cause::Refund(id))]).await;
        self.expect(order, command, &answers[0]);
        if let (true, Some(payment)) = (refused, open.payment_id) {
            self.going_back.remove(&PaymentId(payment));
        }
        let now = self.now;
        for to in moves {
            let settling = self
                .db
                .transaction(move |tx| async move { refunds::advance(&tx, id, *to, None, None, now).await });
            assert!(settling.await.unwrap());
        }
    }

    async fn written(&self) -> Written {
        let reading = self.db.read::<_, DbFault, _, _>(|connection| async move {
            let timeline = order_event::Entity::find()
                .order_by_asc(order_event::Column::OrderId)
                .order_by_asc(order_event::Column::Version);
            Ok(Written {
                orders: orders::Entity::find().order_by_asc(orders::Column::Id).all(&connection).await?,
                timeline: timeline.all(&connection).await?,
                refunds: refund::Entity::find().order_by_asc(refund::Column::Id).all(&connection).await?,
                outbox_rows: outbox::Entity::find().all(&connection).await?.len(),
            })
        });
        reading.await.unwrap()
    }

    /// Orders are as expected, timelines have no gap, and money that was captured pays an order or goes back, once.
    async fn adds_up(&self) {
        let Written { orders, timeline, refunds, .. } = self.written().await;
        let mut kept_minor = 0;
        for (order, (id, expected)) in orders.iter().zip(&self.expected) {
            let status = Order::try_from(order.clone()).unwrap().status(false);
            assert_eq!((order.id, status, order.version), (*id, expected.status, expected.version));
            let versions = timeline.iter().filter(|line| line.order_id == *id).map(|line| line.version);
            assert!(versions.eq(2..=order.version), "{order:?}: {timeline:?}");
            let paid = matches!(status.state, State::Paid | State::Shipped | State::Finished);
            kept_minor += if paid { order.payable_minor } else { 0 };
        }
        let going_back = refunds.iter().filter(|refund| refund.state != RefundState::Rejected.word());
        let back_minor: i64 = going_back.clone().map(|refund| refund.amount_minor).sum();
        let captured_minor = PRICE_MINOR * i64::try_from(self.captured.len()).unwrap();
        assert_eq!(captured_minor - back_minor, kept_minor, "{refunds:?}");
        let returned: Vec<PaymentId> =
            going_back.filter_map(|refund| refund.payment_id).map(PaymentId).collect();
        let once: BTreeSet<PaymentId> = returned.iter().copied().collect();
        assert_eq!(returned.len(), once.len(), "a payment goes back twice: {refunds:?}");
        assert_eq!(once, self.going_back);
    }
}

fn draft(id: i64) -> Order {
    let balance_paid_minor = if id == ORDERS { PRICE_MINOR } else { 0 };
    Order {
        id: OrderId(id),
        user_id: UserId(1),
        kind: Kind::Shop,
        state: State::Draft,
        version: 1,
        activity_id: None,
        items: "[]".to_owned(),
        address: None,
        amounts: Amounts {
            goods_amount_minor: PRICE_MINOR,
            shipping_fee_minor: 0,
            order_amount_minor: PRICE_MINOR,
            coupon_deduction_minor: 0,
            balance_paid_minor,
            payable_minor: PRICE_MINOR - balance_paid_minor,
        },
        coupon_id: None,
        currency: "CNY".parse().unwrap(),
        due_at: START + TimeDelta::minutes(1),
        paid_by: None,
        refund_from: None,
        cancel_cause: None,
        created_at: START,
        updated_at: START,
    }
}

async fn play(events: Vec<Event>) {
    let mut shop = Shop::open().await;
    for event in events {
        match event {
            Event::Together(steps) => shop.together(steps).await,
            Event::Settle { order, refused } => shop.settle(order, refused).await,
            Event::Wait => shop.now += TimeDelta::hours(1),
        }
        shop.adds_up().await;
    }
    shop.db.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn orders_go_where_the_machine_says_and_money_adds_up(events in events()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(play(events));
    }
}

/// A step of the saga never comes after its compensation.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_draft_is_held_for_a_step() {
    let shop = Shop::open().await;
    let held = async |order| {
        let holding =
            shop.db.transaction(move |tx| async move { store::hold_draft(&tx, OrderId(order)).await });
        holding.await.unwrap()
    };
    let step = |order, command| Step::new(OrderId(order), command, Cause::Creation);
    shop.advance(vec![step(1, Command::Abandon), step(2, Command::Confirm)]).await;
    assert!(!held(1).await, "a draft that was given up");
    assert!(!held(2).await, "an order");
    assert!(!held(i64::MAX).await, "no order at all");
    assert!(held(3).await);
}

#[tokio::test]
async fn an_order_is_paid_by_a_capture_of_its_own_alone() {
    let mut shop = Shop::open().await;
    let confirm = |order| Step::new(OrderId(order), Command::Confirm, Cause::Creation);
    shop.advance(vec![confirm(1), confirm(2), confirm(3)]).await;
    for order in [1, 2, 3] {
        shop.capture(order, payment_of(order, 1)).await;
    }
    shop.execute("UPDATE payment SET state = 'pending' WHERE id = 201").await;
    shop.execute("UPDATE payment SET amount_minor = 99 WHERE id = 301").await;
    let pay = |order, payment, captured: Option<(i64, &str)>| {
        let captured = captured.map(|(amount, currency)| (amount, currency.parse().unwrap()));
        Step { captured, ..Step::new(OrderId(order), Command::Pay(payment), Cause::Payment(payment)) }
    };
    let impossible = vec![
        pay(1, PaymentId(7), None),
        pay(1, payment_of(3, 1), Some((99, "CNY"))),
        pay(1, payment_of(1, 1), Some((PRICE_MINOR + 1, "CNY"))),
        pay(1, payment_of(1, 1), Some((PRICE_MINOR, "USD"))),
        pay(2, payment_of(2, 1), Some((PRICE_MINOR, "CNY"))),
        pay(3, payment_of(3, 1), Some((99, "CNY"))),
    ];
    let before = shop.written().await;
    for (step, answer) in impossible.iter().zip(shop.advance(impossible.clone()).await) {
        let refused = StepRefusal::Refused(State::AwaitingPayment, Refusal::NotItsPayment);
        assert_eq!(answer, Err(refused), "{step:?}");
    }
    assert_eq!(shop.written().await, before);
    // What belongs to nobody does not go back in the name of an order that has ended either.
    let cancel = Step::new(OrderId(2), Command::Cancel, Cause::Operator(UserId(9)));
    shop.execute("UPDATE payment SET state = 'closed' WHERE id = 201").await;
    let answers = shop.advance(vec![cancel, pay(2, payment_of(1, 1), None)]).await;
    let refused = StepRefusal::Refused(State::Cancelled, Refusal::NotItsPayment);
    assert!(
        matches!(answers.as_slice(), [Ok(Advanced::Changed(_)), Err(found)] if *found == refused),
        "{answers:?}"
    );

    let paid = shop.advance(vec![pay(1, payment_of(1, 1), Some((PRICE_MINOR, "CNY")))]).await;
    assert!(matches!(&paid[0], Ok(Advanced::Changed(order)) if order.state == State::Paid), "{paid:?}");
}
