//! Tests of what is read, refused and shown.

use std::collections::BTreeSet;
use std::path::PathBuf;

use rstest::rstest;
use secrecy::ExposeSecret;

use super::Config;
use super::layers::{DEFAULTS, PREFIX, Sources, known_keys};

fn environment(variables: &[(&str, &str)]) -> Sources {
    let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Sources { environment: environment.collect(), ..Sources::default() }
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shop.toml");
    std::fs::write(&file, text).unwrap();
    (directory, file)
}

/// Every key of the struct is in `default.toml`, set or as a comment, under a comment that names its variable.
#[test]
fn the_defaults_explain_every_key() {
    let known = known_keys().unwrap();
    let mut section = String::new();
    let mut explained = BTreeSet::new();
    for paragraph in DEFAULTS.split("\n\n").skip(1) {
        let mut comment = String::new();
        for line in paragraph.lines() {
            if let Some(name) = line.strip_prefix('[') {
                section = format!("{}.", name.trim_end_matches(']'));
                continue;
            }
            let key =
                line.trim_start_matches("# ").split_once(" = ").map(|(name, _)| format!("{section}{name}"));
            match key.filter(|key| known.contains(key)) {
                Some(key) => {
                    let variable = format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"));
                    assert!(comment.starts_with(&format!("# {variable}")), "{key}: {comment}");
                    explained.insert(key);
                }
                None => comment.push_str(line),
            }
        }
    }
    assert_eq!(explained, known);
}

#[test]
fn later_layers_win_and_show_where_each_setting_was_written() {
    let (_directory, file) = file("[http]\nworkers = 3\n\n[stock]\nmax_batch = 64\nmax_waiting = 7\n");
    let loaded = Sources {
        file: Some(file.clone()),
        flags: vec![("http.address", "flag --address", "127.0.0.1:9".to_owned())],
        ..environment(&[
            ("TOMBOLA__STOCK__MAX_BATCH", "32"),
            ("TOMBOLA__HTTP__ADDRESS", "127.0.0.1:8"),
            ("TOMBOLA__HTTP__CORS_ORIGINS", "https://a.example, https://b.example"),
            ("TOMBOLA__HTTP__TRUSTED_PROXIES", "10.0.0.0/8,::1"),
            ("RUST_LOG", "debug"),
            ("OTEL_SERVICE_NAME", ""),
            ("PATH", "/bin"),
        ])
    };
    let loaded = loaded.load().unwrap();
    let Config { http, stock, log, telemetry, .. } = &loaded.config;
    assert_eq!((http.workers, stock.max_batch, stock.max_waiting), (3, 32, 7));
    assert_eq!(http.address.port(), 9);
    assert_eq!(http.cors_origins, ["https://a.example", "https://b.example"]);
    assert_eq!(http.trusted_proxies, ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
    assert_eq!((log.level.as_str(), telemetry.service_name.as_str()), ("debug", "tombola"));

    let shown = loaded.show().unwrap();
    for line in [
        format!("http.workers = 3 # {} line 2", file.display()),
        format!("stock.max_waiting = 7 # {} line 6", file.display()),
        "http.address = \"127.0.0.1:9\" # flag --address".to_owned(),
        "stock.max_batch = 32 # environment variable TOMBOLA__STOCK__MAX_BATCH".to_owned(),
        "shop.currency = \"CNY\" # default".to_owned(),
        "# auth.secret is not set".to_owned(),
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line}\n{shown}");
    }
    toml::from_str::<toml::Table>(&shown).unwrap();
}

