//! What policies look into: tables, functions, and what these look into.

use super::*;

fn function<'a>(catalog: &'a Catalog, schema: &str, name: &str) -> &'a Function {
    let mut named = catalog.functions_named(schema, name);
    let found = named.next().unwrap_or_else(|| panic!("{schema}.{name} is not known"));
    assert!(named.next().is_none(), "{schema}.{name} is ambiguous");
    found
}

#[tokio::test]
async fn tables_that_policies_look_into_are_known_without_being_published() {
    let mut database = TestDatabase::new().await;
    database
        .run(
            "create role closure_owner; create schema app; create type app.rank as enum ('low', 'high');
             create table app.orgs (id int primary key, rank app.rank);
             create table app.members (org int, user_id uuid, primary key (org, user_id));
             create table logs (id int) partition by range (id);
             create table logs_1 partition of logs for values from (0) to (9);
             create table behind (id int); create view v as select * from behind;
             create table written (id int); create table loose (id int);
             create table docs (id int primary key, org int);
             alter table app.members owner to closure_owner;
             alter table docs enable row level security; alter table app.members enable row level security;
             create policy p on docs using (org in (select m.org from app.members m where m.user_id = auth.uid()));
             create policy w on docs for insert with check (exists (select from written));
             create policy p on app.members for select using (exists (select from app.orgs o where o.id = org));
             create policy p on app.orgs for select using (exists (select from logs_1) and exists (select from v));
             alter publication supabase_realtime add table docs",
        )
        .await;
    let catalog = read_again(&mut database, &["authenticated"]).await;
    for (schema, name) in [("app", "members"), ("app", "orgs"), ("public", "logs_1")] {
        let table = catalog.named(schema, name).unwrap_or_else(|| panic!("{name} is known"));
        assert!(table.published.is_none() && catalog.find(schema, name).is_none(), "{name}");
        assert!(catalog.table(table.oid).is_some() && table.access.contains_key("authenticated"), "{name}");
        assert_eq!(table.leaves, [table.oid]);
        assert_eq!(catalog.fact_roots(table.oid), [table.oid]);
    }
    for name in ["v", "behind", "written", "loose", "logs"] {
        assert!(catalog.named("public", name).is_none(), "{name}");
    }
    assert_eq!(catalog.tables().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["docs"]);
    let members = catalog.named("app", "members").expect("known");
    assert_eq!(members.policies.len(), 1);
    assert_eq!(members.owner, "closure_owner");
    assert!(members.access["closure_owner"].owner && members.access["closure_owner"].columns.len() == 2);
    assert!(catalog.role("closure_owner").is_some_and(|role| !role.superuser));
    assert!(!members.access["authenticated"].schema_usage && !catalog.may_use_schema("app", "authenticated"));
    assert!(catalog.may_use_schema("public", "authenticated") && !catalog.may_use_schema("gone", "authenticated"));
    let rank = catalog.named("app", "orgs").and_then(|orgs| orgs.column("rank")).expect("a column");
    assert_eq!(catalog.types().get(rank.type_oid).map(|t| t.kind.clone()), Some(TypeKind::Enum));
    database.run("drop table app.members cascade; drop role closure_owner").await;
}

