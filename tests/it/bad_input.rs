//! What clients should not send: each gets its own clear refusal, and nothing changes (RELIABILITY, F35, F36, I14).

use std::time::{Duration, Instant};

use entities::{
    activity, cart_item, goods, goods_ledger, idempotency, outbox, stock_adjustment, take, token_block, users,
};
use reqwest::Method;
use sea_orm::{EntityTrait, QueryOrder};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::payments::{buy, open, order_of, pay};
use crate::support::{Answer, Client, Offer, START, TestApp, stories};

stories!(
    a_bad_activity_is_refused,
    a_bad_take_is_refused,
    a_bad_change_is_refused,
    a_bad_reason_is_refused,
    a_bad_query_is_refused,
    a_bad_sign_in_is_refused,
    a_bad_idempotency_key_is_refused,
    what_is_not_there_is_not_found,
    a_body_without_end_is_cut_off,
);

/// Everything clients can change.
#[derive(Debug, PartialEq)]
struct Snapshot {
    users: Vec<users::Model>,
    activities: Vec<activity::Model>,
    blocks: Vec<token_block::Model>,
    takes: Vec<take::Model>,
    adjustments: Vec<stock_adjustment::Model>,
    goods: Vec<goods::Model>,
    goods_ledger: Vec<goods_ledger::Model>,
    carts: Vec<cart_item::Model>,
    outbox: Vec<outbox::Model>,
    kept_answers: Vec<idempotency::Model>,
}

impl Snapshot {
    async fn of(app: &TestApp) -> Self {
        macro_rules! all {
            ($table:ident) => {
                $table::Entity::find().order_by_asc($table::Column::Id)
            };
        }
        let connection = app.database.connect().await;
        // What is published meanwhile is not changed by a client.
        let outbox = all!(outbox).all(&connection).await.unwrap();
        let snapshot = Self {
            users: all!(users).all(&connection).await.unwrap(),
            activities: all!(activity).all(&connection).await.unwrap(),
            blocks: all!(token_block).all(&connection).await.unwrap(),
            takes: all!(take).all(&connection).await.unwrap(),
            adjustments: all!(stock_adjustment).all(&connection).await.unwrap(),
            goods: all!(goods).all(&connection).await.unwrap(),
            goods_ledger: all!(goods_ledger).all(&connection).await.unwrap(),
            carts: cart_item::Entity::find().all(&connection).await.unwrap(),
            outbox: outbox.into_iter().map(|row| outbox::Model { sent_at: None, ..row }).collect(),
            kept_answers: all!(idempotency).all(&connection).await.unwrap(),
        };
        connection.close().await.unwrap();
        snapshot
    }
}

/// Status, code, and the pointer to the member at fault.
pub(crate) type Refusal<'a> = (u16, &'a str, Option<&'a str>);

/// It is not JSON at all.
pub(crate) const MALFORMED: Refusal<'_> = (400, "malformed_request", None);
const TOO_LARGE: Refusal<'_> = (413, "body_too_large", None);

/// The member at `pointer` is not acceptable.
pub(crate) const fn invalid(pointer: &str) -> Refusal<'_> {
    (422, "validation_failed", Some(pointer))
}

/// Bodies that no route with a required body of JSON accepts, and how each is refused.
pub(crate) fn never_acceptable() -> Vec<(Vec<u8>, Refusal<'static>)> {
    vec![
        (b"".to_vec(), MALFORMED),
        (b"{".to_vec(), MALFORMED),
        (b"{]".to_vec(), MALFORMED),
        (b"{'a': 1}".to_vec(), MALFORMED),
        (b"{} {}".to_vec(), MALFORMED),
        (b"name=Mooncakes".to_vec(), MALFORMED),
        (b"\xff\xfe{}".to_vec(), MALFORMED),
        (b"\0".to_vec(), MALFORMED),
        (b"null".to_vec(), invalid("")),
        (b"17".to_vec(), invalid("")),
        (b"\"text\"".to_vec(), invalid("")),
        (vec![b'['; 100_000], TOO_LARGE),
        (vec![b' '; 5 * 1024], TOO_LARGE),
    ]
}

