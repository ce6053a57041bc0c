//! What every answer has in common, seen through a whole application.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use actix_web::body::BoxBody;
use actix_web::dev::{Service, ServiceResponse};
use actix_web::http::{Method, StatusCode};
use actix_web::test::{self, TestRequest};
use actix_web::web::{self, Data};
use actix_web::{Error, HttpResponse};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::Value;
use utoipa_actix_web::service_config::ServiceConfig;

use super::*;
use crate::error::{ApiError, Code};
use crate::http::openapi::operations;
use crate::http::{ApiResult, Check, Operator, PROBLEM_JSON, SignIn, Staff};
use crate::identity::{Caller, Role, Roles, SigningSecret, Tokens};
use crate::ids::{Ids, UserId};
use crate::ports::clock::{SharedClock, SystemClock};

fn tokens() -> Tokens {
    let clock: SharedClock = Arc::new(SystemClock);
    let ids = Ids::new(1, &SystemClock, Duration::from_secs(60));
    Tokens::new(&SigningSecret::new("s".repeat(32).into()).unwrap(), &[], clock, ids)
}

fn token(tokens: &Tokens, user: i64, role: Role) -> String {
    let issued = tokens.issue(UserId(user), Roles::from(role), Duration::from_secs(60)).unwrap();
    format!("Bearer {}", issued.token)
}

async fn broken() -> HttpResponse {
    panic!("a bug")
}

/// Handlers for these tests, beside the real ones.
#[expect(clippy::disallowed_methods, reason = "these stay out of the document")]
fn probes(app: &mut ServiceConfig<'_>) {
    async fn refused() -> ApiResult<&'static str> {
        Err(ApiError::new(Code::SoldOut, "Gone"))
    }
    async fn overloaded() -> ApiResult<&'static str> {
        Err(ApiError { retry_after_s: Some(7), ..ApiError::new(Code::Overloaded, "Wait") })
    }
    async fn framework(_: web::Json<u8>) -> &'static str {
        "unreachable"
    }
    async fn whoami(caller: Caller) -> String {
        caller.user.to_string()
    }
    async fn operator(_: Operator) -> &'static str {
        "operator"
    }
    async fn staff(_: Staff) -> &'static str {
        "staff"
    }
    async fn sign_in(_: SignIn) -> &'static str {
        "in"
    }
    app.map(|app| {
        app.route("/test/refused", web::get().to(refused))
            .route("/test/overloaded", web::get().to(overloaded))
            .route("/test/broken", web::get().to(broken))
            .route("/test/framework", web::post().to(framework))
            .route("/test/whoami", web::get().to(whoami))
            .route("/test/operator", web::get().to(operator))
            .route("/test/staff", web::get().to(staff))
            .route("/test/sign-in", web::post().to(sign_in))
    });
}

async fn server(
    settings: &HttpSettings,
    readiness: Readiness,
    tokens: &Tokens,
) -> impl Service<actix_http::Request, Response = ServiceResponse<BoxBody>, Error = Error> + use<> {
    let metrics = PrometheusBuilder::new().build_recorder().handle();
    let tokens = tokens.clone();
    let common = Common::new(settings, readiness, metrics);
    test::init_service(app(&common, &move |app: &mut ServiceConfig<'_>| {
        probes(app);
        app.app_data(Data::new(tokens.clone()));
    }))
    .await
}

async fn ready_server(
    settings: &HttpSettings,
) -> impl Service<actix_http::Request, Response = ServiceResponse<BoxBody>, Error = Error> + use<> {
    server(settings, Readiness::new(Vec::new()), &tokens()).await
}

/// Status, headers that matter and body of an answer.
async fn ask(
    server: &impl Service<actix_http::Request, Response = ServiceResponse<BoxBody>, Error = Error>,
    request: TestRequest,
) -> (StatusCode, BTreeMap<String, String>, Vec<u8>) {
    let response = match server.call(request.to_request()).await {
        Ok(response) => response.into_parts().1,
        Err(error) => error.error_response(),
    };
    let status = response.status();
    let headers = response.headers().iter();
    let headers =
        headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    let body = actix_web::body::to_bytes(response.into_body()).await.unwrap_or_default();
    (status, headers, body.to_vec())
}

