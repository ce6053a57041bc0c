//! New databases for unit tests, made as the stories over HTTP make theirs.

#[path = "../../tests/it/support/database.rs"]
#[expect(
    dead_code,
    reason = "the stories over HTTP look into a database behind the server's back, and remove it"
)]
mod database;

use tokio::runtime::Handle;

pub(crate) use database::{Engine, TestDatabase};

use super::{Database, DatabaseSettings};

/// A new SQLite file with all tables; it is gone with the `TestDatabase`.
pub(crate) async fn fresh() -> (TestDatabase, Database) {
    fresh_on(Engine::Sqlite).await
}

/// A new database with all tables.
pub(crate) async fn fresh_on(engine: Engine) -> (TestDatabase, Database) {
    let place = TestDatabase::create(engine).await;
    let settings = DatabaseSettings::new(&place.url.clone().into()).unwrap();
    let db = Database::connect(settings, Handle::current()).await.unwrap();
    db.migrate().await.unwrap();
    (place, db)
}
