//! The forms of [`super::forms`]: each has its engine, and memory says of every row what a SELECT as the role says.

use std::sync::Arc;

use serde_json::json;
use tokio_postgres::SimpleQueryMessage;

use super::forms::{Expected, FORMS, ROWS, SETUP};
use super::support::*;
use crate::catalog::{Catalog, Snapshot};
use crate::change::Value;
use crate::claims::Principal;
use crate::policy::rule::{Rule, Truth};
use crate::policy::{Engine, FactTable, Facts, Layout, Options, Plan, Side, compile};
use crate::testing::TestDatabase;

async fn prepared() -> TestDatabase {
    let database = TestDatabase::new().await;
    database.run(SETUP).await;
    database.run(&ROWS.replace("{alice}", ALICE).replace("{bob}", BOB)).await;
    database
}

async fn planned(database: &mut TestDatabase, policy: &str) -> (Catalog, Plan) {
    database
        .run(&format!("drop policy if exists p on t; create policy p on t to authenticated using ({policy})"))
        .await;
    let catalog = catalog(database, &["authenticated"]).await;
    let oid = catalog.find("public", "t").expect("published").oid;
    let plan = compile(&catalog, oid, "authenticated", Options::default());
    (catalog, plan)
}

fn principals() -> Vec<Arc<Principal>> {
    let org = "00000000-0000-0000-0000-00000000000a";
    let claims = [
        json!({ "sub": ALICE }),
        json!({ "sub": BOB, "org": 7, "roles": ["admin", "editor"], "aal": "aal2", "email": "a", "is_anonymous": false }),
        json!({ "sub": BOB.to_uppercase(), "org": "1", "roles": ["a", null, 7], "orgs": [org], "scope": "x a", "is_admin": "t",
            "app_metadata": { "org": "admin", "tenant": org, "admin": true, "teams": ["a", "1", 3, null] } }),
        json!({ "org": null, "roles": [], "orgs": [], "scope": "", "is_admin": null, "aal": null,
            "app_metadata": { "org": null, "tenant": "", "admin": "no", "teams": "a" } }),
        json!({ "sub": "nobody", "org": "x", "roles": "a", "orgs": ["x"], "app_metadata": 7, "is_admin": "maybe" }),
        json!({ "sub": ALICE, "roles": { "admin": 1, "editor": 2 }, "app_metadata": { "teams": { "a": 1 }, "admin": null, "tenant": ALICE } }),
        json!({ "sub": ALICE, "org": 1.5, "roles": [[1], 1.5], "app_metadata": { "teams": [[1], 2.5, 7] } }),
        json!({}),
    ];
    claims.into_iter().map(|claims| principal("authenticated", claims)).collect()
}

/// What the server says: `None` if it raises.
async fn selected(client: &mut tokio_postgres::Client, principal: &Principal, id: i32) -> Option<bool> {
    let transaction = client.transaction().await.expect("begins");
    crate::pg::assume(&transaction, &principal.role, &principal.subject, &principal.claims_json)
        .await
        .expect("assumes");
    let row = transaction.query_one(&format!("select exists(select 1 from public.t where id = {id})"), &[]).await;
    row.ok().map(|row| row.get(0))
}

