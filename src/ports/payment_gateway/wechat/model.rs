//! What WeChat Pay says, in its own words, and what that means.

use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::super::yuan::cny;
use super::super::{Capture, GatewayState, RefundState};
use crate::money::Currency;

/// Codes of answers about what WeChat Pay does not know.
pub(super) const NOT_THERE: &[&str] = &["ORDER_NOT_EXIST", "ORDERNOTEXIST", "RESOURCE_NOT_EXISTS"];

#[derive(Debug, Deserialize)]
pub(super) struct PrepaidNative {
    pub(super) code_url: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Prepaid {
    pub(super) prepay_id: String,
}

/// Of a payment that was not made, only the numbers and the state are certain to be there.
#[derive(Debug, Deserialize)]
pub(super) struct Transaction {
    appid: Option<String>,
    mchid: String,
    pub(super) out_trade_no: String,
    transaction_id: Option<String>,
    trade_state: String,
    pub(super) trade_state_desc: Option<String>,
    success_time: Option<String>,
    payer: Option<Payer>,
    amount: Option<Amount>,
}

#[derive(Debug, Deserialize)]
struct Payer {
    openid: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Amount {
    total: Option<i64>,
    currency: Option<Currency>,
}

impl Transaction {
    /// Whether it is about the merchant's own money.
    pub(super) fn is_of(&self, app_id: &str, mch_id: &str) -> bool {
        self.appid.as_ref().is_none_or(|known| known == app_id) && self.mchid == mch_id
    }

    /// Where the payment stands; an error says what makes no sense.
    pub(super) fn state(&self) -> Result<GatewayState, String> {
        Ok(match self.trade_state.as_str() {
            "SUCCESS" => GatewayState::Succeeded(self.capture()?),
            "REFUND" => GatewayState::Refunded(self.capture()?),
            "NOTPAY" | "USERPAYING" | "ACCEPT" => GatewayState::Pending,
            "CLOSED" | "REVOKED" => GatewayState::Closed,
            "PAYERROR" => GatewayState::Failed,
            other => return Err(format!("unknown trade_state {other:?}")),
        })
    }

    fn capture(&self) -> Result<Capture, String> {
        let missing = |member: &str| format!("paid, without {member}");
        let amount = self.amount.as_ref().ok_or_else(|| missing("amount"))?;
        let paid_at = self.success_time.as_deref().and_then(|time| DateTime::parse_from_rfc3339(time).ok());
        Ok(Capture {
            transaction_id: self.transaction_id.clone().ok_or_else(|| missing("transaction_id"))?,
            amount_minor: amount.total.ok_or_else(|| missing("amount.total"))?,
            currency: match amount.currency {
                Some(currency) => currency,
                None => cny().map_err(|error| error.to_string())?,
            },
            payer: self.payer.as_ref().and_then(|payer| payer.openid.clone()),
            paid_at: paid_at.ok_or_else(|| missing("success_time"))?.with_timezone(&Utc),
        })
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Refund {
    pub(super) out_refund_no: String,
    status: String,
}

impl Refund {
    pub(super) fn state(&self) -> Result<RefundState, String> {
        refund_state(&self.status)
    }
}

/// What the state of a refund means; answers and notices share the words.
pub(super) fn refund_state(status: &str) -> Result<RefundState, String> {
    Ok(match status {
        "SUCCESS" => RefundState::Succeeded,
        "PROCESSING" => RefundState::Processing,
        "CLOSED" => RefundState::Failed { reason: "WeChat Pay closed the refund".to_owned() },
        "ABNORMAL" => RefundState::Failed {
            reason: "the customer's account cannot be paid to; see the merchant platform".to_owned(),
        },
        other => return Err(format!("unknown state of a refund {other:?}")),
    })
}
