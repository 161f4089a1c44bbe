//! A planned restart: the relay is told to end while rows come in, ends in time whatever its clients do, and a new process takes
//! over. Stock clients that name a device come back by themselves and have missed nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::{database, mark, watching};
use crate::support::phone::{Phone, Version};
use crate::support::sdk::{SdkPhone, Stock};
use crate::support::token::{self, ALICE};
use crate::support::{Change, RelayProcess};

/// From SIGTERM to the end of the process.
const IN_TIME: Duration = Duration::from_secs(10);
/// Between two rows.
const PACE: Duration = Duration::from_millis(25);

/// Rows in transactions of their own, until told to stop; how many there are.
async fn write(client: tokio_postgres::Client, stop: Arc<AtomicBool>) -> i64 {
    let mut number = 0;
    let mut tick = tokio::time::interval(PACE);
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        number += 1;
        let sql = "insert into public.notifications (user_id, kind) values ($1::text::uuid, $2)";
        client.execute(sql, &[&ALICE, &number.to_string()]).await.expect("a row");
    }
    number
}

/// The rows' numbers, each once, in the order in which they came first.
fn numbers(changes: &[Change]) -> Vec<i64> {
    let mut numbers: Vec<i64> = Vec::new();
    for change in changes.iter().filter(|change| change.table() == "notifications") {
        let number = change.record()["kind"].as_str().and_then(|kind| kind.parse().ok()).expect("a number");
        if !numbers.contains(&number) {
            numbers.push(number);
        }
    }
    numbers
}

/// Clients that do nothing of what they should: one never reads, one is in the middle of a request, one has said nothing.
async fn nuisances(relay: &RelayProcess) -> (Phone, Vec<TcpStream>) {
    let mut deaf = Phone::connect(&relay.base(), &token::user(ALICE), Version::V2).await;
    deaf.subscribe("room", &watching(&["notifications"])).await;
    let mut others = Vec::new();
    for head in ["GET /realtime/v1/websocket?vsn=2.0.0 HTTP/1.1\r\nhost: relay\r\n", ""] {
        let mut stream = TcpStream::connect(relay.addr()).await.expect("a connection");
        stream.write_all(head.as_bytes()).await.expect("it is taken");
        others.push(stream);
    }
    (deaf, others)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_restart_ends_in_time_and_stock_clients_with_a_device_miss_nothing() {
    let pg = database("").await;
    let mut relay = RelayProcess::start(&pg).await;
    let entries = watching(&["notifications"]);
    let token = token::user(ALICE);
    let mut phones = Vec::new();
    for stock in [Stock::JavaScript, Stock::Python] {
        let connect = match stock {
            Stock::Python => {
                json!({ "do": "connect", "url": format!("{}/device/python-1", relay.base()), "token": token })
            }
            _ => json!({ "do": "connect", "url": relay.base(), "token": token, "params": { "device": "js-1" } }),
        };
        let mut phone = SdkPhone::connect_as(stock, &connect).await;
        phone.subscribe("room", &entries).await;
        phones.push((stock, phone, Vec::new()));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writer = rowcast::task::spawn("writer", write(pg.client().await, stop.clone()));
    for round in 0..2 {
        let nuisances = nuisances(&relay).await;
        let before = format!("before {round}");
        mark(&pg, &before).await;
        for (_, phone, changes) in &mut phones {
            changes.extend(phone.changes_before(&before).await);
        }
        let told = Instant::now();
        assert!(relay.stop().await.success(), "{}", relay.log());
        assert!(told.elapsed() < IN_TIME, "{:?}\n{}", told.elapsed(), relay.log());
        drop(nuisances);
        relay.start_again().await;
    }
    stop.store(true, Ordering::Relaxed);
    let count = writer.await.expect("rows");
    mark(&pg, "end").await;
    let all: Vec<i64> = (1..=count).collect();
    for (stock, mut phone, mut changes) in phones {
        changes.extend(phone.changes_before("end").await);
        assert_eq!(numbers(&changes), all, "{stock:?}");
    }
    assert!(relay.stop().await.success(), "{}", relay.log());
}
