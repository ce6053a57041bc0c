//! URLs as they can be used, and as they may be shown: without what opens doors.

use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use serde::Serializer;

use crate::ports::wire::check_url;

/// What is wrong with a web site's origin. Browsers write it in one way, and it is compared letter by letter.
pub(super) fn not_an_origin(text: &str) -> Option<String> {
    let is_origin = |url: Url| {
        let bare = url.username().is_empty() && url.password().is_none() && matches!(url.path(), "" | "/");
        let written = url.as_str();
        url.has_host() && bare && written.strip_suffix('/').unwrap_or(written) == text
    };
    let known = text == "*" || Url::parse(text).is_ok_and(is_origin);
    (!known)
        .then(|| format!("{text:?} is no origin: scheme, host and no path, as in \"https://shop.example\""))
}

/// What is wrong with the address of who collects traces.
pub(super) fn not_a_collector(text: &str) -> Option<String> {
    let uri = || text.parse::<actix_web::http::Uri>().err().map(|error| format!("is no URL: {error}"));
    let has_login = |url: Url| !url.username().is_empty() || url.password().is_some();
    // They would not be sent, and be logged with each failure.
    let login = || {
        let problem = "must not have a user or a password; OTEL_EXPORTER_OTLP_HEADERS can hold them";
        Url::parse(text).is_ok_and(has_login).then(|| problem.to_owned())
    };
    check_url(text).err().or_else(uri).or_else(login)
}

/// Parameters that say where and how, and no secret. The value of any other one is masked.
const HARMLESS: &[&str] = &[
    "application_name",
    "channel_max",
    "charset",
    "collation",
    "connection_timeout",
    "dbname",
    "frame_max",
    "heartbeat",
    "host",
    "hostaddr",
    "port",
    "socket",
    "ssl-ca",
    "ssl-mode",
    "sslmode",
    "sslrootcert",
    "user",
];

const MASK: &str = "***";

pub(super) fn secret_url<S: Serializer>(url: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    plain_url(url.expose_secret(), serializer)
}

pub(super) fn plain_url<S: Serializer>(url: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&without_secrets(url))
}

pub(super) fn optional_url<S: Serializer>(url: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    match url {
        Some(url) => plain_url(url, serializer),
        None => serializer.serialize_none(),
    }
}

/// `postgres://user:***@host/name?password=***`.
fn without_secrets(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return if url.contains(['@', '?']) { MASK.to_owned() } else { url.to_owned() };
    };
    // Parsers of web addresses skip slashes that are too many.
    let slashes = rest.len() - rest.trim_start_matches(['/', '\\']).len();
    let (slashes, rest) = rest.split_at(slashes);
    let (rest, fragment) = cut(rest, &['#']);
    let (rest, parameters) = cut(rest, &['?']);
    let (authority, path) = cut(rest, &['/']);
    let fragment = if fragment.is_empty() { "" } else { "#***" };
    format!(
        "{scheme}://{slashes}{}{path}{}{fragment}",
        without_password(authority),
        without_values(parameters)
    )
}

/// What comes before the first of `ends`, and the rest.
fn cut<'a>(text: &'a str, ends: &[char]) -> (&'a str, &'a str) {
    text.split_at(text.find(ends).unwrap_or(text.len()))
}

/// `user:***@host`.
fn without_password(authority: &str) -> String {
    let login = authority.rsplit_once('@');
    match login.and_then(|(login, host)| Some((login.split_once(':')?.0, host))) {
        Some((user, host)) => format!("{user}:{MASK}@{host}"),
        None => authority.to_owned(),
    }
}

/// `?sslmode=require&password=***`.
fn without_values(parameters: &str) -> String {
    let Some(parameters) = parameters.strip_prefix('?') else { return String::new() };
    let shown = parameters.split('&').map(|parameter| match parameter.split_once('=') {
        Some((name, _)) if HARMLESS.contains(&name) => parameter.to_owned(),
        Some((name, _)) => format!("{name}={MASK}"),
        None => MASK.to_owned(),
    });
    format!("?{}", shown.collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("*", true)]
    #[case("https://shop.example", true)]
    #[case("http://127.0.0.1:3000", true)]
    #[case("http://[::1]:3000", true)]
    #[case("capacitor://localhost", true)]
    #[case("shop.example", false)]
    #[case("https://", false)]
    #[case("https://shop.example/", false)]
    #[case("https://shop.example/app", false)]
    #[case("https://shop.example?x", false)]
    #[case("https://ann@shop.example", false)]
    #[case("https://shop.example:443", false)]
    #[case("https://Shop.example", false)]
    #[case("mailto:ann@shop.example", false)]
    #[case("null", false)]
    fn an_origin_is_written_as_browsers_write_it(#[case] text: &str, #[case] origin: bool) {
        assert_eq!(not_an_origin(text).is_none(), origin);
    }

    #[rstest]
    #[case("sqlite://data/tombola.db", "sqlite://data/tombola.db")]
    #[case("postgres://ann@db/shop", "postgres://ann@db/shop")]
    #[case("postgres://ann:pw@db:5432/shop", "postgres://ann:***@db:5432/shop")]
    #[case("postgres://ann:p@w@db/shop", "postgres://ann:***@db/shop")]
    #[case("postgres://ann:p\\w@db/shop", "postgres://ann:***@db/shop")]
    #[case(
        "postgres://ann@db/x?sslmode=require&password=pw",
        "postgres://ann@db/x?sslmode=require&password=***"
    )]
    #[case("postgres://db/x?password=p@w", "postgres://db/x?password=***")]
    #[case("postgres://db/x?pass%77ord=pw", "postgres://db/x?pass%77ord=***")]
    #[case("postgres:///x?user=ann&password=pw", "postgres:///x?user=ann&password=***")]
    #[case("postgres://ann:12?34@db/x", "postgres://ann:12?***")]
    #[case("postgres://ann:12#34@db/x", "postgres://ann:12#***")]
    #[case("postgres:ann:pw@db/x", "***")]
    #[case("mysql://ann:pw@db/shop?charset=utf8mb4", "mysql://ann:***@db/shop?charset=utf8mb4")]
    #[case("amqp://ann:pw@mq:5672/%2f?heartbeat=5", "amqp://ann:***@mq:5672/%2f?heartbeat=5")]
    #[case("http:///ann:pw@host/path", "http:///ann:***@host/path")]
    #[case("http://ann:@host", "http://ann:***@host")]
    fn a_url_is_shown_without_what_opens_doors(#[case] url: &str, #[case] shown: &str) {
        assert_eq!(without_secrets(url), shown);
    }
}
