//! The front door: what the API does with wallets.

use entities::{points_entry, wallet_account, wallet_entry};
use sea_orm::{ColumnTrait, DatabaseConnection, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use super::ledger::Ledger;
use super::model::{
    Account, Adjusted, Adjustment, Entry, PointsAdjusted, PointsAdjustment, PointsEntry, WalletError,
};
use crate::db::{Database, DbFault};
use crate::idempotency::{self, Answered, RequestKey};
use crate::identity;
use crate::ids::{LedgerEntryId, UserId};
use crate::money::Currency;
use crate::ports::clock::SharedClock;

/// Shows wallets and adjusts them.
#[derive(Debug, Clone)]
pub struct WalletService {
    db: Database,
    clock: SharedClock,
    ledger: Ledger,
}

impl WalletService {
    pub fn new(db: Database, clock: SharedClock, ledger: Ledger) -> Self {
        Self { db, clock, ledger }
    }

    /// What wallets are kept in.
    pub fn currency(&self) -> Currency {
        self.ledger.currency()
    }

    /// What `user` has; nothing, if nothing ever happened.
    pub async fn account(&self, user: UserId) -> Result<Account, DbFault> {
        let read = move |connection: DatabaseConnection| async move {
            let row = wallet_account::Entity::find_by_id(user.0).one(&connection).await?;
            Ok(row.map(Account::from).unwrap_or_default())
        };
        self.db.read(read).await
    }

    /// Changes a balance.
    pub async fn adjust(
        &self,
        wish: Adjustment,
        key: Option<RequestKey>,
    ) -> Result<Answered<Adjusted>, WalletError> {
        let (ledger, clock) = (self.ledger.clone(), self.clock.clone());
        idempotency::once(&self.db, &self.clock, key, 201, move |tx| {
            let (ledger, now, wish) = (ledger.clone(), clock.now(), wish.clone());
            async move {
                if !identity::exists(&tx, wish.user).await? {
                    return Err(WalletError::UserUnknown);
                }
                ledger.adjust(&tx, now, wish).await
            }
        })
        .await
    }

    /// Changes a user's points.
    pub async fn adjust_points(
        &self,
        wish: PointsAdjustment,
        key: Option<RequestKey>,
    ) -> Result<Answered<PointsAdjusted>, WalletError> {
        let (ledger, clock) = (self.ledger.clone(), self.clock.clone());
        idempotency::once(&self.db, &self.clock, key, 201, move |tx| {
            let (ledger, now, wish) = (ledger.clone(), clock.now(), wish.clone());
            async move {
                if !identity::exists(&tx, wish.user).await? {
                    return Err(WalletError::UserUnknown);
                }
                ledger.adjust_points(&tx, now, wish).await
            }
        })
        .await
    }

    /// The changes of a user's balance, newest first, older than `before`.
    pub async fn entries(
        &self,
        user: UserId,
        before: Option<LedgerEntryId>,
        limit: u64,
    ) -> Result<Vec<Entry>, WalletError> {
        let currency = self.currency();
        let read = move |connection: DatabaseConnection| async move {
            let mut query = wallet_entry::Entity::find().filter(wallet_entry::Column::UserId.eq(user.0));
            if let Some(before) = before {
                query = query.filter(wallet_entry::Column::Id.lt(before.0));
            }
            let rows = query.order_by_desc(wallet_entry::Column::Id).limit(limit).all(&connection).await?;
            let entries: Result<Vec<Entry>, DbFault> =
                rows.into_iter().map(|row| Entry::new(row, currency)).collect();
            identity::rows_of(&connection, user, entries?).await
        };
        self.db.read(read).await?.ok_or(WalletError::UserUnknown)
    }

    /// The changes of a user's points, newest first, older than `before`.
    pub async fn points_entries(
        &self,
        user: UserId,
        before: Option<LedgerEntryId>,
        limit: u64,
    ) -> Result<Vec<PointsEntry>, WalletError> {
        let read = move |connection: DatabaseConnection| async move {
            let mut query = points_entry::Entity::find().filter(points_entry::Column::UserId.eq(user.0));
            if let Some(before) = before {
                query = query.filter(points_entry::Column::Id.lt(before.0));
            }
            let rows = query.order_by_desc(points_entry::Column::Id).limit(limit).all(&connection).await?;
            let entries: Result<Vec<PointsEntry>, DbFault> =
                rows.into_iter().map(PointsEntry::try_from).collect();
            identity::rows_of(&connection, user, entries?).await
        };
        self.db.read(read).await?.ok_or(WalletError::UserUnknown)
    }
}
