//! The notices of WeChat Pay, and its settings.

use std::sync::Arc;

use chrono::TimeDelta;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rstest::rstest;
use serde_json::json;

use super::keys::{Key, PLATFORM, STRANGER};
use super::wechat::{API_KEY, CERTIFICATE, PAYMENT, SERIAL, captured, config, now, signature, transaction};
use super::*;
use crate::ports::clock::ManualClock;
use crate::ports::payment_gateway::wechat::{WechatPay, WechatPayConfig};

fn gateway() -> WechatPay {
    let _ = rustls::crypto::ring::default_provider().install_default();
    WechatPay::new(&config(), Arc::new(ManualClock::new(now()))).unwrap()
}

/// A notice as the document on encryption says.
fn notice_of(event_type: &str, resource: &Value, key: &str) -> String {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_bytes()).unwrap());
    let mut text = resource.to_string().into_bytes();
    let nonce = Nonce::assume_unique_for_key(*b"fdasflkja484");
    key.seal_in_place_append_tag(nonce, Aad::from(b"transaction"), &mut text).unwrap();
    json!({
        "id": "EV-2018022511223320873",
        "create_time": "2026-06-01T09:59:59+08:00",
        "resource_type": "encrypt-resource",
        "event_type": event_type,
        "summary": "支付成功",
        "resource": {
            "original_type": "transaction",
            "algorithm": "AEAD_AES_256_GCM",
            "ciphertext": base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text),
            "associated_data": "transaction",
            "nonce": "fdasflkja484",
        },
    })
    .to_string()
}

fn paid() -> String {
    notice_of("TRANSACTION.SUCCESS", &transaction("SUCCESS"), API_KEY)
}

fn told(key: &Key, serial: &str, body: &str) -> Result<Notice, NoticeRefusal> {
    let headers = signature(key, serial, now().timestamp(), "nonce", body.as_bytes());
    gateway().notice(&headers.into_iter().collect(), body.as_bytes(), now())
}

#[test]
fn a_notice_is_verified_and_decrypted() {
    for serial in [SERIAL, CERTIFICATE, &CERTIFICATE.to_lowercase()] {
        let notice = told(&PLATFORM, serial, &paid()).unwrap();
        assert_eq!((notice.payment_id, notice.kind), (PAYMENT, NoticeKind::Paid(captured())));
    }
    assert_eq!(gateway().acknowledge().status, 200);
}

/// As when it is asked for.
#[test]
fn what_was_given_back_already_is_not_paid() {
    let body = notice_of("TRANSACTION.SUCCESS", &transaction("REFUND"), API_KEY);
    let NoticeKind::Failed { reason } = told(&PLATFORM, SERIAL, &body).unwrap().kind else { panic!() };
    assert!(reason.contains("1217752501201407033233368018") && reason.contains("given back"), "{reason}");
}

#[test]
fn a_refund_has_a_notice_of_its_own() {
    let resource = |status: &str| {
        json!({
            "mchid": "1230000109", "transaction_id": "1217752501201407033233368018",
            "out_trade_no": "267432117862400", "refund_id": "503", "out_refund_no": "9000",
            "refund_status": status, "success_time": "2026-06-01T10:00:00+08:00",
            "user_received_account": "招商银行信用卡0403",
            "amount": { "total": 1234, "refund": 234, "payer_total": 1234, "payer_refund": 234 },
        })
    };
    let body = notice_of("REFUND.SUCCESS", &resource("SUCCESS"), API_KEY);
    let kind = NoticeKind::Refund { refund_id: Some(RefundId(9000)), state: RefundState::Succeeded };
    assert_eq!(told(&PLATFORM, SERIAL, &body).unwrap().kind, kind);
    let body = notice_of("REFUND.ABNORMAL", &resource("ABNORMAL"), API_KEY);
    let NoticeKind::Refund { state, .. } = told(&PLATFORM, SERIAL, &body).unwrap().kind else { panic!() };
    assert!(matches!(state, RefundState::Failed { .. }));
    let mut other = resource("SUCCESS");
    other["mchid"] = "1".into();
    let body = notice_of("REFUND.SUCCESS", &other, API_KEY);
    assert!(matches!(told(&PLATFORM, SERIAL, &body), Err(NoticeRefusal::WrongMerchant { .. })));
}