#[actix_web::test]
async fn every_refusal_is_a_problem() {
    let server = ready_server(&HttpSettings::default()).await;
    for (request, code, detail, (name, value)) in [
        (TestRequest::with_uri("/test/refused?q=1"), Code::SoldOut, "Gone", ("cache-control", "no-store")),
        (TestRequest::with_uri("/test/overloaded"), Code::Overloaded, "Wait", ("retry-after", "7")),
        (
            TestRequest::with_uri("/nowhere"),
            Code::NotFound,
            "nothing at this address",
            ("cache-control", "no-store"),
        ),
        (
            TestRequest::with_uri("/api/v1/nowhere"),
            Code::NotFound,
            "nothing at this address",
            ("cache-control", "no-store"),
        ),
        (
            TestRequest::with_uri("/docs/nowhere.js"),
            Code::NotFound,
            "no such thing",
            ("cache-control", "no-store"),
        ),
        (TestRequest::post().uri("/livez"), Code::MethodNotAllowed, "GET, HEAD", ("allow", "GET, HEAD")),
        (
            TestRequest::with_uri("/readyz?verbos"),
            Code::ValidationFailed,
            "verbos",
            ("cache-control", "no-store"),
        ),
        (
            TestRequest::with_uri("/test/whoami"),
            Code::Unauthenticated,
            "Bearer",
            ("www-authenticate", "Bearer"),
        ),
        (
            TestRequest::with_uri("/test/broken"),
            Code::InternalError,
            "unexpected",
            ("cache-control", "no-store"),
        ),
        (
            TestRequest::post().uri("/test/framework"),
            Code::MalformedRequest,
            "Content type",
            ("cache-control", "no-store"),
        ),
    ] {
        let (status, headers, body) = ask(&server, request).await;
        let problem: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(status, code.status(), "{problem}");
        assert_eq!(headers["content-type"], PROBLEM_JSON, "{problem}");
        assert_eq!(headers[name], value, "{problem}");
        assert_eq!(problem["code"], code.word());
        assert_eq!(problem["status"], code.status());
        assert_eq!(problem["title"], code.title());
        assert_eq!(problem["type"], format!("/docs/problems#{code}"));
        assert_eq!(problem["retryable"], code.retryable());
        assert_eq!(problem["request_id"], headers["x-request-id"]);
        assert!(problem["detail"].as_str().unwrap().contains(detail), "{problem}");
        assert!(!problem["instance"].as_str().unwrap().contains('?'), "{problem}");
        assert_eq!(problem.get("errors").is_some(), code == Code::ValidationFailed, "{problem}");
    }
}

#[actix_web::test]
async fn every_answer_names_its_request() {
    let server = ready_server(&HttpSettings::default()).await;
    let long = "x".repeat(65);
    let mut seen = std::collections::HashSet::new();
    for (sent, honoured) in [
        (Some("shop_7-A"), true),
        (None, false),
        (None, false),
        (Some("a b"), false),
        (Some(&long), false),
        (Some(""), false),
    ] {
        let mut request = TestRequest::with_uri("/livez");
        if let Some(sent) = sent {
            request = request.insert_header(("X-Request-Id", sent));
        }
        let (_, headers, _) = ask(&server, request).await;
        let id = headers["x-request-id"].clone();
        assert_eq!(sent == Some(id.as_str()), honoured);
        assert!(seen.insert(id), "a new name each");
    }
}

#[actix_web::test]
async fn roles_open_the_doors_they_should() {
    let tokens = tokens();
    let server = server(&HttpSettings::default(), Readiness::new(Vec::new()), &tokens).await;
    for (role, path, status) in [
        (Role::Customer, "/test/whoami", 200),
        (Role::Customer, "/test/staff", 403),
        (Role::Customer, "/test/operator", 403),
        (Role::Viewer, "/test/staff", 200),
        (Role::Viewer, "/test/operator", 403),
        (Role::Operator, "/test/staff", 200),
        (Role::Operator, "/test/operator", 200),
    ] {
        let request = TestRequest::with_uri(path).insert_header(("Authorization", token(&tokens, 7, role)));
        assert_eq!(ask(&server, request).await.0, status, "{role:?} {path}");
    }
    for forged in ["Bearer x.y.z", "Bearer ", "Basic eDp5", "Bearer"] {
        let request = TestRequest::with_uri("/test/whoami").insert_header(("Authorization", forged));
        assert_eq!(ask(&server, request).await.0, 401, "{forged}");
    }
}

#[actix_web::test]
async fn a_user_may_ask_only_so_often() {
    let rate_limit = RateLimitSettings { per_user_per_s: 2, sign_in_per_address_per_s: 0 };
    let tokens = tokens();
    let settings = HttpSettings { rate_limit, ..HttpSettings::default() };
    let server = server(&settings, Readiness::new(Vec::new()), &tokens).await;
    let asked = async |user| {
        let request = TestRequest::with_uri("/test/whoami")
            .insert_header(("Authorization", token(&tokens, user, Role::Customer)));
        ask(&server, request).await
    };
    let mut left = Vec::new();
    for _ in 0..3 {
        let (status, headers, _) = asked(1).await;
        assert_eq!(headers["ratelimit-policy"], "\"user\";q=2;w=1");
        assert_eq!(headers.contains_key("retry-after"), status == 429);
        left.push((status.as_u16(), headers["ratelimit"].clone()));
    }
    let expected = [(200, 1), (200, 0), (429, 0)].map(|(status, r)| (status, format!("\"user\";r={r};t=1")));
    assert_eq!(left, expected);
    assert_eq!(asked(2).await.0, 200, "another user has a bucket of their own");
}

