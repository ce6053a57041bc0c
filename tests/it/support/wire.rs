//! As much of HTTP/1.1 as the fault tests need, so that each connection, and its end, is theirs.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a client waits before it calls the outcome unknown.
const CLIENT_PATIENCE: Duration = Duration::from_secs(5);

/// A client's connection, opened when needed and kept.
#[derive(Debug, Default)]
pub(crate) struct Wire(Option<(SocketAddr, TcpStream)>);

/// What the server said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: u16,
    pub(crate) replayed: bool,
    pub(crate) body: String,
}

impl Said {
    /// The body as JSON; null if it is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

/// A request below `/api/v1`, ready to be sent.
pub(crate) fn post(path: &str, token: &str, key: &str, body: &str) -> String {
    let authorization =
        if token.is_empty() { String::new() } else { format!("authorization: Bearer {token}\r\n") };
    let key = if key.is_empty() { String::new() } else { format!("idempotency-key: {key}\r\n") };
    post_with(path, &format!("{authorization}{key}"), body)
}

/// What the sandbox tells the shop, signed.
pub(crate) fn notify(signature: &str, body: &str) -> String {
    post_with("/payments/callbacks/sandbox", &format!("tombola-signature: {signature}\r\n"), body)
}

fn post_with(path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST /api/v1{path} HTTP/1.1\r\nhost: tombola\r\n{headers}\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// A request for a page of the root.
pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: tombola\r\n\r\n")
}

impl Wire {
    /// Sends `request` to `address` and waits for the answer. After an error the outcome is unknown.
    pub(crate) async fn ask(&mut self, address: SocketAddr, request: &str) -> Result<Said> {
        let mut stream = match self.0.take() {
            Some((to, stream)) if to == address => stream,
            _ => TcpStream::connect(address).await?,
        };
        let said = tokio::time::timeout(CLIENT_PATIENCE, exchange(&mut stream, request)).await;
        let (said, keep) = said.map_err(|_| Error::from(ErrorKind::TimedOut))??;
        self.0 = keep.then_some((address, stream));
        Ok(said)
    }
}

async fn exchange(stream: &mut TcpStream, request: &str) -> Result<(Said, bool)> {
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::with_capacity(1024);
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(ErrorKind::ConnectionReset.into());
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let header =
        |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let malformed = || Error::from(ErrorKind::InvalidData);
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(malformed)?;
    let length: usize =
        header("content-length").and_then(|length| length.parse().ok()).ok_or_else(malformed)?;
    while bytes.len() < end + 4 + length {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(ErrorKind::ConnectionReset.into());
        }
    }
    let body = String::from_utf8_lossy(&bytes[end + 4..]).into_owned();
    let replayed = header("idempotency-replayed") == Some("true");
    Ok((Said { status, replayed, body }, header("connection") != Some("close")))
}
