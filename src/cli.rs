//! The command line: what the server and the commands beside it are asked, and how they answer.
//!
//! Exit codes: 0 done, 1 failed, 2 bad usage or configuration. Results go to standard output; an error is one sentence
//! on standard error that says what to do.

mod commands;
mod server;

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgGroup, Args, CommandFactory, Parser, Subcommand};
use thiserror::Error;

use self::commands::{
    add_user, complete, list_jobs, list_letters, read_password, reconcile, run_job, write_tokens,
};
use self::server::serve;
use crate::app::{self, Ground, Modules, StartError};
use crate::config::{Config, ConfigError, Loaded, Sources, YEAR, listening_address};
use crate::idempotency::Answered;
use crate::identity::{IdentityError, InvalidPassword, Role, UserName};
use crate::ids::DeadLetterId;
use crate::jobs::{JobService, JobsError, Run};
use crate::messaging::dead_letter::{DeadLetter, DeadLetterError, DeadLetters, LetterFilter, LetterState};
use crate::messaging::jobs::DEAD_LETTER_REPLAY;
use crate::ports::payment_gateway::InvalidSetting;
use crate::reconciliation::ReconciliationError;
use crate::telemetry::{Telemetry, TelemetryError};

const HELP: &str = "\
{about}

Examples:
  tombola                                    start the server; it needs nothing else
  tombola serve --demo                       with a sale to look at
  tombola --config shop.toml config show     what is set, and where
  TOMBOLA__HTTP__ADDRESS=0.0.0.0:80 tombola  any setting can come from the environment
  tombola user add ann --role operator       prints a new password once

{usage-heading} {usage}

{all-args}

Settings are explained by `tombola config defaults`.
";

/// Flash sales, prize draws and coupon give-aways that sell out exactly.
#[derive(Debug, Parser)]
#[command(name = "tombola", version, help_template = HELP)]
struct Cli {
    /// A file with settings (TOML); the environment and flags win over it.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    serve: ServeArgs,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the server (also without a command).
    Serve(ServeArgs),
    /// Bring the database's tables up to date.
    Migrate,
    /// Look after those who sign in with a password.
    #[command(subcommand)]
    User(UserCommand),
    /// Make new customers and write an access token for each, one a line, for load tests.
    Token(TokenArgs),
    /// Look at jobs, or run one now.
    #[command(subcommand)]
    Job(JobCommand),
    /// Look at events that could not be applied, or try them again.
    #[command(subcommand)]
    DeadLetter(DeadLetterCommand),
    /// Look at the settings.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Compare what should agree, and print the differences. Fails if there are any.
    Reconcile {
        /// Apply what each difference proposes.
        #[arg(long)]
        apply: bool,
    },
    /// Print the OpenAPI document.
    Openapi,
    /// Print the AsyncAPI document of the events.
    Asyncapi,
    /// Print a completion script for a shell.
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Default, Args)]
struct ServeArgs {
    /// Where to listen, as in 127.0.0.1:8080 [http.address].
    #[arg(long, value_parser = listening_address)]
    address: Option<SocketAddr>,

    /// Keep a sale running, with simulated shoppers, to have something alive to look at.
    #[arg(long)]
    demo: bool,

    /// What this server does: http, relay, consumer, jobs, with commas between [roles].
    #[arg(long = "role", value_name = "ROLES")]
    roles: Option<String>,

    /// Which database to use, as in sqlite://data/tombola.db [database.url].
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Add a user; the password is generated and printed once, or read from standard input.
    Add {
        #[arg(value_parser = UserName::parse)]
        name: UserName,

        /// customer, operator or viewer; may be given several times.
        #[arg(long = "role", value_name = "ROLE", required = true, value_parser = role)]
        roles: Vec<Role>,

        /// Read the password from the first line of standard input.
        #[arg(long)]
        password_stdin: bool,
    },
}

#[derive(Debug, Args)]
struct TokenArgs {
    /// How many customers.
    #[arg(long)]
    count: usize,

    /// Where to write the tokens; only you may read the file.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// How long the tokens are good, in seconds [auth.token_ttl_s].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=YEAR.as_secs()))]
    ttl_s: Option<u64>,
}

#[derive(Debug, Subcommand)]
enum JobCommand {
    /// Print every job with its schedule and its last run.
    List,
    /// Run a job now, paused or not: here, or on the server that has it. Waits for the end.
    Run {
        /// One of the names that `tombola job list` prints.
        name: String,

        /// What the job takes, as a JSON object.
        #[arg(long, value_name = "JSON", value_parser = json)]
        params: Option<serde_json::Value>,

        /// How long to wait, in seconds, while another run of the job is under way.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        wait_s: u64,
    },
}

