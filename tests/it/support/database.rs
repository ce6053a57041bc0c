//! A new, empty database for each story.

use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection};
use tempfile::TempDir;

/// The databases a story is told on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Sqlite,
    Postgres,
    MariaDb,
}

/// A database that nobody else uses.
#[derive(Debug)]
pub(crate) struct TestDatabase {
    pub(crate) url: String,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Directory(TempDir),
    /// On the server with this URL, under this name.
    Server(Engine, String, String),
}

impl TestDatabase {
    pub(crate) async fn create(engine: Engine) -> Self {
        let variable = match engine {
            Engine::Sqlite => {
                let directory = tempfile::tempdir().unwrap();
                let url = format!("sqlite://{}", directory.path().join("tombola.db").display());
                return Self { url, place: Place::Directory(directory) };
            }
            Engine::Postgres => "TOMBOLA_TEST_POSTGRES_URL",
            Engine::MariaDb => "TOMBOLA_TEST_MARIADB_URL",
        };
        let Ok(server) = std::env::var(variable) else {
            panic!("{variable} is not set: run tests/run, which starts the databases")
        };
        let name = format!("story_{}", uuid::Uuid::now_v7().simple());
        execute(&server, &format!("CREATE DATABASE {name}")).await;
        let (host, _) = server.rsplit_once('/').expect("a URL with the name of a database");
        Self { url: format!("{host}/{name}"), place: Place::Server(engine, server, name) }
    }

    /// Whether several servers can work on it.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self.place, Place::Server(..))
    }

    /// A connection to look behind the server's back. The server must have been started once.
    pub(crate) async fn connect(&self) -> DatabaseConnection {
        connect(&self.url).await
    }

    /// Removes the database.
    pub(crate) async fn remove(self) {
        match self.place {
            Place::Directory(directory) => directory.close().unwrap(),
            Place::Server(engine, server, name) => {
                let force = if engine == Engine::Postgres { " WITH (FORCE)" } else { "" };
                execute(&server, &format!("DROP DATABASE {name}{force}")).await;
            }
        }
    }
}

/// One connection to a database, to look and to meddle: what is begun on it stays open.
pub(crate) async fn session(url: &str) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.max_connections(1).idle_timeout(None).max_lifetime(None).sqlx_logging(false);
    Database::connect(options).await.unwrap()
}

async fn connect(url: &str) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.max_connections(2).sqlx_logging(false);
    Database::connect(options).await.unwrap()
}

async fn execute(url: &str, sql: &str) {
    let connection = connect(url).await;
    connection.execute_unprepared(sql).await.unwrap();
    connection.close().await.unwrap();
}
