//! Clients that name their device go on where they were: nothing is lost, and only what they had not receipted comes again.

mod kept;

use std::collections::BTreeMap;
use std::time::Duration;

use rowcast::clock::Clock;
use rowcast::config::Config;
use rowcast::gateway::Receipt;
use serde_json::{Value, json};

use super::{Scene, database, mark, notify, watching};
use crate::support::phone::{PATIENCE, Phone, Version};
use crate::support::sdk::{SdkPhone, Stock};
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Change, Relay, RelayProcess, TestPg};

/// A connected client of a device that is named in the path.
pub(super) async fn phone_of(relay: &Relay, device: &str, token: &str) -> Phone {
    Phone::connect(&format!("{}/device/{device}", relay.base()), token, Version::V2).await
}

pub(super) async fn joined(relay: &Relay, device: &str, token: &str) -> Phone {
    let mut phone = phone_of(relay, device, token).await;
    phone.subscribe("room", &watching(&["notifications"])).await;
    phone
}

pub(super) fn kinds(changes: &[Change]) -> Vec<&str> {
    changes.iter().map(|change| change.record()["kind"].as_str().unwrap_or("?")).collect()
}

/// Questions that come often, so that nobody waits for them.
fn eager(config: &mut Config) {
    let device = &mut config.gateway.device;
    (device.quiet, device.busy, device.behind) =
        (Duration::from_millis(400), Duration::from_millis(100), Duration::from_millis(20));
}

pub(super) async fn scene_with(change: impl FnOnce(&mut Config)) -> Scene {
    let pg = database("").await;
    let relay = Relay::with(&pg, Clock::system(), |config| {
        eager(config);
        change(config);
    })
    .await;
    Scene { relay, pg }
}

pub(super) async fn scene() -> Scene {
    scene_with(|_| {}).await
}

