-- Sets how long the rows of a table are kept: for one kind of event, or for all that no other rule of the table covers.
--
-- Usage:          psql "$DATABASE_URL" -v table=public.session_events -v type_column=event_type -v pattern='dm.%' -v keep='30 days' -f sql/retention_set.sql
--                 psql "$DATABASE_URL" -v table=public.session_events -v keep='7 days' -f sql/retention_set.sql
--                 -v keep=interval            30 days
--                 -v time_column=name         created_at; timestamptz, timestamp (taken as UTC) or date. Rows without a time are kept
--                 -v type_column=name         with -v pattern='…', a LIKE pattern. Of several that match, the longest decides
--                 -v archive=schema.table     rows go there first; it needs the columns of the same names
--                 -v drop_partitions=yes      drop a whole partition once all rules of the table have passed it, where who
--                                             runs retention may drop it; its rows are deleted otherwise
--                 -v batch_rows=200 -v pause='20 ms': small batches, since the stream carries each as a whole and what commits after it waits
--                 -v remove=yes               removes the rule for this table and pattern
-- Who may run it: `rowcast_dba` if it is a member of the table's owner (roles.sql -v table_owner=…), or a superuser. It grants
--                 rowcast_retention what the rule needs on the table.
-- Locks:          none that others could notice.
-- Undo:           the same with -v remove=yes. Rights that no other rule needs are taken back.
--
-- Twice does no harm: the rule is replaced. Nothing is deleted before retention_run.sql, or a relay with ROWCAST_RETENTION=on.

\set ON_ERROR_STOP on
\set QUIET on
\if :{?table} \else \set table '' \endif
\if :{?keep} \else \set keep '30 days' \endif
\if :{?time_column} \else \set time_column created_at \endif
\if :{?type_column} \else \set type_column '' \endif
\if :{?pattern} \else \set pattern '' \endif
\if :{?archive} \else \set archive '' \endif
\if :{?drop_partitions} \else \set drop_partitions no \endif
\if :{?batch_rows} \else \set batch_rows 200 \endif
\if :{?pause} \else \set pause '20 ms' \endif
\if :{?remove} \else \set remove no \endif

begin;
set local search_path = pg_catalog, pg_temp;
set local lock_timeout = '5s';
select coalesce(to_regclass(nullif(:'table', ''))::text, case when strpos(:'table', '.') = 0 then to_regclass('public.' || nullif(:'table', ''))::text end, '') as target \gset
select set_config('rowcast.' || name, value, true) from (values
    ('table', :'table'), ('target', :'target'), ('keep', :'keep'), ('time_column', :'time_column'), ('type_column', :'type_column'),
    ('pattern', :'pattern'), ('archive', :'archive'), ('drop_partitions', :'drop_partitions'),
    ('batch_rows', :'batch_rows'), ('pause', :'pause'), ('remove', :'remove')) v (name, value) \g /dev/null

do $$
declare
    wanted   constant text := current_setting('rowcast.table');
    target   constant regclass := to_regclass(nullif(current_setting('rowcast.target'), ''));
    archive  constant text := current_setting('rowcast.archive');
    into_    regclass;
    like_    constant text := nullif(current_setting('rowcast.pattern'), '');
    time_    constant name := current_setting('rowcast.time_column');
    type_    constant name := nullif(current_setting('rowcast.type_column'), '');
    acting   constant boolean := exists (select from pg_roles where rolname = 'rowcast_retention');
    class    record;
    time_type regtype;
    gone     rowcast.retention;
