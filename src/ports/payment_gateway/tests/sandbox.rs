//! The sandbox, and API.md's words about its notices.

use std::time::Duration;

use chrono::TimeDelta;
use ring::hmac;
use rstest::rstest;

use super::*;
use crate::ports::payment_gateway::sandbox::{PayChoice, SIGNATURE, SandboxConfig};
use crate::ports::payment_gateway::sandbox_page::{Shown, page};

const SECRET: &str = "a secret";
const PAID: &str = r#"{"payment_id":"7","transaction_id":"T1","amount_minor":1234,"result":"success"}"#;

fn sandbox() -> Sandbox {
    Sandbox::new(&SandboxConfig::new(SECRET.into(), cny()).unwrap())
}

fn now() -> Timestamp {
    at("2026-06-01T10:00:00+08:00")
}

fn tag(secret: &str, time: i64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    hex::encode(hmac::sign(&key, format!("{time}.{body}").as_bytes()))
}

fn told(sandbox: &Sandbox, header: &str, body: &str) -> Result<Notice, NoticeRefusal> {
    sandbox.notice(&[(SIGNATURE.to_lowercase(), header)].into_iter().collect(), body.as_bytes(), now())
}

/// The signature as API.md writes it, with several `v1` while a secret is replaced.
#[test]
fn a_signed_notice_is_read() {
    let (sandbox, time) = (sandbox(), now().timestamp());
    let own = sandbox.sign(PAID.as_bytes(), now());
    assert_eq!(own, format!("t={time},v1={}", tag(SECRET, time, PAID)));
    let rotating = format!("t={time},v1={},v0=x,v1={}", tag("other", time, PAID), tag(SECRET, time, PAID));
    for header in [own, rotating] {
        let notice = told(&sandbox, &header, PAID).unwrap();
        assert_eq!(notice.payment_id, PaymentId(7));
        let NoticeKind::Paid(capture) = notice.kind else { panic!("{notice:?}") };
        assert_eq!((capture.transaction_id.as_str(), capture.amount_minor), ("T1", 1234));
        assert_eq!((capture.currency, capture.paid_at), (cny(), now()));
    }
}

#[rstest]
#[case::empty("", PAID)]
#[case::no_time(&format!("v1={}", tag(SECRET, 0, PAID)), PAID)]
#[case::no_signature(&format!("t={}", now().timestamp()), PAID)]
#[case::other_secret(&format!("t={0},v1={1}", now().timestamp(), tag("other", now().timestamp(), PAID)), PAID)]
#[case::not_hex(&format!("t={},v1=xyz", now().timestamp()), PAID)]
#[case::two_times(&format!("t=1,{}", sandbox().sign(PAID.as_bytes(), now())), PAID)]
#[case::another_byte(&sandbox().sign(PAID.as_bytes(), now()), &PAID.replace("1234", "1235"))]
#[case::reserialised(&sandbox().sign(PAID.as_bytes(), now()), &PAID.replace(',', ", "))]
fn a_forged_notice_is_refused(#[case] header: &str, #[case] body: &str) {
    assert!(matches!(told(&sandbox(), header, body), Err(NoticeRefusal::Forged(_))));
}

#[rstest]
#[case(-301, true)]
#[case(-300, false)]
#[case(300, false)]
#[case(301, true)]
fn a_notice_is_good_for_five_minutes(#[case] seconds: i64, #[case] stale: bool) {
    let sandbox = sandbox();
    let header = sandbox.sign(PAID.as_bytes(), now() + TimeDelta::seconds(seconds));
    assert_eq!(told(&sandbox, &header, PAID) == Err(NoticeRefusal::Stale), stale);
}

#[rstest]
#[case::unknown_member(&PAID.replace("}", r#","x":1}"#))]
#[case::no_number(&PAID.replace("T1", ""))]
#[case::long_number(&PAID.replace("T1", &"界".repeat(65)))]
#[case::nul_in_the_number(&PAID.replace("T1", r"T\u0000"))]
#[case::line_in_the_number(&PAID.replace("T1", r"T\n1"))]
#[case::nothing(&PAID.replace("1234", "0"))]
#[case::fraction(&PAID.replace("1234", "12.34"))]
#[case::result(&PAID.replace("success", "SUCCESS"))]
#[case::number(&PAID.replace("\"7\"", "7"))]
fn a_signed_notice_may_still_be_malformed(#[case] body: &str) {
    let sandbox = sandbox();
    let header = sandbox.sign(body.as_bytes(), now());
    assert!(matches!(told(&sandbox, &header, body), Err(NoticeRefusal::Malformed(_))));
}

#[test]
fn a_transaction_id_may_have_64_characters() {
    let (sandbox, body) = (sandbox(), PAID.replace("T1", &"界".repeat(64)));
    let header = sandbox.sign(body.as_bytes(), now());
    assert!(told(&sandbox, &header, &body).is_ok());
}

#[test]
fn a_header_that_was_sent_twice_counts_as_none() {
    let sandbox = sandbox();
    let header = sandbox.sign(PAID.as_bytes(), now());
    let headers = [(SIGNATURE, header.clone()), (SIGNATURE, header)].into_iter().collect();
    assert!(matches!(sandbox.notice(&headers, PAID.as_bytes(), now()), Err(NoticeRefusal::Forged(_))));
}

#[actix_web::test]
async fn what_is_not_known_was_not_paid() {
    let sandbox = sandbox();
    assert_eq!(sandbox.query(PaymentId(7)).await, Ok(GatewayState::NotFound));
    assert_eq!(sandbox.query_refund(PaymentId(7), RefundId(1)).await, Ok(RefundState::NotFound));
    assert_eq!(sandbox.close(PaymentId(7)).await, Ok(Closing::Closed));
    assert_eq!(sandbox.query(PaymentId(7)).await, Ok(GatewayState::Closed));
}

