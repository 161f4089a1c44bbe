//! Channels of a device begin where the device was, and what they receive is kept under its name.
//!
//! Invariants:
//! * What is kept belongs to a user, and only his receipts move it: when a channel's token becomes another user's, the channel
//!   begins anew, where *that* user was on this device. From that moment nothing is written for the one before.
//! * A token of the same user that names another device takes the place along: the next connection comes under that name.
//! * An entry that asks for a snapshot gets one each time, and is not resumed: its rows come before everything that follows.

use std::sync::Arc;
use std::time::Instant;

use super::topic::Channel;
use super::{Effect, Now, Session, stored};
use crate::channel::{GoOn, Join, Privacy, Replay, Request, Wanted};
use crate::claims::Principal;
use crate::gateway::device;
use crate::hub::{Entry, Messages, Start};
use crate::resume::{self, Key, Tracked};

/// What of an entry tells it from others, and whether the client has a place of its own. Kept for a change of user.
pub(super) struct Wish {
    canonical: Box<str>,
    since: Option<Box<str>>,
}

/// A channel's part of what is kept of its device.
#[derive(Default)]
pub(super) struct Kept {
    device: Option<Arc<str>>,
    wishes: Vec<Wish>,
    tracked: Option<Arc<Tracked>>,
    /// The user has changed; when asked the next time, the channel begins anew.
    anew: bool,
}

impl Kept {
    /// For receipts.
    pub(super) fn tracked(&self) -> Option<Arc<Tracked>> {
        self.tracked.clone()
    }

    /// The channel is over, or has another user.
    pub(super) fn end(&mut self, left: bool, seen: Instant, now: Instant) {
        if let Some(tracked) = self.tracked.take() {
            tracked.end(left, seen, now);
        }
    }

    /// Whether the next request is to begin the channel anew. True once.
    pub(super) fn takes_anew(&mut self) -> bool {
        std::mem::take(&mut self.anew)
    }
}

impl Session {
    /// What the connection or its token names.
    fn device_of(&self, principal: &Principal) -> Option<Arc<str>> {
        let claim = self.shared.config.device.claim.as_deref();
        self.visitor.device.clone().or_else(|| device::claimed(claim, principal))
    }

    /// Has the entries begin where the device was.
    pub(super) fn resume(
        &self,
        entries: &mut [Entry],
        join: &Join,
        changes: &[Wanted],
        topic: &str,
        principal: &Principal,
        now: Now,
    ) -> Kept {
        let Some(device) = self.device_of(principal) else { return Kept::default() };
        let wish = |wanted: &Wanted| {
            let since = wanted.since().ok().flatten().map(|since| format!("{since:?}").into());
            Wish { canonical: wanted.canonical_without_place().into(), since }
        };
        let mut wishes: Vec<Wish> = changes.iter().map(wish).collect();
        // Of a public channel messages are as little kept as those between clients.
        if join.privacy == Privacy::Private {
            let since = match &join.replay {
                Some(Replay::After(cursor)) => Some(cursor.as_str().into()),
                _ => None,
            };
            wishes.push(Wish { canonical: stored::MESSAGES.into(), since });
        }
        if wishes.is_empty() {
            return Kept::default();
        }
        let tracked = self.track(entries, &wishes, &device, topic, principal, now);
        Kept { device: Some(device), wishes, tracked: Some(tracked), anew: false }
    }

    /// `entries`: as many as there are wishes, or one more.
    fn track(
        &self,
        entries: &mut [Entry],
        wishes: &[Wish],
        device: &str,
        topic: &str,
        principal: &Principal,
        now: Now,
    ) -> Arc<Tracked> {
        let place = |entry: &Entry| match entry.start {
            Start::After(cursor) => Some(cursor),
            Start::Now | Start::Time(_) | Start::Lost => None,
        };
        let wanted: Vec<resume::Wanted<'_>> = wishes
            .iter()
            .zip(entries.iter())
            .map(|(wish, entry)| resume::Wanted {
                key: Key::new(principal, device, topic, &wish.canonical),
                since: wish.since.as_deref(),
                otherwise: place(entry),
            })
            .collect();
        let epoch = self.shared.log.epoch();
        let (starts, tracked) = self.shared.frontiers.join(&wanted, epoch, &self.visitor.probe, now.at);
        for (entry, start) in entries.iter_mut().zip(starts) {
            if let Some(start) = start.filter(|_| entry.snapshot.is_none()) {
                entry.start = Start::After(start);
                if let Some(Messages { replayed: Some(replayed), .. }) = &mut entry.messages {
                    *replayed = Arc::new(replayed.owed_more());
                }
                self.shared.metrics.frontier_resumes.inc();
            }
        }
        tracked
    }

    /// The channel's token is now this principal's. If that is another user, what follows is kept for him, and begins where he
    /// was on this device; if it is the same under another name, the place goes along.
    pub(super) fn change_user(&self, channel: &mut Channel, before: &Principal, now: Now) {
        let principal = channel.principal.clone();
        let Some(known) = channel.kept.device.clone() else { return };
        let device = self.device_of(&principal).unwrap_or_else(|| known.clone());
        channel.kept.device = Some(device.clone());
        if (&before.role, &before.subject) == (&principal.role, &principal.subject) {
            if let Some(before) = channel.kept.tracked.take_if(|_| device != known) {
                channel.kept.tracked = Some(before.renamed(&principal, &device, &self.visitor.probe, now.at));
                before.end(false, now.at, now.at);
            }
            return;
        }
        channel.kept.end(false, now.at, now.at);
        channel.hush();
        let start = self.shared.log.here().map_or(Start::Now, Start::After);
        let mut entries = channel.feed.all().to_vec();
        for entry in &mut entries {
            entry.start = start;
            // That was replayed to another.
            entry.messages.iter_mut().for_each(|messages| messages.replayed = None);
        }
        let tracked = self.track(&mut entries, &channel.kept.wishes, &device, &channel.topic, &principal, now);
        channel.feed.begin_at(entries);
        channel.kept.tracked = Some(tracked);
        channel.kept.anew = true;
    }
}

impl Channel {
    /// The request as the hub is to get it: where the user has changed, the channel begins anew.
    pub(super) fn ask_as_due(&mut self, request: Request) -> Effect {
        let anew = self.kept.takes_anew();
        let mut effect = self.ask(if anew { Request::Subscribe { again: true } } else { request });
        if let Effect::Subscribe { go_on, .. } = &mut effect
            && anew
        {
            *go_on = GoOn::Nowhere;
        }
        effect
    }
}
