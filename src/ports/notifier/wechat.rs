//! Subscribe messages of a WeChat mini program, as
//! <https://developers.weixin.qq.com/miniprogram/dev/OpenApiDoc/mp-message-management/subscribe-message/sendMessage.html>
//! describes them.
//!
//! A user gets a message of a template only after agreeing to it in the mini program; one who did not is told in the app.
//! The access token is shared by everybody who has the application's secret, hence `stable_token`, which leaves the token
//! of others alone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use reqwest::{Client, RequestBuilder};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::{Delivery, Notice, Notifier, NotifierError};
use crate::notification::events::NotificationKind;
use crate::ports::clock::BEIJING;
use crate::ports::wire;

/// A token is renewed this long before it expires.
const MARGIN: Duration = Duration::from_secs(300);

/// The longest `thing` of a template, in characters.
const LONGEST_THING: usize = 20;

/// The longest answer that is read.
const LONGEST_ANSWER: usize = 64 << 10;

/// Error codes, as in the documents' table.
const TOKEN_REFUSED: [i64; 3] = [40001, 40014, 42001];
const UNKNOWN_USER: i64 = 40003;
const USER_REFUSES: i64 = 43101;

/// The settings of subscribe messages.
#[derive(Debug, Clone)]
pub struct WechatConfig {
    pub base_url: String,
    pub app_id: String,
    pub app_secret: SecretString,
    /// The template of each kind that is to be sent, with the fields `thing1` (what happened), `character_string2` (the
    /// order's number) and `time3` (when).
    pub templates: HashMap<NotificationKind, String>,
}

/// A mini program that sends subscribe messages.
#[derive(Debug)]
pub struct Wechat {
    client: Client,
    config: WechatConfig,
    token: Mutex<Option<Token>>,
}

/// An access token and when to renew it.
#[derive(Debug)]
struct Token {
    text: SecretString,
    renew_at: Instant,
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    access_token: Option<SecretString>,
    #[serde(default)]
    expires_in: u64,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Deserialize)]
struct Outcome {
    #[serde(default)]
    errcode: i64,
    #[serde(default)]
    errmsg: String,
}

impl Wechat {
    /// Fails if the address is none.
    pub fn new(config: WechatConfig) -> Result<Self, String> {
        wire::check_url(&config.base_url)?;
        Ok(Self { client: wire::client(wire::TIMEOUT)?, config, token: Mutex::new(None) })
    }

    async fn token(&self) -> Result<SecretString, NotifierError> {
        let mut kept = self.token.lock().await;
        if let Some(token) = kept.as_ref()
            && Instant::now() < token.renew_at
        {
            return Ok(token.text.clone());
        }
        let body = json!({
            "grant_type": "client_credential",
            "appid": self.config.app_id,
            "secret": self.config.app_secret.expose_secret(),
        });
        let asked = self.client.post(self.url("/cgi-bin/stable_token")).json(&body);
        let TokenAnswer { access_token, expires_in, outcome } = ask(asked).await?;
        let text = access_token.ok_or_else(|| outcome.refusal("no access token"))?;
        let renew_at = Instant::now() + Duration::from_secs(expires_in).saturating_sub(MARGIN);
        *kept = Some(Token { text: text.clone(), renew_at });
        Ok(text)
    }

    async fn post(&self, message: &Value) -> Result<Outcome, NotifierError> {
        let token = self.token().await?;
        let token: String = form_urlencoded::byte_serialize(token.expose_secret().as_bytes()).collect();
        let url = self.url(&format!("/cgi-bin/message/subscribe/send?access_token={token}"));
        ask(self.client.post(url).json(message)).await
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.config.base_url.trim_end_matches('/'))
    }
}

impl Outcome {
    fn refusal(&self, what: &str) -> NotifierError {
        NotifierError(format!("{what}: {} ({})", self.errmsg, self.errcode))
    }
}

#[async_trait]
impl Notifier for Wechat {
    fn provider(&self) -> &'static str {
        "wechat"
    }

    async fn send(&self, notice: &Notice) -> Result<Delivery, NotifierError> {
        let Some(template) = self.config.templates.get(&notice.kind) else {
            return Ok(Delivery::Declined(format!("there is no template for {}", notice.kind)));
        };
        let order = notice.order_id.map_or_else(|| "-".to_owned(), |order| order.to_string());
        let message = json!({
            "touser": notice.recipient,
            "template_id": template,
            "data": {
                "thing1": { "value": notice.title.chars().take(LONGEST_THING).collect::<String>() },
                "character_string2": { "value": order },
                "time3": { "value": notice.at.with_timezone(&BEIJING).format("%Y-%m-%d %H:%M").to_string() },
            },
        });
        let mut outcome = self.post(&message).await?;
        if TOKEN_REFUSED.contains(&outcome.errcode) {
            *self.token.lock().await = None;
            outcome = self.post(&message).await?;
        }
        match outcome.errcode {
            0 => Ok(Delivery::Sent),
            USER_REFUSES | UNKNOWN_USER => Ok(Delivery::Declined(outcome.errmsg)),
            _ => Err(outcome.refusal("WeChat refuses it")),
        }
    }
}

