-- Example: notifications, the plainest rule there is: a row belongs to the user whose id it carries.
--
-- Who may run it: the owner of the database or a superuser, after `rowcast migrate up`. Twice does no harm.
-- Locks:          on a first run none that others could notice; on a later one ACCESS EXCLUSIVE on the table for the moment
--                 in which its policy is replaced.
-- Undo:           drop table public.notifications;

begin;

create table if not exists public.notifications (
    id         bigint      generated always as identity primary key,
    user_id    uuid        not null,
    kind       text        not null,
    body       text        not null default '',
    read_at    timestamptz,
    created_at timestamptz not null default now()
);
create index if not exists notifications_user_id on public.notifications (user_id, id);

-- Deletes are judged on the old row: the policy reads `user_id`, so the old row has to carry more than the key.
alter table public.notifications replica identity full;

alter table public.notifications enable row level security;

drop policy if exists "users see their own notifications" on public.notifications;
create policy "users see their own notifications" on public.notifications
    for select to authenticated
    using (user_id = auth.uid());

-- Users read; only the backend writes. (`service_role` bypasses row-level security but needs the grants.)
revoke all on public.notifications from anon, authenticated, service_role;
grant select on public.notifications to authenticated;
grant select, insert, update, delete on public.notifications to service_role;

do $$
begin
    if not exists (select from pg_catalog.pg_publication_tables
                   where pubname = 'supabase_realtime' and schemaname = 'public' and tablename = 'notifications') then
        alter publication supabase_realtime add table public.notifications;
    end if;
end
$$;

commit;
