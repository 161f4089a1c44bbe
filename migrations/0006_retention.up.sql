-- Retention, and what monitoring reads: the rules of how long rows are kept, the procedure that removes what is older, the
-- relays' own reports, and samples of the slots from which a forecast is made.
--
-- Who may run it: a role with CREATE on schema `rowcast`. The replication origin that marks retention's transactions is made
--                 too if the role may call pg_replication_origin_create(); if not, sql/roles.sql makes it.
-- Locks:          none on existing tables; it only creates.
-- Undo:           0006_retention.down.sql.

-- How long rows of a table are kept. `pattern` is a LIKE pattern on `type_column`; null is for what no other rule of the table
-- matches. Of several patterns that match, the longest decides. A table without a rule is never touched.
create table rowcast.retention (
    id              bigint      generated always as identity primary key,
    schema_name     name        not null,
    table_name      name        not null,
    time_column     name        not null default 'created_at',
    type_column     name,
    pattern         text,
    keep            interval    not null default '30 days' check (keep > '0'),
    batch_rows      integer     not null default 200 check (batch_rows between 1 and 100000),
    pause           interval    not null default '20 milliseconds' check (pause between '0' and '1 minute'),
    drop_partitions boolean     not null default false,
    archive_schema  name,
    archive_table   name,
    enabled         boolean     not null default true,
    set_by          name        not null default session_user,
    set_at          timestamptz not null default now(),
    check (pattern is null or type_column is not null),
    check ((archive_schema is null) = (archive_table is null))
);
create unique index retention_one_rule on rowcast.retention (schema_name, table_name, coalesce(pattern, ''));

-- What each run did for each rule, and the time of the last row it removed. The last thousand are kept.
create table rowcast.retention_runs (
    id          bigint      generated always as identity primary key,
    rule        bigint      not null,
    what        text        not null,
    started_at  timestamptz not null default clock_timestamp(),
    ended_at    timestamptz,
    cutoff      timestamptz not null,
    deleted     bigint      not null default 0,
    archived    bigint      not null default 0,
    partitions  integer     not null default 0,
    batches     integer     not null default 0,
    waited      interval    not null default '0',
    reached     timestamptz,
    marked      boolean     not null,
    finished    boolean     not null default false,
    error       text,
    run_by      name        not null default session_user
);

-- One row for each relay, replaced every ten seconds.
create table rowcast.relay_status (
    relay       text        primary key,
    slot        text        not null,
    version     text        not null,
    started_at  timestamptz not null,
    reported_at timestamptz not null default clock_timestamp(),
    status      jsonb       not null
);

-- The slots and the relays' counters over time; a day of them is kept.
create table rowcast.status_samples (
    taken_at    timestamptz not null default clock_timestamp(),
    slot        text        not null,
    wal_lsn     pg_lsn      not null,
    restart_lsn pg_lsn,
    confirmed   pg_lsn,
    changes     bigint,
    deliveries  bigint
);
create index status_samples_by_time on rowcast.status_samples (taken_at);

