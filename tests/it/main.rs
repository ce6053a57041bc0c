//! Stories told over HTTP to a whole server: one file per theme, each story on each database (see `support`).
#![expect(clippy::unwrap_used, reason = "a story that cannot go on ends there")]

mod bad_input;
mod faults;
mod lists;
mod sessions;
#[expect(dead_code, unused_imports, reason = "the stories of takes, stock and nodes follow")]
mod support;
