//! What one row costs on its way, in nanoseconds, and what one delivery allocates.
//!
//! ```text
//! cargo test --release --lib bench:: -- --nocapture --test-threads=1
//! ```
//!
//! What keeping the rights of many members true costs is in `members.rs`, which says how it is run.
//!
//! Part of the crate's unit tests, since most of what is measured is private: opening it for a benchmark crate would show
//! the world what only we may change. Each number is the median of many short runs, after a warm-up; compare numbers of one
//! run only. The policy is compiled from the catalog of a real server, as the relay does it.

/// Not in an optimized build: an allocator that counts would falsify the times.
#[cfg(debug_assertions)]
mod alloc;
mod matching;
mod rooms;

use std::hint::black_box;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Map, Value as Json, json};

use crate::change::{
    Change, Item, Relation, RelationColumn, ReplicaIdentity, RowChange, Timestamp, Transaction, Value,
};
use crate::claims::Principal;
use crate::clock::Clock;
use crate::gateway::encode::{Place, RowShape, changes_frame, write_data};
use crate::gateway::shard::Shard;
use crate::hub::{Batch, ChannelId, Event, Fanout, Ids, Member, Outbox, Outgoing, Port, Stage, Transmit, Version};
use crate::metrics::Metrics;
use crate::pgtype::Types;
use crate::policy::{Bound, Judged, Options, Permit, Verdict, compile};
use crate::resume::{Cursor, CursorKey};
use crate::testing::TestDatabase;

const TABLE: &str =
    "create table messages (id bigint primary key, room_id uuid not null, user_id uuid, body text, kind text,
        read boolean, score numeric, meta jsonb, created_at timestamptz);
    alter table messages enable row level security;
    create policy own on messages using (user_id = auth.uid());
    alter publication supabase_realtime add table messages";
const OWNER: &str = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
/// A row as pgoutput sends it.
const ROW: [&str; 9] = [
    "9007199254740993",
    "0b9f6c1e-0000-4000-8000-000000000001",
    OWNER,
    "The train leaves at nine, don't be late \"this\" time.",
    "text",
    "f",
    "12.50",
    r#"{"edited": false, "mentions": ["ann", "bob"]}"#,
    "2026-11-20 10:15:30.123456+00",
];

/// A row of the table, and all that is needed to send it on.
struct Fixture {
    bound: Bound,
    relation: Arc<Relation>,
    row: Arc<RowChange>,
    /// Relation, Begin, Insert, Commit.
    messages: [Bytes; 4],
    types: Arc<Types>,
    owner: Arc<Principal>,
    stranger: Arc<Principal>,
    permit: Permit,
    _database: TestDatabase,
}

fn principal(subject: &str) -> Arc<Principal> {
    let claims = [("role", "authenticated"), ("sub", subject)];
    let claims: Map<String, Json> =
        claims.map(|(key, value)| (key.to_owned(), Json::from(value))).into_iter().collect();
    Arc::new(Principal::new(claims, i64::MAX).expect("a role"))
}

/// One transaction with this row, as the server sends it.
fn messages(relation: &Relation, row: &[&str]) -> [Bytes; 4] {
    let mut described = vec![b'R'];
    described.extend(relation.oid.to_be_bytes());
    described.extend(b"public\0messages\0d");
    described.extend((relation.columns.len() as u16).to_be_bytes());
    for column in &relation.columns {
        described.push(u8::from(column.key));
        described.extend(column.name.as_bytes());
        described.push(0);
        described.extend(column.type_oid.to_be_bytes());
        described.extend(column.type_modifier.to_be_bytes());
    }
    let begin = [&b"B"[..], &100u64.to_be_bytes(), &0u64.to_be_bytes(), &7u32.to_be_bytes()].concat();
    let mut insert = [&b"I"[..], &relation.oid.to_be_bytes(), b"N"].concat();
    crate::change::Tuple::encode(row.iter().map(|text| Value::Text(text.as_bytes())), &mut insert);
    let commit = [&b"C\0"[..], &100u64.to_be_bytes(), &148u64.to_be_bytes(), &0u64.to_be_bytes()].concat();
    [described, begin, insert, commit].map(Bytes::from)
}

fn rows(transaction: &Transaction) -> impl Iterator<Item = RowChange> {
    transaction.iter().filter_map(|item| match item.expect("an item") {
        Item::Row(row) => Some(row),
        _ => None,
    })
}

