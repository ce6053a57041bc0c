//! The statement of a day: a file of comma-separated values, its columns named in Chinese, each value behind a backtick.
//!
//! It lists the refunds that were asked for on that day, and how each stood when it was made. It is never made again.

use chrono::NaiveDate;
use reqwest::{Method, Url};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use serde::Deserialize;

use super::super::yuan::fen;
use super::super::{GatewayError, Movement, StatementLine};
use super::api::Api;

/// States of refunds whose money is with the merchant, because it never left or came back.
const DID_NOT_MOVE: &[&str] = &["FAIL", "CHANGE", "CLOSED", "REFUNDCLOSE", "ABNORMAL"];

#[derive(Debug, Deserialize)]
struct Bill {
    hash_type: String,
    hash_value: String,
    download_url: String,
}

/// Asks for the statement of `day`. None exists of a day on which nothing moved, which is an empty one to us; one that is
/// not ready is refused.
pub(super) async fn fetch(api: &Api, day: NaiveDate) -> Result<Vec<StatementLine>, GatewayError> {
    let path = format!("/v3/bill/tradebill?bill_date={day}&bill_type=ALL");
    let bill: Bill = match api.call(Method::GET, &path, None).await {
        Ok(bill) => bill,
        Err(GatewayError::Refused { code, .. }) if code == "NO_STATEMENT_EXIST" => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let unclear = |what: String| GatewayError::Unclear(format!("the statement of {day} {what}"));
    let url = Url::parse(&bill.download_url).map_err(|error| unclear(format!("has no address: {error}")))?;
    // Only from the configured server: what we sign is for nobody else.
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    let file = api.download(&format!("{}{query}", url.path())).await?;
    let sha1 = hex::encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &file));
    if bill.hash_type != "SHA1" || !sha1.eq_ignore_ascii_case(&bill.hash_value) {
        return Err(unclear("was changed on its way".to_owned()));
    }
    let text = String::from_utf8(file).map_err(|_| unclear("is no UTF-8".to_owned()))?;
    parse(&text).map_err(unclear)
}

/// The lines of a statement, without the totals behind them.
fn parse(text: &str) -> Result<Vec<StatementLine>, String> {
    let mut lines = text.trim_start_matches('\u{feff}').lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let column = |name: &str| {
        let at = header.iter().position(|column| *column == name);
        at.ok_or_else(|| format!("has no column {name}"))
    };
    let [transaction, payment, state, currency] =
        [column("微信订单号")?, column("商户订单号")?, column("交易状态")?, column("货币种类")?];
    let [paid, refund, refunded, refund_state] =
        [column("订单金额")?, column("商户退款单号")?, column("申请退款金额")?, column("退款状态")?];

    // The totals have a header of their own, without a backtick in front.
    let rows = lines.map_while(|line| line.strip_prefix('`'));
    rows.map(|row| {
        // A name of goods may have commas in it, but hardly one with a backtick behind it.
        let row: Vec<&str> = row.split(",`").collect();
        let unreadable = || format!("has an unreadable line: {row:?}");
        if row.len() != header.len() {
            return Err(unreadable());
        }
        let movement = match row[state] {
            "SUCCESS" => Movement::Captured { amount_minor: fen(row[paid]).ok_or_else(unreadable)? },
            "REFUND" | "REVOKED" if DID_NOT_MOVE.contains(&row[refund_state]) => return Ok(None),
            "REFUND" | "REVOKED" => Movement::Refunded {
                refund_id: row[refund].parse().ok(),
                amount_minor: fen(row[refunded]).ok_or_else(unreadable)?,
                arrived: row[refund_state] == "SUCCESS",
            },
            _ => return Err(unreadable()),
        };
        Ok(Some(StatementLine {
            payment_id: row[payment].parse().ok(),
            transaction_id: row[transaction].to_owned(),
            movement,
            currency: row[currency].parse().map_err(|_| unreadable())?,
        }))
    })
    .filter_map(Result::transpose)
    .collect()
}