/// Sends each body and checks how it is refused; nothing may have changed in the end.
pub(crate) async fn all_are_refused<'a>(
    app: &TestApp,
    client: &Client,
    method: Method,
    path: &str,
    rows: impl IntoIterator<Item = (Vec<u8>, Refusal<'a>)>,
) {
    let before = Snapshot::of(app).await;
    for (body, expected) in rows {
        let shown = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        let request = client.request(method.clone(), path).header("content-type", "application/json");
        let answer = Answer::to(request.body(body)).await;
        is_refused(answer, expected, &format!("{path}: {shown}"));
    }
    assert_eq!(Snapshot::of(app).await, before);
}

#[track_caller]
fn is_refused(answer: Answer, (status, code, pointer): Refusal<'_>, what: &str) {
    assert_eq!(
        (answer.status, answer.body["code"].as_str()),
        (status, Some(code)),
        "{what}: {}",
        answer.body
    );
    let problem = answer.refused(status, code);
    assert_eq!(problem["errors"][0]["pointer"].as_str(), pointer, "{what}: {problem}");
}

/// `base` with one member replaced by JSON text of any kind.
pub(crate) fn with(base: &Value, member: &str, text: &str) -> Vec<u8> {
    let mut members: Vec<String> = base
        .as_object()
        .unwrap()
        .iter()
        .filter(|(name, _)| *name != member)
        .map(|(name, value)| format!("{}:{value}", json!(name)))
        .collect();
    members.push(format!("{}:{text}", json!(member)));
    format!("{{{}}}", members.join(",")).into_bytes()
}

pub(crate) fn without(base: &Value, member: &str) -> Vec<u8> {
    let mut base = base.clone();
    base.as_object_mut().unwrap().remove(member);
    base.to_string().into_bytes()
}

