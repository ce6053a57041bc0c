//! Parsed values: whoever holds one need not check it again.

use chrono::{DateTime, Datelike, Utc};
use serde::Serialize;
use thiserror::Error;
use utoipa::ToSchema;

use super::machine::{Event, State};
use crate::ids::{ActivityId, GoodsId, UserId};
use crate::money::{Currency, MOST_MINOR};
use crate::ports::clock::{Timestamp, as_kept};
use crate::words::words;

words! {
    /// What a take of the activity brings.
    Kind, "kind of activity" {
        FlashSale = "flash_sale",
        PrizeDraw = "prize_draw",
        Giveaway = "giveaway",
    }
}

/// What a flash sale sells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sale {
    /// The goods of the shop it is about, if it names any; they have a stock of their own.
    pub goods_id: Option<GoodsId>,
    /// What one unit costs.
    pub price_minor: i64,
}

impl Sale {
    /// What `kind` sells: a flash sale has a price, and nothing else has.
    pub fn of(
        kind: Kind,
        goods_id: Option<GoodsId>,
        price_minor: Option<i64>,
    ) -> Result<Option<Self>, Invalid> {
        match (kind, price_minor) {
            (Kind::FlashSale, Some(price_minor)) if (1..=MOST_MINOR).contains(&price_minor) => {
                Ok(Some(Self { goods_id, price_minor }))
            }
            (Kind::FlashSale, _) => Err(Invalid::SalePrice),
            (Kind::PrizeDraw | Kind::Giveaway, Some(_)) => Err(Invalid::NoPrice),
            (Kind::PrizeDraw | Kind::Giveaway, None) if goods_id.is_some() => Err(Invalid::NoGoods),
            (Kind::PrizeDraw | Kind::Giveaway, None) => Ok(None),
        }
    }
}

/// A value no activity can have.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum Invalid {
    #[error("must be 1 to {} characters, not all blank, none of them a control character", Name::MAX_CHARS)]
    Name,
    #[error("must be 1 to {}", i32::MAX)]
    Count,
    #[error("must not be before 1970")]
    StartsAt,
    #[error("must be after starts_at and not after 9999")]
    EndsAt,
    #[error("must be in the future")]
    Over,
    #[error("a flash sale needs a price of 1 to {MOST_MINOR}")]
    SalePrice,
    #[error("only a flash sale has a price")]
    NoPrice,
    #[error("only a flash sale names goods")]
    NoGoods,
    #[error("there are no such goods")]
    Goods,
}

/// What people call an activity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// As many characters as the column holds.
    pub const MAX_CHARS: usize = 128;

    pub fn parse(text: String) -> Result<Self, Invalid> {
        let acceptable = text.chars().count() <= Self::MAX_CHARS
            && !text.trim().is_empty()
            && !text.chars().any(char::is_control);
        if acceptable { Ok(Self(text)) } else { Err(Invalid::Name) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A number of units: 1 to 2^31 - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count(i32);

impl Count {
    pub fn parse(number: i64) -> Result<Self, Invalid> {
        i32::try_from(number).ok().filter(|&number| number >= 1).map(Self).ok_or(Invalid::Count)
    }

    pub fn get(self) -> i32 {
        self.0
    }
}

/// When an activity runs: from `starts_at` to `ends_at`, both included (ACT-8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    starts_at: Timestamp,
    ends_at: Timestamp,
}

impl Window {
    /// Takes both ends as the database keeps them.
    pub fn new(starts_at: Timestamp, ends_at: Timestamp) -> Result<Self, Invalid> {
        let (starts_at, ends_at) = (as_kept(starts_at), as_kept(ends_at));
        if starts_at.year() < 1970 {
            Err(Invalid::StartsAt)
        } else if starts_at >= ends_at || ends_at.year() > 9999 {
            Err(Invalid::EndsAt)
        } else {
            Ok(Self { starts_at, ends_at })
        }
    }

    pub fn starts_at(&self) -> Timestamp {
        self.starts_at
    }

    pub fn ends_at(&self) -> Timestamp {
        self.ends_at
    }

    /// Whether it is still to begin.
    pub fn is_ahead(&self, now: Timestamp) -> bool {
        now < self.starts_at
    }

    /// Whether its last moment has passed.
    pub fn is_over(&self, now: Timestamp) -> bool {
        now > self.ends_at
    }
}

/// An activity that is to be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    pub name: Name,
    pub kind: Kind,
    pub window: Window,
    pub stock_total: Count,
    pub take_limit_per_user: Option<Count>,
    pub sale: Option<Sale>,
}

/// What is to be different about an activity; `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edit {
    pub name: Option<Name>,
    pub kind: Option<Kind>,
    pub starts_at: Option<Timestamp>,
    pub ends_at: Option<Timestamp>,
    pub stock_total: Option<Count>,
    pub take_limit_per_user: Option<Option<Count>>,
    pub goods_id: Option<Option<GoodsId>>,
    pub sale_price_minor: Option<Option<i64>>,
}

