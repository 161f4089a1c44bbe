//! Anybody may forge a hint that rules have changed. A flood of them costs readings of the catalog, and no more than a bounded
//! number; rows keep flowing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::time::{Duration, Instant, interval};

use super::{CONTENT, mark, prepared, watching};
use crate::support::{Relay, token};

const PER_SECOND: u64 = 1000;
const FORGERS: u64 = 4;
const ROWS: u32 = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_forged_hints_a_second_do_not_keep_rows_from_their_readers() {
    let (pg, users) = prepared().await;
    pg.exec("create role forger login").await;
    let relay = Relay::start(&pg).await;
    let mut phone = relay.phone(&token::user(&users[0])).await;
    phone.subscribe("room", &watching(&CONTENT)).await;
    let (stop, forged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut forgers = Vec::new();
    for _ in 0..FORGERS {
        let (client, stop, forged) = (pg.client_as("forger").await, stop.clone(), forged.clone());
        forgers.push(rowcast::task::spawn("forger", async move {
            let mut pace = interval(Duration::from_micros(1_000_000 * FORGERS / PER_SECOND));
            while !stop.load(Ordering::SeqCst) {
                pace.tick().await;
                // Each in a transaction of its own.
                client
                    .batch_execute("select pg_logical_emit_message(true, 'rowcast.rules', '')")
                    .await
                    .expect("anybody may");
                forged.fetch_add(1, Ordering::SeqCst);
            }
        }));
    }
    let reads = relay.metric("rowcast_catalog_reads_total", "").await;
    let began = Instant::now();
    let mut times = Vec::new();
    for _ in 0..ROWS {
        let written = Instant::now();
        pg.exec("insert into docs (team_id) values (6)").await;
        assert_eq!(phone.next_change().await.table(), "docs");
        times.push(written.elapsed());
    }
    let (lasted, forged) = (began.elapsed(), forged.load(Ordering::SeqCst));
    stop.store(true, Ordering::SeqCst);
    let reads = relay.metric("rowcast_catalog_reads_total", "").await - reads;
    for forger in forgers {
        forger.await.expect("it does not panic");
    }
    mark(&pg, "end").await;
    phone.expect_nothing_before("end").await;
    times.sort_unstable();
    println!(
        "{forged} forged hints in {lasted:.1?}, {reads} readings of the catalog; a row took {:.1?}, p99 {:.1?}",
        times[times.len() / 2],
        times[times.len() * 99 / 100]
    );
    // The hub asks at most once in 25 ms, and the poll goes on besides.
    assert!(reads <= 45.0 * lasted.as_secs_f64() + 5.0, "{reads} readings in {lasted:?}");
}
