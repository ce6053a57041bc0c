//! Parsed values: whoever holds one need not check it again.

use entities::goods;
use serde::Serialize;
use thiserror::Error;
use utoipa::ToSchema;

use crate::actors::batching::Unserved;
use crate::db::{AsDbFault, DbFault};
use crate::idempotency::KeyRefusal;
use crate::ids::{GoodsId, LedgerEntryId, StoreId, UserId};
use crate::messaging::outbox::serialize_rfc3339;
use crate::money::{Currency, MOST_MINOR};
use crate::ports::clock::{Timestamp, from_micros};
use crate::words::words;

words! {
    /// Whether customers see it and can buy it.
    State, "goods state" {
        OnSale = "on_sale",
        OffSale = "off_sale",
    }
}

/// A value no goods can have.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum Invalid {
    #[error("must be 1 to {} characters, not all blank, none of them a control character", Name::MAX_CHARS)]
    Name,
    #[error(
        "must be up to {} characters, of control characters only line breaks and tabs",
        Description::MAX_CHARS
    )]
    Description,
    #[error("must be 0 to {MOST_MINOR}")]
    Price,
    #[error("must be 0 to {}", i32::MAX)]
    Stock,
}

/// What people call the goods.
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

/// What is said about the goods; may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Description(String);

impl Description {
    /// As many characters as the column holds.
    pub const MAX_CHARS: usize = 2000;

    pub fn parse(text: String) -> Result<Self, Invalid> {
        let control = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
        let acceptable = text.chars().count() <= Self::MAX_CHARS && !text.chars().any(control);
        if acceptable { Ok(Self(text)) } else { Err(Invalid::Description) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What one unit costs, in minor units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price(i64);

impl Price {
    pub fn parse(minor: i64) -> Result<Self, Invalid> {
        if (0..=MOST_MINOR).contains(&minor) { Ok(Self(minor)) } else { Err(Invalid::Price) }
    }

    pub fn minor(self) -> i64 {
        self.0
    }
}

/// Goods to be created, on sale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewGoods {
    pub name: Name,
    pub description: Description,
    pub store: Option<StoreId>,
    pub price: Price,
    /// Not negative.
    pub stock_total: i32,
}

/// What is to be different about goods; `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edit {
    pub name: Option<Name>,
    pub description: Option<Description>,
    /// `Some(None)`: of no store any more.
    pub store: Option<Option<StoreId>>,
    pub price: Option<Price>,
    pub state: Option<State>,
}

/// A kind of goods that the shop sells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goods {
    pub id: GoodsId,
    pub name: Name,
    pub description: Description,
    pub store: Option<StoreId>,
    pub state: State,
    pub price: Price,
    pub stock: Stock,
    /// Raised by edits and adjustments, not by sales.
    pub version: i64,
    pub created_by: UserId,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// How many units there are, and how many of them no order holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Stock {
    #[schema(minimum = 0)]
    pub total: i32,
    #[schema(minimum = 0)]
    pub available: i32,
}

impl Goods {
    pub fn is_on_sale(&self) -> bool {
        self.state == State::OnSale
    }

    /// These goods after `edit`.
    pub fn edited(&self, edit: Edit) -> Self {
        Self {
            name: edit.name.unwrap_or_else(|| self.name.clone()),
            description: edit.description.unwrap_or_else(|| self.description.clone()),
            store: edit.store.unwrap_or(self.store),
            price: edit.price.unwrap_or(self.price),
            state: edit.state.unwrap_or(self.state),
            ..self.clone()
        }
    }

    /// The goods as they are shown.
    pub fn view(self, currency: Currency) -> GoodsView {
        GoodsView {
            on_sale: self.is_on_sale(),
            id: self.id,
            name: self.name.0,
            description: self.description.0,
            store_id: self.store,
            price_minor: self.price.0,
            currency,
            stock: self.stock,
            version: self.version,
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }
}

impl TryFrom<goods::Model> for Goods {
    type Error = DbFault;

    fn try_from(row: goods::Model) -> Result<Self, DbFault> {
        let invalid = |_: Invalid| DbFault::Missing("valid goods");
        Ok(Self {
            id: GoodsId(row.id),
            name: Name::parse(row.name).map_err(invalid)?,
            description: Description::parse(row.description).map_err(invalid)?,
            store: row.store_id.map(StoreId),
            state: row.state.parse()?,
            price: Price::parse(row.price_minor).map_err(invalid)?,
            stock: Stock { total: row.stock_total, available: row.available },
            version: row.version,
            created_by: UserId(row.created_by),
            created_at: from_micros(row.created_at),
            updated_at: from_micros(row.updated_at),
        })
    }
}

/// Goods as they are shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct GoodsView {
    pub id: GoodsId,
    pub name: String,
    pub description: String,
    /// The store they belong to, if any.
    #[schema(required = true)]
    pub store_id: Option<StoreId>,
    #[schema(minimum = 0)]
    pub price_minor: i64,
    pub currency: Currency,
    /// Whether customers see it and can buy it.
    pub on_sale: bool,
    pub stock: Stock,
    /// Raised by edits and adjustments, not by sales.
    pub version: i64,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// A wish to change how many units there are.
#[derive(Debug, Clone)]
pub struct Adjustment {
    pub goods: GoodsId,
    /// Units to add, or to withdraw if negative; not 0.
    pub delta: i32,
    pub reason: String,
    pub by: UserId,
}

/// A change of how many units there are that was made.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = GoodsAdjusted)]
pub struct Adjusted {
    pub id: LedgerEntryId,
    pub goods_id: GoodsId,
    pub delta: i32,
    pub reason: String,
    pub stock: Stock,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// Why goods were not created or changed.
#[derive(Debug, Error)]
pub enum CatalogError {
    #[error("there are no such goods")]
    NotFound,
    #[error("only {available} units are free")]
    Insufficient { available: i32 },
    #[error("the stock would be {0}; it must stay between 0 and {max}", max = i32::MAX)]
    OutOfRange(i64),
    #[error(transparent)]
    Key(#[from] KeyRefusal),
    #[error(transparent)]
    Db(#[from] DbFault),
}

impl AsDbFault for CatalogError {
    fn db_fault(&self) -> Option<&DbFault> {
        match self {
            Self::Db(fault) => Some(fault),
            Self::NotFound | Self::Insufficient { .. } | Self::OutOfRange(_) | Self::Key(_) => None,
        }
    }
}

/// Why an order did not get its units.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum ReserveError {
    #[error("there are no such goods on sale")]
    NotFound,
    #[error("only {available} units are free")]
    Insufficient { available: i32 },
    /// It was given up, or confirmed, meanwhile.
    #[error("the order is not being made any more")]
    NotDraft,
    #[error("too many requests are waiting")]
    Overloaded { retry_after_s: u32 },
    /// The database failed before anything was written.
    #[error("the database is not available")]
    Unavailable,
    /// The order may have got its units: asking again tells.
    #[error("the outcome is not known yet")]
    Unanswered,
}

impl From<Unserved> for ReserveError {
    fn from(unserved: Unserved) -> Self {
        match unserved {
            Unserved::Overloaded { retry_after_s } => Self::Overloaded { retry_after_s },
            Unserved::NotBegun => Self::Unavailable,
            Unserved::Unanswered => Self::Unanswered,
        }
    }
}
