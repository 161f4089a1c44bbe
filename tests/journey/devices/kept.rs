//! What the table has, when the server is down or crashes, and when slots are given up.

use super::super::furnish;
use super::*;
use crate::support::pg::TestPgOptions;

/// The commit of its first place was not waited for, and the answer was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_whose_first_join_was_answered_right_before_the_database_crashed_loses_nothing() {
    // What is committed without waiting is written once in ten seconds.
    let settings = vec![("wal_writer_delay", "10s")];
    let mut pg = TestPg::with(TestPgOptions { settings, ..TestPgOptions::default() }).await;
    furnish(&pg, "").await;
    let mut relay = RelayProcess::start(&pg).await;
    let token = token::user(ALICE);
    for round in 0..3 {
        let base = format!("{}/device/new-{round}", relay.base());
        let mut phone = Phone::connect(&base, &token, Version::V2).await;
        let reply = phone.join("room", &watching(&["notifications"])).await;
        pg.kill().await;
        assert_eq!(reply["status"], "ok", "{reply}");
        relay.kill().await;
        drop(phone);
        pg.start_again().await;
        let kind = format!("missed {round}");
        pg.exec(&notify(ALICE, &kind)).await;
        relay.start_again().await;
        let mut phone = Phone::connect(&base, &token, Version::V2).await;
        phone.subscribe("room", &watching(&["notifications"])).await;
        mark(&pg, &kind).await;
        assert_eq!(kinds(&phone.changes_before(&kind).await), [&*kind]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_kept_for_a_slot_that_is_gone_is_removed_when_it_is_too_old_for_anybody() {
    let pg = database("").await;
    let keep = |slot: &str, device: &str, hours: u32, count: u32| {
        format!(
            "insert into rowcast.frontiers (slot, owner, device, what, tab, anonymous, epoch, lsn, ordinal, departed, saved_at) \
             select '{slot}', '\\x00', '{device}', '\\x00', n, false, 1, '0/1', 0, false, now() - interval '{hours} hours' \
             from generate_series(1, {count}) n;"
        )
    };
    let rows = [
        keep("gone", "old", 49, 25_000),
        keep("gone lately", "old", 49, 2),
        keep("gone lately", "new", 47, 1),
        keep("there", "old", 49, 3),
        "select pg_create_physical_replication_slot('there')".to_owned(),
    ];
    pg.exec(&rows.concat()).await;
    let _relay = RelayProcess::start(&pg).await;
    let client = pg.client().await;
    let of = async |slot: &str| -> i64 {
        client
            .query_one("select count(*) from rowcast.frontiers where slot = $1", &[&slot])
            .await
            .expect("a row")
            .get(0)
    };
    until("they are removed", async || of("gone").await == 0).await;
    assert_eq!((of("gone lately").await, of("there").await), (3, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_receipted_while_the_database_is_down_is_saved_when_it_is_back() {
    let mut pg = database("").await;
    let mut relay = RelayProcess::start(&pg).await;
    let base = format!("{}/device/phone", relay.base());
    let token = token::user(ALICE);
    let mut phone = Phone::connect(&base, &token, Version::V2).await;
    phone.subscribe("room", &watching(&["notifications"])).await;
    // Of its first place: whatever is later comes of a receipt.
    let places = "select max(lsn)::text from rowcast.frontiers";
    let before: String = pg.client().await.query_one(places, &[]).await.expect("a row").get(0);
    pg.exec(&notify(ALICE, "seen")).await;
    assert_eq!(phone.next_change().await.record()["kind"], "seen");
    pg.stop().await;
    // Whoever reads answers Pings, and what that receipts can't be saved.
    until_reading(&mut phone, "saving fails", async || relay.log().contains("have received can't be saved")).await;
    pg.start_again().await;
    let client = pg.client().await;
    let saved = format!("select count(*) from rowcast.frontiers where lsn > '{before}'");
    let is_saved = async || client.query_one(&saved, &[]).await.expect("a row").get::<_, i64>(0) == 2;
    until_reading(&mut phone, "it is saved after all", is_saved).await;
    relay.kill().await;
    drop(phone);
    pg.exec(&notify(ALICE, "missed")).await;
    relay.start_again().await;
    let mut phone = Phone::connect(&base, &token, Version::V2).await;
    phone.subscribe("room", &watching(&["notifications"])).await;
    mark(&pg, "end").await;
    assert_eq!(kinds(&phone.changes_before("end").await), ["missed"], "neither lost nor again");
}

async fn until_reading(phone: &mut Phone, what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        phone.heartbeat().await;
        crate::support::relay::pause().await;
    }
}