#[derive(Debug, Subcommand)]
enum DeadLetterCommand {
    /// Print dead letters, the latest first.
    List {
        #[command(flatten)]
        filter: LetterArgs,

        /// waiting, replaying, applied or discarded; left out: those that are waiting or replaying.
        #[arg(long, value_parser = letter_state)]
        state: Option<LetterState>,
    },
    /// Try dead letters again: one, or all that wait. Their state tells afterwards how it ended.
    #[command(group = ArgGroup::new("which").required(true).args(["id", "all"]))]
    Replay {
        /// One of the ids that `tombola dead-letter list` prints.
        #[arg(conflicts_with_all = ["all", "group", "event_type"])]
        id: Option<DeadLetterId>,

        /// All that wait, or those of them that --group and --type name.
        #[arg(long)]
        all: bool,

        #[command(flatten)]
        filter: LetterArgs,

        /// How long to wait, in seconds, while another replay is under way.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        wait_s: u64,
    },
}

#[derive(Debug, Args)]
struct LetterArgs {
    /// Only those of this consumer group.
    #[arg(long)]
    group: Option<String>,

    /// Only those of this event type.
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
}

impl From<LetterArgs> for LetterFilter {
    fn from(LetterArgs { group, event_type }: LetterArgs) -> Self {
        Self { group, event_type }
    }
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print every setting with the place it was written; secrets are masked.
    Show,
    /// Say whether the settings can be used.
    Check,
    /// Print the defaults, with every setting explained.
    Defaults,
}

/// Why a command failed.
#[derive(Debug, Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("--demo signs in without passwords; set `auth.dev_login` to true, or leave out --demo")]
    DemoWithoutSignIn,
    #[error("this server lost its node number to another one; the log says more")]
    NodeNumberLost,
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Jobs(#[from] JobsError),
    #[error(transparent)]
    DeadLetter(#[from] DeadLetterError),
    #[error("job {} {}{}", .0.job, .0.state, .0.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default())]
    Run(Box<Run>),
    #[error(transparent)]
    Reconciliation(#[from] ReconciliationError),
    #[error("could not compare {0}")]
    NotCompared(String),
    #[error("there are {0} differences; `tombola reconcile --apply` does what is proposed")]
    Differences(usize),
    #[error("the password on standard input cannot be used: {0}")]
    Password(#[from] InvalidPassword),
    #[error("cannot write {}: {source}", file.display())]
    File { file: PathBuf, source: std::io::Error },
    #[error("cannot read or write: {0}")]
    Output(#[from] std::io::Error),
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_)
            | Self::Password(_)
            | Self::Jobs(JobsError::NoSuchJob { .. } | JobsError::Params(_))
            | Self::Telemetry(TelemetryError::Level(_) | TelemetryError::Exporter(_)) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }
}

/// Does what the process's arguments ask for.
pub fn run() -> ExitCode {
    let (command, file) = Cli::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    match command.run(file) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has seen enough.
        Err(Failure::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "tombola: {failure}");
            failure.exit_code()
        }
    }
}

impl Cli {
    /// The command that `line` asks for, and the file with settings. The flags of `serve` may stand before it, or
    /// without it, but with no other command.
    fn read<T>(line: impl IntoIterator<Item = T>) -> Result<(Command, Option<PathBuf>), clap::Error>
    where
        T: Into<OsString> + Clone,
    {
        let Self { config, serve, command } = Self::try_parse_from(line)?;
        match (command, serve.first()) {
            (None, _) => Ok((Command::Serve(serve), config)),
            (Some(Command::Serve(args)), _) => Ok((Command::Serve(args.or(serve)), config)),
            (Some(command), None) => Ok((command, config)),
            (Some(_), Some(flag)) => Err(Self::command().error(
                ErrorKind::ArgumentConflict,
                format!(
                    "'{flag}' is for `tombola serve`; other commands take settings from --config and the environment"
                ),
            )),
        }
    }
}

