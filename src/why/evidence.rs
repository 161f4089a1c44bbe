//! What the journal says of one user: his channels, each with its beginning, its end and what came between, and what concerned
//! everybody.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::clock::time;
use crate::change::{Lsn, Position};
use crate::journal::{Extent, Note, User, Wanted};

/// Channels of one user that are looked at; the newest.
const MOST_CHANNELS: usize = 1000;

/// A channel of the user, as the journal has it.
#[derive(Debug, Clone)]
pub(super) struct Past {
    /// Which run of the relay.
    pub(super) run: usize,
    pub(super) id: u64,
    pub(super) connection: Option<u64>,
    pub(super) topic: Option<Arc<str>>,
    pub(super) role: Arc<str>,
    /// When it became active, in milliseconds since 1970; `None`: before the journal begins.
    pub(super) joined: Option<i64>,
    /// Rows at or before this are not for it; `None`: not kept.
    pub(super) from: Option<Position>,
    /// `None`: not kept.
    pub(super) entries: Option<Vec<Wanted>>,
    /// When, and the hub's position.
    pub(super) left: Option<(i64, Position)>,
    pub(super) expired: Option<i64>,
    /// The expiry of each token in seconds since 1970, and from which position on it counted.
    pub(super) tokens: Vec<(Position, i64)>,
    pub(super) pauses: Vec<(Position, Option<Position>)>,
    /// Ended for its filter.
    pub(super) ended: Option<Position>,
    pub(super) undecided: Vec<Undecided>,
}

#[derive(Debug, Clone)]
pub(super) struct Undecided {
    pub(super) table: u32,
    pub(super) reason: String,
    pub(super) first: Position,
    pub(super) last: Position,
    pub(super) count: u32,
}

/// A change of a table that policies look into.
#[derive(Debug, Clone)]
pub(super) struct FactChange {
    pub(super) at: i64,
    pub(super) table: u32,
    pub(super) lsn: Lsn,
    /// Not of its rows: whether it is in memory from here on, and followed.
    pub(super) loaded: Option<bool>,
}

/// One run of the relay.
#[derive(Debug, Clone, Default)]
pub(super) struct Run {
    /// When it began and after which position; `None`: before the journal.
    pub(super) started: Option<(i64, Lsn)>,
    /// The last that is known of it, and whether it said goodbye.
    pub(super) latest: i64,
    pub(super) stopped: bool,
}

/// The end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Closed {
    pub(super) at: i64,
    pub(super) reason: String,
    pub(super) code: u16,
}

/// See the module's comment.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    pub(super) extent: Extent,
    pub(super) runs: Vec<Run>,
    pub(super) channels: Vec<Past>,
    pub(super) closed: HashMap<(usize, u64), Closed>,
    /// Refused subscriptions: when, on which topic.
    pub(super) refused: Vec<(i64, Arc<str>)>,
    pub(super) gaps: Vec<(Lsn, Lsn)>,
    pub(super) rules: Vec<(i64, Position)>,
    /// Tables that policies look into, changed or loaded anew: when, which, and up to where.
    pub(super) facts: Vec<FactChange>,
    /// From when to when notes are missing, in milliseconds since 1970.
    pub(super) holes: Vec<(i64, i64)>,
    /// The user has had more channels than are looked at.
    pub(super) more: bool,
    subject: Arc<str>,
    role: Option<Arc<str>>,
    by_id: HashMap<(usize, u64), usize>,
    /// Channels that are his now. Numbers begin anew with each run, so that only the present one's notes count.
    live: HashSet<u64>,
    orphans: HashMap<u64, Past>,
}

impl Evidence {
    pub(super) fn of(subject: Arc<str>, role: Option<Arc<str>>, live: HashSet<u64>) -> Evidence {
        Evidence { subject, role, live, ..Evidence::default() }
    }

    fn is_his(&self, user: &User) -> bool {
        user.subject == self.subject && self.role.as_ref().is_none_or(|role| user.role == *role)
    }

    fn run(&self) -> usize {
        self.runs.len().saturating_sub(1)
    }

    /// The run that is going on.
    pub(super) fn present_run(&self) -> usize {
        self.run()
    }

