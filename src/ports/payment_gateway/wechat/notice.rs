//! The notices of WeChat Pay. Each holds a part that is encrypted with the "APIv3 key", which only the two of us know.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::super::{GatewayState, Notice, NoticeKind, NoticeRefusal};
use super::model::{self, Transaction};
use crate::ids::PaymentId;

/// The only algorithm there is; another one is not obeyed.
const ALGORITHM: &str = "AEAD_AES_256_GCM";

/// The key that notices are encrypted with.
pub(super) struct ApiV3Key(LessSafeKey);

impl fmt::Debug for ApiV3Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiV3Key")
    }
}

#[derive(Debug, Deserialize)]
struct Envelope {
    event_type: String,
    resource: Resource,
}

#[derive(Debug, Deserialize)]
struct Resource {
    algorithm: String,
    ciphertext: String,
    nonce: String,
    #[serde(default)]
    associated_data: String,
}

#[derive(Debug, Deserialize)]
struct RefundNotice {
    mchid: String,
    out_trade_no: String,
    out_refund_no: String,
    refund_status: String,
}

impl ApiV3Key {
    pub(super) fn new(text: &SecretString) -> Result<Self, String> {
        let bytes = text.expose_secret().as_bytes();
        let key = UnboundKey::new(&AES_256_GCM, bytes);
        key.map(|key| Self(LessSafeKey::new(key)))
            .map_err(|_| format!("has 32 bytes, not {}; it is set on the merchant platform", bytes.len()))
    }

    fn decrypt<T: DeserializeOwned>(&self, resource: &Resource) -> Result<T, NoticeRefusal> {
        let malformed = |what: &str| NoticeRefusal::Malformed(what.to_owned());
        if resource.algorithm != ALGORITHM {
            return Err(malformed("an unknown algorithm"));
        }
        let nonce: [u8; NONCE_LEN] =
            resource.nonce.as_bytes().try_into().map_err(|_| malformed("a nonce of another length"))?;
        let mut text = STANDARD.decode(&resource.ciphertext).map_err(|_| malformed("no Base64"))?;
        let aad = Aad::from(resource.associated_data.as_bytes());
        let plain = self.0.open_in_place(Nonce::assume_unique_for_key(nonce), aad, &mut text);
        let plain =
            plain.map_err(|_| malformed("encrypted with another key than payment.wechat.api_v3_key"))?;
        serde_json::from_slice(plain).map_err(|error| malformed(&error.to_string()))
    }
}

/// Reads a notice that was verified.
pub(super) fn read(body: &[u8], key: &ApiV3Key, app_id: &str, mch_id: &str) -> Result<Notice, NoticeRefusal> {
    let unreadable = |error: serde_json::Error| NoticeRefusal::Malformed(error.to_string());
    let Envelope { event_type, resource } = serde_json::from_slice(body).map_err(unreadable)?;
    let (payment_id, kind) = match event_type.as_str() {
        "TRANSACTION.SUCCESS" => payment(&key.decrypt(&resource)?, app_id, mch_id)?,
        "REFUND.SUCCESS" | "REFUND.ABNORMAL" | "REFUND.CLOSED" => refund(&key.decrypt(&resource)?, mch_id)?,
        other => return Err(NoticeRefusal::Malformed(format!("unknown event_type {other:?}"))),
    };
    Ok(Notice { payment_id, kind })
}

fn payment(
    transaction: &Transaction,
    app_id: &str,
    mch_id: &str,
) -> Result<(PaymentId, NoticeKind), NoticeRefusal> {
    if !transaction.is_of(app_id, mch_id) {
        let number = Some(transaction.out_trade_no.as_str());
        return Err(NoticeRefusal::wrong_merchant("another appid or mchid", number));
    }
    let kind = match transaction.state().map_err(NoticeRefusal::Malformed)? {
        GatewayState::Succeeded(capture) => NoticeKind::Paid(capture),
        // It pays for nothing. Whether it was us who gave it back is told by a notice of its own.
        GatewayState::Refunded(capture) => NoticeKind::Failed { reason: capture.given_back() },
        GatewayState::Pending | GatewayState::NotFound => NoticeKind::Pending,
        GatewayState::Closed => NoticeKind::Closed,
        GatewayState::Failed => {
            NoticeKind::Failed { reason: transaction.trade_state_desc.clone().unwrap_or_default() }
        }
    };
    Ok((payment_id(&transaction.out_trade_no)?, kind))
}

fn refund(notice: &RefundNotice, mch_id: &str) -> Result<(PaymentId, NoticeKind), NoticeRefusal> {
    if notice.mchid != mch_id {
        return Err(NoticeRefusal::wrong_merchant("another mchid", Some(&notice.out_trade_no)));
    }
    let state = model::refund_state(&notice.refund_status).map_err(NoticeRefusal::Malformed)?;
    let kind = NoticeKind::Refund { refund_id: notice.out_refund_no.parse().ok(), state };
    Ok((payment_id(&notice.out_trade_no)?, kind))
}

fn payment_id(out_trade_no: &str) -> Result<PaymentId, NoticeRefusal> {
    out_trade_no
        .parse()
        .map_err(|_| NoticeRefusal::wrong_merchant("the order number is none of this shop", None))
}
