//! Where a snapshot ends and the stream begins: a range of the stream, of which every transaction is on one side.
//!
//! Commits become visible in another order than they stand in the WAL: a commit is in the stream before others see it, and one
//! that waits for a standby is overtaken. So there is no position that parts what a snapshot shows from what it does not.
//! Instead the tail begins at a position before which everything is shown ([`Ground::start`]), and what it meets of the shown
//! ones, up to where the snapshot was taken, is left out ([`Seam::shows`]).
//!
//! Decided by the transaction's top-level id: rows carry the id of the sub-transaction that wrote them, but the stream names
//! the top-level one, `pg_current_snapshot()` lists those alone, and a transaction becomes visible with all its parts. A
//! prepared transaction is in progress until COMMIT PREPARED, which is also when the stream has it.
//!
//! Rejected: waiting until a snapshot shows all that the hub has passed. A standby that hangs would stop all snapshots, while
//! the stream itself goes on.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::catalog::Snapshot;
use crate::change::{Lsn, Position};
use crate::hub::event::NONE;
use crate::resume::Cursor;

/// Which transactions a snapshot shows. The tail leaves them out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::hub) struct Seam {
    sees: Snapshot,
    /// Every transaction that it shows ended at or before this. Ids mean something only up to here: they wrap around.
    until: Lsn,
    /// Of the history that all this is of.
    epoch: Option<u64>,
}

impl Seam {
    pub(in crate::hub) fn new(sees: Snapshot, until: Lsn, epoch: Option<u64>) -> Seam {
        Seam { sees, until, epoch }
    }

    /// Whether the snapshot shows this transaction, which ended at `end` in the history `epoch`.
    pub(in crate::hub) fn shows(&self, (xid, epoch): (u32, Option<u64>), end: Lsn) -> bool {
        self.covers(end) && epoch == self.epoch && self.sees.sees(xid)
    }

    /// Whether something that ended there lies in the range, from where one can't go on.
    pub(in crate::hub) fn covers(&self, end: Lsn) -> bool {
        end <= self.until
    }

    /// In place of the name of the cursor, for what [`Seam::covers`].
    pub(in crate::hub) fn no_cursor(&self) -> &Arc<str> {
        &NONE
    }

    /// Of which history it is.
    pub(in crate::hub) fn epoch(&self) -> Option<u64> {
        self.epoch
    }

    /// The same in a history that goes on from its own, and from no earlier place than its end.
    pub(in crate::hub) fn continued(&self, epoch: Option<u64>) -> Seam {
        Seam { epoch, ..self.clone() }
    }

    /// Behind this nothing is left out.
    pub(in crate::hub) fn until(&self) -> Cursor {
        let position = Position { lsn: self.until, ordinal: u32::MAX };
        Cursor { epoch: self.epoch.unwrap_or_default(), position }
    }
}

/// The end of the stream before a snapshot is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::hub) struct Ground {
    /// What is at or before this is visible to everybody, but for `unseen`.
    pub(in crate::hub) at: Position,
    /// Transactions up to there that no reading has seen yet, by id and end, in the stream's order.
    pub(in crate::hub) unseen: Arc<VecDeque<(u32, Lsn)>>,
}

impl Ground {
    /// The last position up to which a snapshot that was taken since shows everything.
    pub(in crate::hub) fn start(&self, sees: &Snapshot) -> Position {
        let hidden = self.unseen.iter().find(|(xid, _)| !sees.sees(*xid));
        hidden
            .map_or(self.at, |(_, end)| Position { lsn: Lsn(end.0.saturating_sub(1)), ordinal: u32::MAX }.min(self.at))
    }
}

/// The transactions that the hub took from the log and that no reading has seen yet. Shared with those who ask for the ground,
/// of whom there may be many between two transactions.
#[derive(Debug, Default)]
pub(in crate::hub) struct Unseen(Arc<VecDeque<(u32, Lsn)>>);

impl Unseen {
    /// The stream has come to this transaction.
    pub(in crate::hub) fn push(&mut self, xid: u32, end: Lsn) {
        Arc::make_mut(&mut self.0).push_back((xid, end));
    }

    /// A reading has this snapshot: so have all later ones.
    pub(in crate::hub) fn seen(&mut self, by: &Snapshot) {
        Arc::make_mut(&mut self.0).retain(|(xid, _)| !by.sees(*xid));
    }

    /// Another history begins.
    pub(in crate::hub) fn clear(&mut self) {
        self.0 = Arc::default();
    }

