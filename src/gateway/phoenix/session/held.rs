//! Joins that are answered when their changes are active (`protocol.md` §5.6), and what can end them before.
//!
//! The hub activates, a shard may write the reply at once, and the session hears of it later. Therefore every decision here is
//! taken on the join's [`Stage`]: it is given up before a refusal is said, and if that is too late, the join has succeeded.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::OwnedSemaphorePermit;

use super::join::Asker;
use super::topic::{Backlog, Channel, Held, Topic, What};
use super::{Effect, Now, Session};
use crate::channel::{Answer, JoinError};
use crate::gateway::phoenix::codec::Message;
use crate::hub::Stage;

impl Session {
    #[expect(clippy::too_many_arguments, reason = "the parts of one join, handed on once")]
    pub(super) fn hold_join(
        &mut self,
        message: &Message<'_>,
        mut channel: Box<Channel>,
        (frames, room): (Vec<Bytes>, Option<OwnedSemaphorePermit>),
        after: Vec<Bytes>,
        wait: Duration,
        backlog: Backlog,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let wait = wait.min(self.shared.config.max_join_wait);
        let mut greeting = BytesMut::with_capacity(frames.iter().map(Bytes::len).sum());
        frames.iter().for_each(|frame| greeting.extend_from_slice(frame));
        let mut held = Held {
            stage: Arc::new(Stage::waiting()),
            greeting: greeting.freeze(),
            room,
            reference: message.reference.clone(),
            after,
            until: now.at + wait,
            wait,
            last: None,
        };
        out.push(self.enter(&channel));
        // From now on rights are acted on that may end while the join is held.
        out.extend(self.watch_joined(&mut channel));
        out.push(channel.ask_held(&mut held, false));
        self.topics.insert(channel.topic.clone(), Topic::pending(What::Held { channel, held }, backlog));
    }

    /// The hub has answered for a held join.
    pub(super) fn held_answered(&mut self, name: &str, answer: Answer, now: Now, out: &mut Vec<Effect>) {
        let error = match answer {
            Err(error) if !error.retry => {
                return self.refuse_held(name, JoinError::Changes(error.message), now, out);
            }
            Err(error) => error,
            Ok(activated) => {
                let backlog = self.greeted(name, out);
                self.feed_answered(name, Ok(activated), now, out);
                return self.release(backlog, now, out);
            }
        };
        let Some(Topic::Pending(pending)) = self.topics.get_mut(name) else { return };
        let What::Held { channel, held } = &mut pending.what else { return };
        if held.stage.give_up() {
            held.last = Some(error.message.clone());
            // What the feed would tell, the refusal tells when the time is over.
            let _ = channel.feed.answered(Err(error), now.at);
        } else {
            // The hub did activate it; its answer was lost.
            let backlog = self.greeted(name, out);
            self.feed_answered(name, Err(error), now, out);
            self.release(backlog, now, out);
        }
    }

    /// A held join is a channel from now on, its reply out or the next thing to be. Returns what waited for that.
    pub(super) fn greeted(&mut self, name: &str, out: &mut Vec<Effect>) -> Backlog {
        let Some((name, topic)) = self.topics.remove_entry(name) else { return Backlog::default() };
        let Topic::Pending(pending) = topic else {
            self.topics.insert(name, topic);
            return Backlog::default();
        };
        let (topic, backlog) = match pending.what {
            What::Held { mut channel, held } => {
                self.counted_join(&channel);
                out.push(Effect::Greet { stage: held.stage, greeting: held.greeting });
                self.answered_join(&mut channel, out);
                channel.feed.retry_every(self.shared.config.retry);
                (Topic::Joined(channel), pending.backlog)
            }
            what => (Topic::pending(what, pending.backlog), Backlog::default()),
        };
        self.topics.insert(name, topic);
        backlog
    }

    /// Takes a held join back, unless its reply is out: then it is a channel, what waited is handled, and this is `None`.
    pub(super) fn take_held(
        &mut self,
        name: &str,
        now: Now,
        out: &mut Vec<Effect>,
    ) -> Option<(Box<Channel>, Held, Backlog)> {
        let Some(Topic::Pending(pending)) = self.topics.get(name) else { return None };
        let What::Held { held, .. } = &pending.what else { return None };
        if !held.stage.give_up() {
            let backlog = self.greeted(name, out);
            self.release(backlog, now, out);
            return None;
        }
        let Some(Topic::Pending(pending)) = self.topics.remove(name) else { return None };
        let What::Held { channel, held } = pending.what else { return None };
        out.push(Effect::Leave(channel.id));
        Some((channel, held, pending.backlog))
    }

    pub(super) fn refuse_held(&mut self, name: &str, error: JoinError, now: Now, out: &mut Vec<Effect>) {
        let Some((mut channel, held, backlog)) = self.take_held(name, now, out) else { return };
        channel.kept.end(false, now.at, now.at);
        let asker = Asker { join_ref: &channel.join_ref, reference: &held.reference, topic: &channel.topic };
        self.refuse_join(&asker, &error, held.after, backlog, now, out);
    }

    /// The client leaves or joins anew while a join is held: that one is never answered.
    pub(super) fn cut_short(&mut self, message: Message<'_>, now: Now, out: &mut Vec<Effect>) {
        let topic = self.topics.get(message.topic.as_ref());
        let leaves = message.event == "phx_leave";
        if leaves && topic.and_then(Topic::channel).is_some_and(|channel| channel.is_stale(&message)) {
            return;
        }
        let Some((mut channel, held, backlog)) = self.take_held(&message.topic, now, out) else {
            return self.dispatch(message, &Bytes::new(), now, out);
        };
        channel.kept.end(leaves, now.at, now.at);
        // There is no channel any more that they could be for.
        self.release(backlog, now, out);
        if leaves {
            out.extend(held.after.into_iter().map(Effect::Send));
            self.dispatch(message, &Bytes::new(), now, out);
        } else {
            self.join(&message, held.after, now, out);
        }
    }
}
