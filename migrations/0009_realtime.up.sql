-- Schema `realtime`, by which the database itself broadcasts: the table `realtime.messages`, whose policies also say who may
-- read and write a private channel, and realtime.send(), send_binary(), broadcast_changes() and topic(). Names, parameters and
-- behaviour are those of Supabase, so that triggers and policies mean the same in both; each only where absent. Where there is
-- a table `realtime.messages` that Rowcast did not make, the schema is a Supabase's, and nothing in it is touched.
--
-- Who may run it: a superuser; or a role with CREATE on the database that has CREATEROLE, or is a member of
--                 `supabase_realtime_admin` already.
-- Locks:          none on existing tables; it only creates.
-- Undo:           0009_realtime.down.sql; stored messages are gone.
--
-- The owner is the role `supabase_realtime_admin`, which nobody can log in as. Who is to add policies to realtime.messages
-- need not be a superuser, only a member of it: grant supabase_realtime_admin to admin;

do $$
declare
    -- From PostgreSQL 16 on, what a member may do is said for each membership.
    modern  constant boolean := current_setting('server_version_num')::integer >= 160000;
    login   constant name := session_user;
    keeper  constant name := 'supabase_realtime_admin';
    users   constant name[] := array['anon', 'authenticated', 'service_role'];
    ours    boolean;
    today   constant date := (now() at time zone 'utc')::date;
    day     date;
    leaf    text;
    grantee name;
    made    text;
begin
    -- One at a time with the relay's own care for the partitions.
    perform pg_catalog.pg_advisory_xact_lock(8245085352413884275);
    ours := exists (select from rowcast.installed where kind = 'table' and identity = 'realtime.messages');
    if to_regclass('realtime.messages') is not null and not ours then
        raise notice 'there is a table realtime.messages that Rowcast did not make; schema realtime is left as it is';
        return;
    end if;

    if not exists (select from pg_catalog.pg_roles where rolname = keeper) then
        begin
            execute format('create role %I nologin noinherit', keeper);
            perform rowcast.note(9, 'role', keeper);
        exception
            when duplicate_object or unique_violation then
                null; -- Another database of this cluster made it meanwhile.
            when insufficient_privilege then
                raise insufficient_privilege using
                    message = format('%I may not create the role %s', login, keeper),
                    hint = format('As a superuser: create role %I nologin noinherit; grant %I to %I;', keeper, keeper, login);
        end;
    end if;
    -- The relay's own rights on its table come from this membership.
    if not (pg_catalog.pg_has_role(login, keeper, case when modern then 'SET' else 'MEMBER' end)
            and (not modern or pg_catalog.pg_has_role(login, keeper, 'USAGE'))) then
        begin
            execute format(case when modern then 'grant %I to %I with inherit true, set true' else 'grant %I to %I' end,
                           keeper, login);
            perform rowcast.note(9, 'membership', keeper, login);
        exception when insufficient_privilege then
            raise insufficient_privilege using
                message = format('%I may not grant itself the role %s', login, keeper),
                hint = format('As a superuser: grant %I to %I;', keeper, login);
        end;
    end if;

    if to_regnamespace('realtime') is null then
        create schema realtime;
        perform rowcast.note(9, 'schema', 'realtime');
    end if;
    foreach grantee in array users || keeper loop
        if not has_schema_privilege(grantee, 'realtime', 'USAGE') then
            execute format('grant usage on schema realtime to %I', grantee);
            -- Without the right to grant, Postgres only warns.
            if not has_schema_privilege(grantee, 'realtime', 'USAGE') then
                raise insufficient_privilege using
                    message = format('%I may not grant usage on schema realtime', login),
                    hint = format('As the owner of the schema: grant usage on schema realtime to %I;', grantee);
            end if;
            perform rowcast.note(9, 'usage', 'realtime', grantee);
        end if;
    end loop;
    if not has_schema_privilege(keeper, 'realtime', 'CREATE') then
        execute format('grant create on schema realtime to %I', keeper);
        if not has_schema_privilege(keeper, 'realtime', 'CREATE') then
            raise insufficient_privilege using
                message = format('%I may not grant create on schema realtime', login),
                hint = format('As the owner of the schema: grant create on schema realtime to %I;', keeper);
        end if;
        perform rowcast.note(9, 'create', 'realtime', keeper);
    end if;

    if to_regclass('realtime.messages') is null then
        -- The times have no zone and are UTC, whatever zone the writer's session has: days and replays depend on it.
        create table realtime.messages (
            topic          text      not null,
            extension      text      not null,
            payload        jsonb,
            event          text,
            private        boolean   default false,
            updated_at     timestamp not null default (now() at time zone 'utc'),
            inserted_at    timestamp not null default (now() at time zone 'utc'),
            id             uuid      not null default gen_random_uuid(),
            binary_payload bytea,
            primary key (id, inserted_at),
            constraint messages_payload_exclusive check (payload is null or binary_payload is null)
        ) partition by range (inserted_at);
        perform rowcast.note(9, 'table', 'realtime.messages');
        create index messages_inserted_at_topic_index on realtime.messages (inserted_at desc, topic)
            where extension = 'broadcast' and private is true;
        -- What is in no day's partition is kept here: an insert is never refused for want of one.
        create table realtime.messages_default partition of realtime.messages default;
        for day in select (today + ahead)::date from generate_series(-1, 3) as ahead loop
            execute format('create table realtime.%I partition of realtime.messages for values from (%L) to (%L)',
                'messages_' || to_char(day, 'YYYY_MM_DD'), to_char(day, 'YYYY-MM-DD'), to_char(day + 1, 'YYYY-MM-DD'));
        end loop;
        -- Rows are reached by the table alone. A partition has its own rights and policies; default privileges may have
        -- given some.
        for leaf in
            select format('realtime.%I', c.relname) from pg_catalog.pg_class c
            where c.oid = 'realtime.messages'::regclass
               or c.oid in (select inhrelid from pg_catalog.pg_inherits where inhparent = 'realtime.messages'::regclass)
        loop
            execute format('alter table %s enable row level security', leaf);
            execute format('revoke all on %s from public, anon, authenticated, service_role', leaf);
            if leaf <> 'realtime.messages' then
                execute format('alter table %s owner to %I', leaf, keeper);
            end if;
        end loop;
        grant select, insert, update on realtime.messages to anon, authenticated, service_role;
        -- The publication of the relay's stream, if it is there already; if not, the relay adds the table when it makes it.
        if exists (select from pg_catalog.pg_publication where pubname = 'rowcast_messages') then
            begin
                alter publication rowcast_messages add table realtime.messages;
                perform rowcast.note(9, 'published', 'realtime.messages', 'rowcast_messages');
            exception
                when insufficient_privilege then
                    raise notice 'the owner of publication rowcast_messages has to add realtime.messages to it (%)', sqlerrm;
                when duplicate_object then
                    null;
            end;
        end if;
        execute format('alter table realtime.messages owner to %I', keeper);
    end if;

    if to_regprocedure('realtime.topic()') is null then
        create function realtime.topic() returns text language sql stable as $body$
