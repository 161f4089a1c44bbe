//! What a question costs: how often the network is crossed, and how long that takes when crossing it takes a while.
//!
//! `cargo test --lib policy::tests::trips -- --nocapture` prints the times.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_postgres::config::Host;

use super::support::*;
use crate::metrics::Metrics;
use crate::pg::PgConfig;
use crate::policy::{AskConfig, Asker};
use crate::testing::TestDatabase;

/// A way to the server on which every byte takes this long, each way, and which counts how often the client spoke after it
/// had heard something.
async fn far(database: &TestDatabase, user: &str, delay: Duration) -> (PgConfig, Arc<AtomicU64>) {
    let mut config = database.config(user);
    let [Host::Unix(folder)] = config.connection.get_hosts() else { panic!("a socket") };
    let socket = folder.join(format!(".s.PGSQL.{}", config.connection.get_ports().first().copied().unwrap_or(5432)));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let trips = Arc::new(AtomicU64::new(0));
    let counted = trips.clone();
    drop(crate::task::spawn("far", async move {
        while let Ok((client, _)) = listener.accept().await {
            client.set_nodelay(true).expect("no delay of its own");
            let server = UnixStream::connect(&socket).await.expect("the server");
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            let heard = Arc::new(AtomicU64::new(1));
            let (said, answered) = (heard.clone(), heard);
            let trips = counted.clone();
            drop(crate::task::spawn(
                "there",
                carry(from_client, to_server, delay, move || {
                    trips.fetch_add(said.swap(0, Ordering::SeqCst), Ordering::SeqCst);
                }),
            ));
            drop(crate::task::spawn(
                "back",
                carry(from_server, to_client, delay, move || answered.store(1, Ordering::SeqCst)),
            ));
        }
    }));
    let mut connection = tokio_postgres::Config::new();
    connection.host("127.0.0.1").port(port).user(user);
    connection.dbname(config.connection.get_dbname().expect("a database"));
    config.connection = connection;
    (config, trips)
}

async fn carry(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin + Send + 'static,
    delay: Duration,
    passed: impl Fn(),
) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
    drop(crate::task::spawn("delay", async move {
        while let Some((at, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    }));
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        passed();
        if sender.send((Instant::now() + delay, bytes[..count].to_vec())).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_question_crosses_the_network_once_whatever_the_number_of_principals() {
    let database = TestDatabase::new().await;
    database
        .run(
            "create table t (id int primary key, user_id uuid, body text); alter table t enable row level security;
             create policy p on t to authenticated using (user_id = auth.uid() and length(body) > 0);
             alter publication supabase_realtime add table t",
        )
        .await;
    let mut database = database;
    let bound = bind(&plan(&mut database, "t", "authenticated").await);
    let (far, trips) = far(&database, "plain_relay", Duration::from_millis(2)).await;
    let config = || AskConfig { deadline: Duration::from_secs(20), ..AskConfig::default() };
    let metrics = Arc::new(Metrics::new());
    let near = Asker::new(database.asking_pool("plain_relay"), config(), metrics.clone());
    let far = Asker::new(far.asking_pool(4).expect("a pool"), config(), metrics);
    for count in [1, 10, 100] {
        let users: Vec<_> = (0..count).map(|n| user(&format!("a0eebc99-9c0b-4ef8-bb6d-{n:012}"))).collect();
        let mut took = Vec::new();
        let mut crossed = 0;
        for (asker, rounds) in [(&near, 40), (&far, 10)] {
            // The first one connects.
            asker.judge(&question(&bound, insert(texts(&[Some("1"), Some(ALICE), Some("x")])), &users)).await;
            let before = trips.load(Ordering::SeqCst);
            let started = Instant::now();
            for _ in 0..rounds {
                asker.judge(&question(&bound, insert(texts(&[Some("1"), Some(ALICE), Some("x")])), &users)).await;
            }
            took.push(started.elapsed().as_secs_f64() * 1000.0 / f64::from(rounds));
            crossed = (trips.load(Ordering::SeqCst) - before) / u64::from(rounds as u32);
        }
        assert_eq!(crossed, 1, "for {count} principals");
        println!(
            "{count:4} principals: {:7.2} ms near, {:7.2} ms at 4 ms a round trip, {crossed} round trips",
            took[0], took[1]
        );
    }
}
