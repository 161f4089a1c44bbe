//! A commit is in the stream before other sessions can see it: Postgres writes the commit record, sends it, and only then, with
//! synchronous replication after waiting for a standby, shows the rows. Who asks Postgres too early is told no.

use std::time::Duration;

use rowcast::clock::Clock;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{ALICES_SESSION, Scene, database, event, mark, notify, watching};
use crate::support::phone::PATIENCE;
use crate::support::relay::pause;
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Phone, Relay, TestPg, summary};

/// A session of its own and its first event.
fn session_and_event(user: &str, name: &str) -> String {
    format!(
        "with s as (insert into coding_sessions (user_id) values ('{user}') returning id) \
         insert into new_session select id from s; \
         insert into session_events (session_id, event_type) select id, '{name}' from new_session; \
         truncate new_session;"
    )
}

/// With the clock in it, the policy on events is one that Postgres has to be asked about.
const HELPER: &str = "create table new_session (id uuid);
    alter policy \"users see events of their own sessions\" on public.session_events using (
        now() is not null and session_id in (select id from public.coding_sessions where user_id = auth.uid()));";
const IN_MEMORY: &str = "create table new_session (id uuid);";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_and_its_first_event_in_one_transaction_reach_the_owner() {
    let scene = Scene::with(HELPER).await;
    let mut alice = scene.relay.phone(&token::user(ALICE)).await;
    let mut bob = scene.relay.phone(&token::user(BOB)).await;
    alice.subscribe("room", &watching(&["session_events"])).await;
    bob.subscribe("room", &watching(&["session_events"])).await;
    let names: Vec<String> = (0..20).map(|n| format!("first of {n}")).collect();
    for name in &names {
        scene.exec(&format!("begin; {} commit", session_and_event(ALICE, name))).await;
    }
    scene.mark("end").await;
    let expected: Vec<String> = names.iter().map(|name| format!("INSERT {name}")).collect();
    assert_eq!(summary(&alice.changes_before("end").await, "event_type"), expected);
    bob.expect_nothing_before("end").await;
}

/// Lets the relay see a row of each table, so that what follows doesn't wait for the rules of a table that is new to it.
async fn warm_up(pg: &TestPg, phones: &mut [Phone]) {
    pg.exec(&event(ALICES_SESSION, "known")).await;
    mark(pg, "known").await;
    for phone in phones {
        phone.changes_before("known").await;
    }
}

/// A server on which a commit with `synchronous_commit = on` waits until [`Held::release`]; all others go through.
pub(super) async fn hold_commits(pg: &TestPg) {
    pg.exec("alter system set synchronous_commit = 'local'").await;
    pg.exec("alter system set synchronous_standby_names = 'nobody'").await;
    pg.exec("select pg_reload_conf()").await;
    until(pg, "select current_setting('synchronous_standby_names') = 'nobody'", "the settings are in force").await;
}

/// A commit that waits for a standby which will never come.
pub(super) struct Held {
    committing: JoinHandle<()>,
}

impl Held {
    /// Returns when the transaction is in the stream and hidden from all others.
    pub(super) async fn commit(pg: &TestPg, sql: &str) -> Held {
        let client = pg.client().await;
        let sql = format!("set synchronous_commit = on; begin; {sql} commit");
        let committing = rowcast::task::spawn("held commit", async move {
            client.batch_execute(&sql).await.expect("it commits in the end");
        });
        until(pg, "select count(*) > 0 from pg_stat_activity where wait_event = 'SyncRep'", "a commit waits").await;
        Held { committing }
    }

    pub(super) async fn release(self, pg: &TestPg) {
        pg.exec("alter system reset synchronous_standby_names").await;
        pg.exec("select pg_reload_conf()").await;
        let ended = tokio::time::timeout(PATIENCE, self.committing).await;
        ended.expect("the commit ends").expect("it does not panic");
    }
}

