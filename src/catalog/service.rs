//! The front door: one method per use case.

use std::fmt;
use std::sync::Arc;

use tracing::info;

use super::engine::{Changed, GoodsEngine, Hints};
use super::ledger::{self, Entry, StockChange, StockEntry};
use super::model::{
    Adjusted, Adjustment, CatalogError, Edit, Goods, GoodsView, NewGoods, ReserveError, State, Stock,
};
use super::sale::Wish;
use super::store;
use crate::actors::batching::{BatchSettings, Batcher};
use crate::db::{Database, DbFault, Tx};
use crate::idempotency::{Answered, RequestKey, once};
use crate::ids::{GoodsId, Ids, LedgerEntryId, OrderId, UserId};
use crate::money::Currency;
use crate::ports::clock::{SharedClock, Timestamp};

/// Creates, changes, shows and sells goods. Clones share the actors.
#[derive(Clone)]
pub struct CatalogService(Arc<Inner>);

struct Inner {
    db: Database,
    ids: Ids,
    clock: SharedClock,
    currency: Currency,
    actors: Batcher<GoodsEngine>,
}

impl fmt::Debug for CatalogService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CatalogService").field("actors", &self.0.actors).finish_non_exhaustive()
    }
}

impl CatalogService {
    /// Must be called within an actix `System`.
    pub fn new(
        db: Database,
        ids: Ids,
        clock: SharedClock,
        currency: Currency,
        settings: BatchSettings,
    ) -> Self {
        let (of_db, of_ids, of_clock) = (db.clone(), ids.clone(), clock.clone());
        let actors = Batcher::new(db.clone(), settings, move |goods, hints| GoodsEngine {
            goods,
            db: of_db.clone(),
            ids: of_ids.clone(),
            clock: of_clock.clone(),
            hints,
        });
        Self(Arc::new(Inner { db, ids, clock, currency, actors }))
    }

    /// Gives `quantity` units to `order` if it is still a draft. An order that has its units of these goods keeps them
    /// and gets no more, so this may be repeated.
    pub async fn reserve(&self, order: OrderId, goods: GoodsId, quantity: i32) -> Result<(), ReserveError> {
        let refusal = |hints: &Hints| hints.refusal(order);
        match self.0.actors.ask_unless(goods, Wish { order, quantity }, refusal) {
            Ok(asked) => Box::pin(asked.answer()).await,
            Err(refusal) => Err(refusal),
        }
    }

    /// Creates goods, on sale, with their stock; with a key, once.
    pub async fn create(
        &self,
        by: UserId,
        new: NewGoods,
        key: Option<RequestKey>,
    ) -> Result<Answered<GoodsView>, CatalogError> {
        let (ids, now, currency) = (self.0.ids.clone(), self.0.clock.now(), self.0.currency);
        let created = once(&self.0.db, &self.0.clock, key, 201, move |tx| {
            let (ids, new) = (ids.clone(), new.clone());
            async move { Ok::<_, CatalogError>(create(&tx, &ids, now, by, new).await?.view(currency)) }
        });
        let created = created.await?;
        if let Answered::Fresh(goods) = &created {
            info!(goods.id = %goods.id, user.id = %by, "Created goods {}: {}", goods.id, goods.name);
        }
        Ok(created)
    }

    /// Changes what `edit` says; what is on order keeps the price it was ordered at.
    pub async fn edit(&self, id: GoodsId, edit: Edit) -> Result<GoodsView, CatalogError> {
        let now = self.0.clock.now();
        let editing = self.0.db.transaction(move |tx| {
            let edit = edit.clone();
            async move {
                let before = store::lock(&tx, id).await?.ok_or(CatalogError::NotFound)?;
                let after = before.edited(edit);
                if after == before {
                    return Ok(before);
                }
                let made_from = before.version;
                let after = Goods { version: made_from + 1, updated_at: now, ..after };
                store::update(&tx, &after, made_from).await?;
                Ok(after)
            }
        });
        let edited: Result<Goods, CatalogError> = editing.await;
        Ok(edited?.view(self.0.currency))
    }

    /// Raises or lowers how many units there are, while they are sold; with a key, once.
    pub async fn adjust(
        &self,
        change: Adjustment,
        key: Option<RequestKey>,
    ) -> Result<Answered<Adjusted>, CatalogError> {
        let goods = change.goods;
        let (ids, now) = (self.0.ids.clone(), self.0.clock.now());
        let adjusting = once(&self.0.db, &self.0.clock, key, 201, move |tx| {
            let (ids, change) = (ids.clone(), change.clone());
            async move { adjust(&tx, &ids, now, change).await }
        });
        let adjusted = adjusting.await;
        // Of unknown outcome: a hint too few does no harm.
        self.0.actors.tell(goods, Changed);
        if let Ok(Answered::Fresh(done)) = &adjusted {
            info!(goods.id = %goods, delta = done.delta, reason = done.reason, "Adjusted the stock of goods {goods}");
        }
        adjusted
    }

