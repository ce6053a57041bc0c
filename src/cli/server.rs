//! `tombola serve`: from the banner to the last signal.

use std::io::Write;

use secrecy::ExposeSecret;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Failure, located, with_telemetry};
use crate::app::{App, Running, TimeSource};
use crate::config::{Config, Loaded, ServerRole};
use crate::demo::{self, Pace};

pub(super) fn serve(loaded: &Loaded, demo: bool) -> Result<(), Failure> {
    let config = &loaded.config;
    if demo && !config.dev_login() {
        return Err(Failure::DemoWithoutSignIn);
    }
    with_telemetry(config, async {
        let mut signals = Signals::listen()?;
        let starting = App::start(config.clone(), TimeSource::Database).await;
        let running = starting.map_err(|error| located(loaded, error))?;
        banner(config, &running, demo)?;
        let shoppers = async {
            if demo {
                demo::run(running.address, running.clock().clone(), Pace::default()).await;
            }
            std::future::pending::<()>().await;
        };
        let failed = tokio::select! {
            () = signals.next() => false,
            () = running.failed() => true,
            () = shoppers => false,
        };
        tokio::select! {
            () = running.stop() => {}
            // Whoever asks twice does not want to wait.
            () = signals.next() => std::process::exit(1),
        }
        if failed { Err(Failure::NodeNumberLost) } else { Ok(()) }
    })
}

/// What a person at a terminal wants to know first.
fn banner(config: &Config, running: &Running, demo: bool) -> Result<(), std::io::Error> {
    let url = format!("http://{}", running.address);
    let storage = config.database_settings().map_or_else(|_| String::new(), |settings| settings.describe());
    let mut out = std::io::stdout().lock();
    writeln!(out, "Tombola {}", env!("CARGO_PKG_VERSION"))?;
    if config.has_role(ServerRole::Http) {
        writeln!(out, "  API       {url}/api/v1")?;
        writeln!(out, "  Docs      {url}/docs/")?;
    } else {
        let roles: Vec<String> = config.roles.iter().map(ServerRole::to_string).collect();
        writeln!(out, "  Roles     {}; no API here", roles.join(", "))?;
        writeln!(out, "  Metrics   {url}/metrics")?;
    }
    writeln!(out, "  Storage   {storage}")?;
    writeln!(out, "  Mode      {}", mode(config))?;
    if config.dev_login() && config.has_role(ServerRole::Http) {
        writeln!(out, "  Sign-in   open to any name and role: for development (auth.dev_login)")?;
    }
    if let Some((name, password)) = &running.first_operator {
        let password = password.expose_secret();
        writeln!(out, "  Operator  {}, password {password} (shown only this once)", name.as_str())?;
    }
    if demo {
        writeln!(
            out,
            "  Demo      simulated shoppers take from a give-away; a new one starts when it is sold out"
        )?;
    }
    out.flush()
}

/// What the installation consists of.
fn mode(config: &Config) -> &'static str {
    match (config.is_embedded(), config.bus.is_embedded()) {
        (true, true) => "embedded: one process, nothing else needed",
        (true, false) => "one process; events go over RabbitMQ",
        (false, true) => "nodes sharing one database",
        (false, false) => "nodes sharing one database; events go over RabbitMQ",
    }
}

/// The signals that ask a process to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, std::io::Error> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::config::Sources;

    #[rstest]
    #[case("sqlite://data/x.db", "embedded", "embedded: one process, nothing else needed")]
    #[case("sqlite://data/x.db", "amqp://mq", "one process; events go over RabbitMQ")]
    #[case("postgres://db/x", "embedded", "nodes sharing one database")]
    #[case("postgres://db/x", "amqp://mq", "nodes sharing one database; events go over RabbitMQ")]
    fn the_mode_names_what_is_needed(#[case] database: &str, #[case] bus: &str, #[case] told: &str) {
        let flags = vec![("database.url", "test", database.to_owned()), ("bus", "test", bus.to_owned())];
        let loaded = Sources { flags, ..Sources::default() }.load().unwrap();
        assert_eq!(mode(&loaded.config), told);
    }
}
