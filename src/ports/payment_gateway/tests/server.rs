//! A fake gateway over real HTTP: what it was asked, and what it answers.

use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::http::header::HeaderMap;
use actix_web::web::{Bytes, Data};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};

/// A request as it came.
pub(super) struct Asked {
    pub(super) method: String,
    /// With the query.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// How a gateway that works may still fail to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Hang,
    Down,
    Garbage,
    Redirect,
    Unsigned,
    StrangersKey,
    /// The body is the same JSON, but not the same bytes as were signed.
    Reserialised,
    /// The fault is the gateway's own, and said in its own words.
    SystemError,
}

impl Fault {
    pub(super) const ALL: [Self; 8] = [
        Self::Hang,
        Self::Down,
        Self::Garbage,
        Self::Redirect,
        Self::Unsigned,
        Self::StrangersKey,
        Self::Reserialised,
        Self::SystemError,
    ];
}

pub(super) type Reply = Arc<dyn Fn(&Asked) -> HttpResponse + Send + Sync>;

/// A server on the loopback interface, until it is dropped.
pub(super) struct Server {
    pub(super) url: String,
    handle: ServerHandle,
}

impl Server {
    /// Answers every request with what `reply` says; `hang` holds every answer back.
    pub(super) fn start(reply: Reply, hang: bool) -> Self {
        // What main does for the server.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let data = Data::new((reply, hang));
        let server =
            HttpServer::new(move || App::new().app_data(data.clone()).default_service(web::to(answer)));
        let server = server.workers(1).disable_signals().bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", server.addrs()[0]);
        let server = server.run();
        let handle = server.handle();
        actix_web::rt::spawn(server);
        Self { url, handle }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.handle.stop(false));
    }
}

async fn answer(request: HttpRequest, body: Bytes, data: Data<(Reply, bool)>) -> HttpResponse {
    let (reply, hang) = data.get_ref();
    if *hang {
        actix_web::rt::time::sleep(Duration::from_secs(60)).await;
    }
    let asked = Asked {
        method: request.method().to_string(),
        path: request.uri().to_string(),
        headers: request.headers().clone(),
        body: String::from_utf8(body.to_vec()).unwrap(),
    };
    reply(&asked)
}
