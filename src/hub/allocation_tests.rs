//! The hub's part of a delivery: what is allocated for a change doesn't follow the number of those who get it.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::crowd::Crowd;
use crate::catalog::{Catalog, Wanted, read};
use crate::change::{Change, Position, Relation, RelationColumn, ReplicaIdentity, RowChange, Tuple, Value};
use crate::claims::Principal;
use crate::filter::Predicate;
use crate::policy::Options;
use crate::testing::TestDatabase;

/// Allocations for the second of two equal changes with this many channels, each with an entry on the table.
fn counted(catalog: &Catalog, row: &RowChange, channels: u64) -> u64 {
    let claims: Map<String, Json> = [("role".to_owned(), "authenticated".into())].into_iter().collect();
    let principal = Arc::new(Principal::new(claims, i64::MAX).expect("a role"));
    let mut crowd = Crowd::new(catalog.clone(), Options::default());
    for _ in 0..channels {
        crowd.join(&principal, row.relation.oid, Predicate::everything());
    }
    let mut deliver = || {
        let event = crowd.event(row.clone());
        assert_eq!(crowd.deliver(&event), channels);
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
