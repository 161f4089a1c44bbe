//! Private channels: what their members may do, asked when it is needed and kept true (`protocol.md` §3.4, §7.5).
//!
//! Rights that the hub follows end when it says so; all others are asked for again before they are too old. A channel whose
//! rights can't be asked for is kept for a bounded time and then ended: what can't be decided is not allowed.
//!
//! Rights that the hub followed, and says to be old, are treated as if Postgres had given them at that moment: they are asked
//! for within `rights_recheck`, each at a time of its own so that all together are no storm, and the channel ends
//! `rights_patience` later if there is no answer. So one whose right was taken while the stream stood still hears of the
//! channel for `rights_recheck + rights_patience` at the most, and the questions of that time (`rights_timeout`). Both are the
//! bounds of those whom Postgres is always asked about: who can be asked is not thrown out because others are asked, too.
//!
//! Rejected: asking for the right to write at the join. Most members never write, and a policy may cost a query.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use super::join::Asker;
use super::topic::{Backlog, Channel, Topic, Waits, What, sub_topic};
use super::{Effect, Now, Session};
use crate::authority::{Asking, AuthorityError, Basis, Reads, Writes};
use crate::channel::{JoinError, UNREACHABLE, no_permission};
use crate::claims::Principal;
use crate::gateway::phoenix::codec::Message;
use crate::hub::ChannelId;
use crate::policy::{Right, Rights, Way};

/// Rights are asked for again when this part of their time has passed.
const ASK_AGAIN_AT: f64 = 0.8;
/// After a question that could not be answered.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A member of a private channel.
pub(super) struct Membership {
    pub(super) rights: Arc<Rights>,
    /// The right to read presence matters to it.
    presence: bool,
    /// What it could read, as far as its client knows: broadcasts, presence.
    could: (bool, bool),
    /// When the rights to read are asked for again.
    ask_at: Option<Instant>,
    /// When the channel ends, if they could not be asked for until then.
    ends_at: Option<Instant>,
    /// That question, while it is under way.
    asked: Option<u64>,
    /// How long the rights to write hold.
    writes_until: Option<Instant>,
    /// Which of the above are of rights that the hub followed and has said to be old: reading, writing.
    old: (bool, bool),
    /// Presence diffs reach it, as of the last look; `None` before that, or if presence does not matter to it.
    sees: Option<bool>,
    /// [`Rights::lapses`] then.
    lapses: u32,
    /// For whom the hub watches the rights.
    watched: Option<Arc<Principal>>,
}

/// For how long rights hold that nobody follows.
#[derive(Clone, Copy)]
struct Bounds {
    recheck: Duration,
    patience: Duration,
}

/// What has become of the rights to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// As good as before, or better.
    Kept,
    /// One of them is not decided.
    Unknown,
    /// One has ended, another is left.
    Lost,
    /// None is left.
    Nothing,
}

impl Membership {
    pub(super) fn new(rights: Arc<Rights>, presence: bool) -> Membership {
        let could = (false, false);
        Membership {
            rights,
            presence,
            could,
            ask_at: None,
            ends_at: None,
            asked: None,
            writes_until: None,
            old: (false, false),
            sees: None,
            lapses: 0,
            watched: None,
        }
    }

    /// What was found out about reading. Unless it is `newer` than what the hub says, it gives no right that the hub has taken.
    fn decide(&mut self, reads: &Reads, newer: bool, bounds: Bounds, now: Instant) {
        let set = |right, allowed: bool| {
            if newer || !allowed || self.rights.get(right).is_none() {
                self.rights.set(right, Some(allowed));
            }
        };
        set(Right::ReadBroadcast, reads.broadcast);
        // What was asked for and not answered is not allowed.
        if let Some(presence) = reads.presence.or(self.presence.then_some(false)) {
            set(Right::ReadPresence, presence);
        }
        self.old.0 = false;
        (self.ask_at, self.ends_at) = match reads.basis {
            Basis::Followed => (None, None),
            Basis::Until(until) => {
                let until = until.into_std();
                let left = until.saturating_duration_since(now).mul_f64(ASK_AGAIN_AT);
                (Some(now + left), Some(until + bounds.patience))
            }
        };
        self.note_age(bounds, now);
    }

