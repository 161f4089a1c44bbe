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
    -- Step 9 adds it if it comes later.
    if to_regclass('realtime.messages') is not null and not exists (
        select from pg_catalog.pg_publication_rel r join pg_catalog.pg_publication p on p.oid = r.prpubid
        where p.pubname = 'rowcast_messages' and r.prrelid = to_regclass('realtime.messages')) then
        begin
            alter publication rowcast_messages add table realtime.messages;
        exception when insufficient_privilege or object_not_in_prerequisite_state or lock_not_available then
            raise notice 'the owner of realtime.messages has to add it to publication rowcast_messages (%)', sqlerrm;
        end;
    end if;
end
$$;
