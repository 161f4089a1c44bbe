//! The server goes and comes back.

use std::time::Duration;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_the_server_loses_nothing_and_no_client_notices() {
    let mut pg = with_marks().await;
    let relay = RelayProcess::start(&pg).await;
    let mut phone = watcher(&relay.base()).await;
    for round in 0..3 {
        mark(&pg, &format!("before {round}")).await;
        pg.kill().await;
        pg.start_again().await;
        mark(&pg, &format!("after {round}")).await;
        next_mark(&mut phone, &format!("before {round}")).await;
        next_mark(&mut phone, &format!("after {round}")).await;
    }
    phone.heartbeat().await;
    assert!(!relay.log().contains("a new history begins: what"), "{}", relay.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_shutdown_with_the_relay_attached_does_not_hang_and_ends_with_everything_confirmed() {
    let mut pg = with_marks().await;
    let relay = program(&pg).await;
    let mut phone = watcher(&relay.base()).await;
    for note in 0..50 {
        mark(&pg, &note.to_string()).await;
    }
    let began = Instant::now();
    pg.stop().await;
    assert!(began.elapsed() < Duration::from_secs(15), "the shutdown took {:?}", began.elapsed());
    // Longer than the grace: clients are sent to where they may be served.
    assert_eq!(phone.close_code().await, Some(1012));
    relay.readiness(503).await;
    relay.logged("trying again").await;
    pg.start_again().await;
    relay.readiness(200).await;
    let mut phone = watcher(&relay.base()).await;
    mark(&pg, "after").await;
    phone.changes_before("after").await;
    assert!(!relay.log().contains("a new history begins: what"), "{}", relay.log());
}

/// The server waits at its end until its readers have everything; one that can take nothing must let go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_shutdown_does_not_wait_for_a_relay_whose_disk_is_full() {
    use std::sync::Arc;

    use rowcast::app::App;
    use rowcast::clock::Clock;
    use rowcast::config::Config;
    use rowcast::ingest::IngestState;
    use rowcast::log::RealFiles;
    use rowcast::log::testing::FullDisk;

    let mut pg = with_marks().await;
    let data = tempfile::tempdir().expect("a folder");
    let mut config = Config::new(&pg.url(), token::SECRET, data.path()).expect("a configuration");
    config.ingest.tend_interval = Duration::from_millis(500);
    let full = Arc::new(FullDisk::new(Arc::new(RealFiles)));
    let mut running = Box::pin(App::build_on(config, full.clone(), Clock::system())).await.expect("built").spawn();
    running.ready(PATIENCE).await.expect("ready");
    mark(&pg, "before").await;
    full.set_room(Some(0));
    mark(&pg, "waits").await;
    let deadline = Instant::now() + PATIENCE;
    while !matches!(running.state(), IngestState::Buffering(_)) {
        assert!(Instant::now() < deadline, "{:?}", running.state());
        pause().await;
    }
    let began = Instant::now();
    pg.stop().await;
    assert!(began.elapsed() < Duration::from_secs(15), "the shutdown took {:?}", began.elapsed());
    full.set_room(None);
    pg.start_again().await;
    running.ready(PATIENCE).await.expect("ready again");
    running.kill().await;
}
