//! How an order of the shop comes about: draft, stock, coupon, balance, confirmation (ORD-4 to ORD-10, Y-1).
//!
//! Each step is a transaction of the module that owns it, may run twice, and leaves a row that says what it did; it does
//! nothing unless the order is still a draft, whose row it holds meanwhile. So a step never comes after its compensation,
//! and compensation needs to know nothing: when a step fails the draft becomes invalid and says so by `order.cancelled`,
//! and the goods, the coupon and the wallet each undo what their own rows say. A draft that a crash left behind
//! becomes invalid in the same way, when its time is up.
//!
//! It runs in a task of its own, to its end: a customer who hangs up leaves no draft half-way.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use tracing::{info, warn};

use super::checkout::{Known, Mismatch, Quote, Shipping, Wish, quote};
use super::desk::{self, Begun, Work, WorkRefusal};
use super::machine::{Command, State};
use super::model::{Cause, Kind, Order};
use super::service::OrderService;
use super::store::{self, Step};
use crate::actors::batching::Unserved;
use crate::actors::lanes::LaneError;
use crate::catalog::{CatalogService, ReserveError};
use crate::coupon::model::CouponError;
use crate::coupon::store as coupons;
use crate::db::{AsDbFault, Database, DbFault, Tx};
use crate::faults;
use crate::idempotency::{self, Answered, KeyRefusal, RequestKey};
use crate::ids::{GoodsId, Ids, NodeNumberLost, OrderId, UserId};
use crate::money::Currency;
use crate::ports::clock::SharedClock;
use crate::wallet::{Ledger, WalletError, WalletService};

/// How often a step is tried whose outcome is unknown, and the pause before it is tried again.
const TRIES: u32 = 2;
const PAUSE: Duration = Duration::from_millis(100);

/// What the shop has decided about its checkout.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub currency: Currency,
    pub shipping: Shipping,
    /// How long a draft may take.
    pub draft_timeout: TimeDelta,
}

/// Why there is no order.
#[derive(Debug, thiserror::Error)]
pub enum CheckoutError {
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    #[error(transparent)]
    Key(#[from] KeyRefusal),
    #[error("too many requests are waiting")]
    Overloaded { retry_after_s: u32 },
    /// The draft was given up, so nothing remains of it.
    #[error("the database is not available")]
    Unavailable,
    #[error("the outcome is not known yet")]
    Unanswered,
    #[error("its time was up before it was confirmed")]
    GivenUp,
    #[error(transparent)]
    NodeNumber(#[from] NodeNumberLost),
    #[error(transparent)]
    Db(#[from] DbFault),
}

impl CheckoutError {
    /// Whether the step may have been done.
    fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Unanswered) || self.db_fault().is_some_and(DbFault::is_ambiguous)
    }
}

impl AsDbFault for CheckoutError {
    fn db_fault(&self) -> Option<&DbFault> {
        if let Self::Db(fault) = self { Some(fault) } else { None }
    }
}

/// What became of the first request with a key.
enum First {
    Answered(Box<Answered<Order>>),
    /// It came to nothing, so the next one is judged anew.
    ForNothing,
    Unknown,
}

/// Makes orders of the shop. Clones share everything.
#[derive(Debug, Clone)]
pub struct Checkout {
    pub db: Database,
    pub ids: Ids,
    pub clock: SharedClock,
    pub rules: Rules,
    pub catalog: CatalogService,
    pub wallets: WalletService,
    pub ledger: Ledger,
    pub orders: OrderService,
}

impl Checkout {
    /// Makes the order that `user` wishes, or nothing; with a key, once.
    pub async fn place(
        &self,
        user: UserId,
        wish: Wish,
        key: Option<RequestKey>,
    ) -> Result<Answered<Order>, CheckoutError> {
        // Before the prices of today are looked at.
        if let Some(first) = idempotency::kept::<_, CheckoutError>(&self.db, key).await? {
            return Ok(first);
        }
        let checkout = self.clone();
        let placing = self.db.spawn(async move { checkout.run(user, wish, key).await });
        placing.await.map_err(|_| CheckoutError::Unanswered)?
    }

    async fn run(
        &self,
        user: UserId,
        wish: Wish,
        key: Option<RequestKey>,
    ) -> Result<Answered<Order>, CheckoutError> {
        let quote = match self.judge(user, &wish).await? {
            Ok(quote) => quote,
            // What is missing may be what the first request with this key holds, or held until now.
            Err(mismatch) => match self.first(key).await? {
                First::Answered(first) => return Ok(*first),
                First::ForNothing => self.judge(user, &wish).await??,
                First::Unknown => return Err(mismatch.into()),
            },
        };
        let draft = Arc::new(self.draft(user, &wish, &quote)?);
        match self.orders.work(Work::Draft { order: draft.clone(), key }).await {
            Ok(Answered::Fresh(_)) => {}
            Ok(first @ Answered::Replayed(_)) => return Ok(first),
            Err(error) => return Err(error.into()),
        }
        match self.steps(&draft, &quote, &wish, key).await {
            Ok(confirmed) => Ok(confirmed),
            Err(error) => self.give_up(draft.id, error).await,
        }
    }