    pub(in crate::hub) fn ground(&self, at: Position) -> Ground {
        Ground { at, unseen: self.0.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    /// What a transaction does to one row: sets it, or deletes it.
    type Write = (u8, Option<u16>);

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum State {
        Running,
        /// Its commit is in the WAL; others don't see it yet.
        Written(Lsn),
        Visible(Lsn),
    }

    /// A server as far as visibility goes: ids, locks of rows, the order of the WAL, and that of visibility.
    struct Server {
        base: u64,
        transactions: Vec<(State, Vec<Write>)>,
        wal: u64,
    }

    impl Server {
        fn begin(&mut self, writes: Vec<Write>) {
            // Who has written a row keeps it locked until he is visible.
            let locked = |row: u8| {
                let holds = |(state, own): &(State, Vec<Write>)| {
                    !matches!(state, State::Visible(_)) && own.iter().any(|(at, _)| *at == row)
                };
                self.transactions.iter().any(holds)
            };
            let writes = writes.into_iter().filter(|(row, _)| !locked(*row)).collect();
            self.transactions.push((State::Running, writes));
        }

        fn commit(&mut self, which: usize) {
            let running = |(state, _): &&mut (State, Vec<Write>)| *state == State::Running;
            let count = self.transactions.iter_mut().filter(running).count();
            if let Some((state, _)) = self.transactions.iter_mut().filter(running).nth(which % count.max(1)) {
                self.wal += 10;
                *state = State::Written(Lsn(self.wal));
            }
        }

        fn show(&mut self, which: usize) {
            let written: Vec<usize> = (0..self.transactions.len())
                .filter(|at| matches!(self.transactions[*at].0, State::Written(_)))
                .collect();
            if let Some(at) = written.get(which % written.len().max(1))
                && let State::Written(end) = self.transactions[*at].0
            {
                self.transactions[*at].0 = State::Visible(end);
            }
        }

        fn snapshot(&self) -> Snapshot {
            let is_visible = |at: usize| matches!(self.transactions[at].0, State::Visible(_));
            let count = self.transactions.len();
            let xmin = (0..count).find(|at| !is_visible(*at)).unwrap_or(count) as u64 + self.base;
            let xip = (0..count).filter(|at| !is_visible(*at)).map(|at| (self.base + at as u64).to_string());
            let text = format!("{xmin}:{}:{}", self.base + count as u64, xip.collect::<Vec<_>>().join(","));
            Snapshot::parse(&text).expect("a snapshot")
        }

        /// The rows in the order of visibility, which for one row is that of its lock.
        fn rows(&self, sees: &Snapshot) -> BTreeMap<u8, u16> {
            let mut seen: Vec<(Lsn, &Vec<Write>)> = Vec::new();
            for (at, (state, writes)) in self.transactions.iter().enumerate() {
                if let (State::Visible(end), true) = (state, sees.sees((self.base + at as u64) as u32)) {
                    seen.push((*end, writes));
                }
            }
            seen.sort_by_key(|(end, _)| *end);
            let mut rows = BTreeMap::new();
            seen.iter().for_each(|(_, writes)| apply(&mut rows, writes));
            rows
        }

        /// What the log holds, in its order: id, end, writes.
        fn stream(&self) -> Vec<(u32, Lsn, &Vec<Write>)> {
            let mut found: Vec<_> = Vec::new();
            for (at, (state, writes)) in self.transactions.iter().enumerate() {
                if let State::Written(end) | State::Visible(end) = state {
                    found.push(((self.base + at as u64) as u32, *end, writes));
                }
            }
            found.sort_by_key(|(_, end, _)| *end);
            found
        }
    }

    fn apply(rows: &mut BTreeMap<u8, u16>, writes: &[Write]) {
        for (row, value) in writes {
            match value {
                Some(value) => rows.insert(*row, *value),
                None => rows.remove(row),
            };
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Begin(Vec<Write>),
        Commit(usize),
        Show(usize),
        /// The hub takes so many transactions from the log.
        Pull(usize),
        /// A reading of the catalog begins; the hub hears of it later.
        Read,
        Heard,
        /// A client asks: what the hub knows is noted.
        Ask,
        /// Its snapshot is taken.
        Take,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let write = (0u8..4, prop::option::of(any::<u16>()));
        let step = prop_oneof![
            4 => prop::collection::vec(write, 1..4).prop_map(Step::Begin),
            4 => (0usize..8).prop_map(Step::Commit),
            3 => (0usize..8).prop_map(Step::Show),
            3 => (1usize..5).prop_map(Step::Pull),
            1 => Just(Step::Read),
            1 => Just(Step::Heard),
            1 => Just(Step::Ask),
            1 => Just(Step::Take),
        ];
        prop::collection::vec(step, 5..120)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn snapshot_and_tail_together_have_every_transaction_once(
            steps in steps(), base in prop_oneof![Just(3u64), Just((1u64 << 32) - 20), 1u64..1 << 40],
        ) {
            let mut server = Server { base, transactions: Vec::new(), wal: 100 };
            let (mut hub, mut unseen, mut read) = (Lsn(100), Unseen::default(), None);
            let (mut ground, mut taken) = (None, Vec::new());
            for step in steps {
                match step {
                    Step::Begin(writes) => server.begin(writes),
                    Step::Commit(which) => server.commit(which),
                    Step::Show(which) => server.show(which),
                    Step::Pull(count) => {
                        let passed = hub;
                        let next = server.stream().into_iter().filter(|(_, end, _)| *end > passed);
                        for (xid, end, _) in next.take(count) {
                        unseen.push(xid, end);
                            hub = end;
                        }
                    }
                    Step::Read => read = Some(server.snapshot()),
                    Step::Heard => if let Some(snapshot) = read.take() {
                        unseen.seen(&snapshot);
                    },
                    Step::Ask => ground = Some(unseen.ground(Position { lsn: hub, ordinal: u32::MAX })),
                    Step::Take => if let Some(ground) = ground.take() {
                        let sees = server.snapshot();
                        let rows = server.rows(&sees);
                        taken.push((ground.start(&sees), Seam::new(sees, Lsn(server.wal), Some(1)), rows));
                    },
                }
            }
            let stream = server.stream();
            let mut all = BTreeMap::new();
            stream.iter().for_each(|(_, _, writes)| apply(&mut all, writes));
            for (start, seam, mut rows) in taken {
                let shown: BTreeSet<u32> = stream.iter().filter(|(xid, end, _)| seam.shows((*xid, Some(1)), *end)).map(|(xid, ..)| *xid).collect();
                let tail = stream.iter().filter(|(_, end, _)| *end > start.lsn);
                let tail: Vec<_> = tail.filter(|(xid, end, _)| !seam.shows((*xid, Some(1)), *end)).collect();
                prop_assert_eq!(shown.len() + tail.len(), stream.len(), "a transaction is on no side");
                tail.iter().for_each(|(_, _, writes)| apply(&mut rows, writes));
                prop_assert_eq!(&rows, &all, "what the client has is not what there is");
            }
        }
    }

    #[test]
    fn those_who_ask_between_two_transactions_share_what_they_are_told_and_it_stays_as_it_was() {
        let (mut unseen, at) = (Unseen::default(), Position { lsn: Lsn(300), ordinal: u32::MAX });
        unseen.push(7, Lsn(100));
        let (one, two) = (unseen.ground(at), unseen.ground(at));
        assert!(Arc::ptr_eq(&one.unseen, &two.unseen));
        unseen.push(8, Lsn(200));
        unseen.seen(&Snapshot::parse("8:8:").expect("a snapshot"));
        assert_eq!((&*one.unseen, &*unseen.ground(at).unseen), (&[(7, Lsn(100))].into(), &[(8, Lsn(200))].into()));
        unseen.clear();
        assert_eq!((one.unseen.len(), unseen.ground(at).unseen.len()), (1, 0));
    }

    #[test]
    fn a_commit_that_stays_hidden_is_in_the_tail_and_what_overtook_it_is_not() {
        let ground = Ground {
            at: Position { lsn: Lsn(300), ordinal: u32::MAX },
            unseen: Arc::new([(7, Lsn(100)), (8, Lsn(200))].into()),
        };
        let sees = Snapshot::parse("7:10:7").expect("a snapshot");
        assert_eq!(ground.start(&sees), Position { lsn: Lsn(99), ordinal: u32::MAX });
        let seam = Seam::new(sees, Lsn(400), Some(1));
        let shows = |xid, end| seam.shows((xid, Some(1)), Lsn(end));
        assert!(!shows(7, 100) && shows(8, 200) && shows(9, 400));
        assert!(!shows(9, 401), "behind the snapshot's place an id says nothing");
        assert!(!seam.shows((8, Some(2)), Lsn(200)), "nor does it in another history");
        let all = Snapshot::parse("10:10:").expect("a snapshot");
        assert_eq!(ground.start(&all), ground.at);
    }
}
