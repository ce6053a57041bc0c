//! The real server as a process that a test starts, freezes, kills and starts again on the same data.

#![expect(clippy::print_stderr, reason = "the log tells why a test failed")]

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::wire::{Wire, get};

const BINARY: &str = env!("CARGO_BIN_EXE_tombola");

/// How long a state may take to come about; far more than it needs, so that only a hang is a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How often a state is looked at.
const POLL: Duration = Duration::from_millis(10);

/// How to start a server: the same address, directory and settings each time.
#[derive(Clone)]
pub(crate) struct Launch {
    pub(crate) address: SocketAddr,
    directory: Arc<TempDir>,
    environment: BTreeMap<String, String>,
}

/// A running server; it dies with this value.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    child: Child,
    log: PathBuf,
    _directory: Arc<TempDir>,
}

/// The signals a test sends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Signal {
    Kill,
    Terminate,
    Stop,
    Continue,
}

impl Launch {
    /// A server on a database and a port of its own.
    pub(crate) fn on(database_url: &str) -> Self {
        let address = free_address();
        let environment = [
            ("HTTP__ADDRESS", address.to_string()),
            ("HTTP__WORKERS", "2".to_owned()),
            ("DATABASE__URL", database_url.to_owned()),
            ("AUTH__DEV_LOGIN", "true".to_owned()),
            ("RATE_LIMIT__PER_USER_PER_S", "0".to_owned()),
            ("RATE_LIMIT__SESSIONS_PER_ADDRESS_PER_S", "0".to_owned()),
            ("LOG__FORMAT", "text".to_owned()),
        ];
        let environment = environment.map(|(key, value)| (format!("TOMBOLA__{key}"), value));
        let directory = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        Self { address, directory, environment: environment.into() }
    }

    /// With the setting `key`, as in `DATABASE__DEADLINE_MS`.
    pub(crate) fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.environment.insert(format!("TOMBOLA__{key}"), value.to_string());
        self
    }

    /// With these fault points armed, as in `before_fence=kill@3`; see `src/faults.rs`.
    pub(crate) fn with_faults(mut self, faults: &str) -> Self {
        self.environment.insert("TOMBOLA_FAULTS".to_owned(), faults.to_owned());
        self
    }

    /// On a machine whose wall clock is `seconds` ahead.
    pub(crate) fn ahead_by(self, seconds: u32) -> Self {
        let library = self.directory.path().join("wall_clock.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/wall_clock.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", &format!("-DOFFSET_S={seconds}"), source, "-o"]).arg(&library);
        assert!(compiler.status().is_ok_and(|status| status.success()), "{source} cannot be compiled");
        let mut launch = self;
        launch.environment.insert("LD_PRELOAD".to_owned(), library.display().to_string());
        launch
    }

    /// Starts the server without waiting until it is ready.
    pub(crate) fn spawn(&self) -> Server {
        let log = self.directory.path().join("log");
        let output = File::options().create(true).append(true).open(&log).expect("a log file");
        let child = self
            .command()
            .arg("serve")
            .stdout(output.try_clone().expect("a log file"))
            .stderr(output)
            .spawn()
            .expect("the server's binary");
        Server { address: self.address, child, log, _directory: self.directory.clone() }
    }

    /// Starts the server and waits until it is ready.
    pub(crate) async fn start(&self) -> Server {
        let mut server = self.spawn();
        assert!(server.is_ready_in_time().await, "the server ended while it started");
        server
    }

    /// Access tokens of `count` new customers, made by `tombola token`.
    pub(crate) fn customers(&self, count: usize) -> Vec<String> {
        let file = self.directory.path().join("tokens");
        let made = self
            .command()
            .args(["token", "--count", &count.to_string(), "--out"])
            .arg(&file)
            .output()
            .expect("the server's binary");
        assert!(made.status.success(), "tombola token: {}", String::from_utf8_lossy(&made.stderr));
        let tokens = std::fs::read_to_string(file).expect("the file of tokens");
        tokens.lines().map(str::to_owned).collect()
    }

    /// What a command beside the server comes to.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().expect("the server's binary")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(BINARY);
        command
            .current_dir(self.directory.path())
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("RUST_BACKTRACE", "1")
            .envs(&self.environment)
            .stdin(Stdio::null());
        command
    }
}

impl Server {
    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    /// Waits until `/readyz` says so; `false` if the process ends instead.
    pub(crate) async fn is_ready_in_time(&mut self) -> bool {
        let mut wire = Wire::default();
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.exited().is_some() {
                return false;
            }
            if wire.ask(self.address, &get("/readyz")).await.is_ok_and(|said| said.status == 200) {
                return true;
            }
            tokio::time::sleep(POLL).await;
        }
        panic!("the server at {} was not ready in time", self.address);
    }

    /// How the process ended, if it has.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the state of a child")
    }

    /// Waits for the process to end by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.exited() {
                return status;
            }
            assert!(Instant::now() < deadline, "the server at {} still runs", self.address);
            tokio::time::sleep(POLL).await;
        }
    }

    /// Kills the process as by `kill -9` and waits for its end.
    pub(crate) async fn kill(&mut self) {
        self.signal(Signal::Kill);
        self.ended().await;
    }

    /// The sum of a counter's series in `/metrics`, 0 if it was never counted.
    pub(crate) async fn counted(&self, name: &str) -> u64 {
        let said = Wire::default().ask(self.address, &get("/metrics")).await.expect("an answer of /metrics");
        said.body
            .lines()
            .filter_map(|line| line.strip_prefix(name))
            .filter(|rest| rest.starts_with([' ', '{']))
            .filter_map(|rest| rest.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }

    /// Waits until the log says `text`.
    pub(crate) async fn says(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !std::fs::read_to_string(&self.log).expect("a log file").contains(text) {
            assert!(Instant::now() < deadline, "the server never said {text:?}");
            tokio::time::sleep(POLL * 5).await;
        }
    }

    /// Whether `/readyz` says so now.
    pub(crate) async fn is_ready(&self) -> bool {
        Wire::default().ask(self.address, &get("/readyz")).await.is_ok_and(|said| said.status == 200)
    }

    /// Waits until a counter has reached `least`.
    pub(crate) async fn counts(&self, name: &str, least: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.counted(name).await < least {
            assert!(Instant::now() < deadline, "{name} did not reach {least}: the fault was never seen");
            tokio::time::sleep(POLL * 5).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(80)..].join("\n");
            eprintln!("--- the end of the log of the server at {}\n{end}\n---", self.address);
        }
    }
}

/// Sends `signal` to the process `pid`.
pub(crate) fn send(pid: u32, signal: Signal) {
    let name = match signal {
        Signal::Kill => "KILL",
        Signal::Terminate => "TERM",
        Signal::Stop => "STOP",
        Signal::Continue => "CONT",
    };
    // The shell's own `kill`: the program is not everywhere.
    let sent = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status();
    assert!(sent.is_ok_and(|status| status.success()), "could not send SIG{name} to process {pid}");
}

/// A port below those that outgoing connections get, so that nobody takes it while its server is down.
fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        let start = u16::try_from(std::process::id() % 7000).expect("below 7000");
        let address = SocketAddr::from(([127, 0, 0, 1], 12_000 + (start + offset) % 7000));
        if std::net::TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
