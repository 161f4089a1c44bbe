//! What each phone was owed, and what it got.
//!
//! * MUST arrive: what its user was permitted at the commit and at every state until the row was judged at the latest, which is
//!   before a later row arrived.
//! * MUST NOT: what was permitted at no state in which it can have been judged: none before its commit, none before those that
//!   the relay had passed when the phone joined, none after the arrival. Of tables judged in memory, to a phone that was up to
//!   date before the row was written: what was not permitted at the commit.
//! * MAY: all else.
//!
//! Messages to private channels are rows like any other: permitted to whoever is a member of the room.
//!
//! Besides: in the order of commits; by cursor, each once that has come with one; with a device, again only after another join, and only what had
//! not been receipted.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use rowcast::change::Lsn;
use rowcast::resume::CursorKey;
use tokio::time::{Duration, Instant};

use super::faults::{Fault, Tally};
use super::phone::{Kind, Record, Seen};
use crate::journey::revocation::EXACT;
use crate::journey::revocation::history::Event;
use crate::journey::revocation::model::{Model, Sent};

/// A receipt counts once it has had time to be read and saved.
const RECEIVED: Duration = Duration::from_secs(3);
/// For so long after a fault, questions may be late.
const HINDERED: Duration = Duration::from_secs(30);
/// For so long after a fault, receipts may be late, or not saved: a write is given up after 10 s.
const UNSAVED: Duration = Duration::from_secs(15);

/// What came out.
#[derive(Debug, Default, Clone)]
pub(super) struct Verdict {
    pub(super) commits: usize,
    pub(super) rows: usize,
    /// Over all phones: what had to arrive, what did, and how much of that by a right that is newer than the commit.
    pub(super) owed: usize,
    pub(super) received: usize,
    pub(super) newer: usize,
    /// Of what was owed and of what arrived: how many are messages.
    pub(super) owed_messages: usize,
    pub(super) messages: usize,
    /// Over all device clients: rows that came again, and those of them that had been receipted before on all connections.
    pub(super) repeats: usize,
    pub(super) deep_repeats: usize,
    pub(super) joins: usize,
    pub(super) gaps: usize,
    /// Of those for rows that were deleted, how many are for one that was the user's when it was.
    pub(super) of_deletes: usize,
    pub(super) of_own_deletes: usize,
    /// Rows that a gap notice stands for.
    pub(super) covered: usize,
    pub(super) violations: Vec<String>,
    /// Of the gaps, how often each.
    pub(super) reasons: BTreeMap<String, usize>,
    /// What was said and not asked for, by its text, as often as it was.
    pub(super) told: HashMap<String, usize>,
}

impl Verdict {
    pub(super) fn add(&mut self, other: Verdict) {
        self.commits += other.commits;
        self.rows += other.rows;
        self.owed += other.owed;
        self.received += other.received;
        self.newer += other.newer;
        self.owed_messages += other.owed_messages;
        self.messages += other.messages;
        self.repeats += other.repeats;
        self.deep_repeats += other.deep_repeats;
        self.joins += other.joins;
        self.gaps += other.gaps;
        self.of_deletes += other.of_deletes;
        self.of_own_deletes += other.of_own_deletes;
        self.covered += other.covered;
        self.violations.extend(other.violations);
        for (text, times) in other.reasons {
            *self.reasons.entry(text).or_default() += times;
        }
        for (text, times) in other.told {
            *self.told.entry(text).or_default() += times;
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} commits, {} rows; owed {} ({} messages), received {} ({} messages; {} by a newer right), {} joins, {} repeats ({} deep), {} gap \
             notices ({} for deletes, {} of them for own rows) for {} rows; {} violations",
            self.commits,
            self.rows,
            self.owed,
            self.owed_messages,
            self.received,
            self.messages,
            self.newer,
            self.joins,
            self.repeats,
            self.deep_repeats,
            self.gaps,
            self.of_deletes,
            self.of_own_deletes,
            self.covered,
            self.violations.len()
        )
    }
}

/// See the module's comment.
pub(super) struct Judge<'a> {
    model: Model,
    /// Behind each commit; that of state 0 is zero.
    ends: Vec<Lsn>,
    /// When each state's operation began.
    begun: Vec<Option<Instant>>,
    places: HashMap<String, usize>,
    /// The latest commit that the relay is known to have passed, by time.
    passed: Vec<(Instant, usize)>,
    key: Option<CursorKey>,
    /// The commits of marks, by their notes: a stock client, which shows no cursors, is owed what follows the first that it has.
    marks: HashMap<String, Lsn>,
    /// After so long a stock client's rows have been receipted.
    receipted: Duration,
    tally: &'a Tally,
    verdict: Verdict,
}

