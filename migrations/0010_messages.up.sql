-- The publication `rowcast_messages`: rows inserted into `realtime.messages`, which the relay broadcasts to the members of their
-- topic. Its name is in the stream from the beginning, since a slot can't read past rows that are older than a publication.
--
-- Who may run it: a role with CREATE on the database. The table is added by whoever owns it and the publication, here or at the
--                 relay's next start; `rowcast doctor` says if that is left to do.
-- Locks:          SHARE UPDATE EXCLUSIVE on realtime.messages, if it is there.
-- Undo:           0010_messages.down.sql.

do $$
begin
    if not exists (select from pg_catalog.pg_publication where pubname = 'rowcast_messages') then
        create publication rowcast_messages with (publish = 'insert', publish_via_partition_root = true);
        perform rowcast.note(10, 'publication', 'rowcast_messages');
    end if;
end
$$;
