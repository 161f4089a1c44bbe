//! Another server takes the place of the one that we read from: a standby that was promoted, or a copy.

use std::path::Path;
use std::time::Duration;

use rowcast::change::Lsn;
use rowcast::clock::Clock;
use rowcast::config::Config;

use super::*;
use crate::support::{Change, Relay};

/// A standby that has a copy of the slot: made from the stopped server's files, as a tool that copies slots would leave it.
async fn standby(primary: &mut TestPg) -> TestPg {
    primary.stop().await;
    let (port, upstream) = (crate::support::pg::free_port(), primary.port());
    let mut standby = primary
        .copy(|options| {
            options.port = port;
        })
        .await;
    // Not on the command line, where nobody could change it.
    let conninfo = format!("primary_conninfo = 'host=127.0.0.1 port={upstream} user=postgres'\n");
    standby.write_file("postgresql.auto.conf", &conninfo);
    standby.write_file("standby.signal", "");
    primary.start_again().await;
    standby.start_again().await;
    standby
}

/// Both servers, the first one that is up and no standby counts.
fn url_of(one: &TestPg, other: &TestPg) -> String {
    format!(
        "postgres://postgres:test@127.0.0.1:{},127.0.0.1:{}/postgres?target_session_attrs=read-write",
        one.port(),
        other.port()
    )
}

async fn relay_at(pg: &TestPg, url: &str, folder: &Path) -> Relay {
    Relay::with(pg, Clock::system(), |config| {
        *config = Config::new(url, token::SECRET, folder).expect("a configuration");
        config.admin = Some(([127, 0, 0, 1], 0).into());
        (config.ingest.tend_interval, config.ingest.token_interval) =
            (Duration::from_millis(100), Duration::from_millis(100));
    })
    .await
}

async fn promote(standby: &TestPg) {
    standby.exec("select pg_promote(true, 60)").await;
    until(standby, "select not pg_is_in_recovery()").await;
}

async fn position(pg: &TestPg) -> Lsn {
    let row = pg.client().await.query_one("select pg_current_wal_flush_lsn()::text", &[]).await.expect("a row");
    row.get::<_, &str>(0).parse().expect("a position")
}

async fn has_replayed(standby: &TestPg, position: Lsn) {
    until(standby, &format!("select pg_last_wal_replay_lsn() >= '{position}'")).await;
}

