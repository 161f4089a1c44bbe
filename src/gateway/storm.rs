//! When thousands come, or must go, at the same time.
//!
//! Stock clients read no hint: they come back after fixed times (JS 1, 2, 5, 10 s; Python five times at most, `protocol.md`
//! §10.1), so a refusal costs a Python client one of its lives, and a server that closes all at once gets all back at once.
//! What is left to the server is time, and it takes it here:
//! * connections are accepted at a bounded rate; those beyond wait in the kernel's queue, unrefused;
//! * subscriptions take turns at the hub, a few of each connection and a bounded number in all, first come, first served, but
//!   some of the turns are only for who has nothing to catch up with: the stock client of a device that comes for the first
//!   time gives up after ten seconds, and its join is done in a moment;
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
use crate::hub::{Entry, Start, SubscribeError};
use crate::resume::Cursor;

/// A subscription that only waits, be it for facts or for its place in a replay, makes room for others after this.
const TURN: Duration = Duration::from_secs(1);
/// When a question to the hub counts as lost and is asked again.
const HUB_DEADLINE: Duration = Duration::from_secs(30);
/// The latest that a client is told to come back.
const LONGEST_HINT: u64 = 5;

/// One of so many turns is for those alone who begin now.
const RESERVED: usize = 4;
/// Who is so many bytes of the stream behind has as good as nothing to catch up with.
const MOMENT: u64 = 256 * 1024;

/// Turns at the hub, of all connections.
pub(super) struct Turns {
    all: Arc<Semaphore>,
    /// For those alone who begin now. The others have turns that these wait for like them, so neither starves.
    reserved: Arc<Semaphore>,
    each: usize,
    /// The longest of one.
    longest: Duration,
}

/// Turns of one connection.
pub(super) struct OwnTurns(Arc<Semaphore>);

/// What a subscription asks of the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    /// What happens from now on, or so little before that it is no work.
    Now,
    /// Also what happened before.
    Past,
}

impl Asks {
    /// Of these entries, of which those that name no place begin where the log was when they were read.
    pub(super) fn of(entries: &[Entry], here: Option<Cursor>) -> Asks {
        let near = |cursor: &Cursor| {
            let behind = |here: Cursor| here.position.lsn.0.saturating_sub(cursor.position.lsn.0);
            here.filter(|here| here.epoch == cursor.epoch).is_some_and(|here| behind(here) <= MOMENT)
        };
        let now = |entry: &Entry| {
            entry.snapshot.is_none()
                && match &entry.start {
                    Start::Now | Start::Lost => true,
                    Start::After(cursor) => near(cursor),
                    Start::Time(_) => false,
                }
        };
        if entries.iter().all(now) { Asks::Now } else { Asks::Past }
    }
}

