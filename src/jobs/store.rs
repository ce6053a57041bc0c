//! Jobs and their runs in the database.

use std::collections::{HashMap, HashSet};

use entities::{job_run, job_state};
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DatabaseConnection, EntityTrait, IntoActiveModel,
    QueryFilter, QueryOrder, QuerySelect,
};

use super::model::{LastRun, Run, RunState, Standing};
use crate::db::{Database, DbFault, Tx};
use crate::ids::{JobRunId, UserId};
use crate::ports::clock::{Timestamp, from_micros, to_micros};

/// The tables of jobs.
#[derive(Debug, Clone)]
pub(super) struct JobStore(pub(super) Database);

/// What a node that holds a job's lease has to know before it runs it.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) standing: Standing,
    /// The oldest run that is asked for.
    pub(super) requested: Option<Run>,
    /// Whether there are runs under way.
    pub(super) running: bool,
}

impl JobStore {
    /// How `job` stands; a job seen for the first time has nothing to catch up with.
    pub(super) async fn look(&self, job: &'static str, now: Timestamp) -> Result<Look, DbFault> {
        let (row, requested, running) = self
            .0
            .read(move |connection: DatabaseConnection| async move {
                let in_state = |state: RunState| {
                    job_run::Entity::find()
                        .filter(job_run::Column::State.eq(state.word()))
                        .filter(job_run::Column::Job.eq(job))
                        .order_by_asc(job_run::Column::Id)
                };
                Ok::<_, DbFault>((
                    job_state::Entity::find_by_id(job).one(&connection).await?,
                    in_state(RunState::Requested).one(&connection).await?,
                    in_state(RunState::Running).one(&connection).await?,
                ))
            })
            .await?;
        let standing = match row {
            Some(row) => standing(row)?,
            None => {
                self.register(job, now).await?;
                Standing { paused: false, served_until: now, last_run: None, last_success_at: None }
            }
        };
        Ok(Look { standing, requested: requested.map(run).transpose()?, running: running.is_some() })
    }

    async fn register(&self, job: &'static str, now: Timestamp) -> Result<(), DbFault> {
        let inserted = self.0.transaction(move |tx| async move { insert_state(&tx, job, None, now).await });
        match inserted.await {
            Err(fault) if !DbFault::is_duplicate(&fault) => Err(fault),
            _ => Ok(()),
        }
    }

    /// The jobs with runs that are asked for or under way.
    pub(super) async fn busy(&self) -> Result<HashSet<String>, DbFault> {
        let names: Vec<String> = self
            .0
            .read(|connection: DatabaseConnection| async move {
                let open = [RunState::Requested.word(), RunState::Running.word()];
                let query = job_run::Entity::find()
                    .select_only()
                    .column(job_run::Column::Job)
                    .distinct()
                    .filter(job_run::Column::State.is_in(open));
                Ok::<_, DbFault>(query.into_tuple().all(&connection).await?)
            })
            .await?;
        Ok(names.into_iter().collect())
    }

    /// How each job stands that has run or been paused, and which have runs under way.
    pub(super) async fn all(&self) -> Result<(HashMap<String, Standing>, HashSet<String>), DbFault> {
        let (rows, running): (Vec<job_state::Model>, Vec<String>) = self
            .0
            .read(|connection: DatabaseConnection| async move {
                let running = job_run::Entity::find()
                    .select_only()
                    .column(job_run::Column::Job)
                    .distinct()
                    .filter(job_run::Column::State.eq(RunState::Running.word()))
                    .into_tuple()
                    .all(&connection)
                    .await?;
                Ok::<_, DbFault>((job_state::Entity::find().all(&connection).await?, running))
            })
            .await?;
        let standings = rows.into_iter().map(|row| Ok((row.name.clone(), standing(row)?)));
        Ok((standings.collect::<Result<_, DbFault>>()?, running.into_iter().collect()))
    }

