//! What should agree and does not is found, named, and mended with one call.

use sea_orm::ConnectionTrait;
use serde_json::{Value, json};

use crate::support::{Offer, TestApp, eventually, stories};

stories!(a_shop_in_order_has_no_differences, what_does_not_agree_is_named_and_mended);

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
