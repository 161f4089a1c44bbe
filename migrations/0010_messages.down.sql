-- Removes the publication `rowcast_messages`: what is inserted into `realtime.messages` is broadcast to nobody any more.
--
-- Who may run it: its owner.
-- Locks:          none on tables.
-- Undo:           0010_messages.up.sql.

do $$
begin
    if exists (select from rowcast.installed where kind = 'publication' and identity = 'rowcast_messages') then
        drop publication if exists rowcast_messages;
        delete from rowcast.installed where kind = 'publication' and identity = 'rowcast_messages';
        delete from rowcast.installed where kind = 'published' and detail = 'rowcast_messages';
    end if;
end
$$;
