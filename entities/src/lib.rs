//! Tombola's tables as sea-orm entities: one file per table, no behaviour.

pub mod activity;
pub mod consumer_log;
pub mod consumer_position;
pub mod dead_letter;
pub mod difference;
pub mod idempotency;
pub mod job_lease;
pub mod job_run;
pub mod job_state;
pub mod node;
pub mod outbox;
pub mod parked_event;
pub mod queued_events;
pub mod reconciliation;
pub mod revoked_token;
pub mod signing_key;
pub mod stock_adjustment;
pub mod stock_projection;
pub mod take;
pub mod token_block;
pub mod users;
