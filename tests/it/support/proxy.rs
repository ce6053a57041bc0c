//! A TCP proxy between the server and its database that loses commits, cuts connections and swallows bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What both drivers send as plain text to end a transaction.
const COMMIT: &[u8] = b"COMMIT";

/// A proxy; its connections end with it.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    rules: Arc<Rules>,
    accepting: JoinHandle<()>,
}

struct Rules {
    target: SocketAddr,
    /// Raised to cut every connection.
    cuts: watch::Sender<u64>,
    accepted: AtomicUsize,
    /// Connections with a lower number are silent for ever.
    silent_below: watch::Sender<usize>,
    delay_ms: AtomicUsize,
    /// COMMITs still to be lost; every other one before it reaches the database, the rest after it was obeyed.
    commits_to_lose: AtomicUsize,
    commits_unsent: AtomicUsize,
    answers_lost: AtomicUsize,
}

impl Proxy {
    /// A proxy in front of `target`.
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let rules = Arc::new(Rules {
            target,
            cuts: watch::Sender::new(0),
            accepted: AtomicUsize::new(0),
            silent_below: watch::Sender::new(0),
            delay_ms: AtomicUsize::new(0),
            commits_to_lose: AtomicUsize::new(0),
            commits_unsent: AtomicUsize::new(0),
            answers_lost: AtomicUsize::new(0),
        });
        let shared = rules.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let rules = shared.clone();
                tokio::spawn(async move { rules.serve(client).await });
            }
        });
        Self { address, rules, accepting }
    }

    /// Cuts every connection.
    pub(crate) fn cut(&self) {
        self.rules.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Swallows every byte from now on, without closing anything: a black hole.
    pub(crate) fn fall_silent(&self) {
        self.rules.silent_below.send_replace(usize::MAX);
    }

    /// Forwards again, but only what new connections say, as after a firewall lost its state.
    pub(crate) fn recover(&self) {
        self.rules.silent_below.send_replace(self.rules.accepted.load(Ordering::SeqCst));
    }

    /// Holds back everything the database says for so long.
    pub(crate) fn delay(&self, time: Duration) {
        self.rules
            .delay_ms
            .store(usize::try_from(time.as_millis()).expect("a short time"), Ordering::Relaxed);
    }

    /// Loses the next `count` COMMITs, in turns the request and the answer, and the connection with them.
    pub(crate) fn lose_commits(&self, count: usize) {
        self.rules.commits_to_lose.store(count, Ordering::SeqCst);
    }

    /// How many COMMITs never reached the database, and how many were obeyed without the client learning of it.
    pub(crate) fn lost_commits(&self) -> (usize, usize) {
        let [unsent, unanswered] = [&self.rules.commits_unsent, &self.rules.answers_lost];
        (unsent.load(Ordering::SeqCst), unanswered.load(Ordering::SeqCst))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

impl Rules {
    async fn serve(&self, client: TcpStream) {
        let number = self.accepted.fetch_add(1, Ordering::SeqCst);
        let mut cuts = self.cuts.subscribe();
        cuts.mark_unchanged();
        let Ok(server) = TcpStream::connect(self.target).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let ((client_out, client_in), (server_out, server_in)) = (client.into_split(), server.into_split());
        let lose_answer = AtomicBool::new(false);
        tokio::select! {
            () = self.upstream(number, client_out, server_in, &lose_answer) => {}
            () = self.downstream(number, server_out, client_in, &lose_answer) => {}
            _ = cuts.changed() => {}
        }
    }

    async fn upstream(
        &self,
        number: usize,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        lose_answer: &AtomicBool,
    ) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            self.unless_silent(number).await;
            let bytes = &buffer[..read];
            // A command this short arrives whole.
            if bytes.windows(COMMIT.len()).any(|window| window == COMMIT)
                && let Ok(left) = self
                    .commits_to_lose
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            {
                if left % 2 == 0 {
                    self.commits_unsent.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                lose_answer.store(true, Ordering::SeqCst);
            }
            if to.write_all(bytes).await.is_err() {
                return;
            }
        }
    }

    async fn downstream(
        &self,
        number: usize,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        lose_answer: &AtomicBool,
    ) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            if lose_answer.load(Ordering::SeqCst) {
                self.answers_lost.fetch_add(1, Ordering::SeqCst);
                return;
            }
            let delay = self.delay_ms.load(Ordering::Relaxed);
            if delay > 0 {
                tokio::time::sleep(Duration::from_millis(delay as u64)).await;
            }
            self.unless_silent(number).await;
            if to.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    }

    async fn unless_silent(&self, number: usize) {
        let mut silent_below = self.silent_below.subscribe();
        let _ = silent_below.wait_for(|below| number >= *below).await;
    }
}
