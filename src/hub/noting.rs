//! What the hub notes in the journal, so that the rest of it says it in a line.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use tokio::time::Instant;

use super::owing::Owed;
use super::prepare::FACTS;
use super::registry::Channel;
use super::rules::Rules;
use super::run::Hub;
use super::{Action, ChannelId, Entry, Name, Outgoing, Port};
use crate::catalog::{Function, Table};
use crate::change::{Position, RowChange, Transaction};
use crate::claims::Principal;
use crate::journal::{Note, User, Wanted};
use crate::policy::FactState;

fn user(principal: &Principal) -> User {
    User { role: principal.role.clone(), subject: principal.subject.clone() }
}

fn wanted(entry: &Entry) -> Wanted {
    let name = |name: &Name| match name {
        Name::Any => None,
        Name::Is(name) => Some(name.clone()),
    };
    Wanted {
        id: entry.id,
        action: Cow::Borrowed(entry.action.as_str()),
        schema: name(&entry.schema),
        table: name(&entry.table),
        filter: entry.filter.clone(),
    }
}

impl Action {
    /// As clients write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::All => "*",
            Action::Insert => "INSERT",
            Action::Update => "UPDATE",
            Action::Delete => "DELETE",
        }
    }
}

/// How often the states of facts are noted though they are the same.
const REPEAT: Duration = Duration::from_secs(3600);

/// What was noted of facts.
#[derive(Default)]
pub(super) struct NotedFacts {
    /// [`crate::policy::Facts::generation`] then.
    generation: Option<u64>,
    /// When all of it was noted.
    at: Option<Instant>,
    states: AHashMap<u32, Cow<'static, str>>,
}

fn state_text(state: &FactState) -> Cow<'static, str> {
    match state {
        FactState::Absent => "absent".into(),
        FactState::Recording { .. } => "loading".into(),
        FactState::Ready { .. } => "loaded".into(),
        FactState::Broken(why) => format!("broken: {why}").into(),
    }
}

/// Whether other rules are in force for those whose rules were read before. When a role was read for the first time, the rest
/// is compared piece by piece: that alone is no change.
fn differ(before: &Rules, after: &Rules) -> bool {
    if before.roles == after.roles {
        return true;
    }
    let (old, new) = (&before.catalog, &after.catalog);
    let known = |role: &String| before.roles.contains(role);
    let same_table = |table: &Arc<Table>| {
        let Some(other) = new.table(table.oid) else { return false };
        let mut other = Table::clone(other);
        other.access.retain(|role, _| table.access.contains_key(role));
        other == **table
    };
    let same_function = |oid: &u32| match (old.function(*oid), new.function(*oid)) {
        (Some(old), Some(new)) => {
            let mut new = Function::clone(new);
            new.executable_by.retain(|role| old.executable_by.contains(role) || known(role));
            new == **old
        }
        (old, new) => old.is_none() && new.is_none(),
    };
    let mut functions = old.tables().flat_map(|table| &table.policies).flat_map(|policy| &policy.functions);
    !(old.tables().count() == new.tables().count()
        && old.tables().all(same_table)
        && functions.all(same_function)
        && before.roles.iter().all(|role| old.role(role) == new.role(role))
        && old.is_utf8() == new.is_utf8()
        && old.has_foreign_claims() == new.has_foreign_claims())
}

impl Hub {
    pub(super) fn note_rules(&self, before: &Rules, after: &Rules) {
        if differ(before, after) {
            self.deps.journal.note(Note::Rules { at: self.position() });
        }
    }

    /// Before the activation of a channel, which begins with what is after `from`; `known` if it was active.
    pub(super) fn note_active(
        &self,
        port: &Port,
        principal: &Principal,
        entries: &[Entry],
        from: Position,
        known: bool,
    ) {
        let (channel, user, expires_at) = (port.id.0, user(principal), principal.expires_at);
        self.deps.journal.note(if known {
            Note::Token { channel, user, expires_at, at: from }
        } else {
            let (connection, topic) = (port.outbox.number(), port.topic.clone());
            let entries = entries.iter().map(|entry| wanted(&entry.as_rows())).collect();
            Note::Joined { channel, connection, topic, user, expires_at, from, entries }
        });
    }

    pub(super) fn note_refused(&self, port: &Port, principal: &Principal) {
        self.deps.journal.note(Note::Refused { channel: port.id.0, topic: port.topic.clone(), user: user(principal) });
    }