async fn a_bad_activity_is_refused(app: &TestApp) {
    let operator = app.operator().await;
    let good = Offer::of(10).body(START);
    let long_name = format!("\"{}\"", "界".repeat(129));
    let deep = format!("{}{}", "[".repeat(1900), "]".repeat(1900));
    let cases = [
        ("name", "null", invalid("/name")),
        ("name", "5", invalid("/name")),
        ("name", "\"\"", invalid("/name")),
        ("name", "\"  \"", invalid("/name")),
        ("name", "\"a\\u0000b\"", invalid("/name")),
        ("name", "\"a\\nb\"", invalid("/name")),
        ("name", &long_name, invalid("/name")),
        ("name", &deep, invalid("/name")),
        ("name", "\"\\ud800\"", invalid("/name")),
        ("name", "\"\\udc00\\ud800\"", invalid("/name")),
        ("name", "\"a\0b\"", MALFORMED),
        ("kind", "\"auction\"", invalid("/kind")),
        ("kind", "\"GIVEAWAY\"", invalid("/kind")),
        ("kind", "{}", invalid("/kind")),
        ("stock_total", "0", invalid("/stock_total")),
        ("stock_total", "-1", invalid("/stock_total")),
        ("stock_total", "2147483648", invalid("/stock_total")),
        ("stock_total", "9223372036854775808", invalid("/stock_total")),
        ("stock_total", "-9223372036854775809", invalid("/stock_total")),
        ("stock_total", "1.5", invalid("/stock_total")),
        ("stock_total", "\"10\"", invalid("/stock_total")),
        ("stock_total", "null", invalid("/stock_total")),
        ("stock_total", "1e999", invalid("/stock_total")),
        ("stock_total", "NaN", MALFORMED),
        ("stock_total", "010", MALFORMED),
        ("take_limit_per_user", "0", invalid("/take_limit_per_user")),
        ("take_limit_per_user", "-3", invalid("/take_limit_per_user")),
        ("take_limit_per_user", "2147483648", invalid("/take_limit_per_user")),
        ("take_limit_per_user", "\"none\"", invalid("/take_limit_per_user")),
        ("starts_at", "\"tomorrow\"", invalid("/starts_at")),
        ("starts_at", "\"2027-02-30T00:00:00Z\"", invalid("/starts_at")),
        ("starts_at", "\"2027-01-15T08:00:00\"", invalid("/starts_at")),
        ("starts_at", "1800000000", invalid("/starts_at")),
        ("starts_at", "\"1969-12-31T23:59:59Z\"", invalid("/starts_at")),
        ("ends_at", "\"2027-01-15T08:00:00Z\"", invalid("/ends_at")),
        ("ends_at", "\"2027-01-15T07:00:00Z\"", invalid("/ends_at")),
        ("ends_at", "\"+10000-01-01T00:00:00Z\"", invalid("/ends_at")),
        // What the server decides is not asked.
        ("state", "\"running\"", invalid("/state")),
        ("id", "\"1\"", invalid("/id")),
        ("version", "7", invalid("/version")),
        ("created_by", "\"1\"", invalid("/created_by")),
        ("sold", "0", invalid("/sold")),
        ("a/b~c", "0", invalid("/a~1b~0c")),
        ("", "0", invalid("/")),
    ];
    let rows = cases.map(|(member, text, expected)| (with(&good, member, text), expected));
    all_are_refused(app, &operator, Method::POST, "/admin/activities", rows).await;

    let missing = [
        ("name", "/name"),
        ("kind", "/kind"),
        ("starts_at", "/starts_at"),
        ("ends_at", "/ends_at"),
        ("stock_total", "/stock_total"),
    ];
    let missing = missing.map(|(member, pointer)| (without(&good, member), invalid(pointer)));
    let twice = format!("{{\"name\":\"a\",{}", &good.to_string()[1..]).into_bytes();
    let over = Offer::of(1).between(-chrono::TimeDelta::hours(2), -chrono::TimeDelta::hours(1)).body(START);
    let rows = missing.into_iter().chain([
        (b"{}".to_vec(), invalid("/name")),
        (twice, invalid("/name")),
        (over.to_string().into_bytes(), invalid("/ends_at")),
    ]);
    let rows = rows.chain(never_acceptable());
    all_are_refused(app, &operator, Method::POST, "/admin/activities", rows).await;

    // Every member at fault is named at once.
    let several = json!({"name": "", "kind": "giveaway", "stock_total": 0, "take_limit_per_user": 0,
        "starts_at": START, "ends_at": START});
    let problem = operator.post("/admin/activities", several).await.refused(422, "validation_failed");
    let pointers: Vec<&str> = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| error["pointer"].as_str().unwrap())
        .collect();
    assert_eq!(pointers, ["/name", "/ends_at", "/stock_total", "/take_limit_per_user"]);

    for (header, value) in
        [("content-type", "text/plain"), ("content-type", "application/jsonp"), ("content-encoding", "gzip")]
    {
        let request = operator.request(Method::POST, "/admin/activities").body(good.to_string());
        let request = match header {
            "content-type" => request,
            _ => request.header("content-type", "application/json"),
        };
        Answer::to(request.header(header, value)).await.refused(415, "unsupported_media_type");
    }
    assert_eq!(operator.get("/admin/activities").await.is(200)["items"], json!([]));
    operator.post("/admin/activities", good).await.is(201);
}

async fn a_bad_take_is_refused(app: &TestApp) {
    let activity = app.running(Offer::of(10)).await;
    let alice = app.customer("alice").await;
    let path = format!("/activities/{activity}/takes");
    let rows = never_acceptable().into_iter().filter(|(body, _)| !body.is_empty()).chain([
        (b"[]".to_vec(), invalid("")),
        (b"{\"quantity\":2}".to_vec(), invalid("/quantity")),
        (b"{\"\\u0000\":2}".to_vec(), invalid("/\0")),
    ]);
    all_are_refused(app, &alice, Method::POST, &path, rows).await;
    let empty = alice.request(Method::POST, &path).header("content-type", "application/json").body("");
    Answer::to(empty).await.take();
}

