//! Which node runs a job, until when.

use std::time::Duration;

use entities::job_lease;
use sea_orm::{ColumnTrait, DatabaseConnection, EntityTrait, IntoActiveModel, QueryFilter};

use crate::db::{self, Database, DbFault};

/// One node's hold on one job.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    pub(super) db: Database,
    pub(super) job: &'static str,
    pub(super) holder: i64,
    pub(super) time: Duration,
}

impl Lease {
    /// Takes, keeps or renews the lease: `true` if it is ours for at least half of its time from now.
    pub(super) async fn hold(&self) -> Result<bool, DbFault> {
        let job = self.job;
        let (row, now) = self
            .db
            .read(move |connection: DatabaseConnection| async move {
                let row = job_lease::Entity::find_by_id(job).one(&connection).await?;
                Ok::<_, DbFault>((row, db::now_micros(&connection).await?))
            })
            .await?;
        let time = i64::try_from(self.time.as_micros()).unwrap_or(i64::MAX / 2);
        let ours = job_lease::Model {
            name: job.to_owned(),
            holder: self.holder,
            expires_at: now.saturating_add(time),
        };
        match row {
            Some(row) if row.holder == self.holder && row.expires_at - now >= time / 2 => Ok(true),
            Some(row) if row.holder != self.holder && row.expires_at > now => Ok(false),
            Some(row) => self.replace(row, ours).await,
            None => self.insert(ours).await,
        }
    }

    /// Lets any node take the job at once.
    pub(super) async fn give_back(&self) -> Result<(), DbFault> {
        let (job, holder) = (self.job, self.holder);
        self.db
            .transaction(move |tx| async move {
                job_lease::Entity::delete_many()
                    .filter(job_lease::Column::Name.eq(job))
                    .filter(job_lease::Column::Holder.eq(holder))
                    .exec(&tx)
                    .await?;
                Ok(())
            })
            .await
    }

    /// Of several that saw the same `row`, one succeeds.
    async fn replace(&self, row: job_lease::Model, ours: job_lease::Model) -> Result<bool, DbFault> {
        self.db
            .transaction(move |tx| {
                let (row, ours) = (row.clone(), ours.clone());
                async move {
                    let done = job_lease::Entity::update_many()
                        .col_expr(job_lease::Column::Holder, ours.holder.into())
                        .col_expr(job_lease::Column::ExpiresAt, ours.expires_at.into())
                        .filter(job_lease::Column::Name.eq(row.name))
                        .filter(job_lease::Column::Holder.eq(row.holder))
                        .filter(job_lease::Column::ExpiresAt.eq(row.expires_at))
                        .exec(&tx)
                        .await?;
                    Ok(done.rows_affected == 1)
                }
            })
            .await
    }

    async fn insert(&self, ours: job_lease::Model) -> Result<bool, DbFault> {
        let inserted = self
            .db
            .transaction(move |tx| {
                let row = ours.clone().into_active_model();
                async move { Ok(job_lease::Entity::insert(row).exec_without_returning(&tx).await.map(drop)?) }
            })
            .await;
        match inserted {
            Ok(()) => Ok(true),
            Err(fault) if DbFault::is_duplicate(&fault) => Ok(false),
            Err(fault) => Err(fault),
        }
    }
}
