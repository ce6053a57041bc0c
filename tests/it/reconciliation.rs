//! What should agree and does not is found, named, and mended with one call.

use sea_orm::ConnectionTrait;
use serde_json::{Value, json};

use crate::lists::pages;
use crate::support::process::Launch;
use crate::support::{Offer, TestApp, eventually, stories};

stories!(
    a_shop_in_order_has_no_differences,
    what_does_not_agree_is_named_and_mended,
    a_total_and_a_row_that_waits_are_mended_from_a_shell,
    what_is_asked_for_twice_is_done_once,
    of_very_many_differences_the_first_are_kept,
);

async fn reconcile(app: &TestApp) -> Value {
    app.operator().await.post("/admin/reconciliations", json!({})).await.is(201)
}

async fn execute(app: &TestApp, sql: &str) {
    let connection = app.database.connect().await;
    connection.execute_unprepared(sql).await.unwrap();
    connection.close().await.unwrap();
}

async fn a_shop_in_order_has_no_differences(app: &TestApp) {
    let activity = app.running(Offer::of(50)).await;
    let alice = app.customer("alice").await;
    let takes: Vec<_> = futures_util::future::join_all((0..20).map(|_| alice.take(&activity))).await;
    let take = takes.into_iter().next().unwrap().take();
    app.operator().await.release(&take.id).await.is(200);

    let run = reconcile(app).await;
    assert_eq!((&run["found"], &run["differences"], &run["failed"]), (&json!(0), &json!([]), &Value::Null));
    let runs = app.viewer().await.get("/admin/reconciliations").await.is(200);
    assert_eq!(runs["items"][0]["id"], run["id"]);
    app.viewer().await.post("/admin/reconciliations", json!({})).await.refused(403, "forbidden");
    alice.get("/admin/reconciliations").await.refused(403, "forbidden");
}

async fn what_does_not_agree_is_named_and_mended(app: &TestApp) {
    let activity = app.running(Offer::of(50)).await;
    let (alice, operator) = (app.customer("alice").await, app.operator().await);
    alice.take(&activity).await.take();
    // The projection follows by itself, before it is spoilt.
    let projected = async || {
        let connection = app.database.connect().await;
        let sql = format!("SELECT remaining FROM stock_projection WHERE activity_id = {activity}");
        let backend = connection.get_database_backend();
        let row = connection.query_one_raw(sea_orm::Statement::from_string(backend, sql)).await.unwrap();
        connection.close().await.unwrap();
        row.map(|row| row.try_get::<i64>("", "remaining").unwrap())
    };
    eventually(async || projected().await == Some(49)).await;
    app.is_quiet().await;
    execute(app, &format!("UPDATE stock_projection SET remaining = 7 WHERE activity_id = {activity}")).await;
    execute(app, &format!("UPDATE token_block SET sold = sold + 3 WHERE activity_id = {activity}")).await;

    let run = reconcile(app).await;
    let differences = run["differences"].as_array().unwrap();
    let named: Vec<(&str, &str)> = differences
        .iter()
        .map(|difference| {
            (difference["comparison"].as_str().unwrap(), difference["action"].as_str().unwrap())
        })
        .collect();
    assert_eq!(named, [("stock_blocks", "recount"), ("stock_projection", "recount")], "{run}");
    assert_eq!(differences[0]["expected"], "1 sold");

    for difference in differences {
        let path = format!("/admin/differences/{}/apply", difference["id"].as_str().unwrap());
        let settled = operator.post(&path, json!({})).await.is(200);
        assert_eq!(settled["state"], "applied", "{settled}");
        operator.post(&path, json!({})).await.refused(409, "transition_not_allowed");
    }
    assert_eq!(app.remaining(&activity).await, 49);
    assert_eq!(reconcile(app).await["found"], 0);
    operator.post("/admin/differences/1/apply", json!({})).await.refused(404, "not_found");
    // The sale goes on.
    alice.take(&activity).await.take();
    assert_eq!(app.remaining(&activity).await, 48);
}