async fn a_bad_change_is_refused(app: &TestApp) {
    let activity = app.running(Offer::of(10)).await;
    let operator = app.operator().await;
    let take = app.customer("alice").await.take(&activity).await.take();
    let rows = [
        (b"{}".to_vec(), invalid("/reason")),
        (b"{\"reason\":null}".to_vec(), invalid("/reason")),
        (b"{\"reason\":\"x\",\"token_no\":1}".to_vec(), invalid("/token_no")),
    ];
    let path = format!("/admin/takes/{}/release", take.id);
    all_are_refused(app, &operator, Method::POST, &path, rows.into_iter().chain(never_acceptable())).await;

    let good = json!({"delta": 1, "reason": "x"});
    let deltas = ["0", "\"1\"", "1.5", "null", "2147483648", "-2147483649", "[1]"];
    let rows = deltas.into_iter().map(|delta| (with(&good, "delta", delta), invalid("/delta")));
    let rows = rows.chain([
        (without(&good, "delta"), invalid("/delta")),
        (without(&good, "reason"), invalid("/reason")),
        (with(&good, "delta", "1e999"), invalid("/delta")),
        (with(&good, "stock_total", "5"), invalid("/stock_total")),
    ]);
    let path = format!("/admin/activities/{activity}/stock-adjustments");
    all_are_refused(app, &operator, Method::POST, &path, rows.chain(never_acceptable())).await;

    let rows = [
        (b"{}".to_vec(), invalid("/event")),
        (b"{\"event\":\"explode\"}".to_vec(), invalid("/event")),
        (b"{\"event\":null}".to_vec(), invalid("/event")),
        (b"{\"event\":\"close\",\"state\":\"closed\"}".to_vec(), invalid("/state")),
    ];
    let path = format!("/admin/activities/{activity}/transitions");
    all_are_refused(app, &operator, Method::POST, &path, rows.into_iter().chain(never_acceptable())).await;
}

/// A reason is kept as it was sent, blanks included: what the column cannot take is refused, and no more than that.
async fn a_bad_reason_is_refused(app: &TestApp) {
    let activity = app.running(Offer::of(10).at_price(100)).await;
    let giveaway = app.running(Offer::of(10)).await;
    let (alice, operator) = (app.customer("alice").await, app.operator().await);
    let order = async || alice.take(&activity).await.is(201)["order"]["id"].as_str().unwrap().to_owned();
    let (unpaid, paid) = (order().await, order().await);
    pay(app, &alice, &paid, "t-1").await;
    order_of(&alice, &paid).becomes("paid").await;
    let take = alice.take(&giveaway).await.take();
    app.is_quiet().await;
    let routes = [
        (&alice, format!("/orders/{unpaid}/cancel"), json!({})),
        (&alice, format!("/orders/{paid}/refunds"), json!({})),
        (&operator, format!("/admin/takes/{}/release", take.id), json!({})),
        (&operator, format!("/admin/users/{}/wallet-adjustments", alice.user_id), json!({"amount_minor": 1})),
        (&operator, format!("/admin/users/{}/points-adjustments", alice.user_id), json!({"points": 1})),
        (&operator, format!("/admin/activities/{giveaway}/stock-adjustments"), json!({"delta": 1})),
    ];
    let bad = [
        String::new(),
        " ".to_owned(),
        " ".repeat(300),
        format!("{}x", " ".repeat(300)),
        format!("x{}", " ".repeat(256)),
        "界".repeat(257),
        "a\0b".to_owned(),
        "a\u{7}".to_owned(),
    ];
    for (client, path, good) in &routes {
        let rows =
            bad.iter().map(|reason| (with(good, "reason", &json!(reason).to_string()), invalid("/reason")));
        all_are_refused(app, client, Method::POST, path, rows).await;
    }
    for (client, path, mut body) in routes {
        body["reason"] = json!(format!("{}界", " ".repeat(255)));
        let answer = client.post(&path, body).await;
        assert!((200..300).contains(&answer.status), "{path}: {}", answer.body);
    }
}

