-- Removes schema `rowcast` and the publication `rowcast_facts`. The tables in that publication were put there by Rowcast.
--
-- Who may run it: their owner.
-- Locks:          ACCESS EXCLUSIVE on Rowcast's own tables.
-- Undo:           0001_rowcast.up.sql; what the tables held is gone.

do $$
begin
    if exists (select from rowcast.installed where kind = 'publication' and identity = 'rowcast_facts') then
        drop publication if exists rowcast_facts;
    end if;
end
$$;
drop function rowcast.retire(integer);
drop function rowcast.note(integer, text, text, text);
drop table rowcast.lineage;
drop table rowcast.installed;
drop table rowcast.migrations;
-- Objects that somebody else put into the schema keep it.
do $$
begin
    drop schema rowcast;
exception when dependent_objects_still_exist then
    null;
end
$$;
