//! What every gateway promises, and what each one's documents say, against servers that behave as those documents do.

mod alipay;
mod alipay_notices;
mod contract;
pub(crate) mod keys;
mod sandbox;
mod server;
mod wechat;
mod wechat_notices;

use serde_json::json;

use super::*;

/// A payment of 12.34.
fn order(payment_id: i64) -> PaymentOrder {
    PaymentOrder {
        payment_id: PaymentId(payment_id),
        description: "Tea & <b>cups</b>".to_owned(),
        amount_minor: 1234,
        currency: cny(),
        expires_at: at("2026-06-01T10:30:00+08:00"),
        payer: None,
        mode: None,
    }
}

/// Gives `amount_minor` of that payment back.
fn refund(refund_id: i64, payment_id: i64, amount_minor: i64) -> RefundOrder {
    RefundOrder {
        refund_id: RefundId(refund_id),
        payment_id: PaymentId(payment_id),
        transaction_id: "4200001".to_owned(),
        amount_minor,
        total_minor: 1234,
        currency: cny(),
        reason: "order cancelled".to_owned(),
    }
}

/// A session or a login says nothing about a notice, and is not to be kept beside it.
#[test]
fn of_the_headers_only_the_signature_is_kept() {
    let wechat = [
        ("host", "shop.example"),
        ("authorization", "Basic c2VjcmV0"),
        ("cookie", "session=secret"),
        ("wechatpay-signature", "c2ln+/=="),
        ("wechatpay-signature-type", "WECHATPAY2-SHA256-RSA2048"),
        ("wechatpay-nonce", "c5ac\"7061"),
        ("wechatpay-timestamp", "1780279200"),
        ("Wechatpay-Serial", "PUB_KEY_ID_0119999999"),
    ];
    let kept = NoticeHeaders::from_iter(wechat).signature(Channel::Wechat).unwrap();
    let expected = json!({
        "Wechatpay-Timestamp": "1780279200",
        "Wechatpay-Nonce": "c5ac\"7061",
        "Wechatpay-Signature": "c2ln+/==",
        "Wechatpay-Serial": "PUB_KEY_ID_0119999999",
    });
    assert_eq!(kept, expected.to_string());
    let sandbox =
        NoticeHeaders::from_iter([("tombola-signature", "t=1,v1=ab"), ("cookie", "session=secret")]);
    let kept = sandbox.signature(Channel::Sandbox);
    assert_eq!(kept.as_deref(), Some(r#"{"Tombola-Signature":"t=1,v1=ab"}"#));
    // Alipay's signature is in the body.
    assert_eq!(NoticeHeaders::from_iter(wechat).signature(Channel::Alipay), None);
    assert_eq!(sandbox.signature(Channel::Wechat), None);
    let padded =
        NoticeHeaders::from_iter([("tombola-signature", format!("t=1,v1=ab,x={}", "y".repeat(5000)))]);
    assert_eq!(padded.signature(Channel::Sandbox), None);
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn cny() -> Currency {
    "CNY".parse().unwrap()
}
