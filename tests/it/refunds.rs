//! Refunds that are asked for, decided and overtaken at the same moment: the money goes back once, or stays.
//!
//! On databases that servers share, the two sides of each race ask two servers.

use futures_util::future::{join, join_all};
use serde_json::{Value, json};
use tombola::config::Config;

use crate::lists::pages;
use crate::support::alipay::{self, FakeAlipay};
use crate::support::app::Node;
use crate::support::gateway::KEY;
use crate::support::payments::{open, order_of};
use crate::support::{Answer, Client, Offer, TestApp, stories};

stories!(
    twenty_requests_make_one_refund,
    two_decisions_have_one_outcome,
    a_refund_and_a_delivery_have_one_outcome,
    operators_see_and_refund_what_was_paid,
);

const AMOUNT: i64 = 1234;

/// How often each race is run.
const ROUNDS: usize = 4;

/// A shop that sells through Alipay.
struct Shop<'a> {
    app: &'a TestApp,
    alipay: FakeAlipay,
    second: Option<Node>,
    /// The same user at either server.
    customer: [Client; 2],
    operator: [Client; 2],
}

impl<'a> Shop<'a> {
    async fn start(app: &'a TestApp, refund_approval: bool) -> Self {
        let alipay = FakeAlipay::start().await;
        let change = |config: &mut Config| {
            alipay.configure(config);
            config.order.refund_approval = refund_approval;
        };
        app.restart_with(change).await;
        let second = if app.database.is_shared() { Some(app.another_node_with(change).await) } else { None };
        let at_both = |client: Client| {
            let there = second.as_ref().map_or_else(|| client.clone(), |node| client.at(node));
            [client, there]
        };
        let (customer, operator) = (at_both(app.customer("alice").await), at_both(app.operator().await));
        Self { app, alipay, second, customer, operator }
    }

    /// Orders that are paid.
    async fn sell(&self, count: usize) -> Vec<String> {
        let stock = i64::try_from(count).unwrap();
        let activity = self.app.running(Offer::of(stock).at_price(AMOUNT)).await;
        let [alice, _] = &self.customer;
        let selling = (0..count).map(async |_| {
            let order = alice.take(&activity).await.is(201)["order"]["id"].as_str().unwrap().to_owned();
            let payment = open(alice, &order, "alipay").await;
            self.alipay.pay(&payment, AMOUNT);
            alipay::notice(&payment, AMOUNT, &[], &KEY).told(self.app).await;
            order_of(alice, &order).becomes("paid").await;
            order
        });
        join_all(selling).await
    }

    /// The customer wants the money back.
    async fn asks(&self, at: usize, order: &str) -> Answer {
        self.customer[at]
            .post(&format!("/orders/{order}/refunds"), json!({"reason": "It does not fit"}))
            .await
    }

    /// An operator decides on a refund: `approve` or `refuse`.
    async fn decides(&self, at: usize, refund: &str, decision: &str) -> Answer {
        let body = if decision == "refuse" { json!({"reason": "worn"}) } else { json!({}) };
        self.operator[at].post(&format!("/admin/refunds/{refund}/{decision}"), body).await
    }

    /// The goods have left, or have arrived: `ship` or `finish`.
    async fn delivers(&self, at: usize, order: &str, step: &str) -> Answer {
        self.operator[at].post(&format!("/admin/orders/{order}/{step}"), json!({})).await
    }

    /// The refunds of an order, oldest first.
    async fn refunds(&self, order: &str) -> Vec<Value> {
        let found = self.customer[0].get(&format!("/orders/{order}/refunds")).await.is(200);
        found["items"].as_array().unwrap().clone()
    }

    /// The refund of an order that was asked for last.
    async fn last_refund(&self, order: &str) -> String {
        self.refunds(order).await.last().unwrap()["id"].as_str().unwrap().to_owned()
    }

