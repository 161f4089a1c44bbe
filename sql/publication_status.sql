-- Shows what a publication sends, and to whom it can go: its tables with actions, filters, columns, row-level security,
-- policies, replica identity, the deletes that nobody will get, and partitions that are less guarded than their root.
--
-- Usage:          psql "$DATABASE_URL" -f sql/publication_status.sql
--                 -v publication=name     instead of supabase_realtime
-- Who may run it: everybody; it reads the system catalogs only (`rowcast_monitor`).
-- Locks:          none.
-- Undo:           nothing to undo; it changes nothing.

\set ON_ERROR_STOP on
\set QUIET on
\if :{?publication} \else \set publication supabase_realtime \endif

begin transaction read only;
set local search_path = pg_catalog, pg_temp;

\echo 'Publication'
select pubname as publication, pg_get_userbyid(pubowner) as owner,
       concat_ws(', ', case when pubinsert then 'insert' end, case when pubupdate then 'update' end,
                 case when pubdelete then 'delete' end, case when pubtruncate then 'truncate' end) as sends,
       case when puballtables then 'all tables' else 'listed tables' end as covers, pubviaroot as partitions_as_root
from pg_publication where pubname = :'publication';

\echo 'Tables'
with published as (
    select c.*, t.attnames, to_jsonb(t) ->> 'rowfilter' as rowfilter, p.pubdelete
    from pg_publication p join pg_publication_tables t on t.pubname = p.pubname
    join pg_namespace n on n.nspname = t.schemaname join pg_class c on c.relnamespace = n.oid and c.relname = t.tablename
    where p.pubname = :'publication'),
judged as (
    select p.*,
           exists (select from pg_index i where i.indrelid = p.oid and i.indisprimary) as has_key,
           (select count(*) from pg_policy o where o.polrelid = p.oid and o.polcmd in ('r', '*')) as policies,
           -- The columns that policies read and the old row of a DELETE does not carry.
           array(select distinct a.attname::text from pg_policy o
                 join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = o.oid
                     and d.refclassid = 'pg_class'::regclass and d.refobjid = p.oid and d.refobjsubid > 0
                 join pg_attribute a on a.attrelid = p.oid and a.attnum = d.refobjsubid
                 where o.polrelid = p.oid and o.polcmd in ('r', '*') and p.relreplident <> 'f'
                   and not exists (select from pg_index i where i.indrelid = p.oid and a.attnum = any (i.indkey::int2[])
                                   and (p.relreplident = 'd' and i.indisprimary or p.relreplident = 'i' and i.indisreplident))
                 order by 1) as not_in_old
    from published p)
select oid::regclass as "table",
       case when relkind = 'p' then 'root' when relispartition then 'partition' else 'table' end as kind,
       coalesce(rowfilter, '') as filter,
       case when cardinality(attnames) < (select count(*) from pg_attribute a where a.attrelid = judged.oid and a.attnum > 0
                                          and not a.attisdropped and a.attgenerated = '')
            then array_to_string(attnames, ', ') else 'all' end as columns,
       case when relrowsecurity then 'on' else 'OFF' end as rls, policies,
       case relreplident when 'd' then case when has_key then 'default' else 'default, NO KEY' end
            when 'f' then 'full' when 'i' then 'index' else 'nothing' end as identity,
       case when not pubdelete then 'not published'
            when relreplident = 'n' or relreplident = 'd' and not has_key then 'the DELETE itself fails'
            when not relrowsecurity then 'all who may read the table'
            when policies = 0 then 'nobody: no policy'
            when cardinality(not_in_old) > 0 then 'NOBODY: the policies read ' || array_to_string(not_in_old, ', ') || ', which the old row lacks'
            else 'its owner' end as "deletes reach"
from judged order by oid::regclass::text;

\echo 'Partitions that are published by themselves without row-level security, though their root has it (the relay withholds them)'
select c.oid::regclass as partition, r.oid::regclass as root,
       'alter table ' || c.oid::regclass || ' enable row level security;' as remedy
from pg_publication p join pg_publication_tables t on t.pubname = p.pubname
join pg_namespace n on n.nspname = t.schemaname join pg_class c on c.relnamespace = n.oid and c.relname = t.tablename
join lateral pg_partition_ancestors(c.oid) a on a.relid <> c.oid join pg_class r on r.oid = a.relid
where p.pubname = :'publication' and c.relispartition and not c.relrowsecurity and r.relrowsecurity
order by 1;
commit;
