//! Beside a Supabase database: its objects are used, and none of them is changed, neither by `up` nor by `down` nor by a script.

use rowcast::{messages, migrate};
use tokio_postgres::Client;

use super::{run, value};
use crate::support::TestPg;

/// What Supabase has, as `protocol.md` §12 and its own migrations describe it.
const FIXTURE: &str = "
    create role anon nologin noinherit; create role authenticated nologin noinherit; create role service_role nologin noinherit bypassrls;
    create role supabase_admin nologin; create role supabase_auth_admin nologin noinherit createrole;
    create role supabase_realtime_admin nologin noinherit;
    create schema auth authorization supabase_auth_admin; grant usage on schema auth to anon, authenticated, service_role;
    create function auth.uid() returns uuid language sql stable as $$ select nullif(current_setting('request.jwt.claim.sub', true), '')::uuid $$;
    create function auth.role() returns text language sql stable as $$ select nullif(current_setting('request.jwt.claim.role', true), '')::text $$;
    create function auth.email() returns text language sql stable as $$ select nullif(current_setting('request.jwt.claim.email', true), '')::text $$;
    create function auth.jwt() returns jsonb language sql stable as $$ select nullif(current_setting('request.jwt.claims', true), '')::jsonb $$;
    alter function auth.uid() owner to supabase_auth_admin;
    create table auth.users (id uuid primary key, email text);
    alter table auth.users owner to supabase_auth_admin;
    create schema realtime authorization supabase_admin; grant usage on schema realtime to anon, authenticated, service_role;
    create table realtime.messages (topic text not null, extension text not null, payload jsonb, event text, private boolean default false,
        updated_at timestamp not null default now(), inserted_at timestamp not null default now(),
        id uuid not null default gen_random_uuid(), binary_payload bytea, primary key (id, inserted_at)) partition by range (inserted_at);
    create table realtime.messages_2026_11_21 partition of realtime.messages for values from ('2026-11-21') to ('2026-11-22');
    alter table realtime.messages enable row level security;
    create policy read on realtime.messages for select to authenticated using (topic like 'room:%');
    create index messages_inserted_at_topic on realtime.messages (inserted_at desc, topic) where extension = 'broadcast' and private;
    grant select, insert, update on realtime.messages to anon, authenticated, service_role;
    create type realtime.equality_op as enum ('eq', 'neq', 'lt', 'lte', 'gt', 'gte', 'in');
    create type realtime.user_defined_filter as (column_name text, op realtime.equality_op, value text);
    create table realtime.subscription (id bigint generated always as identity primary key, subscription_id uuid not null, entity regclass not null,
        filters realtime.user_defined_filter[] not null default '{}', claims jsonb not null, created_at timestamp not null default now());
    create table realtime.schema_migrations (version bigint primary key, inserted_at timestamp);
    create function realtime.topic() returns text language sql stable as $$ select nullif(current_setting('realtime.topic', true), '')::text $$;
    create function realtime.send(payload jsonb, event text, topic text, private boolean default true) returns void language plpgsql as
        $$ begin insert into realtime.messages (payload, event, topic, private, extension) values (payload, event, topic, private, 'broadcast'); end $$;
    create table public.todos (id bigint primary key, user_id uuid references auth.users (id));
    alter table public.todos enable row level security;
    create policy own on public.todos for select to authenticated using (user_id = auth.uid());
    create publication supabase_realtime for table public.todos;
    create publication supabase_realtime_messages_publication for table realtime.messages;
    insert into auth.users values ('a11ce000-0000-4000-8000-000000000001', 'alice@example.com');
    insert into realtime.messages (topic, extension, inserted_at) values ('room:1', 'broadcast', '2026-11-21 12:00');";

