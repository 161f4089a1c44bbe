-- Removes retention and what monitoring reads. The rules of retention are lost with it; rows in archives stay.
--
-- Who may run it: the owner of schema `rowcast`, and a superuser if the replication origin is to go too.
-- Locks:          ACCESS EXCLUSIVE on Rowcast's own tables.
-- Undo:           0006_retention.up.sql, and setting the rules again.

drop procedure rowcast.run_retention;
drop function rowcast.retention_mark(boolean);
drop function rowcast.retention_partition(bigint);
drop function rowcast.retention_batch(bigint, timestamptz, timestamptz, integer);
drop function rowcast.retention_condition(rowcast.retention);
drop function rowcast.take_sample();
drop table rowcast.status_samples;
drop table rowcast.relay_status;
drop table rowcast.retention_runs;
drop table rowcast.retention;
do $$
begin
    if exists (select from rowcast.installed where migration = 6 and kind = 'origin') then
        update rowcast.installed set kept_because = null where migration = 6;
        begin
            perform pg_catalog.pg_replication_origin_drop('rowcast_retention');
            delete from rowcast.installed where migration = 6;
        exception
            when undefined_object then
                delete from rowcast.installed where migration = 6;
            when insufficient_privilege or object_in_use then
                update rowcast.installed set kept_because = sqlerrm where migration = 6;
        end;
    end if;
end
$$;