select nullif(current_setting('realtime.topic', true), '')::text;
$body$;
        made := 'realtime.topic()';
        perform rowcast.note(9, 'function', made);
        execute format('grant execute on function %s to public, anon, authenticated, service_role', made);
        execute format('alter function %s owner to %I', made, keeper);
    end if;

    -- The functions below run with the rights of their caller, as Supabase's do: row-level security on realtime.messages says
    -- who may send what. They set no search_path, which would change what functions in policies see; every name is qualified.

    if to_regprocedure('realtime.send(jsonb, text, text, boolean)') is null then
        create function realtime.send(payload jsonb, event text, topic text, private boolean default true)
            returns void language plpgsql as $body$
declare
    generated_id  pg_catalog.uuid;
    final_payload pg_catalog.jsonb;
    sent_at       pg_catalog.timestamp;
begin
    begin
        generated_id := pg_catalog.gen_random_uuid();
        sent_at := pg_catalog.timezone('UTC', pg_catalog.now());
        if payload operator(pg_catalog.?) 'id' then
            final_payload := payload;
        else
            final_payload := pg_catalog.jsonb_set(payload, '{id}', pg_catalog.to_jsonb(generated_id));
        end if;
        perform pg_catalog.set_config('realtime.topic', topic, true);
        insert into realtime.messages (id, payload, event, topic, private, extension, inserted_at, updated_at)
        values (generated_id, final_payload, event, topic, private, 'broadcast', sent_at, sent_at);
    exception when others then
        raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
    end;
end
$body$;
        made := 'realtime.send(jsonb,text,text,boolean)';
        perform rowcast.note(9, 'function', made);
        execute format('grant execute on function %s to public, anon, authenticated, service_role', made);
        execute format('alter function %s owner to %I', made, keeper);
    end if;

    if to_regprocedure('realtime.send_binary(bytea, text, text, boolean)') is null then
        create function realtime.send_binary(payload bytea, event text, topic text, private boolean default true)
            returns void language plpgsql as $body$
declare
    generated_id pg_catalog.uuid;
    sent_at      pg_catalog.timestamp;
begin
    begin
        generated_id := pg_catalog.gen_random_uuid();
        sent_at := pg_catalog.timezone('UTC', pg_catalog.now());
        perform pg_catalog.set_config('realtime.topic', topic, true);
        insert into realtime.messages (id, binary_payload, event, topic, private, extension, inserted_at, updated_at)
        values (generated_id, payload, event, topic, private, 'broadcast', sent_at, sent_at);
    exception when others then
        raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
    end;
end
$body$;
        made := 'realtime.send_binary(bytea,text,text,boolean)';
        perform rowcast.note(9, 'function', made);
        execute format('grant execute on function %s to public, anon, authenticated, service_role', made);
        execute format('alter function %s owner to %I', made, keeper);
    end if;

    if to_regprocedure('realtime.broadcast_changes(text, text, text, text, text, record, record, text)') is null then
        create function realtime.broadcast_changes(topic_name text, event_name text, operation text, table_name text,
            table_schema text, new record, old record, level text default 'ROW')
            returns void language plpgsql as $body$
begin
    if level operator(pg_catalog.=) 'STATEMENT' then
        raise exception 'function can only be triggered for each row, not for each statement';
    end if;
    if operation operator(pg_catalog.=) any (array['INSERT', 'UPDATE', 'DELETE']) then
        perform realtime.send(pg_catalog.jsonb_build_object('old_record', old, 'record', new, 'operation', operation,
            'table', table_name, 'schema', table_schema), event_name, topic_name);
    else
        raise exception 'Unexpected operation type: %', operation;
    end if;
exception when others then
    raise exception 'Failed to process the row: %', sqlerrm;
end
$body$;
        made := 'realtime.broadcast_changes(text,text,text,text,text,record,record,text)';
        perform rowcast.note(9, 'function', made);
        execute format('grant execute on function %s to public, anon, authenticated, service_role', made);
        execute format('alter function %s owner to %I', made, keeper);
    end if;
end
$$;