#[tokio::test]
async fn functions_are_known_with_all_that_their_bodies_mention() {
    let mut database = TestDatabase::new().await;
    database
        .run(
            "create role functions_definer; create schema app; grant usage on schema app to authenticated;
             create table app.members (org int, user_id uuid);
             create table app.blocked (user_id uuid); create table app.\"Teams\" (id bigint);
             create domain app.org_id as int;
             create function app.me(fallback uuid) returns uuid language sql stable strict as
                 $$ select coalesce(auth.uid(), fallback) $$;
             create function public.is_member(org app.org_id, uuid) returns boolean language sql stable security definer
                 set search_path = '' as
                 $$ select exists (select 1 from app.members m where m.org = $1 and m.user_id = app.me($2)) $$;
             create function is_blocked(who uuid) returns boolean language sql stable
                 begin atomic select exists (select from app.blocked b where b.user_id = is_blocked.who); end;
             create function unqualified(bigint) returns boolean language sql set search_path = app, \"Odd One\" set jit = off
                 as $$ select exists (select from \"Teams\" where id = $1) $$;
             create function teams() returns setof bigint language sql as 'select 1::bigint';
             create function other(int, out int) language plpgsql as 'begin $2 := 1; end';
             create function uncalled() returns int language sql as 'select 1';
             alter function public.is_member owner to functions_definer;
             revoke execute on function public.is_member from public;
             create table docs (id int primary key, org int, owner uuid);
             create policy a on docs using (is_member(org, owner) and not is_blocked(owner));
             create policy b on docs using (unqualified(org) or id in (select teams()) or other(id) = 1);
             alter publication supabase_realtime add table docs",
        )
        .await;
    let catalog = read_again(&mut database, &["authenticated"]).await;
    let member = function(&catalog, "public", "is_member");
    let domain = catalog.named("public", "docs").map(|_| member.arguments[0].1).expect("a domain");
    assert_eq!(member.arguments, [("org".to_owned(), domain), (String::new(), 2950)]);
    assert_eq!(catalog.types().base_of(domain), 23);
    assert_eq!((member.result_type, member.volatility, member.search_path.as_deref()), (16, 's', Some(&[][..])));
    assert!(member.callable && member.security_definer && !member.strict && !member.other_settings);
    assert!(member.source.as_deref().is_some_and(|s| s.contains("app.members")) && member.parsed_body.is_none());
    assert_eq!(member.sql_body, None);
    assert_eq!(member.owner, "functions_definer");
    assert_eq!(member.executable_by, BTreeSet::from(["functions_definer".to_owned(), "relay".to_owned()]));
    let members = catalog.named("app", "members").expect("mentioned by a text body");
    assert!(members.access["functions_definer"].columns.is_empty(), "the rights of a definer are known");

    let me = function(&catalog, "app", "me");
    assert!(me.strict && me.executable_by.contains("authenticated") && me.search_path.is_none());
    assert!(function(&catalog, "auth", "uid").sql_body.is_some(), "called by a function that is called by a function");
    let blocked = function(&catalog, "public", "is_blocked");
    let body = blocked.parsed_body.as_deref().expect("a parsed body");
    assert!(body.contains("FROM app.blocked b") && blocked.source.is_none() && blocked.sql_body.is_none(), "{body}");
    assert!(catalog.named("app", "blocked").is_some(), "mentioned by a parsed body");
    let unqualified = function(&catalog, "public", "unqualified");
    assert_eq!(unqualified.search_path.as_deref(), Some(&["app".to_owned(), "Odd One".to_owned()][..]));
    assert!(unqualified.other_settings && catalog.named("app", "Teams").is_some());
    assert!(function(&catalog, "public", "teams").returns_set);
    let other = function(&catalog, "public", "other");
    assert!(!other.callable && other.source.is_none() && other.arguments.len() == 1);
    assert!(catalog.functions_named("public", "uncalled").next().is_none());
    database.run("drop function is_member cascade; drop role functions_definer").await;
}

#[tokio::test]
async fn an_operator_that_is_not_pg_catalogs_shows_in_the_text() {
    let mut database = TestDatabase::new().await;
    database
        .run(
            "create schema ops;
             create function ops.yes(text, text) returns boolean language sql immutable as 'select true';
             create function ops.has(jsonb, text) returns boolean language sql immutable as 'select true';
             create operator ops.= (function = ops.yes, leftarg = text, rightarg = text);
             create operator ops.? (function = ops.has, leftarg = jsonb, rightarg = text);
             create function in_ops(t text) returns boolean language sql set search_path = ops as $$ select t = 'a' $$;
             create table docs (id int primary key, t text, j jsonb);
             create policy a on docs using (t = 'x' and j ? 'y');
             set search_path = ops, pg_catalog, public;
             create policy b on docs using (t = 'x' and j ? 'y');
             create policy c on docs using (in_ops(t)); reset search_path;
             alter publication supabase_realtime add table docs",
        )
        .await;
    let catalog = read_again(&mut database, &[]).await;
    let texts: Vec<_> =
        catalog.find("public", "docs").expect("published").policies.iter().map(|p| &p.expression).collect();
    assert_eq!(texts[0].as_deref(), Some("((t = 'x'::text) AND (j ? 'y'::text))"));
    assert_eq!(texts[1].as_deref(), Some("((t OPERATOR(ops.=) 'x'::text) AND (j OPERATOR(ops.?) 'y'::text))"));
    assert!(catalog.has_operator("ops", "=") && catalog.has_operator("ops", "?") && !catalog.has_operator("ops", "<"));
}

#[tokio::test]
async fn what_is_far_away_is_not_known_once_there_is_too_much_of_it() {
    let mut database = TestDatabase::new().await;
    database
        .run(
            "do $$ begin
                for n in reverse 520..0 loop
                    execute format('create table t%s (id int primary key)', n);
                    if n < 520 then execute format('create policy p on t%s using (id in (select id from t%s))', n, n + 1); end if;
                end loop; end $$;
             alter publication supabase_realtime add table t0",
        )
        .await;
    let catalog = read_again(&mut database, &["anon"]).await;
    assert!(catalog.named("public", "t500").is_some() && catalog.named("public", "t501").is_none());
    let mut wanted = wanted(&["anon"]);
    wanted.roles.extend((1..1000).map(|n| format!("role{n}")));
    let catalog = read(&mut database.client, &wanted).await.expect("read");
    assert!(
        catalog.named("public", "t99").is_some() && catalog.named("public", "t100").is_none(),
        "rights are bounded"
    );
}

#[tokio::test]
async fn rules_change_with_what_policies_look_into() {
    let mut database = TestDatabase::new().await;
    database
        .run(
            "create role inner_rules_owner;
             create table members (org int primary key, user_id uuid);
             create table parts (id int primary key) partition by range (id);
             create table parts_1 partition of parts for values from (0) to (9);
             create function inner_one() returns uuid language sql as 'select auth.uid()';
             create function may(int) returns boolean language sql security definer as
                 $$ select exists (select from public.members where org = $1 and user_id = public.inner_one()) $$;
             create table docs (id int primary key);
             create policy p on docs using (may(id) and exists (select from parts));
             alter publication supabase_realtime add table docs; create publication rowcast_facts",
        )
        .await;
    let mut before = read_again(&mut database, &["anon"]).await;
    for (changes, statement) in [
        (false, "insert into members values (1); insert into parts values (1); insert into docs values (1)"),
        (true, "create or replace function inner_one() returns uuid language sql as 'select null::uuid'"),
        (true, "revoke execute on function inner_one() from public"),
        (true, "alter function may owner to inner_rules_owner"),
        (true, "grant select on members to inner_rules_owner"),
        (true, "create policy p on members using (user_id = auth.uid())"),
        (true, "alter table members enable row level security"),
        (true, "alter publication rowcast_facts add table members"),
        (false, "truncate members"),
        (true, "create table parts_2 partition of parts for values from (10) to (19)"),
        (true, "revoke usage on schema public from public"),
        (false, "truncate docs"),
    ] {
        database.run(statement).await;
        let after = read_again(&mut database, &["anon"]).await;
        assert_eq!(!before.same_rules(&after), changes, "{statement}");
        before = after;
    }
    database.run("drop function may cascade; drop table members; drop role inner_rules_owner").await;
}

/// A reading is whole, or says that it is not; a table or function that goes while it is read is no error of the operator.
#[tokio::test]
async fn a_reading_in_the_middle_of_changes_is_whole_or_says_that_they_go_on() {
    let mut database = TestDatabase::new().await;
    database.run("create table docs (id int primary key); alter publication supabase_realtime add table docs").await;
    let writer = database.config("relay").connect().await.expect("connects");
    let steps = [
        "create table members (org int, user_id uuid);
         create function may(org int) returns boolean language sql
             begin atomic select exists (select from members m where m.org = may.org); end;
         create policy p on docs using (may(id) or exists (select from members))",
        "drop policy p on docs; drop function may; drop table members",
    ];
    let (wanted, mut with) = (wanted(&["anon"]), 0);
    for round in 0..60 {
        // The work before the change lets it fall into another part of the reading each time.
        let work = format!("select count(*) from generate_series(1, {})", round * 4000);
        let script = format!("{work}; begin; {}; commit", steps[round % 2]);
        let (changed, reading) = tokio::join!(writer.batch_execute(&script), read(&mut database.client, &wanted));
        changed.expect("changed");
        match reading {
            Ok(catalog) => {
                let policies = catalog.find("public", "docs").expect("published").policies.len();
                let functions = catalog.functions_named("public", "may").count();
                let tables = usize::from(catalog.named("public", "members").is_some());
                assert_eq!((tables, functions), (policies, policies));
                with += policies;
            }
            Err(CatalogError::Changing(_)) => {}
            Err(error) => panic!("{}", crate::error::chain(&error)),
        }
    }
    assert!(with > 0, "a policy was seen");
}
