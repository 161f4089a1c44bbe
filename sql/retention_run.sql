-- Removes the rows that the rules of retention no longer keep: in batches, oldest first, each in a transaction of its own, with
-- pauses; or whole partitions, where a rule says so and the caller may drop them.
--
-- Usage:          psql "$DATABASE_URL" -f sql/retention_run.sql
--                 -v table=public.orders      only this table
--                 -v lasted='10 min'          stops after this time; the next run goes on
--                 -v unmarked=yes             goes on where the login may not mark its deletes; clients are then told of them as
--                                             if users had deleted the rows
-- Who may run it: `rowcast_dba`, or who else is a member of `rowcast_retention` and may call rowcast.run_retention. To drop
--                 partitions: a member of the table's owner.
-- Locks:          ROW EXCLUSIVE on the tables, and the rows of one batch; rows that others have locked are left for the next run. To
--                 drop a partition, ACCESS EXCLUSIVE on table and partition for a moment, waited for at most 2 s.
-- Undo:           none, unless the rule has an archive: insert into public.orders select * from archive.orders;
--
-- Only one run at a time in a database, the relay's own included: a second one says so and does nothing.

\set ON_ERROR_STOP on
\set QUIET on
\if :{?table} \else \set table '' \endif
\if :{?lasted} \else \set lasted '' \endif
\if :{?unmarked} \else \set unmarked no \endif

set search_path = pg_catalog, pg_temp;
set statement_timeout = 0;
select :'table' <> '' and to_regclass(nullif(:'table', '')) is null
       and to_regclass(case when strpos(:'table', '.') = 0 then 'public.' end || nullif(:'table', '')) is null as is_absent \gset
\if :is_absent
    do $$ begin raise undefined_table using message = 'there is no such table', hint = 'Write it like public.orders.'; end $$;
\endif
select quote_nullable(max(n.nspname)) as in_schema, quote_nullable(max(c.relname)) as in_table,
       quote_nullable(nullif(:'lasted', '')) as bound, (:'unmarked' in ('yes', 'true', 'on'))::text as not_marked,
       coalesce((select max(id) from rowcast.retention_runs), 0) as before
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.oid = coalesce(to_regclass(nullif(:'table', '')), to_regclass(case when strpos(:'table', '.') = 0 then 'public.' end || nullif(:'table', ''))) \gset

\echo 'Run'
call rowcast.run_retention(only_schema => :in_schema, only_table => :in_table, lasted => :bound, unmarked => :not_marked);

\echo 'By rule'
select what, cutoff, deleted, archived, partitions, batches, waited as time_in_batches,
       ended_at - started_at as took, marked, finished, error
from rowcast.retention_runs where id > :before and run_by = session_user order by id;
