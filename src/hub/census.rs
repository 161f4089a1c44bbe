//! Who is subscribed to what, counted now and then for the operator.
//!
//! Made by the hub's task at its sweep, every ten seconds, since only it sees the registry. Counting by user looks at every
//! channel and is left out where that would delay deliveries.

use std::sync::Arc;

use ahash::AHashMap;

use super::registry::Registry;
use crate::catalog::Catalog;

/// More channels than this are not counted by user.
const MOST_CHANNELS: usize = 20_000;
/// More tables or users than this are not listed; the ones with most subscriptions are.
const LISTED: usize = 100;

/// Role and subject.
type User<'a> = (&'a Arc<str>, &'a Arc<str>);

/// Subscriptions at one moment, the most numerous first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// Schema, table, subscriptions.
    pub tables: Vec<(String, String, usize)>,
    /// Role, subject, channels, subscriptions. Empty if there are too many channels to look at.
    pub users: Vec<(Arc<str>, Arc<str>, usize, usize)>,
    /// Channels with subscriptions.
    pub channels: usize,
}

impl Census {
    pub(super) fn take(registry: &Registry, catalog: Option<&Catalog>) -> Census {
        let mut census = Census { channels: registry.channels().count(), ..Census::default() };
        for (oid, count) in registry.by_table() {
            if let Some(table) = catalog.and_then(|catalog| catalog.table(oid)) {
                census.tables.push((table.schema.clone(), table.name.clone(), count));
            }
        }
        census.tables.sort_by(|a, b| b.2.cmp(&a.2).then_with(|| (&a.0, &a.1).cmp(&(&b.0, &b.1))));
        census.tables.truncate(LISTED);
        if census.channels > MOST_CHANNELS {
            return census;
        }
        let mut users: AHashMap<User<'_>, (usize, usize)> = AHashMap::new();
        for channel in registry.channels() {
            let user = users.entry((&channel.principal.role, &channel.principal.subject)).or_default();
            user.0 += 1;
            user.1 += channel.subscriptions();
        }
        let counted = users.into_iter().map(|((role, subject), (channels, subscriptions))| {
            (role.clone(), subject.clone(), channels, subscriptions)
        });
        census.users = counted.collect();
        census.users.sort_by(|a, b| b.3.cmp(&a.3).then_with(|| (&a.0, &a.1).cmp(&(&b.0, &b.1))));
        census.users.truncate(LISTED);
        census
    }
}
