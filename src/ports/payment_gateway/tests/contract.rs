//! What every gateway promises, told as stories. WeChat Pay and Alipay are servers that keep books, as theirs do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::alipay::{self, FakeAlipay};
use super::wechat::{self, FakeWechat};
use super::*;
use crate::ports::payment_gateway::sandbox::{PayChoice, SandboxConfig};

/// What a gateway's server remembers, in its own numbers.
#[derive(Debug, Default)]
struct Books {
    payments: BTreeMap<String, Standing>,
    refunds: BTreeMap<String, i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Prepared,
    Paid,
    Closed,
}

/// A gateway under test, and its customer.
struct Shop {
    gateway: Arc<dyn PaymentGateway>,
    pay: Box<dyn Fn(PaymentId)>,
    _server: Option<Box<dyn std::any::Any>>,
}

fn sandbox() -> Shop {
    let sandbox = Arc::new(Sandbox::new(&SandboxConfig::random(cny()).unwrap()));
    let gateway = sandbox.clone();
    let now = at("2026-06-01T10:00:00+08:00");
    let pay = move |id: PaymentId| drop(sandbox.pay(&order(id.0), PayChoice::Succeed, now));
    Shop { gateway, pay: Box::new(pay), _server: None }
}

fn customer_of(books: &Arc<Mutex<Books>>) -> Box<dyn Fn(PaymentId)> {
    let books = books.clone();
    Box::new(move |id| {
        books.lock().unwrap().payments.insert(id.to_string(), Standing::Paid);
    })
}

fn wechat() -> Shop {
    let books = Arc::new(Mutex::new(Books::default()));
    let pay = customer_of(&books);
    let fake = FakeWechat::keeping(move |method, path, body| {
        let mut books = books.lock().unwrap();
        let body: Value = serde_json::from_str(body).unwrap_or_default();
        let path = path.split_once('?').map_or(path, |(path, _)| path);
        let parts: Vec<&str> = path.trim_start_matches("/v3/").split('/').collect();
        let problem = |status, code: &str| wechat::problem(status, code);
        match (method, parts.as_slice()) {
            ("POST", ["pay", "transactions", "native"]) => {
                let number = body["out_trade_no"].as_str().unwrap().to_owned();
                match *books.payments.entry(number).or_insert(Standing::Prepared) {
                    Standing::Prepared => (200, json!({ "code_url": "weixin://wxpay" }).to_string()),
                    Standing::Paid => problem(400, "ORDERPAID"),
                    Standing::Closed => problem(400, "ORDER_CLOSED"),
                }
            }
            ("GET", ["pay", "transactions", "out-trade-no", number]) => {
                let refunded = !books.refunds.is_empty();
                let state = match books.payments.get(*number) {
                    None => return problem(404, "ORDER_NOT_EXIST"),
                    Some(Standing::Prepared) => "NOTPAY",
                    Some(Standing::Paid) if refunded => "REFUND",
                    Some(Standing::Paid) => "SUCCESS",
                    Some(Standing::Closed) => "CLOSED",
                };
                let mut transaction = wechat::transaction(state);
                transaction["out_trade_no"] = (*number).into();
                (200, transaction.to_string())
            }
            ("POST", ["pay", "transactions", "out-trade-no", number, "close"]) => {
                match books.payments.get_mut(*number) {
                    None => problem(404, "ORDER_NOT_EXIST"),
                    Some(Standing::Paid) => problem(400, "ORDERPAID"),
                    Some(Standing::Closed) => problem(400, "ORDER_CLOSED"),
                    Some(standing) => {
                        *standing = Standing::Closed;
                        (204, String::new())
                    }
                }
            }
            ("POST", ["refund", "domestic", "refunds"]) => {
                let number = body["out_refund_no"].as_str().unwrap().to_owned();
                let (amount, total) = (&body["amount"]["refund"], &body["amount"]["total"]);
                match books.refund(number.clone(), amount.as_i64().unwrap(), total.as_i64().unwrap()) {
                    Given::Refused => problem(403, "NOT_ENOUGH"),
                    Given::Now | Given::Before => {
                        (200, json!({ "out_refund_no": number, "status": "SUCCESS" }).to_string())
                    }
                }
            }
            ("GET", ["refund", "domestic", "refunds", number]) => match books.refunds.get(*number) {
                Some(_) => (200, json!({ "out_refund_no": number, "status": "SUCCESS" }).to_string()),
                None => problem(404, "RESOURCE_NOT_EXISTS"),
            },
            other => panic!("{other:?}"),
        }
    });
    Shop { gateway: Arc::new(fake.gateway()), pay, _server: Some(Box::new(fake)) }
}

