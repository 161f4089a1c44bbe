//! Publications that go, come back, or contradict each other.

use std::time::Duration;

use rowcast::clock::Clock;

use super::*;
use crate::support::Relay;

const AGAIN: &str = "create publication supabase_realtime for table public.marks";

/// Up to version 17 the slot then stands before a row that can't be decoded, for ever; from 18 on its rows are left out without
/// a word. Both are a gap, and neither needs a person once the publication is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_dropped_while_we_run_is_named_and_when_it_is_back_the_gap_is_told() {
    let pg = with_marks().await;
    let relay = program(&pg).await;
    let away = Away::from(&relay.base()).await;
    let mut phone = watcher(&relay.base()).await;
    pg.exec("drop publication supabase_realtime").await;
    mark(&pg, "lost").await;
    let line = relay.logged("has no publication").await;
    assert!(line.contains("ERROR") && line.contains("CREATE PUBLICATION"), "{line}");
    assert_eq!(phone.close_code().await, Some(1012));
    mark(&pg, "lost as well").await;
    pg.exec(AGAIN).await;
    relay.logged("the replication slot is made anew").await;
    relay.readiness(200).await;
    relay.logged("Change a publication with ALTER PUBLICATION").await;
    away.told(&relay.base(), &pg, "diverged").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_dropped_and_made_again_in_one_go_is_a_gap_for_those_who_are_there() {
    let pg = with_marks().await;
    let mut relay = RelayProcess::new(&pg);
    relay.start_again().await;
    let mut phone = watcher(&relay.base()).await;
    mark(&pg, "before").await;
    next_mark(&mut phone, "before").await;
    pg.exec("begin; drop publication supabase_realtime; insert into public.marks (note) values ('lost'); commit").await;
    mark(&pg, "lost").await;
    pg.exec(AGAIN).await;
    gap(&mut phone).await;
    relay.readiness(200).await;
    mark(&pg, "after").await;
    next_mark(&mut phone, "after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_dropped_and_made_again_while_we_are_stopped_is_a_gap_too() {
    let pg = with_marks().await;
    let mut relay = program(&pg).await;
    let away = Away::from(&relay.base()).await;
    stop(&pg, &mut relay).await;
    pg.exec("drop publication supabase_realtime").await;
    mark(&pg, "lost").await;
    pg.exec(AGAIN).await;
    relay.start_again().await;
    relay.logged("the replication slot is made anew").await;
    relay.logged("a new history begins").await;
    relay.readiness(200).await;
    away.told(&relay.base(), &pg, "diverged").await;
}

/// ALTER PUBLICATION is the right way, and is no gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_that_is_altered_is_the_same_one() {
    let pg = with_marks().await;
    let relay = program(&pg).await;
    let mut phone = watcher(&relay.base()).await;
    pg.exec("create table public.more (id int primary key)").await;
    pg.exec("alter publication supabase_realtime add table public.more; insert into public.more values (1)").await;
    mark(&pg, "after").await;
    next_mark(&mut phone, "after").await;
    assert!(!relay.log().contains("a new history begins: what"), "{}", relay.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn column_lists_that_contradict_each_other_are_named_and_the_slot_recovers_when_they_agree() {
    let pg = with_marks().await;
    let relay = program(&pg).await;
    let away = Away::from(&relay.base()).await;
    let mut phone = watcher(&relay.base()).await;
    pg.exec("alter publication supabase_realtime set table public.marks (id, note)").await;
    pg.exec("alter publication rowcast_facts add table public.marks (id)").await;
    mark(&pg, "lost").await;
    let line = relay.logged("different column lists for").await;
    assert!(line.contains("marks"), "{line}");
    assert_eq!(phone.close_code().await, Some(1012));
    pg.exec("alter publication rowcast_facts drop table public.marks").await;
    relay.logged("the replication slot is made anew").await;
    relay.readiness(200).await;
    away.told(&relay.base(), &pg, "diverged").await;
}

/// Then the relay's own table is in the stream as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_of_all_tables_disturbs_nothing() {
    let pg = with_marks().await;
    pg.exec("create publication everything for all tables").await;
    let relay = Relay::with(&pg, Clock::system(), |config| {
        config.publications = vec!["everything".into()];
        (config.ingest.tend_interval, config.ingest.token_interval) = (Duration::from_millis(50), Duration::ZERO);
    })
    .await;
    let mut phone = watcher(&relay.base()).await;
    // One is only written once the one before it was seen.
    let mut tokens = std::collections::BTreeSet::new();
    let client = pg.client().await;
    let deadline = Instant::now() + PATIENCE;
    while tokens.len() < 5 {
        let row = client.query_one("select token from rowcast.lineage", &[]).await.expect("a row");
        tokens.insert(row.get::<_, String>(0));
        assert!(Instant::now() < deadline, "{tokens:?}");
        pause().await;
    }
    mark(&pg, "after").await;
    next_mark(&mut phone, "after").await;
    assert_eq!(relay.metric("rowcast_stream_connects_total", "").await, 1.0);
}

/// The rows between are older than the publication, and can't be decoded by one who asks for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_publication_is_taken_into_the_stream_behind_what_is_older_without_a_gap() {
    let pg = with_marks().await;
    let mut relay = program(&pg).await;
    let mut phone = watcher(&relay.base()).await;
    mark(&pg, "first").await;
    next_mark(&mut phone, "first").await;
    stop(&pg, &mut relay).await;
    mark(&pg, "older").await;
    let mut open = pg.client().await;
    let writing = open.transaction().await.expect("begins");
    writing.execute("insert into public.marks (note) values ('open')", &[]).await.expect("written");
    pg.exec(
        "create table public.more (id int primary key); grant select on public.more to public; \
         create publication more for table public.more; insert into public.more values (1)",
    )
    .await;
    relay.set("ROWCAST_PUBLICATION", "supabase_realtime,more");
    relay.start_again().await;
    relay.logged("the stream gets other publications when transactions that are open now have ended").await;
    let mut phone = watcher(&relay.base()).await;
    phone.subscribe("more", &json!([{ "event": "*", "schema": "public", "table": "more" }])).await;
    // Changes flow meanwhile.
    mark(&pg, "meanwhile").await;
    next_mark(&mut phone, "meanwhile").await;
    writing.commit().await.expect("commits");
    next_mark(&mut phone, "open").await;
    relay.logged("the stream has other publications from here on").await;
    pg.exec("insert into public.more values (2)").await;
    let change = phone.next_change().await;
    assert_eq!((change.table(), &change.record()["id"]), ("more", &json!(2)));
    let log = relay.log();
    assert!(!log.contains("is made anew") && !log.contains("a new history begins: what"), "{log}");
}