#[test]
fn a_forged_notice_is_refused() {
    let forged = |result: Result<Notice, NoticeRefusal>| {
        assert!(matches!(result, Err(NoticeRefusal::Forged(_))), "{result:?}");
    };
    forged(told(&STRANGER, SERIAL, &paid()));
    forged(told(&PLATFORM, "PUB_KEY_ID_OTHER", &paid()));

    let body = paid();
    let headers = signature(&PLATFORM, SERIAL, now().timestamp(), "nonce", body.as_bytes());
    let with = |headers: &[(&'static str, String)], body: &str| {
        let headers = headers.iter().map(|(name, value)| (*name, value.clone())).collect();
        gateway().notice(&headers, body.as_bytes(), now())
    };
    with(&headers, &body).unwrap();
    // One byte, and the same JSON in other bytes.
    forged(with(&headers, &body.replacen("EV-2", "EV-3", 1)));
    let value: Value = serde_json::from_str(&body).unwrap();
    forged(with(&headers, &serde_json::to_string_pretty(&value).unwrap()));
    for name in ["Wechatpay-Timestamp", "Wechatpay-Nonce"] {
        let mut changed = headers.clone();
        let at = changed.iter().position(|(known, _)| *known == name).unwrap();
        changed[at].1.push('1');
        forged(with(&changed, &body));
    }
    // Probes that WeChat Pay sends on purpose.
    let mut probe = headers.clone();
    probe[2].1 = format!("WECHATPAY/SIGNTEST/{}", probe[2].1);
    forged(with(&probe, &body));
    probe[2].1 = "WECHATPAY/SIGNTEST/1".to_owned();
    forged(with(&probe, &body));
    for missing in 0..4 {
        let mut fewer = headers.to_vec();
        fewer.remove(missing);
        forged(with(&fewer, &body));
    }
    let doubled = [headers.as_slice(), &headers[2..3]].concat();
    forged(with(&doubled, &body));
}

#[rstest]
#[case(-301, true)]
#[case(-300, false)]
#[case(301, true)]
fn a_notice_is_good_for_five_minutes(#[case] seconds: i64, #[case] stale: bool) {
    let body = paid();
    let headers = signature(&PLATFORM, SERIAL, now().timestamp(), "nonce", body.as_bytes());
    let later = now() - TimeDelta::seconds(seconds);
    let read = gateway().notice(&headers.into_iter().collect(), body.as_bytes(), later);
    assert_eq!(read == Err(NoticeRefusal::Stale), stale);
}

#[test]
fn a_notice_about_other_money_is_refused() {
    for (member, value) in [("appid", "wx0"), ("mchid", "1"), ("out_trade_no", "TILL-7")] {
        let mut other = transaction("SUCCESS");
        other[member] = value.into();
        let read = told(&PLATFORM, SERIAL, &notice_of("TRANSACTION.SUCCESS", &other, API_KEY));
        assert!(matches!(read, Err(NoticeRefusal::WrongMerchant { .. })), "{member}: {read:?}");
    }
}

#[test]
fn a_notice_that_makes_no_sense_is_malformed() {
    let bodies = [
        "{}".to_owned(),
        notice_of("TRANSACTION.SUCCESS", &transaction("SUCCESS"), &API_KEY.replace('0', "1")),
        notice_of("TRANSACTION.SUCCESS", &transaction("PARTLY"), API_KEY),
        notice_of("PAYSCORE.USER_OPEN_SERVICE", &transaction("SUCCESS"), API_KEY),
        notice_of("REFUND.SUCCESS", &transaction("SUCCESS"), API_KEY),
        paid().replace("AEAD_AES_256_GCM", "AES_ECB"),
        paid().replace("fdasflkja484", "short"),
    ];
    for body in bodies {
        let read = told(&PLATFORM, SERIAL, &body);
        assert!(matches!(read, Err(NoticeRefusal::Malformed(_))), "{body}: {read:?}");
    }
}

#[rstest]
#[case(WechatPayConfig { app_id: String::new(), ..config() }, "payment.wechat.app_id", "is needed")]
#[case(WechatPayConfig { notify_url: "shop".to_owned(), ..config() }, "payment.wechat.notify_url", "no URL")]
#[case(WechatPayConfig { notify_url: "https://a/?b".to_owned(), ..config() }, "payment.wechat.notify_url", "query")]
#[case(WechatPayConfig { base_url: "ftp://a".to_owned(), ..config() }, "payment.wechat.base_url", "https://")]
#[case(WechatPayConfig { api_v3_key: "short".into(), ..config() }, "payment.wechat.api_v3_key", "32 bytes, not 5")]
#[case(WechatPayConfig { private_key: "x".into(), ..config() }, "payment.wechat.private_key", "PEM")]
#[case(WechatPayConfig { platform_keys: Vec::new(), ..config() }, "payment.wechat.platform_keys", "needed")]
#[case(
    WechatPayConfig { platform_keys: vec![("AB12".to_owned(), PLATFORM.certificate(CERTIFICATE))], ..config() },
    "payment.wechat.platform_keys",
    "serial number 5157F09EFDC096DE15EBE81A47057A72"
)]
fn a_setting_that_cannot_be_used_is_named(
    #[case] config: WechatPayConfig,
    #[case] key: &str,
    #[case] problem: &str,
) {
    let error = WechatPay::new(&config, Arc::new(ManualClock::new(now()))).unwrap_err();
    assert_eq!(error.key, key);
    assert!(error.problem.contains(problem), "{error}");
}
