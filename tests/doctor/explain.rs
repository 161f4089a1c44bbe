//! `rowcast explain-policy`: the program, on each sort of rule.

use serde_json::Value;

use super::Clinic;
use super::command::run;
use crate::support::pg::TestPgOptions;

const RULES: &str = "
    create table public.tickets (id int primary key, user_id uuid, secret text, twice int generated always as (id * 2) stored);
    alter table public.tickets enable row level security;
    grant select (id, user_id) on public.tickets to authenticated;
    create policy \"their own\" on public.tickets for select to authenticated using (user_id = (select auth.uid()));
    create policy \"for the clerk\" on public.tickets for all to service_role using (true);
    create policy \"old ones\" on public.tickets as restrictive for select to authenticated using (id < 1000 or user_id = auth.uid());
    create table public.timed (id int primary key, at timestamptz, parent int);
    alter table public.timed enable row level security;
    grant select on public.timed to authenticated;
    create policy \"no longer secret\" on public.timed for select to authenticated using (at < now());
    alter table public.timed replica identity full;
    alter publication supabase_realtime add table public.timed;
    create schema \"odd.schema\"; create table \"odd.schema\".open (id int primary key);
    grant usage on schema \"odd.schema\" to anon; grant select on \"odd.schema\".open to anon;
    alter publication supabase_realtime add table public.tickets, \"odd.schema\".open;";