#[rstest]
#[case::unknown(
    "TOMBOLA__HTTP__ADRESS",
    "1",
    "no setting `http.adress`",
    "[http] has address, body_timeout_ms"
)]
#[case::unknown_section(
    "TOMBOLA__HTPP__WORKERS",
    "1",
    "no setting `htpp.workers`",
    "sections are auth, database"
)]
#[case::unknown_outside("TOMBOLA__BUSS", "1", "no setting `buss`", "bus, bus_file, roles, shared_state")]
#[case::section("TOMBOLA__HTTP", "1", "`http`", "is a section")]
#[case::number("TOMBOLA__HTTP__WORKERS", "many", "`http.workers`", "\"many\" is not an integer")]
#[case::negative("TOMBOLA__HTTP__WORKERS", "-1", "`http.workers`", "\"-1\" is not")]
#[case::time("TOMBOLA__HTTP__BODY_TIMEOUT_MS", "1.5", "`http.body_timeout_ms`", "\"1.5\" is not an integer")]
#[case::boolean("TOMBOLA__AUTH__DEV_LOGIN", "perhaps", "`auth.dev_login`", "\"perhaps\" is not a boolean")]
#[case::address("TOMBOLA__HTTP__ADDRESS", "localhost:8080", "`http.address`", "as in \"127.0.0.1:8080\"")]
#[case::no_address("TOMBOLA__HTTP__ADDRESS", "", "`http.address`", "as in \"127.0.0.1:8080\"")]
#[case::workers("TOMBOLA__HTTP__WORKERS", "513", "`http.workers`", "must be at most 512")]
#[case::origin("TOMBOLA__HTTP__CORS_ORIGINS", "shop.example", "`http.cors_origins`", "is no origin")]
#[case::origin_with_path(
    "TOMBOLA__HTTP__CORS_ORIGINS",
    "*,https://a.example/",
    "`http.cors_origins`",
    "is no origin"
)]
#[case::collector("TOMBOLA__TELEMETRY__OTLP_ENDPOINT", "nope", "`telemetry.otlp_endpoint`", "is no URL")]
#[case::no_collector(
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "ftp://a",
    "`telemetry.otlp_endpoint`",
    "must begin with"
)]
#[case::collector_login(
    "TOMBOLA__TELEMETRY__OTLP_ENDPOINT",
    "http://ann:0123456789@127.0.0.1:4318",
    "`telemetry.otlp_endpoint`",
    "must not have a user or a password"
)]
#[case::ttl("TOMBOLA__AUTH__TOKEN_TTL_S", "99999999999999999", "`auth.token_ttl_s`", "at most 31536000")]
#[case::no_ttl("TOMBOLA__AUTH__TOKEN_TTL_S", "0", "`auth.token_ttl_s`", "more than 0")]
#[case::drain("TOMBOLA__HTTP__DRAIN_DELAY_S", "3601", "`http.drain_delay_s`", "at most 3600")]
#[case::patience("TOMBOLA__HTTP__BODY_TIMEOUT_MS", "3600001", "`http.body_timeout_ms`", "at most 3600000")]
#[case::long_delay(
    "TOMBOLA__MESSAGING__RETRY_DELAYS_MS",
    "1,2592000001",
    "`messaging.retry_delays_ms`",
    "at most 2592000000"
)]
#[case::no_delay("TOMBOLA__MESSAGING__RETRY_DELAYS_MS", "1,0", "`messaging.retry_delays_ms`", "more than 0")]
#[case::secret_file("TOMBOLA__AUTH__SECRET_FILE", "/nowhere", "`auth.secret_file`", "cannot read /nowhere")]
#[case::proxy("TOMBOLA__HTTP__TRUSTED_PROXIES", "::1,x", "`http.trusted_proxies`", "\"x\" is neither")]
#[case::bus("TOMBOLA__BUS", "kafka://localhost", "`bus`", "is neither \"embedded\" nor the URL")]
#[case::role("TOMBOLA__ROLES", "http,cook", "`roles`", "the roles are http, relay")]
#[case::delays("TOMBOLA__MESSAGING__RETRY_DELAYS_MS", "1,x", "`messaging.retry_delays_ms`", "\"x\" is not")]
#[case::shared("TOMBOLA__SHARED_STATE", "redis://localhost", "`shared_state`", "only has \"embedded\"")]
#[case::database("TOMBOLA__DATABASE__URL", "oracle://x", "`database.url`", "sqlite://")]
#[case::deadline("TOMBOLA__DATABASE__DEADLINE_MS", "10", "`database.statement_timeout_ms`", "less than")]
#[case::currency("TOMBOLA__SHOP__CURRENCY", "yuan", "`shop.currency`", "three capital letters")]
#[case::secret("TOMBOLA__AUTH__SECRET", "short", "`auth.secret`", "at least 32 bytes")]
#[case::orphans(
    "TOMBOLA__AUTH__PREVIOUS_SECRETS",
    "0123456789012345678901234567890123",
    "`auth.previous_secrets`",
    "needs auth.secret"
)]
#[case::level("TOMBOLA__LOG__LEVEL", "a=b=c", "`log.level`", "error parsing level")]
#[case::format("TOMBOLA__LOG__FORMAT", "xml", "`log.format`", "neither")]
#[case::schedule(
    "TOMBOLA__JOBS__SCHEDULES__LOG_TRIMMING",
    "61 * * * *",
    "`jobs.schedules.log_trimming`",
    "nor a cron schedule"
)]
#[case::no_job(
    "TOMBOLA__JOBS__SCHEDULES__LUNCH",
    "@daily",
    "no setting",
    "[jobs.schedules] has activity_states"
)]
#[case::batch("TOMBOLA__STOCK__MAX_BATCH", "0", "`stock.max_batch`", "at least 1")]
fn what_is_wrong_is_named_with_its_place(
    #[case] variable: &str,
    #[case] value: &str,
    #[case] key: &str,
    #[case] problem: &str,
) {
    let error = environment(&[(variable, value)]).load().unwrap_err().to_string();
    assert!(error.contains(key) && error.contains(problem), "{error}");
    if !error.contains("database.statement_timeout_ms") {
        assert!(error.contains(&format!("environment variable {variable}")), "{error}");
    }
    assert!(!error.contains("0123456789"), "{error}");
}

