-- Takes a table out of a publication: from the next commit on, its rows go to no client. Subscriptions stay and are silent.
--
-- Usage:          psql "$DATABASE_URL" -v table=public.orders -f sql/publication_remove_table.sql
--                 -v publication=name     instead of supabase_realtime
-- Who may run it: the owner of the publication, or a superuser.
-- Locks:          SHARE UPDATE EXCLUSIVE on the table for a moment: reads and writes go on. It waits at most 5 s for it.
-- Undo:           publication_add_table.sql. What was committed in between is not sent later: nothing keeps it.
--
-- Twice does no harm.

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
begin
    if wanted = '' or target is null then
        raise undefined_table using message = format('there is no table %L', wanted), hint = 'Write it like public.orders.';
    end if;
    select * into pub from pg_publication where pubname = current_setting('rowcast.publication');
    if not found then
        raise undefined_object using message = format('there is no publication %L', current_setting('rowcast.publication'));
    end if;
    if exists (select from pg_publication_rel where prpubid = pub.oid and prrelid = target) then
        execute format('alter publication %I drop table %s', pub.pubname, target);
        raise notice '% was taken out of publication %', target, pub.pubname;
    else
        raise notice '% is not in publication %', target, pub.pubname;
    end if;
    if exists (select from pg_publication_tables t join pg_class c on c.relname = t.tablename
               join pg_namespace n on n.oid = c.relnamespace and n.nspname = t.schemaname
               where t.pubname = pub.pubname and c.oid = target) then
        raise warning '% is still published: by FOR ALL TABLES, FOR TABLES IN SCHEMA, or its root', target;
    end if;
end
$$;
commit;
