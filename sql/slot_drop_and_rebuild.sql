-- Drops a relay's replication slot and makes it anew at the present: when it is lost (wal_status), or holds back so much WAL that
-- the disk is in danger and the relay will not come back in time.
--
-- WHAT IS LOST: every change committed between the old slot's position and now that no relay has read. It is in no log and is
-- never sent. When the relay starts again, it begins another history, and every client is told of a gap. Rows in tables are not
-- touched.
--
-- Usage:          psql "$DATABASE_URL" -v slot=rowcast -v confirm=yes -f sql/slot_drop_and_rebuild.sql
--                 Without -v confirm=yes it says what would be lost, and does nothing.
-- Who may run it: `rowcast_dba`, or who else has REPLICATION and may delete from rowcast.lineage. Stop the relay first.
-- Locks:          none on tables. Making a slot waits for every transaction that is writing now, for at most a minute.
-- Undo:           none: what the slot held is gone at once.
--
-- Twice does no harm beyond losing what was committed between the two.

\set ON_ERROR_STOP on
\set QUIET on
\if :{?slot} \else \set slot rowcast \endif
\if :{?confirm} \else \set confirm no \endif
set search_path = pg_catalog, pg_temp;
set statement_timeout = '1min';
select set_config('rowcast.slot', :'slot', false) \g /dev/null
do $$
declare
    found_ pg_replication_slots;
begin
    select * into found_ from pg_replication_slots where slot_name = current_setting('rowcast.slot');
    if found_.slot_name is null then
        raise notice 'slot % does not exist; it will be made', current_setting('rowcast.slot');
    elsif found_.database is distinct from current_database() or found_.plugin is distinct from 'pgoutput' then
        raise wrong_object_type using message = format('slot %s is not a relay''s slot of this database', found_.slot_name);
    elsif not exists (select from rowcast.lineage where slot = found_.slot_name) then
        raise wrong_object_type using message = format('slot %s was never used by a relay: it may be somebody else''s', found_.slot_name);
    elsif found_.active then
        raise object_in_use using message = format('a session (pid %s) reads slot %s', found_.active_pid, found_.slot_name),
            hint = 'Stop the relay first. While it reads, nothing is lost by waiting.';
    end if;
end
$$;

\echo 'What would be lost'
select slot_name as slot, wal_status, confirmed_flush_lsn as from_lsn, pg_current_wal_lsn() as to_lsn,
       pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)) as wal_not_read,
       case when wal_status = 'lost' then 'it is lost already' else 'changes in this range that no relay has read' end as loss
from pg_replication_slots where slot_name = :'slot';

select :'confirm' = 'yes' as confirmed \gset
\if :confirmed
    -- The lineage first: a relay that finds the slot without it begins another history instead of going on over the hole.
    delete from rowcast.lineage where slot = :'slot';
    select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = :'slot' \g /dev/null
    select slot_name as slot, lsn as begins_at from pg_create_logical_replication_slot(:'slot', 'pgoutput');
    \echo 'Start the relay now: the new slot holds back WAL from here on.'
\else
    do $$ begin raise exception 'nothing was done: to drop and rebuild the slot, and lose this, add -v confirm=yes'; end $$;
\endif
