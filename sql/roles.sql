-- Four logins with no more rights than their work needs, and the role that retention acts as:
--   rowcast_relay      DATABASE_URL of the relay: reads one slot, writes its own bookkeeping, may become the roles that tokens name
--   rowcast_ask        ROWCAST_ASK_USER of the relay, if you want it: may become the roles that tokens name, and nothing else.
--                      A policy's function may RESET ROLE, and is then this login instead of the relay's
--   rowcast_dba        runs the other scripts here; owns the publications that Rowcast made
--   rowcast_monitor    reads status, writes nothing
--   rowcast_retention  (no login) may SELECT and DELETE in the tables that have a rule, whatever their policies say
--
-- Usage:          psql "$SUPERUSER_URL" -v relay_password=… -v ask_password=… -v dba_password=… -v monitor_password=… -f sql/roles.sql
--                 A password that is not given is not set: use certificates, or \password in psql. A password on a command line
--                 can be read by others on the machine; better leave it out here.
--                 -v table_owner=role   rowcast_dba becomes a member of this role, so that it may publish and change its tables
--                 -v runner=relay       the relay may run retention too (ROWCAST_RETENTION=on)
--                 -v fact_tables='public.members, public.teams'
--                                       policies look into these tables: the relay may read them in full, above their policies, and so
--                                       keep them in memory. Then add each to its publication, if `rowcast doctor` says so:
--                                       publication_add_table.sql with -v publication=rowcast_facts
--                 -v channels=yes       the relay may judge private channels, replay their messages and care for the partitions of
--                                       realtime.messages: it reads and writes that table above its policies
--                 -v undo=yes           removes the five again
-- Who may run it: a superuser, after `rowcast migrate up`: only a superuser gives REPLICATION and BYPASSRLS before
--                 PostgreSQL 16, and makes replication origins.
-- Locks:          none on tables that others use, only on Rowcast's own for a moment.
-- Undo:           the same with -v undo=yes. Stop the relay first. What rowcast_dba owns goes to the role that runs this.
--
-- Twice does no harm: it sets the rights anew. Roles belong to the whole cluster; run it in each database that has a relay.

\set ON_ERROR_STOP on
\set QUIET on
\if :{?undo} \else \set undo no \endif
\if :{?table_owner} \else \set table_owner '' \endif
\if :{?runner} \else \set runner '' \endif
\if :{?fact_tables} \else \set fact_tables '' \endif
\if :{?channels} \else \set channels '' \endif
select :'undo' = 'yes' as undoing \gset

begin;
set local search_path = pg_catalog, pg_temp;
set local lock_timeout = '5s';
-- Passwords must not get into the server's log with a statement that fails.
set local log_min_error_statement = panic;
set local log_statement = none;
select set_config('rowcast.table_owner', :'table_owner', true), set_config('rowcast.runner', :'runner', true),
       set_config('rowcast.fact_tables', :'fact_tables', true), set_config('rowcast.channels', :'channels', true) \g /dev/null

\if :undoing
do $$
declare
    gone name;
begin
    foreach gone in array array['rowcast_relay', 'rowcast_ask', 'rowcast_monitor', 'rowcast_dba', 'rowcast_retention']::name[] loop
        if exists (select from pg_roles where rolname = gone) then
            execute format('reassign owned by %I to current_user', gone);
            execute format('drop owned by %I', gone);
            begin
                execute format('drop role %I', gone);
                raise notice 'role % was dropped', gone;
            exception when dependent_objects_still_exist then
                raise notice 'role % stays: it is in use in another database; its rights in this one are gone', gone;
            end;
        end if;
    end loop;
end
$$;
\else

do $$
declare
    -- WITH INHERIT FALSE: the relay acts as these roles on purpose or not at all.
    modern  constant boolean := current_setting('server_version_num')::integer >= 160000;
    wanted  record;
    acting  name;
    granted record;
    part    text;
