//! Campaigns: what is on offer, when, how many in all and how many to one user.
//!
//! An operator writes an activity, has it approved, and from then on the clock moves it: `jobs` asks for `start` and
//! `close` through the same [`ActivityService::transition`] as an operator. Each change locks the activity's row,
//! raises its `version` and writes its event in one transaction; each batch of takes checks that version, so no take
//! is accepted after an activity has closed, on any node. Whoever uses an activity looks at its state **and** its
//! window (ACT-4): the job is prompt, not exact.

/// Defines an enum that is one lower-snake word per variant, in JSON and in the database.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $($variant,)+
        }

        impl $name {
            /// Every variant.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The word it is stored and shown as.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.word())
            }
        }

        impl std::str::FromStr for $name {
            type Err = crate::db::DbFault;

            fn from_str(word: &str) -> Result<Self, Self::Err> {
                Self::ALL
                    .iter()
                    .copied()
                    .find(|known| known.word() == word)
                    .ok_or(crate::db::DbFault::Missing(concat!("a known ", $what)))
            }
        }
    };
}

pub mod api;
mod events;
pub mod machine;
pub mod model;
mod service;
mod store;
#[cfg(test)]
pub(crate) mod tests;

pub use service::{ActivityError, ActivityService, Actor, OnChange};
