//! What the hub does about members: it takes their questions and their watches, and looks at what is due between two slices of
//! other work.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Watched;
use crate::hub::freshness::Age;
use crate::hub::run::Hub;
use crate::policy::{Asking, Told, Way};

/// A session has made its member's rights of an answer by then.
const SETTLING: Duration = Duration::from_secs(2);
/// For memory to come to what Postgres has said.
const CATCH_UP: Duration = Duration::from_secs(1);
/// By facts of longer before the question than this nobody is let in.
const MOST_LAG: Duration = Duration::from_secs(1);
/// Questions that may wait for rules and facts; others are answered by Postgres.
const MOST_WAITING: usize = 20_000;

/// A question that waits.
pub(super) struct Asked {
    asking: Asking,
    way: Way,
    expected: Option<(bool, Option<bool>)>,
    at: Instant,
    until: Instant,
    reply: oneshot::Sender<Option<Told>>,
}

impl Hub {
    pub(in crate::hub) fn on_rights_asked(
        &mut self,
        asking: Asking,
        way: Way,
        expected: Option<(bool, Option<bool>)>,
        reply: oneshot::Sender<Option<Told>>,
    ) {
        if self.members.asked.len() >= MOST_WAITING {
            let _ = reply.send(None);
            return;
        }
        self.rules.want(&asking.principal.role);
        // What was committed before the question is in the rules that it is answered by.
        self.rules.request();
        let at = Instant::now();
        let until = at + if expected.is_some() { CATCH_UP } else { self.config.facts.wait };
        self.members.asked.push(Asked { asking, way, expected, at, until, reply });
    }

    /// Whether the facts that rights rest on are old, if there are any: as old as rules may be.
    fn note_freshness(&mut self) {
        let (now, most) = (Instant::now(), self.config.max_rules_age);
        let wanted = self.members.rest_on_facts();
        self.rules.want_marks(wanted);
        let begins = self.freshness.want(wanted, now);
        if let Some(mark) = self.current.as_ref().and_then(|rules| rules.mark) {
            self.freshness.mark(mark);
        }
        // Not while another history has begun that was not come to yet, in which the position means nothing.
        let server = || crate::ingest::written_from(&self.deps.log);
        if wanted && self.reader.is_current() && self.freshness.pass(self.folded(), server) {
            self.members.look |= !self.members.asked.is_empty();
        }
        let (age, asks) = self.freshness.judge(now, most);
        if begins || asks {
            self.rules.request();
        }
        if self.freshness.nudges(now) {
            self.nudge();
        }
        match (self.members.age, age) {
            (Age::Recent | Age::Unknown, Age::Old) => tracing::warn!(
                "the stream is behind the database, or silent: members of private channels whose rights rest on tables are \
                 asked about again and again until it is there"
            ),
            (Age::Old, Age::Recent) => tracing::info!("the stream is there again: rights follow it"),
            _ => {}
        }
        self.members.note_age(age);
        self.deps.metrics.authz_facts_age.set(self.freshness.lag(now).as_secs_f64());
    }

    /// Has a message sent through the stream, which completes what WAL ends within.
    pub(in crate::hub) fn nudge(&self) {
        let pool = self.deps.pool.clone();
        drop(crate::task::spawn("nudge", async move {
            let sent = match pool.get().await {
                Ok(client) => crate::wal::heartbeat(&client).await.map_err(|error| crate::error::chain(&error)),
                Err(error) => Err(crate::error::chain(&error)),
            };
            if let Err(error) = sent {
                tracing::debug!(error, "no message could be sent through the stream to see whether it flows");
            }
        }));
    }

    pub(in crate::hub) fn on_watch(&mut self, watched: Watched) {
        self.note_freshness();
        self.members.add(watched, &self.facts, &self.deps.metrics);
    }

    /// Whatever is due about members; says whether there is more to do at once.
    pub(in crate::hub) fn tend_members(&mut self) -> bool {
        self.members.note_facts(&self.facts);
        self.note_freshness();
        let now = Instant::now();
        if std::mem::take(&mut self.members.look) || self.members.asked.iter().any(|asked| asked.until <= now) {
            for asked in std::mem::take(&mut self.members.asked) {
                self.answer(asked, now);
            }
        }
        if let Some(rules) = self.members.changed_rules() {
            let oid = self.current.as_ref().and_then(|rules| rules.catalog.messages().map(|m| m.reading.oid));
            self.keeper.want_rules(oid.unwrap_or_default(), rules);
        }
        let more = self.members.sweep(&self.facts, &self.deps.metrics);
        self.deps.metrics.authz_watched.set(self.members.members.len() as i64);
        more
    }

    /// When [`Hub::tend_members`] is to be called.
    pub(in crate::hub) fn members_at(&self) -> Option<Instant> {
        let sweep = self.members.sweep_at();
        let looks = self.freshness.wakes_at(Instant::now(), self.config.max_rules_age);
        self.members.asked.iter().map(|asked| asked.until).chain(sweep).chain(looks).min()
    }

    /// Answers, or waits on.
    fn answer(&mut self, mut asked: Asked, now: Instant) {
        if asked.reply.is_closed() {
            return;
        }
        let role = &*asked.asking.principal.role;
        let current = self.current.as_ref();
        let rules = current.filter(|rules| rules.read_at >= asked.at && rules.roles.contains(role));
        let told = rules.is_some().then(|| {
            self.members.want(&asked.asking, asked.way, &self.facts);
            self.members.told(&asked.asking, asked.way, &self.facts)
        });
        let told = told.flatten();
        let by_facts = told.is_some_and(|told| told.by_facts);
        if by_facts && !self.freshness.covers(asked.at, MOST_LAG) {
            // The stream may be a moment from being there.
            asked.until = asked.until.min(asked.at + MOST_LAG);
        }
        let told = told.filter(|told| !told.by_facts || self.freshness.covers(asked.at, MOST_LAG));
        // Postgres is asked at once.
        let is_old = by_facts && self.members.age == Age::Old;
        let is_late = is_old || asked.until <= now;
        let waits = match (told, asked.expected) {
            _ if is_late => false,
            (None, _) => true,
            (Some(told), Some((broadcast, presence))) => {
                told.broadcast != Some(broadcast) || presence.is_some_and(|presence| told.presence != Some(presence))
            }
            // Facts may be on their way.
            (Some(told), None) => told.by_facts && told.broadcast.is_none() && self.is_preparing_members(&asked),
        };
        if waits {
            self.members.asked.push(asked);
        } else {
            if asked.reply.send(told).is_ok() {
                (self.members.dirty, self.members.settling_until) = (true, Some(now + SETTLING));
            }
        }
    }

    fn is_preparing_members(&self, asked: &Asked) -> bool {
        let used = self.members.plan(&asked.asking, asked.way);
        used.is_some_and(|used| used.binding.is_none() && self.keeper.are_under_way(&used.tables))
    }
}
