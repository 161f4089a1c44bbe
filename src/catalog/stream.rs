//! What the whole stream sends of a table's rows, and what tells that they changed without a row in it.
//!
//! The server decides for each partition by all publications of the session at once (`get_rel_sync_entry`): its rows come under
//! the name of the topmost table that any of them lists for it; what that name's row filters and column lists are in *those*
//! publications counts, while every publication's actions do. Before Postgres 15 there are no filters and no lists.
//!
//! Rejected: the rows of one publication looked at by themselves. Two publications that are each complete can together send
//! another name, and two that are not can be complete together.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::read::{Reader, get};
use super::table::{Streamed, Table};
use super::{CatalogError, Wanted, sql};

/// A member of the tree under a table, which is the table itself or a partition.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) oid: u32,
    /// 0 for the table itself.
    pub(super) parent: u32,
    pub(super) kind: Kind,
    /// Its rows are in the WAL.
    pub(super) logged: bool,
    /// Differs when DDL may have changed its rows, or the publications of the stream had left it out for a while.
    pub(super) version: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ordinary,
    Partitioned,
    Other,
}

/// What one publication sends under the name of one relation.
#[derive(Debug, Clone)]
pub(super) struct Listing {
    /// INSERT, UPDATE, DELETE, TRUNCATE.
    pub(super) actions: [bool; 4],
    pub(super) filtered: bool,
    pub(super) list: Option<BTreeSet<String>>,
}

/// All listings, by relation.
pub(super) type Listings = BTreeMap<u32, Vec<Listing>>;

impl Reader<'_> {
    /// What the stream sends of each table; answers with the trees under them.
    pub(super) async fn streams(
        &self,
        oids: &[u32],
        wanted: &Wanted,
        version: i32,
        tables: &mut BTreeMap<u32, Table>,
    ) -> Result<BTreeMap<u32, Vec<Member>>, CatalogError> {
        let mut trees: BTreeMap<u32, Vec<Member>> = BTreeMap::new();
        let publications: Vec<&str> = wanted
            .publications
            .iter()
            .chain(&wanted.others)
            .map(String::as_str)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        for row in &self.rows("partitions", sql::TREES, &[&oids, &publications]).await? {
            let kind = match get::<String>(row, 3)?.as_str() {
                "r" => Kind::Ordinary,
                "p" => Kind::Partitioned,
                _ => Kind::Other,
            };
            let member =
                Member { oid: get(row, 1)?, parent: get(row, 2)?, kind, logged: get(row, 4)?, version: get(row, 5)? };
            trees.entry(get(row, 0)?).or_default().push(member);
        }
        if version >= 150_000 {
            let members: Vec<u32> = trees.values().flatten().map(|member| member.oid).collect();
            let mut places: BTreeMap<u32, String> = BTreeMap::new();
            for row in &self.rows("stream", sql::IN_SCHEMAS, &[&members, &publications]).await? {
                places.insert(get(row, 0)?, get(row, 1)?);
            }
            for member in trees.values_mut().flatten() {
                member.version.extend(places.get(&member.oid).into_iter().flat_map(|place| [" ", place]));
            }
        }
        let mut related: BTreeSet<u32> = trees.values().flatten().map(|member| member.oid).collect();
        related.extend(tables.values().flat_map(|table| &table.ancestors));
        let listings = self.listings(&publications, &related, version).await?;
        let partitioned: Vec<u32> = tables.values().filter(|t| t.is_partitioned).map(|t| t.oid).collect();
        let covered = self.covered(&publications, &partitioned, version).await?;
        for (oid, table) in tables {
            let tree = trees.get(oid).map_or(&[][..], Vec::as_slice);
            table.leaves = leaves(tree);
            table.streamed = streamed(table, tree, &listings, covered.contains(oid));
        }
        Ok(trees)
    }

    async fn listings(
        &self,
        publications: &[&str],
        related: &BTreeSet<u32>,
        version: i32,
    ) -> Result<Listings, CatalogError> {
        let related: Vec<u32> = related.iter().copied().collect();
        let sql = if version >= 150_000 { sql::STREAMED } else { sql::STREAMED_14 };
        let mut listings = Listings::new();
        for row in &self.rows("stream", sql, &[&publications, &related]).await? {
            let list: Option<Vec<String>> = get(row, 6)?;
            let listing = Listing {
                actions: [get(row, 1)?, get(row, 2)?, get(row, 3)?, get(row, 4)?],
                filtered: get(row, 5)?,
                list: list.map(|names| names.into_iter().collect()),
            };
            listings.entry(get(row, 0)?).or_default().push(listing);
        }
        Ok(listings)
    }

    async fn covered(
        &self,
        publications: &[&str],
        partitioned: &[u32],
        version: i32,
    ) -> Result<BTreeSet<u32>, CatalogError> {
        let mut covered = BTreeSet::new();
        if partitioned.is_empty() {
            return Ok(covered);
        }
        let mut rows = self.rows("stream", sql::COVERED, &[&publications, &partitioned]).await?;
        if version >= 150_000 {
            rows.extend(self.rows("stream", sql::COVERED_15, &[&publications, &partitioned]).await?);
        }
        for row in &rows {
            covered.insert(get(row, 0)?);
        }
        Ok(covered)
    }
}

