//! What a session wants, done by its connection: frames, questions to the hub and to others, seats in rooms.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{AbortHandle, Abortable, FutureExt as _};
use tokio::time::timeout;
use tracing::warn;

use super::{Connection, Done, Joined, Moves};
use crate::channel::{Answer, GoOn};
use crate::gateway::phoenix::questions;
use crate::gateway::phoenix::rooms::{Sending, Sent};
use crate::gateway::phoenix::session::{Effect, begin};
use crate::gateway::storm::{Asks, bounded};
use crate::hub::{ChannelId, Entry, Place, Port, Stage};
use crate::resume::Cursor;

/// What decides about a frame while the outbox is held.
enum If {
    Always,
    /// A held reply, which the shard may have written.
    Greets(Arc<Stage>),
    /// It tells a place, and the shard may have written a later one.
    NotPast(Arc<Port>, Cursor),
}

impl If {
    fn holds(&self) -> bool {
        match self {
            If::Always => true,
            If::Greets(stage) => stage.greet(),
            If::NotPast(port, at) => !port.place.is_past(*at),
        }
    }
}

impl Connection {
    pub(super) fn carry_out_now(&mut self, effects: Vec<Effect>) {
        let mut frames = Vec::new();
        let mut sending = Vec::new();
        let (mut answered, mut closing) = (false, None);
        let patience = self.shared.config.room_patience;
        for effect in effects {
            // What a room answers comes before what follows it, such as the goodbye of a client that has left meanwhile.
            let to_a_room = matches!(effect, Effect::Broadcast { .. } | Effect::Track { .. });
            if answered && !to_a_room {
                self.send_all(&mut frames, &mut sending);
            }
            answered = to_a_room;
            match effect {
                Effect::Send(frame) => frames.push((frame, If::Always)),
                Effect::Reached { id, at, frame } => {
                    let port = self.ports.get(&id).map(|joined| joined.port.clone());
                    frames.push((frame, port.map_or(If::Always, |port| If::NotPast(port, at))));
                }
                Effect::Greet { stage, greeting } => frames.push((greeting, If::Greets(stage))),
                Effect::Close(reason) => closing = Some(reason),
                Effect::Subscribe {
                    id,
                    topic,
                    join_ref,
                    mut entries,
                    principal,
                    again,
                    go_on,
                    stage,
                    greeting,
                    tracked,
                } => {
                    let is_quiet = entries.iter().all(|entry| entry.messages.is_some());
                    let port = Arc::new(Port {
                        id,
                        outbox: self.outbox.clone(),
                        shard: self.shard,
                        topic,
                        version: self.version,
                        join_ref: join_ref.as_json().into(),
                        stage,
                        place: if is_quiet { Place::default() } else { Place::announcing() },
                    });
                    if tracked.is_some() {
                        self.receipts.track();
                        self.outbox.watch();
                    }
                    let (expires_at, moves) = (principal.expires_at, Moves::of(&entries));
                    let joined = Joined { port: port.clone(), tracked, moves, expires_at, delivered: 0, fresh: 0 };
                    if let Some(before) = self.ports.insert(id, joined) {
                        let reached = before.port.retire();
                        let goes_on = |entry: &&mut Entry| match go_on {
                            GoOn::All => true,
                            GoOn::Messages => entry.messages.is_some(),
                            GoOn::Nowhere => false,
                        };
                        if let Some(reached) = reached {
                            let entries = entries.iter_mut().filter(goes_on);
                            entries.for_each(|entry| entry.start = begin::later(entry.start, reached));
                        }
                        if go_on == GoOn::All {
                            port.place.take_over(&before.port.place);
                        }
                        if go_on == GoOn::All && before.port.place.had_snapshot() {
                            entries.iter_mut().for_each(|entry| entry.snapshot = None);
                            port.place.end_snapshot();
                        }
                    }
                    let (hub, asks) = (self.shared.hub.clone(), Asks::of(&entries, self.shared.log.here()));
                    let asking = async move {
                        if again {
                            hub.leave(id).await;
                        }
                        bounded(hub.subscribe_greeting(port, entries, principal, greeting)).await
                    };
                    self.ask_in_turn(id, asks, asking);
                }
                Effect::Reclaim { id, principal, tracked } => {
                    if let Some(joined) = self.ports.get_mut(&id) {
                        (joined.expires_at, joined.tracked) = (principal.expires_at, tracked);
                    }
                    let hub = self.shared.hub.clone();
                    let asking = async move {
                        let answer = bounded(hub.reclaim(id, principal)).await;
                        if answer.is_err() {
                            // Whatever the hub may still hold is held under the principal before.
                            hub.leave(id).await;
                        }
                        answer
                    };
                    self.ask_in_turn(id, Asks::Now, asking);
                }
                Effect::Enter { id, topic, join_ref, stage, seat } => {
                    let port = Arc::new(Port {
                        id,
                        outbox: self.outbox.clone(),
                        shard: self.shard,
                        topic,
                        version: self.version,
                        join_ref: join_ref.as_json().into(),
                        stage: stage.clone(),
                        place: Place::default(),
                    });
                    self.seats.enter(id, questions::enter(&self.shared, port, seat), stage);
                }
                Effect::PresenceState(id) => sending.extend(self.seats.state(id, patience)),
                Effect::Broadcast { id, message, echo, ack } => {
                    sending.extend(self.seats.broadcast(id, message, echo, ack, patience));
                }
                Effect::Track { id, payload, reference, ok } => {
                    sending.extend(self.seats.track(id, payload, (reference, ok), patience));
                }
                Effect::Watch { id, asking, rights } => {
                    // The one before ends first.
                    self.watches.remove(&id);
                    self.watches.insert(id, questions::watch(&self.shared, asking, rights));
                }
                Effect::Read { number, asking, presence } => {
                    let question = questions::read(self.shared.clone(), number, asking, presence);
                    self.questions.push(question.boxed());
                }
                Effect::Write { number, asking } => {
                    self.questions.push(questions::write(self.shared.clone(), number, asking).boxed());
                }
                Effect::Stored { number, topic, since, limit } => {
                    let question = questions::stored(self.shared.clone(), number, topic, since, limit);
                    self.questions.push(question.boxed());
                }
                Effect::AwaitStream(id) => self.questions.push(questions::streams(self.shared.clone(), id).boxed()),
                Effect::Leave(id) => {
                    if let Some(joined) = self.ports.remove(&id) {
                        joined.port.stage.close();
                    }
                    self.seats.leave(id);
                    self.watches.remove(&id);
                    self.asked.remove(&id).inspect(AbortHandle::abort);
                    let hub = self.shared.hub.clone();
                    let leaving = async move {
                        hub.leave(id).await;
                        Done::Left
                    };
                    self.operations.push(Abortable::new(leaving.boxed(), AbortHandle::new_pair().1));
                }
                Effect::Learn => {
                    let shared = self.shared.clone();
                    let learning = async move {
                        // In time or not: what is known by then decides.
                        let _ = timeout(shared.config.learn_timeout, shared.verifier.learn()).await;
                        Done::Learned
                    };
                    let (handle, registration) = AbortHandle::new_pair();
                    self.learning = Some(handle);
                    self.operations.push(Abortable::new(learning.boxed(), registration));
                }
            }
        }
        // Before anything asked above can be answered: the hub is only polled by the loop.
        self.send_all(&mut frames, &mut sending);
        if let Some(reason) = closing {
            self.close(reason);
        }
    }

