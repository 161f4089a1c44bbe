//! A row that comes to one channel in several frames: only the last of them shows its cursor, so that who is cut off between two
//! of them and goes on from what he has gets all of them.

use super::*;
use crate::change::Change;

/// A frame of a row: for whom, which row, entries, and the name under which it shows the cursor if it shows it.
#[derive(Debug, Clone)]
struct Frame {
    channel: ChannelId,
    row: String,
    ids: Vec<i32>,
    cursor: Option<Option<String>>,
}

/// So many frames, and what else came by then.
async fn frames(bench: &mut Bench, count: usize) -> Vec<Frame> {
    let mut frames = Vec::new();
    while frames.len() < count {
        let batch = tokio::time::timeout(DEADLINE, bench.batches.recv()).await;
        for outgoing in batch.unwrap_or_else(|_| panic!("only {frames:?} came")).expect("runs").items {
            let Outgoing::Change(fanout) = outgoing else { continue };
            let tuple = match &fanout.event.value().row.change {
                Change::Insert { new } | Change::Update { new, .. } => new,
                Change::Delete { old } => old.tuple(),
            };
            let row = tuple.get(0).as_str().unwrap().to_owned();
            frames.extend(fanout.members.iter().map(|member| {
                let shows = member.cursor_as.as_deref() != Some(NO_CURSOR);
                let cursor = shows.then(|| member.cursor_as.as_deref().map(str::to_owned));
                Frame { channel: member.port.id, row: row.clone(), ids: member.ids.to_vec(), cursor }
            }));
        }
    }
    frames
}

/// What a channel got of a row, if only the last of it shows the cursor.
fn entries<'a>(frames: &'a [Frame], port: &Arc<Port>, row: &str) -> Vec<&'a [i32]> {
    let own: Vec<&Frame> = frames.iter().filter(|frame| frame.channel == port.id && frame.row == row).collect();
    for (number, frame) in own.iter().enumerate() {
        assert_eq!(frame.cursor.is_some(), number + 1 == own.len(), "{own:?}");
    }
    own.into_iter().map(|frame| &*frame.ids).collect()
}

fn selects(id: i32, table: &str, column: &str, filter: Option<&str>) -> Entry {
    Entry { select: Some(vec![column.into()]), ..entry(id, table, filter) }
}

fn named(entry: Entry, name: &str) -> Entry {
    Entry { cursor_as: Some(name.into()), ..entry }
}

#[tokio::test]
async fn of_the_frames_of_a_row_the_last_shows_the_cursor_and_it_is_one_that_names_it() {
    let mut bench = Bench::new(OWNED).await;
    let ports: Vec<_> = (0..5).map(|_| port()).collect();
    let table = "owned";
    let wishes = [
        vec![entry(1, table, None)],
        vec![selects(1, table, "id", None), selects(2, table, "kind", None)],
        // The other way round: who may see the same columns is together with others, in their order.
        vec![selects(1, table, "kind", None), selects(2, table, "id", None)],
        vec![named(selects(1, table, "id", None), "_c"), entry(2, table, None), selects(3, table, "kind", None)],
        vec![named(entry(1, table, None), "_c"), entry(2, table, None), named(entry(3, table, None), "_d")],
    ];
    for (port, wish) in ports.iter().zip(wishes) {
        bench.subscribe(port, wish, ALICE).await;
    }
    let owned = bench.relation("owned").await;
    let mut builder = TransactionBuilder::default();
    let mut gone = vec![b'O'];
    Tuple::encode(["gone", ALICE, "x"].map(|text| Value::Text(text.as_bytes())).into_iter(), &mut gone);
    builder.row(b'D', &owned, &Bytes::from(gone)).unwrap();
    bench.insert_by(3, builder, &owned, &[vec!["here", ALICE, "x"]]);
    let frames = frames(&mut bench, 22).await;
    for row in ["gone", "here"] {
        let of = |at: usize| entries(&frames, &ports[at], row);
        assert_eq!((of(0), of(1).len(), of(2).len()), (vec![&[1][..]], 2, 2), "{row}");
        assert_eq!((of(3).len(), of(3).last(), of(4).len(), of(4).last()), (3, Some(&&[1][..]), 3, Some(&&[3][..])));
    }
    let last = frames.iter().rfind(|frame| frame.channel == ports[3].id).expect("came");
    assert_eq!(last.cursor, Some(Some("_c".into())));
    bench.stop().await;
}