    fn write(&mut self, writes: &Writes, bounds: Bounds, now: Instant) {
        self.rights.set(Right::WriteBroadcast, Some(writes.broadcast));
        self.rights.set(Right::WritePresence, Some(writes.presence));
        self.old.1 = false;
        self.writes_until = match writes.basis {
            Basis::Followed => None,
            // Never so short that the push which has asked would ask again.
            Basis::Until(until) => Some(until.into_std().max(now + ASK_AGAIN_AFTER)),
        };
        self.note_age(bounds, now);
    }

    /// What the hub followed holds for a bounded time while it is old, and without one again when it is not.
    fn note_age(&mut self, bounds: Bounds, now: Instant) {
        let part = || bounds.recheck.mul_f64(ASK_AGAIN_AT * rand::random::<f64>());
        let is_followed = self.ask_at.is_none() && self.ends_at.is_none() && self.asked.is_none();
        match (self.rights.is_old(Way::Read), self.old.0) {
            (true, false) if is_followed => {
                (self.ask_at, self.ends_at) = (Some(now + part()), Some(now + bounds.recheck + bounds.patience));
                self.old.0 = true;
            }
            (false, true) => (self.ask_at, self.ends_at, self.old.0) = (None, None, false),
            _ => {}
        }
        match (self.rights.is_old(Way::Write), self.old.1) {
            // Never so short that the push which has asked would ask again.
            (true, false) if self.writes_until.is_none() => {
                (self.writes_until, self.old.1) = (Some(now + part().max(ASK_AGAIN_AFTER)), true);
            }
            (false, true) => (self.writes_until, self.old.1) = (None, false),
            _ => {}
        }
    }

    /// A new token: what may be written is to be asked for anew, and an older answer does not count.
    pub(super) fn begin_anew(&mut self) {
        self.asked = None;
        self.ask_at = None;
        self.rights.set(Right::WriteBroadcast, None);
        self.rights.set(Right::WritePresence, None);
    }

    /// Whether presence is to be asked for with the right to read.
    pub(super) fn has_presence(&self) -> bool {
        self.presence
    }

    /// Whether it may write, if that is known.
    pub(super) fn may_write(&self, right: Right, now: Instant) -> Option<bool> {
        self.rights.get(right).filter(|_| self.writes_until.is_none_or(|until| now < until))
    }

    /// Presence matters from now on. Whether the right to read it is known.
    pub(super) fn wants_presence(&mut self) -> bool {
        self.presence = true;
        let known = self.rights.get(Right::ReadPresence);
        self.could.1 |= known == Some(true);
        known.is_some()
    }

    /// Its client is told the presence state now, if it may see it.
    pub(super) fn told_presence(&mut self) {
        self.lapses = self.rights.lapses();
        self.sees = self.presence.then(|| self.rights.allows(Right::ReadPresence));
    }

    /// Whether presence can be read that could not be at the last look, or for however short a time since: diffs were left
    /// out, and only the state mends that.
    fn sees_again(&mut self) -> bool {
        // Before the right: if it ends in between, the next look tells.
        let lapses = self.rights.lapses();
        let known = self.rights.get(Right::ReadPresence);
        // Whoever tracks without having asked for presence is told no state when the right comes to be known (§8.3).
        if !self.presence || (self.sees.is_none() && known.is_none()) {
            return false;
        }
        let sees = known == Some(true);
        let lapsed = std::mem::replace(&mut self.lapses, lapses) != lapses;
        let saw = self.sees.replace(sees);
        sees && (saw == Some(false) || (saw == Some(true) && lapsed))
    }

    /// When [`Session::ask_again`] has something to do.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        self.ask_at.filter(|_| self.asked.is_none())
    }

    fn standing(&mut self) -> Standing {
        let broadcast = self.rights.get(Right::ReadBroadcast);
        let presence = if self.presence { self.rights.get(Right::ReadPresence) } else { Some(false) };
        let (Some(broadcast), Some(presence)) = (broadcast, presence) else { return Standing::Unknown };
        let lost = (self.could.0 && !broadcast) || (self.could.1 && !presence);
        match (broadcast || presence, lost) {
            (false, _) => Standing::Nothing,
            (true, true) => Standing::Lost,
            (true, false) => {
                self.could = (broadcast, presence);
                Standing::Kept
            }
        }
    }
}

impl From<AuthorityError> for JoinError {
    fn from(error: AuthorityError) -> JoinError {
        match error {
            AuthorityError::Timeout(text) => JoinError::Canceled(text),
            AuthorityError::MissingPartition => JoinError::MissingPartition,
            AuthorityError::PoolExhausted => JoinError::PoolExhausted,
            AuthorityError::Unavailable => JoinError::Unreachable,
            // The caller knows the topic.
            AuthorityError::Policy | AuthorityError::NotInstalled => JoinError::Unauthorized { topic: String::new() },
        }
    }
}

