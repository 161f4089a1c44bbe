-- The role `rowcast_filter`: as it, Postgres judges the subscription filters that the relay can't judge itself. It owns
-- nothing and is granted nothing, since a pattern or a value in a filter comes from a client. Made where absent, and granted
-- to the login that runs this, so that the relay may SET ROLE to it.
--
-- Who may run it: a superuser or a role with CREATEROLE; if the role is there, a role that may grant it.
-- Locks:          none.
-- Undo:           0005_filter_role.down.sql. Roles belong to the whole cluster: one that is used in another database stays.

do $$
declare
    -- WITH INHERIT FALSE: the relay acts as this role on purpose or not at all.
    modern constant boolean := current_setting('server_version_num')::integer >= 160000;
    login  constant name := session_user;
begin
    if not exists (select from pg_catalog.pg_roles where rolname = 'rowcast_filter') then
        begin
            create role rowcast_filter nologin noinherit;
            perform rowcast.note(5, 'role', 'rowcast_filter');
        exception
            when duplicate_object or unique_violation then
                null; -- Another database of this cluster made it meanwhile.
            when insufficient_privilege then
                raise insufficient_privilege using
                    message = format('%I may not create the role rowcast_filter', login),
                    hint = format('As a superuser: create role rowcast_filter nologin noinherit; grant rowcast_filter to %I;', login);
        end;
    end if;
    if not pg_catalog.pg_has_role(login, 'rowcast_filter', case when modern then 'SET' else 'MEMBER' end) then
        begin
            execute format(case when modern then 'grant rowcast_filter to %I with inherit false, set true'
                                else 'grant rowcast_filter to %I' end, login);
            perform rowcast.note(5, 'membership', 'rowcast_filter', login);
        exception when insufficient_privilege then
            raise insufficient_privilege using
                message = format('%I may not grant itself the role rowcast_filter', login),
                hint = format('As a superuser: grant rowcast_filter to %I;', login);
        end;
    end if;
end
$$;
