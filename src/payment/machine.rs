//! How payments and refunds move: pure rules, no database.
//!
//! Money that a gateway took is there whatever we thought before, so a capture settles a payment that failed or was
//! closed here as well; what becomes of it is for the order to say (R22). Nothing else moves what is settled.

use serde::Serialize;

use super::model::{Payment, PaymentState, RefundState};
use crate::ids::{PaymentId, UserId};
use crate::ports::clock::Timestamp;
use crate::ports::payment_gateway::{Capture, Channel};
use crate::words::words;

words! {
    /// How we learned what a gateway says, or who said it in its place.
    Source, "source of a payment record" {
        Callback = "callback",
        Query = "query",
        Close = "close",
        Operator = "operator",
    }
}

/// What a gateway says of a payment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    Captured(Capture),
    Failed {
        reason: String,
    },
    Closed,
    /// The gateway did not know a payment that was to be closed; a code that its customer has may be paid `until` then.
    Unknown {
        until: Timestamp,
    },
    /// In the place of a gateway that is not set up here any more, an operator says that the payment comes to nothing.
    GivenUp {
        by: UserId,
        reason: String,
    },
    /// Nothing that can be true, whatever the payment is.
    Untrue(Contradiction),
}

impl Said {
    /// The capture, if that is what is said.
    pub fn capture(&self) -> Option<&Capture> {
        match self {
            Self::Captured(capture) => Some(capture),
            Self::Failed { .. }
            | Self::Closed
            | Self::Unknown { .. }
            | Self::GivenUp { .. }
            | Self::Untrue(_) => None,
        }
    }
}

/// What a gateway says of one payment, and how we learned it.
#[derive(Debug, Clone)]
pub struct Report {
    pub payment: PaymentId,
    pub channel: Channel,
    pub said: Said,
    pub source: Source,
    /// As it came, for the record (PAY-3).
    pub body: String,
    /// Of a callback, those that its signature is made of, as JSON.
    pub headers: Option<String>,
}

/// Why a report is not believed, although its gateway made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Contradiction {
    #[error("there is no such payment")]
    Unknown,
    #[error("it is about another merchant: {0}")]
    Merchant(String),
    #[error("the payment is of another channel")]
    Channel,
    #[error("{paid} was captured, and {due} is due")]
    Amount { paid: String, due: String },
    #[error("the payment was captured by another transaction")]
    Transaction,
    #[error("the transaction belongs to another payment")]
    TransactionTaken,
    #[error("there is no such refund of the payment")]
    Refund,
    #[error("the refund was refused here, and the money went back")]
    RefusedRefund,
}

/// Whether `report` can be true of `payment`, if its transaction belongs to `owner` so far.
pub fn check(payment: &Payment, report: &Report, owner: Option<PaymentId>) -> Result<(), Contradiction> {
    if payment.channel != report.channel {
        return Err(Contradiction::Channel);
    }
    if let Said::Untrue(contradiction) = &report.said {
        return Err(contradiction.clone());
    }
    let Some(capture) = report.said.capture() else { return Ok(()) };
    if (capture.amount_minor, capture.currency) != (payment.amount_minor, payment.currency) {
        return Err(Contradiction::Amount {
            paid: capture.currency.amount(capture.amount_minor),
            due: payment.currency.amount(payment.amount_minor),
        });
    }
    if payment.transaction_id.as_ref().is_some_and(|known| *known != capture.transaction_id) {
        return Err(Contradiction::Transaction);
    }
    if owner.is_some_and(|owner| owner != payment.id) {
        return Err(Contradiction::TransactionTaken);
    }
    Ok(())
}

/// The state that a payment comes to when its gateway says `said`; `None` if that is no news.
pub fn decide(state: PaymentState, said: &Said) -> Option<PaymentState> {
    use PaymentState::{Closed, Failed, Pending, Succeeded};
    match (state, said) {
        (Pending | Failed | Closed, Said::Captured(_)) => Some(Succeeded),
        (Pending, Said::Failed { .. }) => Some(Failed),
        (Pending, Said::Closed | Said::Unknown { .. } | Said::GivenUp { .. }) => Some(Closed),
        (Pending, Said::Untrue(_))
        | (Succeeded, _)
        | (
            Failed | Closed,
            Said::Failed { .. }
            | Said::Closed
            | Said::Unknown { .. }
            | Said::GivenUp { .. }
            | Said::Untrue(_),
        ) => None,
    }
}

/// When the gateway of a payment that ended here is asked about it once more, after it said `said`: a capture whose notices
/// are lost would otherwise never go back (R22).
pub fn recheck_at(said: &Said, now: Timestamp) -> Option<Timestamp> {
    match said {
        Said::Unknown { until } if *until > now => Some(*until),
        // As soon as it is set up again.
        Said::GivenUp { .. } => Some(now),
        Said::Unknown { .. } | Said::Captured(_) | Said::Failed { .. } | Said::Closed | Said::Untrue(_) => {
            None
        }
    }
}