impl Fixture {
    async fn new() -> Fixture {
        let mut database = TestDatabase::new().await;
        database.run(TABLE).await;
        let roles = ["authenticated".to_owned()].into();
        let wanted =
            crate::catalog::Wanted { publications: vec!["supabase_realtime".into()], others: Vec::new(), roles };
        let catalog = crate::catalog::read(&mut database.client, &wanted).await.expect("the catalog");
        let table = catalog.find("public", "messages").expect("the table").clone();
        let column = |c: &crate::catalog::Column| RelationColumn {
            name: c.name.clone(),
            type_oid: c.type_oid,
            type_modifier: c.type_modifier,
            key: table.identity_columns.contains(&c.name),
        };
        let relation = Relation {
            oid: table.oid,
            schema: "public".into(),
            table: "messages".into(),
            identity: ReplicaIdentity::Default,
            columns: table.columns.iter().map(column).collect(),
        };
        let messages = messages(&relation, &ROW);
        let transactions = crate::wal::fuzz::transactions(&messages);
        let row = rows(&transactions[0]).next().expect("a row");
        let relation = row.relation.clone();
        let bound = Arc::new(compile(&catalog, table.oid, "authenticated", Options::default())).bind(&relation);
        let owner = principal(OWNER);
        let Judged::Decided(Verdict::Permit(permit)) =
            bound.judge(&row.change, &bound.plan().viewer(&owner), &owner, None, 0)
        else {
            panic!("the owner sees it")
        };
        Fixture {
            row: Arc::new(row),
            stranger: principal("b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a22"),
            types: catalog.types().clone(),
            _database: database,
            bound,
            relation,
            messages,
            owner,
            permit,
        }
    }

    fn event(&self) -> Arc<Event> {
        Arc::new(Event::new(
            self.row.clone(),
            Timestamp(848_484_930_123_999),
            std::time::Instant::now(),
            self.types.clone(),
            Some(1),
        ))
    }

    /// One event for these members, as the hub hands it over.
    fn batch(&self, event: &Arc<Event>, members: Vec<Member>) -> Batch {
        vec![Outgoing::Change(Fanout { event: self.permit.admit(event.clone()), members })].into()
    }
}

fn shard() -> (Shard, tokio::sync::mpsc::Sender<crate::hub::Batch>) {
    Shard::new(Arc::new(Metrics::new()), Clock::system(), Arc::new(CursorKey::new([1; 32])))
}

/// A socket that takes everything.
struct Hole;

impl Transmit for Hole {
    fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(parts.iter().map(|part| part.len()).sum())
    }
}

/// Channels of one topic and version, each on a connection of its own.
fn members(count: usize) -> Vec<Member> {
    let topic: Arc<str> = "realtime:room".into();
    let member = |id| Member {
        port: Arc::new(Port {
            id: ChannelId(id),
            outbox: Arc::new(Outbox::new(Box::new(Hole), 1 << 20, Bytes::new())),
            shard: 0,
            topic: topic.clone(),
            version: Version::V2,
            join_ref: "\"1\"".into(),
            stage: Arc::new(Stage::greeted()),
            place: crate::hub::Place::default(),
        }),
        ids: Ids::from_slice(&[78_123_401]),
        cursor_as: None,
        cost: 0,
    };
    (0..count as u64).map(member).collect()
}

/// Nanoseconds per call: the median of 41 runs of 5 ms at least. An unoptimized build only shows that the work can be done.
fn nanos(mut work: impl FnMut()) -> f64 {
    let (shortest, runs) = if cfg!(debug_assertions) { (Duration::ZERO, 1) } else { (Duration::from_millis(5), 41) };
    let mut calls = 1u32;
    let run = |calls: u32, work: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..calls).for_each(|_| work());
        start.elapsed()
    };
    while run(calls, &mut work) < shortest {
        calls = calls.saturating_mul(2);
    }
    let mut runs: Vec<Duration> = (0..runs).map(|_| run(calls, &mut work)).collect();
    runs.sort_unstable();
    runs[runs.len() / 2].as_nanos() as f64 / f64::from(calls)
}

fn show(name: &str, nanos: f64) -> f64 {
    println!("{name:<58} {nanos:>9.1} ns");
    nanos
}

/// What clients read of the columns, prepared once as a shape is.
fn described(fixture: &Fixture) -> Json {
    let column = |column: &RelationColumn| json!({"name": column.name, "type": crate::pgtype::type_name(&fixture.types, column.type_oid)});
    fixture.relation.columns.iter().map(column).collect()
}

