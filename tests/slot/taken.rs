//! Somebody else reads the slot.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::TcpListener;

use super::*;
use crate::support::relay::get;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_relay_waits_refuses_clients_and_takes_over_when_the_first_ends() {
    let pg = with_marks().await;
    let mut first = program(&pg).await;
    let mut second = RelayProcess::new(&pg);
    second.set("ROWCAST_SLOT_GRACE", "1s");
    second.set("ROWCAST_STARTUP_TIMEOUT", "1s");
    second.spawn();
    let line = second.logged("slot rowcast is read by another session, pid ").await;
    assert!(line.contains("application rowcast") && line.contains("takes over when that one ends"), "{line}");
    second.logged("without the replication slot for too long").await;
    second.readiness(503).await;
    assert_eq!(handshake(second.addr()).await, "503");
    // The first is not disturbed.
    let mut phone = watcher(&first.base()).await;
    mark(&pg, "one").await;
    next_mark(&mut phone, "one").await;
    assert!(first.stop().await.success(), "{}", first.log());
    assert_eq!(phone.close_code().await, Some(1012));
    second.readiness(200).await;
    let mut phone = watcher(&second.base()).await;
    mark(&pg, "two").await;
    next_mark(&mut phone, "two").await;
    // Its folder is another: what the first one had can't be replayed here, and that is said.
    second.logged("a new history begins").await;
    // And the first, back with its own folder, waits for its turn in the same way.
    first.spawn();
    first.logged("slot rowcast is read by another session, pid ").await;
    second.kill().await;
    first.readiness(200).await;
    first.logged("the log folder and the slot do not belong together").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_relay_on_the_same_folder_is_refused_by_the_folder() {
    let pg = with_marks().await;
    let relay = program(&pg).await;
    let mut second = RelayProcess::new(&pg);
    second.set("ROWCAST_DATA_DIR", relay.data_dir().to_str().expect("text"));
    second.spawn();
    assert_eq!(second.end_by_itself().await, Some(1), "{}", second.log());
    let text = format!("is in use by process {}", relay.pid());
    assert!(second.log().contains(&text), "{}", second.log());
}

/// Between relay and server: forwards until it is frozen; then the server's half stays open, and nobody reads it.
struct Line {
    port: u16,
    frozen: Arc<AtomicBool>,
}

impl Line {
    async fn to(pg: &TestPg) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (port, target) = (listener.local_addr().expect("an address").port(), pg.port());
        let frozen = Arc::new(AtomicBool::new(false));
        let shared = frozen.clone();
        drop(rowcast::task::spawn("line", async move {
            while let Ok((client, _)) = listener.accept().await {
                drop(rowcast::task::spawn("connection", forward(client, target, shared.clone())));
            }
        }));
        Line { port, frozen }
    }

    /// All connections of now: the relay sees them end, the server does not.
    fn freeze(&self) {
        self.frozen.store(true, Ordering::Release);
    }
}

async fn forward(mut client: TcpStream, target: u16, frozen: Arc<AtomicBool>) {
    let was_frozen = frozen.load(Ordering::Acquire);
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let freezing = async {
        while was_frozen || !frozen.load(Ordering::Acquire) {
            pause().await;
        }
    };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => return,
        () = freezing => {}
    }
    drop(client);
    // As long as the test lasts.
    std::future::pending::<()>().await;
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_session_on_a_dead_line_is_ended_and_nothing_is_lost() {
    let pg = with_marks().await;
    let line = Line::to(&pg).await;
    let mut relay = RelayProcess::new(&pg);
    relay.set("DATABASE_URL", &pg.url().replace(&pg.port().to_string(), &line.port.to_string()));
    relay.start_again().await;
    let mut phone = watcher(&relay.base()).await;
    mark(&pg, "before").await;
    next_mark(&mut phone, "before").await;
    line.freeze();
    let said = relay.logged("our own session from before still holds the slot").await;
    assert!(said.contains("WARN"), "{said}");
    mark(&pg, "after").await;
    next_mark(&mut phone, "after").await;
    relay.readiness(200).await;
    assert!(!relay.log().contains("a new history begins: what"), "{}", relay.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strangers_session_is_named_and_left_alone() {
    let pg = with_marks().await;
    let mut relay = program(&pg).await;
    stop(&pg, &mut relay).await;
    // Another program of the same login, under the same name.
    let spill = tempfile::tempdir().expect("a folder");
    let config = rowcast::pg::PgConfig::from_url(&pg.url()).expect("a URL");
    let publications = vec!["supabase_realtime".to_owned()];
    let wal = rowcast::wal::WalConfig::new(config, "rowcast", publications, spill.path().into());
    let metrics = Arc::new(rowcast::metrics::Metrics::new());
    let mut stranger =
        rowcast::wal::Stream::connect(&wal, rowcast::change::Lsn::ZERO, &metrics).await.expect("a stream");
    let reading = rowcast::task::spawn("stranger", async move {
        loop {
            if let Err(error) = stranger.next().await {
                return error;
            }
        }
    });
    relay.spawn();
    relay.logged("slot rowcast is read by another session, pid ").await;
    // Longer than our own would be left in peace.
    relay.logged("without the replication slot for too long").await;
    let before = log_lines(&relay);
    let deadline = Instant::now() + std::time::Duration::from_secs(5);
    while Instant::now() < deadline {
        assert!(!reading.is_finished(), "it was ended");
        assert!(get(relay.addr(), "/readyz").await.is_some_and(|(status, _)| status == 503));
        pause().await;
    }
    assert!(log_lines(&relay) <= before + 8, "no flood of lines:\n{}", relay.log());
    reading.abort();
    relay.readiness(200).await;
}

fn log_lines(relay: &RelayProcess) -> usize {
    relay.log().lines().count()
}
