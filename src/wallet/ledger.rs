//! The one place that changes accounts: many at a time, in their owners' order.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use entities::wallet_account;
use sea_orm::{ConnectionTrait, DbBackend, FromQueryResult, QueryResult};

use super::events::{BalanceChange, WalletChanged};
use super::model::{Adjusted, Adjustment, WalletError};
use crate::db::bulk::{self, Column, Rows, Script};
use crate::db::{DbFault, Tx};
use crate::ids::{Ids, LedgerEntryId, OrderId, UserId};
use crate::messaging::outbox::{self, Events};
use crate::money::{Currency, MOST_MINOR};
use crate::ports::clock::{Timestamp, to_micros};

/// Writes changes of balances and points into open transactions.
#[derive(Debug, Clone)]
pub struct Ledger {
    pub(super) ids: Ids,
    currency: Currency,
}

/// A change of a balance to be made.
#[derive(Debug, Clone, Copy)]
struct Change {
    user: UserId,
    reference: i64,
    amount_minor: i64,
}

/// What became of a [`Change`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Made { entry: LedgerEntryId, balance_minor: i64 },
    AlreadyDone,
    Insufficient { balance_minor: i64 },
}

/// Why balances or points are to change, for all changes of one transaction.
#[derive(Debug, Clone)]
pub(super) struct Purpose<Kind> {
    pub(super) kind: Kind,
    pub(super) reason: Option<String>,
    pub(super) made_by: Option<UserId>,
}

impl<Kind> From<Kind> for Purpose<Kind> {
    fn from(kind: Kind) -> Self {
        Self { kind, reason: None, made_by: None }
    }
}

/// A locked account, as this transaction leaves it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Locked {
    pub(super) balance_minor: i64,
    pub(super) points: i64,
    pub(super) version: i64,
    changed: bool,
}

impl Locked {
    pub(super) fn change(&mut self, balance_minor: i64, points: i64) {
        (self.balance_minor, self.points) = (balance_minor, points);
        self.version += 1;
        self.changed = true;
    }
}

impl Ledger {
    /// A ledger of accounts in `currency`.
    pub fn new(ids: Ids, currency: Currency) -> Self {
        Self { ids, currency }
    }

    /// What its accounts are kept in.
    pub fn currency(&self) -> Currency {
        self.currency
    }

    /// Takes `amount_minor` for `order` from its user's balance, once: a repeat changes nothing.
    ///
    /// The caller holds the order's row, so that it is not given up meanwhile.
    pub async fn pay(
        &self,
        tx: &Tx,
        now: Timestamp,
        order: OrderId,
        user: UserId,
        amount_minor: i64,
    ) -> Result<(), WalletError> {
        if amount_minor == 0 {
            return Ok(());
        }
        let change = Change { user, reference: order.0, amount_minor: -amount_minor };
        match self.change_one(tx, now, BalanceChange::Pay.into(), change).await? {
            Outcome::Made { .. } | Outcome::AlreadyDone => Ok(()),
            Outcome::Insufficient { balance_minor } => Err(WalletError::Insufficient { balance_minor }),
        }
    }

    /// Gives back what was taken for each of `orders`, once.
    pub async fn give_back(&self, tx: &Tx, now: Timestamp, orders: &[OrderId]) -> Result<(), DbFault> {
        const PAID: &str = "SELECT e.user_id, e.reference_id, e.amount_minor FROM {rows} \
            JOIN wallet_entry AS e ON e.reference_id = r.paid_for WHERE e.kind = 'pay'";
        let orders: BTreeSet<i64> = orders.iter().map(|order| order.0).collect();
        if orders.is_empty() {
            return Ok(());
        }
        let rows = Rows::new().column("paid_for", Column::Big(orders.into_iter().collect()));
        let paid = tx.query_all_raw(rows.statement(tx.get_database_backend(), PAID, [])).await?;
        let given_back = |row: &QueryResult| -> Result<Change, DbFault> {
            Ok(Change {
                user: UserId(row.try_get("", "user_id")?),
                reference: row.try_get("", "reference_id")?,
                amount_minor: -row.try_get::<i64>("", "amount_minor")?,
            })
        };
        let changes = paid.iter().map(given_back).collect::<Result<Vec<_>, _>>()?;
        self.change(tx, now, BalanceChange::Refund.into(), changes).await?;
        Ok(())
    }

