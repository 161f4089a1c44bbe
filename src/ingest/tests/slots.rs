//! Slots that were dropped, lost, taken or spoilt, and servers that are not what they were.

use super::*;
use crate::ingest::error::Holder;
use crate::ingest::notes::Reader;

impl Bench {
    /// With looks beside the stream, in quick succession.
    fn tending() -> Bench {
        let mut bench = Bench::new();
        bench.config.tend_delay = Duration::from_millis(1);
        bench.config.tend_interval = Duration::from_millis(5);
        bench.config.token_interval = Duration::from_millis(5);
        bench
    }

    /// The ingest runs and has confirmed a transaction.
    pub(super) async fn running(&self) -> Running {
        let running = self.start();
        let end = self.server.lock().written + 10;
        self.server.commit(end, 10);
        self.confirmed(end).await;
        running
    }

    /// The slot was dropped so often, and the one made after is read.
    async fn renewed(&self, drops: u32) {
        self.server.until("another slot is read", |server| server.drops == drops && server.connected).await;
    }

    /// Commits one more, which comes through.
    async fn goes_on(&self) {
        let end = self.server.lock().written + 10;
        self.server.commit(end, 10);
        self.confirmed(end).await;
    }
}

impl Running {
    fn epochs(&self, reason: &'static str) -> u64 {
        self.metrics.epochs.get_or_create(&[("reason", reason)]).get()
    }
}

#[tokio::test]
async fn a_slot_whose_wal_is_gone_is_made_anew_if_it_is_ours_and_left_alone_if_not() {
    let bench = Bench::new();
    let running = bench.running().await;
    {
        let mut server = bench.server.lock();
        server.lost = true;
        server.breaks_after = Some(0);
    }
    bench.server.commit(500, 10);
    bench.renewed(1).await;
    bench.goes_on().await;
    assert_eq!((bench.server.lock().drops, running.epochs("slot_invalidated")), (1, 1));
    running.stop().await.expect("a clean stop");

    let bench = Bench::new();
    bench.server.lock().lost = true;
    let error = bench.start().task.await.expect("no panic").expect_err("refused");
    assert!(error.advice().contains("not known to be the relay's own"), "{}", error.advice());
    assert_eq!(bench.server.lock().drops, 0);
}

#[tokio::test]
async fn a_slot_that_stands_before_what_cannot_be_decoded_is_made_anew_after_a_second_try() {
    let bench = Bench::new();
    let running = bench.running().await;
    {
        let mut server = bench.server.lock();
        server.poisoned_after = Some(server.written);
    }
    let end = bench.server.lock().written + 10;
    bench.server.commit(end, 10);
    bench.renewed(1).await;
    bench.goes_on().await;
    assert_eq!(running.epochs("slot_unreadable"), 1);
    assert_eq!(bench.server.lock().drops, 1);
    running.stop().await.expect("a clean stop");
}

#[tokio::test]
async fn a_publication_that_was_made_again_is_noticed_while_streaming_and_after_a_stop_where_the_server_says_nothing() {
    for major in [15, 18] {
        let bench = Bench::tending();
        bench.server.lock().major = major;
        let silent = major >= 18;
        let running = bench.running().await;
        bench.server.lock().publication = 7;
        if silent {
            bench.renewed(1).await;
        } else {
            let beats = bench.server.lock().written + 4;
            bench.server.until("it goes on", |server| server.confirmed > beats).await;
        }
        bench.goes_on().await;
        running.stop().await.expect("a clean stop");
        bench.server.lock().publication = 8;
        let running = bench.start();
        bench.renewed(if silent { 2 } else { 0 }).await;
        bench.goes_on().await;
        assert_eq!(running.epochs("publication_replaced"), u64::from(silent), "version {major}");
        running.stop().await.expect("a clean stop");
    }
}

#[tokio::test]
async fn while_another_reads_the_slot_a_start_waits_without_end_and_ends_nobody() {
    let mut bench = Bench::new();
    bench.startup = Duration::from_millis(20);
    let stranger = Holder { pid: 5, started: Some(50), detail: " (user somebody)".into() };
    bench.server.lock().holder = Some(stranger.clone());
    let mut running = bench.start();
    running.state(|state| matches!(state, IngestState::Waiting(why) if why.contains("pid 5 (user somebody)"))).await;
    assert_eq!(bench.server.lock().connects, 0);
    bench.server.until("many looks", |server| server.looks > 20).await;
    assert!(!*running.handle.ready.borrow() && bench.server.lock().terminated.is_empty());
    bench.server.lock().holder = None;
    bench.goes_on().await;
    running.stop().await.expect("a clean stop");
}

