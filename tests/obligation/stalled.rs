//! A thousand phones that do not read, at full rate: the relay's memory has a ceiling, which is so much for each of them and
//! not what was written.
//!
//! `ROWCAST_STALLED_READERS` and `ROWCAST_STALLED_SECONDS` make it larger; `--release` gives figures.

use std::net::SocketAddr;

use futures_util::SinkExt as _;
use serde_json::json;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::number;
use crate::load::phones::raise_file_limit;
use crate::load::usage::resident_bytes;
use crate::support::phone::PATIENCE;
use crate::support::{Phone, RelayProcess, TestPg, Version, token};

const SCHEMA: &str = "
    create table public.letters (id bigint generated always as identity primary key, user_id uuid not null, body text not null);
    alter table public.letters enable row level security;
    create policy own on public.letters for select to authenticated using (user_id = (select auth.uid()));
    grant select on public.letters to authenticated;
    alter publication supabase_realtime add table public.letters;";
/// Of each connection.
const OUTBOX: u64 = 64 << 10;
/// What a connection costs besides: its tasks, its buffers, and the rows on their way to it.
const EACH: u64 = 96 << 10;
/// What the relay needs for itself: the tail of the log that it keeps in memory, batches on their way to the shards.
const RELAY: u64 = 160 << 20;
/// Of a row.
const BODY: usize = 24_000;
/// On a busy machine.
const LONGEST: Duration = Duration::from_secs(40);
/// Rows of one transaction.
const BATCH: usize = 100;
/// It hangs up and comes again after so long, as a phone does that is told nothing.
const AGAIN: Duration = Duration::from_secs(4);

/// Joins, and never reads.
async fn stalled(addr: SocketAddr, token: String) {
    let connect = async || -> Option<WebSocketStream<TcpStream>> {
        let tcp = TcpSocket::new_v4().ok()?;
        tcp.set_recv_buffer_size(4096).ok()?;
        let line = tcp.connect(addr).await.ok()?;
        let url = format!("ws://{addr}/realtime/v1/websocket?apikey={token}&vsn=2.0.0");
        let (mut socket, _) = client_async(url, line).await.ok()?;
        let entry = json!({ "event": "*", "schema": "public", "table": "letters" });
        let payload = json!({ "config": { "postgres_changes": [entry] }, "access_token": token });
        let join = json!(["1", "1", "realtime:room", "phx_join", payload]).to_string();
        socket.send(Message::text(join)).await.ok()?;
        Some(socket)
    };
    loop {
        let socket = timeout(PATIENCE, connect()).await;
        tokio::time::sleep(AGAIN).await;
        drop(socket);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_has_a_ceiling_while_a_thousand_phones_do_not_read() {
    raise_file_limit();
    let readers = usize::try_from(number("ROWCAST_STALLED_READERS").unwrap_or(1000)).expect("small");
    let lasts = Duration::from_secs(number("ROWCAST_STALLED_SECONDS").unwrap_or(8));
    let pg = TestPg::start().await;
    pg.exec(SCHEMA).await;
    let mut relay = RelayProcess::new(&pg);
    relay.set("ROWCAST_OUTBOX_BYTES", &OUTBOX.to_string());
    relay.start_again().await;
    let users: Vec<String> = (0..readers).map(|n| format!("00000000-0000-4000-8000-{n:012x}")).collect();
    let healthy = "11111111-0000-4000-8000-000000000000";
    let entries = json!([{ "event": "*", "schema": "public", "table": "letters" }]);
    let mut phone = Phone::connect(&relay.base(), &token::user(healthy), Version::V2).await;
    phone.subscribe("room", &entries).await;
    let addr = relay.addr();
    let phones: Vec<JoinHandle<()>> =
        users.iter().map(|user| rowcast::task::spawn("stalled", stalled(addr, token::user(user)))).collect();
    // All are there at least once.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let empty = resident_bytes(relay.pid());

    let client = pg.client().await;
    let sql = "insert into public.letters (user_id, body) select u::uuid, repeat('x', $2) from unnest($1::text[]) u";
    let (begun, mut most, mut rows, mut got) = (Instant::now(), empty, 0, 0);
    let mut some = users.chunks(BATCH).cycle();
    let ceiling = empty.max(RELAY) + readers as u64 * (OUTBOX + EACH);
    // A relay that kept what it could not send would be above the ceiling.
    while begun.elapsed() < lasts || (rows * BODY as u64) < 2 * ceiling && begun.elapsed() < LONGEST {
        let owners = some.next().expect("there is always another");
        rows += client.execute(sql, &[&owners, &i32::try_from(BODY).expect("small")]).await.expect("rows");
        client.execute(sql, &[&vec![healthy], &1]).await.expect("a row");
        most = most.max(resident_bytes(relay.pid()));
        // Meanwhile, who reads is served.
        got += phone.changes_so_far().len();
    }
    let took = begun.elapsed();
    let owed = u64::try_from(readers.div_ceil(BATCH)).expect("small").min(rows);
    let last = "last";
    let end = "insert into public.letters (user_id, body) values ($1::text::uuid, $2)";
    client.execute(end, &[&healthy, &last]).await.expect("a row");
    loop {
        let change = phone.next_change().await;
        most = most.max(resident_bytes(relay.pid()));
        if change.record()["body"] == last {
            break;
        }
        got += 1;
    }
    for phone in phones {
        phone.abort();
    }
    println!(
        "{readers} stalled readers, {rows} rows ({} MiB) in {took:.1?}: resident {} MiB at first, at most {} MiB, ceiling {} MiB; \
         who read got {got}",
        (rows * BODY as u64) >> 20,
        empty >> 20,
        most >> 20,
        ceiling >> 20
    );
    assert!(owed > 0 && got > 0);
    assert!(most < ceiling, "{most} bytes");
    assert!(relay.stop().await.success(), "{}", relay.log());
}