#[actix_web::test]
async fn there_is_one_way_to_pay() {
    let sandbox = sandbox();
    for mode in PaymentMode::ALL {
        let refused = sandbox.create(&PaymentOrder { mode: Some(*mode), ..order(7) }).await;
        assert!(matches!(refused, Err(GatewayError::Unfit(_))), "{mode}: {refused:?}");
    }
    assert_eq!(sandbox.query(PaymentId(7)).await, Ok(GatewayState::NotFound));
}

#[actix_web::test]
async fn a_payment_is_made_once_and_given_back_once() {
    let (sandbox, order) = (sandbox(), order(7));
    for _ in 0..2 {
        assert_eq!(sandbox.create(&order).await.unwrap()["pay_url"], "/pay/sandbox/7");
    }
    assert_eq!(sandbox.query(PaymentId(7)).await, Ok(GatewayState::Pending));
    let signals = sandbox.pay(&order, PayChoice::Twice, now());
    assert_eq!((signals.len(), signals[0].delay), (2, Duration::ZERO));
    assert_eq!(signals[0], signals[1]);
    let header = sandbox.sign(signals[0].body.as_bytes(), now());
    let told = told(&sandbox, &header, &signals[0].body).unwrap();
    let NoticeKind::Paid(capture) = told.kind else { panic!("{told:?}") };
    assert_eq!(sandbox.close(PaymentId(7)).await, Ok(Closing::AlreadyPaid(capture.clone())));
    assert_eq!(sandbox.query(PaymentId(7)).await, Ok(GatewayState::Succeeded(capture.clone())));

    for _ in 0..2 {
        assert_eq!(sandbox.refund(&refund(1, 7, 1000)).await, Ok(RefundState::Succeeded));
    }
    assert!(matches!(sandbox.refund(&refund(2, 7, 235)).await, Err(GatewayError::Refused { .. })));
    assert_eq!(sandbox.refund(&refund(3, 7, 234)).await, Ok(RefundState::Succeeded));
    assert_eq!(sandbox.query_refund(PaymentId(7), RefundId(1)).await, Ok(RefundState::Succeeded));
    assert_eq!(sandbox.query_refund(PaymentId(7), RefundId(2)).await, Ok(RefundState::NotFound));
    assert_eq!(sandbox.query(PaymentId(7)).await, Ok(GatewayState::Refunded(capture)));
}

#[actix_web::test]
async fn a_closed_payment_can_only_be_made_late() {
    let (sandbox, order) = (sandbox(), order(7));
    sandbox.close(PaymentId(7)).await.unwrap();
    assert_eq!(sandbox.pay(&order, PayChoice::Succeed, now()), []);
    let late = &sandbox.pay(&order, PayChoice::Late, now())[0];
    assert_eq!(late.delay, Duration::from_secs(30 * 60 + 5));
    assert_eq!(sandbox.query(PaymentId(7)).await, Ok(GatewayState::Closed));
    let header = sandbox.sign(late.body.as_bytes(), now());
    told(&sandbox, &header, &late.body).unwrap();
    assert!(matches!(sandbox.query(PaymentId(7)).await, Ok(GatewayState::Succeeded(_))));
}

#[actix_web::test]
async fn a_payment_that_was_made_cannot_fail() {
    let (sandbox, order) = (sandbox(), order(7));
    sandbox.pay(&order, PayChoice::Succeed, now());
    assert_eq!(sandbox.pay(&order, PayChoice::Fail, now()), []);
    assert!(matches!(sandbox.query(PaymentId(7)).await, Ok(GatewayState::Succeeded(_))));
}

#[actix_web::test]
async fn a_failure_is_told_and_the_customer_may_try_again() {
    let (sandbox, order) = (sandbox(), order(7));
    let failed = &sandbox.pay(&order, PayChoice::Fail, now())[0];
    assert_eq!(sandbox.query(PaymentId(7)).await, Ok(GatewayState::Failed));
    let header = sandbox.sign(failed.body.as_bytes(), now());
    assert!(matches!(told(&sandbox, &header, &failed.body).unwrap().kind, NoticeKind::Failed { .. }));
    sandbox.pay(&order, PayChoice::Succeed, now());
    assert!(matches!(sandbox.query(PaymentId(7)).await, Ok(GatewayState::Succeeded(_))));
    assert_eq!(sandbox.pay(&order, PayChoice::Succeed, order.expires_at), []);
}

#[test]
fn the_page_offers_every_choice_and_escapes_what_it_shows() {
    let shown = page(&order(7), Shown::Choices);
    assert!(shown.contains("<dd>CNY 12.34</dd>"), "{shown}");
    assert!(shown.contains("Tea &amp; &lt;b&gt;cups&lt;/b&gt;") && !shown.contains("<b>"), "{shown}");
    for choice in PayChoice::ALL {
        assert!(shown.contains(&format!("value=\"{choice}\"")), "{shown}");
        let done = page(&order(7), Shown::Done(*choice));
        assert!(done.contains("role=\"status\"") && !done.contains("<form"), "{done}");
    }
}

#[test]
fn a_random_secret_is_another_one_each_time() {
    let sign = || Sandbox::new(&SandboxConfig::random(cny()).unwrap()).sign(PAID.as_bytes(), now());
    assert_ne!(sign(), sign());
    assert!(SandboxConfig::new("".into(), cny()).is_err());
}
