//! What a customer wants, compared with what the shop knows: the checks of ORD-3 to ORD-7, in their order, pure.

use std::collections::{BTreeMap, HashMap};

use super::model::{Address, Amounts, Line};
use crate::catalog::Goods;
use crate::coupon::model::{Coupon, Spend, Unusable};
use crate::ids::{CouponId, GoodsId};
use crate::ports::clock::Timestamp;

/// Goods that are wanted, how many, and what the customer was told one unit costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WishedLine {
    pub goods_id: GoodsId,
    pub quantity: i32,
    pub unit_price_minor: i64,
}

/// An order as the customer wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Each goods once, in any order; not empty.
    pub lines: Vec<WishedLine>,
    pub shipping_fee_minor: i64,
    pub order_amount_minor: i64,
    pub coupon: Option<CouponId>,
    /// To be taken from the balance; not negative.
    pub balance_minor: i64,
    pub address: Address,
}

/// What sending an order costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shipping {
    pub fee_minor: i64,
    /// From this amount of goods on it costs nothing.
    pub free_from_minor: i64,
}

impl Shipping {
    pub fn fee(&self, goods_amount_minor: i64) -> i64 {
        if goods_amount_minor >= self.free_from_minor { 0 } else { self.fee_minor }
    }
}

/// What the shop knows.
#[derive(Debug, Clone)]
pub struct Known {
    pub goods: HashMap<GoodsId, Goods>,
    /// The wished coupon, if the customer has it.
    pub coupon: Option<Coupon>,
    pub balance_minor: i64,
    pub shipping: Shipping,
}

/// Why there is no such order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("goods {0} are not on sale")]
    Goods(GoodsId),
    #[error("goods {goods} cost {price_minor}")]
    Price { goods: GoodsId, price_minor: i64 },
    #[error("of goods {goods} only {available} units are free")]
    Quantity { goods: GoodsId, available: i32 },
    #[error("the shipping fee is {0}")]
    ShippingFee(i64),
    #[error("the order comes to {0}")]
    OrderAmount(i64),
    #[error("you have no such coupon")]
    Coupon,
    #[error(transparent)]
    CouponUnusable(#[from] Unusable),
    #[error("only {0} are left to pay")]
    BalanceTooMuch(i64),
    #[error("the balance is {0}")]
    Balance(i64),
}

/// What is ordered, and what it comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// By goods, so that all orders reserve in one order.
    pub lines: Vec<Line>,
    pub amounts: Amounts,
}

impl Quote {
    pub fn spend(&self) -> Spend {
        Spend {
            goods_amount_minor: self.amounts.goods_amount_minor,
            order_amount_minor: self.amounts.order_amount_minor,
        }
    }
}

/// Compares what is wanted with what is known; the first mismatch counts.
pub fn quote(wish: &Wish, known: &Known, now: Timestamp) -> Result<Quote, Mismatch> {
    let mut lines = BTreeMap::new();
    for line in &wish.lines {
        let goods = known.goods.get(&line.goods_id).filter(|goods| goods.is_on_sale());
        lines.insert(line.goods_id, (line, goods.ok_or(Mismatch::Goods(line.goods_id))?));
    }
    for (&id, (line, goods)) in &lines {
        if line.unit_price_minor != goods.price.minor() {
            return Err(Mismatch::Price { goods: id, price_minor: goods.price.minor() });
        }
    }
    for (&id, (line, goods)) in &lines {
        // The last unit can be sold, too.
        if line.quantity > goods.stock.available {
            return Err(Mismatch::Quantity { goods: id, available: goods.stock.available });
        }
    }
    let goods_amount_minor =
        lines.values().map(|(line, _)| i64::from(line.quantity) * line.unit_price_minor).sum();
    let shipping_fee_minor = known.shipping.fee(goods_amount_minor);
    if wish.shipping_fee_minor != shipping_fee_minor {
        return Err(Mismatch::ShippingFee(shipping_fee_minor));
    }
    let order_amount_minor = goods_amount_minor + shipping_fee_minor;
    if wish.order_amount_minor != order_amount_minor {
        return Err(Mismatch::OrderAmount(order_amount_minor));
    }
    let spend = Spend { goods_amount_minor, order_amount_minor };
    let coupon_deduction_minor = match (wish.coupon, &known.coupon) {
        (None, _) => 0,
        (Some(_), None) => return Err(Mismatch::Coupon),
        (Some(_), Some(coupon)) => coupon.deduction(spend, now)?,
    };
    let left = order_amount_minor - coupon_deduction_minor;
    if wish.balance_minor > left {
        return Err(Mismatch::BalanceTooMuch(left));
    }
    if wish.balance_minor > known.balance_minor {
        return Err(Mismatch::Balance(known.balance_minor));
    }
    let lines = lines.into_values().map(|(line, goods)| Line {
        goods_id: Some(goods.id),
        name: goods.name.as_str().to_owned(),
        quantity: line.quantity,
        unit_price_minor: line.unit_price_minor,
    });
    Ok(Quote {
        lines: lines.collect(),
        amounts: Amounts {
            goods_amount_minor,
            shipping_fee_minor,
            order_amount_minor,
            coupon_deduction_minor,
            balance_paid_minor: wish.balance_minor,
            payable_minor: left - wish.balance_minor,
        },
    })
}