    /// Changes a user's balance as an operator wants it.
    pub(super) async fn adjust(
        &self,
        tx: &Tx,
        now: Timestamp,
        wish: Adjustment,
    ) -> Result<Adjusted, WalletError> {
        let Adjustment { user, amount_minor, reason, by } = wish;
        let reference = self.ids.next::<LedgerEntryId>().map_err(DbFault::from)?;
        let purpose = Purpose { kind: BalanceChange::Adjustment, reason: Some(reason), made_by: Some(by) };
        let change = Change { user, reference: reference.0, amount_minor };
        match self.change_one(tx, now, purpose, change).await? {
            Outcome::Made { balance_minor, .. } if balance_minor > MOST_MINOR => Err(WalletError::TooMuch),
            Outcome::Made { entry: id, balance_minor } => {
                let currency = self.currency;
                Ok(Adjusted { id, user_id: user, amount_minor, balance_minor, currency, created_at: now })
            }
            Outcome::Insufficient { balance_minor } => Err(WalletError::Insufficient { balance_minor }),
            Outcome::AlreadyDone => Err(DbFault::Missing("a new adjustment's number").into()),
        }
    }

    async fn change_one(
        &self,
        tx: &Tx,
        now: Timestamp,
        purpose: Purpose<BalanceChange>,
        change: Change,
    ) -> Result<Outcome, DbFault> {
        let outcomes = self.change(tx, now, purpose, vec![change]).await?;
        outcomes.first().copied().ok_or(DbFault::Missing("the outcome of a change"))
    }

    /// Makes those of `changes` that were not made before and leave no balance negative.
    async fn change(
        &self,
        tx: &Tx,
        now: Timestamp,
        purpose: Purpose<BalanceChange>,
        changes: Vec<Change>,
    ) -> Result<Vec<Outcome>, DbFault> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let mut accounts = lock(tx, now, changes.iter().map(|change| change.user)).await?;
        let mut known = known(tx, purpose.kind, &changes).await?;
        let (mut events, mut made) = (Events::at(now), Vec::new());
        let mut outcomes = Vec::with_capacity(changes.len());
        for change in changes {
            let account = accounts.get_mut(&change.user).ok_or(DbFault::Missing("a locked account"))?;
            let balance_minor = account.balance_minor + change.amount_minor;
            outcomes.push(if known.contains(&(change.reference, change.user)) {
                Outcome::AlreadyDone
            } else if balance_minor < 0 {
                Outcome::Insufficient { balance_minor: account.balance_minor }
            } else {
                known.insert((change.reference, change.user));
                account.change(balance_minor, account.points);
                let entry: LedgerEntryId = self.ids.next()?;
                made.push((entry, change, balance_minor));
                let order_id = match purpose.kind {
                    BalanceChange::Pay | BalanceChange::Refund => Some(OrderId(change.reference)),
                    BalanceChange::Adjustment => None,
                };
                let event = WalletChanged {
                    user_id: change.user,
                    kind: purpose.kind,
                    amount_minor: change.amount_minor,
                    balance_minor,
                    currency: self.currency,
                    order_id,
                    version: account.version,
                    at: now,
                };
                events.push(self.ids.next()?, &event)?;
                Outcome::Made { entry, balance_minor }
            });
        }
        if !made.is_empty() {
            let mut script = Script::new();
            write_entries(purpose, now, &made, &mut script);
            write_accounts(tx.get_database_backend(), now, &accounts, &mut script);
            outbox::add(self.ids.next()?, events, now, &mut script);
            script.execute(tx).await?;
        }
        Ok(outcomes)
    }
}

/// Locks the accounts of `users`, in the order of the users, and opens those that there are not yet.
pub(super) async fn lock(
    tx: &Tx,
    now: Timestamp,
    users: impl Iterator<Item = UserId>,
) -> Result<BTreeMap<UserId, Locked>, DbFault> {
    let mut absent: BTreeSet<UserId> = users.collect();
    let mut accounts = lock_present(tx, &absent).await?;
    absent.retain(|user| !accounts.contains_key(user));
    if !absent.is_empty() {
        open(tx, now, &absent).await?;
        accounts.extend(lock_present(tx, &absent).await?);
    }
    Ok(accounts)
}

