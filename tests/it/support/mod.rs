//! What stories and faults stand on.
//!
//! Stories: a whole server for each, in this process, on a database of its own, at a time the story decides. Faults: real
//! server processes, and a driver that keeps a ledger. A story is an `async fn(&TestApp)` that speaks HTTP like any client. [`stories!`] makes it a test on each database;
//! afterwards the [`invariants`] are checked, whatever the story was about. A database that `tests/run` did not start
//! fails the test: a story that is skipped tells nothing.

pub(crate) mod alipay;
pub(crate) mod app;
pub(crate) mod broker;
pub(crate) mod client;
pub(crate) mod database;
pub(crate) mod gateway;
pub(crate) mod invariants;
pub(crate) mod ledger;
pub(crate) mod money;
pub(crate) mod payments;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod shop;
pub(crate) mod spine;
pub(crate) mod wechat;
pub(crate) mod wire;

use std::time::Duration;

pub(crate) use app::{Offer, START, TestApp};
pub(crate) use client::{Answer, Client, Take};
pub(crate) use database::Engine;

/// How long a story may take before something must be stuck.
const LONGEST_STORY: Duration = Duration::from_secs(90);

/// Makes each named story a test on each database, as in `takes::postgres::sells_out_exactly`.
macro_rules! stories {
    ($($story:ident),+ $(,)?) => {
        mod sqlite {
            $(#[test] fn $story() { $crate::support::tell($crate::support::Engine::Sqlite, super::$story); })+
        }
        crate::support::shared_stories!($($story),+);
    };
}
pub(crate) use stories;

/// As [`stories!`], without SQLite: for stories of several servers, which share no file.
macro_rules! shared_stories {
    ($($story:ident),+ $(,)?) => {
        mod postgres {
            $(#[test] fn $story() { $crate::support::tell($crate::support::Engine::Postgres, super::$story); })+
        }
        mod mariadb {
            $(#[test] fn $story() { $crate::support::tell($crate::support::Engine::MariaDb, super::$story); })+
        }
    };
}
pub(crate) use shared_stories;

/// Tells `story` to a new server on a new database of `engine`, then checks what must hold after every story.
pub(crate) fn tell(engine: Engine, story: impl AsyncFnOnce(&TestApp)) {
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    threads.block_on(async {
        let app = TestApp::start(engine).await;
        tokio::time::timeout(LONGEST_STORY, story(&app)).await.expect("the story comes to an end");
        app.end().await;
    });
}

/// Waits until `holds`; what is promised "soon" comes within seconds.
pub(crate) async fn eventually(holds: impl AsyncFn() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("what was promised comes soon");
}