fn alipay() -> Shop {
    let books = Arc::new(Mutex::new(Books::default()));
    let pay = customer_of(&books);
    let fake = FakeAlipay::keeping(move |method, content| {
        let mut books = books.lock().unwrap();
        let number = content["out_trade_no"].as_str().unwrap();
        let unknown = || alipay::failed("40004", "ACQ.TRADE_NOT_EXIST");
        let done = || json!({ "code": "10000", "msg": "Success" });
        match (method, books.payments.get(number).copied()) {
            ("alipay.trade.precreate", Some(Standing::Paid)) => {
                alipay::failed("40004", "ACQ.TRADE_HAS_SUCCESS")
            }
            // No trade until the customer opens it.
            ("alipay.trade.precreate", _) => {
                json!({ "code": "10000", "msg": "Success", "qr_code": "https://qr.alipay.com/1" })
            }
            (_, None) => unknown(),
            ("alipay.trade.query", Some(standing)) => {
                let mut trade = match standing {
                    Standing::Prepared => alipay::unpaid("WAIT_BUYER_PAY"),
                    Standing::Paid => alipay::trade("TRADE_SUCCESS"),
                    Standing::Closed => alipay::unpaid("TRADE_CLOSED"),
                };
                trade["out_trade_no"] = number.into();
                trade
            }
            ("alipay.trade.close", Some(Standing::Paid)) => alipay::failed("40004", "ACQ.TRADE_STATUS_ERROR"),
            ("alipay.trade.close", Some(_)) => {
                books.payments.insert(number.to_owned(), Standing::Closed);
                done()
            }
            ("alipay.trade.refund", Some(_)) => {
                let request = content["out_request_no"].as_str().unwrap().to_owned();
                let amount = content["refund_amount"].as_str().unwrap().replace('.', "").parse().unwrap();
                let mut answer = done();
                answer["fund_change"] = match books.refund(request, amount, 1234) {
                    Given::Now => "Y".into(),
                    Given::Before => "N".into(),
                    Given::Refused => return alipay::failed("40004", "ACQ.REFUND_AMT_NOT_EQUAL_TOTAL"),
                };
                answer
            }
            ("alipay.trade.fastpay.refund.query", Some(_)) => {
                let mut answer = done();
                if books.refunds.contains_key(content["out_request_no"].as_str().unwrap()) {
                    answer["refund_status"] = "REFUND_SUCCESS".into();
                }
                answer
            }
            other => panic!("{other:?}"),
        }
    });
    Shop { gateway: Arc::new(fake.gateway()), pay, _server: Some(Box::new(fake)) }
}

enum Given {
    Now,
    Before,
    Refused,
}

impl Books {
    /// Gives back once for each number, and never more than was paid.
    fn refund(&mut self, number: String, amount: i64, total: i64) -> Given {
        if self.refunds.contains_key(&number) {
            return Given::Before;
        }
        if self.refunds.values().sum::<i64>() + amount > total {
            return Given::Refused;
        }
        self.refunds.insert(number, amount);
        Given::Now
    }
}

fn all() -> [Shop; 3] {
    [sandbox(), wechat(), alipay()]
}

#[actix_web::test]
async fn each_channel_has_one_gateway() {
    let channels: BTreeSet<&str> = all().iter().map(|shop| shop.gateway.channel().word()).collect();
    assert_eq!(channels.len(), Channel::ALL.len());
}

#[actix_web::test]
async fn what_a_gateway_does_not_know_was_not_paid() {
    for Shop { gateway, _server, .. } in all() {
        assert_eq!(gateway.query(PaymentId(1)).await, Ok(GatewayState::NotFound), "{gateway:?}");
        let refund = gateway.query_refund(PaymentId(1), RefundId(2)).await;
        assert_eq!(refund, Ok(RefundState::NotFound), "{gateway:?}");
        let closed = gateway.close(PaymentId(1)).await;
        assert!(matches!(closed, Ok(Closing::Closed | Closing::Unknown)), "{gateway:?}: {closed:?}");
    }
}

#[actix_web::test]
async fn a_payment_is_prepared_and_closed_as_often_as_one_likes() {
    for Shop { gateway, _server, .. } in all() {
        let first = gateway.create(&order(1)).await.unwrap();
        assert_eq!(gateway.create(&order(1)).await.unwrap(), first, "{gateway:?}");
        let state = gateway.query(PaymentId(1)).await.unwrap();
        assert!(matches!(state, GatewayState::Pending | GatewayState::NotFound), "{gateway:?}: {state:?}");
        for _ in 0..2 {
            let closed = gateway.close(PaymentId(1)).await;
            // Alipay knows a payment only once its customer has opened it.
            assert!(matches!(closed, Ok(Closing::Closed | Closing::Unknown)), "{gateway:?}: {closed:?}");
        }
        let state = gateway.query(PaymentId(1)).await.unwrap();
        assert!(matches!(state, GatewayState::Closed | GatewayState::NotFound), "{gateway:?}: {state:?}");
    }
}

#[actix_web::test]
async fn a_payment_that_was_made_is_not_closed_and_goes_back_once() {
    for Shop { gateway, pay, _server } in all() {
        gateway.create(&order(1)).await.unwrap();
        pay(PaymentId(1));
        let state = gateway.query(PaymentId(1)).await.unwrap();
        let GatewayState::Succeeded(capture) = state else { panic!("{gateway:?}: {state:?}") };
        assert_eq!((capture.amount_minor, capture.currency), (1234, cny()));
        for _ in 0..2 {
            let closed = gateway.close(PaymentId(1)).await;
            assert_eq!(closed, Ok(Closing::AlreadyPaid(capture.clone())), "{gateway:?}");
        }

        for _ in 0..2 {
            assert_eq!(gateway.refund(&refund(2, 1, 1000)).await, Ok(RefundState::Succeeded), "{gateway:?}");
        }
        let known = gateway.query_refund(PaymentId(1), RefundId(2)).await;
        assert_eq!(known, Ok(RefundState::Succeeded), "{gateway:?}");
        let too_much = gateway.refund(&refund(3, 1, 235)).await;
        assert!(matches!(too_much, Err(GatewayError::Refused { .. })), "{gateway:?}: {too_much:?}");
        assert_eq!(gateway.refund(&refund(4, 1, 234)).await, Ok(RefundState::Succeeded), "{gateway:?}");
        let closed = gateway.close(PaymentId(1)).await;
        let Ok(Closing::AlreadyPaid(same) | Closing::Refunded(same)) = &closed else {
            panic!("{gateway:?}: {closed:?}")
        };
        assert_eq!(*same, capture);
    }
}
