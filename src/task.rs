//! Named tasks, who owns them, and how they are told to stop.
//!
//! Two sets (after neon's proxy): `connections` may end at any time; `services` must not end before the drain, and if one
//! does, the process says which and stops. Every task that starts is in one of them or is awaited by who started it.
//! Rejected: detached tasks with a handle dropped, which outlive a drain unseen.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// Spawns a task whose log lines carry its name. The caller owns the handle.
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    #[expect(clippy::disallowed_methods, reason = "this is the one place that spawns")]
    tokio::spawn(future.instrument(tracing::info_span!("task", name)))
}

/// Tells every holder to finish. Cheap to clone; `drain` is seen by all clones.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    token: CancellationToken,
}

impl Drain {
    /// A signal not yet given.
    pub fn new() -> Drain {
        Drain::default()
    }

    /// Gives the signal; later calls do nothing.
    pub fn drain(&self) {
        self.token.cancel();
    }

    /// Whether the signal was given.
    pub fn is_draining(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Resolves when the signal is given.
    pub async fn draining(&self) {
        self.token.cancelled().await;
    }

    /// A signal that is given with this one, or alone.
    pub fn child(&self) -> Drain {
        Drain { token: self.token.child_token() }
    }
}

/// Whether clients are served. Cheap to clone; may close and open again any number of times.
#[derive(Debug, Clone)]
pub struct Gate {
    open: watch::Receiver<bool>,
}

impl Gate {
    /// Open; whoever has the sender closes it.
    pub fn new() -> (watch::Sender<bool>, Gate) {
        let (sender, open) = watch::channel(true);
        (sender, Gate { open })
    }

    /// One that nobody closes.
    pub fn always() -> Gate {
        Gate::new().1
    }

    /// Whether it is open now.
    pub fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    /// Resolves when it is closed.
    pub async fn closed(&self) {
        if self.open.clone().wait_for(|open| !*open).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Tasks that may end at any time: connections and what belongs to them.
#[derive(Debug, Clone, Default)]
pub struct Connections {
    tracker: TaskTracker,
    killed: CancellationToken,
}

impl Connections {
    /// Spawns a task into this set.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let killed = self.killed.clone();
        drop(spawn(
            name,
            self.tracker.track_future(async move {
                // Killed or ended by itself, it is over.
                let _ = killed.run_until_cancelled(future).await;
            }),
        ));
    }

    /// Drops every task of the set where it stands, as the end of the process would.
    pub fn kill(&self) {
        self.killed.cancel();
    }

    /// How many run now.
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Whether none runs.
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Waits until all have ended, or the deadline; says whether all did.
    pub async fn join(&self, deadline: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok()
    }
}