#[tokio::test]
async fn frames_of_a_row_about_which_postgres_is_asked_leave_together_and_the_last_that_leaves_shows_the_cursor() {
    let mut bench = Bench::with(&format!("{OWNED}{WAITING}"), patient(|_| {})).await;
    // What only Postgres can judge; the rows are of x.
    let (x, y) = (r"kind=match.^(x)\1*$", r"kind=match.^(y)\1*$");
    let wishes = [
        [None, Some(x)],
        [Some(x), None],
        [None, Some(y)],
        [Some(y), None],
        [Some(x), Some(x)],
        [Some(x), Some(y)],
        [Some(y), Some(x)],
        [Some(y), Some(y)],
        [None, None],
    ];
    let expected = [2, 2, 1, 1, 2, 1, 1, 0, 2];
    let mut ports = Vec::new();
    for table in ["owned", "waiting"] {
        for [one, other] in wishes {
            let port = port();
            let wish = vec![selects(1, table, "id", one), selects(2, table, "kind", other)];
            bench.subscribe(&port, wish, ALICE).await;
            ports.push(port);
        }
    }
    let relations = [bench.relation("owned").await, bench.relation("waiting").await];
    let rows = ["1", "2", "3"];
    for row in rows {
        for relation in &relations {
            bench.insert(relation, &[vec![row, ALICE, "xx"]]);
        }
    }
    let frames = frames(&mut bench, 2 * rows.len() * expected.iter().sum::<usize>()).await;
    for (port, expected) in ports.iter().zip(expected.iter().cycle()) {
        for row in rows {
            assert_eq!(entries(&frames, port, row).len(), *expected, "{row}: {:?}", port.id);
        }
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_broadcast_that_is_a_row_of_a_published_table_too_comes_behind_that_with_the_cursor_of_both() {
    let messages = "create schema realtime; grant usage on schema realtime to authenticated;
        create table realtime.messages (event text primary key, topic text, private text, extension text, payload text,
            id text);
        grant select on realtime.messages to authenticated; alter table realtime.messages enable row level security;
        create policy asked on realtime.messages for select to authenticated
            using (case when length(event) > 3 then pg_sleep(0.1) is not null else true end);
        alter publication supabase_realtime add table realtime.messages;";
    let mut bench = Bench::with(&format!("{OWNED}{messages}"), patient(|_| {})).await;
    let table = bench.relation("messages").await;
    let table = Arc::new(Relation { schema: "realtime".into(), ..Relation::clone(&table) });
    let messages = Messages { topic: "room".into(), member: None, replayed: None };
    let broadcast = Entry { messages: Some(messages), ..entry(1, "", None) };
    let all = Entry { schema: Name::Is("realtime".into()), ..entry(2, "messages", None) };
    let [both, one, other] = [port(), port(), port()];
    bench.subscribe(&both, vec![broadcast.clone(), all.clone()], ALICE).await;
    bench.subscribe(&one, vec![broadcast], ALICE).await;
    bench.subscribe(&other, vec![all], ALICE).await;
    for event in ["now", "later"] {
        bench.insert(&table, &[vec![event, "room", "f", "broadcast", "{}", "6ecd8c99-4036-403d-bf84-cf8400f67836"]]);
    }
    let frames = frames(&mut bench, 8).await;
    for event in ["now", "later"] {
        let of = |port| entries(&frames, port, event);
        assert_eq!((of(&both), of(&one), of(&other)), (vec![&[2][..], &[1]], vec![&[1][..]], vec![&[2][..]]));
    }
    bench.stop().await;
}