    /// Each of `orders` ends refunded, and Alipay gives back what each cost, once.
    async fn have_their_money_back(&self, orders: &[String]) {
        let mut expected = Vec::new();
        for order in orders {
            order_of(&self.customer[0], order).becomes("refunded").await;
            expected.push((self.last_refund(order).await, "12.34".to_owned()));
        }
        self.app.is_quiet().await;
        expected.sort_unstable();
        assert_eq!(self.alipay.returned().into_iter().collect::<Vec<_>>(), expected);
    }

    async fn stop(self) {
        if let Some(node) = self.second {
            node.stop().await;
        }
    }
}

async fn twenty_requests_make_one_refund(app: &TestApp) {
    let shop = Shop::start(app, false).await;
    let orders = shop.sell(ROUNDS).await;
    for order in &orders {
        let answers = join_all((0..20).map(|turn| shop.asks(turn % 2, order))).await;
        assert!(answers.iter().any(|answer| answer.status == 202));
        for answer in answers {
            if answer.status != 202 {
                answer.refused(409, "already_refunded");
            }
        }
    }
    shop.have_their_money_back(&orders).await;
    for order in &orders {
        assert_eq!(shop.refunds(order).await.len(), 1);
    }
    shop.stop().await;
}

async fn two_decisions_have_one_outcome(app: &TestApp) {
    let shop = Shop::start(app, true).await;
    let orders = shop.sell(3 * ROUNDS).await;
    let pairs = [["approve", "approve"], ["approve", "refuse"], ["refuse", "approve"]];
    let races: Vec<(&String, [&str; 2])> = orders.iter().zip(pairs.into_iter().cycle()).collect();
    let deciding = races.iter().map(async |(order, [first, second])| {
        shop.asks(0, order).await.is(202);
        let refund = shop.last_refund(order).await;
        let (first, second) = join(shop.decides(0, &refund, first), shop.decides(1, &refund, second)).await;
        [first, second]
    });
    for ((order, decisions), answers) in races.iter().zip(join_all(deciding).await) {
        let mut obeyed = Vec::new();
        for (decision, answer) in decisions.iter().zip(answers) {
            match answer.status {
                200 => obeyed.push(*decision),
                _ => drop(answer.refused(409, "transition_not_allowed")),
            }
        }
        if decisions == &pairs[0] {
            assert_eq!(obeyed, ["approve", "approve"]);
        } else {
            assert_eq!(obeyed.len(), 1, "both were told that theirs is done, or neither");
        }
        if obeyed == ["refuse"] {
            let order = shop.customer[0].get(&format!("/orders/{order}")).await.is(200);
            assert_eq!(order["state"], "paid");
        }
    }
    for (order, _) in &races {
        if shop.refunds(order).await[0]["state"] == "rejected" {
            // Asked again, the operator thinks better of it.
            shop.asks(0, order).await.is(202);
            shop.decides(1, &shop.last_refund(order).await, "approve").await.is(200);
        }
    }
    shop.have_their_money_back(&orders).await;
    shop.stop().await;
}

async fn a_refund_and_a_delivery_have_one_outcome(app: &TestApp) {
    let shop = Shop::start(app, false).await;
    let orders = shop.sell(2 * ROUNDS).await;
    let (paid, shipped) = orders.split_at(ROUNDS);
    for order in shipped {
        shop.delivers(0, order, "ship").await.is(200);
    }
    let races = paid.iter().map(|order| (order, "ship")).chain(shipped.iter().map(|order| (order, "finish")));
    let racing = races.enumerate().map(async |(round, (order, step))| {
        let (refund, delivery) = (shop.asks(0, order), shop.delivers(1, order, step));
        // Either may be sent first.
        if round % 2 == 0 {
            let (refund, delivery) = join(refund, delivery).await;
            (order, step, refund, delivery)
        } else {
            let (delivery, refund) = join(delivery, refund).await;
            (order, step, refund, delivery)
        }
    });
    let raced = join_all(racing).await;
    shop.have_their_money_back(&orders).await;

    let mut kept = 0;
    for (order, step, refund, delivery) in raced {
        refund.is(202);
        let delivered = delivery.status == 200;
        if !delivered {
            delivery.refused(409, "transition_not_allowed");
        }
        let mut path = vec!["created", "paid"];
        path.extend((step == "finish").then_some("shipped"));
        path.extend(delivered.then_some(if step == "ship" { "shipped" } else { "finished" }));
        path.extend(["refund_requested", "refunded"]);
        let timeline = shop.customer[0].get(&format!("/orders/{order}/timeline")).await.is(200);
        let types = timeline["items"].as_array().unwrap().iter().map(|entry| entry["type"].as_str().unwrap());
        assert_eq!(types.collect::<Vec<_>>(), path);
        kept += usize::from(path.contains(&"shipped"));
    }
    // What was shipped is not sold again.
    let takes = shop.customer[0].my_takes().await;
    assert_eq!(takes.iter().filter(|take| take.state != "released").count(), kept);
    shop.stop().await;
}

