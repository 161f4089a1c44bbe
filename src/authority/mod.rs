//! May this user read this private channel, and write to it?
//!
//! ```text
//! read / write ──► hub: memory (policy::members, its facts) ──decided──► Followed: the hub keeps it true
//!                      └─ not exactly reproducible, ──► probe (rolled back) ──► Until: asked again by then
//!                         or by facts that are old
//! ```
//!
//! Invariants:
//! * The answer is Postgres's: of its policies on `realtime.messages`, for the token's role and claims, the topic and the
//!   request's headers. What memory can't reproduce exactly is asked (`probe`).
//! * It fails closed: no answer is no right.
//! * Questions are bounded in number and time, however many clients join at once, and users have turns (`turns`).
//!
//! Rejected: a cache of answers by user and topic. What is in memory needs none, and the rest may change at any time.

mod error;
mod probe;
#[cfg(test)]
mod tests;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use error::AuthorityError;
pub use probe::can_probe;

pub use crate::policy::Asking;

use self::turns::{Inside, Turns};
use crate::hub::{self, HubHandle};
use crate::metrics::Metrics;
use crate::pg::{Lent, PgError, Pool};
use crate::policy::{Rights, Told, Way};

/// Settings of questions about private channels.
#[derive(Debug, Clone)]
pub struct AuthorityConfig {
    /// An answer that memory can't follow holds this long, and so do those of memory while the stream is behind. 10 s.
    pub recheck: Duration,
    /// For each statement of a probe. 2 s.
    pub statement_timeout: Duration,
    /// Probes at a time, each on a connection of its own. 4.
    pub connections: usize,
    /// For a whole question, its turn included. Clients give up on a join after 10 s. 8 s.
    pub deadline: Duration,
}

impl Default for AuthorityConfig {
    fn default() -> AuthorityConfig {
        AuthorityConfig {
            recheck: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(2),
            connections: 4,
            deadline: Duration::from_secs(8),
        }
    }
}

/// How long an answer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// As long as a [`Watch`] with these rights lives, which changes them when it ends, and says so while it can't tell
    /// ([`Rights::is_old`]).
    Followed,
    /// Until then: ask again by that time.
    Until(Instant),
}

/// Rights that the hub keeps true, of somebody who is in, until this is dropped.
pub struct Watch {
    _watch: hub::Watch,
    _inside: Inside,
}

/// What may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reads {
    /// Broadcasts.
    pub broadcast: bool,
    /// Presence; `None` if that was not asked.
    pub presence: Option<bool>,
    /// How long that holds.
    pub basis: Basis,
}

/// What may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writes {
    /// Broadcasts.
    pub broadcast: bool,
    /// Presence.
    pub presence: bool,
    /// How long that holds.
    pub basis: Basis,
}

/// See the module's comment. Cheap to clone.
#[derive(Clone)]
pub struct Authority {
    pool: Pool,
    hub: HubHandle,
    config: AuthorityConfig,
    metrics: Arc<Metrics>,
    turns: Arc<Turns>,
}

impl Authority {
    /// Over a pool of at least `config.connections` connections of the relay's own login, which must be allowed to insert into
    /// `realtime.messages` under its policies (its owner, or BYPASSRLS) and to become the tokens' roles.
    pub fn new(pool: Pool, hub: HubHandle, config: AuthorityConfig, metrics: Arc<Metrics>) -> Authority {
        let turns = Arc::new(Turns::new(config.connections));
        Authority { pool, hub, config, metrics, turns }
    }

    /// What of the channel may be read; presence only if it is asked for. An error is to be treated as a no.
    pub async fn read(&self, asking: &Asking, presence: bool) -> Result<Reads, AuthorityError> {
        let memory = self.memory(asking, Way::Read, presence).await;
        if let Memory::Says(told) = memory {
            let presence = presence.then_some(told.presence == Some(true));
            return Ok(Reads { broadcast: told.broadcast == Some(true), presence, basis: Basis::Followed });
        }
        let extensions: &[&str] = if presence { &[probe::BROADCAST, probe::PRESENCE] } else { &[probe::BROADCAST] };
        let found = self.probe(asking, &Probe::Read(extensions)).await?;
        let presence = presence.then_some(found[1]);
        let basis = self.basis(asking, Way::Read, memory, (found[0], presence)).await;
        Ok(Reads { broadcast: found[0], presence, basis })
    }

    /// What may be written to the channel. An error is to be treated as a no.
    pub async fn write(&self, asking: &Asking) -> Result<Writes, AuthorityError> {
        let memory = self.memory(asking, Way::Write, true).await;
        if let Memory::Says(told) = memory {
            let (broadcast, presence) = (told.broadcast == Some(true), told.presence == Some(true));
            return Ok(Writes { broadcast, presence, basis: Basis::Followed });
        }
        let [broadcast, presence] = self.probe(asking, &Probe::Write).await?;
        let basis = self.basis(asking, Way::Write, memory, (broadcast, Some(presence))).await;
        Ok(Writes { broadcast, presence, basis })
    }

