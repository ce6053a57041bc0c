//! The notices of Alipay: a form, signed over its decoded fields.

use std::collections::BTreeMap;

use super::super::rsa::VerifyingKey;
use super::super::yuan::{cny, fen, parse_local_time};
use super::super::{Capture, Notice, NoticeKind, NoticeRefusal, RefundState};
use super::api::signed_text;

/// The fields of a notice that Alipay signed.
#[derive(Debug)]
pub(super) struct Fields(BTreeMap<String, String>);

impl Fields {
    /// Reads the form, if its signature is good. That is RSA2, whatever `sign_type` says: a sender must not choose.
    pub(super) fn verified(body: &[u8], alipay: &VerifyingKey) -> Result<Self, NoticeRefusal> {
        let forged = |why: &str| NoticeRefusal::Forged(why.to_owned());
        let mut fields = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(body) {
            if fields.insert(name.into_owned(), value.into_owned()).is_some() {
                return Err(forged("a field occurs twice"));
            }
        }
        let signature = fields.remove("sign").ok_or_else(|| forged("there is no sign"))?;
        fields.remove("sign_type");
        match alipay.verify(signed_text(&fields).as_bytes(), &signature) {
            true => Ok(Self(fields)),
            false => Err(forged("the signature does not fit")),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn need(&self, name: &str) -> Result<&str, NoticeRefusal> {
        self.get(name).ok_or_else(|| NoticeRefusal::Malformed(format!("there is no {name}")))
    }

    fn read<T>(&self, name: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, NoticeRefusal> {
        let value = self.need(name)?;
        parse(value).ok_or_else(|| NoticeRefusal::Malformed(format!("{name} is {value:?}")))
    }
}

/// What the fields of a notice say.
pub(super) fn read(fields: &Fields, app_id: &str, seller_id: &str) -> Result<Notice, NoticeRefusal> {
    let wrong_merchant = |what| NoticeRefusal::wrong_merchant(what, fields.get("out_trade_no"));
    if fields.need("app_id")? != app_id {
        return Err(wrong_merchant("another app_id"));
    }
    // Optional in the documents, though every notice of a trade has it.
    if fields.get("seller_id").is_some_and(|seller| seller != seller_id) {
        return Err(wrong_merchant("another seller_id"));
    }
    let payment_id = fields
        .need("out_trade_no")?
        .parse()
        .map_err(|_| wrong_merchant("the order number is none of this shop"))?;
    Ok(Notice { payment_id, kind: kind(fields)? })
}

fn kind(fields: &Fields) -> Result<NoticeKind, NoticeRefusal> {
    // A refund is told with the state of the trade it belongs to, which then is paid, too, or closed.
    if fields.get("gmt_refund").is_some() || fields.get("refund_fee").and_then(fen) > Some(0) {
        let refund_id = fields.get("out_biz_no").and_then(|number| number.parse().ok());
        return Ok(NoticeKind::Refund { refund_id, state: RefundState::Succeeded });
    }
    Ok(match fields.need("trade_status")? {
        "TRADE_SUCCESS" | "TRADE_FINISHED" => NoticeKind::Paid(capture(fields)?),
        "TRADE_CLOSED" => NoticeKind::Closed,
        "WAIT_BUYER_PAY" => NoticeKind::Pending,
        other => return Err(NoticeRefusal::Malformed(format!("unknown trade_status {other:?}"))),
    })
}

fn capture(fields: &Fields) -> Result<Capture, NoticeRefusal> {
    let paid_at = if fields.get("gmt_payment").is_some() { "gmt_payment" } else { "notify_time" };
    Ok(Capture {
        transaction_id: fields.need("trade_no")?.to_owned(),
        amount_minor: fields.read("total_amount", fen)?,
        currency: cny().map_err(|error| NoticeRefusal::Malformed(error.to_string()))?,
        payer: fields.get("buyer_id").or_else(|| fields.get("buyer_open_id")).map(str::to_owned),
        paid_at: fields.read(paid_at, parse_local_time)?,
    })
}