async fn operators_see_and_refund_what_was_paid(app: &TestApp) {
    let shop = Shop::start(app, false).await;
    let orders = shop.sell(2).await;
    let ([alice, _], [operator, _], viewer) = (&shop.customer, &shop.operator, app.viewer().await);
    let one_of = async |list: String| {
        let found = viewer.get(&list).await.is(200);
        let [one] = found["items"].as_array().unwrap().as_slice() else { panic!("{list}: {found}") };
        one.clone()
    };

    let payment = one_of(format!("/admin/payments?order_id={}", orders[0])).await;
    assert_eq!((&payment["order_id"], &payment["state"]), (&json!(orders[0]), &json!("succeeded")));
    assert_eq!((&payment["channel"], &payment["amount_minor"]), (&json!("alipay"), &json!(AMOUNT)));
    for known in ["user_id", "transaction_id", "payer", "settled_at"] {
        assert!(payment[known].is_string(), "{known} of {payment}");
    }
    assert_eq!(pages(&viewer, "/admin/payments?state=succeeded&channel=alipay", 1).await.concat().len(), 2);
    assert!(pages(&viewer, "/admin/payments?state=failed", 1).await.concat().is_empty());

    let id = payment["id"].as_str().unwrap();
    let record = one_of(format!("/admin/payments/{id}/records")).await;
    assert_eq!((&record["source"], &record["outcome"]), (&json!("callback"), &json!("succeeded")));
    assert_eq!(record["transaction_id"], payment["transaction_id"]);
    assert!(record["body"].as_str().unwrap().contains("trade_status=TRADE_SUCCESS"), "{record}");

    let refunds = format!("/admin/orders/{}/refunds", orders[0]);
    operator.post(&refunds, json!({})).await.refused(422, "validation_failed");
    operator.post(&refunds, json!({"reason": "The box was empty"})).await.is(202);
    order_of(alice, &orders[0]).becomes("refunded").await;
    let refund = one_of(format!("/admin/refunds?order_id={}", orders[0])).await;
    assert_eq!((&refund["reason"], &refund["state"]), (&json!("The box was empty"), &json!("succeeded")));
    assert_eq!(refund["payment_id"], payment["id"]);

    let user = payment["user_id"].as_str().unwrap();
    assert_eq!(pages(&viewer, &format!("/admin/orders?user_id={user}"), 1).await.concat().len(), 2);
    one_of(format!("/admin/orders?user_id={user}&state=paid")).await;
    assert!(pages(&viewer, "/admin/orders?user_id=1", 1).await.concat().is_empty());

    viewer.post(&refunds, json!({"reason": "No"})).await.refused(403, "forbidden");
    alice.get(&format!("/admin/payments/{id}/records")).await.refused(403, "forbidden");
    viewer.get("/admin/payments/1/records").await.refused(404, "not_found");
    viewer.get("/admin/payments?state=lost").await.refused(422, "validation_failed");
    shop.stop().await;
}
