//! What can happen to a replication slot and to the server behind it; each time: what clients are told, what the operator
//! reads, and what is tried again. Real servers, the built program where its log or its end matters.

mod away;
mod blocked;
mod foreign;
mod limits;
mod lost;
mod promoted;
mod publications;
mod restarts;
mod taken;

use std::net::SocketAddr;

use away::Away;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::support::phone::PATIENCE;
use crate::support::relay::pause;
use crate::support::{Phone, RelayProcess, TestPg, Version, token};

const MARKS: &str = "create table public.marks (id bigint generated always as identity primary key, note text not null); \
     grant select on public.marks to public; \
     alter publication supabase_realtime add table public.marks;";

async fn with_marks() -> TestPg {
    let pg = TestPg::start().await;
    pg.exec(MARKS).await;
    pg
}

async fn mark(pg: &TestPg, note: &str) {
    pg.exec(&format!("insert into public.marks (note) values ('{note}')")).await;
}

fn marks() -> Value {
    json!([{ "event": "*", "schema": "public", "table": "marks" }])
}

/// A client that watches the marks.
async fn watcher(base: &str) -> Phone {
    let mut phone = Phone::connect(base, &token::user(token::ALICE), Version::V2).await;
    phone.subscribe("room", &marks()).await;
    phone
}

/// The status of a client's handshake.
async fn handshake(addr: SocketAddr) -> String {
    let path = format!("/realtime/v1/websocket?vsn=2.0.0&apikey={}", token::user(token::ALICE));
    let head = format!(
        "GET {path} HTTP/1.1\r\nhost: relay\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    let mut stream = TcpStream::connect(addr).await.expect("connected");
    stream.write_all(head.as_bytes()).await.expect("written");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.expect("an answer");
    String::from_utf8_lossy(&answer[9..]).into_owned()
}

/// A client that watches, and a program that waits only a moment before it sends its clients away.
async fn program(pg: &TestPg) -> RelayProcess {
    let mut relay = RelayProcess::new(pg);
    relay.set("ROWCAST_SLOT_GRACE", "1s");
    relay.start_again().await;
    relay
}

/// The text of the next gap notice.
async fn gap(phone: &mut Phone) -> String {
    loop {
        let system = phone.system("room").await;
        let message = system["message"].as_str().expect("a text").to_owned();
        if message.starts_with("Gap: ") {
            assert_eq!(system["status"], "error");
            return message;
        }
    }
}

/// The next mark that arrives has this note.
async fn next_mark(phone: &mut Phone, note: &str) {
    assert_eq!(phone.next_change().await.record()["note"], note);
}

/// Ends the program and waits until the server has noticed.
async fn stop(pg: &TestPg, relay: &mut RelayProcess) {
    assert!(relay.stop().await.success(), "{}", relay.log());
    until(pg, "select not active from pg_replication_slots where slot_name = 'rowcast'").await;
}

/// Waits until the query gives true.
async fn until(pg: &TestPg, sql: &str) {
    let deadline = Instant::now() + PATIENCE;
    let client = pg.client().await;
    while !client.query_one(sql, &[]).await.unwrap_or_else(|error| panic!("{error:?}: {sql}")).get::<_, bool>(0) {
        assert!(Instant::now() < deadline, "within {PATIENCE:?}: {sql}");
        pause().await;
    }
}

/// Ends whoever reads the slot and drops it before it is read again.
const DROP_SLOT: &str = "do $$ begin loop \
     perform pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = 'rowcast' and active; \
     begin perform pg_drop_replication_slot('rowcast'); exit; exception when object_in_use then null; end; \
     end loop; end $$";

/// Writes so much WAL that a slot with a limit of 2 MB is beyond it.
const MUCH_WAL: &str = "do $$ begin for i in 1..8 loop \
     perform pg_logical_emit_message(false, 'filler', repeat('x', 900000)); perform pg_switch_wal(); end loop; end $$";
