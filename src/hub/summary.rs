//! What the hub holds, counted for the operator: by table and by user, never a topic, a filter or a row.
//!
//! Made on request between two transactions. It looks at every channel, so it is for a person, not for a scrape.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;

use super::FactsOf;
use super::registry::on_tables;
use super::run::Hub;
use crate::change::Lsn;

/// More channels than this are not counted by user: it would delay deliveries.
const MOST_CHANNELS: usize = 20_000;
/// Tables and users that are listed; those with the most subscriptions.
const LISTED: usize = 100;

/// See the module's comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Up to where the log was taken up.
    pub position: Lsn,
    /// Channels with active entries.
    pub channels: usize,
    /// Subscriptions: one for each table of each entry.
    pub subscriptions: usize,
    /// Rows that wait for Postgres's answers, or behind others that do.
    pub lane_rows: usize,
    /// Their bytes.
    pub lane_bytes: usize,
    /// Questions that Postgres is answering now.
    pub questions: usize,
    /// How long ago the reading of the catalog in force began; `None` before the first.
    pub catalog_age: Option<Duration>,
    /// Tables with subscriptions, at most 100.
    pub tables: Vec<TableCount>,
    /// Tables that policies look into, by name.
    pub facts: Vec<FactsOf>,
    /// Users with subscriptions, at most 100; none if there are over 20,000 channels.
    pub users: Vec<UserCount>,
}

/// A table and who asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableCount {
    /// `schema.table`, or its number if the catalog does not know it any more.
    pub table: String,
    /// How many subscriptions.
    pub subscriptions: usize,
}

/// A role and `sub`, and what they asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserCount {
    /// The token's `role`.
    pub role: Arc<str>,
    /// The token's `sub`.
    pub subject: Arc<str>,
    /// How many channels.
    pub channels: usize,
    /// How many subscriptions.
    pub subscriptions: usize,
}

/// Role and `sub`.
type User<'a> = (&'a Arc<str>, &'a Arc<str>);
/// Channels and subscriptions.
type Counts = (usize, usize);

impl Hub {
    pub(super) fn describe(&self) -> Summary {
        let name = |oid: u32| {
            let table = self.current.as_ref().and_then(|rules| rules.catalog.table(oid));
            table.map_or_else(|| oid.to_string(), |table| format!("{}.{}", table.schema, table.name))
        };
        let mut tables: Vec<TableCount> = self
            .registry
            .by_table()
            .into_iter()
            .map(|(oid, subscriptions)| TableCount { table: name(oid), subscriptions })
            .collect();
        tables.sort_by(|a, b| (Reverse(a.subscriptions), &a.table).cmp(&(Reverse(b.subscriptions), &b.table)));
        tables.truncate(LISTED);
        let mut by_user: AHashMap<User<'_>, Counts> = AHashMap::new();
        let channels = self.registry.channels().count();
        for channel in self.registry.channels().take_while(|_| channels <= MOST_CHANNELS) {
            let user = by_user.entry((&channel.principal.role, &channel.principal.subject)).or_default();
            *user = (user.0 + 1, user.1 + on_tables(&channel.targets));
        }
        let user = |((role, subject), (channels, subscriptions)): (User<'_>, Counts)| UserCount {
            role: role.clone(),
            subject: subject.clone(),
            channels,
            subscriptions,
        };
        let mut users: Vec<UserCount> = by_user.into_iter().map(user).collect();
        let rank = |user: &UserCount| (Reverse(user.subscriptions), user.role.clone(), user.subject.clone());
        users.sort_by_cached_key(rank);
        users.truncate(LISTED);
        let (lane_rows, lane_bytes, questions) = self.lane.depth();
        Summary {
            position: self.position().lsn,
            channels,
            subscriptions: self.registry.subscriptions(),
            lane_rows,
            lane_bytes,
            questions,
            catalog_age: self.current.as_ref().map(|rules| rules.read_at.elapsed()),
            tables,
            facts: self.keeper.describe(&self.facts),
            users,
        }
    }
}