async fn a_bad_query_is_refused(app: &TestApp) {
    let (alice, victor) = (app.customer("alice").await, app.viewer().await);
    let order = buy(app, &alice).await;
    let payment = open(&alice, &order, "sandbox").await;
    let of_order = |list: &str| (&alice, format!("/orders/{order}/{list}"));
    let of_anybody = |list: String| (&victor, list);
    for (client, list) in [
        (&alice, "/me/takes".to_owned()),
        (&alice, "/activities".to_owned()),
        of_order("timeline"),
        of_order("payments"),
        of_order("refunds"),
        of_anybody("/admin/activities".to_owned()),
        of_anybody(format!("/admin/orders/{order}/timeline")),
        of_anybody(format!("/admin/payments/{payment}/records")),
    ] {
        for (query, pointer) in [
            ("limit=0", "?limit"),
            ("limit=101", "?limit"),
            ("limit=-1", "?limit"),
            ("limit=ten", "?limit"),
            ("limit=", "?limit"),
            ("limit=1&limit=2", "?limit"),
            ("limit=99999999999999999999", "?limit"),
            ("cursor=", "?cursor"),
            ("cursor=zzz", "?cursor"),
            ("cursor=%00", "?cursor"),
            ("cursor=AAAAAAAAAAAAAAAA", "?cursor"),
            ("page=2", "?page"),
            ("Limit=1", "?Limit"),
        ] {
            let answer = client.get(&format!("{list}?{query}")).await;
            is_refused(answer, invalid(pointer), &format!("{list}?{query}"));
        }
    }
    for (query, pointer) in [("state=sleeping", "?state"), ("kind=auction", "?kind"), ("state=", "?state")] {
        is_refused(victor.get(&format!("/activities?{query}")).await, invalid(pointer), query);
    }
}

async fn a_bad_sign_in_is_refused(app: &TestApp) {
    let good = json!({"provider": "dev", "name": "alice", "roles": ["customer"]});
    let by_password = json!({"provider": "password", "name": "alice"});
    let long_name = format!("\"{}\"", "x".repeat(65));
    let rows = [
        (with(&good, "name", "\"\""), invalid("/name")),
        (with(&good, "name", "\" alice\""), invalid("/name")),
        (with(&good, "name", "\"a\\u0000\""), invalid("/name")),
        (with(&good, "name", "\"a\\u202eb\""), invalid("/name")),
        (with(&good, "name", "7"), invalid("/name")),
        (with(&good, "name", "null"), invalid("/name")),
        (with(&good, "name", &long_name), invalid("/name")),
        (without(&good, "name"), invalid("/name")),
        (with(&good, "roles", "[]"), invalid("/roles")),
        (with(&good, "roles", "\"customer\""), invalid("/roles")),
        (with(&good, "roles", "null"), invalid("/roles")),
        (with(&good, "roles", "[\"customer\", \"king\"]"), invalid("/roles/1")),
        (with(&good, "password", "\"x\""), invalid("/password")),
        (with(&good, "provider", "\"password\""), invalid("/roles")),
        (with(&by_password, "provider", "\"password\""), invalid("/password")),
        (with(&by_password, "password", "7"), invalid("/password")),
        (with(&good, "provider", "7"), invalid("/provider")),
        (with(&good, "provider", "\"carrier_pigeon\""), invalid("/provider")),
        (without(&good, "provider"), invalid("/provider")),
        (with(&good, "id", "\"1\""), invalid("/id")),
    ];
    let nobody = app.nobody();
    all_are_refused(app, &nobody, Method::POST, "/sessions", rows.into_iter().chain(never_acceptable()))
        .await;
}

async fn a_bad_idempotency_key_is_refused(app: &TestApp) {
    let activity = app.running(Offer::of(10)).await;
    let alice = app.customer("alice").await;
    let before = Snapshot::of(app).await;
    let too_long = "k".repeat(129);
    for key in ["", "\"\"", "a b", "\"a", "\"a\"b\"", "\"a\\b\"", "naïve", "a\tb", &too_long] {
        is_refused(alice.take_once(&activity, key).await, MALFORMED, key);
    }
    let two = alice.request(Method::POST, &format!("/activities/{activity}/takes"));
    let two = two.header("idempotency-key", "a").header("idempotency-key", "b");
    Answer::to(two).await.refused(400, "malformed_request");
    assert_eq!(Snapshot::of(app).await, before);

    alice.take_once(&activity, &too_long[1..]).await.take();
}

