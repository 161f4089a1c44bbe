//! Whose probe comes next: users by turns, of two kinds of which each has a place: those who want in, and those who were let in
//! before and are asked about again.
//!
//! Invariants:
//! * A user whose probe runs comes after everybody whose does not; alone he has all places of his kind but one, which the next
//!   user finds free, however slow his policies are.
//! * Who wants in comes before who is asked about again, and each kind leaves one place to the other: ten thousand who are
//!   asked about at once, since the stream is behind, keep nobody out, and however many want in, who was let in is asked about
//!   again, without which his right would end.
//!
//! Rejected: one queue for all, in which a client that joins a thousand channels is before everybody else.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ahash::AHashMap;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Probes of one user that wait: those of all channels of a connection.
const MOST_WAITING: usize = 1024;
/// Users and topics that are remembered to have been let in.
const MOST_KNOWN: usize = 1 << 16;

/// A user and a topic.
type Who = (Arc<str>, Arc<str>);

/// Why it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// He wants in.
    New,
    /// He was let in before.
    Again,
}

/// See the module's comment.
pub(super) struct Turns {
    /// Probes at a time.
    most: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    users: AHashMap<Arc<str>, User>,
    /// Those with probes that wait, by whose turn it is; of each kind.
    order: [BTreeMap<u64, Arc<str>>; 2],
    /// Probes that run, of each kind.
    running: [usize; 2],
    /// The kind that was let through last.
    last: Option<Kind>,
    /// For places in the order, and probes.
    next: u64,
    /// Who was let in to which topic, until when that is remembered.
    known: AHashMap<Who, Instant>,
    /// Who is in, on how many channels.
    members: AHashMap<Who, usize>,
}

#[derive(Default)]
struct User {
    /// Probes that wait or run.
    probes: usize,
    running: [usize; 2],
    /// With who is told that his turn has come.
    waiting: [VecDeque<(u64, oneshot::Sender<()>)>; 2],
    /// In [`State::order`].
    place: [u64; 2],
}

/// A probe's place in the order, and then its turn. Free for the next when dropped.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    user: Arc<str>,
    kind: Kind,
    number: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.state();
        state.leave(&self.user, self.kind, self.number);
        state.let_through(self.turns.most);
    }
}

/// Somebody who is in.
pub(super) struct Inside {
    turns: Arc<Turns>,
    who: Who,
}

impl Drop for Inside {
    fn drop(&mut self) {
        let mut state = self.turns.state();
        if let Some(channels) = state.members.get_mut(&self.who) {
            *channels -= 1;
            if *channels == 0 {
                state.members.remove(&self.who);
            }
        }
    }
}

impl Turns {
    /// So many probes at a time.
    pub(super) fn new(most: usize) -> Turns {
        Turns { most: most.max(1), state: Mutex::default() }
    }

