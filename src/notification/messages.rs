//! What users are told of what: a command for each event, chosen from one table (NTF-1; PAT-1).

use super::events::NotificationKind;
use crate::ids::{OrderId, UserId};
use crate::messaging::catalogue::EventType;
use crate::messaging::envelope::{Envelope, Undecodable};
use crate::order::events::{Cancelled, Created, Finished, Paid, Refunded, Shipped};
use crate::order::machine::State;
use crate::order::model::CancelCause;
use crate::payment::events::{PaymentFailed, RefundRefused, RefundRequested};
use crate::payment::model::RefundCause;

/// What one user is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) user: UserId,
    pub(super) order: OrderId,
    pub(super) kind: NotificationKind,
    pub(super) title: &'static str,
    pub(super) body: String,
}

/// Makes the message of one kind of event; none, if its user does not have to know.
type Command = fn(&Envelope) -> Result<Option<Message>, Undecodable>;

const COMMANDS: &[(EventType, Command)] = &[
    (EventType::OrderCreated, awaiting_payment),
    (EventType::OrderPaid, paid),
    (EventType::OrderShipped, confirmed),
    (EventType::OrderFinished, finished),
    (EventType::OrderCancelled, cancelled),
    (EventType::OrderRefunded, refunded),
    (EventType::PaymentFailed, payment_failed),
    (EventType::RefundRequested, payment_returned),
    (EventType::RefundRefused, refund_refused),
];

/// Every event that a user may be told of.
pub(super) const TYPES: &[EventType] = &[
    EventType::OrderCreated,
    EventType::OrderPaid,
    EventType::OrderShipped,
    EventType::OrderFinished,
    EventType::OrderCancelled,
    EventType::OrderRefunded,
    EventType::PaymentFailed,
    EventType::RefundRequested,
    EventType::RefundRefused,
];

/// What the user of `event` is to be told, if anything.
pub(super) fn message(event: &Envelope) -> Result<Option<Message>, Undecodable> {
    let command = COMMANDS.iter().find(|(known, _)| Some(*known) == event.known_type());
    let (_, command) = command.ok_or_else(|| event.unexpected())?;
    command(event)
}

fn awaiting_payment(event: &Envelope) -> Result<Option<Message>, Undecodable> {
    let order: Created = event.payload()?;
    if order.state != State::AwaitingPayment {
        return Ok(None);
    }
    let body = format!(
        "Your order {} over {} is reserved for you. Please pay {} until {}.",
        order.order_id,
        order.currency.amount(order.order_amount_minor),
        order.currency.amount(order.payable_minor),
        order.payment_due_at.format("%Y-%m-%d %H:%M UTC"),
    );
    Ok(Some(Message {
        user: order.user_id,
        order: order.order_id,
        kind: NotificationKind::OrderAwaitingPayment,
        title: "Your order waits for payment",
        body,
    }))
}

fn paid(event: &Envelope) -> Result<Option<Message>, Undecodable> {
    let order: Paid = event.payload()?;
    let amount = order.currency.amount(order.order_amount_minor);
    Ok(Some(Message {
        user: order.user_id,
        order: order.order_id,
        kind: NotificationKind::OrderPaid,
        title: "Your order is paid",
        body: format!("Your order {} over {amount} is paid and will be sent to you.", order.order_id),
    }))
}

fn confirmed(event: &Envelope) -> Result<Option<Message>, Undecodable> {
    let order: Shipped = event.payload()?;
    Ok(Some(Message {
        user: order.user_id,
        order: order.order_id,
        kind: NotificationKind::OrderConfirmed,
        title: "Your order is confirmed",
        body: format!("Your order {} is confirmed and on its way to you.", order.order_id),
    }))
}

fn finished(event: &Envelope) -> Result<Option<Message>, Undecodable> {
    let order: Finished = event.payload()?;
    Ok(Some(Message {
        user: order.user_id,
        order: order.order_id,
        kind: NotificationKind::OrderFinished,
        title: "Your order is finished",
        body: format!("Your order {} has arrived. Thank you!", order.order_id),
    }))
}

fn cancelled(event: &Envelope) -> Result<Option<Message>, Undecodable> {
    let order: Cancelled = event.payload()?;
    // Nobody saw the order.
    if order.state == State::Invalid {
        return Ok(None);
    }
    let why = match order.cause {
        CancelCause::Customer => "as you wished",
        CancelCause::Operator => "by the shop",
        CancelCause::Timeout => "because it was not paid in time",
        CancelCause::Failed => "because it could not be completed",
    };
    let mut body = format!("Your order {} was cancelled {why}.", order.order_id);
    if order.balance_paid_minor > 0 {
        let amount = order.currency.amount(order.balance_paid_minor);
        body += &format!(" {amount} went back to your balance.");
    }
    Ok(Some(Message {
        user: order.user_id,
        order: order.order_id,
        kind: NotificationKind::OrderCancelled,
        title: "Your order was cancelled",
        body,
    }))
}

