//! The hub's part of a delivery: what is allocated for a change doesn't follow the number of those who get it.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde_json::{Map, Value as Json};

use super::matching::{Matcher, emit, event};
use super::registry::Registry;
use super::resolve::Target;
use super::{Action, ChannelId, Outbox, Outgoing, Port, Stage, Transmit, Version};
use crate::catalog::{Catalog, Wanted, read};
use crate::change::{Change, Position, Relation, RelationColumn, ReplicaIdentity, RowChange, Timestamp, Tuple, Value};
use crate::claims::Principal;
use crate::filter::Predicate;
use crate::metrics::Metrics;
use crate::policy::Options;
use crate::policy::facts::Facts;
use crate::testing::TestDatabase;

struct Hole;

impl Transmit for Hole {
    fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(parts.iter().map(|part| part.len()).sum())
    }
}

fn port(id: u64) -> Arc<Port> {
    Arc::new(Port {
        id: ChannelId(id),
        outbox: Arc::new(Outbox::new(Box::new(Hole), 1 << 20, Bytes::new())),
        shard: id as usize,
        topic: "realtime:room".into(),
        version: Version::V2,
        join_ref: "\"1\"".into(),
        stage: Arc::new(Stage::greeted()),
    })
}

/// Allocations for the second of two equal changes with this many channels, each with an entry on the table.
fn counted(catalog: &Catalog, row: &RowChange, channels: u64) -> u64 {
    let claims: Map<String, Json> = [("role".to_owned(), "authenticated".into())].into_iter().collect();
    let principal = Arc::new(Principal::new(claims, i64::MAX).expect("a role"));
    let mut registry = Registry::new(Options::default());
    for id in 0..channels {
        let (table_oid, predicate) = (row.relation.oid, Predicate::everything());
        let target = Target { table_oid, entry_id: 7, action: Action::All, predicate, select: None };
        registry.activate(port(id), principal.clone(), Arc::default(), vec![target], Position::default(), catalog);
    }
    let table = registry.table(row.relation.oid).expect("the table");
    let facts = Facts::new(0);
    table.fit(&row.relation, catalog, &facts);
    let (metrics, mut matcher) = (Metrics::new(), Matcher::default());
    let mut out: [Vec<Outgoing>; 2] = [Vec::with_capacity(4), Vec::with_capacity(4)];
    let mut deliver = || {
        let judgement = matcher.judge(&mut registry, row, &facts, 0, &metrics);
        let event = event(row.clone(), Timestamp(0), Instant::now(), catalog.types());
        assert_eq!(emit(&mut out, &event, judgement.permits, &[]), channels);
    };
    deliver();
    allocation_counter::measure(deliver).count_total
}

#[tokio::test]
async fn a_change_for_a_thousand_channels_allocates_a_few_growing_lists_and_nothing_per_channel() {
    let mut database = TestDatabase::new().await;
    database.run("create table t (id int primary key); alter publication supabase_realtime add table t").await;
    let roles = BTreeSet::from(["authenticated".to_owned()]);
    let wanted = Wanted { publications: vec!["supabase_realtime".to_owned()], others: Vec::new(), roles };
    let catalog = read(&mut database.client, &wanted).await.expect("the catalog");
    let column = RelationColumn { name: "id".into(), type_oid: 23, type_modifier: -1, key: true };
    let relation = Arc::new(Relation {
        oid: catalog.find("public", "t").expect("the table").oid,
        schema: "public".into(),
        table: "t".into(),
        identity: ReplicaIdentity::Default,
        columns: vec![column],
    });
    let new = Tuple::from_values([Value::Text(b"1")].into_iter());
    let (lsn, ordinal) = (crate::change::Lsn(9), 0);
    let row = RowChange { relation, position: Position { lsn, ordinal }, change: Change::Insert { new } };
    let one = counted(&catalog, &row, 1);
    // A list that doubles reaches a thousand in nine steps from its first four; there are three such lists, one of those who
    // are ready and one per shard.
    let thousand = counted(&catalog, &row, 1000);
    assert!(thousand <= one + 3 * 9, "{one} for one, {thousand} for a thousand");
}
