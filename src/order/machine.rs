//! What an order may become: pure rules, one table.
//!
//! A repeated command is [`Decision::AlreadyDone`], not an error. Money that comes late or twice goes back: the
//! decision names the payment, and a payment is refunded once. Every state is named, so that a new one does not compile
//! until someone has thought about it.

use crate::ids::PaymentId;
use crate::ports::clock::Timestamp;
use crate::words::words;

words! {
    /// How far an order has come.
    ///
    /// `draft` and `invalid` (a draft that came to nothing) are not shown to customers (ORD-4).
    #[schema(as = OrderState)]
    State, "order state" {
        Draft = "draft",
        AwaitingPayment = "awaiting_payment",
        Paid = "paid",
        Shipped = "shipped",
        Finished = "finished",
        Cancelled = "cancelled",
        Invalid = "invalid",
        Refunding = "refunding",
        Refunded = "refunded",
    }
}

/// What an order is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Every step of the saga is done.
    Confirm,
    /// A step of the saga failed.
    Abandon,
    /// The customer or an operator does not want it any more.
    Cancel,
    /// Its time is up.
    Expire,
    /// A payment was captured.
    Pay(PaymentId),
    Ship,
    Finish,
    /// The customer wants the money back.
    Refund,
    /// An operator says no.
    RefuseRefund,
    /// The money is back.
    CompleteRefund,
}

/// What a decision depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    pub state: State,
    /// When a draft, or an order awaiting payment, is given up.
    pub due_at: Timestamp,
    /// What is left to pay.
    pub payable_minor: i64,
    /// Whether a gateway may still capture money for it: cancelling must close that first (R22).
    pub payment_open: bool,
    pub paid_by: Option<PaymentId>,
    /// The state in which a refund was asked for.
    pub refund_from: Option<State>,
}

/// What follows from a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Move(State),
    /// The state stays, and the payment goes back.
    ReturnPayment(PaymentId),
    AlreadyDone,
}

/// Why a command is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("its time is not up")]
    NotDue,
    #[error("a payment of it is open")]
    PaymentOpen,
    #[error("it is not confirmed")]
    NotConfirmed,
    #[error("it came to nothing")]
    CameToNothing,
    #[error("it is paid")]
    AlreadyPaid,
    #[error("it was never paid")]
    NotPaid,
    /// Whoever says so: no such capture is known, or it is of another order or amount.
    #[error("the payment does not pay it")]
    NotItsPayment,
    #[error("it is refunded")]
    AlreadyRefunded,
    #[error("this cannot follow")]
    OutOfOrder,
}

