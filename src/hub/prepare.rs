//! When the hub looks after facts, and the subscriptions that wait for theirs.
//!
//! A subscription whose rules look into a table that is being loaded is put into force when the table is ready, so that its first
//! rows are judged in memory; but not later than [`super::FactsConfig::wait`], since the client waits for its answer.

use std::sync::Arc;

use ahash::AHashMap;
use tokio::time::Instant;

use super::control::Resolved;
use super::gaps::before;
use super::matching::{self, UNDECIDED};
use super::owing::{LOST, Owed};
use super::registry::At;
use super::run::Hub;
use super::{Action, Details, GapReason, Port};
use crate::change::RowChange;
use crate::policy::UndecidedReason;
use crate::resume::Cursor;

/// Why rows are lost here.
pub(super) const FACTS: &str = UndecidedReason::Facts.as_str();

impl Hub {
    /// Between two transactions: facts that came are put into force, and what has to be loaded is begun.
    pub(super) fn tend_facts(&mut self) {
        if self.is_within() {
            return;
        }
        let Some(rules) = &self.current else { return };
        self.facts_changed |= self.keeper.tend(&mut self.facts, rules, &self.rules);
    }

    /// Subscriptions whose facts have come, or that have waited long enough, are put into force.
    pub(super) fn release_waiting(&mut self) {
        let now = Instant::now();
        self.tell_owed(now);
        self.hurry_stream(now);
        if std::mem::take(&mut self.facts_changed) || self.awaiting.iter().any(|(until, _)| *until <= now) {
            // What still waits comes back into the list.
            for (_, resolved) in std::mem::take(&mut self.awaiting) {
                self.on_resolved(Ok(resolved));
            }
        }
    }

    /// When facts, or what waits for them, have to be looked at again.
    pub(super) fn facts_at(&self) -> Option<Instant> {
        let waiting = self.awaiting.iter().map(|(until, _)| *until).min();
        let nudge = self.owing.nudge_at().filter(|_| self.awaits_stream());
        let times = [self.keeper.wake_at(), waiting, self.owing.due_at(self.has_facts()), nudge];
        times.into_iter().flatten().min().filter(|_| !self.is_within())
    }

    /// All facts that may be had are at hand, and of the moment of the stream and the rules.
    fn has_facts(&self) -> bool {
        self.ahead.is_none() && !self.facts.is_ahead() && !self.keeper.hopes()
    }

    /// The facts are there and ahead of the stream, and nothing comes in which it would pass them.
    fn awaits_stream(&self) -> bool {
        !self.has_facts() && !self.keeper.hopes() && self.is_at_end()
    }

    /// While the database is quiet, nothing tells that the stream has passed the facts; and who waits to hear whether he has lost
    /// anything waits just for that.
    fn hurry_stream(&mut self, now: Instant) {
        if !self.owing.is_empty() && self.awaits_stream() && self.owing.nudges(now) {
            self.nudge();
        }
    }

    /// Channels that may have been permitted this row get nothing of it; they are told together.
    pub(super) fn lose(&mut self, lost: Vec<Arc<Port>>, (row, epoch): (&RowChange, Option<u64>)) {
        if lost.is_empty() {
            return;
        }
        self.deps.metrics.undecided_gaps.inc_by(lost.len() as u64);
        self.note_undecided(lost.iter().map(|port| (port, FACTS)), row);
        self.owe(&lost, (row, epoch), None);
    }

    /// The same for those, or all that want such rows, whom facts deny it that are ahead of it: nobody has lost anything if these
    /// were what they were before it.
    pub(super) fn doubt(
        &mut self,
        served: At,
        mut doubted: Vec<Arc<Port>>,
        by_all: bool,
        (row, epoch): (&RowChange, Option<u64>),
    ) {
        if by_all {
            let wants = |action| matches!(action, Action::All | Action::Delete);
            let (oid, at) = (row.relation.oid, row.position);
            let concerned = self.registry.channels().filter(|channel| {
                channel.at == served
                    && at > channel.from()
                    && channel.targets.iter().any(|t| t.table_oid == oid && wants(t.action))
            });
            doubted = concerned.map(|channel| channel.port.clone()).collect();
        }
        self.owe(&doubted, (row, epoch), Some((row.relation.oid, self.facts.generation())));
    }

    fn owe(&mut self, ports: &[Arc<Port>], (row, epoch): (&RowChange, Option<u64>), doubt: Option<(u32, u64)>) {
        let (now, at) = (Instant::now(), Cursor { epoch: epoch.unwrap_or_default(), position: row.position });
        for port in ports {
            self.owing.add(port, at, now, doubt);
            self.holds.stir(port.id);
        }
    }

    /// Of channels that were not decided on a row: those that are told so now. The others are owed it.
    pub(super) fn undecided(
        &mut self,
        mut ports: Vec<Arc<Port>>,
        (row, epoch): (&RowChange, Option<u64>),
    ) -> Vec<Arc<Port>> {
        if ports.is_empty() {
            return ports;
        }
        self.deps.metrics.undecided_gaps.inc_by(ports.len() as u64);
        let (now, at) = (Instant::now(), Cursor { epoch: epoch.unwrap_or_default(), position: row.position });
        ports.retain(|port| {
            let tells = self.owing.tells_now(port, at, now);
            if !tells {
                self.holds.stir(port.id);
            }
            tells
        });
        let reason = GapReason::Undecided.as_str();
        self.deps.metrics.gaps.get_or_create(&[("reason", reason)]).inc_by(ports.len() as u64);
        ports
    }

