//! A TCP proxy between the server and its database or broker that loses commits and answers, cuts connections,
//! swallows bytes and leads elsewhere.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Engine;

/// What tells the end of a transaction from everything else that is sent: both drivers commit in plain text. A batch of
/// takes is a single statement on PostgreSQL and commits by itself; its events are among its parameters.
fn commits(engine: Engine) -> &'static [&'static [u8]] {
    match engine {
        Engine::Postgres => &[b"COMMIT", b"\"activity.taken."],
        _ => &[b"COMMIT"],
    }
}

/// What a broker's confirm says of itself: class 60, method 80 (AMQP 0-9-1, `basic.ack`).
const CONFIRM: &[u8] = &[0, 60, 0, 80];

/// How long a commit is held back after its client was cut off: longer than a client takes to look for its outcome.
const LATE_BY: Duration = Duration::from_millis(500);

/// A proxy; its connections end with it.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    rules: Arc<Rules>,
    accepting: JoinHandle<()>,
}

struct Rules {
    target: watch::Sender<SocketAddr>,
    /// Raised to cut every connection.
    cuts: watch::Sender<u64>,
    accepted: AtomicUsize,
    /// Connections with a lower number are silent for ever.
    silent_below: watch::Sender<usize>,
    /// Connections with a lower number never hear an answer again.
    deaf_below: AtomicUsize,
    lost_confirms: AtomicUsize,
    delay_ms: AtomicUsize,
    /// Commits still to be lost, see [`Proxy::lose_commits`], and how they are recognized.
    commits_to_lose: AtomicUsize,
    commits: watch::Sender<&'static [&'static [u8]]>,
    unanswered: AtomicUsize,
    unsent: AtomicUsize,
    obeyed_late: AtomicUsize,
}

impl Proxy {
    /// A proxy in front of `target`.
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let rules = Arc::new(Rules {
            target: watch::Sender::new(target),
            cuts: watch::Sender::new(0),
            accepted: AtomicUsize::new(0),
            silent_below: watch::Sender::new(0),
            deaf_below: AtomicUsize::new(0),
            lost_confirms: AtomicUsize::new(0),
            delay_ms: AtomicUsize::new(0),
            commits_to_lose: AtomicUsize::new(0),
            commits: watch::Sender::new(&[]),
            unanswered: AtomicUsize::new(0),
            unsent: AtomicUsize::new(0),
            obeyed_late: AtomicUsize::new(0),
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

    /// Loses every answer from now on, while questions still arrive.
    pub(crate) fn lose_answers(&self) {
        self.rules.deaf_below.store(usize::MAX, Ordering::SeqCst);
    }

    /// How many of the answers that were lost had a broker's confirm in them.
    pub(crate) fn lost_confirms(&self) -> usize {
        self.rules.lost_confirms.load(Ordering::SeqCst)
    }

    /// Cuts every connection; new ones get answers.
    pub(crate) fn cut_and_answer(&self) {
        self.rules.deaf_below.store(self.rules.accepted.load(Ordering::SeqCst), Ordering::SeqCst);
        self.cut();
    }

    /// Cuts every connection; new ones lead to `target`.
    pub(crate) fn lead_to(&self, target: SocketAddr) {
        self.rules.target.send_replace(target);
        self.cut();
    }

    /// Holds back everything the database says for so long.
    pub(crate) fn delay(&self, time: Duration) {
        self.rules
            .delay_ms
            .store(usize::try_from(time.as_millis()).expect("a short time"), Ordering::Relaxed);
    }

    /// Loses the next `count` commits, and the connection with them. When the count that is left divides by three the
    /// answer is lost; with a remainder of one the request; with two the database hears of it after the client was cut off.
    pub(crate) fn lose_commits(&self, engine: Engine, count: usize) {
        self.rules.commits.send_replace(commits(engine));
        self.rules.commits_to_lose.store(count, Ordering::SeqCst);
    }

    /// How many commits were obeyed without an answer, never arrived, and were obeyed late.
    pub(crate) fn lost_commits(&self) -> [usize; 3] {
        let Rules { unanswered, unsent, obeyed_late, .. } = &*self.rules;
        [unanswered, unsent, obeyed_late].map(|count| count.load(Ordering::SeqCst))
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
        let target = *self.target.borrow();
        let Ok(server) = TcpStream::connect(target).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let ((mut client_out, mut client_in), (mut server_out, mut server_in)) =
            (client.into_split(), server.into_split());
        let lose_answer = AtomicBool::new(false);
        let late = tokio::select! {
            late = self.upstream(number, &mut client_out, &mut server_in, &lose_answer) => late,
            () = self.downstream(number, &mut server_out, &mut client_in, &lose_answer) => None,
            _ = cuts.changed() => None,
        };
        drop((client_out, client_in));
        if let Some(late) = late {
            tokio::time::sleep(LATE_BY).await;
            if server_in.write_all(&late).await.is_ok() && server_out.read(&mut [0; 64]).await.is_ok() {
                self.obeyed_late.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    /// Forwards what the client says; answers with what is to be forwarded only after the client was cut off.
    async fn upstream(
        &self,
        number: usize,
        from: &mut OwnedReadHalf,
        to: &mut OwnedWriteHalf,
        lose_answer: &AtomicBool,
    ) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            self.unless_silent(number).await;
            let bytes = &buffer[..read];
            let commits = *self.commits.borrow();
            // What is this short arrives whole.
            if commits.iter().any(|commit| contains(bytes, commit)) {
                let one_less = |left: usize| left.checked_sub(1);
                let left = self.commits_to_lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
                match left.map(|left| left % 3) {
                    Ok(0) => lose_answer.store(true, Ordering::SeqCst),
                    Ok(1) => {
                        self.unsent.fetch_add(1, Ordering::SeqCst);
                        return None;
                    }
                    Ok(_) => return Some(bytes.to_vec()),
                    Err(_) => {}
                }
            }
            if to.write_all(bytes).await.is_err() {
                break;
            }
        }
        None
    }

    async fn downstream(
        &self,
        number: usize,
        from: &mut OwnedReadHalf,
        to: &mut OwnedWriteHalf,
        lose_answer: &AtomicBool,
    ) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            if lose_answer.load(Ordering::SeqCst) {
                self.unanswered.fetch_add(1, Ordering::SeqCst);
                return;
            }
            if number < self.deaf_below.load(Ordering::SeqCst) {
                if contains(&buffer[..read], CONFIRM) {
                    self.lost_confirms.fetch_add(1, Ordering::SeqCst);
                }
                continue;
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

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
