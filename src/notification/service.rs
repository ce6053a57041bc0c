//! The front door: what users read.

use entities::notification;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, DatabaseConnection, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use super::model::{Notification, NotificationError};
use crate::db::{Database, DbFault};
use crate::ids::{NotificationId, UserId};
use crate::ports::clock::{SharedClock, to_micros};

/// Shows users what they were told.
#[derive(Debug, Clone)]
pub struct NotificationService {
    db: Database,
    clock: SharedClock,
}

impl NotificationService {
    pub fn new(db: Database, clock: SharedClock) -> Self {
        Self { db, clock }
    }

    /// What `user` was told, newest first, older than `before`.
    pub async fn of_user(
        &self,
        user: UserId,
        before: Option<NotificationId>,
        limit: u64,
    ) -> Result<Vec<Notification>, DbFault> {
        let read = move |connection: DatabaseConnection| async move {
            let mut query = notification::Entity::find().filter(notification::Column::UserId.eq(user.0));
            if let Some(before) = before {
                query = query.filter(notification::Column::Id.lt(before.0));
            }
            let rows = query.order_by_desc(notification::Column::Id).limit(limit).all(&connection).await?;
            rows.into_iter().map(Notification::try_from).collect()
        };
        self.db.read(read).await
    }

    /// Notes that `user` has read a notification; the first time counts.
    pub async fn read(&self, user: UserId, id: NotificationId) -> Result<Notification, NotificationError> {
        let now = to_micros(self.clock.now());
        let reading = self.db.transaction(move |tx| async move {
            notification::Entity::update_many()
                .col_expr(notification::Column::ReadAt, Expr::value(now))
                .filter(notification::Column::Id.eq(id.0))
                .filter(notification::Column::UserId.eq(user.0))
                .filter(notification::Column::ReadAt.is_null())
                .exec(&tx)
                .await
                .map_err(DbFault::from)?;
            let row = notification::Entity::find_by_id(id.0)
                .filter(notification::Column::UserId.eq(user.0))
                .one(&tx)
                .await
                .map_err(DbFault::from)?;
            Ok(row.ok_or(NotificationError::NotFound)?.try_into()?)
        });
        reading.await
    }
}
