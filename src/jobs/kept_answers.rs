//! Forgets answers that no repeat can ask for any more.

use std::time::Duration;

use tracing::info;

use super::runner::Job;
use crate::db::Database;
use crate::idempotency;
use crate::ports::clock::SharedClock;

/// The job that keeps the answers for repeats to a day's worth.
pub fn kept_answers(db: Database, clock: SharedClock) -> Job {
    Job::new("kept_answers", Duration::from_secs(600), move || {
        let (db, before) = (db.clone(), clock.now() - idempotency::KEPT_FOR);
        async move {
            match idempotency::forget(&db, before).await? {
                0 => {}
                forgotten => {
                    info!(forgotten, "Forgot {forgotten} answers kept for repeats: they are a day old");
                }
            }
            Ok(())
        }
    })
}
