//! Policies as applications write them (Supabase's documentation, Basejump, the usual multi-tenant templates), and which engine
//! judges them. Data, so that the table in README is made from it.

/// What a policy is expected to compile to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Memory judges.
    Pure,
    /// Postgres is asked; the reason has this in it.
    Ask(&'static str),
    /// Postgres refuses every query; the reason has this in it.
    Refused(&'static str),
}
use Expected::{Ask, Pure, Refused};

/// One policy on table `t` of [`SETUP`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form {
    /// For people.
    pub(crate) name: &'static str,
    /// The USING expression.
    pub(crate) policy: &'static str,
    pub(crate) engine: Expected,
}

const fn form(name: &'static str, policy: &'static str, engine: Expected) -> Form {
    Form { name, policy, engine }
}

/// The tables and functions that the forms are about. `members` has policies of its own, `secrets` no grant, `logs` no key.
pub(crate) const SETUP: &str = r#"
create type mood as enum ('sad', 'ok', 'happy');
create type account_role as enum ('owner', 'member');
create table profiles (id uuid primary key, org_id uuid, role text, is_admin bool);
create table orgs (id uuid primary key, name text, owner uuid);
create table teams (id int primary key, org_id uuid, name text);
create table members (team_id int, user_id uuid, role text, active bool, primary key (team_id, user_id));
create table blocked (user_id uuid, by_user uuid, primary key (user_id, by_user));
create table account_user (account_id uuid, user_id uuid, account_role account_role, primary key (user_id, account_id));
create table user_roles (user_id uuid, role text, primary key (user_id, role));
create table role_permissions (role text, permission text, primary key (role, permission));
create table open_members (team_id int, user_id uuid, primary key (team_id, user_id));
create table looping (id int primary key, user_id uuid);
create table secrets (id int primary key, user_id uuid);
create table logs (team_id int, user_id uuid);
create view my_members as select * from members;
create table t (id int primary key, user_id uuid, team_id int, org_id uuid, v varchar(20), s text, b bool, n numeric,
    i8 bigint, i2 smallint, ts timestamptz, tsn timestamp, d date, m mood, tags text[], uids uuid[], c char(5), j jsonb,
    f8 float8);
alter table t enable row level security;
alter table members enable row level security;
alter table looping enable row level security;
alter publication supabase_realtime add table t;
grant select on profiles, orgs, teams, members, blocked, account_user, user_roles, role_permissions, open_members, looping,
    logs, my_members, t to anon, authenticated;
revoke all on secrets from anon, authenticated;

create function my_teams() returns setof int language sql stable security definer set search_path = public
    as $$ select team_id from members where user_id = auth.uid() $$;
create function my_team_array() returns int[] language sql stable security definer
    as $$ select array_agg(team_id) from public.members where user_id = auth.uid() $$;
create function is_member(team int) returns bool language sql stable security definer set search_path = ''
    as $$ SELECT EXISTS (select 1 from public.members m where m.team_id = team AND m.user_id = (select auth.uid())) $$;
create function is_member_atomic(team int) returns bool language sql stable security definer
    begin atomic select exists (select 1 from members m where m.team_id = team and m.user_id = auth.uid()); end;
create function is_member_return(int) returns bool language sql stable strict security definer
    return exists (select 1 from members m where m.team_id = $1 and m.user_id = auth.uid());
create function is_open_member(team int) returns bool language sql stable
    as $$ select exists (select 1 from public.open_members m where m.team_id = team and m.user_id = auth.uid()); $$;
create function unqualified_member(team int) returns bool language sql stable
    as $$ select exists (select 1 from open_members m where m.team_id = team and m.user_id = auth.uid()); $$;
create function my_org() returns uuid language sql stable security definer set search_path = public
    as $$ select org_id from profiles where id = auth.uid() $$;
create function my_role() returns text language sql stable security definer set search_path = public
    as $$ select role from profiles where id = auth.uid() limit 1; $$;
create function is_admin() returns bool language sql stable security definer set search_path = public
    as $$ select coalesce((select p.is_admin from profiles p where p.id = auth.uid()), false) $$;
create function tenant_id() returns uuid language sql stable
    as $$ select nullif(((current_setting('request.jwt.claims')::jsonb -> 'app_metadata') ->> 'tenant'), '')::uuid $$;
