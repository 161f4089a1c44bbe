-- Example: chat rooms. Whoever is a member of a room reads its messages, hears each new one on the private channel `room:<id>`, and
-- may speak and show himself there, from the commit that lets him in to the one that puts him out.
--
-- A message is a row that the app inserts as the user. A trigger broadcasts it, and so what is done to it later (annotations are rows
-- of their own), in the order of commits. On the same channel members send each other what nobody stores, such as "is typing".
--
-- Who may run it: a superuser, or a role with CREATE on schema public that owns publication supabase_realtime and is a member of
--                 supabase_realtime_admin (it makes policies on realtime.messages, and the trigger writes there with its rights);
--                 after `rowcast migrate up`. Twice does no harm.
-- Locks:          on a first run ACCESS EXCLUSIVE on realtime.messages for the moment in which its policies are made; on a later one
--                 on the four tables too, while theirs are replaced.
-- Undo:           drop policy "members hear their rooms" on realtime.messages;
--                 drop policy "members speak in their rooms" on realtime.messages;
--                 drop table public.chat_annotations, public.chat_messages, public.chat_members, public.chat_rooms;
--                 drop function public.chat_broadcast(), public.chat_topic();

begin;

-- `topic` is the name of the room's channel. A column, and not made up in the policy: then the relay, which keeps rooms and members in
-- memory, judges channels without asking Postgres.
create table if not exists public.chat_rooms (
    id         uuid        primary key default gen_random_uuid(),
    name       text        not null,
    topic      text        not null unique,
    created_at timestamptz not null default now(),
    constraint chat_rooms_topic check (topic = 'room:' || id)
);

create or replace function public.chat_topic() returns trigger language plpgsql set search_path = '' as $$
begin
    new.topic := 'room:' || new.id;
    return new;
end
$$;
drop trigger if exists chat_topic on public.chat_rooms;
create trigger chat_topic before insert on public.chat_rooms for each row execute function public.chat_topic();

-- The primary key has both columns that policies look for: the old row of a DELETE carries them without REPLICA IDENTITY FULL.
create table if not exists public.chat_members (
    room_id   uuid        not null references public.chat_rooms (id) on delete cascade,
    user_id   uuid        not null,
    joined_at timestamptz not null default now(),
    primary key (room_id, user_id)
);
create index if not exists chat_members_user_id on public.chat_members (user_id, room_id);

create table if not exists public.chat_messages (
    id         bigint      generated always as identity primary key,
    room_id    uuid        not null references public.chat_rooms (id) on delete cascade,
    author_id  uuid        not null default auth.uid(),
    body       text        not null check (length(body) between 1 and 10000),
    created_at timestamptz not null default now(),
    unique (id, room_id)
);
create index if not exists chat_messages_room_id on public.chat_messages (room_id, id);

-- What members add to a message: a reaction, a bookmark, a correction. It carries the room, by which its policy is judged: if that had
-- to be looked up in the messages, all of them would have to be kept in memory. The foreign key holds the two together.
create table if not exists public.chat_annotations (
    message_id bigint      not null,
    room_id    uuid        not null,
    user_id    uuid        not null default auth.uid(),
    kind       text        not null,
    data       jsonb       not null default '{}',
    created_at timestamptz not null default now(),
    primary key (message_id, user_id, kind),
    foreign key (message_id, room_id) references public.chat_messages (id, room_id) on delete cascade
);

-- Deletes are judged on the old row: the policies read `room_id`, so the old row has to carry more than the key.
alter table public.chat_messages replica identity full;
alter table public.chat_annotations replica identity full;

alter table public.chat_rooms enable row level security;
alter table public.chat_members enable row level security;
alter table public.chat_messages enable row level security;
alter table public.chat_annotations enable row level security;

drop policy if exists "users see their own memberships" on public.chat_members;
create policy "users see their own memberships" on public.chat_members
    for select to authenticated
    using (user_id = auth.uid());

-- Leaving is one's own affair; letting in is the backend's.
drop policy if exists "users leave" on public.chat_members;
create policy "users leave" on public.chat_members
    for delete to authenticated
    using (user_id = auth.uid());

drop policy if exists "members see their rooms" on public.chat_rooms;
create policy "members see their rooms" on public.chat_rooms
    for select to authenticated
    using (id in (select room_id from public.chat_members where user_id = auth.uid()));