    /// Pauses `job` from `now` on, or lets it run again; what it missed meanwhile needs no run.
    pub(super) async fn pause(&self, job: &'static str, paused: bool, now: Timestamp) -> Result<(), DbFault> {
        let now = to_micros(now);
        self.0
            .transaction(move |tx| async move {
                let mut update = job_state::Entity::update_many().filter(job_state::Column::Name.eq(job));
                update = match paused {
                    true => update
                        .col_expr(job_state::Column::PausedAt, Expr::value(now))
                        .filter(job_state::Column::PausedAt.is_null()),
                    false => update
                        .col_expr(job_state::Column::PausedAt, Expr::value(None::<i64>))
                        .col_expr(job_state::Column::ServedUntil, Expr::value(now))
                        .filter(job_state::Column::PausedAt.is_not_null()),
                };
                if update.exec(&tx).await?.rows_affected == 0
                    && job_state::Entity::find_by_id(job).one(&tx).await?.is_none()
                {
                    insert_state(&tx, job, paused.then_some(now), from_micros(now)).await?;
                }
                Ok(())
            })
            .await
    }

    /// Makes a requested run one that is under way; `false` if it is requested no more.
    pub(super) async fn begin(&self, begun: &Run) -> Result<bool, DbFault> {
        let (id, node, started_at) = (begun.id, begun.node, begun.started_at.map(to_micros));
        self.0
            .transaction(move |tx| async move {
                let done = job_run::Entity::update_many()
                    .col_expr(job_run::Column::State, Expr::value(RunState::Running.word()))
                    .col_expr(job_run::Column::Node, Expr::value(node))
                    .col_expr(job_run::Column::StartedAt, Expr::value(started_at))
                    .filter(job_run::Column::Id.eq(id.0))
                    .filter(job_run::Column::State.eq(RunState::Requested.word()))
                    .exec(&tx)
                    .await?;
                Ok(done.rows_affected == 1)
            })
            .await
    }

    /// Writes down a run that nobody asked for.
    pub(super) async fn insert(&self, new: &Run) -> Result<(), DbFault> {
        let new = row(new)?;
        self.0
            .transaction(move |tx| {
                let new = new.clone();
                async move { insert_run(&tx, new).await }
            })
            .await
    }

    /// Writes down how a run ended: in the history if `remembered`, and as the job's last one. Its schedule is served
    /// until `served_until`, if that is given.
    pub(super) async fn end(
        &self,
        ended: &Run,
        remembered: bool,
        served_until: Option<Timestamp>,
    ) -> Result<(), DbFault> {
        let last = last_run(ended, served_until);
        let ended = row(ended)?;
        self.0
            .transaction(move |tx| {
                let (ended, last) = (ended.clone(), last.clone());
                async move {
                    job_state::Entity::update_many()
                        .set(last)
                        .filter(job_state::Column::Name.eq(ended.job.as_str()))
                        .exec(&tx)
                        .await?;
                    if remembered {
                        let id = ended.id;
                        let update =
                            job_run::Entity::update_many().set(ended.clone().into_active_model().reset_all());
                        let update = update.filter(job_run::Column::Id.eq(id)).exec(&tx).await?;
                        if update.rows_affected == 0 {
                            insert_run(&tx, ended).await?;
                        }
                    }
                    Ok(())
                }
            })
            .await
    }

    /// Writes down that the runs of `job` that are under way are so no more: whoever holds its lease knows.
    pub(super) async fn lose(
        &self,
        job: &'static str,
        why: &'static str,
        now: Timestamp,
    ) -> Result<u64, DbFault> {
        self.0
            .transaction(move |tx| async move {
                let done = job_run::Entity::update_many()
                    .col_expr(job_run::Column::State, Expr::value(RunState::Lost.word()))
                    .col_expr(job_run::Column::FinishedAt, Expr::value(to_micros(now)))
                    .col_expr(job_run::Column::Error, Expr::value(why))
                    .filter(job_run::Column::Job.eq(job))
                    .filter(job_run::Column::State.eq(RunState::Running.word()))
                    .exec(&tx)
                    .await?;
                Ok(done.rows_affected)
            })
            .await
    }

    /// Forgets a run that is still only asked for; `false` if it is more than that by now.
    pub(super) async fn withdraw(&self, id: JobRunId) -> Result<bool, DbFault> {
        self.0
            .transaction(move |tx| async move {
                let done = job_run::Entity::delete_many()
                    .filter(job_run::Column::Id.eq(id.0))
                    .filter(job_run::Column::State.eq(RunState::Requested.word()))
                    .exec(&tx)
                    .await?;
                Ok(done.rows_affected == 1)
            })
            .await
    }

    pub(super) async fn run(&self, job: &'static str, id: JobRunId) -> Result<Option<Run>, DbFault> {
        let found = self.0.read(move |connection: DatabaseConnection| async move {
            let query = job_run::Entity::find_by_id(id.0).filter(job_run::Column::Job.eq(job));
            Ok::<_, DbFault>(query.one(&connection).await?)
        });
        found.await?.map(run).transpose()
    }

