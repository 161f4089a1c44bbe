//! What memory says of generated policies, users, topics and facts, against what a probe of the real table says.
//!
//! Everything follows from a seed, which is printed; to see one again: `ROWCAST_MEMBERS_SEED=n`. More rounds:
//! `ROWCAST_MEMBERS_ROUNDS=n`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;

use super::{ALICE, BOB, asking, database, prober, reads, writes};
use crate::authority::AuthorityError;
use crate::catalog::{Catalog, Wanted, read};
use crate::policy::facts::{self, Facts, Layout, LoadLimits};
use crate::policy::rule::{KnownViewer, Viewer};
use crate::policy::{Asking, MemberEngine, MemberPlan, Way};
use crate::testing::{PATIENCE, TestDatabase};

const WORLD: &str = "
    create table rooms (name text primary key, open boolean, owner uuid);
    create table room_members (room text, user_id uuid, banned boolean, primary key (room, user_id));
    grant select on rooms, room_members to anon, authenticated, service_role;
    create function is_member(of text) returns boolean language sql stable security definer set search_path = '' as
        $$ select exists (select 1 from public.room_members m
                          where m.room = of and m.user_id = auth.uid() and not m.banned) $$;
    create function mine() returns setof text language sql stable security definer set search_path = '' as
        $$ select m.room from public.room_members m where m.user_id = auth.uid() $$;
    alter table rooms enable row level security;
    create policy open on rooms for select using (open or owner = auth.uid());
    create collation loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    create table halls (id bigint primary key, key uuid, tag text, loose text collate loose, pattern text);
    create table hall_members (hall bigint, user_id uuid, level int, primary key (hall, user_id));
    grant select on halls, hall_members to anon, authenticated, service_role;
    create function is_hall_member(topic text) returns boolean language sql stable security definer set search_path = '' as
        $$ select exists (select 1 from public.hall_members m
                          where m.hall::text = split_part(topic, ':', 2) and m.user_id = auth.uid()) $$;
    create function hall_of(text) returns text language sql stable set search_path = public as
        $$ select replace($1, 'room:', '') $$;
    create function other_part() returns boolean language sql stable as
        $$ select split_part(realtime.topic(), ':', 1) = 'room' $$;";

const ATOMS: &[&str] = &[
    "true",
    "false",
    "extension = 'broadcast'",
    "extension in ('presence')",
    "extension in ('broadcast', 'presence')",
    "messages.extension <> 'presence'",
    "topic = realtime.topic()",
    "realtime.topic() = 'a'",
    "(select realtime.topic()) = 'room:1'",
    "realtime.messages.topic <> 'b'",
    "private",
    "private is false",
    "event is null",
    "payload is null",
    "binary_payload is not null",
    "auth.uid()::text = realtime.topic()",
    "auth.uid() = realtime.topic()::uuid",
    "realtime.topic() = auth.jwt() ->> 'team'",
    "topic = (select auth.jwt() ->> 'team')",
    "auth.role() = 'authenticated'",
    "auth.uid() is not null",
    "exists (select 1 from room_members m where m.user_id = auth.uid() and m.room = realtime.topic())",
    "exists (select user_id from room_members where user_id = (select auth.uid()) and room = (select realtime.topic())
        and realtime.messages.extension in ('broadcast'))",
    "realtime.topic() in (select room from room_members where user_id = auth.uid())",
    "(select realtime.topic()) in (select room from room_members where user_id = auth.uid() and not banned)",
    "topic not in (select room from room_members where banned)",
    "exists (select 1 from rooms r where r.name = realtime.topic() and r.open)",
    "realtime.topic() in (select r.name from rooms r join room_members m on m.room = r.name where m.user_id = auth.uid())",
    "not exists (select 1 from room_members m where m.user_id = auth.uid() and m.banned)",
    "is_member(realtime.topic())",
    "(select is_member(realtime.topic()))",
    "realtime.topic() in (select mine())",
    "nullif(realtime.topic(), 'a') is null",
    "coalesce(realtime.topic(), 'x') = 'x'",
    "current_setting('realtime.topic') = 'a'",
    "current_setting('realtime.topic', true) <> ''",
    "realtime.topic() is null",
    "now() at time zone 'utc' >= inserted_at",
    "id is not null",
    "current_setting('request.headers', true) is not null",
    "exists (select 1 from realtime.messages m where m.topic = 'x')",
];

