//! Lists: pages, filters, cursors.

use serde_json::{Value, json};

use crate::support::payments::{buy, open};
use crate::support::{Client, Offer, TestApp, stories};

stories!(
    takes_come_in_pages,
    activities_come_in_pages,
    what_happened_to_an_order_comes_in_pages,
    what_a_gateway_said_comes_in_pages,
    a_cursor_belongs_to_its_list,
);

/// The `id`s on each page of a list, and that only the last page has no cursor.
pub(crate) async fn pages(client: &Client, list: &str, limit: usize) -> Vec<Vec<String>> {
    let id = |item: &Value| item["id"].as_str().unwrap().to_owned();
    items(client, list, limit).await.iter().map(|page| page.iter().map(id).collect()).collect()
}

/// The items on each page of a list, and that only the last page has no cursor.
async fn items(client: &Client, list: &str, limit: usize) -> Vec<Vec<Value>> {
    let separator = if list.contains('?') { '&' } else { '?' };
    let mut path = format!("{list}{separator}limit={limit}");
    let mut pages = Vec::new();
    loop {
        let page = client.get(&path).await.is(200);
        pages.push(page["items"].as_array().unwrap().clone());
        match &page["next_cursor"] {
            Value::Null => return pages,
            cursor => path = format!("{list}{separator}limit={limit}&cursor={}", cursor.as_str().unwrap()),
        }
    }
}

async fn takes_come_in_pages(app: &TestApp) {
    let activity = app.running(Offer::of(100)).await;
    let (alice, bob) = (app.customer("alice").await, app.customer("bob").await);
    assert_eq!(pages(&alice, "/me/takes", 20).await, [Vec::<String>::new()]);
    let mut newest_first = Vec::new();
    for _ in 0..45 {
        newest_first.insert(0, alice.take(&activity).await.take().id);
        bob.take(&activity).await.take();
    }

    let by_twenty = pages(&alice, "/me/takes", 20).await;
    assert_eq!(by_twenty.iter().map(Vec::len).collect::<Vec<_>>(), [20, 20, 5]);
    assert_eq!(by_twenty.concat(), newest_first);
    // A full last page is the last one.
    assert_eq!(pages(&alice, "/me/takes", 15).await.iter().map(Vec::len).collect::<Vec<_>>(), [15, 15, 15]);
    assert_eq!(alice.get("/me/takes").await.is(200)["items"].as_array().unwrap().len(), 20);

    // What is new comes in front and moves nothing behind a cursor.
    let first = alice.get("/me/takes?limit=20").await.is(200);
    alice.take(&activity).await.take();
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = alice.get(&format!("/me/takes?limit=20&cursor={cursor}")).await.is(200);
    assert_eq!(second["items"][0]["id"], *newest_first[20]);
}

async fn activities_come_in_pages(app: &TestApp) {
    let (alice, victor) = (app.customer("alice").await, app.viewer().await);
    let mut newest_first = Vec::new();
    let mut drafts = Vec::new();
    for _ in 0..5 {
        newest_first.insert(0, app.running(Offer::of(1)).await);
        drafts.insert(0, app.editing(Offer::of(1)).await);
    }
    assert_eq!(pages(&alice, "/activities", 2).await.concat(), newest_first);
    assert_eq!(pages(&alice, "/activities?state=running", 3).await.concat(), newest_first);
    assert_eq!(pages(&alice, "/activities?state=editing", 3).await.concat(), Vec::<String>::new());
    assert_eq!(pages(&victor, "/admin/activities?state=editing", 2).await.concat(), drafts);
    assert_eq!(pages(&victor, "/admin/activities", 3).await.concat().len(), 10);
    assert_eq!(pages(&victor, "/admin/activities?kind=prize_draw", 3).await.concat(), Vec::<String>::new());
}

async fn what_happened_to_an_order_comes_in_pages(app: &TestApp) {
    let (alice, victor) = (app.customer("alice").await, app.viewer().await);
    let order = buy(app, &alice).await;
    for house in 2..=45 {
        let address = json!({"consignee": "Alice", "phone": "1", "line": format!("{house} Moon Street")});
        alice.put(&format!("/orders/{order}/address"), address).await.is(200);
    }
    let mine = format!("/orders/{order}/timeline");
    for (client, list) in [(&alice, mine.clone()), (&victor, format!("/admin{mine}"))] {
        for (limit, lengths) in [(20, vec![20, 20, 5]), (15, vec![15; 3]), (44, vec![44, 1]), (100, vec![45])]
        {
            let pages = items(client, &list, limit).await;
            assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), lengths, "{list}");
            let versions: Vec<i64> =
                pages.concat().iter().map(|entry| entry["version"].as_i64().unwrap()).collect();
            assert_eq!(versions, (1..=45).collect::<Vec<_>>(), "{list}");
        }
        let first = client.get(&format!("{list}?limit=1")).await.is(200);
        assert_eq!(first["items"][0]["type"], "created");
        assert_eq!(client.get(&list).await.is(200)["items"].as_array().unwrap().len(), 20);
    }
}

async fn what_a_gateway_said_comes_in_pages(app: &TestApp) {
    let (alice, victor) = (app.customer("alice").await, app.viewer().await);
    let payment = open(&alice, &buy(app, &alice).await, "sandbox").await;
    for record in 1..=21 {
        app.execute(&format!(
            "INSERT INTO payment_record (id, payment_id, channel, kind, outcome, body, received_at) \
             VALUES ({record}, {payment}, 'sandbox', 'query', 'pending', '{{}}', {record})"
        ))
        .await;
    }
    let oldest_first: Vec<String> = (1..=21).map(|record| record.to_string()).collect();
    let list = format!("/admin/payments/{payment}/records");
    let by_eight = pages(&victor, &list, 8).await;
    assert_eq!(by_eight.iter().map(Vec::len).collect::<Vec<_>>(), [8, 8, 5]);
    assert_eq!(by_eight.concat(), oldest_first);
    assert_eq!(victor.get(&list).await.is(200)["items"].as_array().unwrap().len(), 20);
}

async fn a_cursor_belongs_to_its_list(app: &TestApp) {
    let (alice, victor) = (app.customer("alice").await, app.viewer().await);
    for _ in 0..2 {
        let activity = app.running(Offer::of(2)).await;
        alice.take(&activity).await.take();
    }
    let cursor = async |client: &Client, list: &str| {
        client.get(list).await.is(200)["next_cursor"].as_str().unwrap().to_owned()
    };
    let of_takes = cursor(&alice, "/me/takes?limit=1").await;
    let of_activities = cursor(&alice, "/activities?limit=1").await;
    let of_running = cursor(&alice, "/activities?state=running&limit=1").await;
    let of_admin = cursor(&victor, "/admin/activities?limit=1").await;
    for (list, cursor) in [
        ("/me/takes", &of_activities),
        ("/activities", &of_takes),
        ("/activities", &of_running),
        ("/activities", &of_admin),
        ("/activities?state=running", &of_activities),
        ("/activities?state=closed", &of_running),
    ] {
        let separator = if list.contains('?') { '&' } else { '?' };
        let problem = alice.get(&format!("{list}{separator}cursor={cursor}")).await;
        let problem = problem.refused(422, "validation_failed");
        assert_eq!(problem["errors"][0]["pointer"], "?cursor", "{problem}");
    }
}