/// Of one phone, between two joins.
#[derive(Default)]
struct Session {
    joining: Option<Instant>,
    subscribed: Option<Instant>,
    /// It was up to date.
    live: Option<Instant>,
    last: Option<usize>,
    /// The last row before each receipt; a stock client shows none, so each row itself.
    receipts: Vec<(Instant, Option<usize>)>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(
        history: Vec<(Lsn, Vec<Event>)>,
        times: &[Instant],
        key: Option<CursorKey>,
        receipted: Duration,
        tally: &'a Tally,
        records: &[Record],
    ) -> Judge<'a> {
        let mut marks = HashMap::new();
        for (end, events) in &history {
            for event in events {
                if let Event::Insert { table, new } = event
                    && table == "marks"
                {
                    marks.entry(new["note"].clone()).or_insert(*end);
                }
            }
        }
        let ends = std::iter::once(Lsn::ZERO).chain(history.iter().map(|(end, _)| *end)).collect();
        let events: Vec<Vec<Event>> = history.into_iter().map(|(_, events)| events).collect();
        let model = Model::of(&events);
        let begun = model.operations.iter().map(|number| number.map(|number| times[number as usize])).collect();
        let places: HashMap<String, usize> =
            model.sent.iter().enumerate().map(|(place, sent)| (sent.key(), place)).collect();
        let mut passed: Vec<(Instant, usize)> = Vec::new();
        for (at, seen) in records.iter().flat_map(|record| &record.seen) {
            if let Seen::Row(key, _) = seen
                && let Some(place) = places.get(key)
            {
                passed.push((*at, model.sent[*place].commit));
            }
        }
        passed.sort_unstable();
        let mut most = 0;
        passed.iter_mut().for_each(|(_, commit)| {
            most = most.max(*commit);
            *commit = most;
        });
        let verdict = Verdict { commits: events.len(), rows: model.sent.len(), ..Verdict::default() };
        Judge { model, ends, begun, places, passed, key, marks, receipted, tally, verdict }
    }

    pub(super) fn judge(mut self, records: &[Record]) -> Verdict {
        for record in records {
            self.phone(record);
        }
        self.verdict
    }

    fn blame(&mut self, record: &Record, what: String) {
        self.verdict.violations.push(format!("{} ({:?}) of {}: {what}", record.name, record.kind, record.user));
    }

    /// The last state that could be in force at this time, from `from` on.
    fn latest(&self, from: usize, at: Instant) -> usize {
        let later = self.begun[from + 1..].iter().position(|begun| begun.is_some_and(|begun| begun > at));
        later.map_or(self.begun.len() - 1, |found| from + found)
    }

    /// The state that the relay had reached by then, at least.
    fn reached(&self, at: Instant) -> usize {
        let until = self.passed.partition_point(|(time, _)| *time <= at);
        self.passed[..until].last().map_or(0, |(_, commit)| *commit)
    }

    fn place_of(&self, cursor: Option<&String>) -> Option<Lsn> {
        let key = self.key.as_ref()?;
        Some(key.open(cursor?).expect("a cursor that this relay gave").position.lsn)
    }

    fn phone(&mut self, record: &Record) {
        let mut arrived: Vec<Option<Instant>> = vec![None; self.model.sent.len()];
        let (mut session, mut ended): (Session, Vec<Option<usize>>) = (Session::default(), Vec::new());
        let (mut first, mut last_ever, mut fresh) = (None, None, None);
        let mut gaps: Vec<(Lsn, Lsn)> = Vec::new();
        for (number, (at, seen)) in record.seen.iter().enumerate() {
            match seen {
                Seen::Joining => {
                    self.verdict.joins += 1;
                    session = Session { joining: Some(*at), ..Session::default() };
                }
                Seen::Joined(cursor) => {
                    first = first.or_else(|| self.place_of(cursor.as_ref()));
                    // Until then Python's client is given what its channel before still receives.
                    if matches!(record.kind, Kind::Stock(_)) {
                        session.last = None;
                    }
                }
                Seen::Subscribed => session.subscribed = Some(*at),
                Seen::Row(key, cursor) => {
                    let Some(place) = self.places.get(key).copied() else {
                        self.blame(record, format!("never committed: {key}"));
                        continue;
                    };
                    let before = if record.kind == Kind::Cursor { last_ever.max(session.last) } else { session.last };
                    if before >= Some(place) {
                        let sent = &self.model.sent[before.unwrap_or_default()];
                        let text = format!(
                            "{key} out of order, or twice: after {} (commits {} and {}): {}",
                            sent.key(),
                            self.model.sent[place].commit,
                            sent.commit,
                            near(record, number, &self.places)
                        );
                        self.blame(record, text);
                    }
                    // From what came without its place, it comes back to the one before: see the relay's `hub::owing`.
                    let placed = Some(place).filter(|_| cursor.is_some());
                    (last_ever, session.last) = (last_ever.max(placed), Some(place));
                    if arrived[place].is_some() {
                        self.verdict.repeats += 1;
                        // On the connection that it is owed again for, it had not been receipted.
                        let deep = !ended.is_empty() && ended.iter().all(|received| *received >= Some(place));
                        if deep && record.kind != Kind::Cursor {
                            self.verdict.deep_repeats += 1;
                            let near = near(record, number, &self.places);
                            let text = format!("{key} came again though it had been receipted long before: {near}");
                            self.blame(record, text);
                        }
                    }
                    if matches!(record.kind, Kind::Stock(_)) {
                        session.receipts.push((*at, Some(place)));
                    }
                    arrived[place].get_or_insert(*at);
                    self.arrived(record, place, *at, cursor.as_ref(), &mut session);
                }
                Seen::Mark(note) if note == "fresh" => fresh = Some(*at),
                Seen::Mark(_) => {}
                Seen::Gap(from, to, reason) => {
                    self.verdict.gaps += 1;
                    *self.verdict.reasons.entry(reason.clone()).or_default() += 1;
                    let from = self.place_of(from.as_ref()).unwrap_or(Lsn::ZERO);
                    let to = self.place_of(to.as_ref()).unwrap_or(Lsn::ZERO);
                    // Of a part of a transaction, both ends are in the same one.
                    gaps.push((Lsn(from.0.saturating_sub(1)), to));
                    self.explain(record, *at, reason, from, to);
                }
                Seen::Receipt => session.receipts.push((*at, session.last)),
                Seen::Ended(_) => {
                    self.received(record, &session, *at, &mut ended);
                    session.receipts.clear();
                }
                Seen::Told(text) => *self.verdict.told.entry(text.chars().take(300).collect()).or_default() += 1,
                Seen::Reached => {}
            }
        }
        let marked = record.seen.iter().find_map(|(_, seen)| match seen {
            Seen::Mark(note) => self.marks.get(note).copied(),
            _ => None,
        });
        // Without any it has nothing, and that is told.
        let start = first.or(marked).unwrap_or(Lsn::ZERO);
        match fresh {
            None => self.blame(record, format!("the last mark did not arrive; {}", record.tail())),
            Some(bound) => self.missing(record, &arrived, start, bound, &gaps),
        }
    }

    /// A connection ended. Of each that the relay may still keep a frontier of: the last row that was surely receipted, so that it
    /// must not come again; `None`: that can't be told.
    fn received(&self, record: &Record, session: &Session, at: Instant, kept: &mut Vec<Option<usize>>) {
        let late = match record.kind {
            Kind::Stock(_) => self.receipted + RECEIVED,
            Kind::Cursor | Kind::Device => RECEIVED,
        };
        let before = |within: Duration, of: fn(Fault) -> bool| {
            self.tally.done.iter().any(|(time, fault)| of(*fault) && *time <= at + within && at <= *time + within)
        };
        let sure = session.receipts.iter().rev().find(|(time, _)| *time + late < at).and_then(|(_, place)| *place);
        // It began no earlier than the lowest of those before.
        let begun = kept.iter().copied().min().flatten();
        if !before(Duration::MAX / 4, Fault::leaves_connections) {
            kept.clear();
        }
        let unsaved = before(UNSAVED, |fault| fault.leaves_connections() || fault.hinders_questions());
        kept.push(if unsaved { None } else { sure.max(begun) });
    }

    fn explain(&mut self, record: &Record, at: Instant, reason: &str, from: Lsn, to: Lsn) {
        let is_undecided = reason.starts_with("undecided: ") || reason.contains("Gap: ");
        let of_facts = reason.contains("Gap: rows were deleted while the tables that the policies look into");
        let after = |of: fn(Fault) -> bool| {
            let explains =
                |(time, fault): &(Instant, Fault)| of(*fault) && *time <= at + HINDERED && at <= *time + HINDERED;
            self.tally.done.iter().any(explains)
        };
        let (hindered, forgotten) = (after(Fault::hinders_questions), after(Fault::forgets_facts));
        let explained = if of_facts { (hindered || forgotten) && self.deleted(record, from, to) } else { hindered };
        if !(is_undecided && explained) {
            self.blame(record, format!("a gap from {from} to {to} that nothing explains: {reason}"));
        }
    }

    /// Whether the gap begins with a row that was deleted.
    fn deleted(&mut self, record: &Record, from: Lsn, to: Lsn) -> bool {
        self.verdict.of_deletes += 1;
        // A status of a stock client shows no place.
        if to == Lsn::ZERO {
            return matches!(record.kind, Kind::Stock(_));
        }
        let deletes = || self.model.sent.iter().filter(|sent| sent.kind == "DELETE");
        let first = |sent: &Sent| [from.0, from.0 + 1].contains(&self.ends[sent.commit].0);
        let within = |sent: &Sent| (from..=to).contains(&self.ends[sent.commit]);
        let own = deletes().any(|sent| within(sent) && self.model.permits(sent, &record.user, sent.from()));
        let begins = deletes().any(first);
        self.verdict.of_own_deletes += usize::from(own);
        begins
    }

    /// Whether it may be here.
    fn arrived(&mut self, record: &Record, place: usize, at: Instant, cursor: Option<&String>, session: &mut Session) {
        self.verdict.received += 1;
        let sent = &self.model.sent[place];
        let end = self.ends[sent.commit];
        if let Some(lsn) = self.place_of(cursor)
            && lsn != end
        {
            let text = format!("the cursor of {} is at {lsn}, its commit at {end}", sent.key());
            return self.blame(record, text);
        }
        if !wanted(record, sent) {
            return self.blame(record, format!("LEAK: {sent:?}, which it did not ask for"));
        }
        self.verdict.messages += usize::from(sent.table == "messages");
        let begun = self.begun[sent.commit];
        let is_live = session.live.is_some_and(|live| begun.is_some_and(|begun| begun >= live));
        if session.live.is_none() && session.subscribed.is_some_and(|s| begun.is_some_and(|begun| begun >= s)) {
            session.live = Some(at);
        }
        let from = sent.from();
        let permitted = self.model.permits(sent, &record.user, from);
        let reached = session.joining.map_or(0, |joining| self.reached(joining));
        let (earliest, last) = (from.max(reached), self.latest(from.max(reached), at));
        let could = (earliest..=last).any(|state| self.model.permits(sent, &record.user, state));
        let wrong = if is_live && is_exact(sent) { !permitted } else { !could };
        if wrong {
            let text = format!(
                "LEAK: {sent:?}, permitted at its commit {from}: {permitted}, live {is_live}, states {earliest} to {last}; {}",
                self.model.turns(&sent.table, sent.commit)
            );
            self.blame(record, text);
        } else if !permitted {
            self.verdict.newer += 1;
        }
    }

    fn missing(
        &mut self,
        record: &Record,
        arrived: &[Option<Instant>],
        start: Lsn,
        fresh: Instant,
        gaps: &[(Lsn, Lsn)],
    ) {
        let mut bound = fresh;
        for (place, at) in arrived.iter().enumerate().rev() {
            let sent = &self.model.sent[place];
            let end = self.ends[sent.commit];
            if let Some(at) = at {
                bound = bound.min(*at);
            }
            if end <= start || !wanted(record, sent) {
                continue;
            }
            let from = sent.from();
            if !self.model.permits(sent, &record.user, from) {
                continue;
            }
            let last = self.latest(from, bound);
            if !(from..=last).all(|state| self.model.permits(sent, &record.user, state)) {
                continue;
            }
            self.verdict.owed += 1;
            self.verdict.owed_messages += usize::from(sent.table == "messages");
            if at.is_some() {
                continue;
            }
            if gaps.iter().any(|(after, to)| *after < end && end <= *to) {
                self.verdict.covered += 1;
                continue;
            }
            let text = format!(
                "LOST: {sent:?} at {end} (states {from} to {last}); around it: {}",
                around(record, sent, &self.places)
            );
            self.blame(record, text);
        }
    }
}

