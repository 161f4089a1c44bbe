//! What ingest says of its troubles: one line when they begin or change, and the same line again once a minute, so that the
//! end of the log always says why nothing streams. How long something has lasted is no change.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{IngestError, IngestState};
use crate::error::{Fault as _, Remedy, chain};
use crate::wal::WalError;

const AGAIN: Duration = Duration::from_secs(60);

pub(super) struct Report {
    pub(super) state: watch::Sender<IngestState>,
    /// The reason of the last line, when that was written, and when the trouble began.
    last: Option<(String, Instant)>,
    since: Option<Instant>,
}

impl Report {
    pub(super) fn new(state: watch::Sender<IngestState>) -> Report {
        Report { state, last: None, since: None }
    }

    /// Changes stream.
    pub(super) fn over(&mut self) {
        (self.last, self.since) = (None, None);
        self.state.send_replace(IngestState::Streaming);
    }

    /// For how long they haven't.
    pub(super) fn lasts(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// They don't, for this reason.
    pub(super) fn tell(&mut self, error: &IngestError) {
        let text = chain(error);
        let reason = without_times(&text);
        let since = self.since.get_or_insert_with(Instant::now).elapsed();
        // Before anybody can read of it.
        self.state.send_replace(match error {
            IngestError::Wal(WalError::SlotBlocked { .. }) => IngestState::Blocked(text.clone()),
            _ => IngestState::Waiting(text.clone()),
        });
        if self.last.as_ref().is_none_or(|(last, at)| *last != reason || at.elapsed() >= AGAIN) {
            let (advice, seconds) = (error.advice(), since.as_secs());
            match error.remedy() {
                Remedy::Retry => {
                    tracing::warn!(error = text, advice, seconds, "changes are not streaming; trying again")
                }
                Remedy::Operator => {
                    tracing::error!(error = text, advice, seconds, "changes are not streaming until this is mended")
                }
                Remedy::Bug => {
                    tracing::error!(error = text, advice, seconds, "changes are not streaming; this is a bug")
                }
            }
            self.last = Some((reason, Instant::now()));
        }
    }
}

/// The text but for how long something has lasted, such as `for 12 s` and `waited 6.03s`: what tells one reason from another.
fn without_times(text: &str) -> String {
    let is_unit = |word: &str| ["s", "ms", "µs", "ns"].contains(&word.trim_end_matches([',', ')', ';', ':']));
    let unit_of = |word: &str| {
        let rest = word.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        (rest.len() < word.len()).then(|| rest.to_owned())
    };
    let words: Vec<&str> = text.split(' ').collect();
    let is_time = |(index, word): (usize, &&str)| {
        unit_of(word).is_some_and(|unit| {
            is_unit(&unit) || (unit.is_empty() && words.get(index + 1).is_some_and(|next| is_unit(next)))
        })
    };
    let kept: Vec<&str> = words.iter().enumerate().filter(|word| !is_time(*word)).map(|(_, word)| *word).collect();
    kept.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::error::Holder;
    use crate::wal::Blocker;

    fn taken(pid: i32, detail: &str) -> IngestError {
        IngestError::Taken { slot: "s9".into(), holder: Holder { pid, started: None, detail: detail.into() } }
    }

    fn blocked(waited: u64, detail: &str) -> IngestError {
        let blockers = vec![Blocker { pid: Some(7), gid: None, detail: detail.into() }];
        WalError::SlotBlocked { slot: "s".into(), waited: Duration::from_millis(waited), blockers }.into()
    }

    /// It was one line a second.
    #[test]
    fn the_same_reason_a_moment_later_is_the_same_reason() {
        let told = |error: &IngestError| without_times(&chain(error));
        for (one, other) in [
            (taken(5, " (application rowcast, for 0 s)"), taken(5, " (application rowcast, for 12 s)")),
            (
                blocked(3000, " (idle in transaction, user u, for 3 s)"),
                blocked(6031, " (idle in transaction, user u, for 60 s)"),
            ),
        ] {
            assert_eq!(told(&one), told(&other));
        }
        for (one, other) in [
            (taken(5, ""), taken(6, "")),
            (taken(5, " (from 10.0.0.1, for 1 s)"), taken(5, " (from 10.0.0.2, for 1 s)")),
            (blocked(3000, " (active)"), blocked(3000, " (idle in transaction)")),
            (blocked(3000, ""), taken(7, "")),
        ] {
            assert_ne!(told(&one), told(&other));
        }
    }
}
