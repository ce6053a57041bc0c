//! Which node does a piece of work, until when: one row in `job_lease` for each, by the database's clock (R23).
//!
//! A lease saves work and keeps order; it is no lock. A node that slept through its lease may wake beside the next
//! holder, so whatever is done under one must be right if done twice.

use std::sync::Arc;
use std::time::Duration;

use entities::{job_lease, node};
use sea_orm::{
    ColumnTrait, DatabaseConnection, EntityTrait, IntoActiveModel, QueryFilter, QuerySelect, QueryTrait,
};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::db::{self, Database, DbFault};

/// One node's hold on one piece of work.
#[derive(Debug, Clone)]
pub struct Lease {
    db: Database,
    name: Arc<str>,
    holder: i64,
    time: Duration,
}

impl Lease {
    /// A lease on `name` of `time` each; `holder` names this run of this node: no other process uses it, ever.
    pub fn new(db: Database, name: impl Into<Arc<str>>, holder: i64, time: Duration) -> Self {
        Self { db, name: name.into(), holder, time }
    }

    /// What is leased.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Does `work` while the lease is held, waiting for it when it is another's, until `stop`; then gives it back.
    ///
    /// `work` runs until it is dropped, at any `await`, because the lease is lost or the node stops; it begins anew
    /// when the lease is held again. It should watch `stop` itself to end well.
    pub async fn work<Fut: Future<Output = ()>>(&self, stop: &CancellationToken, work: impl Fn() -> Fut) {
        let mut waiting = false;
        while !stop.is_cancelled() {
            match self.hold().await {
                Ok(true) => {
                    waiting = false;
                    tokio::select! {
                        () = work() => {}
                        () = self.lost() => warn!(lease = self.name(), "Lost the lease of {}", self.name()),
                    }
                    continue;
                }
                Ok(false) if !waiting => {
                    waiting = true;
                    info!(lease = self.name(), "Another node holds the lease of {}", self.name());
                }
                Ok(false) => {}
                Err(fault) => {
                    warn!(lease = self.name(), error = %fault, "Cannot see who holds the lease of {}", self.name());
                }
            }
            stop.run_until_cancelled(tokio::time::sleep(self.time / 8)).await;
        }
        if let Err(fault) = self.give_back().await {
            warn!(lease = self.name(), error = %fault, "Could not give back the lease of {}; it expires", self.name());
        }
    }

    /// Keeps the lease, and returns when that fails: before it expires, even if the database does not answer.
    pub async fn lost(&self) {
        let mut held = Instant::now();
        loop {
            tokio::time::sleep(self.time / 8).await;
            let asked = Instant::now();
            // Half of its time is what a lease has left when it was held last.
            match timeout_at(held + self.time / 2, self.hold()).await {
                Ok(Ok(true)) => held = asked,
                Ok(Ok(false)) | Err(_) => return,
                Ok(Err(fault)) => {
                    warn!(lease = self.name(), error = %fault, "Cannot renew the lease of {}", self.name());
                }
            }
        }
    }

    /// Takes, keeps or renews the lease: `true` if it is ours for at least half of its time from now.
    pub async fn hold(&self) -> Result<bool, DbFault> {
        let name = self.name.clone();
        let (row, now) = self
            .db
            .read(move |connection: DatabaseConnection| async move {
                let row = job_lease::Entity::find_by_id(name.to_string()).one(&connection).await?;
                Ok::<_, DbFault>((row, db::now_micros(&connection).await?))
            })
            .await?;
        let time = i64::try_from(self.time.as_micros()).unwrap_or(i64::MAX / 2);
        let ours = job_lease::Model {
            name: self.name.to_string(),
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

    /// Lets any node take the work at once.
    pub async fn give_back(&self) -> Result<(), DbFault> {
        let (name, holder) = (self.name.clone(), self.holder);
        self.db
            .transaction(move |tx| {
                let name = name.to_string();
                async move {
                    job_lease::Entity::delete_many()
                        .filter(job_lease::Column::Name.eq(name))
                        .filter(job_lease::Column::Holder.eq(holder))
                        .exec(&tx)
                        .await?;
                    Ok(())
                }
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

/// Ends the leases of nodes that are no more, so that a server that was killed resumes its work at once.
pub async fn forget_the_dead(db: &Database) -> Result<(), DbFault> {
    db.transaction(|tx| async move {
        let now = db::now_micros(&tx).await?;
        let mut living = node::Entity::find().select_only().column(node::Column::Incarnation);
        living = living.filter(node::Column::ExpiresAt.gt(now));
        job_lease::Entity::delete_many()
            .filter(job_lease::Column::Holder.not_in_subquery(living.into_query()))
            .exec(&tx)
            .await?;
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::tests::Story;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_lease_is_lost_before_it_expires_though_the_database_hangs() {
        let story = Story::begin().await;
        let lease = Lease::new(story.db.clone(), "work", 1, Duration::from_millis(800));
        assert!(lease.hold().await.unwrap());
        // It hangs until the lease is told to be lost, or for as long as a transaction may take: then it fails.
        let lost = CancellationToken::new();
        let told = lost.clone();
        let hanging = story.db.transaction(move |_| {
            let told = told.clone();
            async move {
                told.cancelled().await;
                Ok::<_, DbFault>(())
            }
        });
        let (hung, ()) = tokio::join!(hanging, async {
            lease.lost().await;
            lost.cancel();
        });
        hung.unwrap();
    }
}