/// What is made of the topic in memory.
const TOPIC_ATOMS: &[&str] = &[
    "realtime.topic() like 'room:%'",
    "topic like '%:_'",
    "topic not like '%o%m:%'",
    "(select realtime.topic()) ~~ 'r__m:%'",
    r"topic like '%\%'",
    r"realtime.topic() like '%\\%'",
    r"realtime.topic() like 'a\_b'",
    "topic like '%!%%' escape '!'",
    "topic like 'ü%'",
    "starts_with(realtime.topic(), 'room:')",
    "realtime.topic() ^@ 'room'",
    "split_part(realtime.topic(), ':', 1) = 'room'",
    "split_part(topic, ':', -1) = '1'",
    "split_part(topic, ':', 3) <> ''",
    "split_part(topic, '', 1) = topic",
    "split_part(topic, 'oo', 2) like 'm%'",
    "(string_to_array(realtime.topic(), ':'))[2] = '1'",
    "(string_to_array(topic, ':'))[3] is null",
    "substring(topic from 6) = '1'",
    "substring(realtime.topic(), 1, 4) = 'room'",
    "substr(realtime.topic(), -1, 6) = 'room'",
    "left(topic, 5) = 'room:'",
    "right(realtime.topic(), -5) = '1'",
    "right(topic, 2) = ':1'",
    "left(topic, -1) = 'room:'",
    "replace(topic, 'room:', '') = '1'",
    "(replace(realtime.topic(), ':', '%') like 'room\\%1')",
    "realtime.topic() = 'user:' || auth.uid()::text",
    "topic = 'user:' || (select auth.uid())::text || ':inbox'",
    "'team:' || (auth.jwt() ->> 'team') = realtime.topic()",
    "realtime.topic() <> 'user:' || auth.uid()::text",
    "not (topic = 'team:' || (auth.jwt() ->> 'team'))",
    "topic in ('a', 'user:' || auth.uid()::text, 'team:' || (auth.jwt() ->> 'team'))",
    "topic not in ('a', 'user:' || auth.uid()::text)",
    "split_part(topic, ':', 2) = auth.uid()::text",
    "split_part(topic, ':', 2)::uuid = auth.uid()",
    "split_part(realtime.topic(), ':', 2)::int > 3",
    "topic || ':x' = 'room:1:x'",
    "split_part(topic, ':', 1) || split_part(topic, ':', 2) = 'room1'",
    "exists (select 1 from hall_members m where m.user_id = auth.uid() and m.hall::text = split_part(realtime.topic(), ':', 2))",
    "topic like 'room:%' and exists (select 1 from hall_members m
        where m.user_id = auth.uid() and m.hall = split_part(topic, ':', 2)::bigint)",
    "exists (select 1 from hall_members m where m.user_id = auth.uid() and 'room:' || m.hall::text = realtime.topic())",
    "exists (select 1 from hall_members m where m.user_id = auth.uid() and 'room:' || m.hall = (select realtime.topic()))",
    "realtime.topic() in (select 'room:' || m.hall::text from hall_members m where m.user_id = auth.uid())",
    "topic not in (select 'room:' || h.tag from halls h)",
    "not exists (select 1 from halls h where 'room:' || h.tag = topic)",
    "(realtime.topic() = 'room:' || (select m.hall from hall_members m where m.user_id = auth.uid() and m.hall = 1)::text) is null",
    "('room:' || (auth.jwt() ->> 'none')) is null",
    "(topic = 'room:' || (auth.jwt() ->> 'none')) is null",
    "exists (select 1 from halls h where h.key::text = split_part(topic, ':', 2))",
    "exists (select 1 from halls h where h.key = (string_to_array(topic, ':'))[2]::uuid)",
    "exists (select 1 from halls h where h.tag = right(topic, -5) and topic like 'room:%')",
    "exists (select 1 from halls h where h.tag || ':chat' = topic)",
    "(select h.tag from halls h where h.id::text = split_part(realtime.topic(), ':', 2)) = 'üü'",
    "is_hall_member(realtime.topic())",
    "hall_of(topic) = '1'",
];