/// What we would do with the usual tool: each value into a tree, and the tree into text.
fn through_a_tree(fixture: &Fixture, columns: &Json, topic: &str, ids: &[i32]) -> Bytes {
    let Change::Insert { new } = &fixture.row.change else { unreachable!("it is an insert") };
    let mut record = Map::new();
    for (column, value) in fixture.relation.columns.iter().zip(new.values()) {
        let text = value.as_str().unwrap_or_default();
        let value = match column.type_oid {
            16 => Json::from(text == "t"),
            20 => text.parse::<i64>().map_or(Json::Null, Json::from),
            1700 => text.parse::<f64>().map_or(Json::Null, Json::from),
            3802 => serde_json::from_str(text).unwrap_or_default(),
            1184 => Json::from(text.replacen(' ', "T", 1) + ":00"),
            _ => Json::from(text),
        };
        record.insert(column.name.clone(), value);
    }
    // Moved, not through `json!`, which copies what it is given.
    let object = |pairs: Vec<(&str, Json)>| {
        Json::Object(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    };
    let data = object(vec![
        ("schema", "public".into()),
        ("table", "messages".into()),
        ("type", "INSERT".into()),
        ("commit_timestamp", "2026-11-20T10:15:30.123Z".into()),
        ("columns", columns.clone()),
        ("record", Json::Object(record)),
        ("errors", Json::Null),
    ]);
    let payload = object(vec![("ids", ids.into()), ("data", data)]);
    let message = Json::Array(vec![Json::Null, Json::Null, topic.into(), "postgres_changes".into(), payload]);
    crate::gateway::frame::text(message.to_string().as_bytes())
}

#[tokio::test]
async fn nanoseconds_per_row() {
    let fixture = Fixture::new().await;
    let (row, change) = (&fixture.row, &fixture.row.change);
    println!("\n9 columns, {} bytes of text", ROW.iter().map(|text| text.len()).sum::<usize>());

    // 64 rows in a transaction, so that what a transaction costs is shared as in real life.
    let [relation, begin, insert, commit] = &fixture.messages;
    let mut stream = vec![relation.clone(), begin.clone()];
    stream.extend(std::iter::repeat_n(insert.clone(), 64));
    stream.push(commit.clone());
    show(
        "decode: messages to a transaction, per row",
        nanos(|| {
            black_box(crate::wal::fuzz::transactions(black_box(&stream)));
        }) / 64.0,
    );
    let transaction = crate::wal::fuzz::transactions(&stream).remove(0);
    show(
        "decode: transaction to rows, per row",
        nanos(|| assert_eq!(black_box(rows(&transaction)).count(), 64)) / 64.0,
    );

    for text in ["kind=eq.text", "kind=eq.text,read=eq.false,score=gte.12"] {
        let predicate = filter(&fixture, text).await;
        let conditions = text.split(',').count();
        show(
            &format!("filter: bind {conditions} condition(s)"),
            nanos(|| {
                black_box(predicate.bind(black_box(&fixture.relation)));
            }),
        );
        let bound = predicate.bind(&fixture.relation).expect("it has the columns");
        assert!(bound.matches(change));
        show(
            &format!("filter: match {conditions} condition(s)"),
            nanos(|| {
                black_box(bound.matches(black_box(change)));
            }),
        );
    }

    for (who, principal) in [("its owner", &fixture.owner), ("a stranger", &fixture.stranger)] {
        let viewer = fixture.bound.plan().viewer(principal);
        show(
            &format!("policy: user_id = auth.uid(), {who}"),
            nanos(|| {
                black_box(fixture.bound.judge(black_box(change), &viewer, principal, None, 0));
            }),
        );
    }

    let shape = RowShape::new(&fixture.relation, &fixture.types);
    let columns = described(&fixture);
    let time = Timestamp(848_484_930_123_999);
    let key = CursorKey::new([1; 32]);
    let at = Cursor { epoch: 1, position: row.position };
    let cursor = key.seal(at);
    show(
        "cursor: seal",
        nanos(|| {
            black_box(key.seal(black_box(at)));
        }),
    );
    show(
        "cursor: open",
        nanos(|| {
            let _ = black_box(key.open(black_box(&cursor)));
        }),
    );
    let place = Place { cursor: Some(&cursor), cursor_as: None, snapshot: false };
    let mut data = Vec::new();
    let encode = show(
        "encode: row to data",
        nanos(|| {
            data.clear();
            write_data(&shape, black_box(row), time, place, &fixture.permit, &mut data);
        }),
    );
    let framed = show(
        "encode: data to frame",
        nanos(|| {
            black_box(changes_frame(Version::V2, "realtime:room", &[78_123_401], black_box(&data)));
        }),
    );
    let tree = show(
        "encode: row to frame through serde_json::Value",
        nanos(|| {
            black_box(through_a_tree(&fixture, &columns, "realtime:room", &[78_123_401]));
        }),
    );
    println!("{:<58} {:>9.1} times", "        ours is quicker by", tree / (encode + framed));

    let (mut shard, _sender) = shard();
    for count in [1, 1000] {
        let members = members(count);
        let whole = nanos(|| shard.write(fixture.batch(&fixture.event(), members.clone())));
        show(&format!("fan-out: row to outboxes of {count}, per member"), whole / count as f64);
    }
}

async fn filter(fixture: &Fixture, text: &str) -> crate::filter::Predicate {
    let conditions = crate::filter::parse(text).expect("a filter");
    let column = |c: &RelationColumn| (c.name.clone(), c.type_oid);
    let columns: Vec<(String, u32)> = fixture.relation.columns.iter().map(column).collect();
    let specs: Vec<_> = columns
        .iter()
        .map(|(name, type_oid)| crate::filter::ColumnSpec {
            name,
            type_oid: *type_oid,
            type_name: "",
            collation_deterministic: true,
            collation: None,
            collation_bytewise: false,
            utf8: true,
            readable: true,
        })
        .collect();
    let validator = crate::filter::Validator::new(fixture._database.pool("relay"), Duration::from_secs(5));
    validator.validate("bench", &conditions, &specs, &fixture.types).await.expect("valid")
}
