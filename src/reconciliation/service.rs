//! Runs comparisons, keeps what they find, applies what they propose.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::TimeDelta;
use entities::{difference, reconciliation};
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder,
    QuerySelect,
};
use tracing::{info, warn};

use super::model::{
    ComparisonError, Difference, DifferenceState, Found, LOOK_AT_IT, Reconciliation, ReconciliationError,
};
use crate::db::bulk::{Column, Rows};
use crate::db::{Database, DbFault, Tx, fit};
use crate::idempotency::{Answered, RequestKey, kept_answers, once};
use crate::ids::{DifferenceId, Ids, ReconciliationId, UserId};
use crate::jobs::{Log, Stamp};
use crate::ports::clock::{SharedClock, to_micros};

/// Differences after which a comparison may stop looking.
pub const MANY: usize = 1000;

/// Differences of each comparison that a run keeps; what is wrong with so many things is one thing.
const KEPT: usize = 100;

/// Differences of each run that a list of runs shows.
const SHOWN: u32 = 20;

/// Runs and their differences, each kept for so long.
pub fn logs(kept_for: TimeDelta) -> [Log; 2] {
    [("difference", "found_at"), ("reconciliation", "finished_at")].map(|(table, aged_by)| Log {
        table,
        aged_by,
        stamped_by: Stamp::Server,
        kept_for,
        only_if: None,
    })
}

/// Something that should agree with something else.
#[async_trait]
pub trait Comparison: Send + Sync + fmt::Debug {
    /// A lower-snake word.
    fn name(&self) -> &'static str;

    /// Every difference there is now, or the first [`MANY`]; none that is about to go by itself.
    async fn compare(&self) -> Result<Vec<Found>, ComparisonError>;

    /// Does what was proposed about `subject`, if it is still needed: what was done, or nothing. What only a person can
    /// settle is looked at again: how it still differs, or nothing.
    async fn apply(&self, subject: &str) -> Result<Option<String>, ComparisonError>;
}

/// The front door of the reconciliation. Clones share the comparisons.
#[derive(Debug, Clone)]
pub struct ReconciliationService {
    db: Database,
    ids: Ids,
    clock: SharedClock,
    comparisons: Arc<[Box<dyn Comparison>]>,
}

impl ReconciliationService {
    /// A service of `comparisons`, whose names differ.
    pub fn new(db: Database, ids: Ids, clock: SharedClock, comparisons: Vec<Box<dyn Comparison>>) -> Self {
        Self { db, ids, clock, comparisons: comparisons.into() }
    }

    /// Compares everything and keeps the differences. A comparison that fails does not keep the others from being made.
    pub async fn run(&self) -> Result<Reconciliation, ReconciliationError> {
        let (run, rows) = self.compare().await?;
        let keeping = self.db.transaction(move |tx| {
            let (run, rows) = (run.clone(), rows.clone());
            async move { keep(&tx, run, rows).await }
        });
        Ok(keeping.await?)
    }

    /// [`ReconciliationService::run`] because `by` asks for it, once per key.
    pub async fn run_for(
        &self,
        by: UserId,
        key: Option<RequestKey>,
    ) -> Result<Answered<Reconciliation>, ReconciliationError> {
        if let Some(known) = self.answered(key).await? {
            return Ok(known);
        }
        let (run, rows) = self.compare().await?;
        info!(user.id = %by, "Reconciliation {}: {} differences", run.id, run.found);
        once(&self.db, &self.clock, key, 201, move |tx| {
            let (run, rows) = (run.clone(), rows.clone());
            async move { Ok(keep(&tx, run, rows).await?) }
        })
        .await
    }

    /// What the request with this key was answered, if it was.
    async fn answered<T>(&self, key: Option<RequestKey>) -> Result<Option<Answered<T>>, ReconciliationError> {
        let Some(key) = key else { return Ok(None) };
        let kept = self.db.read(move |connection| async move { kept_answers(&connection, &[key]).await });
        let kept: Option<_> = kept.await?.pop();
        Ok(kept.map(|(first, answer)| key.replay(&first, answer)).transpose()?)
    }

