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
    let deadline = Instant::now() + std::time::Duration::from_secs(5);
    while Instant::now() < deadline {
        assert!(!reading.is_finished(), "it was ended");
        assert!(get(relay.addr(), "/readyz").await.is_some_and(|(status, _)| status == 503));
        pause().await;
    }
    // It looks once a second, and how long the other one has been there is another number each time.
    assert_eq!(relay.log().matches("changes are not streaming").count(), 1, "{}", relay.log());
    reading.abort();
    relay.readiness(200).await;
}

/// It believed that it still knew what devices have received: one that had first come to the other relay was new to it, and what
/// was committed in between never came, untold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_gets_its_slot_back_knows_the_devices_of_the_one_that_had_it() {
    let pg = with_marks().await;
    let first = program(&pg).await;
    until(&pg, "select count(*) = 1 from rowcast.frontier_owners").await;
    let mut second = RelayProcess::new(&pg);
    second.spawn();
    second.logged("slot rowcast is read by another session, pid ").await;
    first.freeze();
    pg.exec("select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = 'rowcast' and active")
        .await;
    second.readiness(200).await;
    first.thaw();
    first.logged("slot rowcast is read by another session, pid ").await;
    let mut phone = device(&second).await;
    phone.subscribe("room", &marks()).await;
    mark(&pg, "one").await;
    next_mark(&mut phone, "one").await;
    drop(phone);
    assert!(second.stop().await.success(), "{}", second.log());
    mark(&pg, "missed").await;
    first.readiness(200).await;
    // It has come to what was missed.
    let mut observer = watcher(&first.base()).await;
    mark(&pg, "in the log").await;
    observer.changes_before("in the log").await;
    let mut phone = device(&first).await;
    assert_eq!(phone.join("room", &marks()).await["status"], "ok");
    // Its place is in the history of the other one.
    gap(&mut phone).await;
}

/// A client of a device that has never been anywhere else.
async fn device(relay: &RelayProcess) -> Phone {
    Phone::connect(&format!("{}/device/new", relay.base()), &token::user(token::ALICE), Version::V2).await
}

/// It was refused for as long as the slot could not be made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_is_let_in_while_nobody_can_have_the_slot() {
    let pg = with_marks().await;
    let relay = program(&pg).await;
    let writer = pg.client().await;
    writer.batch_execute("begin; insert into public.marks (note) values ('old')").await.expect("written");
    pg.exec(DROP_SLOT).await;
    relay.logged("waited").await;
    relay.readiness(503).await;
    let mut phone = device(&relay).await;
    assert_eq!(phone.join("room", &marks()).await["status"], "ok");
    writer.batch_execute("commit").await.expect("committed");
    gap(&mut phone).await;
}
