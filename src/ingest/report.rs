//! What ingest says of its troubles: one line when they begin or change, and the same line again once a minute, so that the
//! end of the log always says why nothing streams.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{IngestError, IngestState};
use crate::error::{Fault as _, Remedy, chain};
use crate::wal::WalError;

const AGAIN: Duration = Duration::from_secs(60);

pub(super) struct Report {
    pub(super) state: watch::Sender<IngestState>,
    /// The last line, when it was written, and when the trouble began.
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
        let since = self.since.get_or_insert_with(Instant::now).elapsed();
        // Before anybody can read of it.
        self.state.send_replace(match error {
            IngestError::Wal(WalError::SlotBlocked { .. }) => IngestState::Blocked(text.clone()),
            _ => IngestState::Waiting(text.clone()),
        });
        if self.last.as_ref().is_none_or(|(last, at)| *last != text || at.elapsed() >= AGAIN) {
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
            self.last = Some((text, Instant::now()));
        }
    }
}
