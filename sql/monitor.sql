-- Shows the relay from inside the database: its state, latency by stage, events per minute and type, slot lag with a forecast, log
-- floor, connections, channels, subscriptions by table and user, denials, retention.
--
-- Usage:          psql "$DATABASE_URL" -f sql/monitor.sql
--                 -v disk_free_bytes=…    as for slot_status.sql, which it includes
--                 watch -n 10 psql "$DATABASE_URL" -f sql/monitor.sql
-- Who may run it: `rowcast_monitor`, `rowcast_dba`. Events by type are counted only in tables that the login may read.
-- Locks:          none that others could notice. Each count is given up after 2 s.
-- Undo:           nothing to undo; the sample it takes goes after a day.
--
-- What it shows of the relay is what the relay wrote last, every ten seconds. Without a relay it says since when.

\set ON_ERROR_STOP on
\set QUIET on
\pset footer off
set search_path = pg_catalog, pg_temp;
set timezone = 'UTC';

\echo 'Relays'
select relay, version, status ->> 'state' as state,
       case when reported_at > now() - interval '30 seconds' then 'running since ' || date_trunc('second', started_at)
            else 'NO RELAY HAS REPORTED SINCE ' || date_trunc('second', reported_at) end as reports,
       status #>> '{log,floor}' as log_floor, status #>> '{log,durable}' as log_durable,
       pg_size_pretty((status #>> '{log,bytes}')::bigint) as log_size
from rowcast.relay_status order by relay;
select case when not exists (select from rowcast.relay_status) then 'no relay has ever reported in this database' end as note
where not exists (select from rowcast.relay_status);

\echo 'Latency by stage, in milliseconds: since the start, and in the last ten seconds'
select relay, stage.key as stage, (stage.value ->> 'count')::numeric as count,
       round((stage.value ->> 'p50')::numeric * 1000, 2) as p50, round((stage.value ->> 'p99')::numeric * 1000, 2) as p99,
       (stage.value ->> 'recent')::numeric as recently,
       round((stage.value ->> 'recent_p50')::numeric * 1000, 2) as recent_p50,
       round((stage.value ->> 'recent_p99')::numeric * 1000, 2) as recent_p99
from rowcast.relay_status, jsonb_each(status -> 'latency') stage order by relay, stage;

\echo 'Per minute, over the last ten'
with minutes as (
    select slot, date_trunc('minute', taken_at) as minute, max(changes) as changes, max(deliveries) as deliveries
    from rowcast.status_samples where taken_at > now() - interval '12 minutes' and changes is not null group by 1, 2)
select slot, minute, greatest(changes - lag(changes) over w, 0) as changes, greatest(deliveries - lag(deliveries) over w, 0) as deliveries
from minutes window w as (partition by slot order by minute) order by slot, minute desc limit 20;

\echo 'Events by type in the last ten minutes, in tables with rules of retention that name a type'
create temporary table if not exists rowcast_events ("table" text, type text, events bigint, per_minute numeric) on commit preserve rows;
truncate pg_temp.rowcast_events;
do $$
declare
    source record;
    kind   record;
begin
    for source in select distinct schema_name, table_name, time_column, type_column from rowcast.retention where type_column is not null loop
        begin
            perform set_config('statement_timeout', '2s', true), set_config('row_security', 'off', true);
            if exists (select from pg_roles where rolname = 'rowcast_retention' and pg_has_role(session_user, oid, 'MEMBER')) then
                perform set_config('role', 'rowcast_retention', true);
            end if;
            for kind in execute format(
                'select %L as place, %I::text as kind, count(*) as many from %I.%I where %I > now() - interval ''10 minutes'' group by 2 order by 3 desc limit 50',
                format('%I.%I', source.schema_name, source.table_name), source.type_column, source.schema_name, source.table_name, source.time_column)
            loop
                perform set_config('role', 'none', true);
                insert into pg_temp.rowcast_events values (kind.place, kind.kind, kind.many, round(kind.many / 10.0, 1));
            end loop;
            perform set_config('role', 'none', true);
        exception when insufficient_privilege or undefined_table or undefined_column or query_canceled then
            insert into pg_temp.rowcast_events values (format('%I.%I', source.schema_name, source.table_name), 'not counted: ' || sqlerrm);
        end;
    end loop;
end
$$;
select * from pg_temp.rowcast_events order by 1, events desc nulls last;

\ir slot_status.sql

\echo 'Connections'
select relay, (status ->> 'tcp_connections')::numeric as tcp, (status #>> '{counters,rowcast_connections}')::numeric as websocket,
       (status #>> '{counters,rowcast_channels}')::numeric as channels,
       (status #>> '{counters,rowcast_subscriptions}')::numeric as subscriptions,
       (status #>> '{counters,rowcast_deliveries_total}')::numeric as deliveries
from rowcast.relay_status order by relay;

\echo 'Subscriptions by table (the most numerous)'
select relay, t ->> 'table' as "table", (t ->> 'subscriptions')::bigint as subscriptions
from rowcast.relay_status, jsonb_array_elements(status -> 'tables') t order by relay, 3 desc, 2 limit 50;

\echo 'Subscriptions by user (the most numerous)'
select relay, u ->> 'role' as role, u ->> 'user' as "user", (u ->> 'channels')::bigint as channels, (u ->> 'subscriptions')::bigint as subscriptions
from rowcast.relay_status, jsonb_array_elements(status -> 'users') u order by relay, 5 desc, 3 limit 50;

\echo 'Verdicts, denials, refusals, closes since the start'
select relay, regexp_replace(c.key, '^rowcast_(.*)_total\{(.*)\}$', '\1') as what,
       replace(regexp_replace(c.key, '^rowcast_(.*)_total\{(.*)\}$', '\2'), '"', '') as which, (c.value #>> '{}')::numeric as times
from rowcast.relay_status, jsonb_each(status -> 'counters') c
where c.key ~ '^rowcast_(verdicts|denials|refusals|closes|stream_errors)_total\{' order by 1, 2, 4 desc;

\echo 'Retention'
select what, started_at, deleted, partitions, ended_at - started_at as took,
       case when error is not null then error when finished then 'done' else 'not finished' end as result
from rowcast.retention_runs order by id desc limit 5;