/// A server with a relay that has made its slot once.
async fn with_slot(folder: &Path) -> TestPg {
    let pg = with_marks().await;
    let relay = relay_at(&pg, &pg.url(), folder).await;
    mark(&pg, "first").await;
    relay.drain().await;
    pg
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_had_everything_goes_on_with_the_same_history_and_nothing_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut primary = with_slot(folder.path()).await;
    let standby = standby(&mut primary).await;
    let relay = relay_at(&primary, &url_of(&primary, &standby), folder.path()).await;
    let before = relay.log().epoch().expect("an epoch").tag();
    let mut phone = watcher(&relay.base()).await;
    mark(&primary, "before").await;
    next_mark(&mut phone, "before").await;
    let common = relay.log().end();
    has_replayed(&standby, position(&primary).await).await;
    primary.kill().await;
    promote(&standby).await;
    mark(&standby, "after").await;
    next_mark(&mut phone, "after").await;
    phone.heartbeat().await;
    let frames = phone.frames_of("room");
    assert!(frames.is_empty(), "nobody is told of anything: {frames:#?}");
    assert!(relay.log().shares(before, common) && !relay.log().shares(before, relay.log().end()));
    assert_eq!(relay.metric("rowcast_epochs_total", "reason=\"promoted\"").await, 1.0);
    assert_eq!(relay.metric("rowcast_epochs_total", "").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_lacked_the_last_changes_takes_them_back_and_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut primary = with_slot(folder.path()).await;
    let standby = standby(&mut primary).await;
    let relay = relay_at(&primary, &url_of(&primary, &standby), folder.path()).await;
    let before = relay.log().epoch().expect("an epoch").tag();
    let mut phone = watcher(&relay.base()).await;
    mark(&primary, "both have it").await;
    next_mark(&mut phone, "both have it").await;
    let shared = Away::from(&relay.base()).await;
    let common = relay.log().end();
    has_replayed(&standby, position(&primary).await).await;
    // Its line to the primary is cut: what follows never gets there.
    standby.exec("alter system set primary_conninfo = ''").await;
    standby.exec("select pg_reload_conf()").await;
    cut(&primary).await;
    mark(&primary, "never happened").await;
    next_mark(&mut phone, "never happened").await;
    let beyond = relay.log().end();
    let taken_back = Away::from(&relay.base()).await;
    primary.kill().await;
    promote(&standby).await;
    // More than what was taken back, so that positions alone tell nothing.
    for _ in 0..20 {
        mark(&standby, "filler").await;
    }
    gap(&mut phone).await;
    taken_back.told(&relay.base(), &standby, "diverged").await;
    mark(&standby, "after").await;
    let arrived = phone.changes_before("after").await;
    let of_the_standby = ["filler", "after diverged"];
    let known = |change: &Change| of_the_standby.iter().any(|note| change.record()["note"] == *note);
    assert!(arrived.iter().all(known), "{arrived:?}");
    assert_eq!(relay.metric("rowcast_epochs_total", "reason=\"promoted\"").await, 1.0);
    let log = relay.log();
    assert!(log.shares(before, common), "a client that was there before has lost nothing");
    assert!(!log.shares(before, beyond), "one that got what never happened is told");
    assert!(log.floor() < common, "and what lies before can still be read");
    let missed: Vec<&str> = std::iter::repeat_n("filler", 20).chain(["after diverged", "after"]).collect();
    shared.missed(&relay.base(), &standby, &missed).await;
}

/// Back to the server that was first, as if nothing had been: what was committed on the other one is not there. It is on the first
/// timeline, of which a server has no history to show.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_server_taken_up_again_after_a_promotion_begins_a_new_history_and_a_gap() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut primary = with_slot(folder.path()).await;
    let relay = relay_at(&primary, &primary.url(), folder.path()).await;
    let before = Away::from(&relay.base()).await;
    relay.drain().await;
    let standby = standby(&mut primary).await;
    has_replayed(&standby, position(&primary).await).await;
    primary.kill().await;
    promote(&standby).await;
    let relay = relay_at(&standby, &standby.url(), folder.path()).await;
    let away = Away::from(&relay.base()).await;
    let mut phone = watcher(&relay.base()).await;
    mark(&standby, "only there").await;
    next_mark(&mut phone, "only there").await;
    relay.drain().await;
    primary.start_again().await;
    // Beyond what the log has, so that positions alone tell nothing.
    for _ in 0..20 {
        mark(&primary, "filler").await;
    }
    let relay = relay_at(&primary, &primary.url(), folder.path()).await;
    assert_eq!(relay.metric("rowcast_epochs_total", "reason=\"other_history\"").await, 1.0);
    for away in [before, away.only_with_cursor()] {
        away.told(&relay.base(), &primary, "diverged").await;
    }
}

/// The primary's walsender for the standby is gone, and none comes back.
async fn cut(primary: &TestPg) {
    primary
        .exec("select pg_terminate_backend(pid) from pg_stat_replication where application_name = 'walreceiver'")
        .await;
    until(primary, "select count(*) = 0 from pg_stat_replication where application_name = 'walreceiver'").await;
}

/// As a standby of 15 or 16 is without help: it has no slot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_without_the_slot_begins_a_new_history() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut primary = with_marks().await;
    let standby = standby(&mut primary).await;
    let relay = relay_at(&primary, &url_of(&primary, &standby), folder.path()).await;
    let mut phone = watcher(&relay.base()).await;
    mark(&primary, "before").await;
    next_mark(&mut phone, "before").await;
    has_replayed(&standby, position(&primary).await).await;
    primary.kill().await;
    promote(&standby).await;
    gap(&mut phone).await;
    mark(&standby, "after").await;
    next_mark(&mut phone, "after").await;
    assert_eq!(relay.metric("rowcast_epochs_total", "reason=\"slot_lost\"").await, 1.0);
}