impl Turns {
    pub(super) fn new(config: &GatewayConfig) -> Turns {
        let all = config.max_subscribing.clamp(1, Semaphore::MAX_PERMITS);
        let (each, reserved) = (config.max_connection_subscribing.clamp(1, all), all / RESERVED);
        let of = |turns| Arc::new(Semaphore::new(turns));
        Turns { all: of(all - reserved), reserved: of(reserved), each, longest: TURN }
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
        asks: Asks,
        work: impl Future<Output = T> + Send + 'static,
    ) -> impl Future<Output = T> + Send + 'static {
        let (all, reserved, own) = (self.all.clone(), self.reserved.clone(), own.0.clone());
        let longest = self.longest;
        async move {
            let own = turn(own).await;
            let common = async {
                tokio::select! {
                    biased;
                    turn = turn(reserved), if asks == Asks::Now => turn,
                    turn = turn(all) => turn,
                }
            };
            let turn = (own, common.await);
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

    /// Returns when the next one may pass.
    pub(super) async fn turn(&mut self) {
        let wait = self.next(Instant::now());
        // A sleep takes a tick of the timer, a millisecond or two, even if it is of no length: with one for each, less than a
        // thousand would pass in a second, whatever was asked for.
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// How long the next one has to wait.
    fn next(&mut self, now: Instant) -> Duration {
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
    use futures_util::future::{BoxFuture, join_all};
    use tokio::task::unconstrained;

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
        let mut all: Vec<_> = (0..100).map(|_| turns.run(&greedy, Asks::Past, work(0)).boxed()).collect();
        all.extend((1..=6).map(|name| turns.run(&turns.own(), Asks::Now, work(name)).boxed()));
        join_all(all).await;
        assert_eq!(most.load(Ordering::SeqCst), 4);
        let order = order.lock().unwrap();
        let last = (1..=6).map(|name| order.iter().position(|other| *other == name).unwrap()).max();
        assert!(last < Some(24), "{order:?}");
    }

    /// So many that stay as long as they may, before the one that is looked at.
    fn crowd(turns: &Turns, asks: Asks, count: usize) -> Vec<BoxFuture<'static, ()>> {
        // Many polls in a row are nothing that the runtime should stop here.
        let stay = |_| unconstrained(turns.run(&turns.own(), asks, std::future::pending())).boxed();
        let mut crowd: Vec<_> = (0..count).map(stay).collect();
        crowd.iter_mut().for_each(|one| assert!(one.now_or_never().is_none()));
        crowd
    }

    #[tokio::test]
    async fn who_begins_now_does_not_wait_for_all_who_return_and_they_wait_no_longer_for_it() {
        let turns = turns(8, 8);
        let returning = crowd(&turns, Asks::Past, 100);
        for _ in 0..10 {
            assert_eq!(turns.run(&turns.own(), Asks::Now, async { 1 }).now_or_never(), Some(1));
        }
        // Their own turns and no others.
        assert_eq!((turns.all.available_permits(), turns.reserved.available_permits()), (0, 2));
        drop(returning);
        let beginning = crowd(&turns, Asks::Now, 8);
        assert_eq!((turns.all.available_permits(), turns.reserved.available_permits()), (0, 0), "all if they are free");
        let mut returning = Box::pin(turns.run(&turns.own(), Asks::Past, async { 2 }));
        assert!((&mut returning).now_or_never().is_none());
        let more = crowd(&turns, Asks::Now, 100);
        drop(beginning);
        assert_eq!(returning.now_or_never(), Some(2), "first come, first served");
        drop(more);
    }

    #[test]
    fn only_who_asks_for_nothing_of_the_past_begins_now() {
        let at = |epoch, lsn| {
            let position = crate::change::Position { lsn: crate::change::Lsn(lsn), ordinal: 0 };
            Cursor { epoch, position }
        };
        let here = at(1, 1 << 30);
        let after = |epoch, lsn| Start::After(at(epoch, lsn));
        let wish = || crate::hub::SnapshotWish { limit: 1, order: Vec::new() };
        for (starts, snapshot, asks) in [
            (vec![], None, Asks::Now),
            (vec![Start::Now, Start::Lost], None, Asks::Now),
            // A stock client's first join begins where the log was then.
            (vec![after(1, (1 << 30) - 1000)], None, Asks::Now),
            (vec![after(1, 1 << 30), after(1, 7)], None, Asks::Past),
            (vec![after(2, 1 << 30)], None, Asks::Past),
            (vec![Start::Time(crate::change::Timestamp(0))], None, Asks::Past),
            (vec![Start::Now], Some(wish()), Asks::Past),
        ] {
            let entry = |start: &Start| Entry {
                id: 0,
                action: crate::hub::Action::All,
                schema: crate::hub::Name::Any,
                table: crate::hub::Name::Any,
                filter: None,
                select: None,
                start: *start,
                cursor_as: None,
                snapshot: snapshot.clone(),
                messages: None,
            };
            let entries: Vec<Entry> = starts.iter().map(entry).collect();
            assert_eq!(Asks::of(&entries, Some(here)), asks, "{entries:?}");
        }
    }

    #[tokio::test]
    async fn who_only_waits_makes_room() {
        let turns = Turns { longest: Duration::from_millis(5), ..turns(1, 1) };
        let (tell, told) = tokio::sync::oneshot::channel();
        let long = turns.run(&turns.own(), Asks::Past, told);
        let short = turns.run(&turns.own(), Asks::Past, async move { tell.send(7) });
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

    #[tokio::test]
    async fn who_need_not_wait_does_not_wait_for_the_timer() {
        let mut pace = Pace::new(1000);
        pace.due -= RESERVE;
        assert!((0..50).all(|_| pace.turn().now_or_never().is_some()));
        let mut pace = Pace::new(100_000);
        let (begun, most) = (Instant::now(), Duration::from_secs(10));
        for _ in 0..20_000 {
            pace.turn().await;
        }
        assert!(begun.elapsed() < most, "a tick for each would be twenty seconds and more: {:?}", begun.elapsed());
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