    /// Frames, and what rooms are to take behind them.
    fn send_all(&mut self, frames: &mut Vec<(Bytes, If)>, sending: &mut Vec<Sending>) {
        // The topics door has no frame for some of them.
        frames.retain(|(frame, _)| !frame.is_empty());
        if !frames.is_empty() {
            // A port that ended above was closed before this: what was permitted to it can't follow these frames.
            self.outbox.send_own(frames.iter().filter(|(_, condition)| condition.holds()).map(|(frame, _)| frame));
        }
        // Behind the join replies among the frames.
        for sending in sending.drain(..) {
            if let Some(sent) = self.seats.send(sending) {
                self.sent(sent);
            }
        }
        frames.clear();
    }

    /// A room has taken something, or not.
    pub(super) fn sent(&mut self, sent: Sent) {
        let effects = match sent {
            Sent::Broadcast { id, ack, taken: Ok(()) } => return self.answer(id, ack),
            Sent::Tracked { id, ok, taken: Ok(()), .. } => return self.answer(id, Some(ok)),
            Sent::Broadcast { id, taken: Err(error), .. } => self.session.rejected(id, error, self.now()),
            Sent::Tracked { id, reference, taken: Err(error), .. } => {
                self.session.untaken(id, &reference, error, self.now())
            }
            Sent::State { taken: true, .. } => return,
            Sent::State { id, taken: false } => self.session.stateless(id, self.now()),
            Sent::Late => return warn!(connection = self.number, "a room took nothing in time: a broadcast is lost"),
        };
        self.carry_out(effects);
    }