drop policy if exists "members see the messages of their rooms" on public.chat_messages;
create policy "members see the messages of their rooms" on public.chat_messages
    for select to authenticated
    using (room_id in (select room_id from public.chat_members where user_id = auth.uid()));

drop policy if exists "members write in their own name" on public.chat_messages;
create policy "members write in their own name" on public.chat_messages
    for insert to authenticated
    with check (author_id = auth.uid()
                and room_id in (select room_id from public.chat_members where user_id = auth.uid()));

drop policy if exists "authors change what they wrote" on public.chat_messages;
create policy "authors change what they wrote" on public.chat_messages
    for update to authenticated
    using (author_id = auth.uid() and room_id in (select room_id from public.chat_members where user_id = auth.uid()));

drop policy if exists "authors take back what they wrote" on public.chat_messages;
create policy "authors take back what they wrote" on public.chat_messages
    for delete to authenticated
    using (author_id = auth.uid() and room_id in (select room_id from public.chat_members where user_id = auth.uid()));

drop policy if exists "members see the annotations of their rooms" on public.chat_annotations;
create policy "members see the annotations of their rooms" on public.chat_annotations
    for select to authenticated
    using (room_id in (select room_id from public.chat_members where user_id = auth.uid()));

drop policy if exists "members annotate in their own name" on public.chat_annotations;
create policy "members annotate in their own name" on public.chat_annotations
    for insert to authenticated
    with check (user_id = auth.uid()
                and room_id in (select room_id from public.chat_members where user_id = auth.uid()));

drop policy if exists "users take back their annotations" on public.chat_annotations;
create policy "users take back their annotations" on public.chat_annotations
    for delete to authenticated
    using (user_id = auth.uid() and room_id in (select room_id from public.chat_members where user_id = auth.uid()));

-- Each column that users may write by name: nobody moves a message into another room. (`service_role` bypasses row-level security but
-- needs the grants.)
revoke all on public.chat_rooms, public.chat_members, public.chat_messages, public.chat_annotations
    from anon, authenticated, service_role;
grant select on public.chat_rooms, public.chat_members, public.chat_messages, public.chat_annotations to authenticated;
grant delete on public.chat_members, public.chat_messages, public.chat_annotations to authenticated;
grant insert (room_id, body), update (body) on public.chat_messages to authenticated;
grant insert (message_id, room_id, kind, data) on public.chat_annotations to authenticated;
grant select, insert, update, delete on public.chat_rooms, public.chat_members, public.chat_messages, public.chat_annotations
    to service_role;

-- The channel `room:<id>`. Reading: messages, and who else is there. Writing: what clients send each other, and showing oneself.
drop policy if exists "members hear their rooms" on realtime.messages;
create policy "members hear their rooms" on realtime.messages
    for select to authenticated
    using (realtime.topic() in (
        select r.topic from public.chat_rooms r join public.chat_members m on m.room_id = r.id where m.user_id = auth.uid()));

drop policy if exists "members speak in their rooms" on realtime.messages;
create policy "members speak in their rooms" on realtime.messages
    for insert to authenticated
    with check (extension in ('broadcast', 'presence') and realtime.topic() in (
        select r.topic from public.chat_rooms r join public.chat_members m on m.room_id = r.id where m.user_id = auth.uid()));

-- With its owner's rights: whoever may write a message may have it broadcast.
create or replace function public.chat_broadcast() returns trigger language plpgsql security definer set search_path = '' as $$
begin
    perform realtime.broadcast_changes('room:' || coalesce(new.room_id, old.room_id), tg_op, tg_op, tg_table_name, tg_table_schema,
                                       new, old);
    return null;
end
$$;
revoke all on function public.chat_broadcast() from public;
drop trigger if exists chat_broadcast on public.chat_messages;
create trigger chat_broadcast after insert or update or delete on public.chat_messages
    for each row execute function public.chat_broadcast();
drop trigger if exists chat_broadcast on public.chat_annotations;
create trigger chat_broadcast after insert or update or delete on public.chat_annotations
    for each row execute function public.chat_broadcast();

-- For clients that would rather subscribe to tables (postgres_changes) than to channels; whoever does both hears everything twice.
do $$
declare
    wanted name;
begin
    foreach wanted in array array['chat_messages', 'chat_annotations']::name[] loop
        if not exists (select from pg_catalog.pg_publication_tables
                       where pubname = 'supabase_realtime' and schemaname = 'public' and tablename = wanted) then
            execute format('alter publication supabase_realtime add table public.%I', wanted);
        end if;
    end loop;
end
$$;

commit;
