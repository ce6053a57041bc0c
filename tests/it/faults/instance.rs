//! A PostgreSQL or MariaDB of a test's own, which it may stop, kill and reconfigure without hurting its neighbours.

use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use sea_orm::ConnectionTrait;
use tempfile::TempDir;

use super::session;
use crate::support::Engine;
use crate::support::process::{Signal, send};

/// A private instance with one empty database; it ends with this value.
pub(super) struct Instance {
    engine: Engine,
    directory: TempDir,
    settings: HashMap<String, String>,
}

impl Instance {
    /// Starts an instance as `tests/services.sh` does.
    pub(super) async fn start(engine: Engine) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // The database runs as a user of its own.
        let readable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory.path(), readable).unwrap();
        let mut instance = Self { engine, directory, settings: HashMap::new() };
        let started = match engine {
            Engine::Postgres => instance.shell("start_postgres \"$0/instance\" && env"),
            Engine::MariaDb => instance.shell("start_mariadb \"$0/instance\" && env"),
            Engine::Sqlite => unreachable!("SQLite has no server"),
        };
        let settings = started.lines().filter_map(|line| line.strip_prefix("TOMBOLA_TEST_")?.split_once('='));
        instance.settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let administrator = session(&instance.administrator_url()).await;
        administrator.execute_unprepared("CREATE DATABASE tombola").await.unwrap();
        administrator.close().await.unwrap();
        instance
    }

    /// The URL of an administrator.
    pub(super) fn administrator_url(&self) -> String {
        let name = match self.engine {
            Engine::Postgres => "POSTGRES_URL",
            _ => "MARIADB_URL",
        };
        self.settings[name].clone()
    }

    /// The URL of the database.
    pub(super) fn url(&self) -> String {
        let administrator = self.administrator_url();
        let (server, _) = administrator.rsplit_once('/').unwrap();
        format!("{server}/tombola")
    }

    /// Kills the instance as by `kill -9` and starts it again on the same data and port.
    pub(super) fn crash_and_restart(&self) {
        match self.engine {
            Engine::Postgres => self.shell(
                "as_user postgres \"$(postgres_bin)/pg_ctl\" restart --mode=immediate --wait --silent \
                 --pgdata=\"$0/instance/data\" --log=\"$0/instance/log\" >&2",
            ),
            _ => {
                send(self.pid(), Signal::Kill);
                let port = address(&self.url()).port();
                self.shell(&format!("run_mariadb \"$0/instance\" {port} >&2"))
            }
        };
    }

    /// The process that everything else is a child of.
    fn pid(&self) -> u32 {
        let file = match self.engine {
            Engine::Postgres => "instance/data/postmaster.pid",
            _ => "instance/pid",
        };
        let text =
            std::fs::read_to_string(self.directory.path().join(file)).expect("a file with the process id");
        text.lines().next().and_then(|pid| pid.trim().parse().ok()).expect("a process id")
    }

    /// Runs a script that may use `tests/services.sh`; `$0` is the directory. Answers what it printed.
    fn shell(&self, script: &str) -> String {
        let script = format!("set -euo pipefail; source tests/services.sh; {script}");
        let output = Command::new("bash")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["-c", &script])
            .arg(self.directory.path())
            .output()
            .expect("bash");
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // SIGQUIT lets PostgreSQL end its children at once; MariaDB has none.
        let stop = match self.engine {
            Engine::Postgres => "kill -QUIT \"$(head -n 1 \"$0/instance/data/postmaster.pid\")\"",
            _ => "kill -KILL \"$(cat \"$0/instance/pid\")\"",
        };
        let _ = Command::new("bash").args(["-c", stop]).arg(self.directory.path()).status();
    }
}

/// Where the database with this URL listens.
pub(super) fn address(url: &str) -> SocketAddr {
    let (_, rest) = url.rsplit_once('@').expect("a URL with a user");
    let (host, _) = rest.split_once('/').expect("a URL with a database");
    host.to_socket_addrs().expect("an address").next().expect("an address")
}

/// The same database, reached through another address.
pub(super) fn through(url: &str, proxy: SocketAddr) -> String {
    url.replace(&format!("@{}/", address(url)), &format!("@{proxy}/"))
}