/// A campaign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activity {
    pub id: ActivityId,
    pub name: Name,
    pub kind: Kind,
    pub state: State,
    pub window: Window,
    /// May fall to 0 while it runs.
    pub stock_total: i32,
    pub take_limit_per_user: Option<Count>,
    /// What it sells, if it is a flash sale.
    pub sale: Option<Sale>,
    /// Raised by every change.
    pub version: i64,
    pub created_by: UserId,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Activity {
    /// The activity as `edit` would have it.
    pub fn edited(&self, edit: Edit) -> Result<Self, Invalid> {
        let window = Window::new(
            edit.starts_at.unwrap_or(self.window.starts_at),
            edit.ends_at.unwrap_or(self.window.ends_at),
        )?;
        let kind = edit.kind.unwrap_or(self.kind);
        // What another kind needs is not carried over to it.
        let sale = self.sale.filter(|_| kind == self.kind);
        let goods_id = edit.goods_id.unwrap_or(sale.and_then(|sale| sale.goods_id));
        let price_minor = edit.sale_price_minor.unwrap_or(sale.map(|sale| sale.price_minor));
        Ok(Self {
            name: edit.name.unwrap_or_else(|| self.name.clone()),
            kind,
            sale: Sale::of(kind, goods_id, price_minor)?,
            window,
            stock_total: edit.stock_total.map_or(self.stock_total, Count::get),
            take_limit_per_user: edit.take_limit_per_user.unwrap_or(self.take_limit_per_user),
            ..self.clone()
        })
    }

    /// The activity as it is shown while `sold` of its units are taken.
    pub fn view(&self, sold: i64, currency: Currency) -> ActivityView {
        let total = i64::from(self.stock_total);
        ActivityView {
            id: self.id,
            name: self.name.as_str().to_owned(),
            kind: self.kind,
            state: self.state,
            starts_at: self.window.starts_at,
            ends_at: self.window.ends_at,
            take_limit_per_user: self.take_limit_per_user.map(Count::get),
            stock: StockView { total, remaining: total - sold },
            goods_id: self.sale.and_then(|sale| sale.goods_id),
            sale_price_minor: self.sale.map(|sale| sale.price_minor),
            currency: self.sale.map(|_| currency),
            version: self.version,
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }
}

/// An activity as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ActivityView {
    pub id: ActivityId,
    pub name: String,
    pub kind: Kind,
    pub state: State,
    pub starts_at: DateTime<Utc>,
    pub ends_at: DateTime<Utc>,
    /// How many units one user may hold; null: no limit.
    pub take_limit_per_user: Option<i32>,
    pub stock: StockView,
    /// The goods that a flash sale is about.
    pub goods_id: Option<GoodsId>,
    /// What one unit costs in a flash sale.
    pub sale_price_minor: Option<i64>,
    pub currency: Option<Currency>,
    /// Raised by every change of the activity, not by takes.
    pub version: i64,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// How many units there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct StockView {
    pub total: i64,
    pub remaining: i64,
}

/// Which activities to list, newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Listing {
    pub state: Option<State>,
    pub kind: Option<Kind>,
    /// Only activities made before this one.
    pub before: Option<ActivityId>,
    pub limit: u64,
}

/// What the clock asks of activities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    Start,
    Close,
}

impl Due {
    /// As an operator would ask it.
    pub fn event(self) -> Event {
        match self {
            Self::Start => Event::Start,
            Self::Close => Event::Close,
        }
    }
}

/// The states in which customers see an activity.
pub const PUBLIC_STATES: [State; 3] = [State::Approved, State::Running, State::Closed];

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("a", true)]
    #[case(&"界".repeat(128), true)]
    #[case(&"界".repeat(129), false)]
    #[case("", false)]
    #[case("  ", false)]
    #[case("line\nbreak", false)]
    #[case("nul\0", false)]
    fn names(#[case] text: &str, #[case] acceptable: bool) {
        assert_eq!(Name::parse(text.to_owned()).is_ok(), acceptable);
    }

    #[rstest]
    #[case(i64::MIN, false)]
    #[case(0, false)]
    #[case(1, true)]
    #[case(2_147_483_647, true)]
    #[case(2_147_483_648, false)]
    fn counts(#[case] number: i64, #[case] acceptable: bool) {
        assert_eq!(Count::parse(number).is_ok(), acceptable);
    }

    #[test]
    fn a_window_has_a_length_in_microseconds() {
        let start = Timestamp::UNIX_EPOCH;
        assert_eq!(Window::new(start, start), Err(Invalid::EndsAt));
        assert_eq!(Window::new(start, start + TimeDelta::nanoseconds(999)), Err(Invalid::EndsAt));
        assert!(Window::new(start, start + TimeDelta::microseconds(1)).is_ok());
    }
}
