-- Publishes a table: from the next commit on, its rows go to those clients whom its policies let see them.
--
-- Usage:          psql "$DATABASE_URL" -v table=public.orders -f sql/publication_add_table.sql
--                 -v publication=name     instead of supabase_realtime
-- Who may run it: the owner of both the table and the publication (`rowcast_dba` once roles.sql has said so), or a superuser.
-- Locks:          SHARE UPDATE EXCLUSIVE on the table for a moment: reads and writes go on. It waits at most 5 s for it.
-- Undo:           publication_remove_table.sql with the same variables.
--
-- Twice does no harm. It refuses what can't work, tells what the table's settings mean for clients, and changes nothing else.

\set ON_ERROR_STOP on
\set QUIET on
\if :{?table} \else
    \echo 'Give the table: -v table=schema.name'
    \set table ''
\endif
\if :{?publication} \else \set publication supabase_realtime \endif

begin;
set local search_path = pg_catalog, pg_temp;
set local lock_timeout = '5s';
select coalesce(to_regclass(nullif(:'table', ''))::text, case when strpos(:'table', '.') = 0 then to_regclass('public.' || nullif(:'table', ''))::text end, '') as target \gset
select set_config('rowcast.table', :'table', true), set_config('rowcast.target', :'target', true),
       set_config('rowcast.publication', :'publication', true) \g /dev/null

do $$
declare
    wanted constant text := current_setting('rowcast.table');
    target constant regclass := to_regclass(nullif(current_setting('rowcast.target'), ''));
    pub    pg_publication;
    class  pg_class;
    other  record;
begin
    if wanted = '' or target is null then
        raise undefined_table using message = format('there is no table %L', wanted), hint = 'Write it like public.orders.';
    end if;
    select * into class from pg_class where oid = target;
    if class.relkind not in ('r', 'p') then
        raise wrong_object_type using message = format('%s is not a table: views, sequences and foreign tables send no changes', target);
    end if;
    if class.relpersistence <> 'p' then
        raise wrong_object_type using message = format('%s is temporary or unlogged: its changes are not in the write-ahead log', target),
            hint = format('alter table %s set logged;', target);
    end if;
    select * into pub from pg_publication where pubname = current_setting('rowcast.publication');
    if not found then
        raise undefined_object using message = format('there is no publication %L', current_setting('rowcast.publication')),
            hint = 'rowcast migrate up makes supabase_realtime.';
    end if;
    -- Two publications of one stream that list different columns of a table stop the stream for good, and no repair helps.
    for other in
        select o.pubname, o.pubname in ('supabase_realtime', 'rowcast_facts') as ours, r.prattrs is not null as listed, r.prqual is not null as filtered
        from pg_publication_rel r join pg_publication o on o.oid = r.prpubid
        where r.prrelid = target and o.oid <> pub.oid and (r.prattrs is not null or r.prqual is not null)
          and not exists (select from pg_publication_rel m where m.prpubid = pub.oid and m.prrelid = target)
    loop
        if other.listed and other.ours then
            raise object_not_in_prerequisite_state using
                message = format('publication %I lists some columns of %s: a relay that reads both would stop for good (0A000)', other.pubname, target),
                hint = format('alter publication %I drop table %s; or publish the same columns here by hand.', other.pubname, target);
        elsif other.listed then
            raise warning 'publication % lists some columns of %: a relay that reads both would stop for good (0A000)', other.pubname, target;
        else
            raise warning 'publication % has a row filter for %: the relay applies the filters of the publications that clients subscribe to, and only those', other.pubname, target;
        end if;
    end loop;
    if pub.puballtables then
        raise notice 'publication % is FOR ALL TABLES: % is in it already', pub.pubname, target;
    elsif exists (select from pg_publication_rel where prpubid = pub.oid and prrelid = target) then
        raise notice '% is in publication % already', target, pub.pubname;
    else
        execute format('alter publication %I add table %s', pub.pubname, target);
        raise notice '% was added to publication %', target, pub.pubname;
    end if;
end
$$;

\echo 'What its clients will get:'
with target as (
    select c.*, p.pubviaroot from pg_class c, pg_publication p
    where c.oid = to_regclass(:'target') and p.pubname = :'publication'),
told (place, about, state, meaning) as (
    select 1, 'row-level security', case when relrowsecurity then 'on' else 'OFF' end,
           case when relrowsecurity then 'a client gets the rows that its policies show it'
                else 'every role with SELECT gets every row: alter table ' || oid::regclass || ' enable row level security;' end
    from target
    union all
    select 2, 'policies for SELECT', count(p.oid)::text,
           case when not t.relrowsecurity then 'not looked at while row-level security is off'
                when count(p.oid) filter (where p.polpermissive) = 0 then 'none is permissive: only owners and BYPASSRLS roles get rows'
                else coalesce(string_agg(p.polname, ', ' order by p.polname), '') end
    from target t left join pg_policy p on p.polrelid = t.oid and p.polcmd in ('r', '*') group by t.relrowsecurity
    union all
    select 3, 'SELECT granted to', coalesce(string_agg(r.rolname, ', ' order by r.rolname), 'nobody'),
           'of anon, authenticated, service_role; others get nothing'
    from target t left join pg_roles r on r.rolname in ('anon', 'authenticated', 'service_role')
        and has_any_column_privilege(r.oid, t.oid, 'SELECT')
    union all
    select 4, 'primary key', case when exists (select from pg_index where indrelid = oid and indisprimary) then 'yes' else 'NO' end,
           case when exists (select from pg_index where indrelid = oid and indisprimary) then 'old_record of an UPDATE shows it'
                when relreplident in ('d', 'n') then 'UPDATE and DELETE on this table FAIL from now on: add a primary key, or run replica_identity.sql'
                else 'clients can''t tell which row changed' end
    from target
    union all
    select 5, 'replica identity', case relreplident when 'd' then 'default (the primary key)' when 'f' then 'full' when 'i' then 'index' else 'nothing' end,
           case when relreplident = 'f' then 'DELETE can be judged by any policy'
                when relrowsecurity then 'the old row holds only the key: a DELETE reaches nobody whose policy reads another column; replica_identity.sql mends it'
                else 'DELETE shows the key only' end
    from target
    union all
    select 6, 'partitions', case when relkind = 'p' then case when pubviaroot then 'sent as the root' else 'sent as themselves' end
                                 else 'of ' || (select inhparent::regclass::text from pg_inherits where inhrelid = oid limit 1) end,
           case when relkind = 'p' and pubviaroot then 'clients subscribe to the root'
                when relkind = 'p' then 'clients subscribe to each partition, judged by the partition''s own policies; better: alter publication ' || quote_ident(:'publication') || ' set (publish_via_partition_root = true);'
                else 'its own policies and grants decide, not those of its root' end
    from target where relkind = 'p' or relispartition)
select about, state, meaning from told order by place;
commit;
