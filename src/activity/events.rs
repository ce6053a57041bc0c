//! What activities tell the world.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::machine::State;
use super::model::Activity;
use crate::ids::ActivityId;
use crate::messaging::outbox::serialize_rfc3339;

/// `activity.state_changed.v1`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StateChanged {
    pub activity_id: ActivityId,
    /// Null for a new activity.
    pub from: Option<State>,
    pub to: State,
    /// Raised by every change of the activity, not by takes.
    pub version: i64,
    #[serde(serialize_with = "serialize_rfc3339")]
    pub at: chrono::DateTime<chrono::Utc>,
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
