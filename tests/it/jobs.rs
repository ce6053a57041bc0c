//! Jobs: asked for, paused, remembered, and done once however many nodes there are.

use chrono::TimeDelta;
use entities::activity;
use futures_util::future::join_all;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use serde_json::{Value, json};

use crate::support::process::Launch;
use crate::support::{Client, Offer, TestApp, eventually, shared_stories, stories};

stories!(
    a_job_runs_when_asked,
    a_moment_is_served_and_remembered,
    a_paused_job_runs_only_when_asked,
    a_job_that_fails_is_reported_once,
    what_a_job_does_not_take_is_refused,
    jobs_are_for_staff,
    runs_come_in_pages,
    a_command_runs_a_job_beside_the_server,
);

/// On databases that servers share.
mod shared {
    use super::*;

    shared_stories!(each_run_asked_of_several_nodes_is_done_once, a_pause_holds_on_every_node);

    async fn each_run_asked_of_several_nodes_is_done_once(app: &TestApp) {
        let node = app.another_node().await;
        let here = app.operator().await;
        let there = here.at(&node);
        let asked =
            (0..20).map(|turn| ask(if turn % 2 == 0 { &here } else { &there }, "log_trimming", json!({})));
        let ids: Vec<String> = join_all(asked).await;
        for id in &ids {
            let run = ended(&here, "log_trimming", id).await;
            assert_eq!((&run["state"], &run["trigger"]), (&json!("done"), &json!("operator")), "{run}");
        }
        let listed = history(&here, "log_trimming").await;
        let of_operators = listed.iter().filter(|run| run["trigger"] == "operator").count();
        assert_eq!(of_operators, ids.len());
        node.stop().await;
    }

    async fn a_pause_holds_on_every_node(app: &TestApp) {
        let node = app.another_node().await;
        let operator = app.operator().await;
        pause(&operator.at(&node), "activity_states", true).await;
        let activity = app.approved(Offer::of(1).between(TimeDelta::hours(1), TimeDelta::hours(2))).await;
        app.pass(TimeDelta::hours(1));
        // What takes longer than a look at what is due: a run on whichever node has the job.
        let id = ask(&operator, "log_trimming", json!({})).await;
        ended(&operator, "log_trimming", &id).await;
        assert_eq!(app.activity(&activity).await["state"], "approved");
        pause(&operator, "activity_states", false).await;
        eventually(async || app.activity(&activity).await["state"] == "running").await;
        node.stop().await;
    }
}

/// Asks for a run and answers its id.
pub(crate) async fn ask(operator: &Client, job: &str, body: Value) -> String {
    let run = operator.post(&format!("/admin/jobs/{job}/runs"), body).await.is(202);
    run["id"].as_str().unwrap().to_owned()
}

/// The run once it has come to its end.
pub(crate) async fn ended(staff: &Client, job: &str, id: &str) -> Value {
    let path = format!("/admin/jobs/{job}/runs/{id}");
    eventually(async || staff.get(&path).await.is(200)["finished_at"] != Value::Null).await;
    staff.get(&path).await.is(200)
}

async fn pause(operator: &Client, job: &str, paused: bool) -> Value {
    let job = operator.patch(&format!("/admin/jobs/{job}"), json!({"paused": paused})).await.is(200);
    assert_eq!(job["paused"], paused);
    job
}

/// The job among all of them.
async fn job(staff: &Client, name: &str) -> Value {
    let jobs = staff.get("/admin/jobs?limit=100").await.is(200);
    assert_eq!(jobs["next_cursor"], Value::Null);
    jobs["items"].as_array().unwrap().iter().find(|job| job["name"] == name).unwrap().clone()
}

/// The runs of a job, newest first.
async fn history(staff: &Client, job: &str) -> Vec<Value> {
    let page = staff.get(&format!("/admin/jobs/{job}/runs?limit=100")).await.is(200);
    page["items"].as_array().unwrap().clone()
}