    /// What became of the request with `key` that was faster; a refusal while it is under way.
    async fn first(&self, key: Option<RequestKey>) -> Result<First, CheckoutError> {
        if let Some(first) = idempotency::kept::<_, CheckoutError>(&self.db, key).await? {
            return Ok(First::Answered(Box::new(first)));
        }
        let keys = key.map(|key| key.id).into_iter().collect();
        let begun = self.db.read(move |db| async move { desk::requests(&db, keys).await });
        let begun: Result<_, DbFault> = begun.await;
        match begun?.pop() {
            Some((_, Begun::UnderWay(_))) => Err(KeyRefusal::InProgress.into()),
            Some((_, Begun::ForNothing)) => Ok(First::ForNothing),
            None => Ok(First::Unknown),
        }
    }

    async fn judge(&self, user: UserId, wish: &Wish) -> Result<Result<Quote, Mismatch>, CheckoutError> {
        Ok(quote(wish, &self.known(user, wish).await?, self.clock.now()))
    }

    async fn known(&self, user: UserId, wish: &Wish) -> Result<Known, CheckoutError> {
        let goods = self.catalog.find(wish.lines.iter().map(|line| line.goods_id).collect()).await?;
        let coupon = match wish.coupon {
            None => None,
            Some(id) => {
                let found = self.db.read(move |db| async move { coupons::find(&db, user, id).await });
                match found.await {
                    Ok(coupon) => Some(coupon),
                    Err(CouponError::Db(fault)) => return Err(fault.into()),
                    Err(_) => None,
                }
            }
        };
        let balance_minor = match wish.balance_minor {
            0 => 0,
            _ => self.wallets.account(user).await?.balance_minor,
        };
        let goods = goods.into_iter().map(|goods| (goods.id, goods)).collect();
        Ok(Known { goods, coupon, balance_minor, shipping: self.rules.shipping })
    }

    fn draft(&self, user: UserId, wish: &Wish, quote: &Quote) -> Result<Order, CheckoutError> {
        let now = self.clock.now();
        Ok(Order {
            id: self.ids.next()?,
            user_id: user,
            kind: Kind::Shop,
            state: State::Draft,
            version: 1,
            activity_id: None,
            items: serde_json::to_string(&quote.lines).map_err(DbFault::from)?,
            address: Some(serde_json::to_string(&wish.address).map_err(DbFault::from)?),
            amounts: quote.amounts,
            coupon_id: wish.coupon,
            currency: self.rules.currency,
            due_at: now + self.rules.draft_timeout,
            paid_by: None,
            refund_from: None,
            cancel_cause: None,
            created_at: now,
            updated_at: now,
        })
    }

    async fn steps(
        &self,
        draft: &Order,
        quote: &Quote,
        wish: &Wish,
        key: Option<RequestKey>,
    ) -> Result<Answered<Order>, CheckoutError> {
        let order = draft.id;
        reach("saga_after_draft").await?;
        for line in &quote.lines {
            let Some(goods) = line.goods_id else { continue };
            self.twice(|| self.reserve(order, goods, line.quantity)).await?;
            reach("saga_after_stock").await?;
        }
        if wish.coupon.is_some() {
            self.twice(|| self.lock_coupon(draft, quote, wish)).await?;
            reach("saga_after_coupon").await?;
        }
        if wish.balance_minor > 0 {
            self.twice(|| self.pay_from_balance(draft, wish.balance_minor)).await?;
            reach("saga_after_balance").await?;
        }
        let step = Step::new(order, Command::Confirm, Cause::Creation);
        Ok(self.orders.work(Work::Step { step, key, status: 201 }).await?)
    }

    /// A step whose outcome is unknown is taken again: it is done once.
    async fn twice<Fut>(&self, step: impl Fn() -> Fut) -> Result<(), CheckoutError>
    where
        Fut: Future<Output = Result<(), CheckoutError>>,
    {
        let mut outcome = step().await;
        for _ in 1..TRIES {
            if !outcome.as_ref().is_err_and(CheckoutError::is_ambiguous) {
                break;
            }
            tokio::time::sleep(PAUSE).await;
            outcome = step().await;
        }
        outcome
    }