async fn until(pg: &TestPg, sql: &str, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    // A session of before the reload sees the new settings only between its statements.
    let client = pg.client().await;
    while !client.query_one(sql, &[]).await.expect("a row").get::<_, bool>(0) {
        assert!(Instant::now() < deadline, "within {PATIENCE:?}: {what}");
        pause().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_postgres_still_hides_reaches_its_owner_once_and_in_its_place() {
    let scene = Scene::with(HELPER).await;
    let mut phones = Vec::new();
    for user in [ALICE, BOB] {
        let mut phone = scene.relay.phone(&token::user(user)).await;
        phone.subscribe("room", &watching(&["session_events"])).await;
        phones.push(phone);
    }
    warm_up(&scene.pg, &mut phones).await;
    hold_commits(&scene.pg).await;
    let asked_again = scene.relay.metric("rowcast_ask_not_visible_total", "").await;
    let held = Held::commit(&scene.pg, &session_and_event(ALICE, "hidden")).await;
    scene.exec(&event(ALICES_SESSION, "later")).await;
    scene.mark("end").await;
    // The relay has asked, and found that the answer is void.
    let deadline = Instant::now() + PATIENCE;
    while scene.relay.metric("rowcast_ask_not_visible_total", "").await < asked_again + 3.0 {
        assert!(Instant::now() < deadline, "the relay never noticed");
        pause().await;
    }
    let early: Vec<_> = phones.iter_mut().map(Phone::changes_so_far).collect();
    held.release(&scene.pg).await;
    assert_eq!(early, [vec![], vec![]], "received before it could be judged");
    let [alice, bob] = &mut phones[..] else { panic!("two phones") };
    assert_eq!(summary(&alice.changes_before("end").await, "event_type"), ["INSERT hidden", "INSERT later"]);
    bob.expect_nothing_before("end").await;
    scene.exec(&event(ALICES_SESSION, "next")).await;
    assert_eq!(alice.next_change().await.record()["event_type"], "next");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_revoked_by_a_hidden_commit_is_gone_for_the_rows_behind_it() {
    let scene = Scene::with(HELPER).await;
    let mut alice = scene.relay.phone(&token::user(ALICE)).await;
    alice.subscribe("room", &watching(&["session_events"])).await;
    warm_up(&scene.pg, std::slice::from_mut(&mut alice)).await;
    hold_commits(&scene.pg).await;
    // The session goes to Bob; until that shows, a query would still call Alice its owner.
    let given = format!("update coding_sessions set user_id = '{BOB}' where id = '{ALICES_SESSION}';");
    let asked_again = scene.relay.metric("rowcast_ask_not_visible_total", "").await;
    // Something published is needed for the relay to hear of the transaction at all.
    let held = Held::commit(&scene.pg, &format!("{given} insert into marks (note) values ('given');")).await;
    scene.exec(&event(ALICES_SESSION, "no longer hers")).await;
    scene.mark("end").await;
    let deadline = Instant::now() + PATIENCE;
    while scene.relay.metric("rowcast_ask_not_visible_total", "").await <= asked_again {
        assert!(Instant::now() < deadline, "the relay never noticed");
        pause().await;
    }
    held.release(&scene.pg).await;
    alice.expect_nothing_before("given").await;
    alice.expect_nothing_before("end").await;
}

/// Facts are those of the stream, whatever Postgres shows to others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_judged_in_memory_neither_waits_for_a_hidden_commit_nor_overlooks_it() {
    let scene = Scene::with(IN_MEMORY).await;
    let mut alice = scene.relay.phone(&token::user(ALICE)).await;
    let mut bob = scene.relay.phone(&token::user(BOB)).await;
    for phone in [&mut alice, &mut bob] {
        phone.subscribe("room", &watching(&["session_events"])).await;
    }
    // The stream describes each table once before.
    scene.exec(&format!("begin; {} commit", session_and_event(ALICE, "known"))).await;
    scene.mark("begin").await;
    alice.changes_before("begin").await;
    bob.changes_before("begin").await;
    hold_commits(&scene.pg).await;
    let given = format!("update coding_sessions set user_id = '{BOB}' where id = '{ALICES_SESSION}';");
    let held = Held::commit(&scene.pg, &format!("{} {given}", session_and_event(ALICE, "hidden"))).await;
    scene.exec(&event(ALICES_SESSION, "no longer hers")).await;
    scene.mark("end").await;
    assert_eq!(summary(&alice.changes_before("end").await, "event_type"), ["INSERT hidden"]);
    assert_eq!(summary(&bob.changes_before("end").await, "event_type"), ["INSERT no longer hers"]);
    assert_eq!(scene.relay.metric("rowcast_ask_seconds_count", "").await, 0.0, "Postgres was asked");
    held.release(&scene.pg).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hidden_notification_is_delivered_once_and_in_commit_order() {
    let scene = Scene::start().await;
    let mut alice = scene.relay.phone(&token::user(ALICE)).await;
    alice.subscribe("room", &watching(&["notifications", "session_events"])).await;
    hold_commits(&scene.pg).await;
    let held = Held::commit(&scene.pg, &notify(ALICE, "hidden")).await;
    scene.exec(&notify(ALICE, "later")).await;
    scene.mark("end").await;
    held.release(&scene.pg).await;
    assert_eq!(summary(&alice.changes_before("end").await, "kind"), ["INSERT hidden", "INSERT later"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_stays_hidden_too_long_is_told_as_a_gap_and_what_follows_is_delivered() {
    let pg = database(HELPER).await;
    let relay = Relay::with(&pg, Clock::system(), |config| config.hub.ask.deadline = Duration::from_millis(500)).await;
    let mut alice = relay.phone(&token::user(ALICE)).await;
    alice.subscribe("room", &watching(&["session_events"])).await;
    hold_commits(&pg).await;
    let held = Held::commit(&pg, &session_and_event(ALICE, "hidden")).await;
    let system = alice.system("room").await;
    assert_eq!(system["status"], "error");
    assert!(system["message"].as_str().is_some_and(|text| text.starts_with("Gap: ")), "{system}");
    assert!(relay.metric("rowcast_undecided_gaps_total", "").await >= 1.0);
    held.release(&pg).await;
    pg.exec(&event(ALICES_SESSION, "later")).await;
    mark(&pg, "end").await;
    assert_eq!(summary(&alice.changes_before("end").await, "event_type"), ["INSERT later"]);
}