    /// Up to `limit` runs of `job` from before `before`, newest first.
    pub(super) async fn runs(
        &self,
        job: &'static str,
        before: Option<JobRunId>,
        limit: u64,
    ) -> Result<Vec<Run>, DbFault> {
        let rows = self.0.read(move |connection: DatabaseConnection| async move {
            let mut query = job_run::Entity::find()
                .filter(job_run::Column::Job.eq(job))
                .order_by_desc(job_run::Column::Id)
                .limit(limit);
            if let Some(before) = before {
                query = query.filter(job_run::Column::Id.lt(before.0));
            }
            Ok::<_, DbFault>(query.all(&connection).await?)
        });
        rows.await?.into_iter().map(run).collect()
    }
}

/// Writes down a run that is asked for, in the open transaction.
pub(super) async fn request(tx: &Tx, requested: &Run) -> Result<(), DbFault> {
    insert_run(tx, row(requested)?).await
}

async fn insert_run(tx: &impl ConnectionTrait, new: job_run::Model) -> Result<(), DbFault> {
    job_run::Entity::insert(new.into_active_model()).exec_without_returning(tx).await?;
    Ok(())
}

async fn insert_state(
    tx: &impl ConnectionTrait,
    job: &'static str,
    paused_at: Option<i64>,
    now: Timestamp,
) -> Result<(), DbFault> {
    let row = job_state::ActiveModel {
        name: Set(job.to_owned()),
        paused_at: Set(paused_at),
        served_until: Set(to_micros(now)),
        ..Default::default()
    };
    job_state::Entity::insert(row).exec_without_returning(tx).await?;
    Ok(())
}

fn last_run(ended: &Run, served_until: Option<Timestamp>) -> job_state::ActiveModel {
    let finished_at = ended.finished_at.map(to_micros);
    let mut last = job_state::ActiveModel {
        last_started_at: Set(ended.started_at.map(to_micros)),
        last_finished_at: Set(finished_at),
        last_outcome: Set(Some(ended.state.word().to_owned())),
        last_error: Set(ended.error.clone()),
        ..Default::default()
    };
    if ended.state == RunState::Done {
        last.last_success_at = Set(finished_at);
    }
    if let Some(served_until) = served_until {
        last.served_until = Set(to_micros(served_until));
    }
    last
}

fn row(run: &Run) -> Result<job_run::Model, DbFault> {
    Ok(job_run::Model {
        id: run.id.0,
        job: run.job.clone(),
        state: run.state.word().to_owned(),
        triggered_by: run.trigger.word().to_owned(),
        requested_by: run.requested_by.map(|user| user.0),
        params: serde_json::to_string(&run.params)?,
        node: run.node,
        created_at: to_micros(run.created_at),
        started_at: run.started_at.map(to_micros),
        finished_at: run.finished_at.map(to_micros),
        summary: run.summary.clone(),
        error: run.error.clone(),
    })
}

fn run(row: job_run::Model) -> Result<Run, DbFault> {
    let ran = row.started_at.zip(row.finished_at);
    Ok(Run {
        id: JobRunId(row.id),
        job: row.job,
        state: row.state.parse()?,
        trigger: row.triggered_by.parse()?,
        requested_by: row.requested_by.map(UserId),
        params: serde_json::from_str(&row.params)?,
        node: row.node,
        created_at: from_micros(row.created_at),
        started_at: row.started_at.map(from_micros),
        finished_at: row.finished_at.map(from_micros),
        duration_ms: ran.map(|(started, finished)| (finished - started).max(0) / 1000),
        summary: row.summary,
        error: row.error,
    })
}

fn standing(row: job_state::Model) -> Result<Standing, DbFault> {
    let last_run = match (row.last_started_at, row.last_finished_at, row.last_outcome) {
        (Some(started_at), Some(finished_at), Some(outcome)) => Some(LastRun {
            started_at: from_micros(started_at),
            finished_at: from_micros(finished_at),
            outcome: outcome.parse()?,
            error: row.last_error,
        }),
        _ => None,
    };
    Ok(Standing {
        paused: row.paused_at.is_some(),
        served_until: from_micros(row.served_until),
        last_run,
        last_success_at: row.last_success_at.map(from_micros),
    })
}