    /// Waits for a turn. `None`: too many probes of this user wait.
    pub(super) async fn take(&self, user: &Arc<str>, topic: &Arc<str>) -> Option<Turn<'_>> {
        let (turn, comes) = self.enter(user, topic)?;
        // What would tell it lives as long as the place.
        comes.await.ok()?;
        Some(turn)
    }

    fn enter(&self, user: &Arc<str>, topic: &Arc<str>) -> Option<(Turn<'_>, oneshot::Receiver<()>)> {
        let mut state = self.state();
        let kind = state.kind(&(user.clone(), topic.clone()));
        let (tell, comes) = oneshot::channel();
        let number = state.wait(user, kind, tell)?;
        state.let_through(self.most);
        Some((Turn { turns: self, user: user.clone(), kind, number }, comes))
    }

    /// This user was let in to this topic.
    pub(super) fn let_in(&self, user: &Arc<str>, topic: &Arc<str>, remembered: Duration) {
        let (mut state, now) = (self.state(), Instant::now());
        let (known, who) = (&mut state.known, (user.clone(), topic.clone()));
        if known.len() >= MOST_KNOWN && !known.contains_key(&who) {
            known.retain(|_, until| *until > now);
        }
        if known.len() < MOST_KNOWN || known.contains_key(&who) {
            known.insert(who, now + remembered);
        }
    }

    /// This user is in this topic, until the result is dropped.
    pub(super) fn is_in(self: &Arc<Self>, user: Arc<str>, topic: Arc<str>) -> Inside {
        *self.state().members.entry((user.clone(), topic.clone())).or_default() += 1;
        Inside { turns: self.clone(), who: (user, topic) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn kind(&self, who: &Who) -> Kind {
        let is_known = || self.known.get(who).is_some_and(|until| *until > Instant::now());
        if self.members.contains_key(who) || is_known() { Kind::Again } else { Kind::New }
    }

    /// One more probe waits.
    fn wait(&mut self, name: &Arc<str>, kind: Kind, tell: oneshot::Sender<()>) -> Option<u64> {
        let (number, place) = (self.number(), self.number());
        let user = self.users.entry(name.clone()).or_default();
        if user.probes >= MOST_WAITING {
            return None;
        }
        user.probes += 1;
        if user.waiting[kind as usize].is_empty() {
            user.place[kind as usize] = place;
            self.order[kind as usize].insert(place, name.clone());
        }
        user.waiting[kind as usize].push_back((number, tell));
        Some(number)
    }

    /// A probe is over, or waits no more.
    fn leave(&mut self, name: &Arc<str>, kind: Kind, number: u64) {
        let Some(user) = self.users.get_mut(name) else { return };
        user.probes -= 1;
        let waiting = &mut user.waiting[kind as usize];
        match waiting.iter().position(|(of, _)| *of == number) {
            None => {
                user.running[kind as usize] -= 1;
                self.running[kind as usize] -= 1;
            }
            Some(place) => {
                drop(waiting.remove(place));
                if waiting.is_empty() {
                    self.order[kind as usize].remove(&user.place[kind as usize]);
                }
            }
        }
        if user.probes == 0 {
            self.users.remove(name);
        }
    }

    /// Lets through whose turn it is.
    fn let_through(&mut self, most: usize) {
        while self.running.iter().sum::<usize>() < most {
            let [first, second] = match self.last {
                // There is but one place.
                Some(Kind::New) if most == 1 => [Kind::Again, Kind::New],
                _ => [Kind::New, Kind::Again],
            };
            let found = self.candidate(first, most).map(|name| (first, name));
            let Some((kind, name)) = found.or_else(|| self.candidate(second, most).map(|name| (second, name))) else {
                return;
            };
            self.start(kind, &name);
        }
    }

    /// The next user of this kind, if there is room for one more.
    fn candidate(&self, kind: Kind, most: usize) -> Option<Arc<str>> {
        let room = (most - usize::from(most > 1)).checked_sub(self.running[kind as usize]).filter(|room| *room > 0)?;
        let runs = |name: &&Arc<str>| self.users.get(*name).is_some_and(|user| user.running[kind as usize] > 0);
        let order = &self.order[kind as usize];
        // Those who are passed over have one of the few that run.
        let waits = order.values().find(|name| !runs(name));
        waits.or_else(|| order.values().next().filter(|_| room > 1)).cloned()
    }

    fn start(&mut self, kind: Kind, name: &Arc<str>) {
        let place = self.number();
        self.last = Some(kind);
        self.running[kind as usize] += 1;
        let Some(user) = self.users.get_mut(name) else { return };
        user.running[kind as usize] += 1;
        let order = &mut self.order[kind as usize];
        order.remove(&user.place[kind as usize]);
        if let Some((_, tell)) = user.waiting[kind as usize].pop_front() {
            // Whoever waits no more leaves in a moment.
            let _ = tell.send(());
        }
        if !user.waiting[kind as usize].is_empty() {
            user.place[kind as usize] = place;
            order.insert(place, name.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn name(of: &str) -> Arc<str> {
        of.into()
    }

    #[tokio::test]
    async fn one_user_with_many_joins_does_not_keep_others_waiting() {
        let turns = Turns::new(4);
        let (greedy, topic) = (name("greedy"), name("t"));
        let first = turns.take(&greedy, &topic).now_or_never().flatten().expect("a turn");
        let second = turns.take(&greedy, &topic).now_or_never().flatten().expect("nobody else waits");
        let mut waiting: Vec<_> = (0..500).map(|_| Box::pin(turns.take(&greedy, &topic))).collect();
        assert!(waiting.iter_mut().all(|turn| turn.as_mut().now_or_never().is_none()));
        let other = turns.take(&name("modest"), &topic).now_or_never().flatten();
        assert!(other.is_some());
        // Others come between.
        let last = name("last");
        let mut third = Box::pin(turns.take(&last, &topic));
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        assert!(waiting[0].as_mut().now_or_never().is_none());
        let third = third.as_mut().now_or_never().flatten().expect("a turn");
        drop((second, third));
        assert!(waiting[0].as_mut().now_or_never().flatten().is_some());
        drop((waiting, other));
        let state = turns.state();
        assert!(state.users.is_empty() && state.order.iter().all(BTreeMap::is_empty) && state.running == [0, 0]);
    }

    #[tokio::test]
    async fn users_have_their_turns_one_after_the_other() {
        let turns = Turns::new(2);
        let (topic, users) = (name("t"), ["a", "b", "c"].map(name));
        let mut held = turns.take(&users[0], &topic).await.expect("a turn");
        let mut waiting: Vec<_> = (0..9).map(|n| Box::pin(turns.take(&users[n / 3], &topic))).collect();
        let mut came = Vec::new();
        while came.len() < 9 {
            for (n, turn) in waiting.iter_mut().enumerate().filter(|(n, _)| !came.contains(n)).collect::<Vec<_>>() {
                assert!(turn.as_mut().now_or_never().is_none(), "{n} came though all places are taken");
            }
            drop(held);
            let next = (0..9).filter(|n| !came.contains(n));
            let mut found: Vec<_> =
                next.filter_map(|n| Some((n, waiting[n].as_mut().now_or_never().flatten()?))).collect();
            assert_eq!(found.len(), 1);
            let (n, turn) = found.remove(0);
            came.push(n);
            held = turn;
        }
        assert_eq!(came, [0, 3, 6, 1, 4, 7, 2, 5, 8]);
    }

    #[tokio::test]
    async fn who_was_let_in_is_asked_about_again_before_new_joins() {
        let turns = Turns::new(4);
        let topic = name("t");
        let member = name("member");
        turns.let_in(&member, &topic, Duration::from_secs(60));
        let mut held = Vec::new();
        for user in 0..3 {
            held.push(turns.take(&name(&user.to_string()), &topic).await.expect("a turn"));
        }
        assert!(turns.take(&name("new"), &topic).now_or_never().is_none());
        assert!(turns.take(&member, &name("other")).now_or_never().is_none(), "it was let in elsewhere");
        assert!(turns.take(&member, &topic).now_or_never().flatten().is_some());
    }

    #[tokio::test]
    async fn ten_thousand_who_are_asked_about_again_keep_nobody_out() {
        let turns = Turns::new(4);
        let topic = name("t");
        let members: Vec<_> = (0..10_000).map(|n| name(&n.to_string())).collect();
        for member in &members {
            turns.let_in(member, &topic, Duration::from_secs(60));
        }
        let mut waiting: Vec<_> = members.iter().map(|member| Box::pin(turns.take(member, &topic))).collect();
        let held: Vec<_> = waiting.iter_mut().filter_map(|turn| turn.as_mut().now_or_never().flatten()).collect();
        assert_eq!(held.len(), 3);
        let new = turns.take(&name("new"), &topic).now_or_never().flatten();
        assert!(new.is_some());
        let last = name("last");
        let mut newer = Box::pin(turns.take(&last, &topic));
        assert!(newer.as_mut().now_or_never().is_none());
        drop(held);
        assert!(newer.as_mut().now_or_never().flatten().is_some(), "the next of all");
        drop(waiting);
        drop((new, newer));
        assert!(turns.state().users.is_empty());
    }

    #[tokio::test]
    async fn who_is_in_is_asked_about_again_however_long_ago_he_was_let_in_by_whomever() {
        let turns = Arc::new(Turns::new(4));
        let (topic, member) = (name("t"), name("member"));
        let inside = [turns.is_in(member.clone(), topic.clone()), turns.is_in(member.clone(), topic.clone())];
        let kind = || turns.state().kind(&(member.clone(), topic.clone()));
        let [one, two] = inside;
        drop(one);
        assert_eq!(kind(), Kind::Again);
        drop(two);
        assert_eq!(kind(), Kind::New);
        assert!(turns.state().members.is_empty());
    }

    #[tokio::test]
    async fn of_a_single_place_both_have_their_part() {
        let turns = Turns::new(1);
        let (topic, member) = (name("t"), name("member"));
        turns.let_in(&member, &topic, Duration::from_secs(60));
        let mut held = turns.take(&name("first"), &topic).await.expect("a turn");
        for n in 0..3 {
            let user = name(&n.to_string());
            let mut new = Box::pin(turns.take(&user, &topic).fuse());
            let mut again = Box::pin(turns.take(&member, &topic).fuse());
            assert!(new.as_mut().now_or_never().is_none() && again.as_mut().now_or_never().is_none());
            drop(held);
            let turn = again.as_mut().now_or_never().flatten();
            assert!(turn.is_some() && new.as_mut().now_or_never().is_none());
            drop(turn);
            held = new.as_mut().now_or_never().flatten().expect("a turn");
        }
    }

    #[tokio::test]
    async fn a_turn_that_nobody_takes_is_the_next_ones() {
        let turns = Turns::new(1);
        let (topic, users) = (name("t"), ["a", "b", "c", "d"].map(name));
        let held = turns.take(&users[0], &topic).await.expect("a turn");
        let mut waiting: Vec<_> = users[1..].iter().map(|user| Some(Box::pin(turns.take(user, &topic)))).collect();
        for turn in waiting.iter_mut().flatten() {
            assert!(turn.as_mut().now_or_never().is_none());
        }
        // One while it waits, one when it has just been its turn.
        waiting[0] = None;
        drop(held);
        waiting[1] = None;
        assert!(waiting[2].as_mut().is_some_and(|turn| turn.as_mut().now_or_never().flatten().is_some()));
        drop(waiting);
        assert!(turns.state().users.is_empty());
    }

    #[tokio::test]
    async fn what_waits_and_what_is_remembered_is_bounded() {
        let turns = Turns::new(1);
        let (user, topic) = (name("u"), name("t"));
        let _held = turns.take(&user, &topic).await.expect("a turn");
        let mut waiting: Vec<_> = (1..MOST_WAITING).map(|_| Box::pin(turns.take(&user, &topic))).collect();
        assert!(waiting.iter_mut().all(|turn| turn.as_mut().now_or_never().is_none()));
        assert!(matches!(turns.take(&user, &topic).now_or_never(), Some(None)));
        for topic in 0..MOST_KNOWN + 10 {
            turns.let_in(&user, &name(&topic.to_string()), Duration::from_secs(60));
        }
        assert_eq!(turns.state().known.len(), MOST_KNOWN);
    }
}