    /// Channels for which a row was not decided, each with the reason.
    pub(super) fn note_undecided<'a>(
        &self,
        channels: impl IntoIterator<Item = (&'a Arc<Port>, &'static str)>,
        row: &RowChange,
    ) {
        for (port, reason) in channels {
            let (channel, at) = (port.id.0, row.position);
            self.deps.journal.note(Note::Undecided {
                channel,
                table: row.relation.oid,
                reason: Cow::Borrowed(reason),
                first: at,
                last: at,
                count: 1,
            });
        }
    }

    /// Doubts that were not settled.
    pub(super) fn note_doubted(&self, owed: &[Owed]) {
        for owed in owed {
            for doubted in &owed.doubted {
                self.deps.metrics.undecided_gaps.inc_by(u64::from(doubted.count));
                self.deps.journal.note(Note::Undecided {
                    channel: owed.port.id.0,
                    table: doubted.table,
                    reason: Cow::Borrowed(FACTS),
                    first: doubted.first,
                    last: doubted.last,
                    count: doubted.count,
                });
            }
        }
    }

    /// A transaction that changes tables which policies look into. Before it is folded.
    pub(super) fn note_facts(&self, transaction: &Transaction) {
        if !self.deps.journal.is_on() || !self.facts.concerns(&transaction.relations) {
            return;
        }
        let lsn = transaction.end_lsn;
        for relation in &transaction.relations {
            if self.facts.concerns(std::slice::from_ref(relation)) {
                // Of several tables each may have them all: they are not counted apart.
                self.deps.journal.note(Note::Facts {
                    table: relation.oid,
                    first: Position { lsn, ordinal: 0 },
                    last: Position { lsn, ordinal: u32::MAX },
                    rows: u64::from(transaction.items),
                });
            }
        }
    }

    /// What became of the tables that policies look into, since this was called last.
    pub(super) fn note_fact_states(&mut self) {
        let generation = self.facts.generation();
        let is_due = self.noted.at.is_none_or(|at| at.elapsed() >= REPEAT);
        if self.noted.generation == Some(generation) && !is_due {
            return;
        }
        self.noted.generation = Some(generation);
        if is_due {
            // Said again, since the journal forgets its oldest notes.
            self.noted.at = Some(Instant::now());
            self.noted.states.clear();
        }
        let at = self.position();
        let states: AHashMap<u32, Cow<'static, str>> =
            self.facts.tables().map(|(table, state)| (table, state_text(&state))).collect();
        for (table, state) in &states {
            if self.noted.states.get(table) != Some(state) {
                self.deps.journal.note(Note::FactState { table: *table, at, state: state.clone() });
            }
        }
        for table in self.noted.states.keys().filter(|table| !states.contains_key(table)) {
            self.deps.journal.note(Note::FactState { table: *table, at, state: "forgotten".into() });
        }
        self.noted.states = states;
    }

    /// An active channel gets nothing from here on, or does again.
    pub(super) fn note_paused(&self, id: ChannelId, paused: bool) {
        let (channel, at) = (id.0, self.position());
        self.deps.journal.note(if paused { Note::Paused { channel, at } } else { Note::Resumed { channel, at } });
    }

    fn note_left(&self, channel: &Channel) {
        self.deps.journal.note(Note::Left {
            channel: channel.port.id.0,
            connection: channel.port.outbox.number(),
            topic: channel.port.topic.clone(),
            user: user(&channel.principal),
            from: channel.from(),
            // In the middle of a transaction nobody can tell which of its rows were before this.
            at: match self.progress(channel) {
                Some(progress) => progress.position,
                None => Position { ordinal: if self.work.is_some() { 0 } else { u32::MAX }, ..self.position() },
            },
        });
    }

    /// Forgets a channel, if it is there.
    pub(super) fn remove(&mut self, id: ChannelId) {
        if let Some(channel) = self.registry.get(id) {
            self.note_left(channel);
            // It stays where it was: should its client ask again, it goes on from there.
            let (port, hold) = (channel.port.clone(), self.hold_of(id).or_else(|| self.cursor(self.judged())));
            let shard = port.shard % self.out.len();
            self.out[shard].push(Outgoing::Hold(port, hold));
            self.registry.remove(id);
            self.holds.stir(id);
            self.owing.forget(id);
        }
    }

    /// Forgets the channels whose connection takes nothing any more.
    pub(super) fn sweep(&mut self) {
        self.registry.channels().filter(|c| !c.port.outbox.is_open()).for_each(|channel| self.note_left(channel));
        self.registry.sweep();
    }
}