fn refunded(event: &Envelope) -> Result<Option<Message>, Undecodable> {
    let order: Refunded = event.payload()?;
    let parts = [(order.payable_minor, "the way you paid"), (order.balance_paid_minor, "to your balance")];
    let parts = parts.into_iter().filter(|(minor, _)| *minor > 0);
    let parts: Vec<String> =
        parts.map(|(minor, to)| format!("{} went back {to}", order.currency.amount(minor))).collect();
    let what = if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) };
    Ok(Some(Message {
        user: order.user_id,
        order: order.order_id,
        kind: NotificationKind::OrderRefunded,
        title: "Your order is refunded",
        body: format!("Your order {} is refunded{what}.", order.order_id),
    }))
}

fn payment_failed(event: &Envelope) -> Result<Option<Message>, Undecodable> {
    let payment: PaymentFailed = event.payload()?;
    let amount = payment.currency.amount(payment.amount_minor);
    Ok(Some(Message {
        user: payment.user_id,
        order: payment.order_id,
        kind: NotificationKind::PaymentFailed,
        title: "Your payment did not succeed",
        body: format!(
            "Your payment of {amount} for order {} did not succeed. You can try again.",
            payment.order_id
        ),
    }))
}

fn payment_returned(event: &Envelope) -> Result<Option<Message>, Undecodable> {
    let refund: RefundRequested = event.payload()?;
    let why = match refund.cause {
        // Told once its money is back.
        RefundCause::Order => return Ok(None),
        RefundCause::LatePayment => "came after the order had ended",
        RefundCause::DoublePayment => "was one too many",
    };
    let amount = refund.currency.amount(refund.amount_minor);
    Ok(Some(Message {
        user: refund.user_id,
        order: refund.order_id,
        kind: NotificationKind::PaymentReturned,
        title: "Your payment goes back",
        body: format!(
            "Your payment of {amount} for order {} {why}. It goes back the way you paid.",
            refund.order_id
        ),
    }))
}

fn refund_refused(event: &Envelope) -> Result<Option<Message>, Undecodable> {
    let refund: RefundRefused = event.payload()?;
    Ok(Some(Message {
        user: refund.user_id,
        order: refund.order_id,
        kind: NotificationKind::RefundRefused,
        title: "Your order is not refunded",
        body: format!("The refund of your order {} was refused: {}.", refund.order_id, refund.reason),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(event: &Envelope) -> Option<(NotificationKind, String)> {
        message(event).unwrap().map(|message| (message.kind, message.body))
    }

    fn fixture(event: EventType) -> Envelope {
        Envelope::parse(event.fixture().as_bytes()).unwrap()
    }

    fn changed(event: EventType, from: &str, to: &str) -> Envelope {
        let mut envelope = fixture(event);
        let data = envelope.data.get();
        assert!(data.contains(from), "{from} in {data}");
        envelope.data = serde_json::value::RawValue::from_string(data.replace(from, to)).unwrap();
        envelope
    }

    fn surplus(cause: &str) -> Envelope {
        changed(EventType::RefundRequested, r#""cause": "order""#, &format!(r#""cause": "{cause}""#))
    }

    #[test]
    fn each_event_has_its_command() {
        assert_eq!(COMMANDS.iter().map(|(event, _)| *event).collect::<Vec<_>>(), TYPES);
        let events = TYPES.iter().map(|event| match event {
            EventType::RefundRequested => surplus("late_payment"),
            event => fixture(*event),
        });
        let kinds = events.filter_map(|event| told(&event)).map(|(kind, _)| kind);
        assert_eq!(kinds.collect::<Vec<_>>(), NotificationKind::ALL);
        let unexpected = message(&fixture(EventType::ActivityTaken));
        assert!(matches!(unexpected, Err(Undecodable::Unexpected(_))), "{unexpected:?}");
    }

    #[test]
    fn a_message_says_what_happened_in_plain_words() {
        let order = "117546623994691586";
        for (event, body) in [
            (
                EventType::OrderPaid,
                format!("Your order {order} over CNY 109.00 is paid and will be sent to you."),
            ),
            (
                EventType::OrderRefunded,
                format!(
                    "Your order {order} is refunded: CNY 100.00 went back the way you paid, CNY 4.00 went back to \
                     your balance."
                ),
            ),
        ] {
            assert_eq!(told(&fixture(event)).unwrap().1, body);
        }
        let twice = told(&surplus("double_payment")).unwrap().1;
        let why = "was one too many. It goes back the way you paid.";
        assert_eq!(twice, format!("Your payment of CNY 100.00 for order {order} {why}"));
    }

    #[test]
    fn what_need_not_be_known_is_not_told() {
        let at_once = changed(EventType::OrderCreated, r#""awaiting_payment""#, r#""paid""#);
        assert_eq!(told(&at_once), None);
        let draft = changed(EventType::OrderCancelled, r#""state": "cancelled""#, r#""state": "invalid""#);
        assert_eq!(told(&draft), None);
        assert_eq!(told(&fixture(EventType::RefundRequested)), None);
    }
}
