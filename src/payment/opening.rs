//! The front door for who wants to pay: one open payment of each channel for an order, and nothing is opened behind a
//! cancellation.

use tracing::info;

use super::model::{Opened, Payment, PaymentState, PaymentView, Wish};
use super::service::{PaymentError, PaymentService};
use super::store;
use crate::db::{DbFault, Tx};
use crate::idempotency::{self, Answered, RequestKey};
use crate::ids::{Ids, OrderId, PaymentId, UserId};
use crate::order::machine::State;
use crate::order::model::{Line, Order};
use crate::order::store as orders;
use crate::ports::clock::SharedClock;
use crate::ports::payment_gateway::{Channel, PaymentOrder};

/// How many requests of the same customer for other ways to pay may come in between.
const RIVALS: usize = 3;

impl PaymentService {
    /// Opens a payment of `user`'s order, or the one of this channel that is open already (PAY-1, PAY-2). One that was
    /// prepared for another wish is closed at the gateway first.
    ///
    /// The answer is kept once the gateway knows the payment. Until then a repeat finds the open payment and tells the
    /// gateway again, which is harmless: it is told of each payment by its id.
    pub async fn create(
        &self,
        user: UserId,
        order: OrderId,
        channel: Channel,
        wish: Wish,
        key: Option<RequestKey>,
    ) -> Result<Answered<Opened>, PaymentError> {
        let gateway = self.gateway(channel)?;
        if let Some(first) = idempotency::kept::<_, PaymentError>(&self.0.db, key).await? {
            return Ok(first);
        }
        // Before anything is written, or closed for its sake.
        gateway.fits(wish.mode, wish.payer.as_deref())?;
        let mut rivals = 0;
        let payment = loop {
            let payment = self.open(user, order, channel, &wish).await?;
            if payment.wish.serves(&wish) {
                break payment;
            }
            if rivals == RIVALS {
                return Err(PaymentError::Unavailable);
            }
            self.close(&payment).await?;
            rivals += 1;
        };
        let (payment, order) = self.with_order(payment.id).await?;
        let wanted = payment_order(&payment, &order)?;
        let mut view = PaymentView::from(payment);
        view.params = Some(gateway.create(&wanted).await?);
        self.still_open(view.id).await?;
        info!(payment.id = %view.id, order.id = %order.id, %channel, "Opened payment {} of order {}", view.id, order.id);
        let opened = Opened { payment: view };
        idempotency::once(&self.0.db, &self.0.clock, key, 201, move |_| {
            let opened = opened.clone();
            async move { Ok(opened) }
        })
        .await
    }

    /// Refuses a payment that was closed while its gateway prepared it, and closes it there: to the first close it may not
    /// have been known yet.
    async fn still_open(&self, id: PaymentId) -> Result<(), PaymentError> {
        let (payment, order) = self.with_order(id).await?;
        match payment.state {
            PaymentState::Pending => return Ok(()),
            PaymentState::Succeeded => return Err(PaymentError::AlreadyPaid),
            PaymentState::Failed | PaymentState::Closed => {}
        }
        self.close(&payment).await?;
        awaits_payment(&order)?;
        Err(PaymentError::Unavailable)
    }

    async fn open(
        &self,
        user: UserId,
        order: OrderId,
        channel: Channel,
        wish: &Wish,
    ) -> Result<Payment, PaymentError> {
        let (ids, clock, wish) = (self.0.ids.clone(), self.0.clock.clone(), wish.clone());
        let opening = self.0.db.transaction(move |tx| {
            let (ids, clock, wish) = (ids.clone(), clock.clone(), wish.clone());
            async move { open(&tx, &ids, &clock, user, order, channel, wish).await }
        });
        opening.await
    }
}

fn awaits_payment(order: &Order) -> Result<(), PaymentError> {
    match order.state {
        State::AwaitingPayment => Ok(()),
        State::Paid | State::Shipped | State::Finished | State::Refunding | State::Refunded => {
            Err(PaymentError::AlreadyPaid)
        }
        state @ (State::Draft | State::Cancelled | State::Invalid) => Err(PaymentError::NotPayable(state)),
    }
}

/// Opens a payment of an order that waits for one.
async fn open(
    tx: &Tx,
    ids: &Ids,
    clock: &SharedClock,
    user: UserId,
    order: OrderId,
    channel: Channel,
    wish: Wish,
) -> Result<Payment, PaymentError> {
    let order = orders::lock_one(tx, order).await?;
    let order = order.filter(|order| order.is_visible_to(user)).ok_or(PaymentError::NotFound)?;
    awaits_payment(&order)?;
    let now = clock.now();
    if now >= order.due_at {
        return Err(PaymentError::TooLate);
    }
    let payments = store::of_order(tx, order.id).await?;
    // Captured, and the order has not been told yet.
    if payments.iter().any(|payment| payment.state == PaymentState::Succeeded) {
        return Err(PaymentError::AlreadyPaid);
    }
    let open = |payment: &&Payment| payment.state == PaymentState::Pending && payment.channel == channel;
    if let Some(open) = payments.iter().find(open) {
        return Ok(open.clone());
    }
    let payment = Payment {
        id: ids.next()?,
        order_id: order.id,
        user_id: user,
        channel,
        state: PaymentState::Pending,
        amount_minor: order.amounts.payable_minor,
        currency: order.currency,
        transaction_id: None,
        payer: None,
        wish,
        failure: None,
        created_at: now,
        settled_at: None,
        recheck_at: None,
    };
    store::insert(tx, &payment).await?;
    Ok(payment)
}

/// A payment as its gateway is told of it.
pub(super) fn payment_order(payment: &Payment, order: &Order) -> Result<PaymentOrder, PaymentError> {
    let lines: Vec<Line> = serde_json::from_str(&order.items).map_err(DbFault::from)?;
    let first = lines.first().map_or("an order", |line| line.name.as_str());
    Ok(PaymentOrder {
        payment_id: payment.id,
        description: first.to_owned(),
        amount_minor: payment.amount_minor,
        currency: payment.currency,
        expires_at: order.due_at,
        payer: payment.wish.payer.clone(),
        mode: payment.wish.mode,
    })
}