#[actix_web::test]
async fn an_address_may_try_to_sign_in_only_so_often() {
    let settings = HttpSettings {
        rate_limit: RateLimitSettings { per_user_per_s: 0, sign_in_per_address_per_s: 2 },
        trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
        ..HttpSettings::default()
    };
    let server = ready_server(&settings).await;
    let from = async |peer: &str, forwarded: &str| {
        let mut request =
            TestRequest::post().uri("/test/sign-in").peer_addr(format!("{peer}:1").parse().unwrap());
        if !forwarded.is_empty() {
            request = request.insert_header(("X-Forwarded-For", forwarded));
        }
        ask(&server, request).await.0.as_u16()
    };
    assert_eq!([from("192.0.2.1", "").await, from("192.0.2.1", "192.0.2.9").await], [200, 200]);
    assert_eq!(from("192.0.2.1", "192.0.2.8").await, 429, "only proxies are believed");
    assert_eq!(
        from("10.0.0.1", "6.6.6.6, 192.0.2.1").await,
        429,
        "what the proxy saw, not what the client says"
    );
    assert_eq!(from("10.0.0.1", "192.0.2.1, 192.0.2.2, 10.0.0.2").await, 200, "through two proxies");
    assert_eq!([from("[2001:db8::1]", "").await, from("[2001:db8::2]", "").await], [200, 200]);
    assert_eq!(from("[2001:db8::3]", "").await, 429, "one customer's /64");
}

#[actix_web::test]
async fn readiness_follows_its_checks_and_ends_with_the_server() {
    let up = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let seen = up.clone();
    let check: Check = Box::new(move || {
        let up = seen.load(std::sync::atomic::Ordering::Relaxed);
        Box::pin(async move { if up { Ok(()) } else { Err("secret cause".to_owned()) } })
    });
    let readiness = Readiness::new(vec![("database", check)]);
    let server = server(&HttpSettings::default(), readiness.clone(), &tokens()).await;
    let asked = async |uri| {
        let (status, _, body) = ask(&server, TestRequest::with_uri(uri)).await;
        (status.as_u16(), String::from_utf8(body).unwrap())
    };
    assert_eq!(asked("/readyz").await, (200, r#"{"status":"ready"}"#.to_owned()));
    let verbose = r#"{"status":"ready","checks":[{"name":"database","ok":true}]}"#;
    assert_eq!(asked("/readyz?verbose").await, (200, verbose.to_owned()));

    up.store(false, std::sync::atomic::Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(550)).await;
    let verbose = r#"{"status":"not_ready","checks":[{"name":"database","ok":false}]}"#;
    assert_eq!(asked("/readyz?verbose").await, (503, verbose.to_owned()));

    readiness.stop();
    assert_eq!(asked("/readyz").await, (503, r#"{"status":"stopping"}"#.to_owned()));
    assert_eq!(asked("/livez").await.0, 200);
}

#[actix_web::test]
async fn pages_of_configured_origins_may_call() {
    let settings =
        HttpSettings { cors_origins: vec!["https://shop.example".into()], ..HttpSettings::default() };
    let server = ready_server(&settings).await;
    for (origin, allowed) in [("https://shop.example", true), ("https://evil.example", false)] {
        let request = TestRequest::with_uri("/test/refused").insert_header(("Origin", origin));
        let (_, headers, _) = ask(&server, request).await;
        assert_eq!(headers.contains_key("access-control-allow-origin"), allowed, "{origin}");
    }
    let preflight = TestRequest::default()
        .method(Method::OPTIONS)
        .uri("/test/refused")
        .insert_header(("Origin", "https://shop.example"))
        .insert_header(("Access-Control-Request-Method", "POST"))
        .insert_header(("Access-Control-Request-Headers", "authorization,idempotency-key"));
    assert_eq!(ask(&server, preflight).await.0, 200);
}

#[actix_web::test]
async fn the_documentation_needs_no_network() {
    let server = ready_server(&HttpSettings::default()).await;
    for (path, status, holds) in [
        ("/docs", 307, ""),
        ("/docs/", 200, "swagger-ui"),
        ("/docs/swagger-initializer.js", 200, "/openapi.json"),
        ("/docs/problems", 200, "id=sold_out"),
        ("/openapi.json", 200, "\"openapi\":\"3.1.0\""),
        ("/metrics", 200, ""),
    ] {
        let (answered, _, body) = ask(&server, TestRequest::with_uri(path)).await;
        let body = String::from_utf8_lossy(&body);
        assert_eq!(answered, status, "{path}");
        assert!(body.contains(holds), "{path}: {body}");
        assert!(!body.contains("//cdn") && !body.contains("src=\"http"), "{path}");
    }
}

#[actix_web::test]
async fn what_is_documented_is_routed() {
    let server = ready_server(&HttpSettings::default()).await;
    let document = document();
    for (path, item) in &document.paths.paths {
        for (method, operation) in operations(item) {
            assert!(!path.contains("/admin/") || needs_token(operation), "{method} {path}");
            let uri = path.replace("{id}", "1").replace("{name}", "x");
            assert!(!uri.contains('{'), "{path}: a parameter is named id or name");
            let request = TestRequest::default().method(method.parse().unwrap()).uri(&uri);
            let (status, _, body) = ask(&server, request).await;
            let body = String::from_utf8_lossy(&body);
            assert!(status != 405 && !body.contains("nothing at this address"), "{method} {path}: {body}");
        }
    }
}

fn needs_token(operation: &utoipa::openapi::path::Operation) -> bool {
    operation.security.iter().flatten().any(|needs| *needs != Default::default())
}

/// Every handler's attribute in the sources stands for an operation in the document: nothing is left unmounted.
#[test]
fn what_has_a_route_is_documented() {
    let document = document();
    let mut documented = Vec::new();
    for (path, item) in &document.paths.paths {
        documented.extend(
            operations(item).map(|(method, _)| format!("{method} {}", path.trim_start_matches("/api/v1"))),
        );
    }
    let mut written = Vec::new();
    let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let source = std::fs::read_to_string(&path).unwrap();
            for line in source.lines() {
                for method in ["get", "post", "put", "patch", "delete"] {
                    if let Some(rest) = line.trim().strip_prefix(&format!("#[{method}(\"")) {
                        let route = rest.split('"').next().unwrap();
                        written.push(format!("{} {route}", method.to_uppercase()));
                    }
                }
            }
        }
    }
    documented.sort();
    written.sort();
    assert_eq!(written, documented);
}

/// A typo in a request must not pass as an absent option.
#[test]
fn no_request_body_takes_unknown_members() {
    let document = serde_json::to_value(document()).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let Some(body) = operation.get("requestBody") else { continue };
            let schema = &body["content"]["application/json"]["schema"];
            let alternatives = schema["oneOf"].as_array().cloned().unwrap_or_else(|| vec![schema.clone()]);
            for name in alternatives.iter().filter_map(|schema| schema["$ref"].as_str()) {
                let schema = document.pointer(name.trim_start_matches('#')).unwrap();
                // The variants of a tagged body are denied theirs by serde, which the document cannot say.
                let closed = schema["additionalProperties"] == false || schema.get("oneOf").is_some();
                assert!(closed, "{method} {path}: {name}");
            }
        }
    }
}