begin
    if to_regclass('rowcast.retention') is null then
        raise undefined_table using message = 'schema rowcast is missing or old in this database', hint = 'Run: rowcast migrate up';
    end if;
    for wanted in
        select * from (values ('rowcast_relay', 'login noinherit replication'), ('rowcast_ask', 'login noinherit'), ('rowcast_dba', 'login inherit replication'),
                              ('rowcast_monitor', 'login inherit'), ('rowcast_retention', 'nologin noinherit bypassrls'))
            as roles (name, attributes)
    loop
        if not exists (select from pg_roles where rolname = wanted.name) then
            execute format('create role %I', wanted.name);
        end if;
        execute format('alter role %I nosuperuser nocreatedb nocreaterole %s', wanted.name, wanted.attributes);
        if wanted.name <> 'rowcast_retention' then
            execute format('grant connect on database %I to %I', current_database(), wanted.name);
        end if;
        if wanted.name <> 'rowcast_ask' then
            execute format('grant usage on schema rowcast to %I', wanted.name);
        end if;
        execute format('alter role %I set search_path = ''$user'', public', wanted.name);
    end loop;

    -- The relay: what it writes is its own.
    grant select on rowcast.migrations to rowcast_relay;
    grant select, insert, update on rowcast.lineage to rowcast_relay;
    grant select, insert, update on rowcast.relay_status to rowcast_relay;
    grant select, insert, update on rowcast.frontier_owners to rowcast_relay;
    grant select, insert, update, delete on rowcast.frontiers to rowcast_relay;
    grant execute on function rowcast.take_sample() to rowcast_relay;
    foreach acting in array array['anon', 'authenticated', 'service_role', 'rowcast_filter']::name[] loop
        if exists (select from pg_roles where rolname = acting) then
            execute format(case when modern then 'grant %I to rowcast_relay with inherit false, set true'
                                else 'grant %I to rowcast_relay' end, acting);
            -- Filters are not asked about as rowcast_ask.
            if acting <> 'rowcast_filter' then
                execute format(case when modern then 'grant %I to rowcast_ask with inherit false, set true'
                                    else 'grant %I to rowcast_ask' end, acting);
            end if;
        end if;
    end loop;
    -- Tables that policies look into: read in full, or a policy would be judged by the few rows that the relay may see.
    foreach part in array string_to_array(current_setting('rowcast.fact_tables'), ',') loop
        if to_regclass(trim(part)) is null then
            raise undefined_table using message = format('there is no table %L', trim(part)), hint = 'Write it like public.members.';
        end if;
        for granted in select c.oid::regclass as place, c.relnamespace::regnamespace as home, c.relrowsecurity from pg_class c
            where c.oid = to_regclass(trim(part)) loop
            execute format('grant usage on schema %s to rowcast_relay', granted.home);
            execute format('grant select on %s to rowcast_relay', granted.place);
            if granted.relrowsecurity then
                alter role rowcast_relay bypassrls;
            end if;
        end loop;
    end loop;

    -- Private channels: who may use one is found out by inserting into the table and looking, and rolling back.
    if current_setting('rowcast.channels') = 'yes' then
        if to_regclass('realtime.messages') is null then
            raise undefined_table using message = 'there is no table realtime.messages', hint = 'Run: rowcast migrate up';
        end if;
        grant usage on schema realtime to rowcast_relay;
        grant select, insert on realtime.messages to rowcast_relay;
        grant select on rowcast.installed to rowcast_relay;
        alter role rowcast_relay bypassrls;
        -- Partitions are made and dropped by the table's owner.
        for granted in select r.rolname, r.rolsuper from pg_class c join pg_roles r on r.oid = c.relowner
            where c.oid = 'realtime.messages'::regclass loop
            if granted.rolsuper then
                raise notice 'realtime.messages belongs to the superuser %, so the relay will not care for its partitions', granted.rolname;
            else
                execute format(case when modern then 'grant %I to rowcast_relay with inherit false, set true'
                                    else 'grant %I to rowcast_relay' end, granted.rolname);
            end if;
        end loop;
        if exists (select from pg_publication where pubname = 'rowcast_messages') and not exists (
            select from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
            where p.pubname = 'rowcast_messages' and r.prrelid = 'realtime.messages'::regclass) then
            alter publication rowcast_messages add table realtime.messages;
        end if;
    end if;

    -- Retention acts with rights on tables that have a rule, and on nothing else.
    grant select on rowcast.retention to rowcast_retention;
    grant execute on function pg_catalog.pg_replication_origin_session_setup(text),
        pg_catalog.pg_replication_origin_session_reset(), pg_catalog.pg_replication_origin_session_is_setup()
        to rowcast_retention;
    if not exists (select from pg_replication_origin where roname = 'rowcast_retention') then
        perform pg_replication_origin_create('rowcast_retention');
        perform rowcast.note(6, 'origin', 'rowcast_retention');
    end if;
    for granted in select r.*, to_regclass(format('%I.%I', schema_name, table_name)) as place from rowcast.retention r loop
        if granted.place is not null then
            execute format('grant usage on schema %I to rowcast_retention', granted.schema_name);
            execute format('grant select, delete, update (%I) on %s to rowcast_retention', granted.time_column, granted.place);
            if granted.archive_table is not null then
                execute format('grant usage on schema %I to rowcast_retention', granted.archive_schema);
                execute format('grant insert on %I.%I to rowcast_retention', granted.archive_schema, granted.archive_table);
            end if;
        end if;
    end loop;
    if current_setting('rowcast.runner') = 'relay' then
        grant rowcast_retention to rowcast_relay;
        grant select on rowcast.retention to rowcast_relay;
        grant select, insert, update, delete on rowcast.retention_runs to rowcast_relay;
        grant execute on procedure rowcast.run_retention to rowcast_relay;
    end if;

    -- The DBA: rules of retention, the slot, and the publications that Rowcast made.
    grant rowcast_retention to rowcast_dba;
    grant select, insert, update, delete on rowcast.retention, rowcast.retention_runs to rowcast_dba;
    grant select on rowcast.migrations, rowcast.installed, rowcast.relay_status, rowcast.status_samples to rowcast_dba;
    grant select, delete on rowcast.lineage to rowcast_dba;
    grant execute on procedure rowcast.run_retention to rowcast_dba;
    grant execute on function rowcast.take_sample() to rowcast_dba;
    grant pg_monitor to rowcast_dba;
    if to_regnamespace('auth') is not null then
        grant usage on schema auth to rowcast_dba;
    end if;
    for granted in select p.pubname from pg_publication p join rowcast.installed i on i.kind = 'publication' and i.identity = p.pubname loop
        execute format('alter publication %I owner to rowcast_dba', granted.pubname);
    end loop;
    if current_setting('rowcast.table_owner') <> '' then
        if exists (select from pg_roles where rolname = current_setting('rowcast.table_owner') and rolsuper) then
            raise invalid_parameter_value using message = format('%I is a superuser: rowcast_dba would be one', current_setting('rowcast.table_owner')),
                hint = 'Give the tables to an ordinary role first: alter table … owner to …';
        end if;
        execute format('grant %I to rowcast_dba', current_setting('rowcast.table_owner'));
    end if;

    -- Monitoring reads.
    grant select on rowcast.migrations, rowcast.lineage, rowcast.retention, rowcast.retention_runs, rowcast.relay_status,
        rowcast.status_samples to rowcast_monitor;
    grant execute on function rowcast.take_sample() to rowcast_monitor;
    grant pg_read_all_stats, pg_read_all_settings to rowcast_monitor;
end
$$;
\if :{?relay_password}
    alter role rowcast_relay password :'relay_password';
\endif
\if :{?ask_password}
    alter role rowcast_ask password :'ask_password';
\endif
\if :{?dba_password}
    alter role rowcast_dba password :'dba_password';
\endif
\if :{?monitor_password}
    alter role rowcast_monitor password :'monitor_password';
\endif

\echo 'Roles'
select rolname as role, rolcanlogin as login, rolreplication as replication, rolbypassrls as bypasses_rls,
       (select string_agg(g.rolname, ', ' order by g.rolname) from pg_auth_members m join pg_roles g on g.oid = m.roleid
        where m.member = r.oid) as member_of
from pg_roles r where rolname in ('rowcast_relay', 'rowcast_ask', 'rowcast_dba', 'rowcast_monitor', 'rowcast_retention') order by 1;
\endif
commit;