    /// Unless its channel has ended.
    fn answer(&self, id: ChannelId, reply: Option<Bytes>) {
        if let Some(reply) = reply.filter(|reply| !reply.is_empty() && self.seats.contains(id)) {
            self.outbox.send_own([&reply]);
        }
    }

    fn ask_in_turn(&mut self, id: ChannelId, asks: Asks, asking: impl Future<Output = Answer> + Send + 'static) {
        let shared = self.shared.clone();
        if self.operations.is_empty() {
            self.turns = None;
        }
        let own = self.turns.get_or_insert_with(|| shared.turns.own());
        let asking = shared.turns.run(own, asks, asking);
        self.ask(id, asking);
    }

    fn ask(&mut self, id: ChannelId, asking: impl Future<Output = Answer> + Send + 'static) {
        let (handle, registration) = AbortHandle::new_pair();
        self.asked.insert(id, handle);
        let asking = asking.map(move |answer| Done::Answered(id, answer));
        self.operations.push(Abortable::new(asking.boxed(), registration));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use super::super::Lent;
    use super::*;
    use crate::change::{Lsn, Position};
    use crate::hub::{Action, Messages, Name, Outbox, Start, Version};
    use crate::policy::Rights;

    fn entry(messages: Option<Messages>) -> Entry {
        Entry {
            id: 0,
            action: Action::All,
            schema: Name::Any,
            table: Name::Any,
            filter: None,
            select: None,
            start: Start::Now,
            cursor_as: None,
            snapshot: None,
            messages,
        }
    }

    #[test]
    fn a_place_is_not_told_behind_a_later_one() {
        let at = |lsn| Cursor { epoch: 1, position: Position { lsn: Lsn(lsn), ordinal: 0 } };
        let outbox = Arc::new(Outbox::new(Box::new(Lent(Weak::new())), 1024, Bytes::new()));
        let port = Arc::new(Port {
            id: ChannelId(1),
            outbox,
            shard: 0,
            topic: "realtime:t".into(),
            version: Version::V2,
            join_ref: "null".into(),
            stage: Arc::new(Stage::greeted()),
            place: Place::default(),
        });
        let cursor = If::NotPast(port.clone(), at(5));
        assert!(cursor.holds());
        port.place.tell(at(6));
        assert!(!cursor.holds());
    }

    #[test]
    fn the_frontiers_of_entries_that_are_not_in_force_stay() {
        let member = || Some(Arc::new(Rights::new(Arc::default())));
        let messages = |member| entry(Some(Messages { topic: "t".into(), member, replayed: None }));
        assert_eq!(Moves::of(&[entry(None), messages(member())]), Moves::All);
        assert_eq!(Moves::of(&[messages(member())]), Moves::Messages);
        assert_eq!(Moves::of(&[messages(None)]), Moves::Nothing, "of a public channel they have none");
    }
}