create function has_role_on_account(account_id uuid, account_role account_role default null) returns boolean
    language sql security definer set search_path = public as $$
    select exists(
        select 1 from public.account_user wu
        where wu.user_id = auth.uid()
          and wu.account_id = has_role_on_account.account_id
          and (wu.account_role = has_role_on_account.account_role or has_role_on_account.account_role is null)
    ); $$;
create function get_accounts_with_role(passed_in_role account_role default null) returns setof uuid
    language sql security definer set search_path = public as $$
    select account_id from public.account_user wu
    where wu.user_id = auth.uid() and (wu.account_role = passed_in_role or passed_in_role is null); $$;
create function authorize(requested text) returns bool language plpgsql stable security definer set search_path = ''
    as $$ begin return exists (select 1 from public.role_permissions where permission = requested); end $$;
create function may(requested text) returns bool language sql stable security definer set search_path = ''
    as $$ select exists (select 1 from public.user_roles ur join public.role_permissions rp on rp.role = ur.role
          where ur.user_id = auth.uid() and rp.permission = requested) $$;
create function shares_team(other uuid) returns bool language sql stable security definer set search_path = ''
    as $$ select exists (select 1 from public.members a, public.members b
          where a.user_id = auth.uid() and b.user_id = other and a.team_id = b.team_id) $$;
create function loops(int) returns bool language sql stable as $$ select exists (select 1 from public.looping l where l.id = $1) $$;

create policy own on members to authenticated using (user_id = auth.uid());
create policy active on members as restrictive to authenticated using (active is not false);
create policy l on looping using (exists (select 1 from looping x where x.user_id = auth.uid()));
"#;

/// Rows for [`SETUP`]. `{alice}` and `{bob}` stand for their ids.
pub(crate) const ROWS: &str = "
insert into profiles values ('{alice}', '00000000-0000-0000-0000-00000000000a', 'admin', true), ('{bob}', null, 'user', null);
insert into orgs values ('00000000-0000-0000-0000-00000000000a', 'a', '{alice}'), ('00000000-0000-0000-0000-00000000000b', 'b', '{bob}');
insert into teams values (1, '00000000-0000-0000-0000-00000000000a', 'one'), (2, '00000000-0000-0000-0000-00000000000b', 'two'), (3, null, null);
insert into members values (1, '{alice}', 'admin', true), (2, '{alice}', 'user', false), (1, '{bob}', null, null), (3, '{bob}', 'owner', true);
insert into blocked values ('{alice}', '{bob}');
insert into account_user values ('00000000-0000-0000-0000-00000000000a', '{alice}', 'owner'), ('00000000-0000-0000-0000-00000000000a', '{bob}', 'member');
insert into user_roles values ('{alice}', 'editor'), ('{bob}', 'reader');
insert into role_permissions values ('editor', 'write'), ('editor', 'read'), ('reader', 'read');
insert into open_members values (1, '{alice}'), (2, '{bob}');
insert into t values
  (1, '{alice}', 1, '00000000-0000-0000-0000-00000000000a', 'a', 'a', true, 1.50, 5, 1, '2024-06-01 12:00:00+00', '2023-06-01 12:00:00.5', '2024-01-01',
   'ok', '{a,b}', '{{alice}}', 'abc', '{\"a\": 1.0}', 1.5),
  (2, '{bob}', 2, '00000000-0000-0000-0000-00000000000b', '', 'admin', false, -7, -5, 7, 'infinity', '2025-01-01', '1999-12-31', 'happy', '{}', '{}', 'ab ',
   '[]', -0.0),
  (3, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null),
  (4, '{bob}', 3, '00000000-0000-0000-0000-00000000000a', 'x', 'it''s', null, 2.00, 5000000000, 3, '2024-01-01', '-infinity', 'infinity', 'sad', '{x}',
   '{{bob}}', '', 'null', 'NaN'),
  (5, '{alice}', 3, '{alice}', 'b', '7', true, 7.0, 7, 7, '0044-03-15 BC', null, '2024-01-01', 'ok', null, null, '7', '7', 0);
";

