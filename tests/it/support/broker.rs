//! A place on the RabbitMQ that `tests/run` started.

use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::eventually;

/// What `docker/` loads into a broker; a server must find it as it would have made it.
const DEFINITIONS: &str = include_str!("../../../docker/rabbitmq/definitions.json");

/// A virtual host that nobody else uses, with the exchanges and queues of `docker/`.
#[derive(Debug)]
pub(crate) struct VirtualHost {
    pub(crate) url: String,
    name: String,
}

impl VirtualHost {
    pub(crate) async fn create() -> Self {
        let name = format!("story_{}", uuid::Uuid::now_v7().simple());
        let (api, http) = (setting("TOMBOLA_TEST_RABBITMQ_API"), reqwest::Client::new());
        let made = http.put(format!("{api}/vhosts/{name}")).send().await.unwrap();
        made.error_for_status().expect("a virtual host");
        let definitions: Value = serde_json::from_str(DEFINITIONS).unwrap();
        let loaded = http.post(format!("{api}/definitions/{name}")).json(&definitions).send().await.unwrap();
        loaded.error_for_status().expect("definitions that can be loaded");
        let broker = setting("TOMBOLA_TEST_RABBITMQ_URL");
        let (broker, _) = broker.rsplit_once('/').expect("a URL with a virtual host");
        Self { url: format!("{broker}/{name}"), name }
    }

    /// Removes it with all its queues, which cost the broker something even when they are empty.
    pub(crate) async fn remove(self) {
        let url = format!("{}/vhosts/{}", setting("TOMBOLA_TEST_RABBITMQ_API"), self.name);
        let removed = reqwest::Client::new().delete(url).send().await.unwrap();
        removed.error_for_status().expect("a virtual host that can be removed");
    }

    /// Puts `body` into a queue, as whoever may do so can.
    pub(crate) async fn send(&self, queue: &str, body: &[u8]) {
        let message = json!({
            "properties": {}, "routing_key": queue,
            "payload": BASE64_STANDARD.encode(body), "payload_encoding": "base64",
        });
        let url =
            format!("{}/exchanges/{}/amq.default/publish", setting("TOMBOLA_TEST_RABBITMQ_API"), self.name);
        // A server that has just started is still declaring its queues.
        eventually(async || {
            let sent = reqwest::Client::new().post(&url).json(&message).send().await.unwrap();
            let routed = match sent.error_for_status() {
                Ok(answer) => answer.json::<Value>().await.unwrap()["routed"].clone(),
                Err(_) => Value::Null,
            };
            routed == true
        })
        .await;
    }

    /// Closes every connection, as a broker does that is stopped for maintenance.
    pub(crate) fn close_connections(&self) {
        let closed = Command::new(setting("TOMBOLA_TEST_RABBITMQCTL"))
            .args(["close_all_connections", "--vhost", &self.name, "maintenance"])
            .output()
            .expect("rabbitmqctl");
        assert!(closed.status.success(), "{}", String::from_utf8_lossy(&closed.stderr));
    }
}

fn setting(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: run tests/run, which starts a RabbitMQ"))
}