impl Command {
    fn run(self, file: Option<PathBuf>) -> Result<(), Failure> {
        let sources = Sources { file, ..Sources::from_environment() };
        match self {
            Self::Serve(args) => serve(&Sources { flags: args.settings(), ..sources }.load()?, args.demo),
            Self::Migrate => {
                let config = sources.load()?.config;
                with_telemetry(&config, async { Ok(app::migrate(&config).await?) })
            }
            Self::User(UserCommand::Add { name, roles, password_stdin }) => {
                let password = if password_stdin { Some(read_password()?) } else { None };
                let config = sources.load()?.config;
                beside_the_server(&config, async |ground| {
                    let (_, identity) = ground.identity(&config).await?;
                    add_user(&identity, name, roles.into_iter().collect(), password).await
                })
            }
            Self::Token(args) => {
                let config = sources.load()?.config;
                let ttl = args.ttl_s.map_or(config.auth.token_ttl, Duration::from_secs);
                beside_the_server(&config, async |ground| {
                    let (_, identity) = ground.identity(&config).await?;
                    let tokens = identity.mint_customers(args.count, ttl);
                    write_tokens(tokens, &args.out).await
                })
            }
            Self::Reconcile { apply } => with_modules(&sources.load()?, async |ground, modules| {
                reconcile(&modules.reconciliation(ground), apply).await
            }),
            Self::Job(command) => with_modules(&sources.load()?, async |ground, modules| {
                command.run(&modules.jobs(ground)).await
            }),
            Self::DeadLetter(command) => with_modules(&sources.load()?, async |ground, modules| {
                command.run(&modules.dead_letters(ground), &modules.jobs(ground)).await
            }),
            Self::Config(command) => command.run(sources),
            Self::Openapi => {
                let document = crate::http::document().to_pretty_json().map_err(std::io::Error::from)?;
                Ok(writeln!(std::io::stdout(), "{document}")?)
            }
            Self::Asyncapi => {
                let document = crate::messaging::asyncapi::document();
                Ok(writeln!(std::io::stdout(), "{document:#}")?)
            }
            Self::Completions { shell } => Ok(complete(shell, &mut std::io::stdout())?),
        }
    }
}

impl ServeArgs {
    /// The first flag that is given.
    fn first(&self) -> Option<&'static str> {
        let Self { address, demo, roles, database_url } = self;
        let flags = [
            ("--address", address.is_some()),
            ("--demo", *demo),
            ("--role", roles.is_some()),
            ("--database-url", database_url.is_some()),
        ];
        flags.into_iter().find_map(|(flag, given)| given.then_some(flag))
    }

    /// These flags, and of `others` those that are not among them.
    fn or(self, others: Self) -> Self {
        Self {
            address: self.address.or(others.address),
            demo: self.demo || others.demo,
            roles: self.roles.or(others.roles),
            database_url: self.database_url.or(others.database_url),
        }
    }

    fn settings(&self) -> Vec<(&'static str, &'static str, String)> {
        let address = self.address.map(|address| ("http.address", "flag --address", address.to_string()));
        let database = self.database_url.clone().map(|url| ("database.url", "flag --database-url", url));
        let roles = self.roles.clone().map(|roles| ("roles", "flag --role", roles));
        address.into_iter().chain(database).chain(roles).collect()
    }
}

impl JobCommand {
    async fn run(self, jobs: &JobService) -> Result<(), Failure> {
        match self {
            Self::List => Ok(list_jobs(&jobs.list().await?, &mut std::io::stdout())?),
            Self::Run { name, params, wait_s } => {
                run_job(jobs, &name, params, Duration::from_secs(wait_s)).await
            }
        }
    }
}

impl DeadLetterCommand {
    async fn run(self, letters: &DeadLetters, jobs: &JobService) -> Result<(), Failure> {
        match self {
            Self::List { filter, state } => list_letters(letters, filter.into(), state).await,
            Self::Replay { id: Some(id), .. } => {
                let Answered::Fresh(letter) = letters.replay(id, None).await? else { return Ok(()) };
                let DeadLetter { group, .. } = letter;
                Ok(writeln!(std::io::stdout(), "Group {group} tries dead letter {id} again.")?)
            }
            Self::Replay { id: None, filter, wait_s, .. } => {
                let params = Some(LetterFilter::from(filter).params());
                run_job(jobs, DEAD_LETTER_REPLAY, params, Duration::from_secs(wait_s)).await
            }
        }
    }
}

impl ConfigCommand {
    fn run(self, sources: Sources) -> Result<(), Failure> {
        let load = || -> Result<Loaded, ConfigError> { sources.load() };
        let text = match self {
            Self::Show => load()?.show()?,
            Self::Check => load().map(|_| "The settings can be used.\n".to_owned())?,
            Self::Defaults => crate::config::DEFAULTS.to_owned(),
        };
        Ok(std::io::stdout().write_all(text.as_bytes())?)
    }
}

/// Runs `work` on the database, whether or not a server uses it at the same time.
fn beside_the_server(
    config: &Config,
    work: impl AsyncFnOnce(&Ground) -> Result<(), Failure>,
) -> Result<(), Failure> {
    with_telemetry(config, async {
        let ground = Ground::for_command(config).await?;
        let done = work(&ground).await;
        ground.close().await;
        done
    })
}

