-- Makes a table for events: topic or session, user, type, jsonb, time; with row-level security, grants, indexes, in the
-- publication. Workers insert with plain SQL; each event goes to those whom the policy lets see it.
--
-- Usage:          psql "$DATABASE_URL" -v table=public.events -v policy=owner -f sql/events_table.sql
--                 -v policy=owner             a user sees the events with his id in user_id
--                 -v policy=session           … those of sessions that are his: -v sessions=public.sessions, a table with id, user_id
--                 -v policy=topic             … those of topics that he is a member of: -v members=public.members, a table with
--                                             topic, user_id
--                 -v policy=none              nobody, until you write a policy of your own
--                 -v partitioned=yes          by day (UTC), with <table>_keep_partitions(days) to call daily, and one for the rest
--                 -v worker=role              who inserts; service_role
--                 -v publication=name         supabase_realtime
-- Who may run it: `rowcast_dba` with CREATE on the schema; the owner of the publication with the same; or a superuser. Who runs
--                 it owns the table.
-- Locks:          none on existing tables but, for policies that look into one, none that others could notice.
-- Undo:           drop table public.events; and if it was partitioned: drop function public.events_keep_partitions(integer);
--
-- Twice does no harm: what is there is left as it is, policy and grants are set anew.

\set ON_ERROR_STOP on
\set QUIET on
\if :{?table} \else \set table public.events \endif
\if :{?policy} \else \set policy owner \endif
\if :{?sessions} \else \set sessions public.sessions \endif
\if :{?members} \else \set members public.members \endif
\if :{?partitioned} \else \set partitioned no \endif
\if :{?worker} \else \set worker service_role \endif
\if :{?publication} \else \set publication supabase_realtime \endif

begin;
set local search_path = pg_catalog, pg_temp;
set local lock_timeout = '5s';
set local timezone = 'UTC';
select set_config('rowcast.' || name, value, true) from (values
    ('table', :'table'), ('policy', :'policy'), ('sessions', :'sessions'), ('members', :'members'),
    ('partitioned', :'partitioned'), ('worker', :'worker'), ('publication', :'publication')) v (name, value) \g /dev/null

do $$
declare
    parts    constant text[]  := parse_ident(current_setting('rowcast.table'));
    schema_  constant name    := case cardinality(parts) when 1 then 'public' else parts[1] end;
    table_   constant name    := parts[cardinality(parts)];
    full_    constant text    := format('%I.%I', schema_, table_);
    by_day   constant boolean := current_setting('rowcast.partitioned') in ('yes', 'true', 'on');
    policy   constant text    := current_setting('rowcast.policy');
    pub      constant text    := current_setting('rowcast.publication');
    helper   constant text    := format('%I.%I', schema_, table_ || '_keep_partitions');
    using_   text;
    rule     name;
