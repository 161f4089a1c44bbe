-- Example: posts of teams. Who is in a team, in whatever role, gets its posts from the commit that lets him in to the one that puts
-- him out.
--
-- The relay keeps `members` in memory, so that a post costs no query, however many phones are connected: see "Facts" in README.md.
--
-- Who may run it: the owner of the database or a superuser, after `rowcast migrate up`. Twice does no harm.
-- Locks:          on a first run none that others could notice; on a later one ACCESS EXCLUSIVE on the three tables for the
--                 moment in which their policies are replaced.
-- Undo:           drop table public.posts, public.members, public.teams;

begin;

create table if not exists public.teams (
    id         uuid        primary key default gen_random_uuid(),
    name       text        not null,
    created_at timestamptz not null default now()
);

-- The primary key has both columns that policies look for: the old row of a DELETE carries them without REPLICA IDENTITY FULL.
create table if not exists public.members (
    team_id    uuid        not null references public.teams (id) on delete cascade,
    user_id    uuid        not null,
    role       text        not null default 'member' check (role in ('owner', 'member', 'guest')),
    created_at timestamptz not null default now(),
    primary key (team_id, user_id)
);
create index if not exists members_user_id on public.members (user_id, team_id);

create table if not exists public.posts (
    id         bigint      generated always as identity primary key,
    team_id    uuid        not null references public.teams (id) on delete cascade,
    author_id  uuid,
    body       text        not null default '',
    internal   boolean     not null default false,
    created_at timestamptz not null default now()
);
create index if not exists posts_team_id on public.posts (team_id, id);

-- Deletes are judged on the old row: the policies read `team_id`, so the old row has to carry more than the key.
alter table public.posts replica identity full;

alter table public.teams enable row level security;
alter table public.members enable row level security;
alter table public.posts enable row level security;

-- Of `members` a user sees his own rows. It must not look into `members` itself, which Postgres would refuse as an infinite
-- recursion; to show him who else is in his teams, a SECURITY DEFINER function in language sql is needed, and is judged in memory too.
drop policy if exists "users see their own memberships" on public.members;
create policy "users see their own memberships" on public.members
    for select to authenticated
    using (user_id = auth.uid());

drop policy if exists "users see their own teams" on public.teams;
create policy "users see their own teams" on public.teams
    for select to authenticated
    using (id in (select team_id from public.members where user_id = auth.uid()));

drop policy if exists "members see the posts of their teams" on public.posts;
create policy "members see the posts of their teams" on public.posts
    for select to authenticated
    using (team_id in (select team_id from public.members where user_id = auth.uid()));

-- Restrictive: whatever other policies allow, this must hold too.
drop policy if exists "guests do not see internal posts" on public.posts;
create policy "guests do not see internal posts" on public.posts
    as restrictive for select to authenticated
    using (not internal or exists (
        select 1 from public.members m
        where m.team_id = posts.team_id and m.user_id = auth.uid() and m.role = any (array['owner', 'member'])));

-- Users read; only the backend writes. (`service_role` bypasses row-level security but needs the grants.) Without the grant on
-- `members` the policies of `posts` would raise, and nobody would see a post.
revoke all on public.teams, public.members, public.posts from anon, authenticated, service_role;
grant select on public.teams, public.members, public.posts to authenticated;
grant select, insert, update, delete on public.teams, public.members, public.posts to service_role;

-- Only posts are sent. Tables that policies look into are in publication rowcast_facts: the relay adds `members` there itself if
-- its login owns both; otherwise add it with publication_add_table.sql and -v publication=rowcast_facts, and let the login
-- read it with roles.sql and -v fact_tables=public.members.
do $$
begin
    if not exists (select from pg_catalog.pg_publication_tables
                   where pubname = 'supabase_realtime' and schemaname = 'public' and tablename = 'posts') then
        alter publication supabase_realtime add table public.posts;
    end if;
end
$$;

commit;
