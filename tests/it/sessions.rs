//! Who is calling, what they may do, and what they may see.

use std::io::Write;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::TimeDelta;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::lists::pages;
use crate::support::{Answer, Client, Offer, START, TestApp, stories};

stories!(
    a_session_begins_and_ends,
    a_user_logs_in_first_only_once,
    operators_log_in_with_a_password,
    dev_login_can_be_switched_off,
    a_bad_token_is_no_token,
    every_route_knows_its_callers,
    operators_find_users,
    what_others_hold_stays_hidden,
);

async fn a_session_begins_and_ends(app: &TestApp) {
    let (here, there) = (app.customer("alice").await, app.customer("alice").await);
    let me = here.get("/me").await.is(200);
    assert_eq!(
        me,
        json!({
            "id": here.user_id, "name": "alice", "roles": ["customer"], "balance_minor": 0, "points": 0, "currency": "CNY",
            "red_dots": {},
        })
    );
    assert_eq!(there.user_id, here.user_id);

    assert_eq!(here.delete("/sessions/current").await.is(204), Value::Null);
    here.get("/me").await.refused(401, "unauthenticated");
    here.delete("/sessions/current").await.refused(401, "unauthenticated");
    // The other session goes on; the ended one stays ended.
    there.get("/me").await.is(200);
    app.restart().await;
    here.get("/me").await.refused(401, "unauthenticated");
    there.get("/me").await.is(200);

    app.pass(TimeDelta::hours(49));
    there.get("/me").await.refused(401, "unauthenticated");
}

async fn a_user_logs_in_first_only_once(app: &TestApp) {
    let body = json!({"provider": "dev", "name": "alice", "roles": ["customer"]});
    let nobody = app.nobody();
    let logins = join_all((0..10).map(|_| nobody.post("/sessions", body.clone()))).await;
    let logins: Vec<Value> = logins.into_iter().map(|login| login.is(201)).collect();
    assert_eq!(logins.iter().filter(|login| login["first_login"] == true).count(), 1);
    assert!(logins.iter().all(|login| login["user"] == logins[0]["user"]));
    assert_eq!(app.events(logins[0]["user"]["id"].as_str().unwrap(), "user.first_login.v1").await.len(), 1);
}

async fn operators_log_in_with_a_password(app: &TestApp) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tombola"));
    command.args(["user", "add", "paula", "--role", "operator", "--password-stdin"]);
    command.env("TOMBOLA__DATABASE__URL", &app.database.url).stdin(Stdio::piped());
    let mut command = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    command.stdin.take().unwrap().write_all(b"correct horse battery\n").unwrap();
    let done = tokio::task::spawn_blocking(|| command.wait_with_output()).await.unwrap().unwrap();
    assert!(done.status.success(), "{done:?}");

    let log_in = async |name: &str, password: &str| {
        app.nobody()
            .post("/sessions", json!({"provider": "password", "name": name, "password": password}))
            .await
    };
    log_in("paula", "wrong horse").await.refused(401, "unauthenticated");
    log_in("nobody", "correct horse battery").await.refused(401, "unauthenticated");
    let session = log_in("paula", "correct horse battery").await.is(201);
    assert_eq!(session["user"]["roles"], json!(["operator"]));
    assert_eq!((&session["first_login"], &session["token_type"]), (&json!(true), &json!("Bearer")));
    let paula = app.nobody().bearing(session["access_token"].as_str().unwrap());
    paula.post("/admin/activities", Offer::of(1).body(START)).await.is(201);
}

async fn dev_login_can_be_switched_off(app: &TestApp) {
    let alice = app.customer("alice").await;
    app.restart_with(|config| config.auth.dev_login = Some(false)).await;
    let body = json!({"provider": "dev", "name": "alice", "roles": ["operator"]});
    app.nobody().post("/sessions", body).await.refused(403, "forbidden");
    alice.get("/me").await.is(200);
}

/// RELIABILITY, F43.
async fn a_bad_token_is_no_token(app: &TestApp) {
    let alice = app.customer("alice").await;
    let [head, claims, signature] = alice.token.split('.').collect::<Vec<_>>()[..] else {
        panic!("a JWT has three parts")
    };
    let decoded = |part: &str| -> Value {
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    };
    let encoded = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let with = |mut value: Value, member: &str, new: Value| {
        value[member] = new;
        encoded(&value)
    };
    let unsigned = with(decoded(head), "alg", json!("none"));
    let forever = with(decoded(claims), "exp", json!(i64::MAX));
    let wordy = with(decoded(claims), "exp", json!("4000000000"));
    let operator = with(decoded(claims), "roles", json!(["operator"]));
    let other_key = with(decoded(head), "kid", json!("0"));
    for token in [
        String::new(),
        "x".to_owned(),
        "..".to_owned(),
        format!("{head}.{claims}"),
        format!("{head}.{claims}."),
        format!("{head}.{claims}.{signature}x"),
        format!("{head}.{claims}.{}", signature.chars().rev().collect::<String>()),
        format!("{unsigned}.{claims}."),
        format!("{unsigned}.{claims}.{signature}"),
        format!("{head}.{forever}.{signature}"),
        format!("{head}.{wordy}.{signature}"),
        format!("{head}.{operator}.{signature}"),
        format!("{other_key}.{claims}.{signature}"),
        "a".repeat(8000),
    ] {
        let request =
            app.nobody().request(Method::GET, "/me").header("authorization", format!("Bearer {token}"));
        Answer::to(request).await.refused(401, "unauthenticated");
    }
    for value in ["", "Bearer", "Basic YWxpY2U6", &alice.token] {
        let request = app.nobody().request(Method::GET, "/me").header("authorization", value);
        Answer::to(request).await.refused(401, "unauthenticated");
    }
    // The scheme is not case-sensitive (RFC 9110).
    let request = app.nobody().request(Method::GET, "/me");
    Answer::to(request.header("authorization", format!("bearer {}", alice.token))).await.is(200);
}

