//! Filters that only Postgres can judge: it is asked after authorization, and what it can't take ends one subscription and
//! delays no other.

use serde_json::{Value, json};

use super::{Scene, filtered, watching};
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Change, Phone, summary};

/// `papers` belong to their owner; of `posts` everybody may see what is published, and Postgres is asked about that.
const TABLES: &str = "
    create extension citext;
    create collation german (provider = icu, locale = 'de-DE');
    create type mood as enum ('sad', 'happy');
    create type pair as (a int, b int);
    create table public.papers (
        id int primary key, user_id uuid not null, title text collate german, tag citext, pause interval, tags int[], mood mood,
        spot pair, plain text, body jsonb);
    alter table public.papers replica identity full;
    alter table public.papers enable row level security;
    create policy own on public.papers for select to authenticated using (user_id = auth.uid());
    create table public.posts (id int primary key, state text collate german);
    alter table public.posts enable row level security;
    create policy published on public.posts for select to authenticated using (starts_with(lower(state), 'public'));
    grant select on public.papers, public.posts to authenticated;
    alter publication supabase_realtime add table public.papers, public.posts;";

/// One frame's worth of entries on `papers`, and the marks.
fn papers(filters: &[&str]) -> Value {
    let entry = |filter: &&str| json!({ "event": "*", "schema": "public", "table": "papers", "filter": filter });
    let marks = json!({ "event": "*", "schema": "public", "table": "marks" });
    filters.iter().map(entry).chain([marks]).collect()
}

fn paper(id: u32, user: &str, title: &str) -> String {
    format!("insert into papers (id, user_id, title) values ({id}, '{user}', '{title}')")
}