async fn a_total_and_a_row_that_waits_are_mended_from_a_shell(app: &TestApp) {
    let activity = app.running(Offer::of(50)).await;
    app.is_quiet().await;
    let launch = Launch::on(&app.database.url);
    let reconcile = async |arguments: &'static [&'static str]| {
        let launch = launch.clone();
        let done = tokio::task::spawn_blocking(move || launch.run(arguments)).await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
    };
    let (code, out, err) = reconcile(&["reconcile"]).await;
    assert_eq!((code, out.as_str()), (0, "Everything agrees.\n"), "{err}");

    execute(app, &format!("UPDATE activity SET stock_total = stock_total + 5 WHERE id = {activity}")).await;
    // Unsent since 1970, to be tried again in a thousand years.
    execute(
        app,
        "INSERT INTO outbox (id, events, event_count, types, created_at, attempts, retry_at) \
         VALUES (7, '[]', 0, 'store.updated.v1', 0, 3, 33000000000000000)",
    )
    .await;
    let (code, out, err) = reconcile(&["reconcile"]).await;
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("stock_total: ") && out.contains("Proposed: set_total_to_tokens."), "{out}");
    assert!(out.contains("events_sent: Outbox row 7") && out.contains("Proposed: send_now."), "{out}");
    let (code, out, err) = reconcile(&["reconcile", "--apply"]).await;
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("the total was 55, now 50"), "{out}");
    app.is_quiet().await;
    let (code, out, _) = reconcile(&["reconcile"]).await;
    assert_eq!((code, out.as_str()), (0, "Everything agrees.\n"));
}

async fn what_is_asked_for_twice_is_done_once(app: &TestApp) {
    let activity = app.running(Offer::of(50)).await;
    app.is_quiet().await;
    execute(app, &format!("UPDATE token_block SET sold = sold + 3 WHERE activity_id = {activity}")).await;
    let operator = app.operator().await;
    let ask = async || operator.post_once("/admin/reconciliations", json!({}), "night").await;
    let first = ask().await.is(201);
    let again = ask().await;
    assert!(again.is_replayed());
    assert_eq!(again.is(201), first);
    let runs = operator.get("/admin/reconciliations").await.is(200);
    assert_eq!(runs["items"].as_array().unwrap().len(), 1);

    for difference in first["differences"].as_array().unwrap() {
        let path = format!("/admin/differences/{}/apply", difference["id"].as_str().unwrap());
        let settled = operator.post_once(&path, json!({}), "mend").await.is(200);
        let again = operator.post_once(&path, json!({}), "mend").await;
        assert!(again.is_replayed());
        assert_eq!(again.is(200), settled);
        operator.post(&path, json!({})).await.refused(409, "transition_not_allowed");
    }
    assert_eq!(reconcile(app).await["found"], 0);
}

async fn of_very_many_differences_the_first_are_kept(app: &TestApp) {
    let activity = app.running(Offer::of(50)).await;
    app.is_quiet().await;
    for customer in 0..120 {
        execute(
            app,
            &format!(
                "INSERT INTO wallet_account (user_id, balance_minor, points, version, updated_at) \
                 VALUES ({}, 1, 0, 1, 0)",
                5_000_000 + customer
            ),
        )
        .await;
    }
    execute(app, &format!("UPDATE token_block SET sold = sold + 3 WHERE activity_id = {activity}")).await;
    let run = reconcile(app).await;
    let of = |run: &Value, comparison: &str| {
        let all = run.as_array().unwrap().iter();
        all.filter(|difference| difference["comparison"] == comparison).count()
    };
    assert!(run["found"].as_i64().unwrap() >= 121, "{}", run["found"]);
    assert_eq!(of(&run["differences"], "wallet_balances"), 100);
    assert_eq!(of(&run["differences"], "stock_blocks"), 1);

    let viewer = app.viewer().await;
    let listed = viewer.get("/admin/reconciliations").await.is(200)["items"][0].clone();
    assert_eq!((&listed["id"], &listed["found"]), (&run["id"], &run["found"]));
    assert_eq!(
        listed["differences"].as_array().unwrap().as_slice(),
        &run["differences"].as_array().unwrap()[..20]
    );
    let path = format!("/admin/reconciliations/{}/differences", run["id"].as_str().unwrap());
    let ids: Vec<&str> =
        run["differences"].as_array().unwrap().iter().map(|found| found["id"].as_str().unwrap()).collect();
    assert_eq!(pages(&viewer, &path, 40).await.concat(), ids);
    viewer.get("/admin/reconciliations/1/differences").await.refused(404, "not_found");
    execute(app, "DELETE FROM wallet_account WHERE user_id >= 5000000 AND user_id < 5000120").await;
    execute(app, &format!("UPDATE token_block SET sold = sold - 3 WHERE activity_id = {activity}")).await;
}