/// The states from which a refund may come to `to`.
///
/// One that failed can be tried again, or refused after all.
pub fn refund_origins(to: RefundState) -> &'static [RefundState] {
    use RefundState::{Approved, Failed, Rejected, Requested, Succeeded};
    match to {
        Requested => &[],
        Approved => &[Requested, Failed],
        Succeeded => &[Approved, Failed],
        Failed => &[Approved],
        Rejected => &[Requested, Failed],
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use rstest::rstest;

    use super::super::model::Wish;
    use super::*;
    use crate::ids::OrderId;
    use crate::money::Currency;

    fn money(code: &str) -> Currency {
        code.parse().unwrap()
    }

    fn payment() -> Payment {
        Payment {
            id: PaymentId(1),
            order_id: OrderId(2),
            user_id: UserId(3),
            channel: Channel::Sandbox,
            state: PaymentState::Pending,
            amount_minor: 100,
            currency: money("CNY"),
            transaction_id: None,
            payer: None,
            wish: Wish::default(),
            failure: None,
            created_at: DateTime::UNIX_EPOCH,
            settled_at: None,
            recheck_at: None,
        }
    }

    fn capture() -> Capture {
        Capture {
            transaction_id: "t".to_owned(),
            amount_minor: 100,
            currency: money("CNY"),
            payer: None,
            paid_at: DateTime::UNIX_EPOCH,
        }
    }

    fn given_up() -> Said {
        Said::GivenUp { by: UserId(4), reason: "the contract ended".to_owned() }
    }

    fn report(said: Said) -> Report {
        let (payment, channel) = (PaymentId(1), Channel::Sandbox);
        Report { payment, channel, said, source: Source::Query, body: String::new(), headers: None }
    }

    /// Every state, and what each report makes of it: a capture, a failure, a close, a close of what is not known, an
    /// operator's word.
    #[test]
    fn every_report_in_every_state() {
        use PaymentState::{Closed, Failed, Pending, Succeeded};
        let table = [
            (Pending, [Some(Succeeded), Some(Failed), Some(Closed), Some(Closed), Some(Closed)]),
            (Succeeded, [None, None, None, None, None]),
            (Failed, [Some(Succeeded), None, None, None, None]),
            (Closed, [Some(Succeeded), None, None, None, None]),
        ];
        assert_eq!(table.map(|(state, _)| state).as_slice(), PaymentState::ALL);
        let unknown = Said::Unknown { until: DateTime::UNIX_EPOCH };
        let failed = Said::Failed { reason: "x".to_owned() };
        let said = [Said::Captured(capture()), failed, Said::Closed, unknown, given_up()];
        for (state, expected) in table {
            for (said, expected) in said.iter().zip(expected) {
                assert_eq!(decide(state, said), expected, "{state} and {said:?}");
            }
        }
    }

    #[test]
    fn what_a_gateway_did_not_know_is_asked_about_once_it_can_be_paid_no_more() {
        let until = DateTime::from_timestamp(100, 0).unwrap();
        let unknown = Said::Unknown { until };
        assert_eq!(recheck_at(&unknown, DateTime::UNIX_EPOCH), Some(until));
        assert_eq!(recheck_at(&unknown, until), None);
        assert_eq!(recheck_at(&Said::Closed, DateTime::UNIX_EPOCH), None);
        assert_eq!(recheck_at(&given_up(), until), Some(until));
    }

    #[test]
    fn what_cannot_be_true_of_any_payment_is_not_true_of_this_one() {
        let merchant = Contradiction::Merchant("another app_id".to_owned());
        let said = Said::Untrue(merchant.clone());
        for state in PaymentState::ALL {
            assert_eq!(decide(*state, &said), None);
        }
        assert_eq!(check(&payment(), &report(said), None), Err(merchant));
    }

    #[rstest]
    #[case::as_due(|_: &mut Payment, _: &mut Capture| {}, None, None)]
    #[case::again(|payment: &mut Payment, _: &mut Capture| payment.transaction_id = Some("t".to_owned()), Some(1), None)]
    #[case::less(
        |_: &mut Payment, capture: &mut Capture| capture.amount_minor = 99,
        None,
        Some(Contradiction::Amount { paid: "CNY 0.99".to_owned(), due: "CNY 1.00".to_owned() })
    )]
    #[case::other_currency(
        |_: &mut Payment, capture: &mut Capture| capture.currency = money("USD"),
        None,
        Some(Contradiction::Amount { paid: "USD 1.00".to_owned(), due: "CNY 1.00".to_owned() })
    )]
    #[case::other_channel(
        |payment: &mut Payment, _: &mut Capture| payment.channel = Channel::Alipay,
        None,
        Some(Contradiction::Channel)
    )]
    #[case::second_transaction(
        |payment: &mut Payment, _: &mut Capture| payment.transaction_id = Some("u".to_owned()),
        None,
        Some(Contradiction::Transaction)
    )]
    #[case::taken(|_: &mut Payment, _: &mut Capture| {}, Some(9), Some(Contradiction::TransactionTaken))]
    fn what_can_be_true(
        #[case] change: fn(&mut Payment, &mut Capture),
        #[case] owner: Option<i64>,
        #[case] expected: Option<Contradiction>,
    ) {
        let (mut payment, mut capture) = (payment(), capture());
        change(&mut payment, &mut capture);
        let checked = check(&payment, &report(Said::Captured(capture)), owner.map(PaymentId));
        assert_eq!(checked.err(), expected);
    }

    #[test]
    fn what_is_settled_stays_settled() {
        for to in RefundState::ALL {
            let origins = refund_origins(*to);
            assert!(!origins.contains(to));
            assert!(!origins.contains(&RefundState::Succeeded) && !origins.contains(&RefundState::Rejected));
        }
    }
}