/// Why a join of this topic is refused.
pub(super) fn refusal(error: AuthorityError, topic: &str) -> JoinError {
    match JoinError::from(error) {
        JoinError::Unauthorized { .. } => JoinError::Unauthorized { topic: sub_topic(topic).into() },
        other => other,
    }
}

/// The text of a channel's end, and its code, when its rights could not be asked for.
fn last_words(error: &AuthorityError, topic: &str) -> (String, &'static str) {
    match error {
        AuthorityError::Timeout(_) => ("Query was cancelled, please try again".into(), "QueryCanceled"),
        AuthorityError::MissingPartition => {
            ("Realtime was unable to find the expected messages partition".into(), "MissingPartition")
        }
        AuthorityError::PoolExhausted => ("Please increase your connection pool size".into(), "IncreaseConnectionPool"),
        AuthorityError::Unavailable => (UNREACHABLE.into(), "UnableToConnectToProject"),
        AuthorityError::Policy | AuthorityError::NotInstalled => (no_permission(sub_topic(topic)), "Unauthorized"),
    }
}

impl Session {
    pub(super) fn asking(&self, topic: &str, principal: &Arc<Principal>) -> Asking {
        Asking { topic: sub_topic(topic).into(), principal: principal.clone(), headers: self.headers.clone() }
    }

    fn bounds(&self) -> Bounds {
        let config = &self.shared.config;
        Bounds { recheck: config.rights_recheck, patience: config.rights_patience }
    }

    /// A question's number.
    pub(super) fn number(&mut self) -> u64 {
        self.questions += 1;
        self.questions
    }

    /// Rights of a private channel that is being joined; the answer goes on with the join.
    pub(super) fn member(&self, presence: bool, reads: &Reads, now: Now) -> Box<Membership> {
        let mut member = Membership::new(Arc::new(Rights::new(self.changed.clone())), presence);
        member.decide(reads, true, self.bounds(), now.at);
        let _ = member.standing();
        Box::new(member)
    }

    /// Has the hub keep the rights true as far as it can. Behind what was decided: it judges once more when it begins, so that
    /// no change in between is missed. Once for a principal: a watch that begins anew does not know that it disagreed with
    /// Postgres, and would have it asked again and again.
    pub(super) fn watch(&self, channel: &mut Channel) -> Option<Effect> {
        let Channel { id, topic, principal, member, .. } = channel;
        self.watch_member(*id, topic, principal, member.as_mut()?)
    }

    /// The same for who becomes a channel. What has happened to rights that were watched before, with nobody to look at them,
    /// is looked at next.
    pub(super) fn watch_joined(&self, channel: &mut Channel) -> Option<Effect> {
        let watch = self.watch(channel);
        if watch.is_none() && channel.member.is_some() {
            self.changed.notify_one();
        }
        watch
    }

    /// The same for who is not a channel yet.
    pub(super) fn watch_member(
        &self,
        id: ChannelId,
        topic: &str,
        principal: &Arc<Principal>,
        member: &mut Membership,
    ) -> Option<Effect> {
        if member.watched.as_ref().is_some_and(|watched| Arc::ptr_eq(watched, principal)) {
            return None;
        }
        member.watched = Some(principal.clone());
        Some(Effect::Watch { id, asking: self.asking(topic, principal), rights: member.rights.clone() })
    }

    /// A question about reading was answered.
    pub(in crate::gateway::phoenix) fn read_answered(
        &mut self,
        number: u64,
        answer: Result<Reads, AuthorityError>,
        now: Now,
    ) -> Vec<Effect> {
        let mut out = Vec::new();
        match self.take_waiting(number) {
            Some((_, What::Join { join, after, mut found, .. }, backlog)) => {
                self.held_bytes -= join.payload.len();
                match answer {
                    Ok(reads) if reads.broadcast || reads.presence == Some(true) => {
                        found.member = Some(self.member(found.presence, &reads, now));
                        self.decide(&join, after, backlog, *found, now, &mut out);
                    }
                    denied => {
                        out.extend(found.id.map(Effect::Leave));
                        let error = denied.err().unwrap_or(AuthorityError::Policy);
                        let error = refusal(error, &join.topic);
                        self.refuse_join(&Asker::of(&join), &error, after, backlog, now, &mut out);
                    }
                }
            }
            Some((name, What::Push { channel, push, .. }, backlog)) => {
                self.topics.insert(name.clone(), Topic::Joined(channel));
                match push {
                    None => self.new_token_may(&name, answer, now, &mut out),
                    Some(push) => {
                        self.held_bytes -= push.size();
                        match answer {
                            Ok(reads) => {
                                self.read_known(&name, &reads, false, now, &mut out);
                                self.dispatch(push, &bytes::Bytes::new(), now, &mut out);
                            }
                            Err(error) => self.push_undecided(&push, &error, &mut out),
                        }
                    }
                }
                self.release(backlog, now, &mut out);
            }
            Some((name, what, backlog)) => drop(self.topics.insert(name, Topic::pending(what, backlog))),
            None => self.asked_again(number, answer, now, &mut out),
        }
        out
    }

