//! The notices of Alipay.

use std::collections::BTreeMap;

use form_urlencoded::Serializer;
use rstest::rstest;

use super::alipay::{NUMBER, PAYMENT, captured, gateway, now, text};
use super::keys::{Key, PLATFORM, STRANGER};
use super::*;

/// A notice as the documents say.
fn notice_of(changes: &[(&str, &str)], key: &Key) -> String {
    let mut fields: BTreeMap<String, String> = [
        ("notify_time", "2026-06-01 10:00:00"),
        ("notify_type", "trade_status_sync"),
        ("notify_id", "ac05099524730693a8b330c5ecf72da9786"),
        ("charset", "utf-8"),
        ("version", "1.0"),
        ("app_id", "2014072300007148"),
        ("auth_app_id", "2014072300007148"),
        ("trade_no", NUMBER),
        ("out_trade_no", "267432117862400"),
        ("buyer_id", "2088102122524333"),
        ("seller_id", "2088101106499364"),
        ("trade_status", "TRADE_SUCCESS"),
        ("total_amount", "12.34"),
        ("receipt_amount", "12.34"),
        ("subject", "茶 & 100% cups"),
        ("gmt_create", "2026-06-01 09:59:50"),
        ("gmt_payment", "2026-06-01 09:59:58"),
        ("fund_bill_list", r#"[{"amount":"12.34","fundChannel":"ALIPAYACCOUNT"}]"#),
    ]
    .into_iter()
    .chain(changes.iter().copied())
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    fields.retain(|_, value| value != "-");
    let signature = key.sign(text(&fields).as_bytes());
    let form = Serializer::new(String::new()).extend_pairs(fields).append_pair("sign_type", "RSA2").finish();
    Serializer::new(form).append_pair("sign", &signature).finish()
}

fn told(body: &str) -> Result<Notice, NoticeRefusal> {
    gateway("http://127.0.0.1:1").notice(&NoticeHeaders::default(), body.as_bytes(), now())
}

#[rstest]
#[case(&[], NoticeKind::Paid(captured("2088102122524333")))]
#[case(&[("trade_status", "TRADE_FINISHED")], NoticeKind::Paid(captured("2088102122524333")))]
#[case(&[("seller_id", "-")], NoticeKind::Paid(captured("2088102122524333")))]
#[case(&[("refund_fee", "0.00")], NoticeKind::Paid(captured("2088102122524333")))]
#[case(&[("trade_status", "TRADE_CLOSED"), ("gmt_payment", "-")], NoticeKind::Closed)]
#[case(&[("trade_status", "WAIT_BUYER_PAY"), ("gmt_payment", "-")], NoticeKind::Pending)]
#[case(
    &[("refund_fee", "2.34"), ("gmt_refund", "2026-06-01 10:00:00.123"), ("out_biz_no", "9000")],
    NoticeKind::Refund { refund_id: Some(RefundId(9000)), state: RefundState::Succeeded }
)]
#[case(
    &[("trade_status", "TRADE_CLOSED"), ("refund_fee", "12.34"), ("out_biz_no", "HZRF001")],
    NoticeKind::Refund { refund_id: None, state: RefundState::Succeeded }
)]
fn a_notice_is_verified_and_read(#[case] changes: &[(&str, &str)], #[case] kind: NoticeKind) {
    let notice = told(&notice_of(changes, &PLATFORM)).unwrap();
    assert_eq!((notice.payment_id, notice.kind), (PAYMENT, kind));
}

#[test]
fn a_forged_notice_is_refused() {
    let forged = |body: &str| {
        let read = told(body);
        assert!(matches!(read, Err(NoticeRefusal::Forged(_))), "{body}: {read:?}");
    };
    let body = notice_of(&[], &PLATFORM);
    told(&body).unwrap();
    forged(&notice_of(&[], &STRANGER));
    forged(&body.replace("total_amount=12.34", "total_amount=12.35"));
    forged(&format!("{body}&extra=1"));
    forged(&format!("{body}&total_amount=12.34"));
    forged(body.split_once("&sign=").unwrap().0);
    forged("");

    // Whatever algorithm the sender names, it is RSA2: SHA-1 is not accepted, and a lie about it changes nothing.
    told(&body.replace("sign_type=RSA2", "sign_type=RSA")).unwrap();
    let weak = body.split_once("&sign=").unwrap().0.replace("sign_type=RSA2", "sign_type=RSA");
    let mut fields: BTreeMap<String, String> = form_urlencoded::parse(weak.as_bytes()).into_owned().collect();
    fields.remove("sign_type");
    let signature = PLATFORM.sign_weakly(text(&fields).as_bytes());
    forged(&Serializer::new(weak).append_pair("sign", &signature).finish());
}

#[test]
fn a_notice_about_other_money_is_refused() {
    for change in [("app_id", "2014"), ("seller_id", "2088000"), ("out_trade_no", "TILL-7")] {
        let read = told(&notice_of(&[change], &PLATFORM));
        assert!(matches!(read, Err(NoticeRefusal::WrongMerchant { .. })), "{change:?}: {read:?}");
    }
}

#[test]
fn a_notice_that_makes_no_sense_is_malformed() {
    for change in [
        ("total_amount", "12.345"),
        ("total_amount", "-12.34"),
        ("total_amount", "1e3"),
        ("total_amount", "-"),
        ("trade_status", "PAID"),
        ("trade_no", "-"),
        ("out_trade_no", "-"),
        ("gmt_payment", "yesterday"),
    ] {
        let read = told(&notice_of(&[change], &PLATFORM));
        assert!(matches!(read, Err(NoticeRefusal::Malformed(_))), "{change:?}: {read:?}");
    }
    let acknowledgement = gateway("http://127.0.0.1:1").acknowledge();
    assert_eq!((acknowledgement.status, acknowledgement.body), (200, "success"));
}