    async fn reserve(&self, order: OrderId, goods: GoodsId, quantity: i32) -> Result<(), CheckoutError> {
        self.catalog.reserve(order, goods, quantity).await.map_err(|error| match error {
            ReserveError::NotFound => Mismatch::Goods(goods).into(),
            ReserveError::Insufficient { available } => Mismatch::Quantity { goods, available }.into(),
            ReserveError::NotDraft => CheckoutError::GivenUp,
            ReserveError::Overloaded { retry_after_s } => CheckoutError::Overloaded { retry_after_s },
            ReserveError::Unavailable => CheckoutError::Unavailable,
            ReserveError::Unanswered => CheckoutError::Unanswered,
        })
    }

    async fn lock_coupon(&self, draft: &Order, quote: &Quote, wish: &Wish) -> Result<(), CheckoutError> {
        let (ids, clock, spend) = (self.ids.clone(), self.clock.clone(), quote.spend());
        let (order, user, coupon) = (draft.id, draft.user_id, wish.coupon);
        let promised = quote.amounts.coupon_deduction_minor;
        self.db
            .transaction(move |tx| {
                let (ids, now) = (ids.clone(), clock.now());
                async move {
                    hold_draft(&tx, order).await?;
                    let Some(coupon) = coupon else { return Ok(()) };
                    match coupons::lock(&tx, &ids, now, order, user, coupon, spend).await {
                        Ok(deduction) if deduction == promised => Ok(()),
                        Ok(_) => Err(DbFault::Missing("the coupon as it was").into()),
                        Err(CouponError::Unusable(unusable)) => Err(Mismatch::from(unusable).into()),
                        Err(CouponError::Db(fault)) => Err(fault.into()),
                        Err(_) => Err(Mismatch::Coupon.into()),
                    }
                }
            })
            .await
    }

    async fn pay_from_balance(&self, draft: &Order, amount_minor: i64) -> Result<(), CheckoutError> {
        let (ledger, clock) = (self.ledger.clone(), self.clock.clone());
        let (order, user) = (draft.id, draft.user_id);
        self.db
            .transaction(move |tx| {
                let (ledger, now) = (ledger.clone(), clock.now());
                async move {
                    hold_draft(&tx, order).await?;
                    match ledger.pay(&tx, now, order, user, amount_minor).await {
                        Ok(()) => Ok(()),
                        Err(WalletError::Insufficient { balance_minor }) => {
                            Err(Mismatch::Balance(balance_minor).into())
                        }
                        Err(WalletError::Db(fault)) => Err(fault.into()),
                        Err(_) => Err(Mismatch::Balance(0).into()),
                    }
                }
            })
            .await
    }

    /// Gives a draft up whose step failed with `error`; unless it was confirmed after all.
    async fn give_up(&self, order: OrderId, error: CheckoutError) -> Result<Answered<Order>, CheckoutError> {
        let step =
            Step { reason: Some(error.to_string()), ..Step::new(order, Command::Abandon, Cause::Creation) };
        match self.orders.work(Work::Step { step, key: None, status: 200 }).await {
            Ok(_) => {
                info!(order.id = %order, "Draft {order} came to nothing: {error}");
                // Nothing of it remains, whatever the step did.
                Err(if let CheckoutError::Unanswered = error { CheckoutError::Unavailable } else { error })
            }
            Err(LaneError::Refused(WorkRefusal::Step(_))) => {
                let confirmed = self.orders.find(order).await.ok().flatten();
                confirmed.map(Answered::Fresh).ok_or(CheckoutError::Unanswered)
            }
            Err(failed) => {
                warn!(order.id = %order, %error, ?failed, "Draft {order} is given up when its time is up");
                Err(error)
            }
        }
    }
}

/// Keeps the draft from being given up while its step commits.
async fn hold_draft(tx: &Tx, order: OrderId) -> Result<(), CheckoutError> {
    if store::hold_draft(tx, order).await? { Ok(()) } else { Err(CheckoutError::GivenUp) }
}

async fn reach(point: &'static str) -> Result<(), CheckoutError> {
    faults::point(point).await.map_err(|fault| DbFault::from(fault).into())
}

impl From<LaneError<WorkRefusal>> for CheckoutError {
    fn from(error: LaneError<WorkRefusal>) -> Self {
        match error {
            LaneError::Refused(WorkRefusal::Key(refusal)) => refusal.into(),
            LaneError::Refused(WorkRefusal::Step(_)) => Self::GivenUp,
            LaneError::Unavailable | LaneError::Unserved(Unserved::NotBegun) => Self::Unavailable,
            LaneError::Unserved(Unserved::Unanswered) => Self::Unanswered,
            LaneError::Unserved(Unserved::Overloaded { retry_after_s }) => Self::Overloaded { retry_after_s },
        }
    }
}