/// Waits until what this phone has received is receipted: two more Pongs, since the first may have been asked too early. Only
/// one that reads answers.
pub(super) async fn receipted(relay: &Relay, phone: &mut Phone) {
    let count = async || relay.metric("rowcast_pong_seconds_count", "").await;
    let before = count().await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while count().await < before + 3.0 {
        assert!(tokio::time::Instant::now() < deadline, "no Pongs");
        phone.heartbeat().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(super) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until what was written is in the log: a join that comes earlier gets it as what follows.
pub(super) async fn in_the_log(scene: &Scene) {
    let mut observer = scene.relay.phone(&token::role("anon")).await;
    observer.subscribe("observer", &watching(&[])).await;
    scene.mark("in the log").await;
    observer.changes_before("in the log").await;
}

/// What comes before a mark that is made now.
pub(super) async fn received(scene: &Scene, phone: &mut Phone, note: &str) -> Vec<Change> {
    scene.mark(note).await;
    // Earlier marks come again too.
    phone.changes_before(note).await.into_iter().filter(|change| change.table() != "marks").collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_comes_back_gets_what_it_missed_once_and_then_what_follows() {
    let scene = scene().await;
    let token = token::user(ALICE);
    let mut phone = joined(&scene.relay, "phone", &token).await;
    scene.exec(&notify(ALICE, "seen")).await;
    assert_eq!(phone.next_change().await.record()["kind"], "seen");
    receipted(&scene.relay, &mut phone).await;
    drop(phone);
    for kind in ["missed 1", "missed 2"] {
        scene.exec(&notify(ALICE, kind)).await;
        scene.exec(&notify(BOB, "not hers")).await;
    }
    let mut phone = joined(&scene.relay, "phone", &token).await;
    scene.exec(&notify(ALICE, "live")).await;
    assert_eq!(kinds(&received(&scene, &mut phone, "end").await), ["missed 1", "missed 2", "live"]);
    // Another device of hers, another user on this one, and nobody in particular begin where the stream is.
    for (device, token) in [("tablet", token::user(ALICE)), ("phone", token::user(BOB)), ("phone", token::role("anon"))]
    {
        let mut other = joined(&scene.relay, device, &token).await;
        scene.mark("other").await;
        other.expect_nothing_before("other").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_names_no_device_is_served_as_ever() {
    let scene = scene().await;
    let token = token::user(ALICE);
    let mut phone = scene.relay.phone(&token).await;
    phone.subscribe("room", &watching(&["notifications"])).await;
    drop(phone);
    scene.exec(&notify(ALICE, "missed")).await;
    in_the_log(&scene).await;
    let mut phone = scene.relay.phone(&token).await;
    phone.subscribe("room", &watching(&["notifications"])).await;
    scene.mark("end").await;
    phone.expect_nothing_before("end").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_a_shared_device_get_their_own_and_lose_nothing_to_each_other() {
    let scene = scene().await;
    let (alice, bob) = (token::user(ALICE), token::user(BOB));
    let mut phone = joined(&scene.relay, "shared", &alice).await;
    scene.exec(&notify(ALICE, "a1")).await;
    assert_eq!(phone.next_change().await.record()["kind"], "a1");
    receipted(&scene.relay, &mut phone).await;
    // She signs out and he signs in, on the same page and its channels.
    phone.push_token("room", &bob).await;
    phone.subscribed("room").await;
    scene.exec(&notify(ALICE, "a2")).await;
    scene.exec(&notify(BOB, "b1")).await;
    assert_eq!(kinds(&received(&scene, &mut phone, "his").await), ["b1"]);
    receipted(&scene.relay, &mut phone).await;
    // And she again: what came meanwhile is still hers.
    scene.exec(&notify(BOB, "b2")).await;
    scene.mark("between").await;
    phone.changes_before("between").await;
    phone.push_token("room", &alice).await;
    phone.subscribed("room").await;
    assert_eq!(kinds(&received(&scene, &mut phone, "hers").await), ["a2"]);
    drop(phone);
    // On a connection of his own he begins where he was; what he had may come again.
    let mut phone = joined(&scene.relay, "shared", &bob).await;
    let his = received(&scene, &mut phone, "end").await;
    assert!(matches!(kinds(&his)[..], [] | ["b2"]), "{:?}", kinds(&his));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_names_the_device_of_clients_that_name_none() {
    let scene = scene_with(|config| config.gateway.device.claim = Some("session_id".into())).await;
    let token = |session: &str| {
        let claims = json!({ "role": "authenticated", "sub": ALICE, "session_id": session, "exp": 4_000_000_000_u64 });
        token::raw(&json!({ "alg": "HS256", "typ": "JWT" }), &claims)
    };
    let mut phone = scene.relay.phone(&token("s1")).await;
    phone.subscribe("room", &watching(&["notifications"])).await;
    drop(phone);
    scene.exec(&notify(ALICE, "missed")).await;
    in_the_log(&scene).await;
    for (session, expected) in [("s2", &[][..]), ("s1", &["missed"])] {
        let mut phone = scene.relay.phone(&token(session)).await;
        phone.subscribe("room", &watching(&["notifications"])).await;
        assert_eq!(kinds(&received(&scene, &mut phone, session).await), expected, "{session}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_token_of_the_same_user_changes_nothing() {
    let scene = scene().await;
    let mut phone = joined(&scene.relay, "phone", &token::user(ALICE)).await;
    scene.exec(&notify(ALICE, "seen")).await;
    phone.next_change().await;
    receipted(&scene.relay, &mut phone).await;
    phone.push_token("room", &token::short(ALICE, 600)).await;
    phone.subscribed("room").await;
    assert!(received(&scene, &mut phone, "refreshed").await.is_empty());
    drop(phone);
    scene.exec(&notify(ALICE, "missed")).await;
    let mut phone = joined(&scene.relay, "phone", &token::short(ALICE, 500)).await;
    assert_eq!(kinds(&received(&scene, &mut phone, "end").await), ["missed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_nobody_has_signed_in_on_is_resumed_too() {
    let scene = Scene::with(
        "create table public.news (id int primary key, kind text); alter publication supabase_realtime add table public.news; \
         grant select on public.news to anon",
    )
    .await;
    let entries = watching(&["news"]);
    for device in ["one", "two"] {
        let mut phone = phone_of(&scene.relay, device, &token::role("anon")).await;
        phone.subscribe("room", &entries).await;
        if device == "one" {
            scene.exec("insert into news values (1, 'missed')").await;
            in_the_log(&scene).await;
        }
    }
    // The second came after it.
    for (device, expected) in [("one", &["missed"][..]), ("two", &[])] {
        let mut phone = phone_of(&scene.relay, device, &token::role("anon")).await;
        phone.subscribe("room", &entries).await;
        // The first may have had it, and had no time to say so.
        assert_eq!(kinds(&received(&scene, &mut phone, device).await), expected, "{device}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_were_added_begin_now_and_others_where_they_were() {
    let scene = scene().await;
    let token = token::user(ALICE);
    let entry = |kind: &str| json!({ "event": "*", "schema": "public", "table": "notifications", "filter": format!("kind=eq.{kind}") });
    let entries = |kinds: &[&str]| -> Value {
        let marks = json!({ "event": "*", "schema": "public", "table": "marks" });
        kinds.iter().map(|kind| entry(kind)).chain([marks]).collect()
    };
    let mut phone = phone_of(&scene.relay, "phone", &token).await;
    phone.subscribe("room", &entries(&["a", "b"])).await;
    scene.exec(&notify(ALICE, "a")).await;
    phone.next_change().await;
    receipted(&scene.relay, &mut phone).await;
    drop(phone);
    for kind in ["a", "b", "c"] {
        scene.exec(&notify(ALICE, kind)).await;
    }
    in_the_log(&scene).await;
    // `a` is gone, `c` is new.
    let mut phone = phone_of(&scene.relay, "phone", &token).await;
    phone.subscribe("room", &entries(&["c", "b"])).await;
    assert_eq!(kinds(&received(&scene, &mut phone, "second").await), ["b"]);
    receipted(&scene.relay, &mut phone).await;
    drop(phone);
    // `a` was away, and its place is kept.
    let mut phone = phone_of(&scene.relay, "phone", &token).await;
    phone.subscribe("room", &entries(&["a", "b", "c"])).await;
    assert_eq!(kinds(&received(&scene, &mut phone, "third").await), ["a"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_was_left_is_kept_for_a_while_and_no_longer() {
    for (keep, expected) in [(Duration::from_secs(60), &["missed"][..]), (Duration::ZERO, &[])] {
        let scene = scene_with(|config| config.frontiers.keep_left = keep).await;
        let token = token::user(ALICE);
        let mut phone = joined(&scene.relay, "phone", &token).await;
        phone.leave("room").await;
        scene.exec(&notify(ALICE, "missed")).await;
        in_the_log(&scene).await;
        if keep.is_zero() {
            let dropped = async || scene.relay.metric("rowcast_frontiers_dropped_total", "expired").await;
            until("it is given up", async || dropped().await > 0.0).await;
        }
        phone.subscribe("room", &watching(&["notifications"])).await;
        assert_eq!(kinds(&received(&scene, &mut phone, "end").await), expected, "{keep:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tabs_of_one_device_lose_nothing_in_whatever_order_they_come_back() {
    let scene = scene().await;
    let token = token::user(ALICE);
    let mut one = joined(&scene.relay, "tabs", &token).await;
    scene.exec(&notify(ALICE, "first")).await;
    one.next_change().await;
    receipted(&scene.relay, &mut one).await;
    // One sleeps, the other goes on.
    drop(one);
    let mut two = joined(&scene.relay, "tabs", &token).await;
    let mut three = joined(&scene.relay, "tabs", &token).await;
    scene.exec(&notify(ALICE, "second")).await;
    for phone in [&mut two, &mut three] {
        assert_eq!(phone.next_change().await.record()["kind"], "second");
    }
    receipted(&scene.relay, &mut two).await;
    // One of them has said what it has, the other is gone before it could.
    drop(three);
    drop(two);
    scene.exec(&notify(ALICE, "third")).await;
    for _ in 0..2 {
        let mut tab = joined(&scene.relay, "tabs", &token).await;
        let got = received(&scene, &mut tab, "end").await;
        assert!(kinds(&got).ends_with(&["third"]), "{:?}", kinds(&got));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_died_unnoticed_is_given_up_and_leaves_nothing_behind() {
    let scene = scene_with(|config| config.gateway.device.unanswered = Duration::from_millis(700)).await;
    let token = token::user(ALICE);
    // Nobody reads it any more, and nobody says so: as after a change of networks.
    let _old = joined(&scene.relay, "phone", &token).await;
    let mut phone = joined(&scene.relay, "phone", &token).await;
    scene.exec(&notify(ALICE, "seen")).await;
    assert_eq!(kinds(&received(&scene, &mut phone, "both").await), ["seen"]);
    let closed = async || scene.relay.metric("rowcast_closes_total", "unanswered").await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while closed().await == 0.0 {
        assert!(tokio::time::Instant::now() < deadline, "it is not given up");
        phone.heartbeat().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    receipted(&scene.relay, &mut phone).await;
    drop(phone);
    scene.exec(&notify(ALICE, "missed")).await;
    let mut phone = joined(&scene.relay, "phone", &token).await;
    assert_eq!(kinds(&received(&scene, &mut phone, "end").await), ["missed"], "what was seen does not come again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_user_does_not_fall_off_the_end_of_the_log() {
    let scene = scene_with(|config| {
        (config.log.segment_bytes, config.log.retain_bytes) = (16 << 10, 64 << 10);
        config.ingest.retain_interval = Duration::from_millis(200);
    })
    .await;
    let token = token::user(ALICE);
    let mut phone = phone_of(&scene.relay, "phone", &token).await;
    let entries = json!([{ "event": "*", "schema": "public", "table": "notifications" }]);
    phone.subscribe("room", &entries).await;
    let mut observer = scene.relay.phone(&token).await;
    observer.subscribe("room", &watching(&[])).await;
    // Others are busy until the log has nothing left of when she came, and then of when that was.
    for _ in 0..2 {
        let before = scene.relay.end();
        let deadline = tokio::time::Instant::now() + 6 * PATIENCE;
        while scene.relay.floor() <= before {
            assert!(tokio::time::Instant::now() < deadline, "the log keeps everything");
            let other =
                "insert into notifications (user_id, kind, body) select gen_random_uuid(), 'other', repeat('x', 1000)";
            scene.exec(&format!("{other} from generate_series(1, 20)")).await;
            // No faster than they come in.
            scene.mark("in").await;
            observer.changes_before("in").await;
            phone.heartbeat().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    receipted(&scene.relay, &mut phone).await;
    drop(phone);
    scene.exec(&notify(ALICE, "missed")).await;
    let mut phone = phone_of(&scene.relay, "phone", &token).await;
    phone.subscribe("room", &entries).await;
    assert_eq!(phone.next_change().await.record()["kind"], "missed");
    phone.heartbeat().await;
    assert!(phone.frames_of("room").is_empty(), "no gap is told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_proxy_that_answers_pings_heartbeats_are_receipts() {
    let scene = scene_with(|config| config.gateway.device.receipt = Receipt::Heartbeat).await;
    let token = token::user(ALICE);
    let mut phone = joined(&scene.relay, "phone", &token).await;
    for kind in ["one", "two"] {
        scene.exec(&notify(ALICE, kind)).await;
        assert_eq!(phone.next_change().await.record()["kind"], kind);
        // Answered as a proxy would, whether or not the client has had it.
        scene.mark(kind).await;
        phone.changes_before(kind).await;
    }
    drop(phone);
    let mut phone = joined(&scene.relay, "phone", &token).await;
    assert_eq!(kinds(&received(&scene, &mut phone, "again").await), ["one", "two"]);
    let resumed = scene.relay.metric("rowcast_frontier_resumes_total", "").await;
    for _ in 0..20 {
        phone.heartbeat().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(phone);
    let mut phone = joined(&scene.relay, "phone", &token).await;
    assert!(received(&scene, &mut phone, "end").await.is_empty());
    assert!(scene.relay.metric("rowcast_frontier_resumes_total", "").await > resumed);
}

async fn saved(relay: &Relay) -> f64 {
    relay.metric("rowcast_frontier_saves_total", "saved").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_nothing_can_be_saved_memory_goes_on() {
    let scene = scene().await;
    let token = token::user(ALICE);
    let mut phone = joined(&scene.relay, "phone", &token).await;
    until("its place is saved", async || saved(&scene.relay).await > 0.0).await;
    scene.exec("alter table rowcast.frontiers rename to away").await;
    scene.exec(&notify(ALICE, "seen")).await;
    phone.next_change().await;
    receipted(&scene.relay, &mut phone).await;
    until("saving fails", async || scene.relay.metric("rowcast_frontier_saves_total", "failed").await > 0.0).await;
    drop(phone);
    scene.exec(&notify(ALICE, "missed")).await;
    let mut phone = joined(&scene.relay, "phone", &token).await;
    assert_eq!(kinds(&received(&scene, &mut phone, "end").await), ["missed"]);
    scene.exec("alter table rowcast.away rename to frontiers").await;
    let before = saved(&scene.relay).await;
    until("it is saved after all", async || saved(&scene.relay).await > before).await;
}

/// A join was answered before anything of its device was saved, and after a crash the device came back as a stranger: what was
/// committed in between was lost, and nobody was told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_whose_first_join_was_answered_right_before_a_crash_loses_nothing() {
    let pg = database("").await;
    let mut relay = RelayProcess::start(&pg).await;
    let token = token::user(ALICE);
    // An application subscribes to several things at once. Each is a device of its own, so that none is known.
    for round in 0..5 {
        let base = format!("{}/device/new-{round}", relay.base());
        let mut phone = Phone::connect(&base, &token, Version::V2).await;
        let topics = ["a", "b", "c"];
        let payload = json!({ "config": { "postgres_changes": watching(&["notifications"]) }, "access_token": token });
        let mut refs = Vec::new();
        for topic in topics {
            refs.push(phone.push_join(topic, payload.clone()).await);
        }
        // Whoever is answered last was answered a moment ago.
        for reference in &refs {
            let reply = phone.reply_to(&json!(reference)).await;
            assert_eq!(reply.payload["status"], "ok", "{}", reply.text);
        }
        relay.kill().await;
        let kind = format!("missed {round}");
        pg.exec(&notify(ALICE, &kind)).await;
        relay.start_again().await;
        let mut phone = Phone::connect(&base, &token, Version::V2).await;
        for topic in topics {
            phone.subscribe(topic, &watching(&["notifications"])).await;
        }
        mark(&pg, &kind).await;
        let mut missed = Vec::new();
        for _ in topics {
            missed.extend(phone.changes_before(&kind).await.into_iter().filter(|change| change.table() != "marks"));
        }
        let mut of: Vec<&str> = missed.iter().map(|change| &*change.topic).collect();
        of.sort_unstable();
        assert_eq!(of, topics, "{missed:?}");
        drop(phone);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_relay_saves_after_another_has_taken_over_has_no_effect() {
    let scene = scene().await;
    let token = token::user(ALICE);
    let mut phone = joined(&scene.relay, "phone", &token).await;
    until("its place is saved", async || saved(&scene.relay).await > 0.0).await;
    // As another relay does it, which goes on with a place of its own.
    scene.exec("update rowcast.frontier_owners set relay = 'another'; update rowcast.frontiers set lsn = '0/1'").await;
    scene.exec(&notify(ALICE, "seen")).await;
    phone.next_change().await;
    // Answered, so that there is something to save.
    receipted(&scene.relay, &mut phone).await;
    until("it notices", async || scene.relay.metric("rowcast_frontier_saves_total", "fenced").await > 0.0).await;
    let client = scene.pg.client().await;
    let row = client.query_one("select count(*) from rowcast.frontiers where lsn <> '0/1'", &[]).await.expect("a row");
    assert_eq!(row.get::<_, i64>(0), 0);
    // It still has the slot, so it takes them back, and reads what is there by now.
    let sql = "select count(*) from rowcast.frontier_owners where relay <> 'another'";
    until("it takes over", async || client.query_one(sql, &[]).await.expect("a row").get::<_, i64>(0) == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_in_order_loses_no_receipt() {
    let pg = database("").await;
    let mut relay = RelayProcess::start(&pg).await;
    let base = format!("{}/device/phone", relay.base());
    let token = token::user(ALICE);
    let mut phone = Phone::connect(&base, &token, Version::V1).await;
    phone.subscribe("room", &watching(&["notifications"])).await;
    for round in 0..3 {
        let kind = format!("seen {round}");
        pg.exec(&notify(ALICE, &kind)).await;
        assert_eq!(phone.next_change().await.record()["kind"], *kind);
        // Asked after a tenth of a second and once more after a second.
        for _ in 0..30 {
            phone.heartbeat().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let stopping = relay.stop();
        let (code, status) = tokio::join!(phone.close_code(), stopping);
        assert!(code == Some(1012) && status.success(), "{}", relay.log());
        let kind = format!("missed {round}");
        pg.exec(&notify(ALICE, &kind)).await;
        relay.start_again().await;
        phone = Phone::connect(&base, &token, Version::V1).await;
        phone.subscribe("room", &watching(&["notifications"])).await;
        assert_eq!(phone.next_change().await.record()["kind"], *kind, "nothing comes twice");
    }
    assert!(!relay.log().contains("device/phone"), "a device is not logged");
}

/// Rows that arrived, by number, with how often.
#[derive(Default)]
struct Tally(BTreeMap<i64, u32>);

impl Tally {
    fn add(&mut self, changes: &[Change]) {
        let numbers = changes.iter().filter(|change| change.table() == "notifications");
        for number in numbers.filter_map(|change| change.record()["kind"].as_str()?.parse().ok()) {
            *self.0.entry(number).or_default() += 1;
        }
    }

    #[track_caller]
    fn check(&self, who: &str, sent: i64) {
        let lost: Vec<i64> = (0..sent).filter(|number| !self.0.contains_key(number)).collect();
        assert!(lost.is_empty(), "{who} lost {} of {sent}: {lost:?}", lost.len());
    }
}

async fn write_on(pg: &TestPg, from: i64, count: i64) {
    let client = pg.client().await;
    for number in from..from + count {
        client.batch_execute(&notify(ALICE, &number.to_string())).await.expect("a row");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_clients_that_name_their_device_lose_nothing_while_the_relay_is_killed_under_load() {
    let pg = database("").await;
    let mut relay = RelayProcess::start(&pg).await;
    let token = token::user(ALICE);
    let entries = watching(&["notifications"]);
    let mut phones = Vec::new();
    for (stock, device) in [(Stock::JavaScript, "js"), (Stock::Python, "py")] {
        let mut phone = SdkPhone::connect_device(stock, &relay.base(), &token, device).await;
        phone.subscribe("room", &entries).await;
        phones.push((phone, Tally::default()));
    }
    let (rounds, each) = (3, 150);
    for round in 0..rounds {
        let writing = write_on(&pg, round * each, each);
        let killing = async {
            // Among the rows, while some are under way.
            tokio::time::sleep(Duration::from_millis(600)).await;
            relay.kill().await;
            relay.start_again().await;
        };
        tokio::join!(writing, killing);
    }
    // Until it has come back and caught up: the mark is the last of all.
    mark(&pg, "end").await;
    for (phone, tally) in &mut phones {
        tally.add(&phone.changes_before("end").await);
    }
    for ((phone, tally), who) in phones.into_iter().zip(["JavaScript", "Python"]) {
        tally.check(who, rounds * each);
        phone.exit().await;
    }
}