    /// Whether a channel was rightly denied all that it is owed: between these rows and the moment of the facts by which it was, the
    /// stream, which the channel has come to by now, has no change of a table that policies look into. So they were the same
    /// before the rows.
    fn is_settled(&self, owed: &Owed) -> bool {
        let is_live = || self.registry.get(owed.port.id).is_some_and(|channel| channel.at == At::Live);
        !self.facts.is_ahead()
            && Some(owed.first.epoch) == self.epoch
            && owed.first.epoch == owed.last.epoch
            && self.owing.is_unchanged_since(owed, self.facts.generation())
            && is_live()
    }

    /// Tells of the rows that were lost, once the facts are back or have been away for long; and of those that were not decided, in
    /// time.
    fn tell_owed(&mut self, now: Instant) {
        let owed = self.owing.take(self.has_facts(), now);
        let (settled, owed) = owed.into_iter().partition::<Vec<_>, _>(|owed| self.is_settled(owed));
        settled.iter().for_each(|settled| self.holds.stir(settled.port.id));
        if owed.is_empty() {
            return;
        }
        let told: Vec<Owed> = owed.into_iter().filter_map(|owed| self.tell_of(owed, now)).collect();
        self.note_doubted(&told);
        let of_facts = || told.iter().filter(|owed| owed.is_of_facts());
        if of_facts().next().is_some() {
            let first = of_facts().map(|owed| owed.first.position).min();
            let last = of_facts().map(|owed| owed.last.position).max();
            tracing::warn!(
                channels = of_facts().count(),
                ?first,
                ?last,
                "rows were deleted while facts were loaded or behind the rules; those who may have seen them are told of a gap"
            );
        }
    }

    /// Tells a channel of what it is owed, up to the first row that it waits for. What can't be told yet stays owed; gives back what
    /// was told.
    fn tell_of(&mut self, owed: Owed, now: Instant) -> Option<Owed> {
        let id = owed.port.id;
        let channel = self.registry.get(id)?;
        let front = self.lane.front(id);
        let is_ahead = |at: Cursor, front: Cursor| at != front && self.lowest([Some(at), Some(front)]) == Some(at);
        if front.is_some_and(|front| !is_ahead(owed.first, front)) {
            self.owing.put_back(owed, None);
            return None;
        }
        let rest = front.filter(|front| !is_ahead(owed.last, *front));
        // It stands behind what was sent since, and so must its end: whoever goes on from an end that lies before rows that he has
        // gets those twice.
        let here = self.progress(channel).or_else(|| self.cursor(self.judged()));
        let behind = |here: &Cursor| here.epoch != owed.last.epoch || here.position > owed.last.position;
        let to = self.lane.complete_to(id).or(here.filter(behind)).unwrap_or(owed.last);
        let from = Some(Cursor { position: before(owed.first.position), ..owed.first });
        let (reason, message) = (GapReason::Undecided, if owed.is_of_facts() { LOST } else { UNDECIDED });
        self.deps.metrics.gaps.get_or_create(&[("reason", reason.as_str())]).inc();
        // Ahead of what waits.
        matching::notify(&mut self.out, &owed.port, false, message, Some(Details::Gap { from, to, reason }));
        self.owing.note_told(id, now);
        if let Some(front) = rest {
            self.owing.put_back(owed.clone(), Some((front, now)));
        }
        self.holds.stir(id);
        Some(owed)
    }

    /// Keeps what is resolved until its facts are there, if they are on their way and it has not waited long enough.
    pub(super) fn waits_for_facts(&mut self, mut resolved: Resolved) -> Option<Resolved> {
        let Some(current) = &self.current else { return Some(resolved) };
        let (now, wait) = (Instant::now(), self.config.facts.wait);
        let until = match resolved.wanted() {
            Some((targets, role, since)) => {
                let until = *since.get_or_insert(now) + wait;
                self.keeper.want(targets, role);
                (now < until && self.keeper.is_preparing(&current.catalog, targets, role)).then_some(until)
            }
            None => None,
        };
        match until {
            Some(until) => {
                self.awaiting.push((until, resolved));
                None
            }
            None => Some(resolved),
        }
    }

    /// Forgets which rules were in use and are not any more.
    pub(super) fn sweep_facts(&mut self) {
        let mut wanted: AHashMap<u32, Vec<_>> = AHashMap::new();
        for channel in self.registry.channels() {
            for target in &channel.targets {
                let roles = wanted.entry(target.table_oid).or_default();
                if !roles.contains(&channel.principal.role) {
                    roles.push(channel.principal.role.clone());
                }
            }
        }
        let uses = wanted.into_iter().flat_map(|(oid, roles)| roles.into_iter().map(move |role| (oid, role)));
        // Those that wait say it again when they are looked at.
        let waiting = self.awaiting.iter_mut().filter_map(|(_, resolved)| resolved.wanted());
        let waiting = waiting.flat_map(|(targets, role, _)| targets.iter().map(|t| (t.table_oid, role.clone())));
        self.keeper.retain(uses.chain(waiting).collect());
    }
}
