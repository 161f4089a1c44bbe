-- Example: the events of a user's own coding sessions, as they are inserted.
--
-- A backend inserts with plain SQL as `service_role` (or as the owner); every user's phone gets the events of that user's
-- sessions, and of no other's. Row-level security below is the only rule there is.
--
-- Who may run it: the owner of the database or a superuser, after `rowcast migrate up`. Twice does no harm.
-- Locks:          on a first run none that others could notice; on a later one ACCESS EXCLUSIVE on the two tables for the
--                 moment in which their policies are replaced.
-- Undo:           drop table public.session_events, public.coding_sessions;

begin;

create table if not exists public.coding_sessions (
    id         uuid        primary key default gen_random_uuid(),
    user_id    uuid        not null,
    title      text,
    created_at timestamptz not null default now()
);
create index if not exists coding_sessions_user_id on public.coding_sessions (user_id);

create table if not exists public.session_events (
    id         uuid        primary key default gen_random_uuid(),
    session_id uuid        not null references public.coding_sessions (id) on delete cascade,
    event_type text        not null,
    event_data jsonb       not null default '{}',
    created_at timestamptz not null default now()
);
create index if not exists session_events_session_id on public.session_events (session_id, created_at);

-- Deletes are judged on the old row: the policy reads `session_id`, so the old row has to carry more than the key.
alter table public.session_events replica identity full;

alter table public.coding_sessions enable row level security;
alter table public.session_events enable row level security;

drop policy if exists "users see their own sessions" on public.coding_sessions;
create policy "users see their own sessions" on public.coding_sessions
    for select to authenticated
    using (user_id = auth.uid());

drop policy if exists "users see events of their own sessions" on public.session_events;
create policy "users see events of their own sessions" on public.session_events
    for select to authenticated
    using (session_id in (select id from public.coding_sessions where user_id = auth.uid()));

-- Users read; only the backend writes. (`service_role` bypasses row-level security but needs the grants.)
revoke all on public.coding_sessions, public.session_events from anon, authenticated, service_role;
grant select on public.coding_sessions, public.session_events to authenticated;
grant select, insert, update, delete on public.coding_sessions, public.session_events to service_role;

-- Only events are sent. Sessions are looked into by the policy above, which needs no publication of yours.
do $$
begin
    if not exists (select from pg_catalog.pg_publication_tables
                   where pubname = 'supabase_realtime' and schemaname = 'public' and tablename = 'session_events') then
        alter publication supabase_realtime add table public.session_events;
    end if;
end
$$;

commit;
