-- The roles that tokens name: `anon`, `authenticated`, and `service_role`, which bypasses row-level security. Each only
-- where absent, and each granted to the login that runs this, so that the relay may SET ROLE to it.
--
-- Who may run it: a superuser if a role is absent (BYPASSRLS can't be given by others before PostgreSQL 16), else a role
--                 that may grant the three.
-- Locks:          none.
-- Undo:           0002_roles.down.sql. Roles belong to the whole cluster: one that is used in another database stays.

do $$
declare
    wanted record;
    -- WITH INHERIT FALSE: the relay acts as these roles on purpose or not at all.
    modern constant boolean := current_setting('server_version_num')::integer >= 160000;
    login  constant name := session_user;
begin
    for wanted in
        select * from (values ('anon', 'nologin noinherit'),
                              ('authenticated', 'nologin noinherit'),
                              ('service_role', 'nologin noinherit bypassrls')) as roles (name, attributes)
    loop
        if not exists (select from pg_catalog.pg_roles where rolname = wanted.name) then
            begin
                execute format('create role %I %s', wanted.name, wanted.attributes);
                perform rowcast.note(2, 'role', wanted.name);
            exception
                when duplicate_object or unique_violation then
                    null; -- Another database of this cluster made it meanwhile.
                when insufficient_privilege then
                    raise insufficient_privilege using
                        message = format('%I may not create the role %s', login, wanted.name),
                        hint = format('As a superuser: create role %I %s; grant %I to %I;',
                                      wanted.name, wanted.attributes, wanted.name, login);
            end;
        end if;
        if not pg_catalog.pg_has_role(login, wanted.name, case when modern then 'SET' else 'MEMBER' end) then
            begin
                execute format(case when modern then 'grant %I to %I with inherit false, set true' else 'grant %I to %I' end,
                               wanted.name, login);
                perform rowcast.note(2, 'membership', wanted.name, login);
            exception when insufficient_privilege then
                raise insufficient_privilege using
                    message = format('%I may not grant itself the role %s', login, wanted.name),
                    hint = format('As a superuser: grant %I to %I;', wanted.name, login);
            end;
        end if;
    end loop;
end
$$;