    /// Goods, on sale or not.
    pub async fn get(&self, id: GoodsId) -> Result<Option<GoodsView>, DbFault> {
        let found = self.0.db.read(move |connection| async move { store::find(&connection, id).await });
        Ok(found.await?.map(|goods| goods.view(self.0.currency)))
    }

    /// Goods that customers may see.
    pub async fn shown(&self, id: GoodsId) -> Result<Option<GoodsView>, DbFault> {
        Ok(self.get(id).await?.filter(|goods| goods.on_sale))
    }

    /// Those of `ids` that there are, on sale or not, by id.
    pub async fn find(&self, ids: Vec<GoodsId>) -> Result<Vec<Goods>, DbFault> {
        self.0.db.read(move |connection| async move { store::find_all(&connection, ids).await }).await
    }

    /// Up to `limit` goods older than `before`, newest first.
    pub async fn list(
        &self,
        on_sale_only: bool,
        before: Option<GoodsId>,
        limit: u64,
    ) -> Result<Vec<GoodsView>, DbFault> {
        let found = self.0.db.read(move |connection| async move {
            store::page(&connection, on_sale_only, before, limit).await
        });
        Ok(found.await?.into_iter().map(|goods| goods.view(self.0.currency)).collect())
    }

    /// Up to `limit` movements of the stock of `goods` older than `before`, newest first.
    pub async fn stock_entries(
        &self,
        goods: GoodsId,
        before: Option<LedgerEntryId>,
        limit: u64,
    ) -> Result<Vec<StockEntry>, CatalogError> {
        let found = self.0.db.read(move |connection| async move {
            let entries = ledger::page(&connection, goods, before, limit).await?;
            // Goods have one from the start.
            let known = !entries.is_empty() || store::find(&connection, goods).await?.is_some();
            Ok(known.then_some(entries))
        });
        let found: Result<_, DbFault> = found.await;
        found?.ok_or(CatalogError::NotFound)
    }

    /// Lets every actor finish what was accepted.
    pub async fn stop(&self) {
        self.0.actors.stop().await;
    }
}

async fn create(tx: &Tx, ids: &Ids, now: Timestamp, by: UserId, new: NewGoods) -> Result<Goods, DbFault> {
    let goods = Goods {
        id: ids.next()?,
        name: new.name,
        description: new.description,
        store: new.store,
        state: State::OnSale,
        price: new.price,
        stock: Stock { total: new.stock_total, available: new.stock_total },
        version: 1,
        created_by: by,
        created_at: now,
        updated_at: now,
    };
    store::insert(tx, &goods).await?;
    let (kind, quantity) = (StockChange::Opening, new.stock_total);
    let entry = Entry { id: ids.next()?, goods: goods.id, kind, quantity, reason: None, by, at: now };
    ledger::append(tx, entry).await?;
    Ok(goods)
}

async fn adjust(tx: &Tx, ids: &Ids, now: Timestamp, change: Adjustment) -> Result<Adjusted, CatalogError> {
    let Adjustment { goods: id, delta, reason, by } = change;
    let before = store::lock(tx, id).await?.ok_or(CatalogError::NotFound)?;
    let Stock { total, available } = before.stock;
    // Never more than the total.
    let available = available.checked_add(delta).unwrap_or(i32::MAX);
    if available < 0 {
        return Err(CatalogError::Insufficient { available: before.stock.available });
    }
    let total =
        total.checked_add(delta).ok_or(CatalogError::OutOfRange(i64::from(total) + i64::from(delta)))?;
    let (stock, made_from) = (Stock { total, available }, before.version);
    let after = Goods { stock, version: made_from + 1, updated_at: now, ..before };
    store::update(tx, &after, made_from).await?;
    let entry: LedgerEntryId = ids.next().map_err(DbFault::from)?;
    let (kind, kept) = (StockChange::Adjustment, Some(reason.clone()));
    ledger::append(tx, Entry { id: entry, goods: id, kind, quantity: delta, reason: kept, by, at: now })
        .await?;
    Ok(Adjusted { id: entry, goods_id: id, delta, reason, stock, created_at: now })
}
