//! Stories told over HTTP to a whole server: one file per theme, each story on each database (see `support`).
#![expect(clippy::unwrap_used, reason = "a story that cannot go on ends there")]

mod faults;
mod support;
