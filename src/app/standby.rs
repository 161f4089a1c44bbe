//! Clients are served as long as changes come in, and a little longer. A relay that has lost its slot may have lost it to
//! another one: who stays connected here would wait for changes that are delivered elsewhere.
//!
//! Invariants: what ends after a moment, a restart of the server or a broken line, is noticed by no client. While the slot can't
//! be made because of an old transaction, nobody else can have it, so clients stay and are served from the log.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::ingest::{IngestHandle, IngestState};
use crate::task::{Connections, Drain};

/// The service; see the module's comment.
pub(super) struct Standby {
    pub(super) ingest: IngestHandle,
    pub(super) gate: watch::Sender<bool>,
    pub(super) grace: Duration,
    pub(super) connections: Connections,
    pub(super) drain: Drain,
}

impl Standby {
    /// Until the drain.
    pub(super) async fn run(mut self) {
        let drain = self.drain.clone();
        tokio::select! {
            () = drain.draining() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&mut self) {
        let mut without_since = Some(Instant::now());
        loop {
            let serves = *self.ingest.ready.borrow_and_update()
                || matches!(*self.ingest.state.borrow_and_update(), IngestState::Blocked(_));
            without_since = if serves { None } else { without_since.or_else(|| Some(Instant::now())) };
            let open = *self.gate.borrow();
            match without_since.map(|since| since + self.grace) {
                Some(end) if open && Instant::now() >= end => {
                    let (seconds, connections) = (self.grace.as_secs_f64(), self.connections.len());
                    tracing::warn!(
                        seconds,
                        connections,
                        "without the replication slot for too long: clients are sent away (1012) and refused (503) until changes stream again"
                    );
                    self.gate.send_replace(false);
                }
                None if !open => {
                    tracing::info!("changes stream again: clients are let in");
                    self.gate.send_replace(true);
                }
                _ => {}
            }
            let end = without_since.map(|since| since + self.grace).filter(|_| *self.gate.borrow());
            let changed = async {
                tokio::select! {
                    changed = self.ingest.ready.changed() => changed,
                    changed = self.ingest.state.changed() => changed,
                }
            };
            tokio::select! {
                // Ingest is gone, and then the process ends.
                changed = changed => if changed.is_err() { return std::future::pending().await },
                () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Gate;

    const GRACE: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn the_gate_closes_after_the_grace_and_opens_with_the_stream_or_when_nobody_can_have_the_slot() {
        let (state, state_seen) = watch::channel(IngestState::Starting);
        let (ready, ready_seen) = watch::channel(false);
        let (gate_keeper, gate) = Gate::new();
        let drain = Drain::new();
        let standby = Standby {
            ingest: IngestHandle { state: state_seen, ready: ready_seen },
            gate: gate_keeper,
            grace: GRACE,
            connections: Connections::default(),
            drain: drain.clone(),
        };
        let began = Instant::now();
        let running = crate::task::spawn("standby", standby.run());
        let opened = async |gate: &Gate| {
            while !gate.is_open() {
                tokio::task::yield_now().await;
            }
        };
        gate.closed().await;
        assert!(began.elapsed() >= GRACE);
        ready.send_replace(true);
        opened(&gate).await;
        ready.send_replace(false);
        gate.closed().await;
        state.send_replace(IngestState::Blocked("by pid 7".into()));
        opened(&gate).await;
        state.send_replace(IngestState::Waiting("for somebody".into()));
        gate.closed().await;
        drain.drain();
        running.await.expect("it ends");
    }
}
