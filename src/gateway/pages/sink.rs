//! Where a page's channel writes: lines in memory, as many as the page may have.
//!
//! What is beyond is not taken, so it waits in the outbox, and the hub parks the channel as it does with any slow one. Unless
//! something may still be told of the rows that were taken: then notices are, for as long as that may be.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::hub::Transmit;

/// How a line begins that is no row.
pub(super) const NOTICE: &[u8] = br#"{"notice":"#;

/// The reading side.
#[derive(Clone)]
pub(super) struct Lines(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    came: Notify,
    most_lines: usize,
    most_bytes: usize,
}

#[derive(Default)]
struct State {
    /// Rows are no longer kept.
    only_notices: bool,
    lines: VecDeque<Bytes>,
    /// The line that is not whole yet.
    begun: Vec<u8>,
    /// That ever came.
    count: usize,
    bytes: usize,
}

impl Lines {
    /// Takes no more once it has had so many.
    pub(super) fn new(most_lines: usize, most_bytes: usize) -> Lines {
        let (state, came) = (Mutex::default(), Notify::new());
        Lines(Arc::new(Shared { state, came, most_lines, most_bytes }))
    }

    /// The lines that have come and were not taken yet, and whether more may come.
    pub(super) fn take(&self) -> (VecDeque<Bytes>, bool) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        (std::mem::take(&mut state.lines), !self.0.is_full(&state))
    }

    /// From now on everything is taken and rows are dropped: what is told behind them is still to be heard.
    pub(super) fn only_notices(&self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).only_notices = true;
    }

    /// Resolves when a line has come since this was last awaited.
    pub(super) async fn came(&self) {
        self.0.came.notified().await;
    }
}

impl Shared {
    fn is_full(&self, state: &State) -> bool {
        !state.only_notices && (state.count >= self.most_lines || state.bytes >= self.most_bytes)
    }
}

impl Transmit for Lines {
    fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = 0;
        for part in parts {
            // A line that was begun is finished.
            if state.begun.is_empty() && self.0.is_full(&state) {
                break;
            }
            taken += part.len();
            state.bytes += part.len();
            for piece in part.split_inclusive(|byte| *byte == b'\n') {
                state.begun.extend_from_slice(piece);
                if state.begun.ends_with(b"\n") {
                    state.begun.pop();
                    let line = std::mem::take(&mut state.begun);
                    if !state.only_notices || line.starts_with(NOTICE) {
                        state.lines.push_back(line.into());
                    }
                    state.count += 1;
                }
            }
        }
        drop(state);
        self.0.came.notify_one();
        if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(lines: &Lines, texts: &[&str]) -> Option<usize> {
        let parts: Vec<IoSlice<'_>> = texts.iter().map(|text| IoSlice::new(text.as_bytes())).collect();
        lines.try_write_vectored(&parts).ok()
    }

    #[test]
    fn whole_lines_come_out_and_too_many_are_left() {
        let lines = Lines::new(3, 1000);
        assert_eq!(write(&lines, &["one\ntw", "o\n"]), Some(8));
        assert_eq!(lines.take(), (["one", "two"].map(Bytes::from).into(), true));
        assert_eq!(write(&lines, &["three\n", "four\n"]), Some(6));
        assert_eq!(lines.take(), ([Bytes::from("three")].into(), false));
        assert_eq!(write(&lines, &["four\n"]), None);
        lines.only_notices();
        assert_eq!(write(&lines, &["four\n", "{\"notice\":1}\n"]), Some(18));
        assert_eq!(lines.take(), ([Bytes::from("{\"notice\":1}")].into(), true));
        let lines = Lines::new(9, 4);
        assert_eq!((write(&lines, &["a long one\n", "b\n"]), lines.take().1), (Some(11), false));
    }
}
