//! The event types (API.md, Events): past tense, owner first, version last.

use std::fmt;

/// Names what happened; also the routing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    ActivityStateChanged,
    ActivityStockAdjusted,
    ActivityTaken,
    ActivityTakeReleased,
    ActivitySoldOut,
    UserFirstLogin,
}

impl EventType {
    /// The type as subscribers see it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::ActivityStateChanged => "activity.state_changed.v1",
            Self::ActivityStockAdjusted => "activity.stock_adjusted.v1",
            Self::ActivityTaken => "activity.taken.v1",
            Self::ActivityTakeReleased => "activity.take_released.v1",
            Self::ActivitySoldOut => "activity.sold_out.v1",
            Self::UserFirstLogin => "user.first_login.v1",
        }
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