async fn explained(clinic: &Clinic, arguments: &[&str]) -> Vec<Value> {
    let all = [&["explain-policy", "--json"][..], arguments].concat();
    let ended = run(clinic, &all).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let value: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    value.as_array().expect("an array").clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_engine_is_explained_with_its_reason() {
    let clinic = Clinic::healthy().await;
    clinic.pg.exec(RULES).await;

    let [pure] = &explained(&clinic, &["notifications", "--role", "authenticated"]).await[..] else {
        panic!("one role")
    };
    assert_eq!(pure["engine"], "pure");
    assert_eq!(pure["owner_column"], "user_id");
    assert_eq!(pure["deletes"]["delivered"], true);
    assert_eq!(pure["rules_followed_within_ms"], 2000);
    assert_eq!(pure["ask"], Value::Null);

    let [anon, ask] = &explained(&clinic, &["public.timed"]).await[..] else { panic!("two roles") };
    assert_eq!((anon["role"].as_str(), anon["engine"].as_str()), (Some("anon"), Some("deny")));
    assert_eq!(anon["reason"], "it may not select the table");
    assert_eq!(ask["engine"], "ask");
    assert!(ask["ask"]["statement"].as_str().expect("SQL").contains("now()"), "{ask}");
    assert!(ask["ask"]["how_often"].as_str().expect("text").contains("for each change"), "{ask}");
    assert!(ask["pure_if"].as_str().expect("text").contains("without the clock"), "{ask}");

    let both =
        explained(&clinic, &["tickets", "--role", "authenticated", "--role", "service_role", "--role", "ghost"]).await;
    let [user, clerk, ghost] = &both[..] else { panic!("three roles") };
    assert_eq!(user["columns_shown"], serde_json::json!(["id", "user_id"]));
    assert_eq!(user["columns_withheld"], serde_json::json!(["secret"]));
    assert_eq!(user["columns_not_sent"], serde_json::json!(["twice"]));
    assert_eq!(user["deletes"]["delivered"], false);
    assert!(user["deletes"]["why"].as_str().expect("text").contains("lacks user_id"), "{user}");
    let applying: Vec<(&str, bool)> = user["policies"]
        .as_array()
        .expect("policies")
        .iter()
        .map(|policy| (policy["name"].as_str().expect("a name"), policy["applies"].as_bool().expect("a boolean")))
        .collect();
    assert_eq!(applying, [("for the clerk", false), ("old ones", true), ("their own", true)]);
    assert_eq!(
        (clerk["engine"].as_str(), clerk["reason"].as_str()),
        (Some("deny"), Some("it may not select the table"))
    );
    assert_eq!((ghost["engine"].as_str(), ghost["reason"].as_str()), (Some("deny"), Some("there is no such role")));

    let [open] = &explained(&clinic, &["odd.schema.open", "--role", "anon"]).await[..] else { panic!("one role") };
    assert_eq!((open["table"].as_str(), open["engine"].as_str()), (Some("odd.schema.open"), Some("everything")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tree_reads_from_engine_to_rules_and_an_unknown_table_names_the_known() {
    let clinic = Clinic::healthy().await;
    clinic.pg.exec(RULES).await;
    let ended = run(&clinic, &["explain-policy", "timed", "--role", "authenticated"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let mut rest = ended.stdout.as_str();
    for phrase in [
        "public.timed for authenticated\n",
        "├─ engine ask: Postgres is asked",
        "cost: ",
        "memory could judge: ",
        "\"no longer secret\" permissive for select to authenticated: applies",
        "columns shown: id, at, parent",
        "DELETE: judged and sent",
        "└─ changes of the rules",
        "├─ count from their commit on: the table's own policies",
        "└─ count for every row that is judged more than 2 s after their commit: roles, memberships",
    ] {
        let at = rest.find(phrase).unwrap_or_else(|| panic!("no {phrase:?} in order in\n{}", ended.stdout));
        rest = &rest[at + phrase.len()..];
    }
    let ended = run(&clinic, &["explain-policy", "public.nothing"]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("public.nothing is not published by supabase_realtime"), "{}", ended.stderr);
    assert!(
        ended
            .stderr
            .contains("odd.schema.open, public.notifications, public.session_events, public.tickets, public.timed"),
        "{}",
        ended.stderr
    );
    let ended = run(&clinic, &["explain-policy"]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
}

/// Teams, and who is in them; their own policy shows a member his own row.
const TEAMS: &str = "
    create table public.members (team int, user_id uuid, part text, primary key (team, user_id));
    alter table public.members enable row level security;
    create policy mine on public.members for select to authenticated using (user_id = auth.uid());
    create table public.posts (id int primary key, team int, author uuid, at timestamptz);
    alter table public.posts enable row level security;
    create policy \"of the team\" on public.posts for select to authenticated using (author = auth.uid() or team in
        (select m.team from public.members m where m.user_id = auth.uid() and m.part = 'reader'));
    create policy later on public.posts for select to authenticated using (at < now());
    grant select on public.members, public.posts to authenticated;
    insert into public.members select n, gen_random_uuid(), 'reader' from generate_series(1, 500) n;
    analyze public.members;
    alter publication supabase_realtime add table public.posts;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_membership_is_a_tree_with_the_table_it_looks_into_its_size_and_how_receivers_are_found() {
    let clinic = Clinic::with(TestPgOptions::default()).await;
    clinic.pg.exec(TEAMS).await;
    let [asked] = &explained(&clinic, &["posts", "--role", "authenticated"]).await[..] else { panic!("one role") };
    assert_eq!(asked["engine"], "ask");
    let policies = asked["policies"].as_array().expect("policies");
    let engines: Vec<_> = policies.iter().map(|policy| (&policy["name"], &policy["in_memory"])).collect();
    assert_eq!(
        engines,
        [(&Value::from("later"), &Value::from(false)), (&Value::from("of the team"), &Value::from(true))],
        "{asked:#}"
    );
    assert!(policies[0]["asked_because"].as_str().is_some_and(|why| why.contains("now")), "{asked:#}");
    assert_eq!(policies[1]["asked_because"], Value::Null);

    clinic.pg.exec("drop policy later on public.posts").await;
    let [pure] = &explained(&clinic, &["posts", "--role", "authenticated"]).await[..] else { panic!("one role") };
    assert_eq!(pure["engine"], "pure", "{}", pure["reason"]);
    let facts = pure["facts"].as_array().expect("facts");
    assert_eq!(facts.len(), 1, "{pure:#}");
    assert_eq!((&facts[0]["table"], &facts[0]["state"]), (&Value::from("public.members"), &Value::from("not running")));
    assert_eq!(facts[0]["rows"], 500);
    let ended = run(&clinic, &["explain-policy", "posts", "--role", "authenticated"]).await;
    let mut rest = ended.stdout.as_str();
    for phrase in [
        "├─ engine pure: judged in memory",
        "condition\n",
        "any of\n",
        "author = ",
        "team is in members.team of public.members\n",
        "all of\n",
        "user_id = ",
        "part = ",
        "it looks into\n",
        "public.members (",
        "): not running; about 500 rows",
        "receivers are found by ",
        "memory can judge it",
        "changes of the rules",
    ] {
        let at = rest.find(phrase).unwrap_or_else(|| panic!("no {phrase:?} in order in\n{}", ended.stdout));
        rest = &rest[at + phrase.len()..];
    }
}

/// Channels of rooms: reading goes by membership, sending by the clock.
const CHANNELS: &str = "
    create table public.room_members (room_id uuid, user_id uuid, primary key (room_id, user_id));
    grant select on public.room_members to authenticated;
    insert into public.room_members select gen_random_uuid(), gen_random_uuid() from generate_series(1, 300);
    analyze public.room_members;
    create policy \"members of the room\" on realtime.messages for select to authenticated using (topic like 'room:%' and exists (
        select 1 from public.room_members m where m.user_id = (select auth.uid()) and m.room_id = split_part(topic, ':', 2)::uuid));
    create policy \"the lobby\" on realtime.messages for all to authenticated using (realtime.topic() = 'lobby');
    create policy \"by day\" on realtime.messages for insert to authenticated
        with check (realtime.topic() ~ '^room:' and extract(hour from now()) > 6);
    create policy \"guests\" on realtime.messages for insert to anon with check (false);";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_channels_are_explained_role_by_role_and_way_by_way() {
    let clinic = Clinic::with(TestPgOptions::default()).await;
    clinic.pg.exec(CHANNELS).await;
    let roles =
        ["realtime.messages", "--role", "authenticated", "--role", "anon", "--role", "service_role", "--role", "ghost"];
    let all = explained(&clinic, &roles).await;
    let engines: Vec<Vec<&Value>> = all
        .iter()
        .map(|role| role["private_channels"].as_array().expect("ways").iter().map(|way| &way["engine"]).collect())
        .collect();
    assert_eq!(
        engines,
        [["pure", "probe"], ["nothing", "pure"], ["everything", "everything"], ["nothing", "nothing"]],
        "{all:#?}"
    );
    let (read, write) = (&all[0]["private_channels"][0], &all[0]["private_channels"][1]);
    assert_eq!((&read["way"], &write["way"]), (&Value::from("read"), &Value::from("write")));
    assert_eq!(read["facts"][0]["table"], "public.room_members");
    assert_eq!(read["facts"][0]["rows"], 300);
    assert_eq!(read["casts"], serde_json::json!(["(split_part(topic, ':', 2))::uuid"]));
    assert_eq!((&read["asked_again_ms"], &read["pure_if"]), (&Value::Null, &Value::Null));
    assert!(read["kept"].as_str().is_some_and(|kept| kept.contains("250 ms")), "{read:#}");
    assert_eq!(write["asked_again_ms"], 10_000);
    assert!(write["reason"].as_str().is_some_and(|why| why.contains("by day")), "{write:#}");
    assert!(write["pure_if"].as_str().is_some_and(|hint| hint.contains("LIKE")), "{write:#}");
    let told = |way: &Value| -> Vec<(String, Option<bool>)> {
        let policies = way["policies"].as_array().expect("policies").iter();
        policies
            .map(|policy| (policy["name"].as_str().expect("a name").to_owned(), policy["in_memory"].as_bool()))
            .collect()
    };
    assert_eq!(told(read), [("members of the room".into(), Some(true)), ("the lobby".into(), Some(true))]);
    assert_eq!(
        told(write),
        [("by day".into(), Some(false)), ("guests".into(), None), ("the lobby".into(), Some(true))]
    );

    let ended = run(&clinic, &["explain-policy", "realtime.messages", "--role", "authenticated"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    // Where a long line goes on in the next one, it goes on here.
    let words = ended.stdout.split_whitespace().filter(|word| *word != "│");
    let text = words.collect::<Vec<_>>().join(" ");
    let mut rest = text.as_str();
    for phrase in [
        "realtime.messages for authenticated ├─ private channels ├─ read: judged in memory",
        "condition",
        "topic like 'room:%'",
        "a row of public.room_members exists",
        "it looks into └─ public.room_members (room_id, user_id): not running; about 300 rows",
        "about a topic for which (split_part(topic, ':', 2))::uuid raises an error, Postgres is asked",
        "rights follow the rules and the tables that they look into",
        "policies for reading: 2",
        "\"members of the room\" permissive for select to authenticated: applies",
        "memory can judge it",
        "└─ write: Postgres is asked",
        "because policy \"by day\": ",
        "again every 10 s (ROWCAST_AUTHZ_RECHECK)",
        "memory could judge: ",
        "policies for inserting: 3",
        "Postgres must be asked: ",
        "├─ its rows, where it is subscribed to as a table (postgres_changes)",
        "└─ changes of the rules",
    ] {
        let at = rest.find(phrase).unwrap_or_else(|| panic!("no {phrase:?} in order in\n{}", ended.stdout));
        rest = &rest[at + phrase.len()..];
    }
}

/// A policy that Postgres is asked about, what the hint says, and the policy written as the hint says.
const HINTS: &[(&str, &str, &str)] = &[
    ("at < now()", "without the clock", "user_id = auth.uid()"),
    ("org::text = (auth.jwt() ->> 'org')::varchar(9)", "Casts of claims", "org::text = (auth.jwt() ->> 'org')"),
    ("user_id = public.me()", "A function in language sql", "user_id = public.sql_me()"),
    ("org + 1 = (auth.jwt() ->> 'org')::bigint", "Comparisons", "org = (auth.jwt() ->> 'org')::bigint"),
    (
        "org in (select o.id from public.orgs o limit 5)",
        "A plain sub-select",
        "org in (select o.id from public.orgs o)",
    ),
    ("org in (select o.id from public.few o)", "tables behind the view", "org in (select o.id from public.orgs o)"),
    ("tags @> array['a']", "a row for each element", "org in (select e.org from public.tags e where e.tag = 'a')"),
    ("public.is_org(org)", "with their schema", "public.is_an_org(org)"),
    ("ctid = '(0,1)'", "columns of the table only", "user_id = auth.uid()"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_let_memory_judge_does() {
    let clinic = Clinic::with(TestPgOptions::default()).await;
    clinic
        .pg
        .exec(
            "create function public.me() returns uuid language plpgsql stable as $$ begin return auth.uid(); end $$;
             create function public.sql_me() returns uuid language sql stable as $$ select (auth.jwt() ->> 'me')::uuid $$;
             create table public.orgs (id bigint primary key); grant select on public.orgs to authenticated;
             create view public.few as select * from public.orgs; grant select on public.few to authenticated;
             create table public.tags (org bigint, tag text, primary key (org, tag)); grant select on public.tags to authenticated;
             create function public.is_org(bigint) returns bool language sql stable as $$ select exists (select from orgs o where o.id = $1) $$;
             create function public.is_an_org(bigint) returns bool language sql stable as $$ select exists (select from public.orgs o where o.id = $1) $$;
             create table public.t (id int primary key, user_id uuid, at timestamptz, org bigint, price numeric, tags text[]);
             alter table public.t enable row level security; grant select on public.t to authenticated;
             create policy p on public.t using (true); alter publication supabase_realtime add table public.t",
        )
        .await;
    for (policy, hint, mended) in HINTS {
        clinic.pg.exec(&format!("alter policy p on public.t using ({policy})")).await;
        let [asked] = &explained(&clinic, &["t", "--role", "authenticated"]).await[..] else { panic!("one role") };
        assert_eq!(asked["engine"], "ask", "{policy}");
        let told = asked["pure_if"].as_str().expect("a hint");
        assert!(told.contains(hint), "{policy}: {told} (because {})", asked["reason"]);
        clinic.pg.exec(&format!("alter policy p on public.t using ({mended})")).await;
        let [pure] = &explained(&clinic, &["t", "--role", "authenticated"]).await[..] else { panic!("one role") };
        assert_eq!(pure["engine"], "pure", "{mended}: {}", pure["reason"]);
    }
}