-- Takes a sample of every slot of this database that belongs to a relay, at most one in two seconds.
create function rowcast.take_sample()
    returns void language sql security definer set search_path = pg_catalog, pg_temp as $$
    delete from rowcast.status_samples where taken_at < now() - interval '1 day';
    insert into rowcast.status_samples (slot, wal_lsn, restart_lsn, confirmed, changes, deliveries)
    select s.slot_name, pg_current_wal_lsn(), s.restart_lsn, s.confirmed_flush_lsn,
           (r.status #>> '{counters,rowcast_changes_total}')::numeric::bigint,
           (r.status #>> '{counters,rowcast_deliveries_total}')::numeric::bigint
    from pg_replication_slots s
    left join lateral (select status from rowcast.relay_status where slot = s.slot_name
                       order by reported_at desc limit 1) r on true
    where s.slot_type = 'logical' and s.database = current_database()
      and (r.status is not null or exists (select from rowcast.lineage l where l.slot = s.slot_name))
      and not exists (select from rowcast.status_samples t
                      where t.slot = s.slot_name and t.taken_at > now() - interval '2 seconds');
$$;
revoke all on function rowcast.take_sample() from public;

-- What a rule covers, as a condition on the row.
create function rowcast.retention_condition(rule rowcast.retention)
    returns text language sql stable set search_path = pg_catalog, pg_temp as $$
    select case
        when rule.pattern is not null then
            format('(%I)::text like %L', rule.type_column, rule.pattern) || coalesce((
                select string_agg(format(' and (%I)::text not like %L', rule.type_column, o.pattern), '' order by o.id)
                from rowcast.retention o
                where (o.schema_name, o.table_name) = (rule.schema_name, rule.table_name) and o.pattern is not null
                  and o.id <> rule.id
                  and (length(o.pattern) > length(rule.pattern)
                       or length(o.pattern) = length(rule.pattern) and (o.keep, o.id) > (rule.keep, rule.id))), '')
        else coalesce((
            select string_agg(format('((%I)::text like %L) is not true', o.type_column, o.pattern), ' and ' order by o.id)
            from rowcast.retention o
            where (o.schema_name, o.table_name) = (rule.schema_name, rule.table_name) and o.pattern is not null), 'true')
    end
$$;

-- Removes at most `most` rows of a rule that are older than `cutoff`, oldest first, and puts them into the archive if there is
-- one. Rows that somebody has locked are left for another time. Returns how many, and the time of the last one, from which
-- the next batch goes on.
create function rowcast.retention_batch(in_rule bigint, cutoff timestamptz, since timestamptz, most integer,
                                        out removed bigint, out archived bigint, out reached timestamptz)
    language plpgsql set search_path = pg_catalog, pg_temp set row_security = off set timezone = 'UTC' as $$
declare
    rule    rowcast.retention;
    target  text;
    columns text;
    command text;
begin
    select * into strict rule from rowcast.retention where id = in_rule;
    target := format('%I.%I', rule.schema_name, rule.table_name);
    command := format(
        'with doomed as materialized (
             select tableoid as place, ctid as spot from %1$s
             where %2$I < $1 and ($2 is null or %2$I >= $2) and %3$s
             order by %2$I limit $3 for update skip locked),
         gone as (
             delete from %1$s as t using doomed d where t.ctid = d.spot and t.tableoid = d.place returning t.*)',
        target, rule.time_column, rowcast.retention_condition(rule));
    if rule.archive_table is null then
        command := command || format(' select count(*), 0, max(%I)::timestamptz from gone', rule.time_column);
    else
        select string_agg(format('%I', a.attname), ', ' order by a.attnum) into strict columns
        from pg_attribute a
        join pg_attribute b on b.attname = a.attname and b.attnum > 0 and not b.attisdropped and b.attgenerated = ''
        where a.attrelid = target::regclass and a.attnum > 0 and not a.attisdropped
          and b.attrelid = format('%I.%I', rule.archive_schema, rule.archive_table)::regclass;
        command := command || format(
            ', kept as (insert into %1$I.%2$I (%3$s) overriding system value select %3$s from gone returning 1)
             select (select count(*) from gone), (select count(*) from kept), (select max(%4$I)::timestamptz from gone)',
            rule.archive_schema, rule.archive_table, columns, rule.time_column);
    end if;
    execute command into removed, archived, reached using cutoff, since, most;
end
$$;

-- Drops the oldest partition all of whose rows every rule of the table would remove. Returns its name and its number of rows,
-- or null if there is none, or it is not the caller's to drop. Sends nobody a DELETE.
create function rowcast.retention_partition(in_rule bigint, out dropped text, out archived bigint)
    language plpgsql set search_path = pg_catalog, pg_temp set row_security = off set timezone = 'UTC' as $$
declare
    rule    rowcast.retention;
    longest interval;
    leaf    record;
    columns text;
begin
    select * into strict rule from rowcast.retention where id = in_rule;
    -- Without a rule for the rest, rows that match no pattern are kept for ever; so is what a disabled rule covers.
    if not exists (select from rowcast.retention where (schema_name, table_name) = (rule.schema_name, rule.table_name)
                   and pattern is null) or exists (select from rowcast.retention
                   where (schema_name, table_name) = (rule.schema_name, rule.table_name) and not enabled) then
        return;
    end if;
    select max(keep) into longest from rowcast.retention
    where (schema_name, table_name) = (rule.schema_name, rule.table_name);
    select c.oid::regclass as name into leaf
    from pg_partitioned_table p
    join pg_inherits i on i.inhparent = p.partrelid and not i.inhdetachpending
    join pg_class c on c.oid = i.inhrelid and c.relkind = 'r'
    cross join lateral (select (regexp_match(pg_get_expr(c.relpartbound, c.oid), ' TO \(''([^'']+)''\)$'))[1] as upper) bound
    where p.partrelid = format('%I.%I', rule.schema_name, rule.table_name)::regclass
      and p.partstrat = 'r' and p.partnatts = 1
      and (select attname from pg_attribute where attrelid = p.partrelid and attnum = p.partattrs[0]) = rule.time_column
      and bound.upper is not null and bound.upper::timestamptz <= now() - longest
      and pg_has_role(current_user, c.relowner, 'USAGE')
    order by bound.upper::timestamptz limit 1;
    if not found then
        return;
    end if;
    archived := 0;
    if rule.archive_table is not null then
        select string_agg(format('%I', a.attname), ', ' order by a.attnum) into strict columns
        from pg_attribute a
        join pg_attribute b on b.attname = a.attname and b.attnum > 0 and not b.attisdropped and b.attgenerated = ''
        where a.attrelid = leaf.name and a.attnum > 0 and not a.attisdropped
          and b.attrelid = format('%I.%I', rule.archive_schema, rule.archive_table)::regclass;
        execute format('lock table %s in access exclusive mode', leaf.name);
        execute format('insert into %1$I.%2$I (%3$s) overriding system value select %3$s from %4$s',
                       rule.archive_schema, rule.archive_table, columns, leaf.name);
        get diagnostics archived = row_count;
    end if;
    execute format('drop table %s', leaf.name);
    dropped := leaf.name::text;
end
$$;

-- Makes this session's transactions retention's own, or stops that. Who may not say so gets an error: unmarked deletes would be
-- told to clients as if users had made them.
create function rowcast.retention_mark(marking boolean)
    returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if pg_replication_origin_session_is_setup() then
        perform pg_replication_origin_session_reset();
    end if;
    if marking then
        perform pg_replication_origin_session_setup('rowcast_retention');
    end if;
exception
    when insufficient_privilege then
        raise insufficient_privilege using
            message = format('%I may not mark its deletes with the replication origin rowcast_retention', current_user),
            hint = 'As a superuser run sql/roles.sql, and run retention as a member of rowcast_retention; or say that clients '
                   'may be told of the deletes: unmarked => true.';
    when undefined_object then
        raise undefined_object using
            message = 'the replication origin rowcast_retention does not exist',
            hint = 'As a superuser: select pg_replication_origin_create(''rowcast_retention'');';
    when object_in_use then
        raise object_in_use using
            message = 'another session, perhaps of another database of this cluster, runs retention now',
            hint = 'It works one at a time. Try again later.';
end
$$;

-- Runs all rules, or those of one table, in short transactions with pauses between them. It acts as the role
-- `rowcast_retention` if that role is there and the caller is a member of it, else as the caller. `lasted` bounds the time; `more`
-- tells that it ended early. `busy` tells that another run was under way and nothing was done.
create procedure rowcast.run_retention(
    inout deleted bigint default 0, inout archived bigint default 0, inout partitions integer default 0,
    inout more boolean default false, inout busy boolean default false, inout errors text default null,
    only_schema text default null, only_table text default null, lasted interval default null,
    unmarked boolean default false)
language plpgsql as $$
declare
    key     constant bigint := 8245085352413884274;
    began   constant timestamptz := pg_catalog.clock_timestamp();
    login   constant text := current_user;
    acting  text;
    rules   bigint[];
    current_rule bigint;
    rule    rowcast.retention;
    run     bigint;
    limit_at timestamptz;
    since   timestamptz;
    removed bigint;
    moved   bigint;
    reached timestamptz;
    part    text;
    started timestamptz;
    problem text;
    done    boolean;
begin
    deleted := 0; archived := 0; partitions := 0; more := false; busy := false; errors := null;
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    if not pg_try_advisory_lock(key) then
        busy := true;
        return;
    end if;
    select r.rolname into acting from pg_roles r
    where r.rolname = 'rowcast_retention' and pg_has_role(login, r.oid, 'MEMBER');
    acting := coalesce(acting, login);
    begin
        if not unmarked then
            perform set_config('role', acting, true);
            perform rowcast.retention_mark(true);
        end if;
    exception when others then
        perform pg_advisory_unlock(key);
        raise;
    end;
    perform set_config('role', login, true);
    select array_agg(r.id order by r.schema_name, r.table_name, r.pattern nulls last) into rules from rowcast.retention r
    where r.enabled and (only_schema is null or r.schema_name = only_schema) and (only_table is null or r.table_name = only_table);
    foreach current_rule in array coalesce(rules, '{}') loop
        select * into rule from rowcast.retention r where r.id = current_rule;
        continue when not found;
        limit_at := clock_timestamp() - rule.keep;
        insert into rowcast.retention_runs (rule, what, cutoff, marked)
        values (rule.id, format('%I.%I', rule.schema_name, rule.table_name) || coalesce(' ' || rule.pattern, ''), limit_at, not unmarked)
        returning id into run;
        -- A run that was only out of time a moment ago has looked at what is older.
        select r.reached into since from (
            select * from rowcast.retention_runs o where o.rule = rule.id and o.id < run order by o.id desc limit 1) r
        where not r.finished and r.error is null and r.ended_at > clock_timestamp() - interval '1 minute';
        commit;
        perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        done := false;
        loop
            perform set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '2s', true);
            started := clock_timestamp();
            problem := null;
            begin
                part := null;
                -- Only the owner may drop, so not as the acting role.
                if rule.drop_partitions and since is null then
                    select p.dropped, p.archived into part, moved from rowcast.retention_partition(rule.id) p;
                end if;
                if part is null then
                    perform set_config('role', acting, true);
                    select b.removed, b.archived, b.reached into removed, moved, reached from rowcast.retention_batch(rule.id, limit_at, since, rule.batch_rows) b;
                end if;
            exception when others then
                problem := sqlerrm || ' (' || sqlstate || ')';
            end;
            perform set_config('role', login, true);
            if problem is not null then
                errors := coalesce(errors || '; ', '') || format('%I.%I: %s', rule.schema_name, rule.table_name, problem);
                update rowcast.retention_runs r set error = problem, ended_at = clock_timestamp() where r.id = run;
                done := true;
            elsif part is not null then
                partitions := partitions + 1;
                archived := archived + moved;
                update rowcast.retention_runs r set partitions = r.partitions + 1, archived = r.archived + moved,
                    waited = r.waited + (clock_timestamp() - started) where r.id = run;
            else
                deleted := deleted + removed;
                archived := archived + moved;
                since := coalesce(reached, since, '-infinity');
                done := removed < rule.batch_rows;
                update rowcast.retention_runs r set deleted = r.deleted + removed, archived = r.archived + moved,
                    batches = r.batches + 1, reached = since, waited = r.waited + (clock_timestamp() - started), finished = done,
                    ended_at = case when done then clock_timestamp() end where r.id = run;
            end if;
            commit;
            perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
            exit when done;
            if lasted is not null and clock_timestamp() - began > lasted then
                more := true;
                update rowcast.retention_runs r set ended_at = clock_timestamp() where r.id = run;
                exit;
            end if;
            perform pg_catalog.pg_sleep(extract(epoch from rule.pause));
        end loop;
        exit when more;
    end loop;
    delete from rowcast.retention_runs r where r.id <= (select max(id) from rowcast.retention_runs) - 1000;
    if not unmarked then
        perform set_config('role', acting, true);
        perform rowcast.retention_mark(false);
        perform set_config('role', login, true);
    end if;
    perform pg_advisory_unlock(key);
    commit;
end
$$;
revoke all on procedure rowcast.run_retention from public;

do $$
begin
    if not exists (select from pg_catalog.pg_replication_origin where roname = 'rowcast_retention') then
        begin
            perform pg_catalog.pg_replication_origin_create('rowcast_retention');
            perform rowcast.note(6, 'origin', 'rowcast_retention');
        exception
            when insufficient_privilege then
                raise notice 'the replication origin rowcast_retention has to be made by a superuser: sql/roles.sql does it';
            when unique_violation then
                null; -- Another database of this cluster made it meanwhile.
        end;
    end if;
end
$$;