fn is_exact(sent: &Sent) -> bool {
    EXACT.contains(&&sent.table[..]) || sent.table == "messages"
}

/// Whether the phone has asked for it: of messages, those to its room.
fn wanted(record: &Record, sent: &Sent) -> bool {
    match &sent.table[..] {
        "messages" => record.room == Some(&sent.row["topic"][..]),
        table => record.tables.contains(&table),
    }
}

/// What the phone saw when the row should have come.
fn around(record: &Record, sent: &Sent, places: &HashMap<String, usize>) -> String {
    let place = places.get(&sent.key()).copied().unwrap_or_default();
    let later = |(_, seen): &(Instant, Seen)| matches!(seen, Seen::Row(key, _) if places.get(key).is_some_and(|at| *at > place));
    let at = record.seen.iter().position(later).unwrap_or(record.seen.len());
    format!("#{place}: {}", near(record, at, places))
}

/// What the phone saw before and after.
fn near(record: &Record, at: usize, places: &HashMap<String, usize>) -> String {
    let begin = record.seen.first().map(|(at, _)| *at);
    let text = |(time, seen): &(Instant, Seen)| {
        let place = match seen {
            Seen::Row(key, _) => places.get(key).copied(),
            _ => None,
        };
        let since = begin.map(|begin| time.saturating_duration_since(begin)).unwrap_or_default();
        format!("{since:.2?} {seen:?} {place:?}")
    };
    let near = &record.seen[at.saturating_sub(8)..(at + 3).min(record.seen.len())];
    near.iter().map(text).collect::<Vec<_>>().join(" | ")
}