    /// A question about writing was answered.
    pub(in crate::gateway::phoenix) fn write_answered(
        &mut self,
        number: u64,
        answer: Result<Writes, AuthorityError>,
        now: Now,
    ) -> Vec<Effect> {
        let mut out = Vec::new();
        let Some((name, what, backlog)) = self.take_waiting(number) else { return out };
        let What::Push { mut channel, push, .. } = what else {
            self.topics.insert(name, Topic::pending(what, backlog));
            return out;
        };
        let bounds = self.bounds();
        if let (Ok(writes), Some(member)) = (&answer, &mut channel.member) {
            member.write(writes, bounds, now.at);
        }
        self.topics.insert(name.clone(), Topic::Joined(channel));
        if let Some(push) = push {
            self.held_bytes -= push.size();
            match answer {
                Ok(_) => self.dispatch(push, &bytes::Bytes::new(), now, &mut out),
                Err(error) => self.push_undecided(&push, &error, &mut out),
            }
        }
        self.look_at_rights(&name, now, &mut out);
        self.release(backlog, now, &mut out);
        out
    }

    pub(super) fn take_waiting(&mut self, number: u64) -> Option<(Arc<str>, What, Backlog)> {
        let of = |topic: &Topic| topic.waits() == Some(Waits::Answer(number));
        let name = self.topics.iter().find(|(_, topic)| of(topic)).map(|(name, _)| name.clone())?;
        let Some(Topic::Pending(pending)) = self.topics.remove(&name) else { return None };
        Some((name, pending.what, pending.backlog))
    }

    /// The push waits until it is known whether its sender may, `reading` or writing.
    pub(super) fn ask_for_push(&mut self, push: Message<'_>, reading: bool, out: &mut Vec<Effect>) {
        let size = push.size();
        // A single one that is larger than the bound must still be able to wait.
        if self.held_bytes > 0 && !self.may_hold(size) {
            return self.push_undecided(&push, &AuthorityError::PoolExhausted, out);
        }
        let Some((name, Topic::Joined(channel))) = self.topics.remove_entry(push.topic.as_ref()) else { return };
        let (number, asking) = (self.number(), self.asking(&name, &channel.principal));
        out.push(match reading {
            true => Effect::Read { number, asking, presence: true },
            false => Effect::Write { number, asking },
        });
        self.held_bytes += size;
        let (push, waits) = (Some(push.into_owned()), Waits::Answer(number));
        self.topics.insert(name, Topic::pending(What::Push { channel, push, waits }, Backlog::default()));
    }

    /// It could not be found out whether a push is allowed: a broadcast vanishes, presence is told.
    fn push_undecided(&mut self, push: &Message<'_>, error: &AuthorityError, out: &mut Vec<Effect>) {
        let (connection, topic, error) = (self.visitor.connection, &*push.topic, error.as_str());
        warn!(connection, topic, error, "it could not be decided whether a client may write to a private channel");
        if push.event == "presence" {
            self.presence_refused(push, out);
        }
    }

    /// The rights to read under a new token.
    fn new_token_may(&mut self, name: &str, answer: Result<Reads, AuthorityError>, now: Now, out: &mut Vec<Effect>) {
        match answer {
            Ok(reads) => self.read_known(name, &reads, true, now, out),
            Err(error) => {
                let (text, code) = last_words(&error, name);
                self.end_channel(name, &text, code, now, out);
            }
        }
    }

    fn read_known(&mut self, name: &str, reads: &Reads, newer: bool, now: Now, out: &mut Vec<Effect>) {
        let bounds = self.bounds();
        let Some((name, mut topic)) = self.topics.remove_entry(name) else { return };
        if let Some(channel) = topic.channel_mut() {
            if let Some(member) = &mut channel.member {
                let newer = newer || matches!(reads.basis, Basis::Until(_));
                member.decide(reads, newer, bounds, now.at);
            }
            out.extend(self.watch(channel));
        }
        self.topics.insert(name.clone(), topic);
        self.look_at_rights(&name, now, out);
    }

