-- Event triggers that say in the stream, at its place in the order of commits, that rules may have changed: policies, grants,
-- functions, schemas, publications, tables. The relay then reads the rules before it judges the next row. Without them it
-- still does so for what Postgres itself tells (a table's own policies and grants), and by polling for the rest.
--
-- Who may run it: a superuser, or a role that its provider lets make event triggers. For anybody else this step is left out,
--                 and `rowcast migrate up` tries it again each time.
-- Locks:          none on tables.
-- Undo:           0007_rule_hints.down.sql.
--
-- The function runs with its owner's rights so that it works for everybody whose DDL it hears of, with a fixed search_path; it
-- can't be called but by an event trigger. It never makes a user's command fail: what goes wrong in it is passed over.
-- ENABLE ALWAYS: rules also change while session_replication_role = replica.

do $$
declare
    wanted record;
begin
    -- Its owner could change what it does with the rights of everybody who runs DDL.
    if exists (select from pg_catalog.pg_proc where oid = to_regprocedure('rowcast.hint_rules()')
               and proowner <> (select oid from pg_catalog.pg_roles where rolname = current_user)) then
        raise notice 'there is a function rowcast.hint_rules() of another owner, so no event triggers are made';
        return;
    end if;
    if to_regprocedure('rowcast.hint_rules()') is null then
        create function rowcast.hint_rules()
            returns event_trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $hint$
        begin
            -- Temporary tables are nobody else's business, and applications make many.
            if tg_event = 'sql_drop' then
                if not exists (select from pg_event_trigger_dropped_objects() where not is_temporary) then
                    return;
                end if;
            elsif exists (select from pg_event_trigger_ddl_commands() having bool_and(schema_name = 'pg_temp')) then
                return;
            end if;
            perform pg_logical_emit_message(true, 'rowcast.rules', '');
        exception when others then
            null;
        end
        $hint$;
        revoke all on function rowcast.hint_rules() from public;
        perform rowcast.note(7, 'function', 'rowcast.hint_rules()');
    end if;
    for wanted in
        select * from (values
            ('rowcast_rules_changed', 'ddl_command_end', array[
                'CREATE POLICY', 'ALTER POLICY', 'GRANT', 'REVOKE', 'ALTER TABLE', 'DROP OWNED', 'CREATE FUNCTION',
                'ALTER FUNCTION', 'ALTER ROUTINE', 'ALTER EXTENSION', 'ALTER TYPE', 'CREATE VIEW', 'ALTER VIEW',
                'CREATE SCHEMA', 'ALTER SCHEMA', 'CREATE PUBLICATION', 'ALTER PUBLICATION']),
            ('rowcast_rules_dropped', 'sql_drop', array[
                'DROP POLICY', 'DROP TABLE', 'DROP FUNCTION', 'DROP ROUTINE', 'DROP EXTENSION', 'DROP TYPE', 'DROP VIEW',
                'DROP SCHEMA', 'DROP PUBLICATION', 'DROP OWNED'])) as triggers (name, event, tags)
    loop
        if exists (select from pg_catalog.pg_event_trigger where evtname = wanted.name) then
            raise notice 'there is an event trigger % already', wanted.name;
        else
            execute format('create event trigger %I on %s when tag in (%s) execute function rowcast.hint_rules()',
                wanted.name, wanted.event,
                (select string_agg(format('%L', tag), ', ') from unnest(wanted.tags) as tag));
            execute format('alter event trigger %I enable always', wanted.name);
            perform rowcast.note(7, 'event trigger', wanted.name);
        end if;
    end loop;
exception
    when insufficient_privilege then
        raise notice 'the event triggers that tell of changed rules have to be made by a superuser (%)', sqlerrm;
end
$$;