/// The filters whose entries the change names.
fn passed<'a>(change: &Change, ids: &[i64], filters: &[&'a str]) -> Vec<&'a str> {
    let mut indexes: Vec<usize> =
        change.ids.iter().map(|id| ids.iter().position(|known| known == id).expect("an id of ours")).collect();
    assert!(change.ids.is_sorted(), "{:?}", change.ids);
    indexes.sort_unstable();
    indexes.into_iter().map(|index| filters[index]).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operator_works_on_insert_update_and_delete_for_the_owner_alone() {
    let scene = Scene::with(TABLES).await;
    // All of these hold, and each of them is Postgres's to judge but for the first.
    let yes = [
        "id=eq.1",
        "tag=eq.SHOUT",
        "tag=neq.whisper",
        "title=lt.zebra",
        "title=lte.Änne",
        "title=gt.a",
        "title=gte.Änne",
        "mood=in.(sad,happy),mood=gt.sad",
        "tag=in.(x,sHOUT)",
        "tag=like.sh%",
        "title=ilike.äN%",
        "spot=is.null",
        "tags=isdistinct.{2}",
        "title=match.^Ä",
        "title=imatch.^ä.*E$",
        "pause=eq.1 day",
        "body=gt.{}",
        "title=not.gt.zebra",
        "title=not.ilike.x%",
        "title=not.match.^a",
        "tags=not.isdistinct.{1}",
        "spot=not.is.null",
    ];
    let no = [
        "tag=eq.whisper",
        "title=gt.zebra",
        "title=not.ilike.än%",
        "tag=not.in.(x,shout)",
        "title=match.^ä",
        "tags=isdistinct.{1}",
        "pause=gt.24 hours",
        "plain=ilike.%",
        "plain=not.ilike.%",
        "title=imatch.x,id=eq.1",
    ];
    // A composite that is neither NULL nor NOT NULL.
    let (half, yes): (Vec<&str>, Vec<&str>) = yes.into_iter().partition(|filter| filter.starts_with("spot"));
    let all: Vec<&str> = yes.iter().chain(&no).chain(&half).copied().collect();
    let mut alice = scene.relay.phone(&token::user(ALICE)).await;
    let mut bob = scene.relay.phone(&token::user(BOB)).await;
    let ids = alice.subscribe("room", &papers(&all)).await;
    bob.subscribe("room", &papers(&all)).await;
    scene
        .exec(&format!(
            "insert into papers values (1, '{ALICE}', 'Änne', 'Shout', '24:00:00', '{{1}}', 'happy', '(1,)', null, '{{\"a\": 1}}')"
        ))
        .await;
    scene.exec("update papers set plain = null").await;
    scene.exec("update papers set tag = 'whisper'").await;
    scene.exec("delete from papers").await;
    scene.mark("end").await;
    let changes = alice.changes_before("end").await;
    assert_eq!(summary(&changes, "id"), ["INSERT 1", "UPDATE 1", "UPDATE 1", "DELETE 1"]);
    assert_eq!(passed(&changes[0], &ids, &all), yes);
    assert_eq!(passed(&changes[1], &ids, &all), yes);
    let whispered: Vec<&str> = all
        .iter()
        .copied()
        .filter(|f| {
            yes.contains(f) && !f.starts_with("tag=") || matches!(*f, "tag=eq.whisper" | "tag=not.in.(x,shout)")
        })
        .collect();
    assert_eq!(passed(&changes[2], &ids, &all), whispered);
    assert_eq!(passed(&changes[3], &ids, &all), whispered);
    bob.expect_nothing_before("end").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_frame_has_the_ids_of_memorys_and_of_postgres_entries() {
    let scene = Scene::with(TABLES).await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    let filters = ["id=gte.1", "title=ilike.%PINE%", "title=ilike.%OAK%", "id=eq.2"];
    let ids = phone.subscribe("room", &papers(&filters)).await;
    for (id, title) in [(1, "A pine"), (2, "An oak"), (3, "A yew")] {
        scene.exec(&paper(id, ALICE, title)).await;
    }
    scene.mark("end").await;
    let changes = phone.changes_before("end").await;
    let matched: Vec<_> = changes.iter().map(|change| passed(change, &ids, &filters)).collect();
    let expected: [Vec<&str>; 3] =
        [vec!["id=gte.1", "title=ilike.%PINE%"], vec!["id=gte.1", "title=ilike.%OAK%", "id=eq.2"], vec!["id=gte.1"]];
    assert_eq!(matched, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_wait_for_a_filter_and_rows_that_do_not_keep_their_order() {
    let scene = Scene::with(TABLES).await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    let entries = json!([
        { "event": "*", "schema": "public", "table": "papers", "filter": "title=imatch.a$" },
        { "event": "*", "schema": "public", "table": "posts", "filter": "state=ilike.PUBLIC%" },
        { "event": "*", "schema": "public", "table": "marks" },
    ]);
    phone.subscribe("room", &entries).await;
    let mut expected = Vec::new();
    for id in 0..30 {
        let title = if id % 3 == 0 { "b" } else { "A" };
        let state = if id % 2 == 0 { "public" } else { "draft" };
        scene.exec(&paper(id, ALICE, title)).await;
        scene.exec(&format!("insert into posts values ({id}, '{state}')")).await;
        scene.mark(&format!("m{id}")).await;
        expected.extend((title == "A").then(|| format!("papers {id}")));
        expected.extend((state == "public").then(|| format!("posts {id}")));
        expected.push(format!("marks m{id}"));
    }
    scene.mark("end").await;
    let changes = phone.changes_before("end").await;
    let text = |c: &Change| match c.table() {
        "marks" => format!("marks {}", c.record()["note"].as_str().expect("a note")),
        table => format!("{table} {}", c.record()["id"]),
    };
    assert_eq!(changes.iter().map(text).collect::<Vec<_>>(), expected);
}

/// `rowcast_filter_terms_total`: conditions that Postgres was asked about.
async fn asked(scene: &Scene) -> f64 {
    scene.relay.metric("rowcast_filter_terms_total", "").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_is_asked_about_once_and_only_for_who_may_see_it() {
    let scene = Scene::with(TABLES).await;
    let mut phones = Vec::new();
    for user in [ALICE, ALICE, ALICE, BOB] {
        let mut phone = scene.relay.phone(&token::user(user)).await;
        phone.subscribe("room", &filtered("papers", "title=ilike.X%")).await;
        phones.push(phone);
    }
    let mut drafts = scene.relay.phone(&token::user(BOB)).await;
    drafts.subscribe("room", &filtered("posts", "state=ilike.%T")).await;
    scene.exec(&paper(1, "00000000-0000-4000-8000-000000000000", "x of nobody")).await;
    scene.exec("insert into posts values (1, 'draft')").await;
    scene.mark("nobody").await;
    for phone in phones.iter_mut().chain([&mut drafts]) {
        phone.expect_nothing_before("nobody").await;
    }
    assert_eq!(asked(&scene).await, 0.0, "nobody may see these rows");
    scene.exec(&paper(2, ALICE, "x of Alice")).await;
    scene.exec("insert into posts values (2, 'public t')").await;
    scene.mark("hers").await;
    for (phone, sees) in phones.iter_mut().zip([1, 1, 1, 0]) {
        assert_eq!(phone.changes_before("hers").await.len(), sees);
    }
    assert_eq!(drafts.changes_before("hers").await.len(), 1);
    assert_eq!(asked(&scene).await, 2.0, "one condition for three phones, and one of another table");
    // A NULL needs no question.
    scene.exec(&format!("insert into papers (id, user_id) values (3, '{ALICE}')")).await;
    scene.mark("null").await;
    phones[0].expect_nothing_before("null").await;
    assert_eq!(asked(&scene).await, 2.0);
}

/// Every match of it is tried: on an odd number of letters that takes hours.
const HOSTILE: &str = r"title=match.^(a*)(a*)(a*)(a*)\1\2\3\4$";

async fn messages_until_ended(phone: &mut Phone) -> Vec<String> {
    let mut messages = Vec::new();
    while !messages.last().is_some_and(|m: &String| m.starts_with("Subscription ended")) {
        let system = phone.system("room").await;
        assert_eq!(
            (&system["status"], &system["extension"]),
            (&json!("error"), &json!("postgres_changes")),
            "{system}"
        );
        messages.push(system["message"].as_str().expect("a text").to_owned());
    }
    messages
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_pattern_ends_its_own_subscription_and_no_other() {
    let scene = Scene::with(TABLES).await;
    let mut attacker = scene.relay.phone(&token::user(ALICE)).await;
    let mut witness = scene.relay.phone(&token::user(ALICE)).await;
    attacker.subscribe("room", &papers(&[HOSTILE])).await;
    witness.subscribe("room", &papers(&["title=imatch.^A"])).await;
    let long = "a".repeat(801);
    for id in 0..40 {
        scene.exec(&paper(id, ALICE, &long)).await;
    }
    scene.mark("end").await;
    assert_eq!(witness.changes_before("end").await.len(), 40);
    let messages = messages_until_ended(&mut attacker).await;
    let (ended, gaps) = messages.split_last().expect("a message");
    assert_eq!(
        ended,
        "Subscription ended: the filter match on column title took longer than 100ms for the database to judge, repeatedly; \
         use a simpler one"
    );
    assert!(!gaps.is_empty() && gaps.iter().all(|gap| gap.starts_with("Gap: ")), "{gaps:?}");
    let timeouts = scene.relay.metric("rowcast_filter_failures_total", "timeout").await;
    assert!((2.0..=8.0).contains(&timeouts), "{timeouts} timeouts for 40 rows");
    assert_eq!(scene.relay.metric("rowcast_subscriptions", "").await, 2.0, "the witness's two entries");

    // Whoever comes with the same pattern is not waited for again.
    attacker.subscribe("room", &papers(&[HOSTILE])).await;
    scene.exec(&paper(100, ALICE, &long)).await;
    scene.mark("again").await;
    assert_eq!(witness.changes_before("again").await.len(), 1);
    messages_until_ended(&mut attacker).await;
    assert_eq!(scene.relay.metric("rowcast_filter_failures_total", "timeout").await, timeouts);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ever_new_hostile_patterns_do_not_keep_the_others_waiting() {
    let scene = Scene::with(TABLES).await;
    let mut attacker = scene.relay.phone(&token::user(BOB)).await;
    let mut witness = scene.relay.phone(&token::user(ALICE)).await;
    let hostile: Vec<String> = (0..80).map(|n| format!("{HOSTILE}|z{n}")).collect();
    attacker.subscribe("room", &papers(&hostile.iter().map(String::as_str).collect::<Vec<_>>())).await;
    witness.subscribe("room", &papers(&["title=imatch.^A"])).await;
    for id in 0..10 {
        scene.exec(&paper(2 * id, BOB, &"a".repeat(801))).await;
        scene.exec(&paper(2 * id + 1, ALICE, "a")).await;
    }
    scene.mark("end").await;
    assert_eq!(witness.changes_before("end").await.len(), 10);
    let message = attacker.system("room").await["message"].to_string();
    assert!(message.starts_with("\"Gap: "), "{message}");
    // Two seconds of his are up after 21, and what is under way is finished.
    let failures = |kind| scene.relay.metric("rowcast_filter_failures_total", kind);
    let timeouts = failures("timeout").await;
    assert!((8.0..=48.0).contains(&timeouts), "{timeouts} timeouts of 80 patterns on 10 rows");
    assert!(failures("too_many").await >= 48.0 && failures("over_budget").await > 0.0);
}

/// A table for everybody, anonymous or not.
const OPEN: &str = "create table public.open (id int primary key, title text);
    grant select on public.open to authenticated, anon; alter publication supabase_realtime add table public.open;";

/// Entries on `open`, and the marks.
fn open(filters: impl Iterator<Item = String>) -> Value {
    let entry = |filter| json!({ "event": "*", "schema": "public", "table": "open", "filter": filter });
    let marks = json!({ "event": "*", "schema": "public", "table": "marks" });
    filters.map(entry).chain([marks]).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_anonymous_client_costs_other_anonymous_clients_nothing() {
    let scene = Scene::with(OPEN).await;
    let mut attacker = scene.relay.phone(&token::role("anon")).await;
    let mut witness = scene.relay.phone(&token::role("anon")).await;
    attacker.subscribe("room", &open((0..40).map(|n| format!("{HOSTILE}|z{n}")))).await;
    witness.subscribe("room", &filtered("open", "title=ilike.%A%")).await;
    for id in 0..6 {
        scene.exec(&format!("insert into open values ({id}, '{}')", "a".repeat(801))).await;
    }
    for id in 10..14 {
        scene.exec(&format!("insert into open values ({id}, 'a')")).await;
    }
    scene.mark("end").await;
    assert_eq!(witness.changes_before("end").await.len(), 10, "no gap, and not ended");
    assert!(scene.relay.metric("rowcast_filter_failures_total", "over_budget").await > 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patterns_that_are_slow_and_answer_are_paid_for_by_who_brought_them() {
    let scene = Scene::with(OPEN).await;
    let mut attacker = scene.relay.phone(&token::user(BOB)).await;
    let mut witness = scene.relay.phone(&token::user(ALICE)).await;
    witness.subscribe("room", &filtered("open", "title=ilike.%A%")).await;
    attacker.subscribe("room", &open((0..40).map(|n| format!("{HOSTILE}|z{n}")))).await;
    // It takes some milliseconds to find out that these do not match.
    for id in 0..20 {
        scene.exec(&format!("insert into open values ({id}, '{}')", "a".repeat(51))).await;
    }
    scene.mark("end").await;
    assert_eq!(witness.changes_before("end").await.len(), 20);
    assert!(scene.relay.metric("rowcast_filter_failures_total", "over_budget").await > 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_filters_of_one_user_leave_room_for_those_of_others() {
    let scene = Scene::with(OPEN).await;
    let mut greedy = scene.relay.phone(&token::user(BOB)).await;
    let mut witness = scene.relay.phone(&token::user(ALICE)).await;
    for room in 0..2 {
        greedy.subscribe(&format!("r{room}"), &open((0..30).map(|n| format!("title=ilike.%{room}x{n}%")))).await;
    }
    witness.subscribe("room", &filtered("open", "title=ilike.%H%")).await;
    scene.exec("insert into open values (1, 'hi')").await;
    scene.mark("end").await;
    assert_eq!(witness.changes_before("end").await.len(), 1);
    assert_eq!(asked(&scene).await, 33.0, "32 of his and hers");
    assert_eq!(scene.relay.metric("rowcast_filter_failures_total", "too_many").await, 28.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_has_a_thousand_conditions_at_most() {
    let scene = Scene::with(OPEN).await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    let filters = |entries| {
        let conditions =
            |entry| (0..100).map(|n| format!("title=not.like.%q{n}z{entry}%")).collect::<Vec<_>>().join(",");
        open((0..entries).map(conditions))
    };
    phone.join("many", &filters(11)).await;
    let system = phone.system("many").await;
    let expected =
        "Unable to subscribe to changes: the channel's filters have 1100 conditions in all; at most 1000 are allowed";
    assert_eq!((&system["status"], &system["message"]), (&json!("error"), &json!(expected)));
    phone.subscribe("room", &filters(10)).await;
    scene.exec("insert into open values (1, 'hi'), (2, repeat('q', 9000))").await;
    scene.mark("end").await;
    // The large value is asked about: 32 conditions of a user, and what is beyond is a gap.
    assert_eq!(summary(&phone.changes_before("end").await, "id"), ["INSERT 1"]);
    assert_eq!(asked(&scene).await, 32.0);
}

/// What makes one of them slow is a row that another may not even see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_that_is_slow_on_somebodys_large_row_goes_on_for_everybody() {
    let scene = Scene::with(TABLES).await;
    let mut bob = scene.relay.phone(&token::user(BOB)).await;
    let mut alice = scene.relay.phone(&token::user(ALICE)).await;
    bob.subscribe("room", &filtered("papers", HOSTILE)).await;
    alice.subscribe("room", &filtered("papers", HOSTILE)).await;
    for id in 0..5 {
        scene.exec(&paper(id, BOB, &"a".repeat((64 << 10) + 1))).await;
        scene.mark(&format!("m{id}")).await;
        bob.expect_nothing_before(&format!("m{id}")).await;
    }
    scene.exec(&paper(10, ALICE, "aaaa")).await;
    scene.mark("end").await;
    let changes = alice.changes_before("end").await;
    assert_eq!(changes.iter().filter(|change| change.table() == "papers").count(), 1);
    assert_eq!(scene.relay.metric("rowcast_filter_failures_total", "timeout").await, 5.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_token_brings_an_ended_subscription_back() {
    let scene = Scene::with(TABLES).await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.subscribe("room", &papers(&[HOSTILE])).await;
    for id in 0..10 {
        scene.exec(&paper(id, ALICE, &"a".repeat(801))).await;
    }
    messages_until_ended(&mut phone).await;
    phone.push_token("room", &token::short(ALICE, 7200)).await;
    while phone.system("room").await["message"] != "Subscribed to PostgreSQL" {}
    scene.mark("end").await;
    phone.changes_before("end").await;
}

/// The check of a literal takes a second once `busy` has a row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_that_are_checked_again_for_long_keep_nobody_waiting() {
    let scene = Scene::with(
        "create table public.busy ();
         create function public.slow(text) returns bool language sql as
             'select count(pg_sleep(1)) >= 0 from public.busy';
         create domain public.slow_text as text check (public.slow(value));
         create table public.slow (id int primary key, t slow_text);
         grant select on public.busy to public; grant select on public.slow to authenticated;
         alter publication supabase_realtime add table public.slow;",
    )
    .await;
    let mut slow = scene.relay.phone(&token::user(BOB)).await;
    let mut witness = scene.relay.phone(&token::user(ALICE)).await;
    witness.subscribe("room", &watching(&[])).await;
    // Too long to be remembered.
    let long = "x".repeat(4100);
    let entry = |n| json!({ "event": "*", "schema": "public", "table": "slow", "filter": format!("t=eq.{n}{long}") });
    slow.subscribe("room", &(0..30).map(entry).collect()).await;
    scene.exec("insert into busy default values").await;
    scene.exec("alter table public.slow add column more int").await;
    scene.exec(&format!("insert into public.slow values (1, '7{long}')")).await;
    scene.mark("end").await;
    witness.expect_nothing_before("end").await;
    // What came meanwhile is not lost to those who waited.
    scene.exec("delete from busy").await;
    assert_eq!(slow.system("room").await["message"], "Subscribed to PostgreSQL");
    assert_eq!(slow.next_change().await.table(), "slow");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_role_only_what_memory_judges_is_accepted() {
    let scene = Scene::with(TABLES).await;
    scene.exec("drop role rowcast_filter").await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    let reply = phone.join("asked", &papers(&["title=ilike.x%"])).await;
    assert_eq!(reply["status"], "ok", "{reply}");
    let system = phone.system("asked").await;
    let message = system["message"].as_str().expect("a text");
    assert_eq!(system["status"], "error");
    assert!(message.contains("rowcast_filter") && message.contains("`rowcast migrate up`"), "{message}");
    // The rest works, patterns that need no collation included.
    phone.subscribe("memory", &papers(&["title=like.x%"])).await;
    scene.exec(&paper(1, ALICE, "xy")).await;
    scene.exec(&paper(2, ALICE, "Xy")).await;
    scene.mark("end").await;
    assert_eq!(summary(&phone.changes_before("end").await, "title"), ["INSERT xy"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_postgres_would_refuse_is_refused_at_the_door() {
    let scene = Scene::with(TABLES).await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    for (index, (filter, expected)) in [
        ("title=match.(", "ERROR P0001 (raise_exception) invalid regular expression for match filter: "),
        ("title=ilike.x\\", "ERROR 22025 (invalid_escape_sequence) LIKE pattern must not end with escape character"),
        ("pause=gt.soon", "ERROR 22007 (invalid_datetime_format) invalid input syntax for type interval: \"soon\""),
        (
            "body=ilike.x",
            "ERROR P0001 (raise_exception) operator ilike requires a text-compatible column type, got jsonb",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let topic = format!("room {index}");
        phone.join(&topic, &papers(&[filter])).await;
        let system = phone.system(&topic).await;
        let message = system["message"].as_str().expect("a text");
        assert!(message.contains(&format!("Exception: {expected}")), "{message}");
    }
}

/// Partitions log their own keys: the root's old row claims to be complete, and has NULL for what was not logged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_row_of_a_partitioned_root_is_not_found_by_values_that_were_not_logged() {
    let scene = Scene::with(
        "create table public.parted (id int primary key, note text) partition by range (id);
         create table public.parted_1 partition of public.parted for values from (0) to (100);
         alter table public.parted replica identity full; grant select on public.parted to authenticated;
         alter publication supabase_realtime set (publish_via_partition_root = true);
         alter publication supabase_realtime add table public.parted;",
    )
    .await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.subscribe("null", &filtered("parted", "note=is.null")).await;
    phone.subscribe("key", &filtered("parted", "id=eq.1")).await;
    scene.exec("insert into parted values (1, 'n'); delete from parted").await;
    scene.mark("end").await;
    let mut received = Vec::new();
    loop {
        let change = phone.next_change().await;
        if change.is_mark("end") {
            break;
        }
        received.push((change.topic.clone(), change.kind().to_owned()));
    }
    let expected = [("key", "INSERT"), ("key", "DELETE")].map(|(topic, kind)| (topic.to_owned(), kind.to_owned()));
    assert_eq!(received, expected);
}
