//! The remaining number of each activity, kept up by its events (STK-5).
//!
//! An event only says which activity changed; the number is counted from the token blocks, at most twice a second for
//! each activity and never per take. So an event that comes twice or late does no harm, and the number never goes
//! back to an older count: counts of one activity wait for each other, and each is newer than the one before.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use entities::stock_projection;
use sea_orm::ActiveValue::Set;
use sea_orm::{EntityTrait, QuerySelect};

use super::blocks;
use crate::db::{self, DbFault, Tx};
use crate::ids::ActivityId;
use crate::messaging::catalogue::EventType;
use crate::messaging::consumer::{Group, Handler, HandlerError};
use crate::messaging::envelope::Envelope;
use crate::ports::event_bus::GroupSpec;

/// How long changes are gathered before the blocks are counted.
const STEP: Duration = Duration::from_millis(500);

/// The consumer group that keeps the numbers.
pub fn group() -> Group {
    let spec = GroupSpec {
        max_batch: 1000,
        linger: STEP,
        coalesced: true,
        ..GroupSpec::new(
            "stock_projection",
            &[
                EventType::ActivityStateChanged,
                EventType::ActivityStockAdjusted,
                EventType::ActivityTaken,
                EventType::ActivityTakeReleased,
            ],
        )
    };
    Group::new(spec, Projection).harmless_repeats()
}

#[derive(Debug)]
struct Projection;

#[async_trait]
impl Handler for Projection {
    async fn apply(&self, tx: &Tx, events: &[Envelope]) -> Result<(), HandlerError> {
        // In one order on every node, so that two of them wait for each other and do not deadlock.
        let activities: BTreeSet<&str> = events.iter().map(|event| event.subject.as_str()).collect();
        for activity in activities {
            let id = activity.parse::<ActivityId>();
            let id = id.map_err(|_| HandlerError::Failed(format!("{activity:?} names no activity")))?;
            count(tx, id).await?;
        }
        Ok(())
    }
}

/// Counts what is left of `activity` and notes it.
pub(crate) async fn count(tx: &Tx, activity: ActivityId) -> Result<i64, DbFault> {
    let row = stock_projection::Entity::find_by_id(activity.0).lock_exclusive().one(tx).await?;
    // After the lock, so that this count is newer than the one before.
    let remaining = blocks::remaining(tx, activity).await?;
    let counted = stock_projection::ActiveModel {
        activity_id: Set(activity.0),
        remaining: Set(remaining),
        as_of_at: Set(db::now_micros(tx).await?),
    };
    match row {
        Some(_) => stock_projection::Entity::update(counted).exec(tx).await.map(drop)?,
        None => stock_projection::Entity::insert(counted).exec_without_returning(tx).await.map(drop)?,
    }
    Ok(remaining)
}
