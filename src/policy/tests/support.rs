//! Tables, images and principals for the tests of this module.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value as Json};
use tokio_postgres::SimpleQueryMessage;

use crate::catalog::{Catalog, Table, Wanted, read};
use crate::change::{Change, OldRow, Position, Relation, RelationColumn, ReplicaIdentity, RowChange, Tuple, Value};
use crate::claims::Principal;
use crate::metrics::Metrics;
use crate::policy::{AskConfig, Asker, Bound, Judged, Options, Plan, Question, Verdict, compile};
use crate::testing::TestDatabase;

pub(super) const ALICE: &str = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
pub(super) const BOB: &str = "b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a22";

/// A principal with these further claims.
pub(super) fn principal(role: &str, claims: Json) -> Arc<Principal> {
    let Json::Object(mut claims) = claims else { panic!("claims are an object") };
    claims.insert("role".into(), role.into());
    Arc::new(Principal::new(claims, i64::MAX).expect("a role"))
}

pub(super) fn user(sub: &str) -> Arc<Principal> {
    let claims: Map<String, Json> = [("sub".to_owned(), Json::from(sub))].into_iter().collect();
    principal("authenticated", Json::Object(claims))
}

pub(super) async fn catalog(database: &mut TestDatabase, roles: &[&str]) -> Catalog {
    let roles: BTreeSet<String> = roles.iter().map(|r| (*r).to_owned()).collect();
    let (publications, others) = (vec!["supabase_realtime".to_owned()], vec!["rowcast_facts".to_owned()]);
    let wanted = Wanted { publications, others, roles };
    read(&mut database.client, &wanted).await.unwrap_or_else(|e| panic!("{}", crate::error::chain(&e)))
}

pub(super) async fn plan(database: &mut TestDatabase, table: &str, role: &str) -> Arc<Plan> {
    let catalog = catalog(database, &[role]).await;
    let oid = catalog.find("public", table).map_or(0, |t| t.oid);
    Arc::new(compile(&catalog, oid, role, Options::default()))
}

/// The relation as pgoutput would describe it now.
pub(super) fn relation(table: &Table) -> Relation {
    let column = |c: &crate::catalog::Column| RelationColumn {
        name: c.name.clone(),
        type_oid: c.type_oid,
        type_modifier: c.type_modifier,
        key: table.identity_columns.contains(&c.name),
    };
    Relation {
        oid: table.oid,
        schema: table.schema.clone(),
        table: table.name.clone(),
        identity: table.identity,
        columns: table.columns.iter().filter(|c| table.is_sent(c)).map(column).collect(),
    }
}

pub(super) fn bind(plan: &Arc<Plan>) -> Bound {
    let table = plan.table.as_ref().expect("a table");
    plan.bind(&Arc::new(relation(table)))
}

/// The row of this id as it stands in the table.
pub(super) async fn tuple(database: &TestDatabase, relation: &Relation, id: i32) -> Tuple {
    let columns: Vec<String> = relation.columns.iter().map(|c| format!("\"{}\"", c.name)).collect();
    let sql = format!("select {} from \"{}\" where id = {id}", columns.join(", "), relation.table);
    let messages = database.client.simple_query(&sql).await.expect("a row");
    let row = messages.iter().find_map(|m| if let SimpleQueryMessage::Row(row) = m { Some(row) } else { None });
    let row = row.expect("one row");
    let value = |i| row.get(i).map_or(Value::Null, |text| Value::Text(text.as_bytes()));
    Tuple::from_values((0..relation.columns.len()).map(value))
}

/// An image from texts; `None` is NULL.
pub(super) fn texts(values: &[Option<&str>]) -> Tuple {
    let values: Vec<_> = values.iter().map(|v| v.map_or(Value::Null, |t| Value::Text(t.as_bytes()))).collect();
    Tuple::from_values(values.into_iter())
}

pub(super) fn insert(new: Tuple) -> Change {
    Change::Insert { new }
}

pub(super) fn delete(old: Tuple, identity: ReplicaIdentity) -> Change {
    let full = identity == ReplicaIdentity::Full;
    Change::Delete { old: if full { OldRow::Full(old) } else { OldRow::KeyOnly(old) } }
}

pub(super) fn asker(database: &TestDatabase, user: &str) -> (Asker, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let config = AskConfig { deadline: Duration::from_secs(20), ..AskConfig::default() };
    (Asker::new(database.asking_pool(user), config, metrics.clone()), metrics)
}

pub(super) fn question(bound: &Bound, change: Change, principals: &[Arc<Principal>]) -> Question {
    let position = Position::default();
    let change = Arc::new(RowChange { relation: bound.relation().clone(), position, change });
    Question { bound: Arc::new(bound.clone()), change, principals: principals.to_vec(), xids: Arc::new([]) }
}

/// What memory says without facts.
pub(super) fn judge(bound: &Bound, change: &Change, principal: &Principal, now: i64) -> Judged {
    bound.judge(change, &bound.plan().viewer(principal), principal, None, now)
}

pub(super) fn decided(judged: Judged) -> Verdict {
    match judged {
        Judged::Decided(verdict) => verdict,
        Judged::Ask => panic!("it would be asked"),
    }
}
