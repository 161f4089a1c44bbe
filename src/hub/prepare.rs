//! When the hub looks after facts, and the subscriptions that wait for theirs.
//!
//! A subscription whose rules look into a table that is being loaded is put into force when the table is ready, so that its first
//! rows are judged in memory; but not later than [`super::FactsConfig::wait`], since the client waits for its answer.

use ahash::AHashMap;
use tokio::time::Instant;

use super::control::Resolved;
use super::run::Hub;

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
        [self.keeper.wake_at(), waiting].into_iter().flatten().min().filter(|_| !self.is_within())
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
