//! Points: earned by paid orders, taken back by refunds, adjusted by operators.

use std::collections::{BTreeMap, HashMap};

use sea_orm::ConnectionTrait;

use super::events::{PointsAdded, PointsChange};
use super::ledger::{self, Ledger, Locked, Purpose};
use super::model::{MOST_POINTS, PointsAdjusted, PointsAdjustment, WalletError};
use crate::db::bulk::{Column, Rows, Script};
use crate::db::{DbFault, Tx};
use crate::ids::{LedgerEntryId, OrderId, UserId};
use crate::messaging::outbox::{self, Events};
use crate::ports::clock::{Timestamp, to_micros};

/// An order, whose it is, and what it earns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Earning {
    pub(super) order: OrderId,
    pub(super) user: UserId,
    pub(super) points: i64,
}

/// An entry to be written.
struct Entry {
    id: LedgerEntryId,
    /// The order, or the adjustment itself.
    reference: i64,
    user: UserId,
    points: i64,
    points_after: i64,
}

impl Ledger {
    /// Gives points for each of `earnings`, once, and not if they were taken back already.
    pub(super) async fn earn(&self, tx: &Tx, now: Timestamp, earnings: &[Earning]) -> Result<(), DbFault> {
        if earnings.is_empty() {
            return Ok(());
        }
        let mut accounts = ledger::lock(tx, now, earnings.iter().map(|earning| earning.user)).await?;
        let mut known = entries_of(tx, earnings.iter().map(|earning| earning.order)).await?;
        let (mut entries, mut events) = (Vec::new(), Events::at(now));
        for &Earning { order, user, points } in earnings {
            if known.contains_key(&order) {
                continue;
            }
            known.insert(order, OfOrder { earned: points, taken_back: false });
            let account = accounts.get_mut(&user).ok_or(DbFault::Missing("a locked account"))?;
            let points_after = account.points + points;
            account.change(account.balance_minor, points_after);
            entries.push(Entry { id: self.ids.next()?, reference: order.0, user, points, points_after });
            let event =
                PointsAdded { user_id: user, order_id: order, points, points_total: points_after, at: now };
            events.push(self.ids.next()?, &event)?;
        }
        self.write(tx, now, PointsChange::Earned.into(), &entries, &accounts, events).await
    }

    /// Takes back what each of `orders` earned, once; no more than the user has. One that earned nothing yet never will.
    pub(super) async fn take_back(
        &self,
        tx: &Tx,
        now: Timestamp,
        orders: &[(OrderId, UserId)],
    ) -> Result<(), DbFault> {
        if orders.is_empty() {
            return Ok(());
        }
        let mut accounts = ledger::lock(tx, now, orders.iter().map(|(_, user)| *user)).await?;
        let mut known = entries_of(tx, orders.iter().map(|(order, _)| *order)).await?;
        let mut entries = Vec::new();
        for &(order, user) in orders {
            let of_order = known.entry(order).or_default();
            if std::mem::replace(&mut of_order.taken_back, true) {
                continue;
            }
            let account = accounts.get_mut(&user).ok_or(DbFault::Missing("a locked account"))?;
            let points = of_order.earned.min(account.points);
            let points_after = account.points - points;
            account.change(account.balance_minor, points_after);
            let id = self.ids.next()?;
            entries.push(Entry { id, reference: order.0, user, points: -points, points_after });
        }
        self.write(tx, now, PointsChange::TakenBack.into(), &entries, &accounts, Events::at(now)).await
    }

    /// Changes a user's points as an operator wants it.
    pub(super) async fn adjust_points(
        &self,
        tx: &Tx,
        now: Timestamp,
        wish: PointsAdjustment,
    ) -> Result<PointsAdjusted, WalletError> {
        let PointsAdjustment { user, points, reason, by } = wish;
        let mut accounts = ledger::lock(tx, now, std::iter::once(user)).await?;
        let account = accounts.get_mut(&user).ok_or(DbFault::Missing("a locked account"))?;
        let points_total = account.points + points;
        if points_total < 0 {
            return Err(WalletError::PointsInsufficient { points: account.points });
        }
        if points > 0 && points_total > MOST_POINTS {
            return Err(WalletError::TooManyPoints);
        }
        account.change(account.balance_minor, points_total);
        let id: LedgerEntryId = self.ids.next().map_err(DbFault::from)?;
        let entry = Entry { id, reference: id.0, user, points, points_after: points_total };
        let purpose = Purpose { kind: PointsChange::Adjustment, reason: Some(reason), made_by: Some(by) };
        self.write(tx, now, purpose, &[entry], &accounts, Events::at(now)).await?;
        Ok(PointsAdjusted { id, user_id: user, points, points_total, created_at: now })
    }

    /// Writes what was decided while the accounts were locked.
    async fn write(
        &self,
        tx: &Tx,
        now: Timestamp,
        purpose: Purpose<PointsChange>,
        entries: &[Entry],
        accounts: &BTreeMap<UserId, Locked>,
        events: Events,
    ) -> Result<(), DbFault> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut script = Script::new();
        write_entries(purpose, now, entries, &mut script);
        ledger::write_accounts(tx.get_database_backend(), now, accounts, &mut script);
        if !events.is_empty() {
            outbox::add(self.ids.next()?, events, now, &mut script);
        }
        script.execute(tx).await?;
        Ok(())
    }
}

/// What the entries of an order say.
#[derive(Debug, Clone, Copy, Default)]
struct OfOrder {
    earned: i64,
    taken_back: bool,
}

/// What is known of each of `orders`; of one without entries nothing.
async fn entries_of(
    tx: &Tx,
    orders: impl Iterator<Item = OrderId>,
) -> Result<HashMap<OrderId, OfOrder>, DbFault> {
    const ENTRIES: &str = "SELECT e.reference_id, e.kind, e.points FROM {rows} \
        JOIN points_entry AS e ON e.reference_id = r.earned_by";
    let rows = Rows::new().column("earned_by", Column::Big(orders.map(|order| order.0).collect()));
    let mut known: HashMap<OrderId, OfOrder> = HashMap::new();
    for row in tx.query_all_raw(rows.statement(tx.get_database_backend(), ENTRIES, [])).await? {
        let order = OrderId(row.try_get("", "reference_id")?);
        match row.try_get::<String>("", "kind")?.parse()? {
            PointsChange::Earned => known.entry(order).or_default().earned = row.try_get("", "points")?,
            PointsChange::TakenBack => known.entry(order).or_default().taken_back = true,
            // Of no order.
            PointsChange::Adjustment => {}
        }
    }
    Ok(known)
}

fn write_entries(purpose: Purpose<PointsChange>, now: Timestamp, entries: &[Entry], script: &mut Script) {
    const WRITE: &str = "INSERT INTO points_entry (id, user_id, reference_id, kind, points, points_after, reason, \
        made_by, created_at) SELECT r.entry, r.owner, r.reference, ?, r.amount, r.sum_after, ?, ?, ? FROM {rows}";
    let column = |value: fn(&Entry) -> i64| Column::Big(entries.iter().map(value).collect());
    let rows = Rows::new()
        .column("entry", column(|entry| entry.id.0))
        .column("owner", column(|entry| entry.user.0))
        .column("reference", column(|entry| entry.reference))
        .column("amount", column(|entry| entry.points))
        .column("sum_after", column(|entry| entry.points_after));
    let Purpose { kind, reason, made_by } = purpose;
    let made_by = made_by.map(|user| user.0);
    script.push_rows(WRITE, [kind.word().into(), reason.into(), made_by.into(), to_micros(now).into()], rows);
}