/// The members that hold rows, ascending.
fn leaves(tree: &[Member]) -> Vec<u32> {
    let leaves: BTreeSet<u32> = tree.iter().filter(|m| m.kind != Kind::Partitioned).map(|m| m.oid).collect();
    leaves.into_iter().collect()
}

/// Differs when the members, their versions or what `columns` says differ.
///
/// Rejected: `relfilenode`, which differs after every TRUNCATE too. That is in the stream, at its place; who loaded the rows again
/// for it would have them ahead of the stream.
pub(super) fn storage(tree: &[Member], columns: &impl Hash) -> u64 {
    let mut members: Vec<_> = tree.iter().map(|m| (m.oid, &m.version)).collect();
    members.sort_unstable();
    let mut hasher = DefaultHasher::new();
    (members, columns).hash(&mut hasher);
    hasher.finish()
}

/// `covered`: whatever partition the table gets, some publication has it with all actions.
fn streamed(table: &Table, tree: &[Member], listings: &Listings, covered: bool) -> Streamed {
    let mut streamed = Streamed { all_actions: true, all_rows: true, ..Streamed::default() };
    let related = tree.iter().map(|m| m.oid).chain(table.ancestors.iter().copied());
    let listed: Vec<&Listing> = related.filter_map(|oid| listings.get(&oid)).flatten().collect();
    streamed.has_column_list = listed.iter().any(|l| l.list.is_some());
    streamed.obstacle = obstacle(table, tree);
    let members: BTreeMap<u32, &Member> = tree.iter().map(|m| (m.oid, m)).collect();
    for leaf in tree.iter().filter(|m| m.kind != Kind::Partitioned) {
        leaf_streamed(table, &chain(table, leaf, &members), listings, &mut streamed);
    }
    if table.is_partitioned {
        streamed.all_actions &= covered;
        streamed.all_rows &= covered && (tree.len() > 1 || !listed.iter().any(|l| l.filtered));
    }
    if streamed.obstacle.is_some() {
        (streamed.all_actions, streamed.all_rows) = (false, false);
    }
    streamed
}

fn obstacle(table: &Table, tree: &[Member]) -> Option<&'static str> {
    if !table.is_partitioned && tree.len() > 1 {
        Some("other tables inherit from it")
    } else if tree.iter().any(|m| m.kind == Kind::Other) {
        Some("one of its partitions is a foreign table")
    } else if tree.iter().any(|m| !m.logged && m.kind == Kind::Ordinary) {
        Some("it is not logged, or one of its partitions isn't")
    } else {
        None
    }
}

/// `chain`: the leaf and all that is above it.
fn leaf_streamed(table: &Table, chain: &[u32], listings: &Listings, streamed: &mut Streamed) {
    let Some(top) = chain.iter().rev().find(|oid| listings.contains_key(oid)) else {
        (streamed.all_actions, streamed.all_rows) = (false, false);
        return;
    };
    if table.ancestors.contains(top) {
        streamed.obstacle.get_or_insert("its rows are sent under the name of the partitioned table above it");
    } else if *top != table.oid && chain.first() != Some(top) {
        streamed.obstacle.get_or_insert("its rows are sent under the name of a partitioned table below it");
    }
    let named = listings.get(top).map_or(&[][..], Vec::as_slice);
    let all: Vec<&Listing> = chain.iter().filter_map(|oid| listings.get(oid)).flatten().collect();
    for action in 0..3 {
        let mut sending = named.iter().filter(|l| l.actions[action]).peekable();
        let held_back = sending.peek().is_some() && sending.all(|l| l.filtered);
        streamed.all_rows &= !held_back;
        streamed.all_actions &= all.iter().any(|l| l.actions[action]);
    }
    // A TRUNCATE of the table names both it and its partitions in the WAL; only the one that gives the rows their name is sent.
    let truncated =
        if chain.first() == Some(top) { all.iter().any(|l| l.actions[3]) } else { named.iter().any(|l| l.actions[3]) };
    streamed.all_actions &= truncated;
    // Lists that differ stop the stream; should they all the same, what all of them have is sent for sure.
    for list in named.iter().filter_map(|l| l.list.as_ref()) {
        match &mut streamed.columns {
            Some(columns) => columns.retain(|column| list.contains(column)),
            None => streamed.columns = Some(list.clone()),
        }
    }
}

/// From the leaf up to the table, and on to the root of them all.
fn chain(table: &Table, leaf: &Member, members: &BTreeMap<u32, &Member>) -> Vec<u32> {
    let mut chain = vec![leaf.oid];
    let mut at = leaf;
    // The bound is for a tree that makes no sense.
    while let (true, Some(parent)) = (chain.len() <= members.len(), members.get(&at.parent)) {
        chain.push(parent.oid);
        at = parent;
    }
    chain.extend(&table.ancestors);
    chain
}
