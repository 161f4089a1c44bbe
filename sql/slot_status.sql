-- Shows the replication slots: who reads them, how far behind they are, how much WAL they hold back, and when that hits a limit.
--
-- Usage:          psql "$DATABASE_URL" -f sql/slot_status.sql
--                 -v disk_free_bytes=…    what is free on the disk of pg_wal (df -B1), for the forecast; SQL can't see it
-- Who may run it: `rowcast_monitor`, `rowcast_dba`. It takes a sample, which is the one thing it writes.
-- Locks:          none.
-- Undo:           nothing to undo; a sample goes after a day.
--
-- The forecast compares the latest sample with the oldest of the last hour. The first run has none: a relay takes them too.

\set ON_ERROR_STOP on
\set QUIET on
\if :{?disk_free_bytes} \else \set disk_free_bytes '' \endif
set search_path = pg_catalog, pg_temp;
select rowcast.take_sample() \g /dev/null

\echo 'Slots'
select s.slot_name as slot, s.database, s.plugin,
       case when s.active then 'read by ' || coalesce(a.usename, '?') || coalesce(' from ' || a.client_addr, '') else 'NOBODY READS IT' end as reader,
       s.wal_status, s.confirmed_flush_lsn as confirmed,
       pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), s.confirmed_flush_lsn)) as behind,
       pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)) as wal_held,
       pg_size_pretty(s.safe_wal_size) as until_lost
from pg_replication_slots s left join pg_stat_activity a on a.pid = s.active_pid
order by 1;

\echo 'Forecast'
with ends as (
    select slot, (array_agg(t order by taken_at))[1] as first, (array_agg(t order by taken_at desc))[1] as last
    from rowcast.status_samples t where taken_at > now() - interval '1 hour' group by slot),
rates as (
    select slot, (first).taken_at as since, (last).taken_at - (first).taken_at as over,
           extract(epoch from (last).taken_at - (first).taken_at) as seconds,
           pg_wal_lsn_diff((last).wal_lsn, (first).wal_lsn) as written,
           pg_wal_lsn_diff((last).wal_lsn, (last).restart_lsn) - pg_wal_lsn_diff((first).wal_lsn, (first).restart_lsn) as growth
    from ends),
limits as (
    select s.slot_name, s.active, s.wal_status, s.safe_wal_size, nullif(:'disk_free_bytes', '')::numeric as disk,
           least(s.safe_wal_size, nullif(:'disk_free_bytes', '')::numeric) as room
    from pg_replication_slots s)
select r.slot, date_trunc('second', r.over) as measured_over,
       pg_size_pretty((r.written / nullif(r.seconds, 0) * 60)::bigint) as wal_per_minute,
       pg_size_pretty((r.growth / nullif(r.seconds, 0) * 60)::bigint) as held_grows_per_minute,
       case when l.wal_status = 'lost' then 'LOST: slot_drop_and_rebuild.sql'
            when r.seconds = 0 then 'one sample only: run it again in a minute'
            when r.growth <= 0 then 'the slot keeps up'
            when l.room is null then 'never by a setting: max_slot_wal_keep_size is -1, so the disk is the limit; give -v disk_free_bytes'
            else 'in ' || date_trunc('second', make_interval(secs => least(l.room / (r.growth / r.seconds), 1e9)::double precision))
                 || case when l.disk is null or l.safe_wal_size <= l.disk then ', when the slot is invalidated' else ', when the disk is full' end
       end as limit_reached
from rates r join limits l on l.slot_name = r.slot order by 1;