/// The server's own copies of slots, from version 17 on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_the_server_copies_to_its_standby_survives_the_promotion() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut primary = with_marks().await;
    if primary.major() < 17 {
        return;
    }
    primary.exec("select pg_create_physical_replication_slot('standby')").await;
    let standby = standby(&mut primary).await;
    for setting in [
        &format!("primary_conninfo = 'host=127.0.0.1 port={} user=postgres dbname=postgres'", primary.port()),
        "primary_slot_name = 'standby'",
        "hot_standby_feedback = on",
        "sync_replication_slots = on",
    ] {
        standby.exec(&format!("alter system set {setting}")).await;
    }
    standby.exec("select pg_reload_conf()").await;
    primary.exec("alter system set synchronized_standby_slots = 'standby'").await;
    primary.exec("select pg_reload_conf()").await;
    until(&primary, "select active from pg_replication_slots where slot_name = 'standby'").await;
    let relay = Relay::with(&primary, Clock::system(), |config| {
        *config = Config::new(&url_of(&primary, &standby), token::SECRET, folder.path()).expect("a configuration");
        config.admin = Some(([127, 0, 0, 1], 0).into());
        config.ingest.wal.failover = true;
    })
    .await;
    let mut phone = watcher(&relay.base()).await;
    mark(&primary, "before").await;
    next_mark(&mut phone, "before").await;
    // A copy is good once the standby has caught up with it.
    let copied =
        "select exists (select from pg_replication_slots where slot_name = 'rowcast' and synced and not temporary)";
    let deadline = Instant::now() + 3 * PATIENCE;
    let client = standby.client().await;
    while !client.query_one(copied, &[]).await.expect("a row").get::<_, bool>(0) {
        assert!(Instant::now() < deadline, "the slot is not copied");
        mark(&primary, "moving").await;
        pause().await;
    }
    mark(&primary, "last").await;
    phone.changes_before("last").await;
    has_replayed(&standby, position(&primary).await).await;
    primary.kill().await;
    promote(&standby).await;
    mark(&standby, "after").await;
    next_mark(&mut phone, "after").await;
    phone.heartbeat().await;
    let frames = phone.frames_of("room");
    assert!(frames.is_empty(), "nobody is told of anything: {frames:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_copy_of_the_database_is_not_taken_for_the_original() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut original = with_slot(folder.path()).await;
    let relay = relay_at(&original, &original.url(), folder.path()).await;
    let before = Away::from(&relay.base()).await;
    relay.drain().await;
    original.stop().await;
    // A copy of the disk, slot and all, with the original's identity and timeline.
    let mut copy = original.copy(|_| {}).await;
    original.start_again().await;
    let relay = relay_at(&original, &original.url(), folder.path()).await;
    let away = Away::from(&relay.base()).await;
    mark(&original, "only in the original").await;
    let token = "select token from rowcast.lineage";
    let token = async || original.client().await.query_one(token, &[]).await.expect("a row").get::<_, String>(0);
    let first = token().await;
    // A token was seen, and the next one written.
    while token().await == first {
        pause().await;
    }
    let second = token().await;
    while token().await == second {
        pause().await;
    }
    relay.drain().await;
    original.stop().await;
    copy.start_again().await;
    // It goes on by itself, beyond what the log has.
    for note in 0..200 {
        mark(&copy, &format!("only in the copy {note}")).await;
    }
    let relay = relay_at(&copy, &copy.url(), folder.path()).await;
    assert_eq!(relay.metric("rowcast_epochs_total", "reason=\"copy\"").await, 1.0);
    for away in [before, away.only_with_cursor()] {
        away.told(&relay.base(), &copy, "diverged").await;
    }
}