/// Runs `work` as [`beside_the_server`], with what the server is made of.
fn with_modules(
    loaded: &Loaded,
    work: impl AsyncFnOnce(&Ground, Modules) -> Result<(), Failure>,
) -> Result<(), Failure> {
    beside_the_server(&loaded.config, async |ground| {
        let modules = app::modules_for_command(ground, &loaded.config).await;
        work(ground, modules.map_err(|error| located(loaded, error))?).await
    })
}

/// A setting that is refused only now is told of as if it had been refused at once.
fn located(loaded: &Loaded, error: StartError) -> Failure {
    match error {
        StartError::Setting(InvalidSetting { key, problem }) => loaded.refuse(key, problem).into(),
        other => other.into(),
    }
}

/// Runs `work` in an actix system between the start and the last flush of logs and traces.
fn with_telemetry(config: &Config, work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let telemetry = Telemetry::install(&config.log, &config.telemetry)?;
    let done = actix_web::rt::System::new().block_on(work);
    telemetry.flush();
    done
}

fn json(text: &str) -> Result<serde_json::Value, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn letter_state(text: &str) -> Result<LetterState, String> {
    one_of(text, "states", LetterState::ALL, LetterState::word)
}

fn role(text: &str) -> Result<Role, String> {
    one_of(text, "roles", Role::ALL, Role::word)
}

/// The one of `all` that `text` is the word of.
fn one_of<T: Copy>(text: &str, what: &str, all: &[T], word: fn(T) -> &'static str) -> Result<T, String> {
    let known = || all.iter().copied().map(word).collect::<Vec<_>>().join(", ");
    let found = all.iter().copied().find(|one| word(*one) == text);
    found.ok_or_else(|| format!("the {what} are {}", known()))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn read(line: &str) -> Result<(Command, Option<PathBuf>), clap::Error> {
        Cli::read(line.split(' '))
    }

    #[test]
    fn every_example_of_the_help_is_understood() {
        Cli::command().debug_assert();
        let lines = HELP.lines().skip_while(|line| *line != "Examples:").skip(1);
        let examples = lines.take_while(|line| !line.is_empty()).map(|line| line.trim().split("  ").next());
        let examples: Vec<&str> = examples.map(Option::unwrap).collect();
        assert!(examples.len() > 4, "{examples:?}");
        for example in examples {
            let from = example.find("tombola").unwrap();
            read(&example[from..]).unwrap_or_else(|error| panic!("{example}: {error}"));
        }
    }

    #[rstest]
    #[case("tombola --config x config show")]
    #[case("tombola config --config x show")]
    #[case("tombola config show --config x")]
    #[case("tombola --config x migrate")]
    #[case("tombola --config x serve")]
    #[case("tombola serve --config x")]
    #[case("tombola --config x")]
    fn the_file_with_settings_is_named_anywhere(#[case] line: &str) {
        let (_, file) = read(line).unwrap();
        assert_eq!(file, Some("x".into()));
    }

    #[rstest]
    #[case("tombola --address 127.0.0.1:1 --demo --role jobs")]
    #[case("tombola --address 127.0.0.1:1 --demo --role jobs serve")]
    #[case("tombola serve --address 127.0.0.1:1 --demo --role jobs")]
    #[case("tombola --address 127.0.0.1:2 --demo serve --address 127.0.0.1:1 --role jobs")]
    fn flags_of_the_server_stand_on_either_side(#[case] line: &str) {
        let Ok((Command::Serve(args), None)) = read(line) else { panic!("{line}") };
        assert!(args.demo);
        assert_eq!(args.address, Some("127.0.0.1:1".parse().unwrap()));
        assert_eq!(args.roles.as_deref(), Some("jobs"));
    }

    #[rstest]
    #[case("tombola token --count 1 --out x --ttl-s 0", "0 is not in 1..=31536000")]
    #[case("tombola token --count 1 --out x --ttl-s 31536001", "31536001 is not in")]
    #[case("tombola --address localhost:80", "as in \"127.0.0.1:8080\"")]
    fn what_is_wrong_is_refused_with_what_is_right(#[case] line: &str, #[case] problem: &str) {
        let error = read(line).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }

    #[rstest]
    #[case("tombola --address 127.0.0.1:1 migrate", "--address")]
    #[case("tombola --demo config show", "--demo")]
    #[case("tombola --role http job list", "--role")]
    #[case("tombola --database-url sqlite://x reconcile", "--database-url")]
    fn flags_of_the_server_are_refused_elsewhere(#[case] line: &str, #[case] flag: &str) {
        let error = read(line).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let error = error.to_string();
        assert!(error.contains(&format!("'{flag}' is for `tombola serve`")), "{error}");
    }
}