async fn rows(database: &TestDatabase, sql: &str) -> Vec<Vec<Option<String>>> {
    let pinned = "set timezone = 'UTC'; set datestyle = 'ISO, MDY'; set intervalstyle = 'postgres'; ";
    let messages = database.client.simple_query(&format!("{pinned}{sql}")).await.expect("rows");
    let rows = messages.iter().filter_map(|m| if let SimpleQueryMessage::Row(row) = m { Some(row) } else { None });
    rows.map(|row| (0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()).collect()
}

/// The facts that the rule reads, as they are now.
async fn facts(database: &TestDatabase, catalog: &Catalog, rule: &Rule) -> Facts {
    let mut facts = Facts::new(1 << 24);
    for (oid, columns) in rule.fact_columns() {
        let table = catalog.table(oid).expect("known");
        let layout = Arc::new(Layout::of(table, catalog.types(), &columns).expect("a layout"));
        let names: Vec<String> = layout.columns.iter().map(|c| format!("\"{}\"", c.name)).collect();
        facts.record(layout.clone());
        let mut loaded = FactTable::new(layout);
        let sql = format!("select {} from \"{}\".\"{}\"", names.join(", "), table.schema, table.name);
        for row in rows(database, &sql).await {
            loaded.insert(row.iter().map(|v| v.as_deref().map(str::as_bytes))).expect("fits");
        }
        facts.install(loaded, &Snapshot::parse("1:1:").expect("a snapshot")).expect("installed");
    }
    facts
}

#[tokio::test]
async fn each_form_has_its_engine() {
    let mut database = prepared().await;
    let mut wrong = Vec::new();
    for form in FORMS {
        let (_, plan) = planned(&mut database, form.policy).await;
        let fits = match (form.engine, &plan.engine) {
            (Expected::Pure, Engine::Pure(_)) => true,
            (Expected::Ask(why), Engine::Ask { reason, .. }) => reason.contains(why),
            (Expected::Refused(why), Engine::Deny(_)) => plan.refused.as_deref().is_some_and(|r| r.contains(why)),
            _ => false,
        };
        if !fits {
            wrong.push(format!("{}: {}\n    {plan}", form.name, form.policy));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), FORMS.len(), wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_says_of_every_form_what_a_select_says() {
    let mut database = prepared().await;
    let mut client = database.config("plain_relay").connect().await.expect("connects");
    let principals = principals();
    let (mut wrong, mut sure, mut permits) = (Vec::new(), 0, 0);
    for form in FORMS {
        let (catalog, plan) = planned(&mut database, form.policy).await;
        let refused = matches!(plan.engine, Engine::Deny(_));
        let rule = match plan.rule() {
            Some(rule) => rule.clone(),
            None if refused => Arc::new(Rule {
                condition: crate::policy::rule::Expr::Constant(None),
                reads: vec![],
                claims: vec![],
                sources: vec![],
            }),
            None => continue,
        };
        let facts = facts(&database, &catalog, &rule).await;
        let binding = facts.bind(&rule).unwrap_or_else(|e| panic!("{}: {e:?}", form.policy));
        let names: Vec<String> = rule.reads.iter().map(|c| format!("\"{}\"", c.name)).collect();
        let names = if names.is_empty() { "1".to_owned() } else { names.join(", ") };
        for id in 1..=5 {
            let image = rows(&database, &format!("select {names} from t where id = {id}")).await.remove(0);
            let column = |i: usize| image[i].as_deref().map_or(Value::Null, |text| Value::Text(text.as_bytes()));
            for principal in &principals {
                let truth = match refused {
                    true => Truth::Raises,
                    false => rule.truth(&binding, &facts, Side::After, &column, &rule.viewer(principal)),
                };
                let select = selected(&mut client, principal, id).await;
                // Which operands are reached is the planner's affair.
                let loose = select.is_none() || truth == Truth::Raises;
                let connected =
                    form.policy.contains(" or ") || form.policy.contains(" and ") || !rule.sources.is_empty();
                let agrees = match truth {
                    Truth::True => select == Some(true),
                    Truth::False | Truth::Null => select == Some(false) || (loose && connected),
                    Truth::Raises => select.is_none() || connected,
                    Truth::Unsure => true,
                };
                sure += i32::from(truth != Truth::Unsure);
                permits += i32::from(select == Some(true));
                if !agrees {
                    let who = &principal.claims_json;
                    wrong.push(format!("{}, row {id}, {who}: {truth:?}, a SELECT {select:?}\n   {rule}", form.policy));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(sure > 5000 && permits > 1000, "{sure} answers, {permits} permits");
}

/// The engine of the policy for a role, after some statements; and whether Postgres runs a SELECT of that role at all.
async fn engine_for(
    database: &mut TestDatabase,
    role: &str,
    sql: &str,
    policy: &str,
) -> (Engine, Option<String>, bool) {
    database.run(&format!("{sql}; drop policy if exists p on t; create policy p on t using ({policy})")).await;
    let catalog = catalog(database, &[role]).await;
    let oid = catalog.find("public", "t").expect("published").oid;
    let plan = compile(&catalog, oid, role, Options::default());
    let mut client = database.config("plain_relay").connect().await.expect("connects");
    let principal = principal(role, json!({ "sub": ALICE }));
    let runs = selected(&mut client, &principal, 1).await.is_some();
    (plan.engine, plan.refused, runs)
}

#[tokio::test]
async fn grants_and_policies_of_inner_tables_are_those_of_who_runs_the_query() {
    let mut database = prepared().await;
    database
        .run(
            "do $$ begin create role inner_owner; exception when duplicate_object then null; end $$;
             grant usage, create on schema public to inner_owner;
             create table owned (id int primary key, user_id uuid); alter table owned owner to inner_owner;
             grant select on owned to authenticated;
             alter table owned enable row level security;
             insert into owned values (1, null);
             create function sees_owned(int) returns bool language sql security definer set search_path = public
                as 'select exists (select 1 from owned where id = $1)';
             alter function sees_owned(int) owner to inner_owner;
             revoke select on open_members from authenticated; grant select (team_id) on open_members to authenticated",
        )
        .await;
    let exists = "exists (select 1 from owned where owned.id = t.id)";
    for (sql, policy, pure, runs) in [
        ("", "exists (select 1 from open_members o where o.team_id = t.team_id)", true, true),
        ("", "exists (select 1 from open_members o where o.user_id = auth.uid())", false, false),
        ("", "exists (select o.user_id from open_members o where o.team_id = t.team_id)", false, false),
        ("", "b or exists (select 1 from open_members o where o.user_id = auth.uid())", false, false),
        ("", "true or exists (select 1 from open_members o where o.user_id = auth.uid())", true, true),
        ("", "false and exists (select 1 from secrets)", true, true),
        ("", "exists (select 1 from secrets)", false, false),
        ("", exists, true, true),
        ("", "sees_owned(id)", true, true),
        ("alter table owned force row level security", "sees_owned(id)", true, true),
        ("create policy o on owned using (user_id is null)", "sees_owned(id)", true, true),
        ("create policy c on owned as restrictive to inner_owner using (id > 5)", "sees_owned(id)", true, true),
        ("revoke select on owned from authenticated", "sees_owned(id)", true, true),
        ("", exists, false, false),
    ] {
        let (engine, refused, ran) = engine_for(&mut database, "authenticated", sql, policy).await;
        assert_eq!(ran, runs, "{sql}; {policy}");
        assert_eq!(matches!(engine, Engine::Pure(_)), pure, "{sql}; {policy}: {engine:?}");
        assert_eq!(refused.is_none(), runs, "{sql}; {policy}: {refused:?}");
    }
}

#[tokio::test]
async fn the_owner_of_a_function_and_not_its_caller_decides_what_it_sees() {
    let mut database = prepared().await;
    database
        .run(
            "do $$ begin create role sees_owner; exception when duplicate_object then null; end $$;
             grant usage, create on schema public to sees_owner;
             create table owned (id int primary key, user_id uuid); alter table owned owner to sees_owner;
             alter table owned enable row level security; insert into owned values (1, null), (2, null);
             create policy o on owned using (id = 2);
             create function sees_owned(int) returns bool language sql security definer set search_path = public
                as 'select exists (select 1 from owned where id = $1)';
             alter function sees_owned(int) owner to sees_owner",
        )
        .await;
    let shown = async |database: &mut TestDatabase, sql: &str| {
        database.run(sql).await;
        let (_, plan) = planned(database, "sees_owned(id)").await;
        plan.rule().expect("pure").to_string()
    };
    let open = "exists (select 1 from public.owned where owned.id = id)";
    assert_eq!(shown(&mut database, "select 1").await, open);
    let forced = "exists (select 1 from public.owned where (owned.id = '2' and owned.id = id))";
    assert_eq!(shown(&mut database, "alter table owned force row level security").await, forced);
    let closed = "exists (select 1 from public.owned where false)";
    assert_eq!(shown(&mut database, "drop policy o on owned").await, closed);
}

#[tokio::test]
async fn names_in_a_function_mean_what_its_own_search_path_says() {
    let mut database = prepared().await;
    database
        .run(
            "create schema app; create schema shut; grant usage on schema app to authenticated;
             create table app.members (team_id int primary key, user_id uuid); grant select on app.members to authenticated;
             create table shut.members (team_id int primary key, user_id uuid); grant select on shut.members to authenticated;
             create function f(int) returns bool language sql as 'select true'",
        )
        .await;
    let body = "select exists (select 1 from MEMBERS where team_id = $1 and user_id = auth.uid())"
        .replace("MEMBERS", "members");
    for (options, body, outcome) in [
        ("set search_path = app", body.as_str(), Ok("app.members")),
        ("set search_path = app, public", &body, Ok("app.members")),
        ("set search_path = '', app", &body, Ok("app.members")),
        ("", &body, Err("search_path")),
        ("set search_path = \"$user\", app", &body, Err("$user")),
        ("set search_path = nowhere, app", &body, Err("not a table that we know")),
        ("set search_path = app set work_mem = '1MB'", &body, Err("SET clauses")),
        ("set search_path = shut", &body, Err("may not use schema shut")),
        (
            "",
            "select exists (select 1 from app.members m where m.team_id = f.team and m.user_id = auth.uid())",
            Ok("app.members"),
        ),
        ("", "select exists (select 1 from app.members where team_id = team)", Ok("app.members")),
        ("", "select exists (select 1 from app.members where team_id = team); select true", Err("goes on")),
        (
            "",
            "select exists (select 1 from app.members where team_id = team) from app.members limit 1",
            Err("several rows"),
        ),
        ("", "select true from app.members where team_id = team", Ok("app.members")),
        ("", "select user_id is null from app.members where team_id = team", Ok("app.members")),
        ("", "select team_id = team from app.members where user_id = auth.uid()", Err("several rows")),
        ("", "select now() > '2020-01-01'", Err("clock")),
    ] {
        let create = format!(
            "drop policy if exists p on t; drop function f(int); create function f(team int) returns bool language sql {options} as $f$ {body} $f$"
        );
        database.run(&format!("set check_function_bodies = off; {create}")).await;
        let (_, plan) = planned(&mut database, "f(team_id)").await;
        match (outcome, &plan.engine) {
            (Ok(table), Engine::Pure(rule)) => assert!(rule.to_string().contains(table), "{options} {body}: {plan}"),
            (Err(why), Engine::Ask { reason, .. }) => assert!(reason.contains(why), "{options} {body}: {plan}"),
            _ => panic!("{options} {body}: {plan}"),
        }
    }
}

#[tokio::test]
async fn a_call_that_may_mean_another_function_or_raise_in_a_domain_is_left_to_postgres() {
    let mut database = prepared().await;
    database
        .run(
            "create schema one; create schema two; create schema shut; grant usage on schema one, two to authenticated;
             create domain small as int check (value < 100);
             create function one.may(text) returns bool language sql as 'select true';
             create function two.may(uuid) returns bool language sql as 'select false';
             create function shut.only(int) returns bool language sql as 'select true';
             create function one.only(int) returns bool language sql as 'select $1 = 1';
             create function one.tiny(small) returns bool language sql as 'select true';
             create function one.tiny_of(int) returns small language sql as 'select $1';
             create function one.upper(text) returns text language sql as 'select $1';
             create function one.pg_sleep(int) returns bool language sql as 'select true';
             create function one.long(int8) returns bool language sql as 'select $1 = 1';
             create function one.short(int2) returns bool language sql as 'select $1 = 1';
             create function one.words(text) returns bool language sql as 'select $1 is not null'",
        )
        .await;
    for (path, call, pure) in [
        // The one that takes a uuid, though it is in the second schema.
        ("one, two", "may(auth.uid())", None),
        ("one", "only(team_id)", Some("team_id = '1'")),
        ("shut, one", "only(team_id)", Some("team_id = '1'")),
        ("one", "tiny(team_id)", None),
        ("one", "tiny_of(team_id) = 1", None),
        // Those of pg_catalog: the first makes capitals, and of the second Postgres prefers what takes an integer.
        ("one", "upper('a'::text) = 'a'", None),
        ("one", "pg_sleep(team_id)", None),
        ("one", "long(team_id)", Some("team_id = '1'")),
        // There is no such function for an integer.
        ("one", "short(team_id)", None),
        ("one", "words(team_id)", None),
        ("one", "words(auth.uid())", None),
        ("one", "words('a')", Some("true")),
    ] {
        let body = call.replace("team_id", "team");
        let create = format!(
            "drop policy if exists p on t; drop function if exists f(int);
             create function f(team int) returns bool language sql set search_path = {path} as $f$ select {body} $f$"
        );
        database.run(&format!("set check_function_bodies = off; {create}")).await;
        let (_, plan) = planned(&mut database, "f(team_id)").await;
        match (pure, &plan.engine) {
            (Some(text), Engine::Pure(rule)) => assert_eq!(rule.to_string(), text, "{path}: {call}"),
            (None, Engine::Ask { .. }) => {}
            _ => panic!("{path}: {call}: {plan}"),
        }
    }
}

/// Found by the generated world: the inner policy was folded to false, and the error of the other condition with it.
#[tokio::test]
async fn a_policy_that_hides_an_inner_table_does_not_hide_the_error_of_who_looks_into_it() {
    let mut database = prepared().await;
    let hidden = "create table hidden (user_id uuid primary key); insert into hidden values (gen_random_uuid());
        grant select on hidden to authenticated; alter table hidden enable row level security;
        create policy nobody on hidden using (not (true))";
    database.run(hidden).await;
    let mut client = database.config("plain_relay").connect().await.expect("connects");
    let policy = "user_id not in (select x.user_id from hidden x where not (auth.uid() is not null))";
    let (catalog, plan) = planned(&mut database, policy).await;
    let rule = plan.rule().expect("pure");
    let facts = facts(&database, &catalog, rule).await;
    let binding = facts.bind(rule).expect("ready");
    // From 17 on Postgres sees that nothing is to be looked for, and does not come to what raises: memory withholds the row.
    let unseen = (database.major().await >= 17).then_some(true);
    for (sub, memory, select) in [(ALICE, Truth::True, Some(true)), ("nobody", Truth::Raises, unseen)] {
        let principal = principal("authenticated", json!({ "sub": sub }));
        let column = |_: usize| Value::Text(ALICE.as_bytes());
        assert_eq!(rule.truth(&binding, &facts, Side::After, &column, &rule.viewer(&principal)), memory, "{rule}");
        assert_eq!(selected(&mut client, &principal, 1).await, select, "{sub}");
    }
}
