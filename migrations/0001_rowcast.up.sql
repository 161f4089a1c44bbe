-- What Rowcast itself needs: schema `rowcast` and the publication `rowcast_facts`.
--
-- Who may run it: a role with CREATE on the database.
-- Locks:          none on existing tables; it only creates.
-- Undo:           0001_rowcast.down.sql.

create schema rowcast;

-- Which migrations are in this database. `checksum` is the SHA-256 of the up script that ran.
create table rowcast.migrations (
    version    integer     primary key,
    name       text        not null,
    applied_at timestamptz not null default now(),
    checksum   text        not null
);

-- What the migrations made, as opposed to found: `down` removes this and nothing else. `detail` is the member of a
-- membership and the grantee of a grant. `kept_because` is set when `down` had to leave it.
create table rowcast.installed (
    id           bigint      generated always as identity primary key,
    kind         text        not null,
    identity     text        not null,
    detail       text        not null default '',
    migration    integer     not null,
    made_at      timestamptz not null default now(),
    kept_because text,
    unique (kind, identity, detail)
);

-- One row for each slot of ours in this database. `incarnation` is made anew with the slot; `token` changes while a relay
-- runs and is seen again in the stream, so that a restored copy of the database is told from the original.
create table rowcast.lineage (
    slot              text        primary key,
    system_identifier text        not null,
    incarnation       text        not null,
    token             text        not null,
    changed_at        timestamptz not null default now()
);

-- Notes that a migration made something.
create function rowcast.note(in_migration integer, in_kind text, in_identity text, in_detail text default '')
    returns void language sql set search_path = pg_catalog, pg_temp as $$
    insert into rowcast.installed (kind, identity, detail, migration)
    values (in_kind, in_identity, in_detail, in_migration)
    on conflict (kind, identity, detail) do nothing
$$;

-- Removes what a migration made, last made first. What others depend on, or we no longer may drop, stays, with the reason
-- in `kept_because`: never CASCADE into somebody's objects.
create function rowcast.retire(in_migration integer)
    returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    made    rowcast.installed;
    reason  text;
    more    text;
    members text;
begin
    update rowcast.installed set kept_because = null where migration = in_migration;
    for made in select * from rowcast.installed where migration = in_migration order by id desc loop
        begin
            case made.kind
                when 'function' then
                    if to_regprocedure(made.identity) is not null then
                        execute format('drop function %s', to_regprocedure(made.identity));
                    end if;
                when 'schema' then
                    execute format('drop schema if exists %I', made.identity);
                when 'publication' then
                    select string_agg(format('%I.%I', schemaname, tablename), ', ' order by schemaname, tablename)
                        into members from pg_publication_tables where pubname = made.identity;
                    if members is not null then
                        raise dependent_objects_still_exist using
                            message = format('publication %s still publishes tables', made.identity), detail = members;
                    end if;
                    execute format('drop publication if exists %I', made.identity);
                when 'usage' then
                    if exists (select from pg_roles where rolname = made.detail)
                        and to_regnamespace(quote_ident(made.identity)) is not null then
                        execute format('revoke usage on schema %I from %I', made.identity, made.detail);
                    end if;
                when 'membership' then
                    if exists (select from pg_roles where rolname = made.identity)
                        and exists (select from pg_roles where rolname = made.detail) then
                        execute format('revoke %I from %I', made.identity, made.detail);
                    end if;
                when 'role' then
                    execute format('drop role if exists %I', made.identity);
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

-- Tables enter it when policies look into them. It is made before any slot: a slot that meets a publication younger than
-- itself can't be read any more.
do $$
begin
    if not exists (select from pg_catalog.pg_publication where pubname = 'rowcast_facts') then
        create publication rowcast_facts;
        perform rowcast.note(1, 'publication', 'rowcast_facts');
    end if;
end
$$;
