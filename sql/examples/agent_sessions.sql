-- Example: sessions of agents that work for a user, and what they do. The user's phones follow each session on the private channel
-- `agent:<id>`, and can say something to the agent there.
--
-- What must not be missed is a row of `agent_events`: it is sent to those who subscribe to the table, and a phone that comes back gets
-- what it missed. What is only good for the moment, such as a text as it is written, is sent and not stored, by the backend:
--     select realtime.send(jsonb_build_object('text', 'Looking at'), 'delta', 'agent:' || '<id>');
-- Changes of a session itself (its status, its title) are broadcast by a trigger.
--
-- Who may run it: a superuser, or a role with CREATE on schema public that owns publication supabase_realtime and is a member of
--                 supabase_realtime_admin (it makes policies on realtime.messages, and the trigger writes there with its rights);
--                 after `rowcast migrate up`. Twice does no harm.
-- Locks:          on a first run ACCESS EXCLUSIVE on realtime.messages for the moment in which its policies are made; on a later one
--                 on the two tables too, while theirs are replaced.
-- Undo:           drop policy "users follow their agents" on realtime.messages;
--                 drop policy "users speak to their agents" on realtime.messages;
--                 drop table public.agent_events, public.agent_sessions;
--                 drop function public.agent_session_broadcast(), public.agent_session_topic();

begin;

-- `topic` is the name of the session's channel. A column, and not made up in the policy: then the relay, which keeps the sessions in
-- memory, judges channels without asking Postgres.
create table if not exists public.agent_sessions (
    id         uuid        primary key default gen_random_uuid(),
    user_id    uuid        not null,
    title      text        not null default '',
    status     text        not null default 'waiting' check (status in ('waiting', 'working', 'done', 'failed')),
    topic      text        not null unique,
    created_at timestamptz not null default now(),
    constraint agent_sessions_topic check (topic = 'agent:' || id)
);
create index if not exists agent_sessions_user_id on public.agent_sessions (user_id);

create or replace function public.agent_session_topic() returns trigger language plpgsql set search_path = '' as $$
begin
    new.topic := 'agent:' || new.id;
    return new;
end
$$;
drop trigger if exists agent_session_topic on public.agent_sessions;
create trigger agent_session_topic before insert on public.agent_sessions
    for each row execute function public.agent_session_topic();

create table if not exists public.agent_events (
    id         bigint      generated always as identity primary key,
    session_id uuid        not null references public.agent_sessions (id) on delete cascade,
    kind       text        not null,
    data       jsonb       not null default '{}',
    created_at timestamptz not null default now()
);
create index if not exists agent_events_session_id on public.agent_events (session_id, id);

-- Deletes are judged on the old row: the policies read `session_id`, so the old row has to carry more than the key.
alter table public.agent_events replica identity full;

alter table public.agent_sessions enable row level security;
alter table public.agent_events enable row level security;

drop policy if exists "users see their own agents" on public.agent_sessions;
create policy "users see their own agents" on public.agent_sessions
    for select to authenticated
    using (user_id = auth.uid());

drop policy if exists "users see what their agents do" on public.agent_events;
create policy "users see what their agents do" on public.agent_events
    for select to authenticated
    using (session_id in (select id from public.agent_sessions where user_id = auth.uid()));

-- Users read; only the backend writes. (`service_role` bypasses row-level security but needs the grants.)
revoke all on public.agent_sessions, public.agent_events from anon, authenticated, service_role;
grant select on public.agent_sessions, public.agent_events to authenticated;
grant select, insert, update, delete on public.agent_sessions, public.agent_events to service_role;

-- The channel `agent:<id>`.
drop policy if exists "users follow their agents" on realtime.messages;
create policy "users follow their agents" on realtime.messages
    for select to authenticated
    using (realtime.topic() in (select topic from public.agent_sessions where user_id = auth.uid()));

drop policy if exists "users speak to their agents" on realtime.messages;
create policy "users speak to their agents" on realtime.messages
    for insert to authenticated
    with check (extension = 'broadcast'
                and realtime.topic() in (select topic from public.agent_sessions where user_id = auth.uid()));

create or replace function public.agent_session_broadcast() returns trigger
    language plpgsql security definer set search_path = '' as $$
begin
    perform realtime.broadcast_changes(coalesce(new.topic, old.topic), tg_op, tg_op, tg_table_name, tg_table_schema, new, old);
    return null;
end
$$;
revoke all on function public.agent_session_broadcast() from public;
drop trigger if exists agent_session_broadcast on public.agent_sessions;
create trigger agent_session_broadcast after insert or update or delete on public.agent_sessions
    for each row execute function public.agent_session_broadcast();

do $$
begin
    if not exists (select from pg_catalog.pg_publication_tables
                   where pubname = 'supabase_realtime' and schemaname = 'public' and tablename = 'agent_events') then
        alter publication supabase_realtime add table public.agent_events;
    end if;
end
$$;

commit;