/// The forms.
pub(crate) const FORMS: &[Form] = &[
    // Ownership.
    form("own rows", "user_id = auth.uid()", Pure),
    form("own rows, cached", "(select auth.uid()) = user_id", Pure),
    form("own rows, as text", "auth.uid()::text = user_id::text", Pure),
    form("own rows, by the claims", "user_id = (current_setting('request.jwt.claims')::json ->> 'sub')::uuid", Pure),
    form("own rows, PostgREST", "user_id::text = current_setting('request.jwt.claims', true)::jsonb ->> 'sub'", Pure),
    form("own rows, two columns", "auth.uid() in (user_id, org_id)", Pure),
    form("own rows, two columns as an array", "auth.uid() = any (array[user_id, org_id])", Pure),
    form("others' rows", "not (user_id = auth.uid())", Pure),
    form("others' rows and nobody's", "user_id is distinct from auth.uid()", Pure),
    form("own rows, nulls too", "user_id is not distinct from auth.uid()", Pure),
    form("who is logged in", "(select auth.uid()) is not null", Pure),
    form("owner or public", "user_id = auth.uid() or b", Pure),
    // The token.
    form("tenant in the token", "org_id = (auth.jwt() -> 'app_metadata' ->> 'tenant')::uuid", Pure),
    form("tenant by a helper", "org_id = tenant_id()", Pure),
    form("tenant by a path", "s = auth.jwt() #>> '{app_metadata,org}'", Pure),
    form("tenant by a path of an array", "s = auth.jwt() #>> array['app_metadata', 'org']", Pure),
    form("integer claim", "team_id = (auth.jwt() ->> 'org')::int", Pure),
    form("bigint claim", "i8 = (auth.jwt() ->> 'org')::bigint", Pure),
    form("numeric claim", "n = (auth.jwt() ->> 'org')::numeric", Pure),
    form("claim of type jsonb as integer", "(auth.jwt() -> 'org')::int = team_id", Pure),
    form("a list's first element", "s = auth.jwt() -> 'roles' ->> 0", Pure),
    form("admin flag", "(auth.jwt() ->> 'is_admin')::boolean", Pure),
    form("admin flag or false", "coalesce((auth.jwt() -> 'app_metadata' ->> 'admin')::boolean, false)", Pure),
    form("admin flag of type jsonb", "(auth.jwt() -> 'app_metadata' -> 'admin')::boolean is true", Pure),
    form("multi-factor", "(auth.jwt() ->> 'aal') = 'aal2'", Pure),
    form("multi-factor, arrays", "array[auth.jwt() ->> 'aal'] <@ array['aal2', 'aal1']", Pure),
    form("not anonymous", "(select (auth.jwt() ->> 'is_anonymous')::boolean) is false", Pure),
    form("the role", "auth.role() = 'authenticated'", Pure),
    form("the role of the session", "current_user = 'authenticated' and current_role <> 'anon'", Pure),
    form("the role setting", "current_setting('role', true) = 'service_role' or b", Pure),
    form("e-mail", "s = auth.jwt() ->> 'email'", Pure),
    form("scopes", "s = any (string_to_array(auth.jwt() ->> 'scope', ' '))", Pure),
    // Arrays in the token.
    form("team list, ?", "(auth.jwt() -> 'app_metadata' -> 'teams') ? s", Pure),
    form("team list, ? of an integer", "(auth.jwt() -> 'app_metadata' -> 'teams') ? team_id::text", Pure),
    form("team list, not ?", "not ((auth.jwt() -> 'app_metadata' -> 'teams') ? s)", Pure),
    form("team list, ?|", "(auth.jwt() -> 'roles') ?| array['admin', 'editor']", Pure),
    form("team list, ?&", "(auth.jwt() -> 'roles') ?& array['admin', 'editor']", Pure),
    form("team list, @> text", "(auth.jwt() -> 'app_metadata' -> 'teams') @> to_jsonb(s)", Pure),
    form("team list, @> integer", "(auth.jwt() -> 'app_metadata' -> 'teams') @> to_jsonb(team_id)", Pure),
    form("team list, @> array", "(auth.jwt() -> 'app_metadata' -> 'teams') @> jsonb_build_array(s)", Pure),
    form("team list, <@", "to_jsonb(s) <@ (auth.jwt() -> 'app_metadata' -> 'teams')", Pure),
    form("role list, ?", "(auth.jwt() -> 'roles') ? 'admin'", Pure),
    form("flags, @>", "auth.jwt() @> '{\"app_metadata\": {\"admin\": true}}'", Pure),
    form("a member of type jsonb", "auth.jwt() -> 'app_metadata' -> 'admin' = 'true'::jsonb", Pure),
    form("elements, any array", "s = any (array(select jsonb_array_elements_text(auth.jwt() -> 'roles')))", Pure),
    form(
        "elements, cast as an array",
        "org_id = any (array(select jsonb_array_elements_text(auth.jwt() -> 'orgs'))::uuid[])",
        Pure,
    ),
    form(
        "elements, cast one by one",
        "org_id = any (array(select jsonb_array_elements_text(auth.jwt() -> 'orgs')::uuid))",
        Pure,
    ),
    form("elements, in", "s in (select jsonb_array_elements_text(auth.jwt() -> 'roles'))", Pure),
    form("elements, not in", "s not in (select jsonb_array_elements_text(auth.jwt() -> 'roles'))", Pure),
    form(
        "elements, from",
        "org_id in (select x::uuid from jsonb_array_elements_text(auth.jwt() -> 'orgs') as y(x))",
        Pure,
    ),
    form(
        "elements, exists",
        "exists (select 1 from jsonb_array_elements_text(auth.jwt() -> 'roles') as x where x = s)",
        Pure,
    ),
    form(
        "elements, none",
        "not exists (select 1 from jsonb_array_elements_text(auth.jwt() -> 'roles') as x where x = s)",
        Pure,
    ),
    form("role among elements", "'admin' in (select jsonb_array_elements_text(auth.jwt() -> 'roles'))", Pure),
    // Values of the row.
    form("everybody", "true", Pure),
    form("nobody", "false", Pure),
    form("a flag", "b", Pure),
    form("not a flag", "not b", Pure),
    form("flag is not true", "b is not true", Pure),
    form("flag is unknown", "b is unknown", Pure),
    form("flag differs", "b is distinct from true", Pure),
    form("not deleted", "ts is null", Pure),
    form("status list", "s in ('a', 'admin')", Pure),
    form("status not in a list", "v not in ('a', 'b')", Pure),
    form("a list of integers", "i8 in (5, 7)", Pure),
    form("a constant array", "team_id = any ('{1,3}')", Pure),
    form("text with quotes", "s = 'it''s'", Pure),
    form("varchar", "v <> 'a'", Pure),
    form("char(n)", "c = 'ab'", Pure),
    form("char(n) and text", "c = s", Pure),
    form("integers", "i8 > -5 and i2 <= 5", Pure),
    form("bigint constant", "i8 = 5000000000", Pure),
    form("between", "team_id between 1 and 2", Pure),
    form("not between", "team_id not between 1 and 2", Pure),
    form("numeric", "n >= 1.5", Pure),
    form("numeric and integer", "n = i8 or n = 2", Pure),
    form("float", "f8 > 0.5 or f8 = 0", Pure),
    form("timestamptz", "ts > '2024-01-01 00:00:00+02'", Pure),
    form("timestamp", "tsn < '2024-01-01'", Pure),
    form("date", "d >= date '2024-01-01'", Pure),
    form("enum", "m in ('ok', 'happy')", Pure),
    form("enum as text", "m::text <> 'ok'", Pure),
    form("jsonb equality", "j = '{\"a\": 1}'", Pure),
    form("case", "case when b then user_id = auth.uid() else team_id = 1 end", Pure),
    form("simple case", "case s when 'a' then true when 'admin' then user_id = auth.uid() else false end", Pure),
    form("coalesce", "coalesce(b, false)", Pure),
    form("coalesce of columns", "coalesce(user_id, org_id) = auth.uid()", Pure),
    form("nullif", "nullif(s, '') is not null", Pure),
    form("a condition as a value", "(s = 'a') = b", Pure),
    form("an array column", "auth.uid() = any (uids)", Pure),
    form("an array column, text", "auth.uid()::text = any (tags) or 'a' = any (tags)", Pure),
    form("an array column, none of it", "'a' <> all (tags) and not (auth.uid() = any (uids))", Pure),
    form("an array column, or owner", "user_id = auth.uid() or auth.uid() = any (uids)", Pure),
    form("column to uuid", "s::uuid = auth.uid()", Pure),
    form("column to integer", "case when s = '7' then s::int = i8 end", Pure),
    form("boolean as text", "b::text = 'true'", Pure),
    // Membership.
    form("team, in", "team_id in (select team_id from members where user_id = auth.uid())", Pure),
    form("team, any", "team_id = any (select team_id from members where user_id = auth.uid())", Pure),
    form("team, any array", "team_id = any (array(select team_id from members where user_id = auth.uid()))", Pure),
    form(
        "team, exists",
        "exists (select 1 from members m where m.team_id = t.team_id and m.user_id = (select auth.uid()))",
        Pure,
    ),
    form(
        "team, exists with *",
        "exists (select * from members m where m.team_id = t.team_id and m.user_id = auth.uid())",
        Pure,
    ),
    form("team, user in", "auth.uid() in (select user_id from members where members.team_id = t.team_id)", Pure),
    form("team, distinct", "team_id in (select distinct team_id from open_members where user_id = auth.uid())", Pure),
    form("team, count", "(select count(*) from members where team_id = t.team_id and user_id = auth.uid()) > 0", Pure),
    form(
        "team, by role",
        "exists (select 1 from members m where m.team_id = t.team_id and m.user_id = auth.uid() and m.role = any (array['admin', 'owner']))",
        Pure,
    ),
    form(
        "team, role and flag",
        "team_id in (select team_id from members where user_id = auth.uid() and role in ('admin', 'owner') and active)",
        Pure,
    ),
    form("not in any of my teams", "team_id not in (select team_id from members where user_id = auth.uid())", Pure),
    form("all different", "team_id <> all (select team_id from open_members)", Pure),
    form("two columns", "(team_id, user_id) in (select team_id, user_id from members)", Pure),
    form("two columns, not", "(team_id, user_id) not in (select team_id, user_id from open_members)", Pure),
    form(
        "block list",
        "not exists (select 1 from blocked where blocked.user_id = auth.uid() and blocked.by_user = t.user_id)",
        Pure,
    ),
    form(
        "organisation, join",
        "exists (select 1 from members m join teams on teams.id = m.team_id where teams.org_id = t.org_id and m.user_id = auth.uid())",
        Pure,
    ),
    form(
        "organisation, comma",
        "exists (select 1 from members m, teams x where x.id = m.team_id and x.org_id = t.org_id and m.user_id = auth.uid())",
        Pure,
    ),
    form(
        "organisation, three tables",
        "exists (select 1 from open_members m join teams x on x.id = m.team_id join orgs o on o.id = x.org_id where o.id = t.org_id and m.user_id = auth.uid())",
        Pure,
    ),
    form(
        "organisation, two levels",
        "team_id in (select id from teams where org_id in (select org_id from profiles where id = auth.uid()))",
        Pure,
    ),
    form(
        "organisation, correlated at depth",
        "exists (select 1 from teams x where x.id = t.team_id and exists (select 1 from orgs o where o.id = x.org_id and o.owner = auth.uid() and t.b is not false))",
        Pure,
    ),
    form("my organisation", "org_id = (select org_id from profiles where id = auth.uid())", Pure),
    form("my organisation, limit", "org_id = (select p.org_id from profiles p where p.id = auth.uid() limit 1)", Pure),
    form("not my organisation", "not (org_id = (select org_id from profiles where id = auth.uid()))", Pure),
    form("my role", "(select role from profiles where id = auth.uid()) = 'admin'", Pure),
    form("my role in a list", "(select role from profiles where id = auth.uid()) in ('admin', 'owner')", Pure),
    form("my role not in a list", "(select role from profiles where id = auth.uid()) not in ('admin', 'owner')", Pure),
    form("my flag", "(select is_admin from profiles where id = auth.uid())", Pure),
    form("my flag, not", "not (select is_admin from profiles where id = auth.uid())", Pure),
    form("my flag or false", "coalesce((select is_admin from profiles where id = auth.uid()), false)", Pure),
    form("no profile yet", "(select id from profiles where id = auth.uid()) is null", Pure),
    form("the owner's role", "(select role from profiles where profiles.id = t.user_id) <> 'admin'", Pure),
    form(
        "union",
        "team_id in (select team_id from members where user_id = auth.uid() union select team_id from open_members)",
        Pure,
    ),
    form(
        "derived table",
        "exists (select 1 from (select * from members) m where m.team_id = t.team_id and m.user_id = auth.uid())",
        Pure,
    ),
    form(
        "column aliases",
        "exists (select 1 from open_members as m(a, b) where m.a = t.team_id and m.b = auth.uid())",
        Pure,
    ),
    form(
        "roles and permissions",
        "exists (select 1 from user_roles ur join role_permissions rp on rp.role = ur.role where ur.user_id = auth.uid() and rp.permission = 'write')",
        Pure,
    ),
    form(
        "admin or owner or team",
        "user_id = auth.uid() or (auth.jwt() -> 'roles') ? 'admin' or team_id in (select team_id from members where user_id = auth.uid())",
        Pure,
    ),
    // Helper functions.
    form("helper, exists", "is_member(team_id)", Pure),
    form("helper, cached", "(select is_member(team_id))", Pure),
    form("helper, begin atomic", "is_member_atomic(team_id)", Pure),
    form("helper, strict return", "is_member_return(team_id)", Pure),
    form("helper, not", "not is_member_return(team_id)", Pure),
    form("helper, invoker", "is_open_member(team_id)", Pure),
    form("helper, a set", "team_id in (select my_teams())", Pure),
    form("helper, a set in from", "team_id in (select * from my_teams())", Pure),
    form("helper, a set as an array", "team_id = any (array(select my_teams()))", Pure),
    form("helper, a value", "org_id = my_org()", Pure),
    form("helper, a text", "my_role() = 'admin'", Pure),
    form("helper, a flag", "is_admin()", Pure),
    form("helper, a flag or owner", "is_admin() or user_id = auth.uid()", Pure),
    form("helper, permission", "may('write')", Pure),
    form("helper, colleagues", "shares_team(user_id)", Pure),
    form("Basejump, has_role_on_account", "has_role_on_account(org_id)", Pure),
    form("Basejump, has_role_on_account of a role", "has_role_on_account(org_id, 'owner')", Pure),
    form("Basejump, get_accounts_with_role", "org_id in (select get_accounts_with_role())", Pure),
    form("Basejump, get_accounts_with_role of a role", "org_id in (select get_accounts_with_role('owner'))", Pure),
    // What Postgres refuses.
    form(
        "no grant on the inner table",
        "exists (select 1 from secrets where secrets.user_id = auth.uid())",
        Refused("may not select"),
    ),
    form(
        "its own table",
        "exists (select 1 from t x where x.team_id = t.team_id and x.user_id = auth.uid())",
        Refused("infinite recursion"),
    ),
    form(
        "an inner table that looks into itself",
        "exists (select 1 from looping where looping.id = t.id)",
        Refused("infinite recursion"),
    ),
    // What only Postgres can say.
    form("the clock", "now() > ts", Ask("clock")),
    form("the clock, a date", "d > current_date", Ask("clock")),
    form("the clock, an interval", "ts > now() - interval '1 day'", Ask("clock")),
    form("a session's own setting", "s = current_setting('app.tenant', true)", Ask("setting")),
    form("an array column, contains", "tags @> array['a']", Ask("containment in a column")),
    form("JSON in a column", "j ->> 'a' = '1'", Ask("JSON that is not the token's")),
    form("a pattern", "s like 'a%'", Ask("~~")),
    form("case folding", "lower(s) = lower(auth.jwt() ->> 'email')", Ask("lower")),
    form("arithmetic", "id % 2 = 0", Ask("operator %")),
    form("order of an enum", "m > 'sad'", Ask("order of type mood")),
    form("a helper in PL/pgSQL", "authorize('write')", Ask("not written in SQL")),
    form("a helper that yields an array", "team_id = any (my_team_array())", Ask("array")),
    form("a helper without a search_path", "unqualified_member(team_id)", Ask("search_path")),
    form("a helper over a table that looks into itself", "loops(id)", Ask("infinite recursion")),
    form(
        "a view",
        "team_id in (select team_id from my_members where user_id = auth.uid())",
        Ask("not a table that we know"),
    ),
    form(
        "a table without a key",
        "team_id in (select team_id from logs where user_id = auth.uid())",
        Ask("kept in memory"),
    ),
    form(
        "several rows as a value",
        "team_id = (select team_id from members where user_id = auth.uid())",
        Ask("several rows"),
    ),
    form(
        "an outer join",
        "exists (select 1 from members m left join teams x on x.id = m.team_id where m.user_id = auth.uid())",
        Ask("inner"),
    ),
    form(
        "grouping",
        "team_id in (select team_id from members group by team_id having count(*) > 1)",
        Ask("more than SELECT"),
    ),
    form("limit", "team_id in (select team_id from members where user_id = auth.uid() limit 1)", Ask("LIMIT")),
    form("with", "team_id in (with x as (select team_id from members) select team_id from x)", Ask("more than SELECT")),
];