/// What `command` makes of an order at `now`.
pub fn decide(order: &Status, command: Command, now: Timestamp) -> Result<Decision, Refusal> {
    use Command::{Abandon, Cancel, CompleteRefund, Confirm, Expire, Finish, Pay, RefuseRefund, Ship};
    use Decision::{AlreadyDone, Move, ReturnPayment};
    use State::{AwaitingPayment, Cancelled, Draft, Finished, Invalid, Paid, Refunded, Refunding, Shipped};
    Ok(match (order.state, command) {
        (Draft, Confirm) if order.payable_minor == 0 => Move(Paid),
        (Draft, Confirm) => Move(AwaitingPayment),
        (AwaitingPayment | Paid | Shipped | Finished | Cancelled | Refunding | Refunded, Confirm) => {
            AlreadyDone
        }
        (Invalid, Confirm) => return Err(Refusal::CameToNothing),

        (Draft, Abandon) => Move(Invalid),
        (Invalid, Abandon) => AlreadyDone,
        (AwaitingPayment | Paid | Shipped | Finished | Cancelled | Refunding | Refunded, Abandon) => {
            return Err(Refusal::OutOfOrder);
        }

        (Draft, Cancel) => return Err(Refusal::NotConfirmed),
        (AwaitingPayment, Cancel) if order.payment_open => return Err(Refusal::PaymentOpen),
        (AwaitingPayment, Cancel) => Move(Cancelled),
        (Cancelled | Invalid, Cancel) => AlreadyDone,
        (Paid | Shipped | Finished | Refunding, Cancel) => return Err(Refusal::AlreadyPaid),
        (Refunded, Cancel) => return Err(Refusal::AlreadyRefunded),

        (Draft | AwaitingPayment, Expire) if now < order.due_at => return Err(Refusal::NotDue),
        (Draft, Expire) => Move(Invalid),
        (AwaitingPayment, Expire) if order.payment_open => return Err(Refusal::PaymentOpen),
        (AwaitingPayment, Expire) => Move(Cancelled),
        (Paid | Shipped | Finished | Cancelled | Invalid | Refunding | Refunded, Expire) => AlreadyDone,

        (AwaitingPayment, Pay(_)) => Move(Paid),
        (Paid | Shipped | Finished | Refunding | Refunded, Pay(payment))
            if order.paid_by == Some(payment) =>
        {
            AlreadyDone
        }
        // Money that came late, or twice, or for nothing.
        (Draft | Paid | Shipped | Finished | Cancelled | Invalid | Refunding | Refunded, Pay(payment)) => {
            ReturnPayment(payment)
        }

        (Paid, Ship) => Move(Shipped),
        (Shipped | Finished, Ship) => AlreadyDone,
        (Draft | AwaitingPayment | Cancelled | Invalid | Refunding | Refunded, Ship) => {
            return Err(Refusal::OutOfOrder);
        }

        (Shipped, Finish) => Move(Finished),
        (Finished, Finish) => AlreadyDone,
        (Draft | AwaitingPayment | Paid | Cancelled | Invalid | Refunding | Refunded, Finish) => {
            return Err(Refusal::OutOfOrder);
        }

        (Paid | Shipped | Finished, Command::Refund) => Move(Refunding),
        (Refunding, Command::Refund) => AlreadyDone,
        (Refunded, Command::Refund) => return Err(Refusal::AlreadyRefunded),
        (Draft | AwaitingPayment | Cancelled | Invalid, Command::Refund) => return Err(Refusal::NotPaid),

        (Refunding, RefuseRefund) => Move(order.refund_from.unwrap_or(Paid)),
        (Paid | Shipped | Finished, RefuseRefund) => AlreadyDone,
        (Refunded, RefuseRefund) => return Err(Refusal::AlreadyRefunded),
        (Draft | AwaitingPayment | Cancelled | Invalid, RefuseRefund) => return Err(Refusal::NotPaid),

        (Refunding, CompleteRefund) => Move(Refunded),
        (Refunded, CompleteRefund) => AlreadyDone,
        (Draft | AwaitingPayment | Paid | Shipped | Finished | Cancelled | Invalid, CompleteRefund) => {
            return Err(Refusal::OutOfOrder);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use Command::{
        Abandon, Cancel, CompleteRefund, Confirm, Expire, Finish, Pay, Refund, RefuseRefund, Ship,
    };
    use Decision::{AlreadyDone, Move, ReturnPayment};
    use State::{AwaitingPayment, Cancelled, Draft, Finished, Invalid, Paid, Refunded, Refunding, Shipped};

    const FIRST: PaymentId = PaymentId(1);
    const SECOND: PaymentId = PaymentId(2);
    const DUE: Timestamp = Timestamp::UNIX_EPOCH;

    fn status(state: State) -> Status {
        let paid = matches!(state, Paid | Shipped | Finished | Refunding | Refunded);
        Status {
            state,
            due_at: DUE,
            payable_minor: 100,
            payment_open: false,
            paid_by: paid.then_some(FIRST),
            refund_from: matches!(state, Refunding | Refunded).then_some(Shipped),
        }
    }

    fn table() -> Vec<(Command, [Result<Decision, Refusal>; 9])> {
        use Refusal::{AlreadyPaid, AlreadyRefunded, CameToNothing, NotConfirmed, NotPaid, OutOfOrder};
        const DONE: Result<Decision, Refusal> = Ok(AlreadyDone);
        const BACK: Result<Decision, Refusal> = Ok(ReturnPayment(FIRST));
        const AGAIN: Result<Decision, Refusal> = Ok(ReturnPayment(SECOND));
        // In the order of `State::ALL`: draft, awaiting payment, paid, shipped, finished, cancelled, invalid, refunding,
        // refunded.
        vec![
            (
                Confirm,
                [Ok(Move(AwaitingPayment)), DONE, DONE, DONE, DONE, DONE, Err(CameToNothing), DONE, DONE],
            ),
            (
                Abandon,
                [
                    Ok(Move(Invalid)),
                    Err(OutOfOrder),
                    Err(OutOfOrder),
                    Err(OutOfOrder),
                    Err(OutOfOrder),
                    Err(OutOfOrder),
                    DONE,
                    Err(OutOfOrder),
                    Err(OutOfOrder),
                ],
            ),
            (
                Cancel,
                [
                    Err(NotConfirmed),
                    Ok(Move(Cancelled)),
                    Err(AlreadyPaid),
                    Err(AlreadyPaid),
                    Err(AlreadyPaid),
                    DONE,
                    DONE,
                    Err(AlreadyPaid),
                    Err(AlreadyRefunded),
                ],
            ),
            (Expire, [Ok(Move(Invalid)), Ok(Move(Cancelled)), DONE, DONE, DONE, DONE, DONE, DONE, DONE]),
            (Pay(FIRST), [BACK, Ok(Move(Paid)), DONE, DONE, DONE, BACK, BACK, DONE, DONE]),
            (Pay(SECOND), [AGAIN, Ok(Move(Paid)), AGAIN, AGAIN, AGAIN, AGAIN, AGAIN, AGAIN, AGAIN]),
            (
                Ship,
                [
                    Err(OutOfOrder),
                    Err(OutOfOrder),
                    Ok(Move(Shipped)),
                    DONE,
                    DONE,
                    Err(OutOfOrder),
                    Err(OutOfOrder),
                    Err(OutOfOrder),
                    Err(OutOfOrder),
                ],
            ),
            (
                Finish,
                [
                    Err(OutOfOrder),
                    Err(OutOfOrder),
                    Err(OutOfOrder),
                    Ok(Move(Finished)),
                    DONE,
                    Err(OutOfOrder),
                    Err(OutOfOrder),
                    Err(OutOfOrder),
                    Err(OutOfOrder),
                ],
            ),
            (
                Refund,
                [
                    Err(NotPaid),
                    Err(NotPaid),
                    Ok(Move(Refunding)),
                    Ok(Move(Refunding)),
                    Ok(Move(Refunding)),
                    Err(NotPaid),
                    Err(NotPaid),
                    DONE,
                    Err(AlreadyRefunded),
                ],
            ),
            (
                RefuseRefund,
                [
                    Err(NotPaid),
                    Err(NotPaid),
                    DONE,
                    DONE,
                    DONE,
                    Err(NotPaid),
                    Err(NotPaid),
                    Ok(Move(Shipped)),
                    Err(AlreadyRefunded),
                ],
            ),
            (
                CompleteRefund,
                [
                    Err(OutOfOrder),
                    Err(OutOfOrder),
                    Err(OutOfOrder),
                    Err(OutOfOrder),
                    Err(OutOfOrder),
                    Err(OutOfOrder),
                    Err(OutOfOrder),
                    Ok(Move(Refunded)),
                    DONE,
                ],
            ),
        ]
    }

    #[test]
    fn every_state_and_command() {
        for (command, row) in table() {
            for (&state, expected) in State::ALL.iter().zip(row) {
                assert_eq!(decide(&status(state), command, DUE), expected, "{command:?} in {state}");
            }
        }
    }

    #[test]
    fn nothing_expires_early_or_while_money_may_come() {
        let early = DUE - chrono::TimeDelta::microseconds(1);
        for state in [Draft, AwaitingPayment] {
            assert_eq!(decide(&status(state), Expire, early), Err(Refusal::NotDue));
        }
        let open = Status { payment_open: true, ..status(AwaitingPayment) };
        for command in [Expire, Cancel] {
            assert_eq!(decide(&open, command, DUE), Err(Refusal::PaymentOpen));
        }
        assert_eq!(decide(&open, Pay(FIRST), DUE), Ok(Move(Paid)));
    }

    #[test]
    fn nothing_left_to_pay_is_paid_at_once() {
        let free = Status { payable_minor: 0, ..status(Draft) };
        assert_eq!(decide(&free, Confirm, DUE), Ok(Move(Paid)));
        let paid = Status { state: Paid, paid_by: None, ..free };
        assert_eq!(decide(&paid, Pay(FIRST), DUE), Ok(ReturnPayment(FIRST)));
    }

    #[test]
    fn what_is_done_is_done_and_doing_it_again_changes_nothing() {
        for (command, _) in table() {
            for &state in State::ALL {
                let before = status(state);
                if let Ok(Move(next)) = decide(&before, command, DUE) {
                    let paid_by = if let Pay(payment) = command { Some(payment) } else { before.paid_by };
                    let after = Status { paid_by, ..Status { state: next, ..before } };
                    let again = decide(&after, command, DUE);
                    assert_eq!(again, Ok(AlreadyDone), "{command:?} twice, from {state}");
                }
            }
        }
    }

    /// README.md's table of what wins when money and a cancellation meet.
    fn outcomes() -> String {
        let cell = |state, command| match decide(&status(state), command, DUE) {
            Ok(Move(next)) => format!("`{next}`"),
            Ok(AlreadyDone) => "as it is".to_owned(),
            Ok(ReturnPayment(_)) => "the money goes back".to_owned(),
            Err(refusal) => format!("refused: {refusal}"),
        };
        let rows = State::ALL.iter().filter(|state| !matches!(state, Draft | Invalid)).map(|&state| {
            let cells = [Cancel, Expire, Pay(FIRST), Pay(SECOND)].map(|command| cell(state, command));
            format!("| `{state}` | {} |\n", cells.join(" | "))
        });
        rows.collect()
    }

    #[test]
    fn the_readme_says_what_wins() {
        let published = include_str!("../../README.md");
        assert!(published.contains(&outcomes()), "README.md should have:\n{}", outcomes());
    }
}