pub(super) async fn lock_present(
    tx: &Tx,
    users: &BTreeSet<UserId>,
) -> Result<BTreeMap<UserId, Locked>, DbFault> {
    let backend = tx.get_database_backend();
    let rows = Rows::new().column("owner", Column::Big(users.iter().map(|user| user.0).collect()));
    let sql = bulk::select_for_update(backend, "wallet_account", "user_id", "owner");
    let mut accounts = BTreeMap::new();
    for row in tx.query_all_raw(rows.statement(backend, &sql, [])).await? {
        let wallet_account::Model { user_id, balance_minor, points, version, .. } =
            wallet_account::Model::from_query_result(&row, "")?;
        accounts.insert(UserId(user_id), Locked { balance_minor, points, version, changed: false });
    }
    Ok(accounts)
}

/// Opens accounts, unless somebody else does.
async fn open(tx: &Tx, now: Timestamp, users: &BTreeSet<UserId>) -> Result<(), DbFault> {
    const OPEN: &str = "INTO wallet_account (user_id, balance_minor, points, version, updated_at) \
        SELECT r.owner, 0, 0, 0, ? FROM {rows} WHERE true";
    let backend = tx.get_database_backend();
    let rows = Rows::new().column("owner", Column::Big(users.iter().map(|user| user.0).collect()));
    let sql = bulk::insert_if_absent(backend, OPEN);
    tx.execute_raw(rows.statement(backend, &sql, [to_micros(now).into()])).await?;
    Ok(())
}

/// Which of `changes` were made before. Their accounts are locked, so nobody makes one meanwhile.
async fn known(tx: &Tx, kind: BalanceChange, changes: &[Change]) -> Result<HashSet<(i64, UserId)>, DbFault> {
    const KNOWN: &str = "SELECT r.reference, r.owner, (SELECT e.id FROM wallet_entry AS e \
        WHERE e.reference_id = r.reference AND e.user_id = r.owner AND e.kind = ?) AS entry FROM {rows}";
    let rows = Rows::new()
        .column("reference", Column::Big(changes.iter().map(|change| change.reference).collect()))
        .column("owner", Column::Big(changes.iter().map(|change| change.user.0).collect()));
    let found = rows.statement(tx.get_database_backend(), KNOWN, [kind.word().into()]);
    let mut known = HashSet::new();
    for row in tx.query_all_raw(found).await? {
        if row.try_get::<Option<i64>>("", "entry")?.is_some() {
            known.insert((row.try_get("", "reference")?, UserId(row.try_get("", "owner")?)));
        }
    }
    Ok(known)
}

fn write_entries(
    purpose: Purpose<BalanceChange>,
    now: Timestamp,
    made: &[(LedgerEntryId, Change, i64)],
    script: &mut Script,
) {
    const WRITE: &str = "INSERT INTO wallet_entry (id, user_id, reference_id, kind, amount_minor, \
        balance_after_minor, reason, made_by, created_at) \
        SELECT r.entry, r.owner, r.reference, ?, r.amount, r.balance, ?, ?, ? FROM {rows}";
    let column =
        |value: fn(&(LedgerEntryId, Change, i64)) -> i64| Column::Big(made.iter().map(value).collect());
    let rows = Rows::new()
        .column("entry", column(|(entry, ..)| entry.0))
        .column("owner", column(|(_, change, _)| change.user.0))
        .column("reference", column(|(_, change, _)| change.reference))
        .column("amount", column(|(_, change, _)| change.amount_minor))
        .column("balance", column(|(.., balance)| *balance));
    let Purpose { kind, reason, made_by } = purpose;
    let made_by = made_by.map(|user| user.0);
    script.push_rows(WRITE, [kind.word().into(), reason.into(), made_by.into(), to_micros(now).into()], rows);
}

/// Adds the change of each account that was changed.
pub(super) fn write_accounts(
    backend: DbBackend,
    now: Timestamp,
    accounts: &BTreeMap<UserId, Locked>,
    script: &mut Script,
) {
    let changed: Vec<_> = accounts.iter().filter(|(_, account)| account.changed).collect();
    let column = |value: fn(&(&UserId, &Locked)) -> i64| Column::Big(changed.iter().map(value).collect());
    let rows = Rows::new()
        .column("owner", column(|(user, _)| user.0))
        .column("new_balance", column(|(_, account)| account.balance_minor))
        .column("new_points", column(|(_, account)| account.points))
        .column("new_version", column(|(_, account)| account.version));
    let set = "balance_minor = r.new_balance, points = r.new_points, version = r.new_version, updated_at = ?";
    let template = bulk::update(backend, "wallet_account", set, "user_id = r.owner");
    script.push_rows(template, [to_micros(now).into()], rows);
}