#[test]
fn every_tag_is_described_and_used() {
    let document = serde_json::to_value(document()).unwrap();
    let described = document["tags"].as_array().unwrap().iter().map(|tag| tag["name"].as_str().unwrap());
    let items = document["paths"].as_object().unwrap().values();
    let operations = items.flat_map(|item| item.as_object().unwrap().values());
    let used = operations.flat_map(|operation| operation["tags"].as_array().unwrap());
    let used: BTreeSet<_> = used.map(|tag| tag.as_str().unwrap()).collect();
    assert_eq!(described.collect::<BTreeSet<_>>(), used);
}

#[test]
fn every_code_is_in_the_document() {
    let document = serde_json::to_value(document()).unwrap();
    let listed = document["components"]["schemas"]["Code"]["enum"].as_array().unwrap();
    for code in Code::ALL {
        assert!(listed.iter().any(|listed| listed == code.word()), "{code}");
    }
}

/// What the framework does between the middleware and the wire.
#[actix_web::test]
async fn on_the_wire_head_has_no_body_and_a_panic_has_an_answer() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let settings = HttpSettings { address: "127.0.0.1:0".to_owned(), workers: 1, ..HttpSettings::default() };
    let metrics = PrometheusBuilder::new().build_recorder().handle();
    let listening = start(&settings, Readiness::new(Vec::new()), metrics, probes).unwrap();
    let address = listening.addresses[0];
    let (handle, server) = (listening.server.handle(), actix_web::rt::spawn(listening.server));
    let ask = async |request: &str| {
        let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let head = ask("HEAD /livez").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("content-length: 2\r\n"), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "{head}");
    let panicked = ask("GET /test/broken").await;
    assert!(
        panicked.starts_with("HTTP/1.1 500 ") && panicked.contains("\"code\":\"internal_error\""),
        "{panicked}"
    );
    handle.stop(true).await;
    server.await.unwrap().unwrap();
}
