//! What waits until a device's first place is saved: the answer to its first join, and all that came behind that.
//!
//! Without that place a crash of the relay right after the answer would make the device a stranger, and lose what came in between.
//! Channels that end meanwhile, for whatever reason, get nothing more from that moment; only the word of it waits, and not for
//! what was asked for themselves.
//!
//! A wait has an end, also while the database hangs: a crash just then is less likely than trouble with the wait.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, FutureExt as _};
use smallvec::SmallVec;

use super::Connection;
use crate::gateway::phoenix::session::Effect;
use crate::hub::{ChannelId, Stage};
use crate::resume::Tracked;

/// The longest that a connection waits for its places to be saved, however many they are.
const SAVED: Duration = Duration::from_secs(2);
/// Messages whose effects may wait for that.
const MOST_DEFERRED: usize = 64;

/// Whose places are to be saved first, each for a request that nobody waits for any more when its stage is closed.
type WaitsFor = SmallVec<[(Arc<Tracked>, Arc<Stage>); 1]>;

/// The effects that wait, in order, and for what.
#[derive(Default)]
pub(super) struct Deferred {
    queue: VecDeque<(Vec<Effect>, WaitsFor)>,
    /// Nothing of the queue waits longer.
    until: Option<Instant>,
    /// Resolves when the first of them need not wait; for which request it does.
    safe: Option<(BoxFuture<'static, ()>, Arc<Stage>)>,
}

impl Deferred {
    pub(super) fn is_waiting(&self) -> bool {
        self.safe.is_some()
    }

    /// Resolves once the first of them need not wait any longer.
    pub(super) async fn safe(&mut self) {
        if let Some((safe, _)) = &mut self.safe {
            safe.await;
        }
        self.safe = None;
    }

    /// Takes out the leaves of channels for which nothing waits before them, what the hub was to be asked for them left out.
    fn take_leaves(&mut self, effects: &mut Vec<Effect>) -> Vec<Effect> {
        let leaves = |effect: &Effect| if let Effect::Leave(id) = effect { Some(*id) } else { None };
        let left: SmallVec<[ChannelId; 1]> = effects.iter().filter_map(leaves).collect();
        let is_vain = |effect: &mut Effect| match effect {
            Effect::Subscribe { id, .. } | Effect::Reclaim { id, .. } => left.contains(id),
            _ => false,
        };
        self.queue.iter_mut().for_each(|(effects, _)| effects.retain_mut(|effect| !is_vain(effect)));
        let mut waiting: Vec<ChannelId> =
            self.queue.iter().flat_map(|(effects, _)| effects.iter().filter_map(Effect::channel)).collect();
        let at_once = |effect: &mut Effect| {
            let Some(id) = effect.channel() else { return false };
            let first = !waiting.contains(&id);
            waiting.push(id);
            first && matches!(effect, Effect::Leave(_))
        };
        effects.extract_if(.., at_once).collect()
    }

    /// The next effects that need not wait; `None` if there are none now.
    fn next(&mut self) -> Option<Vec<Effect>> {
        let (_, waits_for) = self.queue.front_mut()?;
        let left = self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
        waits_for.retain(|(_, stage)| !stage.is_closed());
        let waits = waits_for.pop().filter(|_| !left.is_zero() && self.queue.len() <= MOST_DEFERRED);
        if let Some((tracked, stage)) = waits {
            self.safe = Some((async move { tracked.safe(left).await }.boxed(), stage));
            return None;
        }
        self.queue.pop_front().map(|(effects, _)| effects)
    }
}

impl Connection {
    /// Carries them out, in order; a join that begins a device's first place only when that is saved.
    pub(super) fn carry_out(&mut self, mut effects: Vec<Effect>) {
        let unsafe_yet = |effect: &Effect| match effect {
            Effect::Subscribe { tracked: Some(tracked), stage, .. } if !tracked.is_safe() => {
                Some((tracked.clone(), stage.clone()))
            }
            _ => None,
        };
        let waits_for: WaitsFor = effects.iter().filter_map(unsafe_yet).collect();
        if waits_for.is_empty() && self.deferred.queue.is_empty() {
            return self.carry_out_now(effects);
        }
        let leaves = self.deferred.take_leaves(&mut effects);
        self.carry_out_now(leaves);
        if !effects.is_empty() {
            if self.deferred.queue.is_empty() {
                self.deferred.until = Some(Instant::now() + SAVED);
            }
            self.deferred.queue.push_back((effects, waits_for));
        }
        self.deferred.safe.take_if(|(_, stage)| stage.is_closed());
        if !self.deferred.is_waiting() || self.deferred.queue.len() > MOST_DEFERRED {
            self.carry_out_deferred();
        }
    }

    /// The first of the deferred need not wait any longer.
    pub(super) fn carry_out_deferred(&mut self) {
        while let Some(effects) = self.deferred.next() {
            self.carry_out_now(effects);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_that_ends_does_not_wait_for_another_to_be_saved() {
        let mut deferred = Deferred::default();
        let sends = || Effect::PresenceState(ChannelId(1));
        deferred.queue.push_back((vec![sends()], WaitsFor::new()));
        let leave = |id| Effect::Leave(ChannelId(id));
        let mut effects = vec![leave(1), leave(2), Effect::PresenceState(ChannelId(3)), leave(3), Effect::Learn];
        let leaves = deferred.take_leaves(&mut effects);
        assert!(matches!(leaves.as_slice(), [Effect::Leave(ChannelId(2))]));
        // What waits for a channel comes before its leave.
        let [Effect::Leave(ChannelId(1)), Effect::PresenceState(_), Effect::Leave(ChannelId(3)), Effect::Learn] =
            effects.as_slice()
        else {
            panic!("{effects:?}")
        };
    }
}