/// Every object of those schemas and publications with its owner, rights and definition, by the versions of their catalog rows:
/// whatever touches one of them changes this.
async fn everything(client: &Client) -> Vec<String> {
    let sql = "with theirs as (select oid from pg_namespace where nspname in ('auth', 'realtime', 'public'))
        select 'schema ' || concat_ws(' ', nspname, nspowner, nspacl::text, xmin) from pg_namespace where oid in (select oid from theirs)
        union all select 'class ' || concat_ws(' ', oid::regclass, relowner, relacl::text, relrowsecurity, relreplident, xmin)
            from pg_class where relnamespace in (select oid from theirs)
        union all select 'column ' || concat_ws(' ', attrelid::regclass, attname, xmin) from pg_attribute
            where attnum > 0 and attrelid in (select oid from pg_class where relnamespace in (select oid from theirs))
        union all select 'function ' || concat_ws(' ', oid::regprocedure, proowner, proacl::text, prosrc, xmin) from pg_proc where pronamespace in (select oid from theirs)
        union all select 'type ' || concat_ws(' ', oid::regtype, typacl::text, xmin) from pg_type where typnamespace in (select oid from theirs)
        union all select 'policy ' || concat_ws(' ', polname, polrelid::regclass, xmin) from pg_policy
        union all select 'publication ' || concat_ws(' ', pubname, pubowner, xmin) from pg_publication where pubname like 'supabase%'
        union all select 'published ' || concat_ws(' ', prrelid::regclass, prpubid, xmin) from pg_publication_rel
            where prpubid not in (select oid from pg_publication where pubname like 'rowcast%')
        union all select 'role ' || concat_ws(' ', rolname, rolsuper, rolinherit, rolcreaterole, rolcanlogin, rolreplication, rolbypassrls)
            from pg_roles where rolname in ('anon', 'authenticated', 'service_role') or rolname like 'supabase%'
        union all select 'member ' || concat_ws(' ', roleid::regrole, member::regrole) from pg_auth_members
            where member::regrole::text not like 'rowcast%' and roleid::regrole::text not like 'pg_%'
        union all select 'row ' || concat_ws(' ', tableoid::regclass, m.*) from realtime.messages m
        union all select 'row ' || concat_ws(' ', tableoid::regclass, u.*) from auth.users u
        order by 1";
    client.query(sql, &[]).await.expect("the catalogs").iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn nothing_of_supabases_is_changed() {
    let pg = TestPg::bare().await;
    let mut client = pg.client().await;
    client.batch_execute(FIXTURE).await.expect("the fixture");
    let before = everything(&client).await;
    assert!(before.len() > 50, "{}", before.len());

    migrate::up(&mut client).await.expect("up");
    assert_eq!(everything(&client).await, before, "up");
    assert!(migrate::missing(&client, &["supabase_realtime".to_owned()]).await.expect("a look").is_empty());
    run(&pg, "postgres", "roles.sql", &[("runner", "relay")]).await;
    for script in ["publication_status.sql", "retention_status.sql", "monitor.sql", "slot_status.sql"] {
        run(&pg, "rowcast_monitor", script, &[]).await;
    }
    // `rowcast_dba` gets USAGE on schema auth, on purpose; nothing else differs.
    let acl = |line: &String| !line.starts_with("schema auth ");
    let differing: Vec<String> = everything(&client).await.into_iter().filter(acl).collect();
    assert_eq!(differing, before.iter().filter(|line| acl(line)).cloned().collect::<Vec<_>>(), "the scripts");

    run(&pg, "postgres", "roles.sql", &[("undo", "yes")]).await;
    let report = migrate::down(&mut client, None).await.expect("down");
    assert!(report.kept.is_empty(), "{report}");
    assert_eq!(value::<i64>(&pg, "select count(*) from pg_replication_origin").await, 0);
    let without_version = |lines: Vec<String>| -> Vec<String> {
        // The row of `auth` was written twice; what it says is what it said.
        lines
            .into_iter()
            .map(|line| {
                if line.starts_with("schema auth ") {
                    line.rsplit_once(' ').expect("a version").0.to_owned()
                } else {
                    line
                }
            })
            .collect()
    };
    assert_eq!(without_version(everything(&client).await), without_version(before), "down");
}

#[tokio::test]
async fn of_its_partitions_only_days_that_are_missing_are_made() {
    let pg = TestPg::bare().await;
    let mut client = pg.client().await;
    client.batch_execute(FIXTURE).await.expect("the fixture");
    let old = "create table realtime.messages_2001_01_01 partition of realtime.messages for values from ('2001-01-01') to ('2001-01-02');
        insert into realtime.messages (topic, extension, inserted_at) values ('room:1', 'broadcast', '2001-01-01 12:00');
        alter table realtime.messages owner to supabase_realtime_admin; grant usage, create on schema realtime to supabase_realtime_admin";
    client.batch_execute(old).await.expect("a day that is over");
    migrate::up(&mut client).await.expect("up");
    let keep = std::time::Duration::from_secs(3600);
    let tended = messages::tend(&mut client, messages::Scope::Own, keep).await.expect("a round");
    assert!(!tended.made.is_empty() && tended.made.len() <= 5, "{tended:?}");
    assert!(tended.dropped.is_empty() && tended.deleted == 0 && tended.moved == 0, "{tended:?}");
    assert_eq!(value::<i64>(&pg, "select count(*) from realtime.messages_2001_01_01").await, 1);
    assert!(value::<bool>(&pg, "select to_regclass('realtime.messages_default') is null").await);
    let report = migrate::down(&mut client, None).await.expect("down");
    assert!(report.kept.is_empty(), "{report}");
    assert!(value::<bool>(&pg, "select to_regclass('realtime.messages') is not null").await);
}
