//! What activities tell the world.

use serde::Serialize;

use super::machine::State;
use super::model::Activity;
use crate::ids::ActivityId;
use crate::ports::clock::Timestamp;

/// `activity.state_changed.v1`.
#[derive(Debug, Serialize)]
pub(super) struct StateChanged {
    activity_id: ActivityId,
    /// Null for a new activity.
    from: Option<State>,
    to: State,
    version: i64,
    at: Timestamp,
}

impl StateChanged {
    /// `activity` has just come `from` another state, or into being.
    pub(super) fn new(activity: &Activity, from: Option<State>) -> Self {
        Self {
            activity_id: activity.id,
            from,
            to: activity.state,
            version: activity.version,
            at: activity.updated_at,
        }
    }
}
