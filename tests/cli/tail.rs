//! `rowcast tail`: what it prints, when it ends, and that it comes back.

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{NOTES, Tail, note, tail};
use crate::support::stage::{Stage, all_of};
use crate::support::token::{self, ALICE, BOB};
use crate::support::{RelayProcess, TestPg};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_lines_are_the_objects_that_applications_get_for_the_owners_rows_alone() {
    let stage = Stage::with(NOTES).await;
    let (url, token) = (stage.relay.base(), token::user(ALICE));
    let mut pair = stage.watch(&token, &all_of("notes")).await;
    let mut tail = Tail::start(&url, &token, &["--table", "notes", "--json", "--count", "3"]);
    tail.subscribed().await;
    for (id, owner) in [(1, BOB), (2, ALICE)] {
        stage.exec(&note(id, owner, "a b")).await;
    }
    stage.exec("update public.notes set kind = E'c\\nd'").await;
    stage.exec("delete from public.notes").await;
    let (ended, lines) = tail.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let kinds = lines.iter().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["type"].clone());
    assert_eq!(kinds.collect::<Vec<_>>(), ["INSERT", "UPDATE", "DELETE"], "{lines:#?}");
    for line in lines {
        let change = pair.next_change().await;
        assert_eq!(line, change.text, "not byte for byte");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_for_a_person_has_time_type_table_key_and_what_changed() {
    let stage = Stage::with(NOTES).await;
    let mut tail = Tail::start(&stage.relay.base(), &token::user(ALICE), &["--count", "4"]);
    tail.subscribed().await;
    stage.exec(&note(7, ALICE, "a")).await;
    stage.exec("update public.notes set kind = 'b'").await;
    stage.exec("delete from public.notes").await;
    stage.mark("end").await;
    let (ended, lines) = tail.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let expected = [
        format!("  INSERT  public.notes  id=7  owner=\"{ALICE}\"  kind=\"a\""),
        "  UPDATE  public.notes  id=7  kind=\"a\" → \"b\"".to_owned(),
        format!("  DELETE  public.notes  id=7  owner=\"{ALICE}\"  kind=\"b\""),
        "  INSERT  public.marks  id=1  note=\"end\"".to_owned(),
    ];
    assert_eq!(lines.len(), 4, "{lines:#?}");
    for (line, expected) in lines.iter().zip(expected) {
        let (time, rest) = line.split_at(13);
        assert!(time.ends_with('Z') && time.matches(':').count() == 2, "{line}");
        assert_eq!(rest.split("  @").next(), Some(&*expected), "{line}");
        assert!(!line.contains('\u{1b}'), "colours in a pipe: {line:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn event_filter_and_columns_choose_what_comes() {
    let stage = Stage::with(NOTES).await;
    let arguments = ["--table", "notes", "--event", "update", "--filter", "kind=eq.b", "--select", "id,kind"];
    let mut tail = Tail::start(&stage.relay.base(), &token::user(ALICE), &[&arguments[..], &["--json"]].concat());
    tail.subscribed().await;
    stage.exec(&note(1, ALICE, "b")).await;
    stage.exec("update public.notes set kind = 'c'").await;
    stage.exec("update public.notes set kind = 'b'").await;
    let line: Value = serde_json::from_str(&tail.line().await.expect("a line")).expect("JSON");
    assert_eq!((&line["type"], &line["record"]["kind"]), (&"UPDATE".into(), &"b".into()));
    assert_eq!(line["record"]["owner"], Value::Null, "{line}");
    tail.process.signal(Signal::SIGINT);
    let (ended, rest) = tail.ended().await;
    assert_eq!((ended.code, rest.len()), (Some(0), 0), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_ends_with_0_after_its_time_and_when_nobody_reads_any_more() {
    let stage = Stage::with(NOTES).await;
    let (url, token) = (stage.relay.base(), token::user(ALICE));
    let arguments = ["--table", "notes", "--for", "10s"];
    let mut timed = Tail::start(&url, &token, &arguments);
    let mut headed = tail(&url, &token, &["--table", "notes"]).spawn();
    timed.subscribed().await;
    headed.line_with("subscribed to ").await;
    // Nothing more is written to it: that the pipe is closed is reason enough.
    drop(headed.take_stdout());
    let ended = headed.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains("error"), "{}", ended.stderr);
    let (ended, lines) = timed.ended().await;
    assert_eq!((ended.code, lines.len()), (Some(0), 0), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_read_keeps_nobody_from_stopping_it() {
    let stage = Stage::with(NOTES).await;
    let (url, token) = (stage.relay.base(), token::user(ALICE));
    let mut process = tail(&url, &token, &["--json"]).spawn();
    let _unread = process.take_stdout();
    process.line_with("subscribed to ").await;
    let mut reading = Tail::start(&url, &token, &["--json", "--count", "1000"]);
    reading.subscribed().await;
    // More than a pipe and the queue before it hold.
    stage.exec("insert into public.marks (note) select repeat('x', 2000) from generate_series(1, 1000)").await;
    let (ended, lines) = reading.ended().await;
    assert_eq!((ended.code, lines.len()), (Some(0), 1000), "{}", ended.stderr);
    process.signal(Signal::SIGTERM);
    let ended = process.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_comes_back_after_the_relay_was_away() {
    let pg = TestPg::start().await;
    pg.exec(NOTES).await;
    let mut relay = RelayProcess::start(&pg).await;
    let mut tail = Tail::start(&relay.base(), &token::user(ALICE), &["--table", "notes"]);
    tail.subscribed().await;
    pg.exec(&note(1, ALICE, "a")).await;
    assert!(tail.line().await.expect("a line").contains("id=1"));
    for (round, id) in [(1, 2), (2, 3)] {
        if round == 1 {
            relay.stop().await;
        } else {
            relay.kill().await;
        }
        tail.process.line_with("trying again").await;
        pg.exec(&note(id, ALICE, "missed")).await;
        relay.start_again().await;
        tail.process.line_with("subscribed again; going on after the last change").await;
        pg.exec(&note(id + 10, ALICE, "a")).await;
        for id in [id, id + 10] {
            assert!(tail.line().await.expect("a line").contains(&format!("id={id}")));
        }
    }
    tail.process.signal(Signal::SIGTERM);
    let (ended, rest) = tail.ended().await;
    assert_eq!((ended.code, rest.len()), (Some(0), 0), "{}", ended.stderr);
    assert!(ended.stderr.contains("1012"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_begins_where_it_is_told_to_and_shows_where_it_ended() {
    let stage = Stage::with(NOTES).await;
    let (url, token) = (stage.relay.base(), token::user(ALICE));
    let mut live = Tail::start(&url, &token, &["--table", "notes", "--cursors", "--count", "2"]);
    live.subscribed().await;
    for id in [1, 2] {
        stage.exec(&note(id, ALICE, "a")).await;
    }
    let (ended, lines) = live.ended().await;
    let cursors: Vec<&str> = lines.iter().filter_map(|line| Some(line.split_once("  @")?.1)).collect();
    assert_eq!(cursors.len(), 2, "{lines:#?}");
    assert!(ended.stderr.contains(&format!("last cursor {}", cursors[1])), "{}", ended.stderr);
    for (place, expected) in [(cursors[0], &["id=2"][..]), ("10m", &["id=1", "id=2"])] {
        let count = expected.len().to_string();
        let tail = Tail::start(&url, &token, &["--table", "notes", "--since", place, "--count", &count]);
        let (ended, lines) = tail.ended().await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(lines.iter().zip(expected).all(|(line, id)| line.contains(id)), "{place}: {lines:#?}");
        assert!(lines.iter().all(|line| !line.contains('@')), "{lines:#?}");
    }
    let (ended, _) = Tail::start(&url, &token, &["--table", "notes", "--since", "nonsense"]).ended().await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("`since`") && ended.stderr.contains("such as 10m"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_relay_has_to_say_goes_to_standard_error() {
    let secret =
        "create table public.closed (id int primary key); alter publication supabase_realtime add table public.closed;";
    let stage = Stage::with(secret).await;
    let mut tail = Tail::start(&stage.relay.base(), &token::user(ALICE), &["--table", "closed"]);
    tail.process.line_with("relay error: Error 401: Unauthorized").await;
    tail.process.signal(Signal::SIGINT);
    let (ended, lines) = tail.ended().await;
    assert_eq!((ended.code, lines.len()), (Some(0), 0), "{}", ended.stderr);
}