    /// The answer to a question that nothing waits for.
    fn asked_again(&mut self, number: u64, answer: Result<Reads, AuthorityError>, now: Now, out: &mut Vec<Effect>) {
        let of = |topic: &Topic| topic.channel().and_then(|c| c.member.as_ref()?.asked) == Some(number);
        let Some(name) = self.topics.iter().find(|(_, topic)| of(topic)).map(|(name, _)| name.clone()) else { return };
        let Some(channel) = self.topics.get_mut(&name).and_then(Topic::channel_mut) else { return };
        let Some(member) = &mut channel.member else { return };
        member.asked = None;
        match answer {
            Ok(reads) => self.read_known(&name, &reads, false, now, out),
            Err(error @ (AuthorityError::Policy | AuthorityError::NotInstalled)) => {
                let (text, code) = last_words(&error, &name);
                self.end_channel(&name, &text, code, now, out);
            }
            Err(error) => {
                let ends_at = *member.ends_at.get_or_insert(now.at + self.shared.config.rights_patience);
                if ends_at <= now.at {
                    let (text, code) = last_words(&error, &name);
                    return self.end_channel(&name, &text, code, now, out);
                }
                member.ask_at = Some((now.at + ASK_AGAIN_AFTER).min(ends_at));
            }
        }
    }

    /// Asks again whose time has come.
    pub(super) fn ask_again(&mut self, now: Now, out: &mut Vec<Effect>) {
        let due = |topic: &Topic| {
            let at = topic.channel().and_then(|channel| channel.member.as_ref()?.wakes_at());
            at.is_some_and(|at| at <= now.at)
        };
        let names: Vec<Arc<str>> =
            self.topics.iter().filter(|(_, topic)| due(topic)).map(|(name, _)| name.clone()).collect();
        names.iter().for_each(|name| self.ask_reads(name, out));
    }

    fn ask_reads(&mut self, name: &str, out: &mut Vec<Effect>) {
        let number = self.number();
        let Some(channel) = self.topics.get_mut(name).and_then(Topic::channel_mut) else { return };
        let Some(member) = &mut channel.member else { return };
        member.asked = Some(number);
        let (presence, principal) = (member.presence, channel.principal.clone());
        out.push(Effect::Read { number, asking: self.asking(name, &principal), presence });
    }

    /// Some right of some channel has changed.
    pub(in crate::gateway::phoenix) fn rights_changed(&mut self, now: Now) -> Vec<Effect> {
        let mut out = Vec::new();
        let private = |topic: &Topic| topic.channel().is_some_and(|channel| channel.member.is_some());
        let names: Vec<Arc<str>> =
            self.topics.iter().filter(|(_, topic)| private(topic)).map(|(name, _)| name.clone()).collect();
        names.iter().for_each(|name| self.look_at_rights(name, now, &mut out));
        out
    }

    /// Ends the channel if it may read less than before; asks if that is not known any more.
    fn look_at_rights(&mut self, name: &str, now: Now, out: &mut Vec<Effect>) {
        let bounds = self.bounds();
        let Some(topic) = self.topics.get_mut(name) else { return };
        let answer_comes = matches!(topic.waits(), Some(Waits::Answer(_)));
        // Whose join is held is told the state when it is greeted.
        let greeted = topic.held().is_none();
        let Some(channel) = topic.channel_mut() else { return };
        let Some(member) = &mut channel.member else { return };
        member.note_age(bounds, now.at);
        let sees_again = greeted && member.sees_again();
        let standing = member.standing();
        if sees_again && matches!(standing, Standing::Kept | Standing::Unknown) {
            out.push(Effect::PresenceState(channel.id));
        }
        match standing {
            Standing::Kept => {}
            Standing::Unknown if member.asked.is_some() || answer_comes => {}
            Standing::Unknown => self.ask_reads(name, out),
            Standing::Lost => {
                let text =
                    format!("You no longer have permission to read from this Channel topic: {}", sub_topic(name));
                self.end_channel(name, &text, "Unauthorized", now, out);
            }
            Standing::Nothing => {
                self.end_channel(name, &no_permission(sub_topic(name)), "Unauthorized", now, out);
            }
        }
    }
}
