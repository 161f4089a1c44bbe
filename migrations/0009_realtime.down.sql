-- Removes what 0009_realtime.up.sql made, and the stored messages with it. What others use stays: the table while it has
-- policies, triggers, rules, or a place in a publication that is not Rowcast's; a function while a function or a policy calls
-- it; the role while it owns something or has other rights.
--
-- Who may run it: the role that ran the up script, or a superuser.
-- Locks:          ACCESS EXCLUSIVE on realtime.messages and its partitions.
-- Undo:           0009_realtime.up.sql; what the table held is gone.

do $$
declare
    made   rowcast.installed;
    used   text;
    reason text;
    more   text;
begin
    update rowcast.installed set kept_because = null where migration = 9;
    for made in select * from rowcast.installed where migration = 9 order by id desc loop
        begin
            case made.kind
                when 'function' then
                    if to_regprocedure(made.identity) is not null then
                        -- Postgres does not know whom the body of a function calls, and a trigger that lost what it calls
                        -- would fail each write.
                        select string_agg(p.oid::regprocedure::text, ', ' order by p.oid) into used
                        from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                        where n.nspname not in ('realtime', 'rowcast', 'pg_catalog', 'information_schema')
                          and p.prosrc ~* ('\mrealtime"?\s*\.\s*"?' || substring(made.identity from '\.(\w+)\(') || '"?\s*\(');
                        if used is not null then
                            raise dependent_objects_still_exist using
                                message = format('function %s is still called', made.identity), detail = used;
                        end if;
                        execute format('drop function %s', to_regprocedure(made.identity));
                    end if;
                when 'table' then
                    select string_agg(what, ', ' order by what) into used from (
                        select 'policy ' || quote_ident(polname) from pg_policy where polrelid = to_regclass(made.identity)
                        union all
                        select 'trigger ' || quote_ident(tgname) from pg_trigger
                        where tgrelid = to_regclass(made.identity) and not tgisinternal
                        union all
                        select 'rule ' || quote_ident(rulename) from pg_rewrite where ev_class = to_regclass(made.identity)
                        union all
                        select 'publication ' || quote_ident(p.pubname) from pg_publication_rel r
                        join pg_publication p on p.oid = r.prpubid
                        where r.prrelid = to_regclass(made.identity) and p.pubname <> 'rowcast_messages') as users (what);
                    if used is not null then
                        raise dependent_objects_still_exist using
                            message = format('table %s is still used', made.identity), detail = used;
                    end if;
                    execute format('drop table if exists %s', made.identity);
                when 'schema' then
                    execute format('drop schema if exists %I', made.identity);
                when 'usage', 'create' then
                    -- Whoever still has something in the schema needs the way into it.
                    if exists (select from pg_roles where rolname = made.detail)
                        and to_regnamespace(quote_ident(made.identity)) is not null then
                        if exists (select from pg_class where relnamespace = to_regnamespace(quote_ident(made.identity))
                                   union all
                                   select from pg_proc where pronamespace = to_regnamespace(quote_ident(made.identity))) then
                            raise dependent_objects_still_exist using
                                message = format('schema %I still holds objects', made.identity);
                        end if;
                        execute format('revoke %s on schema %I from %I', made.kind, made.identity, made.detail);
                    end if;
                when 'membership' then
                    if exists (select from pg_roles where rolname = made.identity)
                        and exists (select from pg_roles where rolname = made.detail) then
                        if exists (select from pg_class where relowner = made.identity::regrole) then
                            raise dependent_objects_still_exist using
                                message = format('role %I still owns tables', made.identity);
                        end if;
                        execute format('revoke %I from %I', made.identity, made.detail);
                    end if;
                when 'role' then
                    execute format('drop role if exists %I', made.identity);
                when 'published' then
                    if exists (select from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
                               where p.pubname = made.detail and r.prrelid = to_regclass(made.identity)) then
                        execute format('alter publication %I drop table %s', made.detail, made.identity);
                    end if;
            end case;
            delete from rowcast.installed where id = made.id;
        exception when dependent_objects_still_exist or insufficient_privilege or object_in_use then
            get stacked diagnostics reason = message_text, more = pg_exception_detail;
            update rowcast.installed set kept_because = reason || coalesce(nullif(': ' || more, ': '), '')
                where id = made.id;
        end;
    end loop;
end
$$;
