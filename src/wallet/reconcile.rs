//! Accounts against their entries (REC-3).

use async_trait::async_trait;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, QueryResult};

use super::ledger;
use crate::db::bulk::{integer, statement};
use crate::db::{self, Database, DbFault, Tx};
use crate::ids::UserId;
use crate::reconciliation::{Comparison, ComparisonError, Found};

/// Accounts that are looked at in one statement.
const PAGE: i64 = 500;

/// Each account's balance and points against the sums of their entries.
#[derive(Debug)]
pub struct AccountsAgainstEntries(pub Database);

/// An account and what its entries say, as of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Compared {
    user: UserId,
    balance_minor: i64,
    points: i64,
    entries_minor: i64,
    entries_points: i64,
}

impl Compared {
    fn agrees(&self) -> bool {
        (self.balance_minor, self.points) == (self.entries_minor, self.entries_points)
    }
}

impl TryFrom<&QueryResult> for Compared {
    type Error = DbFault;

    fn try_from(row: &QueryResult) -> Result<Self, DbFault> {
        Ok(Self {
            user: UserId(row.try_get("", "user_id")?),
            balance_minor: row.try_get("", "balance_minor")?,
            points: row.try_get("", "points")?,
            entries_minor: row.try_get("", "entries_minor")?,
            entries_points: row.try_get("", "entries_points")?,
        })
    }
}

fn compared(backend: DbBackend, which: &str) -> String {
    let int = integer(backend);
    format!(
        "SELECT a.user_id, a.balance_minor, a.points, \
         CAST(COALESCE((SELECT SUM(e.amount_minor) FROM wallet_entry AS e WHERE e.user_id = a.user_id), 0) \
         AS {int}) AS entries_minor, \
         CAST(COALESCE((SELECT SUM(e.points) FROM points_entry AS e WHERE e.user_id = a.user_id), 0) \
         AS {int}) AS entries_points FROM wallet_account AS a {which}"
    )
}

#[async_trait]
impl Comparison for AccountsAgainstEntries {
    fn name(&self) -> &'static str {
        "wallet_balances"
    }

    async fn compare(&self) -> Result<Vec<Found>, ComparisonError> {
        let (mut after, mut differences) = (0, Vec::new());
        loop {
            // Each page is one statement, so a change going on does not show as a difference.
            let read = move |connection: DatabaseConnection| async move {
                let backend = connection.get_database_backend();
                let sql = compared(backend, "WHERE a.user_id > ? ORDER BY a.user_id LIMIT ?");
                let rows =
                    connection.query_all_raw(statement(backend, &sql, [after.into(), PAGE.into()])).await?;
                rows.iter().map(Compared::try_from).collect::<Result<Vec<_>, _>>()
            };
            let page = self.0.read(read).await?;
            let Some(last) = page.last() else { return Ok(differences) };
            after = last.user.0;
            differences.extend(page.iter().filter(|account| !account.agrees()).map(|account| Found {
                subject: account.user.to_string(),
                expected: format!(
                    "{} minor units and {} points",
                    account.entries_minor, account.entries_points
                ),
                found: format!("{} minor units and {} points", account.balance_minor, account.points),
                detail: format!("The account of user {} is not the sum of its entries.", account.user),
                action: "recount",
            }));
        }
    }

    async fn apply(&self, subject: &str) -> Result<Option<String>, ComparisonError> {
        let Ok(user) = subject.parse::<UserId>() else { return Ok(None) };
        Ok(self.0.transaction(move |tx| async move { recount(&tx, user).await }).await?)
    }
}

async fn recount(tx: &Tx, user: UserId) -> Result<Option<String>, DbFault> {
    const RECOUNT: &str = "UPDATE wallet_account SET balance_minor = ?, points = ?, version = version + 1, \
        updated_at = ? WHERE user_id = ?";
    let backend = tx.get_database_backend();
    // The lock comes first, so that the sums are not older than it.
    ledger::lock_present(tx, &[user].into()).await?;
    let sql = compared(backend, "WHERE a.user_id = ?");
    let row = tx.query_one_raw(statement(backend, &sql, [user.0.into()])).await?;
    let Some(account) = row.as_ref().map(Compared::try_from).transpose()? else { return Ok(None) };
    if account.agrees() {
        return Ok(None);
    }
    let Compared { entries_minor, entries_points, balance_minor, points, .. } = account;
    let now = db::now_micros(tx).await?;
    let values = [entries_minor.into(), entries_points.into(), now.into(), user.0.into()];
    tx.execute_raw(statement(backend, RECOUNT, values)).await?;
    Ok(Some(format!(
        "the account had {balance_minor} minor units and {points} points, now {entries_minor} and {entries_points}"
    )))
}
