-- Sets what the old row of an UPDATE or DELETE carries into the write-ahead log.
--
-- Usage:          psql "$DATABASE_URL" -v table=public.orders -v identity=full -f sql/replica_identity.sql
--                 -v identity=default     the primary key: cheapest; policies that read other columns can't judge a DELETE
--                 -v identity=full        the whole old row: every UPDATE and DELETE writes it to the WAL once more
--                 -v identity=index -v index=name   a unique index over NOT NULL columns: what the policies read, and no more
-- Who may run it: the owner of the table, or a superuser.
-- Locks:          ACCESS EXCLUSIVE on the table (and on each of its partitions) for a moment; no row is read or rewritten. It
--                 waits at most 5 s, during which new statements on the table wait too, then gives up.
-- Undo:           the same script; it prints the command that restores what was there.
--
-- Of a partitioned table every partition is set, since each logs for itself. Not for identity=index: partitions have indexes of
-- their own. Twice does no harm.

\set ON_ERROR_STOP on
\set QUIET on
\if :{?table} \else \set table '' \endif
\if :{?identity} \else \set identity '' \endif
\if :{?index} \else \set index '' \endif

begin;
set local search_path = pg_catalog, pg_temp;
set local lock_timeout = '5s';
select coalesce(to_regclass(nullif(:'table', ''))::text, case when strpos(:'table', '.') = 0 then to_regclass('public.' || nullif(:'table', ''))::text end, '') as target \gset
select set_config('rowcast.table', :'table', true), set_config('rowcast.target', :'target', true),
       set_config('rowcast.identity', lower(:'identity'), true),
       set_config('rowcast.index', :'index', true) \g /dev/null

do $$
declare
    wanted   constant text := current_setting('rowcast.table');
    identity constant text := current_setting('rowcast.identity');
    target   constant regclass := to_regclass(nullif(current_setting('rowcast.target'), ''));
    part     record;
    clause   text;
    changed  integer := 0;
begin
    if wanted = '' or target is null then
        raise undefined_table using message = format('there is no table %L', wanted), hint = 'Write it like public.orders.';
    end if;
    clause := case identity when 'default' then 'default' when 'full' then 'full'
                            when 'index' then format('using index %I', current_setting('rowcast.index')) end;
    if clause is null or identity = 'index' and current_setting('rowcast.index') = '' then
        raise invalid_parameter_value using message = 'give -v identity=default, full, or index with -v index=name';
    end if;
    if identity = 'index' and (select relkind = 'p' from pg_class where oid = target) then
        raise feature_not_supported using message = format('%s is partitioned: set identity=index on each partition', target);
    end if;
    if identity = 'default' and not exists (select from pg_index where indrelid = target and indisprimary)
        and exists (select from pg_publication_tables t join pg_namespace n on n.nspname = t.schemaname
                    join pg_class c on c.relnamespace = n.oid and c.relname = t.tablename where c.oid = target) then
        raise object_not_in_prerequisite_state using
            message = format('%s has no primary key and is published: with identity=default its UPDATEs and DELETEs would fail', target);
    end if;
    for part in
        select c.oid, c.relkind, c.relreplident,
               (select r.relname from pg_index i join pg_class r on r.oid = i.indexrelid
                where i.indrelid = c.oid and i.indisreplident) as index
        from pg_class c where c.oid = target
           or c.oid in (select relid from pg_partition_tree(target)) order by c.oid <> target, c.oid
    loop
        if part.relreplident = (case identity when 'default' then 'd' when 'full' then 'f' else 'i' end)
            and (identity <> 'index' or part.index = current_setting('rowcast.index')) then
            continue;
        end if;
        raise notice 'before: alter table % replica identity %;', part.oid::regclass,
            case part.relreplident when 'd' then 'default' when 'f' then 'full' when 'n' then 'nothing' else format('using index %I', part.index) end;
        execute format('alter table %s replica identity %s', part.oid::regclass, clause);
        changed := changed + 1;
    end loop;
    raise notice '%', case when changed = 0 then format('%s has that identity already', target)
                           else format('%s: replica identity %s, set on %s table(s)', target, clause, changed) end;
end
$$;

\echo 'What it costs, from the statistics so far:'
select relid::regclass as "table", n_tup_upd as updates, n_tup_del as deletes,
       pg_size_pretty((n_tup_upd + n_tup_del) * coalesce((select sum(avg_width) from pg_stats s
           where s.schemaname = u.schemaname and s.tablename = u.relname), 0)::bigint) as "WAL that full would have added (estimate)"
from pg_stat_user_tables u
where relid in (select relid from pg_partition_tree(to_regclass(:'target'))
                union select to_regclass(:'target'));
commit;
