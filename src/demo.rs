//! `serve --demo`: something alive to look at. A give-away is always running, and a few simulated shoppers take from
//! it. They are ordinary clients: they know nothing but the address, and go through the public API.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use chrono::{SecondsFormat, TimeDelta};
use rand::RngExt;
use reqwest::{Client, Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;
use tracing::warn;

use crate::ports::clock::SharedClock;

/// What the sales of the demo are called.
const SALE: &str = "Demo give-away";

/// Who runs them.
const OPERATOR: &str = "demo-operator";

/// How many take part.
const SHOPPERS: usize = 25;

/// How long the demo waits after the server refused something it did not expect.
const PATIENCE: Duration = Duration::from_secs(5);

/// How lively the demo is.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Units in a sale.
    pub stock: u32,
    /// How long to wait between two takes, on average.
    pub between_takes: Duration,
    /// How long a sold-out sale stays the latest one.
    pub between_sales: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { stock: 200, between_takes: Duration::from_millis(300), between_sales: Duration::from_secs(10) }
    }
}

/// The server refused something, or did not answer.
#[derive(Debug, Error)]
enum DemoError {
    #[error(transparent)]
    Http(#[from] reqwest::Error),
    #[error("{path}: {status} {code}")]
    Refused { path: String, status: StatusCode, code: String },
}

impl DemoError {
    fn code(&self) -> Option<&str> {
        match self {
            Self::Http(_) => None,
            Self::Refused { code, .. } => Some(code),
        }
    }
}

/// Keeps a sale running and shoppers shopping, until dropped.
pub async fn run(server: SocketAddr, clock: SharedClock, pace: Pace) {
    let mut demo = Demo { api: Api::of(server), clock, pace, operator: None, shoppers: vec![None; SHOPPERS] };
    loop {
        if let Err(error) = demo.hold_a_sale().await {
            warn!(%error, "The demo waits: {error}");
            demo.forget_tokens();
            tokio::time::sleep(PATIENCE).await;
        }
    }
}

struct Demo {
    api: Api,
    clock: SharedClock,
    pace: Pace,
    /// Access tokens, once they are needed.
    operator: Option<String>,
    shoppers: Vec<Option<String>>,
}

#[derive(Deserialize)]
struct Session {
    access_token: String,
}

#[derive(Deserialize)]
struct Activity {
    id: String,
    name: String,
}

#[derive(Deserialize)]
struct List {
    items: Vec<Activity>,
}

impl Demo {
    /// Takes from the running sale, or a new one, until it is sold out or closed.
    async fn hold_a_sale(&mut self) -> Result<(), DemoError> {
        let sale = match self.running_sale().await? {
            Some(sale) => sale,
            None => self.start_sale().await?,
        };
        loop {
            match self.take_one(&sale).await {
                Ok(()) => {}
                Err(error) => match error.code() {
                    Some("take_limit_reached" | "overloaded" | "rate_limited") => {}
                    Some("sold_out") => break,
                    Some("activity_not_running") => return Ok(()),
                    _ => return Err(error),
                },
            }
            tokio::time::sleep(self.pace.between_takes.mul_f64(rand::random_range(0.2..1.8))).await;
        }
        tokio::time::sleep(self.pace.between_sales).await;
        let operator = self.operator().await?;
        match self.api.transition(&operator, &sale, "close").await {
            // Its time ran out meanwhile.
            Err(error) if error.code() == Some("transition_not_allowed") => Ok(()),
            closed => closed,
        }
    }

    async fn running_sale(&mut self) -> Result<Option<String>, DemoError> {
        let operator = self.operator().await?;
        let path = "/activities?state=running&kind=giveaway&limit=100";
        let list: List = self.api.send(Method::GET, path, Some(&operator), None).await?;
        Ok(list.items.into_iter().find(|activity| activity.name == SALE).map(|activity| activity.id))
    }

    async fn start_sale(&mut self) -> Result<String, DemoError> {
        let operator = self.operator().await?;
        let now = self.clock.now();
        let time = |at: crate::ports::clock::Timestamp| at.to_rfc3339_opts(SecondsFormat::Micros, true);
        let sale = json!({
            "name": SALE,
            "kind": "giveaway",
            "starts_at": time(now),
            "ends_at": time(now + TimeDelta::days(1)),
            "stock_total": self.pace.stock,
            "take_limit_per_user": self.pace.stock.div_ceil(10),
        });
        let sale: Activity =
            self.api.send(Method::POST, "/admin/activities", Some(&operator), Some(sale)).await?;
        for event in ["submit", "approve"] {
            self.api.transition(&operator, &sale.id, event).await?;
        }
        match self.api.transition(&operator, &sale.id, "start").await {
            // The job that starts sales on time was faster.
            Err(error) if error.code() == Some("transition_not_allowed") => {}
            started => started?,
        }
        Ok(sale.id)
    }

    async fn take_one(&mut self, sale: &str) -> Result<(), DemoError> {
        let shopper = rand::rng().random_range(0..self.shoppers.len());
        let token = match &self.shoppers[shopper] {
            Some(token) => token.clone(),
            None => {
                let token = self.api.sign_in(&format!("demo-shopper-{}", shopper + 1), "customer").await?;
                self.shoppers[shopper].insert(token).clone()
            }
        };
        let path = format!("/activities/{sale}/takes");
        self.api.send::<Value>(Method::POST, &path, Some(&token), None).await.map(drop)
    }

    async fn operator(&mut self) -> Result<String, DemoError> {
        match &self.operator {
            Some(token) => Ok(token.clone()),
            None => Ok(self.operator.insert(self.api.sign_in(OPERATOR, "operator").await?).clone()),
        }
    }

    /// They may have expired.
    fn forget_tokens(&mut self) {
        self.operator = None;
        self.shoppers.fill(None);
    }
}

/// The public API, as any client sees it.
struct Api {
    client: Client,
    base: String,
}

impl Api {
    fn of(mut server: SocketAddr) -> Self {
        // A server that listens everywhere is reached here.
        match server {
            SocketAddr::V4(_) if server.ip().is_unspecified() => server.set_ip(Ipv4Addr::LOCALHOST.into()),
            SocketAddr::V6(_) if server.ip().is_unspecified() => server.set_ip(Ipv6Addr::LOCALHOST.into()),
            SocketAddr::V4(_) | SocketAddr::V6(_) => {}
        }
        Self { client: Client::new(), base: format!("http://{server}/api/v1") }
    }

    async fn sign_in(&self, name: &str, role: &str) -> Result<String, DemoError> {
        let body = json!({ "provider": "dev", "name": name, "roles": [role] });
        let session: Session = self.send(Method::POST, "/sessions", None, Some(body)).await?;
        Ok(session.access_token)
    }

    async fn transition(&self, operator: &str, activity: &str, event: &str) -> Result<(), DemoError> {
        let path = format!("/admin/activities/{activity}/transitions");
        let body = json!({ "event": event });
        self.send::<Value>(Method::POST, &path, Some(operator), Some(body)).await.map(drop)
    }

    async fn send<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<Value>,
    ) -> Result<T, DemoError> {
        let mut request =
            self.client.request(method, format!("{}{path}", self.base)).timeout(Duration::from_secs(10));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = &body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.json().await?);
        }
        let problem: Value = response.json().await.unwrap_or_default();
        let code = problem["code"].as_str().unwrap_or_default().to_owned();
        Err(DemoError::Refused { path: path.to_owned(), status, code })
    }
}
