//! Stock that changes while it is sold.

use entities::token_block;
use futures_util::future::join;
use reqwest::Method;
use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter};
use serde_json::json;

use crate::support::database::session;
use crate::support::{Answer, Offer, TestApp, shared_stories, stories};
use crate::takes::{crowd, take_all, tokens};

stories!(
    what_is_sold_cannot_be_withdrawn,
    holes_are_withdrawn_and_come_back,
    stock_goes_up_and_down_while_it_is_sold,
    an_adjustment_happens_once,
    stock_stays_within_its_bounds,
);

/// On databases that lock rows.
mod shared {
    use super::*;

    shared_stories!(a_release_does_not_wait_for_another_activity);

    async fn a_release_does_not_wait_for_another_activity(app: &TestApp) {
        let (mine, other) = (app.running(Offer::of(5)).await, app.running(Offer::of(5)).await);
        let (alice, operator) = (app.customer("alice").await, app.operator().await);
        let (take, theirs) = (alice.take(&mine).await.take(), alice.take(&other).await.take());
        let block = token_block::Entity::find()
            .filter(token_block::Column::ActivityId.eq(other.parse::<i64>().unwrap()));
        let holder = session(&app.database.url).await;
        let block = block.one(&holder).await.unwrap().unwrap().id;
        for change in [
            "BEGIN".to_owned(),
            format!("UPDATE token_block SET sold = sold WHERE id = {block}"),
            format!("UPDATE take SET state = state WHERE id = {}", theirs.id),
        ] {
            holder.execute_unprepared(&change).await.unwrap();
        }

        operator.release(&take.id).await.is(200);

        holder.execute_unprepared("ROLLBACK").await.unwrap();
        holder.close().await.unwrap();
        assert_eq!((app.remaining(&mine).await, app.remaining(&other).await), (5, 4));
    }
}

async fn what_is_sold_cannot_be_withdrawn(app: &TestApp) {
    let activity = app.running(Offer::of(10)).await;
    let (alice, operator) = (app.customer("alice").await, app.operator().await);
    for _ in 0..6 {
        alice.take(&activity).await.take();
    }

    operator.adjust(&activity, -5).await.refused(409, "stock_insufficient");
    operator.adjust(&activity, -11).await.refused(409, "stock_insufficient");
    assert_eq!(app.activity(&activity).await["stock"], json!({"total": 10, "remaining": 4}));

    let adjusted = operator.adjust(&activity, -4).await.is(201);
    assert_eq!(adjusted["stock"], json!({"total": 6, "remaining": 0}));
    assert_eq!((&adjusted["delta"], &adjusted["activity_id"]), (&json!(-4), &json!(activity)));
    alice.take(&activity).await.refused(409, "sold_out");

    let adjusted = operator.adjust(&activity, 4).await.is(201);
    assert_eq!(adjusted["stock"], json!({"total": 10, "remaining": 4}));
    assert_eq!(tokens(&take_all(&alice, &activity).await), [7, 8, 9, 10]);
}

async fn holes_are_withdrawn_and_come_back(app: &TestApp) {
    let activity = app.running(Offer::of(10)).await;
    let (alice, operator) = (app.customer("alice").await, app.operator().await);
    let sold = take_all(&alice, &activity).await;
    for take in sold.iter().filter(|take| [3, 7].contains(&take.token_no)) {
        operator.release(&take.id).await.is(200);
    }

    operator.adjust(&activity, -3).await.refused(409, "stock_insufficient");
    let adjusted = operator.adjust(&activity, -2).await.is(201);
    assert_eq!(adjusted["stock"], json!({"total": 8, "remaining": 0}));
    alice.take(&activity).await.refused(409, "sold_out");

    operator.adjust(&activity, 1).await.is(201);
    assert_eq!(tokens(&take_all(&alice, &activity).await), [3]);
    let adjusted = operator.adjust(&activity, 3).await.is(201);
    assert_eq!(adjusted["stock"], json!({"total": 12, "remaining": 3}));
    assert_eq!(tokens(&take_all(&alice, &activity).await), [7, 11, 12]);
}

async fn stock_goes_up_and_down_while_it_is_sold(app: &TestApp) {
    let activity = app.running(Offer::of(200)).await;
    let (shoppers, operator) = (app.customers(10).await, app.operator().await);

    let adjusting = async {
        let mut total = 200;
        for delta in [40, -25, 10, -60, 35, -5, -200, 5, 20, -20] {
            let answer = operator.adjust(&activity, delta).await;
            if answer.status == 409 {
                answer.refused(409, "stock_insufficient");
            } else {
                total += delta;
                assert_eq!(answer.is(201)["stock"]["total"], total);
            }
        }
        total
    };
    let (mut sold, total) = join(crowd(&shoppers, &activity), adjusting).await;
    // Some have gone when the last units came.
    sold.extend(crowd(&shoppers, &activity).await);

    assert_eq!(sold.len(), usize::try_from(total).unwrap());
    let mut distinct = tokens(&sold);
    distinct.dedup();
    assert_eq!(distinct.len(), sold.len());
    assert_eq!(app.activity(&activity).await["stock"], json!({"total": total, "remaining": 0}));
}

async fn an_adjustment_happens_once(app: &TestApp) {
    let activity = app.running(Offer::of(10)).await;
    let operator = app.operator().await;
    let adjust = async |delta: i32, key: &str| {
        let path = format!("/admin/activities/{activity}/stock-adjustments");
        let request = operator.request(Method::POST, &path).header("idempotency-key", key);
        Answer::to(request.json(&json!({"delta": delta, "reason": "found a box"}))).await
    };

    let first = adjust(5, "box").await;
    let repeat = adjust(5, "box").await;
    assert!(repeat.is_replayed() && !first.is_replayed());
    assert_eq!(repeat.is(201), first.is(201));
    adjust(6, "box").await.refused(422, "idempotency_key_reused");
    assert_eq!(app.activity(&activity).await["stock"], json!({"total": 15, "remaining": 15}));
    assert_eq!(app.events(&activity, "activity.stock_adjusted.v1").await.len(), 1);
}

async fn stock_stays_within_its_bounds(app: &TestApp) {
    let activity = app.running(Offer::of(1)).await;
    let operator = app.operator().await;
    for delta in [0, i64::from(i32::MAX)] {
        let problem = operator.adjust(&activity, delta).await.refused(422, "validation_failed");
        assert_eq!(problem["errors"][0]["pointer"], "/delta", "{problem}");
    }
    operator.adjust(&activity, -1).await.is(201);
    app.customer("alice").await.take(&activity).await.refused(409, "sold_out");
    operator.adjust(&activity, -1).await.refused(409, "stock_insufficient");
    operator.adjust(&activity, i64::from(i32::MAX) - 1).await.is(201);
    app.customer("alice").await.take(&activity).await.take();

    operator.asks(&activity, "close").await.is(200);
    operator.adjust(&activity, 1).await.refused(409, "transition_not_allowed");
}