/// What only Postgres knows.
const ASKED_ATOMS: &[&str] = &[
    "realtime.topic() ilike 'ROOM:%'",
    "realtime.topic() ~ '^room:[0-9]+$'",
    "lower(topic) = 'room:1'",
    "topic collate loose = 'ROOM:1'",
    "topic collate loose like 'room:%'",
    "exists (select 1 from halls h where h.loose = split_part(topic, ':', 2))",
    "exists (select 1 from halls h where 'room:' || h.loose = topic)",
    "exists (select 1 from halls h where topic like h.pattern)",
    "exists (select 1 from halls h where split_part(h.tag, ':', 1) = topic)",
    "topic like 'room' || '%'",
    "split_part(topic, ':', length(topic)) = '1'",
    "split_part(topic, ':', 0) = ''",
    "substring(topic, 2, -1) = ''",
    "topic = 'a' || coalesce(event, '') || topic",
    "concat('user:', auth.uid()) = topic",
    "substring(topic from 'room:(.*)') = '1'",
    "topic > 'user:' || auth.uid()::text",
    "other_part()",
];

const TOPICS: &[&str] = &["a", "b", "room:1", "room:2", "", "it's", ALICE, "team"];

/// Of which each round takes some.
const ODD_TOPICS: &[&str] = &[
    "room:",
    "room",
    ":",
    "::::",
    "room:1:chat",
    "room::1",
    ":room:1",
    "rooms:1",
    "ROOM:1",
    "%",
    "_",
    "room:%",
    "room:_",
    "\\",
    "a\\b",
    "a_b",
    "100%",
    "ü:1",
    "üü",
    "room:üü",
    "üü:chat",
    "房间:一",
    "😀",
    "user:a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    "user:",
    "user:a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11:inbox",
    "team:a",
    "team:team",
    "team:7",
    "room: 1 ",
    "room:01",
    "room:+1",
    "room:0x1",
    "room:A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
    "room:a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    "room:9223372036854775808",
    "a:b:c:d:e:f:g:h:i:j:k:l:m:n:o:p",
    "room:1\n",
    "\u{ff}",
    "oo",
    "roomoomm",
];

fn condition(dice: &mut StdRng, depth: u32) -> String {
    let atom = |dice: &mut StdRng| {
        let atoms = match dice.random_range(0..20) {
            0 => ASKED_ATOMS,
            1..=10 => TOPIC_ATOMS,
            _ => ATOMS,
        };
        (*atoms.choose(dice).expect("some")).to_owned()
    };
    match dice.random_range(0..10) {
        0..=4 => atom(dice),
        _ if depth == 0 => atom(dice),
        5 | 6 => format!("({} and {})", condition(dice, depth - 1), condition(dice, depth - 1)),
        7 | 8 => format!("({} or {})", condition(dice, depth - 1), condition(dice, depth - 1)),
        _ => format!("not ({})", condition(dice, depth - 1)),
    }
}

fn policies(dice: &mut StdRng) -> String {
    let mut sql = String::new();
    let count = dice.random_range(1..=3);
    for n in 0..count {
        let kind = if n > 0 && dice.random_bool(0.3) { "as restrictive" } else { "" };
        let role = *["authenticated", "public", "anon, authenticated"].choose(dice).expect("some");
        let (using, check) = (condition(dice, 2), condition(dice, 2));
        let body = match dice.random_range(0..5) {
            0 | 1 => format!("for select to {role} using ({using})"),
            2 => format!("for insert to {role} with check ({check})"),
            3 => format!("for all to {role} using ({using})"),
            _ => format!("for all to {role} using ({using}) with check ({check})"),
        };
        let _ = writeln!(sql, "create policy p{n} on realtime.messages {kind} {body};");
    }
    sql
}

