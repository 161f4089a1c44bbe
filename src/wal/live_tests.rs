//! The stream against a real server: what `pgoutput` and slots really do.

mod rows;
mod rules;
mod session;
mod slots;

use std::sync::Arc;
use std::time::Duration;

use crate::change::{Change, Item, Lsn, OldRow, Transaction, Tuple, Value};
use crate::metrics::Metrics;
use crate::testing::{PATIENCE, TestServer};

use super::*;

/// A configuration with a slot `s1`, quick enough for tests.
fn wal_config(server: &TestServer, publications: &[&str]) -> WalConfig {
    let publications = publications.iter().map(|p| (*p).into()).collect();
    let mut config = WalConfig::new(server.pg(""), "s1", publications, server.home().join("spill"));
    config.status_interval = Duration::from_millis(100);
    config
}

/// A session in a second database, `other`.
async fn other_database(server: &TestServer) -> tokio_postgres::Client {
    server.sql("create database other").await;
    server.pg("dbname=other").connect().await.expect("connected")
}

/// Makes the slot and starts the stream.
async fn stream(server: &TestServer, config: &WalConfig) -> Stream {
    prepare(&server.client().await, config).await.expect("prepared");
    connect(config, Lsn::ZERO).await.expect("connected")
}

async fn connect(config: &WalConfig, start: Lsn) -> Result<Stream, WalError> {
    Stream::connect(config, start, &Arc::new(Metrics::new())).await
}

async fn received(stream: &mut Stream) -> Result<Received, WalError> {
    tokio::time::timeout(PATIENCE, stream.next()).await.expect("something comes in time")
}

/// The next transaction, or the error that came instead.
async fn try_transaction(stream: &mut Stream) -> Result<Arc<Transaction>, WalError> {
    loop {
        if let Received::Transaction(transaction) = received(stream).await? {
            return Ok(transaction);
        }
    }
}

async fn transaction(stream: &mut Stream) -> Arc<Transaction> {
    try_transaction(stream).await.expect("a transaction")
}

/// The items of the next transaction, one text each.
async fn shown(stream: &mut Stream) -> Vec<String> {
    show(&*transaction(stream).await)
}

/// `U public.t K[1,∅] N[2,b]`; `∅` is NULL, `?` was not sent, long texts show their length.
fn show(transaction: &Transaction) -> Vec<String> {
    transaction.iter().map(|item| show_item(&item.expect("an item"))).collect()
}

fn show_item(item: &Item) -> String {
    match item {
        Item::Row(row) => {
            let name = format!("{}.{}", row.relation.schema, row.relation.table);
            match &row.change {
                Change::Insert { new } => format!("I {name} N{}", cells(new)),
                Change::Update { new, old: None } => format!("U {name} N{}", cells(new)),
                Change::Update { new, old: Some(old) } => format!("U {name} {} N{}", show_old(old), cells(new)),
                Change::Delete { old } => format!("D {name} {}", show_old(old)),
            }
        }
        Item::Truncate(t) => {
            let tables: Vec<&str> = t.relations.iter().map(|r| &r.table[..]).collect();
            format!("T {} {} {}", tables.join(","), t.cascade, t.restart_identity)
        }
        Item::Message(m) => format!("M {} {}", m.prefix, String::from_utf8_lossy(&m.content)),
    }
}

fn show_old(old: &OldRow) -> String {
    match old {
        OldRow::Full(tuple) => format!("O{}", cells(tuple)),
        OldRow::KeyOnly(tuple) => format!("K{}", cells(tuple)),
    }
}

fn cells(tuple: &Tuple) -> String {
    let cell = |value| match value {
        Value::Null => "∅".into(),
        Value::Unchanged => "?".into(),
        Value::Text(text) if text.len() > 60 => format!("<{}>", text.len()),
        Value::Text(text) => String::from_utf8_lossy(text).into_owned(),
    };
    let cells: Vec<String> = tuple.values().map(cell).collect();
    format!("[{}]", cells.join(","))
}
