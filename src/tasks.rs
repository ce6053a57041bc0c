//! Tasks that run as long as the server: one that panics is told of, counted, and started again after a pause.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::error;

/// The pause before a task starts again, doubled with each panic that follows soon.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Tasks that end together; at once when this is dropped.
#[derive(Debug)]
pub struct Tasks {
    runtime: Handle,
    stop: CancellationToken,
    running: JoinSet<()>,
}

impl Tasks {
    /// No task yet; what is added runs on `runtime` until `stop`.
    pub fn new(runtime: Handle, stop: CancellationToken) -> Self {
        Self { runtime, stop, running: JoinSet::new() }
    }

    /// Runs the task `name` until it ends; `work` begins it, again after each panic. It watches the token it is given.
    pub fn keep<Fut: Future<Output = ()> + Send + 'static>(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        work: impl Fn(CancellationToken) -> Fut + Send + 'static,
    ) {
        self.running.spawn_on(keep(name.into(), self.stop.clone(), work), &self.runtime);
    }

    /// As [`Tasks::keep`], for work that may be dropped at any `await` when it is to stop.
    pub fn keep_until_stop<Fut: Future<Output = ()> + Send + 'static>(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        work: impl Fn() -> Fut + Send + 'static,
    ) {
        self.keep(name, move |stop| {
            let work = work();
            async move {
                stop.run_until_cancelled(work).await;
            }
        });
    }

    /// Tells every task to end, and does not wait for it.
    pub fn cancel(&self) {
        self.stop.cancel();
    }

    /// Waits until every task has ended.
    pub async fn ended(mut self) {
        while self.running.join_next().await.is_some() {}
    }

    /// Tells every task to end, and waits until it has.
    pub async fn stop(self) {
        self.cancel();
        self.ended().await;
    }
}

async fn keep<Fut: Future<Output = ()> + Send + 'static>(
    name: Cow<'static, str>,
    stop: CancellationToken,
    work: impl Fn(CancellationToken) -> Fut,
) {
    let mut pause = SHORTEST_PAUSE;
    loop {
        let started = Instant::now();
        // A set of one: unlike a handle it ends its task when this one is dropped.
        let mut run = JoinSet::new();
        run.spawn(work(stop.clone()));
        let panic = match run.join_next().await {
            Some(Err(end)) if end.is_panic() => end,
            Some(_) | None => return,
        };
        if started.elapsed() > LONGEST_PAUSE {
            pause = SHORTEST_PAUSE;
        }
        metrics::counter!("tombola_task_deaths_total", "task" => name.clone()).increment(1);
        error!(task = %name, %panic, "Task {name} starts again in {pause:?}: {panic}");
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_begins_again_and_its_neighbour_goes_on() {
        let mut tasks = Tasks::new(Handle::current(), CancellationToken::new());
        let (begun, neighbour) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let well = Arc::new(Notify::new());
        let (counted, is_well) = (begun.clone(), well.clone());
        tasks.keep("panicky", move |stop| {
            let (counted, is_well) = (counted.clone(), is_well.clone());
            async move {
                assert!(counted.fetch_add(1, Ordering::Relaxed) >= 2, "not yet");
                is_well.notify_one();
                stop.cancelled().await;
            }
        });
        let counted = neighbour.clone();
        tasks.keep_until_stop("neighbour", move || {
            counted.fetch_add(1, Ordering::Relaxed);
            std::future::pending()
        });
        well.notified().await;
        assert_eq!(begun.load(Ordering::Relaxed), 3);
        assert_eq!(neighbour.load(Ordering::Relaxed), 1);
        tasks.stop().await;
    }

    #[tokio::test]
    async fn a_task_that_pauses_ends_when_it_is_to_stop() {
        let mut tasks = Tasks::new(Handle::current(), CancellationToken::new());
        let begun = Arc::new(AtomicU32::new(0));
        let counted = begun.clone();
        tasks.keep("panicky", move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            async { panic!("always") }
        });
        while begun.load(Ordering::Relaxed) < 4 {
            tokio::time::sleep(SHORTEST_PAUSE / 10).await;
        }
        tasks.cancel();
        let before = begun.load(Ordering::Relaxed);
        tasks.stop().await;
        assert_eq!(begun.load(Ordering::Relaxed), before);
    }

    #[tokio::test]
    async fn dropped_tasks_end() {
        let held = Arc::new(());
        let mut tasks = Tasks::new(Handle::current(), CancellationToken::new());
        let (begun, holds) = (Arc::new(Notify::new()), held.clone());
        let begins = begun.clone();
        tasks.keep("held", move |_| {
            let (begins, holds) = (begins.clone(), holds.clone());
            async move {
                begins.notify_one();
                std::future::pending::<()>().await;
                drop(holds);
            }
        });
        begun.notified().await;
        drop(tasks);
        while Arc::strong_count(&held) > 1 {
            tokio::task::yield_now().await;
        }
    }
}
