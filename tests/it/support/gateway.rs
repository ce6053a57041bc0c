//! What the gateways of stories share: keys, a server to be asked at, and the way they tell the shop something.

use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::thread::JoinHandle;

use actix_web::web::ServiceConfig;
use actix_web::{App, HttpServer};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use reqwest::{Method, RequestBuilder};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use tokio::sync::oneshot;

use super::{Answer, TestApp};

/// Signs for both sides: which key is whose is the business of the adapters' own tests.
pub(crate) static KEY: LazyLock<Key> = LazyLock::new(Key::generate);
/// Nobody's that the shop knows.
pub(crate) static STRANGER: LazyLock<Key> = LazyLock::new(Key::generate);

/// Both halves in Base64.
pub(crate) struct Key {
    pub(crate) private: String,
    pub(crate) public: String,
    pair: RsaKeyPair,
}

impl Key {
    fn generate() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key.pem");
        let file = file.to_str().unwrap();
        openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", file]);
        let private = std::fs::read_to_string(file).unwrap();
        let public = openssl(&["pkey", "-in", file, "-pubout"]);
        let der = BASE64_STANDARD.decode(inside(&private)).unwrap();
        Self {
            pair: RsaKeyPair::from_pkcs8(&der).unwrap(),
            private: inside(&private),
            public: inside(&public),
        }
    }

    /// A signature in Base64.
    pub(crate) fn sign(&self, text: &str) -> String {
        let mut signature = vec![0; self.pair.public().modulus_len()];
        let random = SystemRandom::new();
        self.pair.sign(&RSA_PKCS1_SHA256, &random, text.as_bytes(), &mut signature).unwrap();
        BASE64_STANDARD.encode(signature)
    }
}

fn openssl(args: &[&str]) -> String {
    let output = Command::new("openssl").args(args).stderr(Stdio::null()).output();
    let output = output.expect("the openssl command is needed for this story");
    assert!(output.status.success(), "openssl {args:?} failed");
    String::from_utf8(output.stdout).unwrap()
}

/// What is between the lines of a PEM file.
fn inside(pem: &str) -> String {
    pem.lines().filter(|line| !line.starts_with("-----")).collect()
}

/// A server of its own, until it is dropped.
pub(crate) struct Server {
    pub(crate) url: String,
    _stop: oneshot::Sender<()>,
    _thread: JoinHandle<()>,
}

impl Server {
    /// Starts a server with the routes of `configure`.
    pub(crate) async fn start(configure: impl Fn(&mut ServiceConfig) + Clone + Send + 'static) -> Self {
        let (started, url) = oneshot::channel();
        let (stop, stopping) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let server = HttpServer::new(move || App::new().configure(configure.clone()));
                let server = server.workers(1).disable_signals().bind("127.0.0.1:0").unwrap();
                started.send(format!("http://{}", server.addrs()[0])).unwrap();
                let server = server.run();
                let handle = server.handle();
                actix_web::rt::spawn(server);
                let _ = stopping.await;
                handle.stop(false).await;
            });
        });
        Self { url: url.await.unwrap(), _stop: stop, _thread: thread }
    }
}

/// What a gateway posts to the shop.
#[derive(Debug, Clone)]
pub(crate) struct Notice {
    pub(crate) channel: &'static str,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: String,
}

impl Notice {
    fn request(&self, app: &TestApp) -> RequestBuilder {
        let request = app.nobody().request(Method::POST, &format!("/payments/callbacks/{}", self.channel));
        let headers = self.headers.iter();
        headers.fold(request, |request, (name, value)| request.header(*name, value)).body(self.body.clone())
    }

    /// The status and the body that the gateway reads.
    pub(crate) async fn told(&self, app: &TestApp) -> (u16, String) {
        let response = self.request(app).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// The shop refuses it with this status and code.
    pub(crate) async fn refused(&self, app: &TestApp, status: u16, code: &str) {
        Answer::to(self.request(app)).await.refused(status, code);
    }

    /// This notice with another body.
    pub(crate) fn saying(&self, body: impl Into<String>) -> Self {
        Self { body: body.into(), ..self.clone() }
    }
}
