//! Payments and refunds.

use crate::words::words;

words! {
    /// What became of an attempt to pay.
    PaymentState, "state of a payment" {
        Pending = "pending",
        Succeeded = "succeeded",
        Failed = "failed",
        Closed = "closed",
    }
}

words! {
    /// How far money is on its way back.
    ///
    /// `requested` waits for an operator, `approved` for the gateway.
    RefundState, "state of a refund" {
        Requested = "requested",
        Approved = "approved",
        Succeeded = "succeeded",
        Failed = "failed",
        Rejected = "rejected",
    }
}

words! {
    /// Why money goes back.
    RefundCause, "cause of a refund" {
        Order = "order",
        LatePayment = "late_payment",
        DoublePayment = "double_payment",
    }
}
