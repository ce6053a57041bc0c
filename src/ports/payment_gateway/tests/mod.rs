//! What every gateway promises, and what each one's documents say, against servers that behave as those documents do.

mod alipay;
mod alipay_notices;
mod contract;
pub(crate) mod keys;
mod sandbox;
mod server;
mod wechat;
mod wechat_notices;

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

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn cny() -> Currency {
    "CNY".parse().unwrap()
}
