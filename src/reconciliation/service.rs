//! Runs comparisons, keeps what they find, applies what they propose.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use entities::{difference, reconciliation};
use sea_orm::ActiveValue::Set;
use sea_orm::{
    ColumnTrait, DatabaseConnection, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect,
};
use tracing::{info, warn};

use super::model::{
    ComparisonError, Difference, DifferenceState, Found, LOOK_AT_IT, Reconciliation, ReconciliationError,
};
use crate::db::{Database, DbFault, fit};
use crate::ids::{DifferenceId, Ids, ReconciliationId};
use crate::ports::clock::{SharedClock, to_micros};

/// Differences that a run keeps; what is wrong with so many things is one thing.
const KEPT: usize = 1000;

/// Something that should agree with something else.
#[async_trait]
pub trait Comparison: Send + Sync + fmt::Debug {
    /// A lower-snake word.
    fn name(&self) -> &'static str;

    /// Every difference there is now; none that is about to go by itself.
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
                    for found in differences.into_iter().take(KEPT.saturating_sub(rows.len())) {
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
        self.keep(row.clone(), rows.clone()).await?;
        Ok(Reconciliation::new(&row, rows)?)
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
        })
    }

    async fn keep(&self, run: reconciliation::Model, rows: Vec<difference::Model>) -> Result<(), DbFault> {
        let keeping = self.db.transaction(move |tx| {
            let (run, rows) = (run.clone().into_active_model(), rows.clone());
            async move {
                reconciliation::Entity::insert(run).exec_without_returning(&tx).await?;
                for row in rows {
                    difference::Entity::insert(row.into_active_model()).exec_without_returning(&tx).await?;
                }
                Ok(())
            }
        });
        keeping.await
    }

    /// The runs, newest first, older than `before`.
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
            let mut answer = Vec::new();
            for run in runs.limit(limit).all(&connection).await? {
                let differences = difference::Entity::find()
                    .filter(difference::Column::ReconciliationId.eq(run.id))
                    .order_by_asc(difference::Column::Id);
                answer.push(Reconciliation::new(&run, differences.all(&connection).await?)?);
            }
            Ok(answer)
        };
        self.db.read(read).await
    }

    /// Does what a difference proposes, and notes it.
    pub async fn apply(&self, id: DifferenceId) -> Result<Difference, ReconciliationError> {
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
        info!(difference.id = %id, comparison = row.comparison, subject = row.subject, "Reconciliation: {outcome}");
        if state == DifferenceState::Applied {
            metrics::counter!("tombola_differences_applied_total", "comparison" => row.comparison.clone())
                .increment(1);
        }
        let mut settled = row.into_active_model();
        settled.state = Set(state.word().to_owned());
        settled.outcome = Set(Some(fit(&outcome, 512)));
        let now = to_micros(self.clock.now());
        settled.settled_at = Set((state != DifferenceState::Open).then_some(now));
        let noting = self.db.transaction(move |tx| {
            let settled = settled.clone();
            async move { Ok::<_, DbFault>(difference::Entity::update(settled).exec(&tx).await?) }
        });
        Ok(noting.await?.try_into()?)
    }

    async fn open(&self, id: DifferenceId) -> Result<difference::Model, ReconciliationError> {
        let read = move |connection: DatabaseConnection| async move {
            let found = difference::Entity::find_by_id(id.0).one(&connection).await.map_err(DbFault::from)?;
            found.ok_or(ReconciliationError::NotFound)
        };
        let row: difference::Model = self.db.read(read).await?;
        match row.state.parse().map_err(ReconciliationError::Db)? {
            DifferenceState::Open => Ok(row),
            settled @ (DifferenceState::Applied | DifferenceState::Gone) => {
                Err(ReconciliationError::Settled(settled))
            }
        }
    }
}
