-- The publication `supabase_realtime`: a table put into it is sent to those who may read its rows. Empty, where absent.
--
-- Who may run it: a role with CREATE on the database. Tables are added by their owner:
--                 alter publication supabase_realtime add table public.session_events;
-- Locks:          none. (Adding a table takes SHARE UPDATE EXCLUSIVE on it: reads and writes go on.)
-- Undo:           0004_publication.down.sql.

do $$
begin
    if not exists (select from pg_catalog.pg_publication where pubname = 'supabase_realtime') then
        create publication supabase_realtime;
        perform rowcast.note(4, 'publication', 'supabase_realtime');
    end if;
end
$$;