async fn a_job_runs_when_asked(app: &TestApp) {
    let operator = app.operator().await;
    let activity = app.approved(Offer::of(1).between(TimeDelta::hours(1), TimeDelta::hours(2))).await;
    pause(&operator, "activity_states", true).await;
    app.pass(TimeDelta::hours(1));

    let asked = operator.post("/admin/jobs/activity_states/runs", json!({})).await.is(202);
    assert_eq!(asked["requested_by"], operator.user_id);
    assert_eq!((&asked["state"], &asked["params"]), (&json!("requested"), &Value::Null));
    let id = asked["id"].as_str().unwrap();
    let run = ended(&operator, "activity_states", id).await;
    assert_eq!(
        (&run["state"], &run["trigger"], &run["error"]),
        (&json!("done"), &json!("operator"), &Value::Null)
    );
    assert_eq!(run["summary"], "closed 0 activities, started 1");
    assert!(run["node"].is_i64() && run["duration_ms"].is_i64() && run["started_at"].is_string(), "{run}");
    assert_eq!(app.activity(&activity).await["state"], "running");
    assert_eq!(history(&operator, "activity_states").await, [run]);

    // A repeat with the same key asks for nothing new.
    let once = async || {
        let request = operator.request(reqwest::Method::POST, "/admin/jobs/log_trimming/runs");
        crate::support::Answer::to(request.header("idempotency-key", "k").json(&json!({"params": null})))
            .await
    };
    let (first, second) = (once().await, once().await);
    assert!(!first.is_replayed() && second.is_replayed());
    assert_eq!(first.is(202), second.is(202));
}

async fn a_moment_is_served_and_remembered(app: &TestApp) {
    let (operator, shopper) = (app.operator().await, app.customer("alice").await);
    let due = job(&operator, "log_trimming").await["next_run_at"].clone();
    assert_eq!(due, "2027-01-15T08:10:00Z");
    let activity = app.running(Offer::of(1)).await;
    shopper.take_once(&activity, "k").await.take();
    // The kept answer is a day old, and many a moment has passed: they count once.
    app.pass(TimeDelta::hours(25));
    eventually(async || !history(&operator, "log_trimming").await.is_empty()).await;
    let runs = history(&operator, "log_trimming").await;
    assert_eq!(runs.len(), 1, "{runs:?}");
    let trimming = ended(&operator, "log_trimming", runs[0]["id"].as_str().unwrap()).await;
    assert_eq!((&trimming["trigger"], &trimming["state"]), (&json!("schedule"), &json!("done")));
    assert_eq!(trimming["summary"], "removed 1 of idempotency");
    eventually(async || job(&operator, "log_trimming").await["next_run_at"] == "2027-01-16T09:10:00Z").await;
    let standing = job(&operator, "log_trimming").await;
    assert_eq!(standing["last_run"]["outcome"], "done");
    assert_eq!(standing["schedule"], "*/10 * * * *");

    // A run that finds nothing to do leaves no trace; the history itself is trimmed.
    app.pass(TimeDelta::days(40));
    let operator = app.operator().await;
    eventually(async || {
        let runs = history(&operator, "log_trimming").await;
        runs.first().is_some_and(|run| run["summary"].as_str().unwrap().contains(" of job_run"))
    })
    .await;
}