    async fn compare(&self) -> Result<(reconciliation::Model, Vec<difference::Model>), ReconciliationError> {
        let started_at = to_micros(self.clock.now());
        let (mut rows, mut failed, mut count) = (Vec::new(), Vec::new(), 0_usize);
        let id = self.ids.next::<ReconciliationId>().map_err(DbFault::from)?;
        for comparison in self.comparisons.iter() {
            let name = comparison.name();
            match comparison.compare().await {
                Ok(differences) => {
                    metrics::gauge!("tombola_differences", "comparison" => name)
                        .set(differences.len() as f64);
                    count += differences.len();
                    for found in differences.into_iter().take(KEPT) {
                        rows.push(self.row(id, name, found)?);
                    }
                }
                Err(error) => {
                    warn!(comparison = name, %error, "Could not make the comparison {name}");
                    failed.push(format!("{name}: {error}"));
                }
            }
        }
        let row = reconciliation::Model {
            id: id.0,
            started_at,
            finished_at: to_micros(self.clock.now()),
            found: i32::try_from(count).unwrap_or(i32::MAX),
            failed: (!failed.is_empty()).then(|| fit(&failed.join("; "), 1024)),
        };
        Ok((row, rows))
    }

    fn row(
        &self,
        run: ReconciliationId,
        comparison: &str,
        found: Found,
    ) -> Result<difference::Model, DbFault> {
        warn!(comparison, subject = found.subject, "Reconciliation: {}", found.detail);
        Ok(difference::Model {
            id: self.ids.next::<DifferenceId>()?.0,
            reconciliation_id: run.0,
            comparison: comparison.to_owned(),
            subject: found.subject,
            expected: fit(&found.expected, 128),
            found: fit(&found.found, 128),
            detail: fit(&found.detail, 512),
            action: found.action.to_owned(),
            state: DifferenceState::Open.word().to_owned(),
            outcome: None,
            settled_at: None,
            found_at: to_micros(self.clock.now()),
        })
    }

    /// The runs, newest first, older than `before`, each with its first differences.
    pub async fn list(
        &self,
        before: Option<ReconciliationId>,
        limit: u64,
    ) -> Result<Vec<Reconciliation>, DbFault> {
        let read = move |connection: DatabaseConnection| async move {
            let mut runs = reconciliation::Entity::find().order_by_desc(reconciliation::Column::Id);
            if let Some(before) = before {
                runs = runs.filter(reconciliation::Column::Id.lt(before.0));
            }
            let runs = runs.limit(limit).all(&connection).await?;
            let ids = Rows::new().column("run", Column::Big(runs.iter().map(|run| run.id).collect()));
            let first = format!(
                "SELECT * FROM (SELECT difference.*, \
                 ROW_NUMBER() OVER (PARTITION BY reconciliation_id ORDER BY id) AS place FROM difference \
                 WHERE reconciliation_id IN (SELECT r.run FROM {{rows}})) AS d WHERE place <= {SHOWN} ORDER BY id"
            );
            let first = ids.statement(connection.get_database_backend(), &first, []);
            let mut of_run: HashMap<i64, Vec<difference::Model>> = HashMap::new();
            for row in difference::Entity::find().from_raw_sql(first).all(&connection).await? {
                of_run.entry(row.reconciliation_id).or_default().push(row);
            }
            let with_first = |run: &reconciliation::Model| {
                Reconciliation::new(run, of_run.remove(&run.id).unwrap_or_default())
            };
            runs.iter().map(with_first).collect()
        };
        self.db.read(read).await
    }