begin
    if wanted = '' or target is null then
        raise undefined_table using message = format('there is no table %L', wanted), hint = 'Write it like public.orders.';
    end if;
    select n.nspname, c.relname, c.relkind into class from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = target;
    if class.relkind not in ('r', 'p') then
        raise wrong_object_type using message = format('%s is not a table', target);
    end if;

    if current_setting('rowcast.remove') = 'yes' then
        delete from rowcast.retention
        where (schema_name, table_name) = (class.nspname, class.relname) and coalesce(pattern, '') = coalesce(like_, '')
        returning * into gone;
        raise notice '%', case when found then 'the rule was removed' else 'there was no such rule' end;
        if acting and not exists (select from rowcast.retention where (schema_name, table_name) = (class.nspname, class.relname)) then
            -- On a table, with what there is on its columns.
            execute format('revoke all on %s from rowcast_retention', target);
        end if;
        into_ := to_regclass(quote_ident(gone.archive_schema) || '.' || quote_ident(gone.archive_table));
        if acting and into_ is not null and not exists (select from rowcast.retention
            where (archive_schema, archive_table) = (gone.archive_schema, gone.archive_table)) then
            execute format('revoke all on %s from rowcast_retention', into_);
        end if;
        return;
    end if;

    select atttypid::regtype into time_type from pg_attribute
    where attrelid = target and attname = time_ and attnum > 0 and not attisdropped;
    if time_type is null then
        raise undefined_column using message = format('%s has no column %I', target, time_), hint = 'Name it: -v time_column=…';
    elsif time_type not in ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype) then
        raise wrong_object_type using message = format('%I of %s is %s, not a time', time_, target, time_type);
    end if;
    if type_ is not null and not exists (select from pg_attribute where attrelid = target and attname = type_ and attnum > 0 and not attisdropped) then
        raise undefined_column using message = format('%s has no column %I', target, type_);
    end if;
    if like_ is not null and type_ is null then
        raise invalid_parameter_value using message = 'a pattern needs -v type_column=…';
    end if;
    if archive <> '' then
        into_ := coalesce(to_regclass(archive), case when strpos(archive, '.') = 0 then to_regclass('public.' || archive) end);
        if into_ is null then
            raise undefined_table using message = format('there is no table %L', archive),
                hint = format('create table %s (like %s including defaults);', archive, target);
        end if;
        if exists (select from pg_attribute a where a.attrelid = target and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
                   and not exists (select from pg_attribute b where b.attrelid = into_ and b.attname = a.attname and b.attnum > 0 and not b.attisdropped)) then
            raise undefined_column using message = format('%s lacks columns of %s', into_, target);
        end if;
    end if;

    insert into rowcast.retention as r (schema_name, table_name, time_column, type_column, pattern, keep, batch_rows, pause,
                                        drop_partitions, archive_schema, archive_table)
    values (class.nspname, class.relname, time_, type_, like_, current_setting('rowcast.keep')::interval,
            current_setting('rowcast.batch_rows')::integer, current_setting('rowcast.pause')::interval,
            current_setting('rowcast.drop_partitions') in ('yes', 'true', 'on'),
            (select n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = into_),
            (select relname from pg_class where oid = into_))
    on conflict (schema_name, table_name, coalesce(pattern, '')) do update set
        time_column = excluded.time_column, type_column = excluded.type_column, keep = excluded.keep,
        batch_rows = excluded.batch_rows, pause = excluded.pause, drop_partitions = excluded.drop_partitions,
        archive_schema = excluded.archive_schema, archive_table = excluded.archive_table, enabled = true,
        set_by = session_user, set_at = now();

    if acting then
        if not has_schema_privilege('rowcast_retention', class.nspname, 'USAGE') then
            execute format('grant usage on schema %I to rowcast_retention', class.nspname);
        end if;
        execute format('grant select, delete, update (%I) on %s to rowcast_retention', time_, target);
        if into_ is not null then
            if not has_schema_privilege('rowcast_retention', (select relnamespace from pg_class where oid = into_), 'USAGE') then
                execute format('grant usage on schema %s to rowcast_retention', (select relnamespace::regnamespace from pg_class where oid = into_));
            end if;
            execute format('grant insert on %s to rowcast_retention', into_);
        end if;
        if not has_table_privilege('rowcast_retention', target, 'DELETE') then
            raise warning 'rowcast_retention has no right to delete from %: its owner must say: grant select, delete, update (%) on % to rowcast_retention;', target, time_, target;
        end if;
    end if;
    if not exists (select from pg_index i where i.indrelid = target and i.indisvalid
                   and i.indkey[0] = (select attnum from pg_attribute where attrelid = target and attname = time_)) then
        raise warning 'no index of % begins with %: every batch reads the whole table. create index concurrently on % (%);', target, time_, target, time_;
    end if;
end
$$;

\echo 'Rules of the table'
select coalesce(pattern, '(the rest)') as events, keep, time_column, drop_partitions, archive_schema || '.' || archive_table as archive,
       batch_rows, pause, enabled
from rowcast.retention
where format('%I.%I', schema_name, table_name)::regclass = to_regclass(:'target')
order by pattern nulls last;
commit;
