//! When thousands come, or must go, at the same time.
//!
//! Stock clients read no hint: they come back after fixed times (JS 1, 2, 5, 10 s; Python five times at most, `protocol.md`
//! §10.1), so a refusal costs a Python client one of its lives, and a server that closes all at once gets all back at once.
//! What is left to the server is time, and it takes it here:
//! * connections are accepted at a bounded rate; those beyond wait in the kernel's queue, unrefused;
//! * subscriptions take turns at the hub, a few of each connection and a bounded number in all, first come, first served;
//! * at a drain each connection is closed at a random moment of a window that grows with their number.
//!
//! Whoever does read hints finds one in the reason of the close frame, and in `Retry-After` of 429 and 503.
//! Rejected: refusing joins while there are too many. Python does not try again after a join that was refused.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::limits::GatewayConfig;
use crate::channel::Answer;
use crate::hub::SubscribeError;

/// A subscription that only waits, be it for facts or for its place in a replay, makes room for others after this.
const TURN: Duration = Duration::from_secs(1);
/// When a question to the hub counts as lost and is asked again.
const HUB_DEADLINE: Duration = Duration::from_secs(30);
/// The latest that a client is told to come back.
const LONGEST_HINT: u64 = 5;

/// Turns at the hub, of all connections.
pub(super) struct Turns {
    all: Arc<Semaphore>,
    each: usize,
    /// The longest of one.
    longest: Duration,
}

/// Turns of one connection.
pub(super) struct OwnTurns(Arc<Semaphore>);

impl Turns {
    pub(super) fn new(config: &GatewayConfig) -> Turns {
        let all = config.max_subscribing.clamp(1, Semaphore::MAX_PERMITS);
        let each = config.max_connection_subscribing.clamp(1, all);
        Turns { all: Arc::new(Semaphore::new(all)), each, longest: TURN }
    }

    /// Those of a new connection.
    pub(super) fn own(&self) -> OwnTurns {
        OwnTurns(Arc::new(Semaphore::new(self.each)))
    }

    /// Works when it is this connection's turn. First its own, then everybody's: however many a connection has to do, it
    /// stands in the common queue with a few.
    pub(super) fn run<T>(
        &self,
        own: &OwnTurns,
        work: impl Future<Output = T> + Send + 'static,
    ) -> impl Future<Output = T> + Send + 'static {
        let (all, own, longest) = (self.all.clone(), own.0.clone(), self.longest);
        async move {
            let turn = (turn(own).await, turn(all).await);
            let mut work = std::pin::pin!(work);
            if let Ok(done) = tokio::time::timeout(longest, work.as_mut()).await {
                return done;
            }
            drop(turn);
            work.await
        }
    }
}

/// An answer that does not come is a "try again".
pub(super) async fn bounded(asking: impl Future<Output = Answer>) -> Answer {
    let late = || SubscribeError { message: "Subscribing takes too long, trying again".into(), retry: true };
    tokio::time::timeout(HUB_DEADLINE, asking).await.unwrap_or_else(|_| Err(late()))
}

async fn turn(of: Arc<Semaphore>) -> OwnedSemaphorePermit {
    match of.acquire_owned().await {
        Ok(permit) => permit,
        // Nobody closes it.
        Err(_) => std::future::pending().await,
    }
}

/// Lets so many pass in a second, evenly, with a little reserve for those who come together.
pub(super) struct Pace {
    each: Duration,
    /// When the next one is due, if there were no reserve.
    due: Instant,
}

/// What the reserve of a [`Pace`] holds.
const RESERVE: Duration = Duration::from_millis(100);

impl Pace {
    pub(super) fn new(per_second: u32) -> Pace {
        Pace { each: Duration::from_secs(1) / per_second.max(1), due: Instant::now() }
    }

    /// How long the next one has to wait.
    pub(super) fn next(&mut self, now: Instant) -> Duration {
        self.due = self.due.max(now.checked_sub(RESERVE).unwrap_or(now)) + self.each;
        self.due.saturating_duration_since(now)
    }
}

/// Over how long so many connections are closed at a drain.
pub(super) fn window(config: &GatewayConfig, connections: usize) -> Duration {
    let needed = Duration::from_secs_f64(connections as f64 / f64::from(config.max_closes_per_second.max(1)));
    needed.min(config.drain_window)
}

/// How long one of so many connections stays at a drain.
pub(super) fn farewell(config: &GatewayConfig, connections: usize) -> Duration {
    window(config, connections).mul_f64(rand::random::<f64>())
}

/// Seconds after which to come back: not all at once.
pub(super) fn hint() -> u64 {
    rand::random_range(1..=LONGEST_HINT)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt as _;
    use futures_util::future::join_all;

    use super::*;

    fn turns(all: usize, each: usize) -> Turns {
        let config =
            GatewayConfig { max_subscribing: all, max_connection_subscribing: each, ..GatewayConfig::default() };
        Turns::new(&config)
    }

    #[tokio::test]
    async fn no_more_than_so_many_work_at_a_time_and_one_who_asks_for_much_does_not_hold_up_the_others() {
        let turns = turns(4, 2);
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let work = |name: usize| {
            let (running, most, order) = (running.clone(), most.clone(), order.clone());
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
                running.fetch_sub(1, Ordering::SeqCst);
                order.lock().unwrap().push(name);
            }
        };
        let greedy = turns.own();
        let mut all: Vec<_> = (0..100).map(|_| turns.run(&greedy, work(0)).boxed()).collect();
        all.extend((1..=6).map(|name| turns.run(&turns.own(), work(name)).boxed()));
        join_all(all).await;
        assert_eq!(most.load(Ordering::SeqCst), 4);
        let order = order.lock().unwrap();
        let last = (1..=6).map(|name| order.iter().position(|other| *other == name).unwrap()).max();
        assert!(last < Some(24), "{order:?}");
    }

    #[tokio::test]
    async fn who_only_waits_makes_room() {
        let turns = Turns { longest: Duration::from_millis(5), ..turns(1, 1) };
        let (tell, told) = tokio::sync::oneshot::channel();
        let long = turns.run(&turns.own(), told);
        let short = turns.run(&turns.own(), async move { tell.send(7) });
        let (long, short) = tokio::join!(long, short);
        assert_eq!((long, short), (Ok(7), Ok(())));
    }

    #[test]
    fn a_pace_is_kept_after_a_small_reserve_and_does_not_save_up() {
        let mut pace = Pace::new(1000);
        let minute = pace.due + Duration::from_secs(60);
        let first: Vec<Duration> = (0..1000).map(|_| pace.next(minute)).collect();
        assert!(first[..100].iter().all(Duration::is_zero), "{:?}", &first[..101]);
        assert_eq!(first[999], Duration::from_millis(900));
        assert!((0..50).all(|_| pace.next(minute + Duration::from_secs(1)).is_zero()));
    }

    #[test]
    fn a_few_connections_are_closed_at_once_and_many_within_the_window() {
        let config = GatewayConfig::default();
        assert!(window(&config, 0).is_zero() && window(&config, 10) < Duration::from_millis(20));
        assert_eq!(window(&config, 1_000_000), config.drain_window);
        let moments: Vec<Duration> = (0..1000).map(|_| farewell(&config, 1_000_000)).collect();
        assert!(moments.iter().all(|moment| *moment < config.drain_window));
        let early = moments.iter().filter(|moment| **moment < config.drain_window / 2).count();
        assert!((300..700).contains(&early), "{early}");
        assert!((0..100).all(|_| (1..=LONGEST_HINT).contains(&hint())));
    }
}