    /// The differences that a run has kept, behind `after`.
    pub async fn differences(
        &self,
        run: ReconciliationId,
        after: Option<DifferenceId>,
        limit: u64,
    ) -> Result<Vec<Difference>, ReconciliationError> {
        let read = move |connection: DatabaseConnection| async move {
            let known = reconciliation::Entity::find_by_id(run.0).one(&connection).await;
            if known.map_err(DbFault::from)?.is_none() {
                return Err(ReconciliationError::NotFound);
            }
            let found = difference::Entity::find()
                .filter(difference::Column::ReconciliationId.eq(run.0))
                .filter(difference::Column::Id.gt(after.map_or(0, |after| after.0)))
                .order_by_asc(difference::Column::Id)
                .limit(limit);
            let found = found.all(&connection).await.map_err(DbFault::from)?;
            Ok(found.into_iter().map(Difference::try_from).collect::<Result<_, _>>()?)
        };
        self.db.read(read).await
    }

    /// Does what a difference proposes, because `by` asks for it if it is somebody, and notes it, once per key.
    pub async fn apply(
        &self,
        id: DifferenceId,
        by: Option<UserId>,
        key: Option<RequestKey>,
    ) -> Result<Answered<Difference>, ReconciliationError> {
        if let Some(known) = self.answered(key).await? {
            return Ok(known);
        }
        let row = self.open(id).await?;
        let comparison = self.comparisons.iter().find(|comparison| comparison.name() == row.comparison);
        let comparison = comparison.ok_or(ReconciliationError::NotFound)?;
        let done = comparison.apply(&row.subject).await?;
        let state = match &done {
            Some(_) if row.action == LOOK_AT_IT => DifferenceState::Open,
            Some(_) => DifferenceState::Applied,
            None => DifferenceState::Gone,
        };
        let outcome = done.unwrap_or_else(|| "there is no difference any more".to_owned());
        info!(difference.id = %id, user.id = by.map(|by| by.0), comparison = row.comparison, subject = row.subject, "Reconciliation: {outcome}");
        if state == DifferenceState::Applied {
            metrics::counter!("tombola_differences_applied_total", "comparison" => row.comparison.clone())
                .increment(1);
        }
        let settled_at = (state != DifferenceState::Open).then(|| to_micros(self.clock.now()));
        let outcome = fit(&outcome, 512);
        once(&self.db, &self.clock, key, 200, move |tx| {
            let outcome = outcome.clone();
            async move {
                let noting = difference::Entity::update_many()
                    .col_expr(difference::Column::State, Expr::value(state.word()))
                    .col_expr(difference::Column::Outcome, Expr::value(outcome))
                    .col_expr(difference::Column::SettledAt, Expr::value(settled_at))
                    .filter(difference::Column::Id.eq(id.0))
                    .filter(difference::Column::State.eq(DifferenceState::Open.word()));
                let noted = noting.exec(&tx).await.map_err(DbFault::from)?.rows_affected == 1;
                let difference = Difference::try_from(find(&tx, id).await?)?;
                // Of several at once, the first says what became of it.
                if noted { Ok(difference) } else { Err(ReconciliationError::Settled(difference.state)) }
            }
        })
        .await
    }

    async fn open(&self, id: DifferenceId) -> Result<difference::Model, ReconciliationError> {
        let read = move |connection: DatabaseConnection| async move { find(&connection, id).await };
        let row: difference::Model = self.db.read(read).await?;
        match row.state.parse().map_err(ReconciliationError::Db)? {
            DifferenceState::Open => Ok(row),
            settled @ (DifferenceState::Applied | DifferenceState::Gone) => {
                Err(ReconciliationError::Settled(settled))
            }
        }
    }
}

async fn keep(
    tx: &Tx,
    run: reconciliation::Model,
    rows: Vec<difference::Model>,
) -> Result<Reconciliation, DbFault> {
    reconciliation::Entity::insert(run.clone().into_active_model()).exec_without_returning(tx).await?;
    for row in &rows {
        difference::Entity::insert(row.clone().into_active_model()).exec_without_returning(tx).await?;
    }
    Reconciliation::new(&run, rows)
}

async fn find(
    connection: &impl ConnectionTrait,
    id: DifferenceId,
) -> Result<difference::Model, ReconciliationError> {
    let found = difference::Entity::find_by_id(id.0).one(connection).await.map_err(DbFault::from)?;
    found.ok_or(ReconciliationError::NotFound)
}
