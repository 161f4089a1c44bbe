//! Compiled plans in use, and what of the facts they rest on.

use std::sync::Arc;

use tokio::time::Instant;

use super::sweep::Crowd;
use crate::policy::facts::{Concerns, FactBinding, Facts, Numbers};
use crate::policy::rule::{KnownViewer, Viewer};
use crate::policy::{Asking, MemberPlan, Way};

/// A role and what its members want.
pub(super) type Use = (Arc<str>, Way);

/// A compiled plan in use.
pub(super) struct Used {
    pub(super) plan: Arc<MemberPlan>,
    /// `None` while its facts are not there.
    pub(super) binding: Option<FactBinding>,
    /// Whom changes of the facts can concern, of the last binding, and as which set of the crowd.
    pub(super) concerns: Option<Concerns>,
    pub(super) set: u64,
    /// Of the facts, when it was bound.
    stamp: (u64, u64),
    pub(super) tables: Vec<u32>,
    /// Which compilation, and which state of rules and facts.
    pub(super) number: u64,
    pub(super) version: u64,
    /// The last version that everybody is to be judged by; those since concern some only, who are told by the crowd.
    pub(super) everybody: u64,
    pub(super) asked_at: Instant,
}

impl Used {
    pub(super) fn new(plan: MemberPlan, number: u64) -> Used {
        let mut tables: Vec<u32> = plan.rule().iter().flat_map(|rule| &rule.sources).map(|s| s.table_oid).collect();
        tables.sort_unstable();
        tables.dedup();
        let asked_at = Instant::now();
        Used {
            plan: Arc::new(plan),
            binding: None,
            concerns: None,
            set: 0,
            stamp: (u64::MAX, u64::MAX),
            tables,
            number,
            version: 0,
            everybody: 0,
            asked_at,
        }
    }

    /// For the same role and way, after it.
    pub(super) fn instead_of(self, before: &Used) -> Used {
        let version = before.version + 1;
        Used { version, everybody: version, asked_at: before.asked_at, ..self }
    }

    pub(super) fn viewer(&self, asking: &Asking) -> KnownViewer {
        KnownViewer::new(self.plan.rule().map_or_else(|| Viewer::new([]), |rule| rule.viewer(&asking.principal)))
    }

    pub(super) fn judge(&self, viewer: &KnownViewer, topic: &str, extension: &str, facts: &Facts) -> Option<bool> {
        self.plan.judge(viewer, topic, extension, self.binding.as_ref().map(|binding| (binding, facts)))
    }

    /// Calls `found` with each place of the crowd where the member is to be found.
    pub(super) fn places(&self, viewer: &KnownViewer, topic: &str, crowd: &Crowd, found: &mut dyn FnMut(u64)) {
        if let Some(concerns) = &self.concerns {
            let numbers = Numbers { state: crowd.state(), set: self.set };
            self.plan.places(concerns, viewer.viewer(), topic, numbers, found);
        }
    }

    /// Everybody is to be judged again.
    pub(super) fn is_new_to_all(&mut self) {
        self.version += 1;
        self.everybody = self.version;
    }

    /// Binds the plan to the facts if those that it rests on have changed, and tells the crowd whom that concerns. Says whether
    /// that is everybody.
    pub(super) fn bind(&mut self, facts: &Facts, crowd: &mut Crowd) -> bool {
        let stamp = facts.stamp_of(&self.tables);
        let Some(rule) = self.plan.rule() else { return false };
        if self.stamp == stamp {
            return false;
        }
        let (same_generation, was_bound) = (self.stamp.0 == stamp.0, self.binding.is_some());
        // Nothing has changed since but what the transaction at hand does.
        let at_hand =
            same_generation && was_bound && facts.changing(&self.tables) == stamp.1.wrapping_sub(self.stamp.1);
        self.stamp = stamp;
        if !(same_generation && was_bound) {
            self.binding = facts.bind(rule).ok();
            if let Some(binding) = &self.binding {
                let concerns = facts.concerns_of(rule, binding);
                if concerns != self.concerns {
                    (self.concerns, self.set) = (concerns, crowd.new_set());
                }
            }
            if self.tables.is_empty() && was_bound {
                // It rests on none.
                return false;
            }
        }
        if at_hand && crowd.note(self, facts) {
            self.version += 1;
            return false;
        }
        self.is_new_to_all();
        true
    }
}
