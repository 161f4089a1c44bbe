//! Items 154 to 167: what a client reads when it subscribes to rows (`protocol.md` §13.11).

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::phone::PATIENCE;
use crate::support::relay::pause;
use crate::support::stage::{all_of, with_marks};
use crate::support::token::{self, ALICE};
use crate::support::{Stage, Stock, summary, without_cursor};

const TODOS: &str = "
    create table public.todos (id int primary key, title text, done boolean, secret text);
    grant select (id, title, done) on public.todos to anon, authenticated;
    create table public.unpublished (id int primary key);
    grant select on public.unpublished to authenticated;
    alter publication supabase_realtime add table public.todos;";

fn filtered(filter: &str) -> Value {
    json!([{ "event": "*", "schema": "public", "table": "todos", "filter": filter }])
}

const NOT_ENABLED: &str = "Unable to subscribe to changes with given parameters. Please check Realtime is enabled for the \
                           given connect parameters: ";
const EXCEPTION: &str = "Unable to subscribe to changes with given parameters. An exception happened so please check your \
                         connect parameters: ";

/// The texts with which a pair's joins are refused, each on a topic of its own.
async fn refusals(stage: &Stage, all: &[Value]) -> Vec<String> {
    let mut pair = stage.pair(&token::user(ALICE)).await;
    let mut messages = Vec::new();
    for (index, entries) in all.iter().enumerate() {
        messages.push(pair.refused(&format!("room {index}"), entries).await);
    }
    messages
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_154_one_system_frame_says_that_the_table_is_subscribed() {
    let stage = Stage::with(TODOS).await;
    let mut pair = stage.pair(&token::user(ALICE)).await;
    // The phones check that `ref` is null, and join_ref the channel's in version 2.
    let system = pair.joined("room", &with_marks(&all_of("todos"))).await;
    let expected = json!({ "extension": "postgres_changes", "status": "ok", "message": "Subscribed to PostgreSQL",
                           "channel": "room" });
    assert_eq!(without_cursor(system), expected);
    stage.mark("end").await;
    assert_eq!(pair.changes_before("end").await, []);
    pair.expect_no_more_frames("room").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_155_three_entries_make_one_system_frame() {
    let stage = Stage::with(TODOS).await;
    let mut pair = stage.pair(&token::user(ALICE)).await;
    let entries = json!([
        { "event": "INSERT", "schema": "public", "table": "todos" },
        { "event": "*", "schema": "public", "table": "todos", "filter": "id=eq.1" },
        { "event": "*", "schema": "public", "table": "marks" },
    ]);
    pair.subscribe("room", &entries).await;
    stage.exec("insert into todos values (1)").await;
    stage.mark("end").await;
    assert_eq!(summary(&pair.changes_before("end").await, "id"), ["INSERT 1"]);
    pair.expect_no_more_frames("room").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_156_a_table_outside_the_publication_is_refused_after_a_good_reply() {
    let stage = Stage::with(TODOS).await;
    let cases = [("public", "unpublished"), ("public", "no_such_table"), ("nowhere", "*")];
    let entries = cases.map(|(schema, table)| json!([{ "event": "INSERT", "schema": schema, "table": table }]));
    for ((schema, table), message) in cases.iter().zip(refusals(&stage, &entries).await) {
        let expected = format!("[event: INSERT, schema: {schema}, table: {table}, filters: [], select: nil]");
        assert_eq!(message, format!("{NOT_ENABLED}{expected}"));
    }
    // As good as none: a publication that is not there.
    stage.exec("drop publication supabase_realtime").await;
    let mut pair = stage.pair(&token::user(ALICE)).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let system = pair.joined("late", &all_of("todos")).await;
        if system["message"].as_str().is_some_and(|message| message.starts_with(NOT_ENABLED)) {
            break;
        }
        assert!(Instant::now() < deadline, "{system}");
        for phone in &mut pair.phones {
            phone.leave("late").await;
        }
        pause().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_157_a_filter_that_cannot_be_parsed_is_shown_by_its_parts() {
    let stage = Stage::with(TODOS).await;
    let cases = [
        ("wrong", r#"["wrong"]"#),
        ("a=foo.hey", r#"["foo", "hey"]"#),
        ("id=not.foo.hey", r#"["foo", "hey"]"#),
        ("id=eq5", r#"["eq5"]"#),
        ("id=EQ.5", r#"["EQ", "5"]"#),
        ("id=in.1,2", "`in` filter value must be wrapped by parentheses"),
    ];
    let messages = refusals(&stage, &cases.map(|(filter, _)| filtered(filter))).await;
    // Where two things are wrong, either may be told.
    for ((filter, expected), message) in cases.iter().zip(messages) {
        if *filter == "id=in.1,2" {
            assert!(message.starts_with("Error parsing `filter` params: "), "{filter}: {message}");
        } else {
            assert_eq!(message, format!("Error parsing `filter` params: {expected}"), "{filter}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_158_an_empty_segment_of_a_filter_is_refused() {
    let stage = Stage::with(TODOS).await;
    let entries = ["id=gt.1,", ",id=gt.1", "id=gt.1,,id=lt.5"].map(filtered);
    for message in refusals(&stage, &entries).await {
        let expected = "Error parsing `filter` params: filter must not contain empty segments (check for extra commas)";
        assert_eq!(message, expected);
    }
    // A filter of blanks is none.
    let mut pair = stage.pair(&token::user(ALICE)).await;
    for (index, blank) in ["", "  "].into_iter().enumerate() {
        pair.subscribe(&format!("blank {index}"), &filtered(blank)).await;
    }
    stage.exec("insert into todos values (1)").await;
    // Which of the two channels gets it first is nobody's business.
    for phone in &mut pair.phones {
        for _ in 0..2 {
            assert_eq!(phone.next_change().await.record()["id"], 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_159_a_filter_on_a_column_that_is_not_there_or_not_readable_is_refused() {
    let stage = Stage::with(TODOS).await;
    let columns = ["nope", "secret", "ID", "id "];
    let entries = columns.map(|column| filtered(&format!("id=eq.1,{column}=eq.1")));
    for (column, message) in columns.iter().zip(refusals(&stage, &entries).await) {
        assert!(message.starts_with(EXCEPTION), "{message}");
        assert!(message.ends_with(&format!("invalid column for filter {column}")), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_160_a_value_that_is_none_of_the_columns_type_is_refused_with_the_databases_words() {
    let stage = Stage::with(TODOS).await;
    let cases = [
        ("id=eq.hey", "ERROR 22P02 (invalid_text_representation) invalid input syntax for type integer: \"hey\""),
        ("id=not.lte.hey", "ERROR 22P02 (invalid_text_representation) invalid input syntax for type integer: \"hey\""),
        ("id=in.(1,hey)", "ERROR 22P02 (invalid_text_representation) invalid input syntax for type integer: \"hey\""),
        (
            "done=eq.perhaps",
            "ERROR 22P02 (invalid_text_representation) invalid input syntax for type boolean: \"perhaps\"",
        ),
        (
            "id=eq.3000000000",
            "ERROR 22003 (numeric_value_out_of_range) value \"3000000000\" is out of range for type integer",
        ),
        ("title=is.true", "is true filter requires a boolean column, got text"),
        ("id=is.nothing", "invalid value for is filter: must be null, true, false, or unknown"),
        ("id=is.NULL", "invalid value for is filter: must be null, true, false, or unknown"),
    ];
    let messages = refusals(&stage, &cases.map(|(filter, _)| filtered(filter))).await;
    for ((filter, expected), message) in cases.iter().zip(messages) {
        assert!(message.starts_with(EXCEPTION), "{filter}: {message}");
        assert!(message.ends_with(expected), "{filter}: {message}");
    }
    // Of these the end is the server's to word: a type's name, the regular expression engine's complaint.
    let cases = [
        ("id=like.1%", "operator like requires a text-compatible column type, got int"),
        ("id=not.imatch.1", "operator imatch requires a text-compatible column type, got int"),
        ("title=match.(", "invalid regular expression for match filter: "),
    ];
    let messages = refusals(&stage, &cases.map(|(filter, _)| filtered(filter))).await;
    for ((filter, expected), message) in cases.iter().zip(messages) {
        assert!(message.contains(&format!("ERROR P0001 (raise_exception) {expected}")), "{filter}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_161_a_list_has_at_most_a_hundred_values() {
    let stage = Stage::with(TODOS).await;
    let list = |count: u32, word: &str| {
        let values: Vec<String> = (1..=count).map(|n| n.to_string()).collect();
        filtered(&format!("id={word}in.({})", values.join(",")))
    };
    let entries = [list(101, ""), list(101, "not."), list(500, "")];
    for message in refusals(&stage, &entries).await {
        assert!(message.starts_with(EXCEPTION), "{message}");
        assert!(message.ends_with("too many values for `in` filter. Maximum 100"), "{message}");
    }
    let mut pair = stage.watch(&token::user(ALICE), &list(100, "")).await;
    stage.exec("insert into todos values (101); insert into todos values (100); insert into todos values (1)").await;
    stage.mark("end").await;
    assert_eq!(summary(&pair.changes_before("end").await, "id"), ["INSERT 100", "INSERT 1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_162_a_selection_that_cannot_be_is_refused_with_its_message() {
    let stage = Stage::with(TODOS).await;
    let list =
        "Error parsing `select` params: expected a list of column name strings, e.g. select: [\"col1\", \"col2\"]";
    let wildcard =
        "Column selection is not supported for wildcard subscriptions. Provide an explicit schema and table name.";
    let cases = [
        (json!({ "schema": "public", "table": "todos", "select": "title" }), list),
        (json!({ "schema": "public", "table": "todos", "select": { "title": true } }), list),
        (json!({ "schema": "public", "table": "*", "select": ["title"] }), wildcard),
        (json!({ "schema": "*", "table": "todos", "select": ["title"] }), wildcard),
        (json!({ "schema": "public", "select": ["title"] }), wildcard),
        (
            json!({ "schema": "public", "table": "todos", "select": ["title", "nope"] }),
            "invalid column for select nope",
        ),
        (json!({ "schema": "public", "table": "todos", "select": ["secret"] }), "invalid column for select secret"),
    ];
    let entries: Vec<Value> = cases.iter().map(|(entry, _)| json!([entry])).collect();
    for ((entry, expected), message) in cases.iter().zip(refusals(&stage, &entries).await) {
        if expected.starts_with("invalid") {
            assert!(message.starts_with(EXCEPTION) && message.ends_with(expected), "{entry}: {message}");
        } else {
            assert_eq!(message, *expected, "{entry}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_163_one_bad_entry_leaves_the_good_ones_without_changes() {
    let stage = Stage::with(TODOS).await;
    let mut witness = stage.watch(&token::user(ALICE), &all_of("todos")).await;
    let good = json!({ "event": "*", "schema": "public", "table": "todos" });
    let bad = json!({ "event": "*", "schema": "public", "table": "todos", "filter": "nope=eq.1" });
    let unparsable = json!({ "event": "*", "schema": "public", "table": "todos", "filter": "wrong" });
    let missing = json!({ "event": "*", "schema": "public", "table": "unpublished" });
    let mut pair = stage.pair(&token::user(ALICE)).await;
    for (index, bad) in [bad, unparsable, missing].iter().enumerate() {
        for (order, entries) in [json!([good, bad]), json!([bad, good])].iter().enumerate() {
            pair.refused(&format!("mixed {index} {order}"), entries).await;
        }
    }
    pair.subscribe("good", &with_marks(&json!([]))).await;
    stage.exec("insert into todos values (1); update todos set title = 'x'; delete from todos").await;
    stage.mark("end").await;
    assert_eq!(witness.changes_before("end").await.len(), 3);
    assert_eq!(pair.changes_before("end").await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_164_after_an_error_the_channel_lives_and_no_further_system_frames_come() {
    let stage =
        Stage::configured(TODOS, |config| config.hub.catalog_interval = std::time::Duration::from_millis(20)).await;
    let mut pair = stage.pair(&token::user(ALICE)).await;
    pair.refused("room", &filtered("nope=eq.1")).await;
    pair.refused("other", &all_of("unpublished")).await;
    // A retry would come with a reading of the catalog, or with a change of what is subscribed to.
    let readings = async || stage.relay.metric("rowcast_catalog_reads_total", "").await;
    let begun = readings().await;
    stage.exec("alter table todos add column urgent boolean; insert into todos values (1)").await;
    let deadline = Instant::now() + PATIENCE;
    while readings().await < begun + 15.0 {
        assert!(Instant::now() < deadline, "the catalog is not read");
        pause().await;
    }
    for topic in ["room", "other"] {
        pair.expect_no_more_frames(topic).await;
    }
    // It still broadcasts, and can be left.
    for (sender, receiver) in [(0, 1), (1, 0)] {
        let payload = json!({ "type": "broadcast", "event": "e", "payload": {} });
        pair.phones[sender].push("room", "broadcast", payload.clone()).await;
        assert_eq!(pair.phones[receiver].next_of("room", "broadcast").await.payload, payload);
    }
    stage.exec("select realtime.send('{}', 'stored', 'room', false)").await;
    for phone in &mut pair.phones {
        assert_eq!(phone.next_of("room", "broadcast").await.payload["event"], "stored");
        assert!(phone.frames_so_far().await.is_empty());
        phone.leave("room").await;
    }
    pair.subscribe("room", &all_of("todos")).await;
    stage.exec("insert into todos values (2)").await;
    assert_eq!(pair.next_change().await.record()["id"], 2);
}

const TWO_SCHEMAS: &str = "
    create schema audit;
    grant usage on schema audit to authenticated;
    create table audit.entries (id int primary key);
    create table public.a_b (id int primary key);
    create table public.axb (id int primary key);
    create table public.apart (id int primary key);
    grant select on audit.entries, public.a_b, public.axb, public.apart to authenticated;
    alter publication supabase_realtime add table audit.entries, public.a_b, public.axb;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_165_wildcards_stand_for_every_published_table_of_one_or_of_all_schemas() {
    let stage = Stage::with(TWO_SCHEMAS).await;
    let entries = json!([
        { "event": "*", "schema": "public" },
        { "schema": "*" },
        { "event": "INSERT", "schema": "audit", "table": "*" },
        { "event": "UPDATE", "schema": "*", "table": "*" },
        { "event": "*", "schema": "*", "table": "entries" },
        { "event": "*", "table": "a_b" },
    ]);
    let mut pair = stage.watch(&token::user(ALICE), &entries).await;
    for table in ["public.a_b", "public.apart", "audit.entries", "public.axb"] {
        stage.exec(&format!("insert into {table} values (1)")).await;
    }
    stage.exec("update audit.entries set id = 2").await;
    // The mark itself matches the wildcards too, and is told in one frame.
    stage.mark("end").await;
    let changes = pair.changes_before("end").await;
    let told: Vec<_> = changes.iter().map(|change| (change.kind(), change.table(), pair.entries_of(change))).collect();
    let expected = [
        ("INSERT", "a_b", vec![0, 1, 5]),
        ("INSERT", "entries", vec![1, 2, 4]),
        ("INSERT", "axb", vec![0, 1]),
        ("UPDATE", "entries", vec![1, 3, 4]),
    ];
    assert_eq!(told, expected);
    let refused = stage
        .pair(&token::user(ALICE))
        .await
        .refused("filter", &json!([{ "schema": "public", "table": "*", "filter": "note=eq.1" }]))
        .await;
    // `a_b` has no such column.
    assert!(refused.contains("invalid column for filter note"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_166_a_table_published_later_reaches_wildcard_subscribers() {
    let stage = Stage::with(TWO_SCHEMAS).await;
    let entries = json!([{ "event": "*", "schema": "public" }, { "event": "*", "schema": "*" }]);
    let mut pair = stage.watch(&token::user(ALICE), &entries).await;
    stage.exec("create schema later; grant usage on schema later to authenticated").await;
    let tables = [
        ("public.apart", "alter publication supabase_realtime add table public.apart", vec![0, 1]),
        (
            "later.new",
            "create table later.new (id int primary key); grant select on later.new to authenticated; \
                       alter publication supabase_realtime add table later.new",
            vec![1],
        ),
        (
            "later.newer",
            "alter publication supabase_realtime add tables in schema later; \
                         create table later.newer (id int primary key); grant select on later.newer to authenticated",
            vec![1],
        ),
    ];
    for (table, sql, expected) in tables {
        if table == "later.newer" && stage.pg.major() < 15 {
            continue;
        }
        stage.exec(sql).await;
        let deadline = Instant::now() + PATIENCE;
        for n in 1.. {
            stage.exec(&format!("insert into {table} values ({n})")).await;
            let mark = format!("{table} {n}");
            stage.mark(&mark).await;
            let changes = pair.changes_before(&mark).await;
            if let [change] = &changes[..] {
                assert_eq!((pair.entries_of(change), change.record()), (expected, &json!({ "id": n })), "{table}");
                break;
            }
            assert_eq!(changes, []);
            assert!(Instant::now() < deadline, "{table} never arrives");
        }
    }
    // And one that is taken out is silent again.
    stage.exec("alter publication supabase_realtime drop table public.apart").await;
    stage.exec("insert into public.apart values (-1)").await;
    stage.mark("end").await;
    assert_eq!(pair.changes_before("end").await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_167_the_javascript_client_is_subscribed_once_and_finds_its_bindings() {
    let stage = Stage::with(TODOS).await;
    let marks = json!({ "event": "*", "schema": "public", "table": "marks" });
    let cases = [
        json!([{ "event": "*", "schema": "public", "table": "todos", "filter": "id=eq.1" }, marks]),
        json!([{ "event": "INSERT", "schema": "public", "table": "todos" }, marks]),
        json!([{ "event": "*", "schema": "public", "table": "todos", "select": ["id", "title"] }, marks]),
        json!([{ "event": "*", "schema": "public", "table": "todos", "select": ["title"], "filter": "id=gte.1,id=lt.9" }, marks]),
        json!([{ "event": "*", "schema": "public" }]),
        json!([{ "event": "*", "schema": "*" }]),
    ];
    for stock in [Stock::JavaScript, Stock::JavaScriptV1, Stock::Python] {
        let mut phone = stage.relay.sdk(stock, &token::user(ALICE)).await;
        for (index, entries) in cases.iter().enumerate() {
            let topic = format!("case {index}");
            phone.subscribe(&topic, entries).await;
            stage.exec("insert into todos values (1, 't'); delete from todos").await;
            let mark = format!("{stock:?} {index}");
            stage.mark(&mark).await;
            let changes = phone.changes_before(&mark).await;
            assert_eq!(changes[0].record()["title"], "t", "{stock:?} {entries}");
            assert_eq!(phone.more_statuses(&topic), [], "{stock:?} {entries}");
            phone.unsubscribe(&topic).await;
        }
        phone.exit().await;
    }
}