/// Walks over the document, so that a new route is asked too.
async fn every_route_knows_its_callers(app: &TestApp) {
    let document = Answer::to(app.nobody().at_root(Method::GET, "/openapi.json")).await.is(200);
    let (nobody, alice, victor) = (app.nobody(), app.customer("alice").await, app.viewer().await);
    let (mut asked, mut of_staff) = (0, 0);
    for (path, operations) in document["paths"].as_object().unwrap() {
        let Some(path) = path.strip_prefix("/api/v1") else { continue };
        for (method, operation) in operations.as_object().unwrap() {
            if operation["security"] == json!([{}]) {
                continue;
            }
            let method: Method = method.to_uppercase().parse().unwrap();
            let path = path.replace("{id}", "1");
            let ask = async |client: &Client| Answer::to(client.request(method.clone(), &path)).await;
            asked += 1;
            ask(&nobody).await.refused(401, "unauthenticated");
            if path.starts_with("/admin/") {
                of_staff += 1;
                ask(&alice).await.refused(403, "forbidden");
                match ask(&victor).await {
                    answer if method == Method::GET => assert!([200, 404].contains(&answer.status), "{path}"),
                    answer => drop(answer.refused(403, "forbidden")),
                }
            }
        }
    }
    assert!(asked >= 12 && of_staff >= 7, "{asked} routes, {of_staff} of them for operators");
}

async fn operators_find_users(app: &TestApp) {
    let (alice, bob) = (app.customer("alice").await, app.customer("bob").await);
    let (victor, operator) = (app.viewer().await, app.operator().await);
    let all = pages(&victor, "/admin/users", 2).await.concat();
    let place = |user: &Client| all.iter().position(|id| *id == user.user_id).unwrap();
    assert!(place(&victor) < place(&bob) && place(&bob) < place(&alice), "newest first: {all:?}");

    let at = START.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
    let mut shown = json!({
        "id": alice.user_id, "name": "alice", "roles": ["customer"], "provider": "dev", "created_at": at,
    });
    assert_eq!(
        victor.get("/admin/users?name=alice").await.is(200),
        json!({"items": [shown], "next_cursor": null})
    );
    // As `tombola token` makes them.
    app.execute(
        "INSERT INTO users (id, provider, subject, name, roles, created_at) \
         VALUES (77, 'minted', '77', 'Customer 77', 'customer', 0)",
    )
    .await;
    let minted = victor.get("/admin/users?name=Customer%2077").await.is(200);
    assert_eq!(
        (&minted["items"][0]["id"], &minted["items"][0]["provider"]),
        (&json!("77"), &json!("minted"))
    );
    assert_eq!(victor.get("/admin/users?name=77").await.is(200)["items"], json!([]));
    assert_eq!(victor.get("/admin/users?name=Nobody").await.is(200)["items"], json!([]));
    let problem = victor.get("/admin/users?name=%20").await.refused(422, "validation_failed");
    assert_eq!(problem["errors"][0]["pointer"], "?name", "{problem}");

    let path = format!("/admin/users/{}", alice.user_id);
    let wish = json!({"amount_minor": 250, "reason": "a story"});
    operator.post(&format!("{path}/wallet-adjustments"), wish).await.is(201);
    for (member, value) in [("balance_minor", json!(250)), ("points", json!(0)), ("currency", json!("CNY"))] {
        shown[member] = value;
    }
    assert_eq!(victor.get(&path).await.is(200), shown);
    victor.get("/admin/users/7").await.refused(404, "not_found");
}

/// RELIABILITY, F44.
async fn what_others_hold_stays_hidden(app: &TestApp) {
    let activity = app.running(Offer::of(10)).await;
    let draft = app.editing(Offer::of(10)).await;
    let (alice, mallory) = (app.customer("alice").await, app.customer("mallory").await);
    let takes = [alice.take_once(&activity, "key").await.take(), alice.take(&activity).await.take()];

    assert_eq!(mallory.my_takes().await, []);
    let query = format!("/me/takes?user_id={}", alice.user_id);
    mallory.get(&query).await.refused(422, "validation_failed");
    // A cursor says where to go on, not whose list it is.
    let cursor = alice.get("/me/takes?limit=1").await.is(200)["next_cursor"].as_str().unwrap().to_owned();
    let page = mallory.get(&format!("/me/takes?cursor={cursor}")).await.is(200);
    assert_eq!(page, json!({"items": [], "next_cursor": null}));
    // A key names a request of one user.
    let own = mallory.take_once(&activity, "key").await;
    assert!(!own.is_replayed());
    assert_eq!(own.take().user_id, mallory.user_id);

    mallory.release(&takes[0].id).await.refused(403, "forbidden");
    app.viewer().await.release(&takes[0].id).await.refused(403, "forbidden");
    mallory.get(&format!("/admin/activities/{draft}")).await.refused(403, "forbidden");
    mallory.get(&format!("/activities/{draft}")).await.refused(404, "not_found");
    let listed = mallory.get("/activities").await.is(200);
    assert_eq!(listed["items"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(alice.my_takes().await, takes.into_iter().rev().collect::<Vec<_>>());
}
