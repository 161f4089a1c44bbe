-- Shows the rules of retention, how much waits to be removed, what can't be, and how the last runs went.
--
-- Usage:          psql "$DATABASE_URL" -f sql/retention_status.sql
--                 -v counting=no              does not count the rows that wait, which reads an index of each table
-- Who may run it: `rowcast_monitor` (it sees the rules and the runs; rows are counted only in tables that it may read),
--                 `rowcast_dba`.
-- Locks:          none that others could notice. Each count is given up after 5 s.
-- Undo:           nothing to undo; it changes nothing.

\set ON_ERROR_STOP on
\set QUIET on
\if :{?counting} \else \set counting yes \endif
set search_path = pg_catalog, pg_temp;
set timezone = 'UTC';
set default_transaction_read_only = on;
select set_config('rowcast.counting', :'counting', false) \g /dev/null

\echo 'Rules'
select format('%I.%I', r.schema_name, r.table_name) as "table", coalesce(pattern, '(the rest)') as events, keep,
       now() - keep as cutoff, enabled, drop_partitions,
       archive_schema || '.' || archive_table as archive,
       case when c.oid is null then 'the table is gone'
            when not exists (select from pg_attribute where attrelid = c.oid and attname = r.time_column and not attisdropped)
                then 'column ' || quote_ident(r.time_column) || ' is gone'
            when not exists (select from pg_roles where rolname = 'rowcast_retention') then 'runs with the rights of who runs it'
            when not has_table_privilege('rowcast_retention', c.oid, 'DELETE')
                then 'rowcast_retention may not delete: run retention_set.sql again'
            else 'ready' end as state
from rowcast.retention r
left join pg_class c on c.oid = to_regclass(format('%I.%I', r.schema_name, r.table_name))
order by 1, pattern nulls last;

\echo 'Rows that wait to be removed'
do $$
declare
    rule    rowcast.retention;
    waiting bigint;
    oldest  timestamptz;
begin
    if current_setting('rowcast.counting') not in ('yes', 'true', 'on') then
        return;
    end if;
    for rule in select * from rowcast.retention where enabled order by schema_name, table_name, pattern nulls last loop
        begin
            perform set_config('statement_timeout', '5s', true), set_config('row_security', 'off', true);
            if exists (select from pg_roles where rolname = 'rowcast_retention' and pg_has_role(session_user, oid, 'MEMBER')) then
                perform set_config('role', 'rowcast_retention', true);
            end if;
            execute format('select count(*), min(%I)::timestamptz from %I.%I where %1$I < $1 and %4$s',
                           rule.time_column, rule.schema_name, rule.table_name, rowcast.retention_condition(rule))
                into waiting, oldest using clock_timestamp() - rule.keep;
            perform set_config('role', 'none', true);
            raise notice '%.% %: % rows%', rule.schema_name, rule.table_name, coalesce(rule.pattern, '(the rest)'), waiting,
                coalesce(', the oldest of ' || oldest, '');
        exception when insufficient_privilege or undefined_table or undefined_column or query_canceled then
            raise notice '%.% %: not counted: %', rule.schema_name, rule.table_name, coalesce(rule.pattern, '(the rest)'), sqlerrm;
        end;
    end loop;
end
$$;

\echo 'The last runs'
select started_at, what, deleted, archived, partitions, batches, waited as time_in_batches, ended_at - started_at as took,
       marked, case when error is not null then error when finished then 'done' when ended_at is null then 'running, or cut off'
                    else 'more to do' end as result, run_by
from rowcast.retention_runs order by id desc limit 20;