async fn a_paused_job_runs_only_when_asked(app: &TestApp) {
    let operator = app.operator().await;
    let paused = pause(&operator, "activity_states", true).await;
    assert_eq!(paused["next_run_at"], Value::Null);
    assert_eq!(job(&operator, "activity_states").await["paused"], true);
    pause(&operator, "activity_states", true).await;
    let activity = app.approved(Offer::of(1).between(TimeDelta::hours(1), TimeDelta::hours(2))).await;
    app.restart().await;
    app.pass(TimeDelta::hours(1));
    let id = ask(&operator, "log_trimming", json!({})).await;
    ended(&operator, "log_trimming", &id).await;
    assert_eq!(app.activity(&activity).await["state"], "approved");

    let resumed = pause(&operator, "activity_states", false).await;
    assert_ne!(resumed["next_run_at"], Value::Null);
    eventually(async || app.activity(&activity).await["state"] == "running").await;
    let by_schedule = async || {
        let runs = history(&operator, "activity_states").await;
        runs.iter().map(|run| &run["trigger"]).eq(["schedule"])
    };
    eventually(by_schedule).await;

    // Moments that pass during a pause are not caught up with.
    pause(&operator, "log_trimming", true).await;
    app.pass(TimeDelta::hours(20));
    let resumed = pause(&operator, "log_trimming", false).await;
    assert_eq!(resumed["next_run_at"], "2027-01-16T05:10:00Z");
}

async fn a_job_that_fails_is_reported_once(app: &TestApp) {
    let operator = app.operator().await;
    let activity = app.approved(Offer::of(1).between(TimeDelta::hours(1), TimeDelta::hours(2))).await;
    let rename = async |name: &str| {
        let connection = app.database.connect().await;
        let update = activity::Entity::update_many().col_expr(activity::Column::Name, Expr::value(name));
        let update = update.filter(activity::Column::Id.eq(activity.parse::<i64>().unwrap()));
        update.exec(&connection).await.unwrap();
        connection.close().await.unwrap();
    };
    // No activity is without a name: it cannot be read.
    rename("").await;
    app.pass(TimeDelta::hours(1));
    eventually(async || job(&operator, "activity_states").await["last_run"]["outcome"] == "failed").await;
    let failed = job(&operator, "activity_states").await;
    let error = failed["last_run"]["error"].as_str().unwrap();
    assert!(error.contains("nor start 1"), "{error}");

    // It fails the same way many times a second, and is told when asked.
    let id = ask(&operator, "activity_states", json!({})).await;
    let run = ended(&operator, "activity_states", &id).await;
    assert_eq!((&run["state"], &run["error"]), (&json!("failed"), &json!(error)));
    assert_eq!(history(&operator, "activity_states").await.len(), 2);

    rename("Mooncakes").await;
    eventually(async || app.activity(&activity).await["state"] == "running").await;
    eventually(async || job(&operator, "activity_states").await["last_run"]["outcome"] == "done").await;
}

async fn what_a_job_does_not_take_is_refused(app: &TestApp) {
    let operator = app.operator().await;
    let path = "/admin/jobs/log_trimming/runs";
    for (body, pointer) in [
        (json!({"params": {"partitions": [1]}}), "/params/partitions"),
        (json!({"params": []}), "/params"),
        (json!({"params": "all"}), "/params"),
        (json!({"parameters": {}}), "/parameters"),
    ] {
        let problem = operator.post(path, body.clone()).await.refused(422, "validation_failed");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}");
    }
    for body in
        [json!({}), json!({"paused": null}), json!({"paused": "yes"}), json!({"paused": true, "until": 1})]
    {
        operator.patch("/admin/jobs/log_trimming", body).await.refused(422, "validation_failed");
    }
    let id = ask(&operator, "log_trimming", json!({"params": {}})).await;
    ended(&operator, "log_trimming", &id).await;
    assert_eq!(history(&operator, "log_trimming").await.len(), 1);

    for unknown in ["lunch", "LOG_TRIMMING", "log_trimming%20"] {
        operator.post(&format!("/admin/jobs/{unknown}/runs"), json!({})).await.refused(404, "not_found");
        operator.get(&format!("/admin/jobs/{unknown}/runs")).await.refused(404, "not_found");
        operator
            .patch(&format!("/admin/jobs/{unknown}"), json!({"paused": true}))
            .await
            .refused(404, "not_found");
    }
    for path in
        [format!("activity_states/runs/{id}"), "log_trimming/runs/1".into(), "log_trimming/runs/x".into()]
    {
        operator.get(&format!("/admin/jobs/{path}")).await.refused(404, "not_found");
    }
}