fn facts(dice: &mut StdRng) -> String {
    let mut sql = "truncate rooms, room_members, halls, hall_members;".to_owned();
    for (id, tag) in [(1, "1"), (2, "üü"), (7, "%"), (12, "it''s")] {
        if dice.random_bool(0.6) {
            let key = if dice.random_bool(0.7) { format!("'{ALICE}'") } else { "null".into() };
            let tag = if dice.random_bool(0.8) { format!("'{tag}'") } else { "null".into() };
            let _ = write!(sql, "insert into halls values ({id}, {key}, {tag}, {tag}, 'room:%');");
        }
        for user in [ALICE, BOB] {
            if dice.random_bool(0.4) {
                let _ = write!(sql, "insert into hall_members values ({id}, '{user}', 1);");
            }
        }
    }
    for room in ["a", "room:1", "team", "it''s"] {
        if dice.random_bool(0.6) {
            let owner = if dice.random_bool(0.5) { format!("'{ALICE}'") } else { "null".into() };
            let _ = write!(sql, "insert into rooms values ('{room}', {}, {owner});", dice.random_bool(0.5));
        }
        for user in [ALICE, BOB] {
            if dice.random_bool(0.4) {
                let banned = *["true", "false", "false", "null"].choose(dice).expect("some");
                let _ = write!(sql, "insert into room_members values ('{room}', '{user}', {banned});");
            }
        }
    }
    sql
}

fn everybody(topic: &str) -> Vec<Asking> {
    let users = [
        json!({ "sub": ALICE, "team": "a" }),
        json!({ "sub": BOB, "team": "team" }),
        json!({ "sub": "nobody", "team": 7 }),
        json!({}),
    ];
    let mut all: Vec<Asking> = users.into_iter().map(|claims| asking(topic, "authenticated", claims)).collect();
    all.push(asking(topic, "anon", json!({ "sub": ALICE })));
    all.push(asking(topic, "service_role", json!({})));
    all
}

pub(super) async fn catalog(database: &mut TestDatabase) -> Catalog {
    let roles: BTreeSet<String> = ["anon", "authenticated", "service_role"].map(str::to_owned).into();
    let (publications, others) = (vec!["supabase_realtime".to_owned()], vec!["rowcast_facts".to_owned()]);
    read(&mut database.client, &Wanted { publications, others, roles }).await.expect("a catalog")
}

/// The tables that the plan looks into, as they stand.
async fn loaded(database: &TestDatabase, catalog: &Catalog, plan: &MemberPlan) -> Facts {
    let mut facts = Facts::new(64 << 20);
    let pool = database.pool("relay");
    for (oid, columns) in plan.rule().map(|rule| rule.fact_columns()).unwrap_or_default() {
        let table = catalog.table(oid).expect("a table");
        let layout = Arc::new(Layout::of(table, catalog.types(), &columns).expect("fit"));
        facts.record(layout.clone());
        let limits = LoadLimits { bytes: 64 << 20, deadline: PATIENCE };
        let (rows, snapshot) = facts::load(&pool, &layout, &limits).await.expect("loaded");
        facts.install(rows, &snapshot).expect("installed");
    }
    facts
}

#[derive(Debug, Default)]
struct Counts {
    pure: u32,
    plans: u32,
    compared: u32,
    allowed: u32,
    left: u32,
    raised: u32,
}

