//! What a take of a flash sale brings: an order at the activity's price, as rows of the batch that took the token.
//!
//! The order has the id of its take, so the primary key gives a take one order. It begins where an order of the shop is
//! after its saga: stock is all it needs, and that is the token.

use chrono::TimeDelta;

use super::events::Created;
use super::machine::State;
use super::model::{Amounts, Kind, Line, Order, OrderView};
use crate::db::bulk::{Column, Rows, Script};
use crate::ids::{ActivityId, GoodsId, OrderId};
use crate::money::Currency;
use crate::ports::clock::to_micros;
use crate::stock::Take;

/// What all sales of this server have in common.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    pub currency: Currency,
    /// How long a customer has to pay.
    pub payment_timeout: TimeDelta,
}

/// What one activity sells.
#[derive(Debug, Clone)]
pub struct Sale {
    activity: ActivityId,
    /// The order's only line.
    line: Line,
    /// It, as the order keeps its lines.
    items: String,
    amounts: Amounts,
    terms: Terms,
}

impl Sale {
    /// One unit of `name` at `price_minor`, sent for nothing.
    pub fn new(
        activity: ActivityId,
        name: &str,
        goods_id: Option<GoodsId>,
        price_minor: i64,
        terms: Terms,
    ) -> Self {
        let line = Line { goods_id, name: name.to_owned(), quantity: 1, unit_price_minor: price_minor };
        let items = serde_json::to_string(&[&line]).unwrap_or_default();
        let amounts = Amounts {
            goods_amount_minor: price_minor,
            shipping_fee_minor: 0,
            order_amount_minor: price_minor,
            coupon_deduction_minor: 0,
            balance_paid_minor: 0,
            payable_minor: price_minor,
        };
        Self { activity, line, items, amounts, terms }
    }

    /// The order that `take` brings.
    pub fn order(&self, take: &Take) -> Order {
        Order {
            id: OrderId(take.id.0),
            user_id: take.user_id,
            kind: Kind::FlashSale,
            state: State::AwaitingPayment,
            version: 1,
            activity_id: Some(self.activity),
            items: self.items.clone(),
            address: None,
            amounts: self.amounts,
            coupon_id: None,
            currency: self.terms.currency,
            due_at: take.taken_at + self.terms.payment_timeout,
            paid_by: None,
            refund_from: None,
            cancel_cause: None,
            created_at: take.taken_at,
            updated_at: take.taken_at,
        }
    }

    /// That order as it is shown.
    pub fn view(&self, take: &Take) -> OrderView {
        self.order(take).view_of(vec![self.line.clone()], None)
    }

    /// What is told of that order.
    pub fn created(&self, take: &Take) -> Created {
        let order = self.order(take);
        Created::new(&order, order.due_at)
    }

    /// Adds the orders that `takes` bring to `script`; all were taken at one time.
    pub fn insert_orders(&self, takes: &[Take], script: &mut Script) {
        let Some(first) = takes.first() else { return };
        let (price, now) = (self.amounts.payable_minor, to_micros(first.taken_at));
        let due_at = to_micros(first.taken_at + self.terms.payment_timeout);
        let rows = Rows::new()
            .column("id", Column::Big(takes.iter().map(|take| take.id.0).collect()))
            .column("user_id", Column::Big(takes.iter().map(|take| take.user_id.0).collect()));
        script.push_rows(
            "INSERT INTO orders (id, user_id, kind, state, version, activity_id, items, goods_amount_minor, \
             shipping_fee_minor, order_amount_minor, coupon_deduction_minor, balance_paid_minor, payable_minor, currency, \
             due_at, created_at, updated_at) \
             SELECT r.id, r.user_id, 'flash_sale', 'awaiting_payment', 1, ?, ?, ?, 0, ?, 0, 0, ?, ?, ?, ?, ? FROM {rows}",
            [
                self.activity.0.into(),
                self.items.as_str().into(),
                price.into(),
                price.into(),
                price.into(),
                self.terms.currency.as_str().into(),
                due_at.into(),
                now.into(),
                now.into(),
            ],
            rows,
        );
    }
}