#[tokio::test]
async fn only_our_own_recorded_session_is_ended() {
    let bench = Bench::new();
    let ours = Reader { pid: 5, started: 50 };
    let holding = |pid, started| Some(Holder { pid, started, detail: String::new() });
    // It was ours while the slot was.
    bench.server.lock().holder_when_connected = holding(5, Some(50));
    let running = bench.running().await;
    bench.crash(running).await;
    for (holder, ended) in [
        (holding(5, Some(51)), vec![]),
        (holding(6, Some(50)), vec![]),
        (holding(5, None), vec![]),
        (holding(5, Some(50)), vec![ours]),
    ] {
        bench.server.lock().holder.clone_from(&holder);
        let mut running = bench.start();
        if ended.is_empty() {
            running.state(|state| matches!(state, IngestState::Waiting(_))).await;
            let looks = bench.server.lock().looks;
            bench.server.until("many looks", |server| server.looks > looks + 20).await;
        } else {
            bench.goes_on().await;
            assert_eq!(running.metrics.slot_sessions_ended.get(), 1);
        }
        assert_eq!(bench.server.lock().terminated, ended, "{holder:?}");
        running.stop().await.expect("a clean stop");
    }
}

#[tokio::test]
async fn our_own_session_that_is_just_ending_is_waited_for_and_nobody_is_told() {
    let bench = Bench::new();
    bench.server.lock().holder_when_connected = Some(Holder { pid: 5, started: Some(50), detail: String::new() });
    let running = bench.running().await;
    bench.crash(running).await;
    bench.server.lock().holder = Some(Holder { pid: 5, started: None, detail: String::new() });
    let looks = bench.server.lock().looks;
    let mut running = bench.start();
    bench.server.until("some looks", |server| server.looks > looks + 3).await;
    running.state(|state| !matches!(state, IngestState::Waiting(_))).await;
    bench.server.lock().holder = None;
    bench.goes_on().await;
    assert!(bench.server.lock().terminated.is_empty());
    running.stop().await.expect("a clean stop");
}

#[tokio::test]
async fn an_older_copy_of_the_database_begins_another_history_whatever_it_has_written_since() {
    let bench = Bench::tending();
    let running = bench.running().await;
    let copied = bench.server.lock().lineage.clone().expect("a lineage");
    bench.server.until("another token", |server| server.lineage.as_ref() != Some(&copied)).await;
    let token = bench.server.lock().lineage.clone().expect("a lineage").token;
    // The one after it is written only when this one was seen.
    bench.server.until("and another", |server| server.lineage.as_ref().is_some_and(|l| l.token != token)).await;
    running.stop().await.expect("a clean stop");
    bench.server.lock().lineage = Some(copied);
    bench.server.commit(5000, 10);
    let running = bench.running().await;
    assert_eq!(running.epochs("copy"), 1);
    running.stop().await.expect("a clean stop");
    let running = bench.running().await;
    assert_eq!(running.epochs("copy"), 0, "from then on it is the one");
    running.stop().await.expect("a clean stop");
}

#[tokio::test]
async fn a_token_that_does_not_come_through_the_stream_says_that_it_is_another_database() {
    let bench = Bench::tending();
    bench.server.lock().deaf = true;
    let mut running = bench.start();
    let moving = async {
        loop {
            let written = bench.server.lock().written;
            bench.server.idle(written + 10);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = running.state(|state| matches!(state, IngestState::Waiting(why) if why.contains("is not in the stream"))) => {}
        () = moving => {}
    }
    running.task.abort();
}

/// A standby takes over that had not got all: what it never had is taken back, what lies before stays.
#[tokio::test]
async fn a_promoted_server_goes_on_with_the_history_up_to_where_it_parted() {
    let bench = Bench::new();
    let running = bench.start();
    for end in [110, 120, 130] {
        bench.server.commit(end, 10);
    }
    bench.confirmed(130).await;
    running.stop().await.expect("a clean stop");
    let before = bench.open().log.epoch().expect("an epoch");
    for (timeline, parted, kept) in [(2, 500, vec![110, 120, 130]), (3, 125, vec![110, 120])] {
        {
            let mut server = bench.server.lock();
            server.committed.retain(|t| t.end_lsn.0 <= parted);
            server.timeline = timeline;
            server.ends.push((timeline - 1, parted));
            server.confirmed = 115;
        }
        let end = 600 + u64::from(timeline);
        bench.server.commit(end, 10);
        let running = bench.start();
        bench.confirmed(end).await;
        let ends = running.ends().await;
        assert_eq!(ends[..kept.len()], kept);
        assert_eq!((ends.last(), running.epochs("promoted")), (Some(&end), 1));
        assert!(running.log.shares(before.tag(), Lsn(120)));
        assert_eq!(running.log.shares(before.tag(), Lsn(130)), parted > 130);
        assert!(!running.log.shares(before.tag(), Lsn(parted + 1)), "what was given out and never happened here");
        running.stop().await.expect("a clean stop");
        if parted > 130 {
            // As if it had never got this one, for the next round.
            bench.server.lock().committed.retain(|t| t.end_lsn.0 < 600);
        }
    }
    {
        // It descends from none of them.
        let mut server = bench.server.lock();
        (server.timeline, server.ends) = (9, Vec::new());
    }
    let running = bench.running().await;
    assert_eq!(running.epochs("other_timeline"), 1);
    running.stop().await.expect("a clean stop");
}

#[tokio::test]
async fn the_log_knows_how_far_the_server_has_written() {
    let bench = Bench::new();
    bench.server.idle(700);
    let running = bench.start();
    bench.confirmed(700).await;
    assert_eq!(running.log.written(), Some(Lsn(700)));
    running.stop().await.expect("a clean stop");
    assert_eq!(bench.open().log.written(), None, "until it was asked");
}