/// Sends a request and reads its JSON.
async fn ask<T: DeserializeOwned>(request: RequestBuilder) -> Result<T, NotifierError> {
    let answer = wire::send(request, LONGEST_ANSWER).await.map_err(|lost| NotifierError(lost.0))?;
    if !answer.status.is_success() {
        return Err(NotifierError(answer.status.to_string()));
    }
    serde_json::from_slice(&answer.body).map_err(|error| NotifierError(format!("no answer to read: {error}")))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use actix_web::web::{Bytes, Data};
    use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};

    use super::*;
    use crate::ids::OrderId;
    use crate::ports::clock::from_micros;

    /// What the mini program's server was asked, and what it says to the next messages.
    #[derive(Default)]
    struct Script {
        asked: Vec<(String, Value)>,
        answers: Vec<Value>,
        tokens: u32,
    }

    type Shared = Data<Mutex<Script>>;

    async fn answer(request: HttpRequest, body: Bytes, script: Shared) -> HttpResponse {
        let mut script = script.lock().unwrap();
        script.asked.push((request.uri().to_string(), serde_json::from_slice(&body).unwrap()));
        if request.path() == "/cgi-bin/stable_token" {
            script.tokens += 1;
            let token = format!("token {}", script.tokens);
            return HttpResponse::Ok().json(json!({"access_token": token, "expires_in": 7200}));
        }
        match script.answers.pop() {
            Some(Value::Null) => HttpResponse::BadGateway().finish(),
            // WeChat calls its JSON plain text.
            Some(said) => HttpResponse::Ok().content_type("text/plain").body(said.to_string()),
            None => HttpResponse::Ok().json(json!({"errcode": 0, "errmsg": "ok"})),
        }
    }

    fn server() -> (Wechat, Shared) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let script: Shared = Data::from(Arc::new(Mutex::new(Script::default())));
        let data = script.clone();
        let server =
            HttpServer::new(move || App::new().app_data(data.clone()).default_service(web::to(answer)));
        let server = server.workers(1).disable_signals().bind("127.0.0.1:0").unwrap();
        let base_url = format!("http://{}/", server.addrs()[0]);
        actix_web::rt::spawn(server.run());
        let config = WechatConfig {
            base_url,
            app_id: "wx1".to_owned(),
            app_secret: "hush".into(),
            templates: [(NotificationKind::OrderPaid, "T1".to_owned())].into(),
        };
        (Wechat::new(config).unwrap(), script)
    }

    fn notice(kind: NotificationKind) -> Notice {
        Notice {
            recipient: "oABC".to_owned(),
            kind,
            order_id: Some(OrderId(7)),
            title: "Your order is paid, and so on".to_owned(),
            at: from_micros(1_800_000_000_000_000),
        }
    }

    #[actix_web::test]
    async fn a_message_is_sent_as_the_documents_say() {
        let (wechat, script) = server();
        for _ in 0..2 {
            assert_eq!(wechat.send(&notice(NotificationKind::OrderPaid)).await, Ok(Delivery::Sent));
        }
        let message = json!({
            "touser": "oABC", "template_id": "T1",
            "data": {
                "thing1": {"value": "Your order is paid, "}, "character_string2": {"value": "7"},
                "time3": {"value": "2027-01-15 16:00"},
            },
        });
        let send = ("/cgi-bin/message/subscribe/send?access_token=token+1".to_owned(), message);
        let token = json!({"grant_type": "client_credential", "appid": "wx1", "secret": "hush"});
        let token = ("/cgi-bin/stable_token".to_owned(), token);
        assert_eq!(script.lock().unwrap().asked, [token, send.clone(), send]);
        let unknown = wechat.send(&notice(NotificationKind::PaymentFailed)).await;
        assert!(matches!(unknown, Ok(Delivery::Declined(_))), "{unknown:?}");
    }

    #[actix_web::test]
    async fn a_token_that_is_refused_is_renewed() {
        let (wechat, script) = server();
        script.lock().unwrap().answers = vec![json!({"errcode": 40001, "errmsg": "invalid credential"})];
        assert_eq!(wechat.send(&notice(NotificationKind::OrderPaid)).await, Ok(Delivery::Sent));
        assert_eq!(script.lock().unwrap().tokens, 2);
    }

    #[actix_web::test]
    async fn a_user_who_refuses_is_left_alone_and_a_fault_is_tried_again() {
        let (wechat, script) = server();
        for (said, declined) in [
            (json!({"errcode": 43101, "errmsg": "user refuse to accept the msg"}), Some(true)),
            (json!({"errcode": 40003, "errmsg": "invalid openid"}), Some(true)),
            (json!({"errcode": -1, "errmsg": "system error"}), None),
            (json!({"errcode": 47003, "errmsg": "argument invalid"}), None),
            (json!("what?"), None),
            (Value::Null, None),
        ] {
            script.lock().unwrap().answers = vec![said.clone()];
            let sent = wechat.send(&notice(NotificationKind::OrderPaid)).await;
            let found = sent.as_ref().ok().map(|delivery| matches!(delivery, Delivery::Declined(_)));
            assert_eq!(found, declined, "{said}: {sent:?}");
            assert!(!format!("{sent:?}").contains("token"), "{sent:?}");
        }
    }
}