async fn round(database: &mut TestDatabase, seed: u64, counts: &mut Counts) {
    let mut dice = StdRng::seed_from_u64(seed);
    let (policies, rows) = (policies(&mut dice), facts(&mut dice));
    let drop = "do $$ declare p record; begin
        for p in select polname from pg_policy where polrelid = 'realtime.messages'::regclass loop
            execute format('drop policy %I on realtime.messages', p.polname); end loop; end $$;";
    database.run(&format!("{drop}{rows}{policies}")).await;
    let catalog = catalog(database).await;
    let authority = prober(database);
    let odd: Vec<&str> = (0..8).map(|_| *ODD_TOPICS.choose(&mut dice).expect("some")).collect();
    let topics: Vec<&str> = TOPICS.iter().copied().chain(odd).collect();
    for role in ["authenticated", "anon", "service_role"] {
        for way in [Way::Read, Way::Write] {
            let plan = MemberPlan::compile(&catalog, role, way);
            assert!(role != "service_role" || plan.engine == MemberEngine::Everything, "{plan:?}");
            counts.plans += 1;
            counts.pure += u32::from(!matches!(plan.engine, MemberEngine::Probe(_)));
            let facts = loaded(database, &catalog, &plan).await;
            let binding = plan.rule().map(|rule| facts.bind(rule).expect("ready")).unwrap_or_default();
            let asking: Vec<Asking> = topics.iter().flat_map(|topic| everybody(topic)).collect();
            for asking in asking.iter().filter(|asking| *asking.principal.role == *role) {
                let viewer = plan.rule().map_or_else(|| Viewer::new([]), |rule| rule.viewer(&asking.principal));
                let viewer = KnownViewer::new(viewer);
                let judge = |extension| plan.judge(&viewer, &asking.topic, extension, Some((&binding, &facts)));
                let (Some(broadcast), Some(presence)) = (judge("broadcast"), judge("presence")) else {
                    counts.left += 1;
                    continue;
                };
                let probed = match way {
                    Way::Read => reads(&authority, asking).await,
                    Way::Write => writes(&authority, asking).await,
                };
                counts.compared += 1;
                counts.allowed += u32::from(broadcast || presence);
                if probed == Err(AuthorityError::Policy) && !broadcast && !presence {
                    counts.raised += 1;
                    continue;
                }
                assert_eq!(
                    Ok((broadcast, presence)),
                    probed,
                    "ROWCAST_MEMBERS_SEED={seed}: {way:?} {:?} as {} {}\n{policies}\n{rows}\n{plan:?}",
                    asking.topic,
                    role,
                    asking.principal.claims_json
                );
            }
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var_os(name).map(|text| text.to_str().and_then(|text| text.parse().ok()).expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_memory_says_of_generated_policies_of_channels_a_probe_says_too() {
    let mut database = database(WORLD).await;
    let one = number("ROWCAST_MEMBERS_SEED");
    let rounds = number("ROWCAST_MEMBERS_ROUNDS").unwrap_or(40);
    let new: u64 = rand::random_range(1_000_000..1_000_000_000);
    println!("members: seeds 1 to {}, then from {new}", rounds - rounds / 4);
    let mut counts = Counts::default();
    if let Some(seed) = one {
        return round(&mut database, seed, &mut counts).await;
    }
    for n in 0..rounds {
        let seed = if n < rounds - rounds / 4 { n + 1 } else { new + n };
        round(&mut database, seed, &mut counts).await;
    }
    println!("members: {counts:#?}");
    assert!(counts.pure * 10 > counts.plans * 6, "too few are judged in memory: {counts:?}");
    assert!(counts.compared > counts.left && counts.allowed * 10 > counts.compared, "{counts:?}");
    assert!(counts.raised * 50 < counts.compared, "{counts:?}");
}

/// The whole list counts, so that the compiler can't rot into asking always.
#[tokio::test]
async fn policies_that_people_write_are_judged_in_memory() {
    let asked: &[&str] = &["inserted_at", "id is not null", "request.headers", "from realtime.messages m"];
    let mut database = database(WORLD).await;
    let all = ATOMS.iter().map(|atom| (atom, asked.iter().any(|part| atom.contains(part))));
    let all =
        all.chain(TOPIC_ATOMS.iter().map(|atom| (atom, false))).chain(ASKED_ATOMS.iter().map(|atom| (atom, true)));
    for (atom, is_asked) in all {
        for (way, kind, word) in [(Way::Read, "select", "using"), (Way::Write, "insert", "with check")] {
            let policy = format!("create policy p on realtime.messages for {kind} to authenticated {word} ({atom})");
            database.run(&policy).await;
            let plan = MemberPlan::compile(&catalog(&mut database).await, "authenticated", way);
            let left = matches!(plan.engine, MemberEngine::Probe(_));
            assert_eq!(left, is_asked, "{policy}: {:?}", plan.engine);
            database.run("drop policy p on realtime.messages").await;
        }
    }
}

/// More rows than may be looked at for one verdict: one that needs them all is nobody's to give.
#[tokio::test]
async fn a_room_among_many_is_found_by_what_the_topic_says_of_it() {
    let mut database = database(&format!(
        "create table many (id bigint primary key, key uuid, tag text); grant select on many to authenticated;
         insert into many select n, md5(n::text)::uuid, 'tag' || n from generate_series(1, 60000) n;
         create table joined (room bigint, user_id uuid, primary key (room, user_id)); grant select on joined to authenticated;
         insert into joined select n, '{ALICE}' from generate_series(1, 60000) n;"
    ))
    .await;
    let (hash, of_many) = ("key:202cb962-ac59-075b-964b-07152d234b70", "exists (select 1 from many m where");
    for (condition, found, missing) in [
        (format!("{of_many} m.tag = realtime.topic())"), "tag123", "tag"),
        (format!("{of_many} m.id::text = split_part(realtime.topic(), ':', 2))"), "room:123", "room:0"),
        (format!("{of_many} m.id = split_part(topic, ':', -1)::bigint)"), "a:b:123", "a:123:0"),
        (format!("{of_many} m.key = split_part(topic, ':', 2)::uuid)"), hash, "key:00000000-0000-0000-0000-000000000000"),
        (format!("{of_many} 'room:' || m.id = topic)"), "room:123", "rooms:123"),
        (format!("{of_many} 'room:' || m.id::text || ':chat' = (select realtime.topic()))"), "room:123:chat", "room:123"),
        (format!("topic like 'room:%' and {of_many} m.tag = substring(topic from 6))"), "room:tag7", "room:7"),
        ("realtime.topic() in (select 'room:' || m.id from many m)".into(), "room:60000", "room:60001"),
        ("(string_to_array(topic, ':'))[2] in (select m.tag from many m)".into(), "x:tag1", "x"),
        (
            "exists (select 1 from joined j where j.user_id = auth.uid() and j.room = split_part(topic, ':', 2)::bigint)".into(),
            "room:59999",
            "room:60001",
        ),
        (
            "exists (select 1 from joined j where j.user_id = auth.uid() and 'room:' || j.room = topic)".into(),
            "room:59999",
            "room:60001",
        ),
    ] {
        let policy = format!("create policy p on realtime.messages for select to authenticated using ({condition})");
        database.run(&policy).await;
        let catalog = catalog(&mut database).await;
        let plan = MemberPlan::compile(&catalog, "authenticated", Way::Read);
        let facts = loaded(&database, &catalog, &plan).await;
        let binding = plan.rule().map(|rule| facts.bind(rule).expect("ready")).unwrap_or_default();
        for (topic, is_there) in [(found, true), (missing, false)] {
            let alice = super::user(topic, ALICE);
            let viewer = KnownViewer::new(plan.rule().map_or_else(|| Viewer::new([]), |r| r.viewer(&alice.principal)));
            let told = plan.judge(&viewer, topic, "broadcast", Some((&binding, &facts)));
            assert_eq!(told, Some(is_there), "{condition}: {topic}: {:?}", plan.engine);
            assert_eq!(reads(&prober(&database), &alice).await, Ok((is_there, is_there)), "{condition}: {topic}");
        }
        database.run("drop policy p on realtime.messages").await;
    }
}

/// What raises for one topic is Postgres's to tell, for that topic.
#[tokio::test]
async fn a_cast_that_raises_for_a_topic_leaves_that_topic_to_postgres() {
    let mut database = database(
        "create policy p on realtime.messages for select to authenticated
             using (topic = 'lobby' or split_part(topic, ':', 2)::int = 7);",
    )
    .await;
    let catalog = catalog(&mut database).await;
    let plan = MemberPlan::compile(&catalog, "authenticated", Way::Read);
    for (topic, told, probed) in [
        ("room:7", Some(true), Ok((true, true))),
        ("room: +7 ", Some(true), Ok((true, true))),
        ("room:8", Some(false), Ok((false, false))),
        ("room:", None, Err(AuthorityError::Policy)),
        ("room:seven", None, Err(AuthorityError::Policy)),
        ("room:99999999999", None, Err(AuthorityError::Policy)),
        // It comes to the first part only; but that is its planner's affair.
        ("lobby", None, Ok((true, true))),
    ] {
        let (viewer, none) = (KnownViewer::new(Viewer::new([])), Facts::none());
        assert_eq!(plan.judge(&viewer, topic, "broadcast", Some((&Default::default(), none))), told, "{topic}");
        assert_eq!(reads(&prober(&database), &super::user(topic, ALICE)).await, probed, "{topic}");
    }
    // So is what was folded away.
    database
        .run("alter policy p on realtime.messages using (topic <> 'a' and not (false and split_part(topic, ':', 2)::int = 7))")
        .await;
    let plan = MemberPlan::compile(&self::catalog(&mut database).await, "authenticated", Way::Read);
    let (viewer, none) = (KnownViewer::new(Viewer::new([])), Facts::none());
    for (topic, told) in [("b", None), ("b:7", Some(true))] {
        assert_eq!(plan.judge(&viewer, topic, "broadcast", Some((&Default::default(), none))), told, "{topic}");
        assert_eq!(reads(&prober(&database), &super::user(topic, ALICE)).await, Ok((true, true)), "{topic}");
    }
}

#[tokio::test]
async fn what_an_insert_may_do_beside_the_policies_leaves_all_of_them_to_postgres() {
    let mut database = database("create policy p on realtime.messages using (topic = 'a');").await;
    let left = |plan: &MemberPlan| matches!(plan.engine, MemberEngine::Probe(_));
    let ways = [Way::Read, Way::Write];
    for (change, undo) in [
        (
            "create function f() returns trigger language plpgsql as 'begin new.topic = ''b''; return new; end';
             create trigger t before insert on realtime.messages for each row execute function f()",
            "drop trigger t on realtime.messages",
        ),
        ("create rule r as on insert to realtime.messages do also nothing", "drop rule r on realtime.messages"),
        (
            "alter table realtime.messages add check (topic <> 'x')",
            "alter table realtime.messages drop constraint messages_topic_check",
        ),
        ("create index odd on realtime.messages ((topic::int))", "drop index realtime.odd"),
        ("create index odd on realtime.messages (topic) where topic::int > 1", "drop index realtime.odd"),
        ("alter table realtime.messages add n int not null", "alter table realtime.messages drop n"),
        ("alter table realtime.messages add n int default (random() * 9)::int", "alter table realtime.messages drop n"),
        (
            "alter table realtime.messages add n int generated always as (1) stored",
            "alter table realtime.messages drop n",
        ),
        (
            "alter table realtime.messages alter event set not null",
            "alter table realtime.messages alter event drop not null",
        ),
        (
            "alter table realtime.messages alter updated_at drop default",
            "alter table realtime.messages alter updated_at set default now()",
        ),
    ] {
        for way in ways {
            let plan = MemberPlan::compile(&catalog(&mut database).await, "authenticated", way);
            assert!(!left(&plan), "before {change}: {plan:?}");
        }
        database.run(change).await;
        for way in ways {
            let plan = MemberPlan::compile(&catalog(&mut database).await, "authenticated", way);
            assert!(left(&plan), "{change}: {plan:?}");
        }
        database.run(undo).await;
    }
    database.run("alter table realtime.messages alter private set default true, add note text").await;
    let plan = MemberPlan::compile(&catalog(&mut database).await, "authenticated", Way::Read);
    assert!(!left(&plan));
    database
        .run(
            "drop policy p on realtime.messages; create policy p on realtime.messages using (private and note is null)",
        )
        .await;
    let plan = MemberPlan::compile(&catalog(&mut database).await, "authenticated", Way::Read);
    let viewer = KnownViewer::new(Viewer::new([]));
    let none = Facts::none();
    assert_eq!(plan.judge(&viewer, "a", "broadcast", Some((&Default::default(), none))), Some(true));
    assert_eq!(reads(&prober(&database), &super::user("a", ALICE)).await, Ok((true, true)));
}