    /// From now on the hub judges these rights again whenever rules or facts change, as far as memory can judge them: exactly
    /// at the commit for [`crate::hub::Messages`], within 250 ms for everything else. To be called once they were set by
    /// [`Authority::read`]; the same for every token, dropping the watch of the one before. A right that memory judged and no
    /// longer can is taken back ([`Rights::set`] to `None`, which wakes the connection): ask again. While the stream is behind
    /// the database, rights that rest on facts are old ([`Rights::is_old`]): ask within [`AuthorityConfig::recheck`].
    pub fn watch(&self, asking: &Asking, rights: Arc<Rights>) -> Watch {
        let inside = self.turns.is_in(asking.principal.user(), asking.topic.clone());
        Watch { _watch: self.hub.watch(asking.clone(), rights), _inside: inside }
    }

    /// What memory says.
    async fn memory(&self, asking: &Asking, way: Way, presence: bool) -> Memory {
        let Some(told) = self.hub.rights(asking.clone(), way, None).await else { return Memory::Silent };
        let asked = [Some(told.broadcast), presence.then_some(told.presence)];
        let mut asked = asked.into_iter().flatten();
        if asked.clone().any(|right| right.is_none()) {
            return Memory::Silent;
        }
        // Facts are of the moment that the stream is at. Whoever is let in by them loses it as soon as they say otherwise; but
        // who is turned away has been told so, perhaps because of what he was granted a moment ago.
        if told.by_facts && !asked.any(|right| right == Some(true)) {
            return Memory::Doubts;
        }
        let outcome = if told.broadcast == Some(true) { "allowed" } else { "denied" };
        self.metrics.authz_memory.get_or_create(&[("outcome", outcome)]).inc();
        Memory::Says(told)
    }

    /// How long Postgres's answer holds: memory that disagrees is behind, and is waited for.
    async fn basis(&self, asking: &Asking, way: Way, memory: Memory, found: (bool, Option<bool>)) -> Basis {
        let any = found.0 || found.1 == Some(true);
        if !any && matches!(memory, Memory::Doubts) {
            return Basis::Followed;
        }
        if matches!(memory, Memory::Doubts)
            && let Some(told) = self.hub.rights(asking.clone(), way, Some(found)).await
            && told.broadcast == Some(found.0)
            && found.1.is_none_or(|presence| told.presence == Some(presence))
        {
            return Basis::Followed;
        }
        Basis::Until(Instant::now() + self.config.recheck)
    }

    async fn probe(&self, asking: &Asking, probe: &Probe<'_>) -> Result<[bool; 2], AuthorityError> {
        let started = Instant::now();
        let deadline = started + self.config.deadline;
        let outcome = self.probe_by(asking, probe, deadline).await;
        self.metrics.authz_probe.observe(started.elapsed().as_secs_f64());
        let label = match &outcome {
            Ok([true, _]) => "allowed",
            Ok(_) => "denied",
            Err(error) => error.as_str(),
        };
        self.metrics.authz_probes.get_or_create(&[("outcome", label)]).inc();
        outcome
    }

    async fn probe_by(
        &self,
        asking: &Asking,
        probe: &Probe<'_>,
        deadline: Instant,
    ) -> Result<[bool; 2], AuthorityError> {
        let user = asking.principal.user();
        let turn = tokio::time::timeout_at(deadline, self.turns.take(&user, &asking.topic)).await;
        let Ok(Some(_turn)) = turn else { return Err(AuthorityError::PoolExhausted) };
        let timeout = self.config.statement_timeout;
        // A connection may have died while nobody used it.
        for attempt in 0..2 {
            let object = match tokio::time::timeout_at(deadline, self.pool.get()).await {
                Ok(Ok(object)) => object,
                Err(_) | Ok(Err(PgError::Timeout(_))) => return Err(AuthorityError::PoolExhausted),
                Ok(Err(error)) => {
                    tracing::debug!(error = %crate::error::chain(&error), "no connection to ask about a private channel");
                    return Err(AuthorityError::Unavailable);
                }
            };
            let mut lent = Lent(Some(object));
            let asked = async {
                match probe {
                    Probe::Read(extensions) => {
                        let found = probe::read(&mut lent, asking, extensions, timeout).await?;
                        Ok([found.first() == Some(&true), found.get(1) == Some(&true)])
                    }
                    Probe::Write => probe::write(&mut lent, asking, [probe::BROADCAST, probe::PRESENCE], timeout).await,
                }
            };
            let asked = tokio::time::timeout_at(deadline, asked).await;
            let asked =
                asked.unwrap_or_else(|_| Err(AuthorityError::Timeout("canceling statement due to timeout".into())));
            let dead = lent.0.as_ref().is_some_and(|object| object.is_closed());
            if attempt == 0 && dead && asked == Err(AuthorityError::Unavailable) {
                continue;
            }
            if matches!(asked, Ok(found) if found.contains(&true)) {
                // By the time that it is asked again it is still known.
                self.turns.let_in(&user, &asking.topic, 2 * self.config.recheck + self.config.deadline);
            }
            return asked;
        }
        Err(AuthorityError::Unavailable)
    }
}

enum Probe<'a> {
    Read(&'a [&'a str]),
    Write,
}

enum Memory {
    /// It can't judge this.
    Silent,
    /// It would say no, by facts that may be a moment old.
    Doubts,
    Says(Told),
}