begin
    if cardinality(parts) > 2 or length(table_) > 40 then
        raise invalid_name using message = format('%L is not a table''s name of at most 40 letters', current_setting('rowcast.table'));
    end if;
    if policy not in ('owner', 'session', 'topic', 'none') then
        raise invalid_parameter_value using message = 'give -v policy=owner, session, topic or none';
    end if;
    if to_regclass(full_) is null then
        execute format($sql$
            create table %1$s (
                id         bigint      generated always as identity,
                topic      text,
                session_id uuid,
                user_id    uuid        %3$s,
                event_type text        not null,
                payload    jsonb       not null default '{}',
                created_at timestamptz not null default now(),
                primary key (%2$s)
            ) %4$s$sql$, full_, case when by_day then 'id, created_at' else 'id' end,
            case when policy = 'owner' then 'not null' end, case when by_day then 'partition by range (created_at)' end);
        execute format('create index %I on %s (created_at)', table_ || '_created_at', full_);
        execute format('create index %I on %s (user_id, id)', table_ || '_user_id', full_);
        execute format('create index %I on %s (session_id, id)', table_ || '_session_id', full_);
        execute format('create index %I on %s (topic, id)', table_ || '_topic', full_);
        -- Deletes are judged on the old row: the policy has to find its columns there.
        execute format('alter table %s replica identity full', full_);
        raise notice 'table % was made', full_;
    elsif by_day <> (select relkind = 'p' from pg_class where oid = full_::regclass) then
        raise wrong_object_type using message = format('%s is there already, and %s partitioned', full_, case when by_day then 'not' else 'it is' end);
    else
        raise notice 'table % is there already', full_;
    end if;

    if by_day then
        -- Makes the partitions of today and the coming days. With the rights of the table's owner, so that a worker may call it;
        -- it can do nothing else. Rows for which there is no partition go to the default one, and then their day gets none.
        execute format($sql$
            create or replace function %1$s(days integer default 7)
                returns integer language plpgsql security definer set search_path = pg_catalog, pg_temp set timezone = 'UTC'
                set lock_timeout = '2s' as $function$
            declare
                day  date;
                part text;
                made integer := 0;
            begin
                for day in select current_date + n from generate_series(0, least(greatest(days, 0), 366)) n loop
                    part := format('%%I.%%I', %2$L, %3$L || to_char(day, '"_"YYYYMMDD'));
                    if to_regclass(part) is null then
                        begin
                            execute format('create table %%s partition of %4$s for values from (%%L) to (%%L)', part, day, day + 1);
                            execute format('alter table %%s replica identity full', part);
                            execute format('alter table %%s enable row level security', part);
                            made := made + 1;
                        exception when check_violation then
                            raise warning 'rows of %% are in the default partition already, so it gets none', day;
                        end;
                    end if;
                end loop;
                return made;
            end
            $function$
            $sql$, helper, schema_, table_, full_);
        execute format('revoke all on function %s(integer) from public', helper);
        execute format('grant execute on function %s(integer) to %I', helper, current_setting('rowcast.worker'));
        if to_regclass(format('%I.%I', schema_, table_ || '_default')) is null then
            execute format('create table %I.%I partition of %s default', schema_, table_ || '_default', full_);
            execute format('alter table %I.%I replica identity full', schema_, table_ || '_default');
            execute format('alter table %I.%I enable row level security', schema_, table_ || '_default');
        end if;
        execute format('select %s(7)', helper);
    end if;

    execute format('alter table %s enable row level security', full_);
    perform set_config('client_min_messages', 'warning', true);
    foreach rule in array array['users see their own events', 'users see events of their sessions', 'users see events of their topics']::name[] loop
        execute format('drop policy if exists %I on %s', rule, full_);
    end loop;
    if policy = 'owner' then
        execute format('create policy "users see their own events" on %s for select to authenticated using (user_id = auth.uid())', full_);
    elsif policy = 'session' then
        execute format('create policy "users see events of their sessions" on %s for select to authenticated
                        using (session_id in (select id from %s where user_id = auth.uid()))', full_, current_setting('rowcast.sessions')::regclass);
    elsif policy = 'topic' then
        execute format('create policy "users see events of their topics" on %s for select to authenticated
                        using (topic in (select topic from %s where user_id = auth.uid()))', full_, current_setting('rowcast.members')::regclass);
    end if;

    if policy in ('session', 'topic') and not has_table_privilege('authenticated',
        (case policy when 'session' then current_setting('rowcast.sessions') else current_setting('rowcast.members') end)::regclass, 'SELECT') then
        raise warning 'authenticated may not read %, which the policy looks into: every look at % fails', case policy when 'session'
            then current_setting('rowcast.sessions') else current_setting('rowcast.members') end, full_;
    end if;

    -- Users read; only the worker writes.
    execute format('revoke all on %s from public, anon, authenticated', full_);
    if not has_schema_privilege('authenticated', schema_, 'USAGE') or not has_schema_privilege(current_setting('rowcast.worker'), schema_, 'USAGE') then
        execute format('grant usage on schema %I to authenticated, %I', schema_, current_setting('rowcast.worker'));
    end if;
    execute format('grant select on %s to authenticated', full_);
    execute format('grant select, insert on %s to %I', full_, current_setting('rowcast.worker'));
    if not (select rolbypassrls or rolsuper from pg_roles where rolname = current_setting('rowcast.worker')) then
        execute format('drop policy if exists "the worker writes" on %s', full_);
        execute format('create policy "the worker writes" on %s for insert to %I with check (true)', full_, current_setting('rowcast.worker'));
    end if;

    if not exists (select from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
                   where p.pubname = pub and r.prrelid = full_::regclass) then
        execute format('alter publication %I add table %s', pub, full_);
    end if;
    if by_day and not (select pubviaroot from pg_publication where pubname = pub) then
        raise warning 'publication % sends partitions under their own names, which no policy guards: nobody gets them. As its owner: alter publication % set (publish_via_partition_root = true);', pub, pub;
    end if;
end
$$;

\echo 'The table'
select c.oid::regclass as "table", pg_get_userbyid(relowner) as owner, relrowsecurity as rls,
       (select string_agg(polname, ', ' order by polname) from pg_policy where polrelid = c.oid) as policies,
       (select count(*) from pg_inherits where inhparent = c.oid) as partitions
from pg_class c where c.oid = to_regclass(case when strpos(:'table', '.') = 0 then 'public.' else '' end || :'table');
commit;
