-- Schema `auth` with the functions that policies call: auth.uid(), auth.role(), auth.jwt(). The bodies are those of
-- Supabase, so that a policy means the same in both; each only where absent.
--
-- Who may run it: a role with CREATE on the database, or on schema `auth` if that is there without the functions.
-- Locks:          none.
-- Undo:           0003_auth.down.sql.

do $$
declare
    grantee name;
begin
    if to_regnamespace('auth') is null then
        create schema auth;
        perform rowcast.note(3, 'schema', 'auth');
    end if;

    if to_regprocedure('auth.uid()') is null then
        create function auth.uid() returns uuid language sql stable as $body$
  select
  coalesce(
    nullif(current_setting('request.jwt.claim.sub', true), ''),
    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
  )::uuid
$body$;
        perform rowcast.note(3, 'function', 'auth.uid()');
    end if;

    if to_regprocedure('auth.role()') is null then
        create function auth.role() returns text language sql stable as $body$
  select
  coalesce(
    nullif(current_setting('request.jwt.claim.role', true), ''),
    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role')
  )::text
$body$;
        perform rowcast.note(3, 'function', 'auth.role()');
    end if;

    if to_regprocedure('auth.jwt()') is null then
        create function auth.jwt() returns jsonb language sql stable as $body$
  select
    coalesce(
        nullif(current_setting('request.jwt.claim', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')
    )::jsonb
$body$;
        perform rowcast.note(3, 'function', 'auth.jwt()');
    end if;

    foreach grantee in array array['anon', 'authenticated', 'service_role']::name[] loop
        if not has_schema_privilege(grantee, 'auth', 'USAGE') then
            execute format('grant usage on schema auth to %I', grantee);
            -- Without the right to grant, Postgres only warns.
            if not has_schema_privilege(grantee, 'auth', 'USAGE') then
                raise insufficient_privilege using
                    message = format('%I may not grant usage on schema auth', session_user),
                    hint = format('As the owner of the schema: grant usage on schema auth to %I;', grantee);
            end if;
            perform rowcast.note(3, 'usage', 'auth', grantee);
        end if;
    end loop;
end
$$;