    /// Takes up the next note.
    pub(super) fn take(&mut self, at: i64, note: Note) {
        if self.runs.is_empty() && !matches!(note, Note::Started { .. }) {
            self.runs.push(Run::default());
        }
        if let Some(run) = self.runs.last_mut() {
            run.latest = at;
        }
        match note {
            Note::Started { position } => {
                self.orphans.clear();
                // A run begins with nothing in memory.
                let known: HashSet<u32> = self.facts.iter().filter(|f| f.loaded.is_some()).map(|f| f.table).collect();
                let gone = |table| FactChange { at, table, lsn: position, loaded: Some(false) };
                self.facts.extend(known.into_iter().map(gone));
                self.runs.push(Run { started: Some((at, position)), latest: at, stopped: false });
            }
            Note::Stopped => self.runs.iter_mut().last().into_iter().for_each(|run| run.stopped = true),
            Note::Joined { channel, connection, topic, user, expires_at, from, entries } if self.is_his(&user) => {
                let entries = (!entries.is_empty()).then_some(entries);
                let past = Past {
                    connection: Some(connection),
                    topic: Some(topic),
                    joined: Some(at),
                    from: Some(from),
                    entries,
                    tokens: vec![(from, expires_at)],
                    ..self.unknown(channel, user.role)
                };
                self.add(past);
            }
            Note::Token { channel, user, expires_at, at: position } => {
                let is_his = self.is_his(&user);
                match self.noted(channel) {
                    Some(past) if is_his => past.tokens.push((position, expires_at)),
                    Some(past) => past.left = Some((at, position)),
                    None if is_his => {
                        let past = Past { tokens: vec![(position, expires_at)], ..self.unknown(channel, user.role) };
                        self.add(past);
                    }
                    None => {}
                }
            }
            Note::Left { channel, connection, topic, user, from, at: position } if self.is_his(&user) => {
                if self.noted(channel).is_none() {
                    let unknown = self.unknown(channel, user.role);
                    self.add(Past { connection: Some(connection), topic: Some(topic), from: Some(from), ..unknown });
                }
                self.known(channel).into_iter().for_each(|past| past.left = Some((at, position)));
            }
            Note::Refused { topic, user, .. } if self.is_his(&user) => self.refused.push((at, topic)),
            Note::Joined { .. } | Note::Left { .. } | Note::Refused { .. } => {}
            Note::Expired { channel } => self.known(channel).into_iter().for_each(|past| past.expired = Some(at)),
            Note::Paused { channel, at } => {
                self.known(channel).into_iter().for_each(|past| past.pauses.push((at, None)));
            }
            Note::Resumed { channel, at } => {
                let last = self.known(channel).and_then(|past| past.pauses.last_mut());
                last.into_iter().for_each(|pause| pause.1 = Some(at));
            }
            Note::Ended { channel, at } => self.known(channel).into_iter().for_each(|past| past.ended = Some(at)),
            Note::Closed { connection, reason, code } => {
                let run = self.run();
                let his = self.channels.iter().any(|past| past.run == run && past.connection == Some(connection));
                if his {
                    self.closed.insert((run, connection), Closed { at, reason: reason.into_owned(), code });
                }
            }
            Note::Undecided { channel, table, reason, first, last, count } => {
                let undecided = Undecided { table, reason: reason.into_owned(), first, last, count };
                self.known(channel).into_iter().for_each(|past| past.undecided.push(undecided.clone()));
            }
            Note::Gap { from, resumed } => self.gaps.push((from, resumed)),
            Note::Facts { table, last, .. } => {
                self.facts.push(FactChange { at, table, lsn: last.lsn, loaded: None });
            }
            Note::FactState { table, at: position, state } => {
                let loaded = Some(state == "loaded");
                self.facts.push(FactChange { at, table, lsn: position.lsn, loaded });
            }
            Note::Rules { at: position } => self.rules.push((at, position)),
            Note::Hole { from, to, .. } => self.holes.push((from, to)),
        }
    }

    fn unknown(&self, id: u64, role: Arc<str>) -> Past {
        Past {
            run: self.run(),
            id,
            connection: None,
            topic: None,
            role,
            joined: None,
            from: None,
            entries: None,
            left: None,
            expired: None,
            tokens: Vec::new(),
            pauses: Vec::new(),
            ended: None,
            undecided: Vec::new(),
        }
    }

    /// His channel of this number, if its beginning or its end was noted.
    fn noted(&mut self, channel: u64) -> Option<&mut Past> {
        let place = *self.by_id.get(&(self.run(), channel))?;
        self.channels.get_mut(place)
    }

    /// The same, or one that is his now.
    fn known(&mut self, channel: u64) -> Option<&mut Past> {
        if let Some(place) = self.by_id.get(&(self.run(), channel)) {
            return self.channels.get_mut(*place);
        }
        if !self.live.contains(&channel) {
            return None;
        }
        let unknown = self.unknown(channel, "".into());
        Some(self.orphans.entry(channel).or_insert(unknown))
    }

    fn add(&mut self, past: Past) {
        if self.channels.len() >= MOST_CHANNELS {
            // The older half goes; rows are asked about soon or not at all.
            self.more = true;
            self.channels.drain(..MOST_CHANNELS / 2);
            self.by_id = self.channels.iter().enumerate().map(|(i, past)| ((past.run, past.id), i)).collect();
        }
        self.by_id.insert((past.run, past.id), self.channels.len());
        self.channels.push(past);
    }