#[rstest]
#[case("[http]\n\nworkers = \"x\"\n", "line 3")]
#[case("bus = \"embedded\"\nbuss = 1\n", "line 2")]
#[case("http = 1\n", "line 1")]
#[case("[shop\n", "not valid TOML")]
#[case("[auth]\nsecret = \"unterminatedLEAK\n", "(line 2, column ")]
fn a_file_is_blamed_with_its_line(#[case] text: &str, #[case] place: &str) {
    let (_directory, file) = file(text);
    let error = Sources { file: Some(file.clone()), ..Sources::default() }.load().unwrap_err().to_string();
    assert!(error.contains(place) && error.contains("shop.toml"), "{error}");
    assert!(!error.contains("LEAK") && !error.contains('\n'), "{error}");
}

#[test]
fn secrets_come_from_files_and_are_never_shown() {
    let secret = "a-secret-of-more-than-thirty-two-bytes";
    let (_directory, secret_file) = file(&format!("{secret}\n"));
    let path = secret_file.to_str().unwrap();
    let loaded = environment(&[
        ("TOMBOLA__AUTH__SECRET_FILE", path),
        ("TOMBOLA__DATABASE__URL", "postgres://ann:pass@word@db.example/shop"),
    ]);
    let loaded = loaded.load().unwrap();
    assert_eq!(loaded.config.auth.secret.as_ref().unwrap().expose_secret(), secret);
    let shown = loaded.show().unwrap() + &format!("{loaded:?}");
    assert!(!shown.contains(secret) && !shown.contains("word@") && !shown.contains("pass@"), "{shown}");
    assert!(shown.contains("postgres://ann:***@db.example/shop"), "{shown}");

    let urls = environment(&[
        ("TOMBOLA__BUS", "amqp://ann:mqpass@mq/%2f"),
        ("TOMBOLA__DATABASE__URL", "postgres://ann@db.example/shop?password=dbpass"),
        ("TOMBOLA__WECHAT__BASE_URL", "http://ann:wepass@127.0.0.1"),
        ("TOMBOLA__PAYMENT__ALIPAY__BASE_URL", "http://ann:alpass@127.0.0.1"),
    ]);
    let shown = urls.load().unwrap().show().unwrap();
    assert!(!shown.contains("pass@") && !shown.contains("dbpass"), "{shown}");
    assert!(shown.contains("\"http://ann:***@127.0.0.1\""), "{shown}");

    let both = environment(&[("TOMBOLA__AUTH__SECRET_FILE", path), ("TOMBOLA__AUTH__SECRET", secret)]);
    let error = both.load().unwrap_err().to_string();
    assert!(error.contains("set only one") && !error.contains(secret), "{error}");
}

#[rstest]
#[case("sqlite://data/x.db", "127.0.0.1:1", None, true)]
#[case("sqlite://data/x.db", "[::1]:1", None, true)]
#[case("sqlite://data/x.db", "0.0.0.0:1", None, false)]
#[case("postgres://db/x", "127.0.0.1:1", None, false)]
#[case("postgres://db/x", "0.0.0.0:1", Some("true"), true)]
#[case("sqlite://data/x.db", "127.0.0.1:1", Some("false"), false)]
fn anyone_may_sign_in_only_on_ones_own_machine(
    #[case] url: &str,
    #[case] address: &str,
    #[case] asked: Option<&str>,
    #[case] allowed: bool,
) {
    let mut variables = vec![("TOMBOLA__DATABASE__URL", url), ("TOMBOLA__HTTP__ADDRESS", address)];
    variables.extend(asked.map(|asked| ("TOMBOLA__AUTH__DEV_LOGIN", asked)));
    assert_eq!(environment(&variables).load().unwrap().config.dev_login(), allowed);
}
