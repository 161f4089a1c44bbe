//! What is removed, and when: whole segments from the old end, never the active one.
//!
//! Rejected: removing as soon as every subscriber has passed. The log knows no subscriber; a budget that is printed in the
//! configuration is what an operator can plan with, and a reader that falls below the floor is told.

use super::{LogError, LogWriter};

impl LogWriter {
    /// Removes segments while the log is larger than its limit, or the newest transaction in the oldest segment is older
    /// than the limit. The floor moves up. Blocking.
    pub fn retain(&mut self) -> Result<(), LogError> {
        let now = self.shared.clock.unix_millis();
        let (limit, age) = (self.shared.config.retain_bytes, self.shared.config.retain_age.as_millis());
        let mut removed = Vec::new();
        self.shared.publish(|state| {
            let mut bytes = state.bytes();
            while let Some(next) = state.segments.get(1) {
                // The next segment was created when the last transaction of this one was already there.
                let old = now.checked_sub(next.header.created_millis).and_then(|ms| u128::try_from(ms).ok());
                if bytes <= limit && old.is_none_or(|ms| ms <= age) {
                    break;
                }
                state.floor = next.header.base;
                let Some(oldest) = state.segments.pop_front() else { break };
                bytes -= oldest.length;
                removed.push(oldest.header.sequence);
            }
        });
        if removed.is_empty() {
            return Ok(());
        }
        let failed = self.remove_segments(&removed);
        failed.map_or(Ok(()), Err)
    }

    /// Removes the files of segments that the state no longer knows. A failure is logged (the next opening tries again) and
    /// the first one returned.
    pub(super) fn remove_segments(&self, sequences: &[u64]) -> Option<LogError> {
        let mut first = None;
        for &sequence in sequences {
            let path = self.shared.path(sequence);
            if let Err(error) = self.shared.files.remove(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove a segment that is no longer needed");
                first.get_or_insert(LogError::Io { action: "remove", path, source: error });
            }
        }
        if let Err(error) = self.shared.files.sync_dir(&self.shared.config.dir) {
            let dir = self.shared.config.dir.clone();
            first.get_or_insert(LogError::Io { action: "sync", path: dir, source: error });
        }
        first
    }
}