    /// What is known of a channel that is active now and whose join is not kept: what came after it.
    pub(super) fn rest_of(&self, channel: u64) -> Past {
        let known = self.by_id.get(&(self.run(), channel)).map(|place| &self.channels[*place]);
        let orphan = known.or_else(|| self.orphans.get(&channel));
        orphan.cloned().unwrap_or_else(|| self.unknown(channel, "".into()))
    }

    /// Whether the journal was kept when this was committed.
    pub(super) fn covers(&self, position: Position, committed: i64) -> bool {
        match (self.extent.from, self.extent.begins) {
            (Some(from), _) => position.lsn > from,
            (None, Some(begins)) => committed > begins,
            (None, None) => false,
        }
    }

    /// Whether a table that policies look into is known to have been the same since a row was judged; else why not. `leaves`: how
    /// the stream may name it too. `after`: rows of the row's own transaction have gone into its verdict.
    pub(super) fn same_facts(
        &self,
        (table, leaves): &(u32, Vec<u32>),
        at: Position,
        after: bool,
    ) -> Result<(), String> {
        let states = || self.facts.iter().filter(|change| change.table == *table && change.loaded.is_some());
        let loaded = |change: &FactChange| change.loaded == Some(true);
        if !states().rfind(|change| change.lsn < at.lsn).is_some_and(loaded) {
            return Err(
                "a table that the policies look into was not in memory then, so its changes are not in the journal"
                    .into(),
            );
        }
        if let Some(change) = states().find(|change| change.lsn >= at.lsn && !loaded(change)) {
            return Err(format!("a table that the policies look into was loaded anew after {}", time(change.at)));
        }
        let is_later = |change: &&FactChange| {
            let of_it = change.table == *table || leaves.contains(&change.table);
            of_it && change.loaded.is_none() && (change.lsn > at.lsn || (!after && change.lsn == at.lsn))
        };
        match self.facts.iter().find(is_later) {
            Some(change) => Err(format!("a table that the policies look into was changed at {}", time(change.at))),
            None => Ok(()),
        }
    }

    /// Notes that may be missing at or after this time.
    pub(super) fn hole_since(&self, millis: i64) -> Option<String> {
        let (from, to) = self.holes.iter().find(|(_, to)| *to >= millis)?;
        Some(format!("the journal has a hole from {} to {}", time(*from), time(*to)))
    }

    /// Notes that may be missing around this time.
    pub(super) fn hole_at(&self, millis: i64) -> Option<String> {
        let (from, to) = self.holes.iter().find(|(from, to)| *from - SLACK <= millis && millis <= *to + SLACK)?;
        Some(format!("the journal has a hole from {} to {}", time(*from), time(*to)))
    }

    /// Whether a gap that all were told of holds this position.
    pub(super) fn gap(&self, position: Position) -> Option<(Lsn, Lsn)> {
        self.gaps
            .iter()
            .copied()
            .find(|(from, to)| (*from < position.lsn && position.lsn <= *to) || (from == to && *to == position.lsn))
    }

    /// In words.
    pub(super) fn describe(&self, on: bool) -> String {
        let mut text = match self.extent.begins {
            _ if !on => return "none: ROWCAST_JOURNAL_BYTES is 0, so nothing is known of the past".into(),
            None => return "none yet: the journal is empty".into(),
            Some(begins) => format!("the journal, which begins at {}", time(begins)),
        };
        if !self.holes.is_empty() {
            let (from, to) = self.holes[self.holes.len() - 1];
            let (from, to) = (time(from), time(to));
            text.push_str(&format!(", with {} holes, the last from {from} to {to}", self.holes.len()));
        }
        text
    }
}

/// Two machines' clocks, and the time from the commit to the note.
const SLACK: i64 = 5_000;

impl Past {
    /// Its topic as the client named it.
    pub(super) fn name(&self) -> String {
        let topic = self.topic.as_deref().unwrap_or("a channel whose join is not kept");
        format!("\"{}\"", topic.strip_prefix("realtime:").unwrap_or(topic))
    }

    /// When the token that counted at this position expires, in seconds since 1970.
    pub(super) fn expires_at(&self, position: Position) -> Option<i64> {
        self.tokens.iter().rev().find(|(from, _)| *from < position).map(|(_, expires_at)| *expires_at)
    }

    pub(super) fn is_paused(&self, position: Position) -> bool {
        self.pauses.iter().any(|(from, to)| *from < position && to.is_none_or(|to| position <= to))
    }
}
