//! Facts as the operator sees them in the metrics.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Keeper;
use super::entry::{Entry, Step};
use crate::policy::facts::{FactState, Facts};
use crate::policy::rule::FactSource;

impl Keeper {
    pub(in crate::hub) fn measure(&self, facts: &Facts) {
        let (mut rows, mut by_state) = (0, BTreeMap::new());
        for (oid, entry) in &self.entries {
            if let FactState::Ready { rows: own, .. } = facts.state(*oid) {
                rows += own as i64;
            }
            *by_state.entry(entry.step.label()).or_insert(0) += 1;
        }
        for state in ["preparing", "loading", "ready", "resting", "refused"] {
            let count = by_state.get(state).copied().unwrap_or(0);
            self.metrics.fact_tables.get_or_create(&[("state", state)]).set(count);
        }
        let ready = |oid: &u32| matches!(self.entries.get(oid), Some(Entry { step: Step::Ready(_), .. }));
        let waits = |sources: &Arc<[FactSource]>| sources.iter().any(|source| !ready(&source.table_oid));
        let waiting = self.uses.iter().filter(|wanted| self.sources.get(*wanted).is_some_and(waits)).count();
        self.metrics.rules_without_facts.set(waiting as i64);
        let given_up = |oid: &u32| self.entries.get(oid).is_some_and(Entry::is_given_up);
        let left = |sources: &Arc<[FactSource]>| sources.iter().any(|source| given_up(&source.table_oid));
        let left = self.uses.iter().filter(|wanted| self.sources.get(*wanted).is_some_and(left)).count();
        self.metrics.rules_left_to_postgres.set(left as i64);
        self.metrics.fact_rows.set(rows);
        self.metrics.fact_bytes.set(facts.bytes() as i64);
    }
}