async fn jobs_are_for_staff(app: &TestApp) {
    let (viewer, customer) = (app.viewer().await, app.customer("alice").await);
    let listed = viewer.get("/admin/jobs").await.is(200);
    let names: Vec<&Value> = listed["items"].as_array().unwrap().iter().map(|job| &job["name"]).collect();
    assert!(
        names.is_sorted_by_key(|name| name.as_str().unwrap().to_owned()) && names.len() >= 2,
        "{names:?}"
    );
    assert_eq!(history(&viewer, "log_trimming").await, [Value::Null; 0]);
    viewer.post("/admin/jobs/log_trimming/runs", json!({})).await.refused(403, "forbidden");
    viewer.patch("/admin/jobs/log_trimming", json!({"paused": true})).await.refused(403, "forbidden");
    for path in ["/admin/jobs", "/admin/jobs/log_trimming/runs"] {
        customer.get(path).await.refused(403, "forbidden");
        app.nobody().get(path).await.refused(401, "unauthenticated");
    }
    assert_eq!(job(&viewer, "log_trimming").await["paused"], false);
}

async fn runs_come_in_pages(app: &TestApp) {
    let operator = app.operator().await;
    let mut newest_first = Vec::new();
    for _ in 0..5 {
        newest_first.insert(0, ask(&operator, "log_trimming", json!({})).await);
    }
    for id in &newest_first {
        ended(&operator, "log_trimming", id).await;
    }
    let runs = crate::lists::pages(&operator, "/admin/jobs/log_trimming/runs", 2).await;
    assert_eq!(runs.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
    assert_eq!(runs.concat(), newest_first);

    let first = operator.get("/admin/jobs?limit=1").await.is(200);
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = operator.get(&format!("/admin/jobs?limit=1&cursor={cursor}")).await.is(200);
    assert_ne!(first["items"], second["items"]);
    assert_eq!(second["items"].as_array().unwrap().len(), 1);
}

async fn a_command_runs_a_job_beside_the_server(app: &TestApp) {
    let operator = app.operator().await;
    let launch = Launch::on(&app.database.url);
    let command = async |arguments: &'static [&str]| {
        let launch = launch.clone();
        let done = tokio::task::spawn_blocking(move || launch.run(arguments)).await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
    };
    // A job that no node keeps is run by the command, one that the server keeps by the server.
    for job in ["log_trimming", "activity_states"] {
        let arguments: &[&str] = if job == "log_trimming" {
            &["job", "run", "log_trimming", "--params", "{}"]
        } else {
            &["job", "run", "activity_states"]
        };
        let (code, out, err) = command(arguments).await;
        assert_eq!(code, 0, "{err}");
        assert!(
            out.starts_with(&format!("Job {job} is done after ")) && out.ends_with(": nothing to do\n"),
            "{out}"
        );
        let runs = history(&operator, job).await;
        assert_eq!((&runs[0]["trigger"], &runs[0]["state"]), (&json!("command"), &json!("done")), "{runs:?}");
    }
    let (code, out, _) = command(&["job", "list"]).await;
    assert_eq!(code, 0);
    assert!(
        out.contains("log_trimming") && out.contains("*/10 * * * *") && out.contains("every 1s"),
        "{out}"
    );

    let (code, _, err) = command(&["job", "run", "lunch"]).await;
    assert_eq!(code, 2);
    assert!(err.contains("there is no job \"lunch\"; there are activity_states, "), "{err}");
    let (code, _, err) = command(&["job", "run", "log_trimming", "--params", "{\"all\": true}"]).await;
    assert_eq!(code, 2);
    assert!(err.contains("unknown field `all`"), "{err}");
}