async fn what_is_not_there_is_not_found(app: &TestApp) {
    let activity = app.running(Offer::of(10)).await;
    let operator = app.operator().await;
    let before = Snapshot::of(app).await;
    let too_large = "9".repeat(20);
    // One id, one spelling: another would be another request to whoever sends an Idempotency-Key.
    let padded = format!("0{activity}");
    let signed = format!("%2B{activity}");
    for id in [
        "1",
        "0",
        "-1",
        "+1",
        "1.0",
        "0x10",
        "%00",
        "%20",
        "..",
        "null",
        "9223372036854775807",
        &too_large,
        &padded,
        &signed,
    ] {
        for path in [format!("/activities/{id}"), format!("/admin/activities/{id}")] {
            operator.get(&path).await.refused(404, "not_found");
        }
        operator.take(id).await.refused(404, "not_found");
        operator.release(id).await.refused(404, "not_found");
        operator.adjust(id, 1).await.refused(404, "not_found");
        operator.asks(id, "close").await.refused(404, "not_found");
    }
    for list in ["wallet-entries", "points-entries", "coupons", "coupons?state=used"] {
        operator.get(&format!("/admin/users/7/{list}")).await.refused(404, "not_found");
        let known = operator.get(&format!("/admin/users/{}/{list}", operator.user_id)).await;
        assert_eq!(known.is(200)["items"], json!([]), "{list}");
    }
    operator.get("/nothing/here").await.refused(404, "not_found");
    let put = Answer::to(operator.request(Method::PUT, &format!("/activities/{activity}/takes"))).await;
    assert_eq!(put.headers["allow"], "POST");
    put.refused(405, "method_not_allowed");
    assert_eq!(Snapshot::of(app).await, before);
}

/// Sends what a client library would not, and reads the answer to its end.
async fn on_the_wire(
    app: &TestApp,
    head: &str,
    mut body: impl FnMut() -> Option<Vec<u8>>,
) -> (String, Value) {
    let stream = TcpStream::connect(app.config.http.address).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let head =
        format!("{head}\r\nhost: tombola\r\nconnection: close\r\ncontent-type: application/json\r\n\r\n");
    writer.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let sending = async {
        // The server may close while we speak.
        while let Some(part) = body() {
            if writer.write_all(&part).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let reading = async {
        // Closed while we speak, the connection may end in a reset behind the answer.
        let _ = reader.read_to_end(&mut answer).await;
    };
    tokio::select! {
        () = sending => {}
        closed = tokio::time::timeout(Duration::from_secs(20), reading) => {
            let answer = String::from_utf8_lossy(&answer);
            closed.unwrap_or_else(|_| panic!("the server does not hang up after {answer:?}"));
        }
    }
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer but {answer:?}"));
    (head.lines().next().unwrap().to_owned(), serde_json::from_str(body).unwrap())
}

async fn a_body_without_end_is_cut_off(app: &TestApp) {
    app.restart_with(|config| config.http.body_timeout = Duration::from_millis(300)).await;
    let activity = app.running(Offer::of(10)).await;
    let alice = app.customer("alice").await;
    let before = Snapshot::of(app).await;
    let head =
        format!("POST /api/v1/activities/{activity}/takes HTTP/1.1\r\nauthorization: Bearer {}", alice.token);

    let chunked = format!("{head}\r\ntransfer-encoding: chunked");
    let endless = on_the_wire(app, &chunked, || {
        Some(b"400\r\n".iter().copied().chain([b' '; 1024]).chain(*b"\r\n").collect())
    });
    let (status, problem) = endless.await;
    assert_eq!(
        (status.as_str(), &problem["code"]),
        ("HTTP/1.1 413 Payload Too Large", &json!("body_too_large"))
    );

    let mut left = 3072;
    let declared = format!("{head}\r\ncontent-length: 3145728");
    let large = on_the_wire(app, &declared, || {
        left -= 1;
        (left >= 0).then(|| vec![b' '; 1024])
    });
    let (status, problem) = large.await;
    assert_eq!(
        (status.as_str(), &problem["code"]),
        ("HTTP/1.1 413 Payload Too Large", &json!("body_too_large"))
    );

    let started = Instant::now();
    let (status, problem) = on_the_wire(app, &format!("{head}\r\ncontent-length: 2"), || None).await;
    assert_eq!(
        (status.as_str(), &problem["code"]),
        ("HTTP/1.1 408 Request Timeout", &json!("request_timeout"))
    );
    assert!(started.elapsed() < Duration::from_secs(5));

    let (status, problem) = on_the_wire(app, &chunked, || Some(b"not a chunk\r\n".to_vec())).await;
    assert_eq!(
        (status.as_str(), &problem["code"]),
        ("HTTP/1.1 400 Bad Request", &json!("malformed_request"))
    );
    assert_eq!(Snapshot::of(app).await, before);
    alice.take(&activity).await.take();
}
