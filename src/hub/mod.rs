//! To whom: who has subscribed to what, and which change goes to whom.
//!
//! [`Hub`] is one task that pulls transactions from the log, finds the subscriptions that a row may concern (`index`), has
//! `policy` judge them, waits for Postgres where it must (`lane`), and hands what is permitted to the shards as [`Batch`]es.
//! It does not encode, touches no socket, and is never pushed at.

mod command;
mod control;
mod event;
mod facts;
mod filters;
mod freshness;
mod gaps;
mod group;
mod holds;
mod index;
mod lane;
mod line;
mod look;
mod matching;
mod members;
mod memo;
mod messages;
mod noting;
mod numbers;
mod outbox;
mod owing;
mod parting;
mod prepare;
mod reach;
mod registry;
mod replay;
mod reshaped;
mod resolve;
mod rows;
mod rules;
mod run;
mod seldom;
mod settle;
mod slots;
mod snapshot;
mod summary;
mod turns;
mod waiting;
mod warnings;
// Not in an optimized build: an allocator that counts would falsify the times of the bench.
#[cfg(test)]
#[cfg(debug_assertions)]
mod allocation_tests;
#[cfg(test)]
mod facts_tests;
#[cfg(test)]
mod index_tests;
#[cfg(test)]
pub(crate) mod crowd;
#[cfg(test)]
mod tests;

pub use command::{
    Action, Activated, CURSOR, ChannelId, Command, Entry, HubHandle, Messages, Name, Port, RESTARTING, SUBSCRIBED,
    SnapshotWish, Stage, Start, SubscribeError, Subscribed, Version, Warning,
};
pub use event::{Batch, Details, Event, Fanout, GapReason, Greeting, Ids, Member, NO_CURSOR, Notice, Outgoing};
pub use facts::{FactsConfig, FactsOf};
pub use look::{Judgement, LiveChannel, Look, Looked, MOST, Passes, passes, predicate, wants};
pub use members::Watch;
#[cfg(test)]
pub(crate) use members::Watched;
pub use messages::{Body, MESSAGES_TABLE, Message, is_of_messages};
pub use outbox::{CloseReason, Flushed, Outbox, Sent, Transmit};
pub use reach::{Pace, Place, Reach};
pub use run::Hub;
pub(crate) use seldom::Seldom;
pub use snapshot::{COMPLETE, Footing, REFUSED, Replayed};
pub use summary::{Summary, TableCount, UserCount};

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::error::{Fault, Remedy};
use crate::filter::FilterAskConfig;
use crate::journal::Journal;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::pg::Pool;
use crate::policy::{AskConfig, Options, SnapshotConfig};
use crate::task::Drain;

/// The hub's settings.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// The client publications: what is in none of them is matched to nobody.
    pub publications: Vec<String>,
    /// The stream's other publications.
    pub other_publications: Vec<String>,
    /// What the operator decides beside Postgres's own rules.
    pub policy: Options,
    /// The catalog is read at least this often. 1 s.
    pub catalog_interval: Duration,
    /// No row is judged by a reading that began longer ago than this. 2 s.
    pub max_rules_age: Duration,
    /// Bounds of questions to Postgres.
    pub ask: AskConfig,
    /// Bounds of questions about filters.
    pub filter_ask: FilterAskConfig,
    /// Tables that policies look into.
    pub facts: FactsConfig,
    /// Bounds of snapshots.
    pub snapshot: SnapshotConfig,
    /// Bytes of a database broadcast's payload; larger ones are dropped. 3,000,500.
    pub max_message_bytes: usize,
}

impl Default for HubConfig {
    fn default() -> HubConfig {
        HubConfig {
            publications: vec!["supabase_realtime".into()],
            other_publications: Vec::new(),
            policy: Options::default(),
            catalog_interval: Duration::from_secs(1),
            max_rules_age: Duration::from_secs(2),
            ask: AskConfig::default(),
            filter_ask: FilterAskConfig::default(),
            facts: FactsConfig::default(),
            snapshot: SnapshotConfig::default(),
            max_message_bytes: 3_000_500,
        }
    }
}

/// What the hub works with.
pub struct HubDeps {
    /// Where the changes come from.
    pub log: Log,
    /// For filters.
    pub pool: Pool,
    /// For questions ([`crate::pg::PgConfig::asking_pool`]), as many connections as `ask` says.
    pub ask_pool: Pool,
    /// For snapshots, as many connections as `snapshot` says; of the same kind.
    pub snapshot_pool: Pool,
    /// For the catalog alone: however busy the other is, the rules stay fresh.
    pub catalog_pool: Pool,
    /// For reading fact tables, which may take long.
    pub facts_pool: Pool,
    /// For the expiry of tokens.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where it is noted what decides silence.
    pub journal: Journal,
    /// When to stop.
    pub drain: Drain,
    /// Where deliveries go; a port's `shard` picks one.
    pub shards: Vec<mpsc::Sender<Batch>>,
}

/// Why the hub can't run.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// There is nobody to deliver to.
    #[error("the hub was given no shards")]
    NoShards,
    /// It was started before.
    #[error("the hub was started twice")]
    Twice,
}

impl Fault for HubError {
    fn remedy(&self) -> Remedy {
        Remedy::Bug
    }
}
