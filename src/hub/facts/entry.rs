//! One table that rules look into, and how far its facts are.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::error::chain;
use crate::policy::facts::Layout;

/// Before the first new try; doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(60);

pub(super) enum Step {
    /// Nothing was begun.
    New,
    /// It is being added to our publication.
    Adding(u64, AbortHandle),
    /// It was, at this time.
    Added(Instant),
    /// Its changes are recorded and its rows read.
    Loading(u64, AbortHandle),
    Ready(Instant),
    /// Something went wrong; again at this time.
    Resting(Instant),
    /// Not before the catalog says otherwise.
    Refused,
}

/// What helps against what went wrong with a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cure {
    /// Time, most likely.
    Time,
    /// A person: until then Postgres is asked.
    Person,
}

impl Step {
    pub(super) fn label(&self) -> &'static str {
        match self {
            Step::New | Step::Adding(..) | Step::Added(_) => "preparing",
            Step::Loading(..) => "loading",
            Step::Ready(_) => "ready",
            Step::Resting(_) => "resting",
            Step::Refused => "refused",
        }
    }

    /// It may become ready by itself, and soon.
    pub(super) fn is_under_way(&self) -> bool {
        matches!(self, Step::New | Step::Adding(..) | Step::Added(_) | Step::Loading(..))
    }

    pub(super) fn ticket(&self) -> Option<u64> {
        match self {
            Step::Adding(ticket, _) | Step::Loading(ticket, _) => Some(*ticket),
            _ => None,
        }
    }
}

/// One table that rules look into.
pub(super) struct Entry {
    pub(super) name: Arc<str>,
    pub(super) columns: BTreeSet<i16>,
    pub(super) step: Step,
    /// What is recorded, loaded or was last tried.
    pub(super) layout: Option<Arc<Layout>>,
    pub(super) storage: u64,
    /// What helps, as of the last failure.
    pub(super) cure: Cure,
    /// Rows that it decides about wait until then.
    pub(super) patience: Option<Instant>,
    pub(super) failures: u32,
    pub(super) unneeded_since: Option<Instant>,
    /// What was last said of it, so that it is said once.
    pub(super) said: Option<(String, String)>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Entry {
    /// Ends what is under way.
    pub(super) fn stop(&mut self) {
        if let Step::Adding(_, task) | Step::Loading(_, task) = &self.step {
            task.abort();
        }
    }

    pub(super) fn go(&mut self, step: Step) {
        self.stop();
        self.step = step;
    }

    /// There will be no facts before somebody does something, or for a long time. Also while it is tried again.
    pub(super) fn is_given_up(&self) -> bool {
        match self.step {
            Step::Refused => true,
            Step::Ready(_) => false,
            Step::New | Step::Adding(..) | Step::Added(_) | Step::Loading(..) | Step::Resting(_) => {
                self.cure == Cure::Person
            }
        }
    }
}

/// Tries again later.
pub(super) fn rest(entry: &mut Entry, now: Instant, pause: Option<Duration>, cure: Cure) {
    let doubled = FIRST_PAUSE.saturating_mul(1 << entry.failures.min(6)).min(LONGEST_PAUSE);
    entry.failures += 1;
    (entry.patience, entry.cure) = (None, cure);
    entry.go(Step::Resting(now + pause.unwrap_or(doubled)));
}

/// Says what is wrong with a table, if it is not what was said last.
pub(super) fn say(entry: &mut Entry, why: String, remedy: String) {
    if entry.said.as_ref().is_some_and(|(known, _)| *known == why) {
        return;
    }
    tracing::warn!(
        table = %entry.name, why, remedy,
        "rules look into this table, and its facts can't be kept in memory: Postgres is asked about every row instead"
    );
    entry.said = Some((why, remedy));
}

pub(super) fn say_error(entry: &mut Entry, what: &str, error: &dyn std::error::Error, advice: String) {
    say(entry, format!("{what}: {}", chain(error)), advice);
}
