use std::path::Path;

use rstest::rstest;
use sea_orm::{ConnectionTrait, DbBackend, EntityTrait, PaginatorTrait, Statement};

use super::*;
use crate::config::Sources;
use crate::db::testing::{Engine, TestDatabase};
use crate::demo::{self, Pace};
use crate::jobs;

fn config(directory: &Path) -> Config {
    let url = format!("sqlite://{}", directory.join("data/shop.db").display());
    let settings = [("http.address", "127.0.0.1:0".to_owned()), ("database.url", url)];
    let flags = settings.map(|(key, value)| (key, "test", value)).to_vec();
    Sources { flags, ..Sources::default() }.load().unwrap().config
}

async fn status(running: &Running, path: &str) -> u16 {
    let url = format!("http://{}{path}", running.address);
    reqwest::get(url).await.unwrap().status().as_u16()
}

#[actix_web::test]
async fn a_server_starts_on_nothing_stops_and_starts_again() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    let running = App::start(config(directory.path()), TimeSource::Database).await.unwrap();
    assert!(running.first_operator.is_some());
    assert_eq!(status(&running, "/livez").await, 200);
    assert_eq!(status(&running, "/readyz").await, 200);

    let second = App::start(config(directory.path()), TimeSource::Database).await;
    assert!(matches!(second, Err(StartError::DataDirectoryInUse(_))), "{second:?}");
    let command = Ground::for_command(&config(directory.path())).await.unwrap();
    assert_eq!((running.ground.cluster.node(), command.cluster.node()), (0, 1));
    command.close().await;

    let elsewhere = tempfile::tempdir().unwrap();
    let other = App::start(config(elsewhere.path()), TimeSource::Database).await.unwrap();
    assert_eq!(status(&other, "/readyz").await, 200);
    other.stop().await;
    assert_eq!(status(&running, "/readyz").await, 200);

    running.stop().await;
    let again = App::start(config(directory.path()), TimeSource::Database).await.unwrap();
    assert!(again.first_operator.is_none());
    assert_eq!(again.ground.cluster.node(), 0);
    again.stop().await;
}

#[actix_web::test]
async fn a_database_keeps_the_currency_it_was_first_used_with() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    let start = async |currency: &str| {
        let mut config = config(directory.path());
        config.shop.currency = currency.parse().unwrap();
        App::start(config, TimeSource::Database).await
    };
    start("CNY").await.unwrap().stop().await;
    let refused = start("JPY").await.unwrap_err();
    let StartError::Setting(InvalidSetting { key, problem }) = &refused else { panic!("{refused}") };
    assert_eq!(*key, "shop.currency");
    assert!(problem.contains("in CNY, not in JPY"), "{problem}");
    start("CNY").await.unwrap().stop().await;
}

#[actix_web::test]
async fn the_demo_sells_out_and_starts_again() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    let running = App::start(config(directory.path()), TimeSource::Database).await.unwrap();
    let (pause, db) = (Duration::from_millis(1), running.ground.db.clone());
    let pace = Pace { stock: 20, between_takes: pause, between_sales: pause };
    let shoppers = actix_web::rt::spawn(demo::run(running.address, running.clock().clone(), pace));
    let takes = async || {
        let count =
            db.read(|c| async move { Ok::<_, DbFault>(entities::take::Entity::find().count(&c).await?) });
        count.await.unwrap()
    };
    tokio::time::timeout(Duration::from_secs(20), async {
        while takes().await < 50 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    shoppers.abort();
    running.stop().await;
}

/// It runs every ten minutes, however much is kept.
#[rstest]
#[actix_web::test]
async fn what_is_trimmed_is_found_by_an_index(
    #[values(Engine::Sqlite, Engine::Postgres, Engine::MariaDb)] engine: Engine,
) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let place = TestDatabase::create(engine).await;
    let flags = vec![("database.url", "test", place.url.clone())];
    let config = Sources { flags, ..Sources::default() }.load().unwrap().config;
    let ground = Ground::for_command(&config).await.unwrap();
    let modules = modules_for_command(&ground, &config).await.unwrap();
    let logs = modules.logs(&ground, ["coupon_expiry", "order_deadlines", "reconciliation"]);
    let explaining = ground.db.transaction(move |tx| {
        let logs = logs.clone();
        async move {
            let backend = tx.get_database_backend();
            if backend == DbBackend::Postgres {
                // A table that is empty is read whole otherwise.
                tx.execute_unprepared("SET LOCAL enable_seqscan = off").await?;
            }
            for log in logs {
                let explain = if backend == DbBackend::Sqlite { "EXPLAIN QUERY PLAN" } else { "EXPLAIN" };
                let delete = jobs::delete(backend, &log);
                let sql = format!("{explain} {delete}");
                let sql = Statement::from_sql_and_values(backend, &sql, [0_i64.into(), 1_i64.into()]);
                let rows = tx.query_all_raw(sql).await?;
                let read_whole = rows.iter().any(|row| {
                    let text =
                        |column| row.try_get::<Option<String>>("", column).unwrap().unwrap_or_default();
                    match backend {
                        DbBackend::Sqlite => text("detail").starts_with(&format!("SCAN {}", log.table)),
                        DbBackend::Postgres => {
                            text("QUERY PLAN").contains(&format!("Seq Scan on {}", log.table))
                        }
                        _ => text("table") == log.table && text("possible_keys").is_empty(),
                    }
                });
                assert!(!read_whole, "{delete}: {rows:?}");
            }
            Ok::<_, DbFault>(())
        }
    });
    explaining.await.unwrap();
    ground.close().await;
}
