//! The texts of the catalog queries. All run with an empty search_path; `pg_catalog` is then the only schema searched.

/// One row: snapshot, server version, encoding, whether a claims setting has a value of its own, whether a backslash in a quoted
/// text is printed as it is.
pub(super) const SESSION: &str = "select pg_current_snapshot()::text, current_setting('server_version_num')::int4, \
    current_setting('server_encoding'), \
    coalesce(nullif(current_setting('request.jwt.claim', true), ''), \
             nullif(current_setting('request.jwt.claim.email', true), '')) is not null, \
    current_setting('standard_conforming_strings')::boolean";

/// One text that differs if anything that a reading looks at differs: the tables `$1` with their columns, keys, policies and
/// places in trees, the functions `$2`, the partitions `$3`, and all publications, schemas, roles, memberships and tables'
/// oids. Looks at rows only, no function of which the server answers by its newest catalog, so it is true to the snapshot
/// that it runs in.
pub(super) const FINGERPRINT: &str = "select concat_ws(' ', \
    (select md5(string_agg(concat(oid, ':', xmin), ',' order by oid)) from pg_class where oid = any($1::oid[]) or oid = any($3::oid[])), \
    (select md5(string_agg(oid::text, ',' order by oid)) from pg_class where relkind in ('r', 'p') and relpersistence = 'p'), \
    (select md5(string_agg(concat(attrelid, '.', attnum, ':', xmin), ',' order by attrelid, attnum)) from pg_attribute \
       where attrelid = any($1::oid[]) and attnum > 0), \
    (select md5(string_agg(concat(indexrelid, ':', xmin), ',' order by indexrelid)) from pg_index \
       where indrelid = any($1::oid[])), \
    (select md5(string_agg(concat(oid, ':', xmin), ',' order by oid)) from pg_policy where polrelid = any($1::oid[])), \
    (select md5(string_agg(concat(inhrelid, '.', inhparent, ':', xmin), ',' order by inhrelid, inhparent)) from pg_inherits), \
    (select md5(string_agg(concat(oid, ':', xmin), ',' order by oid)) from pg_proc where oid = any($2::oid[])), \
    (select md5(string_agg(concat(oid, ':', xmin), ',' order by oid)) from pg_publication), \
    (select md5(string_agg(concat(oid, ':', xmin), ',' order by oid)) from pg_publication_rel), \
    (select md5(string_agg(concat(oid, ':', xmin), ',' order by oid)) from pg_namespace), \
    (select md5(string_agg(concat_ws('.', oid, rolname, rolsuper, rolbypassrls, rolinherit), ',' order by oid)) from pg_roles), \
    (select md5(string_agg(concat(roleid, '.', member, ':', xmin), ',' order by roleid, member)) from pg_auth_members))";

/// What Postgres 15 adds to it.
pub(super) const FINGERPRINT_15: &str =
    "select md5(string_agg(concat(oid, ':', xmin), ',' order by oid)) from pg_publication_namespace";

/// Roles among `$1`, and whether we may become them (`MEMBER` before 16, which has a right of its own for it).
pub(super) const ROLES: &str = "select oid, rolname::text, rolsuper, rolbypassrls, \
    case when current_setting('server_version_num')::int4 >= 160000 \
         then pg_has_role(current_user, oid, 'SET') else pg_has_role(current_user, oid, 'MEMBER') end \
    from pg_roles where rolname = any($1::text[])";

/// One row per (publication of `$1`, table in effect). The server lists the root or the leaves, as it publishes them. Last, the
/// row filter, the columns it reads, and whether one of the publications `$2` sends what it holds back.
pub(super) const PUBLISHED: &str = "select c.oid, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot, \
    t.attnames::text[], t.rowfilter, \
    array(select d.refobjsubid::int2 from pg_publication_rel r join pg_depend d on d.classid = 'pg_publication_rel'::regclass \
          and d.objid = r.oid and d.refclassid = 'pg_class'::regclass and d.refobjid = r.prrelid and d.refobjsubid <> 0 \
          where r.prpubid = p.oid and r.prrelid = c.oid), \
    exists(select from pg_publication_tables o where o.pubname = any($2::text[]) and o.schemaname = t.schemaname \
           and o.tablename = t.tablename and o.rowfilter is distinct from t.rowfilter) \
    from pg_publication p join pg_publication_tables t on t.pubname = p.pubname \
    join pg_namespace n on n.nspname = t.schemaname \
    join pg_class c on c.relnamespace = n.oid and c.relname = t.tablename \
    where p.pubname = any($1::text[])";

/// The same for Postgres 14, which has neither row filters nor column lists.
pub(super) const PUBLISHED_14: &str = "select c.oid, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot, \
    null::text[], null::text, '{}'::int2[], false \
    from pg_publication p join pg_publication_tables t on t.pubname = p.pubname \
    join pg_namespace n on n.nspname = t.schemaname \
    join pg_class c on c.relnamespace = n.oid and c.relname = t.tablename \
    where p.pubname = any($1::text[]) and $2::text[] is not null";

/// The tables `$1` and the partitioned tables above them.
pub(super) const ANCESTORS: &str = "select unnest($1::oid[]) union \
    select a.relid::oid from unnest($1::oid[]) as l(oid) cross join lateral pg_partition_ancestors(l.oid) as a(relid)";

/// The tables `$1`. Last, whether our login may read every row of it with `row_security = off`, and whether it may add it to
/// the publication `$2`. The owner may have revoked his own SELECT, so that is looked at for everybody.
pub(super) const TABLES: &str = "\
    select c.oid, n.nspname::text, c.relname::text, c.relreplident::text, c.relrowsecurity, c.relforcerowsecurity, \
    pg_get_userbyid(c.relowner)::text, c.relkind = 'p', \
    array(select a.relid::oid from pg_partition_ancestors(c.oid) with ordinality as a(relid, place) \
          where a.relid::oid <> c.oid order by a.place), \
    array(select att.attname::text from pg_index i \
          cross join lateral unnest(i.indkey::int2[]) with ordinality as k(attnum, place) \
          join pg_attribute att on att.attrelid = c.oid and att.attnum = k.attnum \
          where i.indrelid = c.oid and i.indisprimary and k.place <= i.indnkeyatts order by k.place), \
    array(select att.attname::text from pg_index i \
          cross join lateral unnest(i.indkey::int2[]) with ordinality as k(attnum, place) \
          join pg_attribute att on att.attrelid = c.oid and att.attnum = k.attnum \
          where i.indrelid = c.oid and i.indisreplident and k.place <= i.indnkeyatts order by k.place), \
    array(with recursive tree(oid) as (select c.oid where c.relkind = 'p' union \
            select i.inhrelid from tree join pg_inherits i on i.inhparent = tree.oid where not i.inhdetachpending) \
          select distinct leaf.relreplident::text from tree join pg_class leaf on leaf.oid = tree.oid where leaf.relkind <> 'p'), \
    coalesce(has_schema_privilege(c.relnamespace, 'USAGE') and (has_table_privilege(c.oid, 'SELECT') or not exists ( \
            select from pg_attribute att where att.attrelid = c.oid and att.attnum > 0 and not att.attisdropped \
            and not has_column_privilege(c.oid, att.attnum, 'SELECT'))) \
        and (not c.relrowsecurity or (pg_has_role(c.relowner, 'USAGE') and not c.relforcerowsecurity) \
            or (select r.rolsuper or r.rolbypassrls from pg_roles r where r.rolname = current_user)), false), \
    coalesce(pg_has_role(c.relowner, 'USAGE') and exists (select from pg_publication p where p.pubname = $2::text \
        and pg_has_role(p.pubowner, 'USAGE')), false) \
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = any($1::oid[])";

/// Columns of the tables `$1`. The database's default collation is bytewise if it is C or POSIX of the C library, or the
/// built-in provider's (Postgres 17), which all order by code point; the provider's column is not there before Postgres 15.
/// Last, what gives old rows other values without writing them: a fast default, and the labels of an enum.
pub(super) const COLUMNS: &str = "select a.attrelid, a.attnum, a.attname::text, a.atttypid, a.atttypmod, \
    coalesce(c.collisdeterministic, true), a.attgenerated::text <> '', a.atthasdef, a.attnotnull, \
    quote_ident(n.nspname) || '.' || quote_ident(c.collname), \
    coalesce(case c.collprovider when 'c' then c.collcollate::text in ('C', 'POSIX') when 'b' then true \
        when 'd' then (select case coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') \
            when 'c' then d.datcollate::text in ('C', 'POSIX') when 'b' then true end \
            from pg_database d where d.datname = current_database()) end, false), \
    case when a.atthasmissing then md5(a.attmissingval::text) end, \
    (select md5(string_agg(concat(e.oid, ':', e.enumlabel), ',' order by e.oid)) from pg_type t \
        join pg_enum e on e.enumtypid = any(array[t.oid, t.typelem, t.typbasetype]) where t.oid = a.atttypid) \
    from pg_attribute a left join pg_collation c on c.oid = a.attcollation left join pg_namespace n on n.oid = c.collnamespace \
    where a.attrelid = any($1::oid[]) and a.attnum > 0 and not a.attisdropped order by a.attrelid, a.attnum";

/// Policies of the tables `$1` that govern SELECT, with what their expressions depend on. Dependencies don't tell a look into
/// the policy's own table from a look at the row, but the text does: only there its name has its schema (or in a string, which
/// does no harm).
pub(super) const POLICIES: &str = "select p.polrelid, p.polname::text, p.polpermissive, p.polcmd::text, \
    array(select case when m = 0 then 'public' else pg_get_userbyid(m)::text end from unnest(p.polroles) as m), \
    p.polqual is not null, pg_get_expr(p.polqual, p.polrelid), \
    array(select distinct d.refobjsubid::int2 from pg_depend d where d.classid = 'pg_policy'::regclass and d.objid = p.oid \
          and d.refclassid = 'pg_class'::regclass and d.refobjid = p.polrelid and d.refobjsubid <> 0 order by 1), \
    array(select d.refobjid from pg_depend d where d.classid = 'pg_policy'::regclass and d.objid = p.oid \
          and d.refclassid = 'pg_proc'::regclass), \
    array(select d.refobjid from pg_depend d where d.classid = 'pg_policy'::regclass and d.objid = p.oid \
          and d.refclassid = 'pg_class'::regclass and d.refobjid <> p.polrelid), \
    coalesce(position(p.polrelid::regclass::text in pg_get_expr(p.polqual, p.polrelid)) > 0, false) \
    from pg_policy p where p.polrelid = any($1::oid[]) and p.polcmd in ('r', '*') order by p.polrelid, p.polname";

/// What each role of `$2` may do with each table of `$1`. Columns are null for all of them.
pub(super) const ACCESS: &str = "select c.oid, r.rolname::text, \
    coalesce(has_schema_privilege(r.oid, c.relnamespace, 'USAGE'), false), \
    coalesce(pg_has_role(r.oid, c.relowner, 'USAGE'), false), \
    case when has_table_privilege(r.oid, c.oid, 'SELECT') then null \
         else array(select a.attnum from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped \
            and has_any_column_privilege(r.oid, c.oid, 'SELECT') and has_column_privilege(r.oid, c.oid, a.attnum, 'SELECT')) end, \
    array(select p.polname::text from pg_policy p where p.polrelid = c.oid and p.polcmd in ('r', '*') and exists ( \
          select from unnest(p.polroles) as m where case when m = 0 then true else pg_has_role(r.oid, m, 'USAGE') end)) \
    from pg_class c cross join pg_roles r where c.oid = any($1::oid[]) and r.rolname = any($2::text[])";

/// What the policies of the tables `$1` and the functions `$2` refer to, and what that refers to, nearest first; views and
/// what they select from are left out. Function bodies that are text depend on nothing here. Of the table `$4` also what its
/// policies for INSERT refer to.
pub(super) const REFERENCES: &str = "with recursive reached(is_table, oid) as ( \
        select true, t.oid from unnest($1::oid[]) as t(oid) union select false, f.oid from unnest($2::oid[]) as f(oid) \
        union \
        select d.refclassid = 'pg_class'::regclass, d.refobjid from reached r cross join lateral ( \
            select d.refclassid, d.refobjid from pg_policy p \
                join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.oid \
                where r.is_table and p.polrelid = r.oid and (p.polcmd in ('r', '*') or (p.polcmd = 'a' and r.oid = $4)) \
            union all select d.refclassid, d.refobjid from pg_depend d \
                where not r.is_table and d.classid = 'pg_proc'::regclass and d.objid = r.oid) d \
        where d.refclassid = 'pg_proc'::regclass or (d.refclassid = 'pg_class'::regclass and exists ( \
            select from pg_class c where c.oid = d.refobjid and c.relkind in ('r', 'p') and c.relpersistence <> 't'))) \
    select is_table, oid from reached limit $3::int8";

/// The tables named `$1`.`$2` and the functions named `$3`.`$4`, whatever their arguments.
pub(super) const RESOLVE: &str = "select true, c.oid from unnest($1::text[], $2::text[]) as w(schema, name) \
        join pg_namespace n on n.nspname = w.schema join pg_class c on c.relnamespace = n.oid and c.relname = w.name \
        where c.relkind in ('r', 'p') and c.relpersistence <> 't' \
    union select false, p.oid from unnest($3::text[], $4::text[]) as w(schema, name) \
        join pg_namespace n on n.nspname = w.schema join pg_proc p on p.pronamespace = n.oid and p.proname = w.name \
        where n.nspname <> 'pg_catalog'";

/// The functions `$1`. `sql_body` only where it says everything. Last, the tables that a parsed body refers to.
pub(super) const FUNCTIONS: &str = "select p.oid, n.nspname::text, p.proname::text, p.prorettype, \
    case when l.lanname = 'sql' and p.prokind = 'f' and not p.proretset and p.proconfig is null and p.prosqlbody is null \
              and p.pronargs = 0 then p.prosrc end, \
    p.proargtypes::oid[], p.proargnames, \
    p.prokind = 'f' and p.provariadic = 0 and coalesce('i' = all(p.proargmodes), true), \
    case when l.lanname = 'sql' and p.prosqlbody is null then p.prosrc end, \
    p.proretset, p.proisstrict, p.provolatile::text, p.prosecdef, pg_get_userbyid(p.proowner)::text, p.proconfig, \
    array(select d.refobjid from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid \
          and d.refclassid = 'pg_class'::regclass) \
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace join pg_language l on l.oid = p.prolang \
    where p.oid = any($1::oid[])";

/// What has to be printed of the functions `$1`: bodies in the new style, and arguments' defaults.
pub(super) const BODIES: &str = "select p.oid, p.prosqlbody is not null, pg_get_function_sqlbody(p.oid), \
    p.proargdefaults is not null, pg_get_expr(p.proargdefaults, 0) from pg_proc p \
    where p.oid = any($1::oid[]) and (p.prosqlbody is not null or p.proargdefaults is not null)";

/// Which of the roles `$2` may execute each of the functions `$1`.
pub(super) const EXECUTABLE: &str = "select p.oid, array(select r.rolname::text from pg_roles r \
        where r.rolname = any($2::text[]) and has_function_privilege(r.oid, p.oid, 'EXECUTE')) \
    from pg_proc p where p.oid = any($1::oid[])";

/// Which of the roles `$2` may look into each of the schemas `$1`.
pub(super) const SCHEMAS: &str = "select n.nspname::text, array(select r.rolname::text from pg_roles r \
        where r.rolname = any($2::text[]) and has_schema_privilege(r.oid, n.oid, 'USAGE')) \
    from pg_namespace n where n.nspname = any($1::text[])";

/// The operators that live in the schemas `$1`; and, without a schema, which of the names `$2` functions of `pg_catalog` have.
pub(super) const OPERATORS: &str = "select distinct n.nspname::text, o.oprname::text from pg_operator o \
        join pg_namespace n on n.oid = o.oprnamespace where n.nspname = any($1::text[]) and n.nspname <> 'pg_catalog' \
    union all select distinct null, p.proname::text from pg_proc p \
        where p.proname = any($2::text[]) and p.pronamespace = 'pg_catalog'::regnamespace";

/// The trees under the tables `$1`, each table a root of its own: root, member, its parent (0 for the root), kind, whether it is
/// logged, and a text that differs when its rows may have changed unseen: any DDL that writes new values touches a column's row,
/// as an attached partition has a new row, a table that left one of the publications `$2` and came back, and a publication
/// that did not send some actions for a while. What [`IN_SCHEMAS`] says belongs to it, too.
pub(super) const TREES: &str = "with recursive down(root, oid, parent) as ( \
        select t.oid, t.oid, 0::oid from unnest($1::oid[]) as t(oid) union \
        select d.root, i.inhrelid, i.inhparent from down d join pg_inherits i on i.inhparent = d.oid \
            where not i.inhdetachpending) \
    select d.root, d.oid, d.parent, c.relkind::text, c.relpersistence = 'p', \
    concat_ws(' ', (select md5(string_agg(concat(a.attnum, ':', a.xmin), ',' order by a.attnum)) from pg_attribute a \
            where a.attrelid = d.oid and a.attnum > 0), \
        (select string_agg(concat(i.inhparent, ':', i.xmin), ',' order by i.inhparent) from pg_inherits i where i.inhrelid = d.oid), \
        (select string_agg(r.oid::text, ',' order by r.oid) from pg_publication_rel r join pg_publication p on p.oid = r.prpubid \
            where r.prrelid = d.oid and p.pubname = any($2::text[])), \
        (select string_agg(concat(p.oid, ':', p.xmin), ',' order by p.oid) from pg_publication p where p.pubname = any($2::text[]))) \
    from down d join pg_class c on c.oid = d.oid";

/// Postgres 15: a text for each of the relations `$1` that differs when its schema left one of the publications `$2` and came
/// back, or it left such a schema.
pub(super) const IN_SCHEMAS: &str = "select c.oid, concat_ws(' ', c.relnamespace, \
        (select string_agg(s.oid::text, ',' order by s.oid) from pg_publication_namespace s join pg_publication p on p.oid = s.pnpubid \
            where s.pnnspid = c.relnamespace and p.pubname = any($2::text[]))) \
    from pg_class c where c.oid = any($1::oid[])";

/// What the publications `$1` send of the relations `$2`, by the name under which they send it.
pub(super) const STREAMED: &str = "select g.relid, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, g.qual is not null, \
    case when r.prattrs is not null then array(select a.attname::text from pg_attribute a where a.attrelid = g.relid \
         and a.attnum = any(r.prattrs::int2[]) and not a.attisdropped) end \
    from pg_publication p cross join lateral pg_get_publication_tables(p.pubname::text) g \
    left join pg_publication_rel r on r.prpubid = p.oid and r.prrelid = g.relid \
    where p.pubname = any($1::text[]) and g.relid = any($2::oid[])";

/// The same for Postgres 14.
pub(super) const STREAMED_14: &str = "select g.relid, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, false, null::text[] \
    from pg_publication p cross join lateral pg_get_publication_tables(p.pubname::text) g(relid) \
    where p.pubname = any($1::text[]) and g.relid = any($2::oid[])";

/// Those partitioned tables among `$2` whose partitions are all in one of the publications `$1`, with all actions, those of
/// tomorrow too: the publication has the table itself, one above it, or everything.
pub(super) const COVERED: &str = "select t.oid from unnest($2::oid[]) as t(oid) where exists (select from pg_publication p \
    where p.pubname = any($1::text[]) and p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate and (p.puballtables \
        or exists (select from pg_publication_rel r join pg_partition_ancestors(t.oid) as a(relid) on r.prrelid = a.relid \
                   where r.prpubid = p.oid)))";

/// What Postgres 15 adds to it: whole schemas.
pub(super) const COVERED_15: &str = "select t.oid from unnest($2::oid[]) as t(oid) where exists (select from pg_publication p \
    join pg_publication_namespace s on s.pnpubid = p.oid join pg_class c on c.relnamespace = s.pnnspid \
    join pg_partition_ancestors(t.oid) as a(relid) on c.oid = a.relid \
    where p.pubname = any($1::text[]) and p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate)";

/// The types of the columns of the tables `$1` and of the arguments and results of the functions `$2`, with the types they are
/// made of. An array is what `array_out` writes:
/// `name`, `point` and `int2vector` have an element type too, but another text form.
pub(super) const TYPES: &str = "with recursive used(oid) as ( \
        select atttypid from pg_attribute where attrelid = any($1::oid[]) and attnum > 0 and not attisdropped \
        union \
        select t.oid from pg_proc p cross join lateral unnest(p.proargtypes::oid[] || p.prorettype) as u(oid) \
            join pg_type t on t.oid = u.oid where p.oid = any($2::oid[]) and t.typtype <> 'p' \
        union \
        select part.oid from used join pg_type t on t.oid = used.oid cross join lateral ( \
            select t.typelem where t.typoutput = 'array_out'::regproc \
            union all select t.typbasetype where t.typtype = 'd' \
            union all select a.atttypid from pg_attribute a \
                where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped) as part(oid)) \
    select t.oid, n.nspname::text, t.typname::text, t.typtype::text, t.typbasetype, \
    case when t.typoutput = 'array_out'::regproc then t.typelem else 0::oid end, \
    coalesce((select e.typdelim::text from pg_type e where e.oid = t.typelem), ','), \
    array(select a.attname::text from pg_attribute a where t.typtype = 'c' and a.attrelid = t.typrelid \
          and a.attnum > 0 and not a.attisdropped order by a.attnum), \
    array(select a.atttypid from pg_attribute a where t.typtype = 'c' and a.attrelid = t.typrelid \
          and a.attnum > 0 and not a.attisdropped order by a.attnum) \
    from used join pg_type t on t.oid = used.oid join pg_namespace n on n.oid = t.typnamespace";

/// `realtime.messages`.
pub(super) const MESSAGES: &str = "select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace \
    where n.nspname = 'realtime' and c.relname = 'messages' and c.relkind in ('r', 'p') and c.relpersistence <> 't'";

/// Policies of the table `$1` that govern INSERT, with what a new row must meet, and what they depend on.
pub(super) const INSERT_POLICIES: &str = "select p.polname::text, p.polpermissive, \
    array(select case when m = 0 then 'public' else pg_get_userbyid(m)::text end from unnest(p.polroles) as m), \
    coalesce(p.polwithcheck, p.polqual) is not null, \
    pg_get_expr(case when p.polwithcheck is not null then p.polwithcheck else p.polqual end, p.polrelid), \
    array(select distinct d.refobjsubid::int2 from pg_depend d where d.classid = 'pg_policy'::regclass and d.objid = p.oid \
          and d.refclassid = 'pg_class'::regclass and d.refobjid = p.polrelid and d.refobjsubid <> 0 order by 1), \
    array(select d.refobjid from pg_depend d where d.classid = 'pg_policy'::regclass and d.objid = p.oid \
          and d.refclassid = 'pg_proc'::regclass), \
    array(select d.refobjid from pg_depend d where d.classid = 'pg_policy'::regclass and d.objid = p.oid \
          and d.refclassid = 'pg_class'::regclass and d.refobjid <> p.polrelid) \
    from pg_policy p where p.polrelid = $1 and p.polcmd in ('a', '*') order by p.polname";

/// What each role of `$2` may insert into the table `$1`.
pub(super) const INSERT_ACCESS: &str = "select r.rolname::text, \
    coalesce(has_schema_privilege(r.oid, c.relnamespace, 'USAGE'), false), \
    coalesce(pg_has_role(r.oid, c.relowner, 'USAGE'), false), \
    array(select a.attnum from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped \
        and has_any_column_privilege(r.oid, c.oid, 'INSERT') and has_column_privilege(r.oid, c.oid, a.attnum, 'INSERT')), \
    array(select p.polname::text from pg_policy p where p.polrelid = c.oid and p.polcmd in ('a', '*') and exists ( \
          select from unnest(p.polroles) as m where case when m = 0 then true else pg_has_role(r.oid, m, 'USAGE') end)) \
    from pg_class c cross join pg_roles r where c.oid = $1 and r.rolname = any($2::text[])";

/// Defaults of the columns of the table `$1`.
pub(super) const DEFAULTS: &str = "select a.attname::text, pg_get_expr(d.adbin, d.adrelid) from pg_attrdef d \
    join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum where d.adrelid = $1 and not a.attisdropped";

/// The first thing, in words, that may happen at an INSERT into the table `$1` or its partitions beside the policies: it could
/// change the row, or raise. The check and the index that Supabase's own table has are known to do neither.
pub(super) const INSERT_OBSTACLES: &str = "with tree(oid) as (select $1::oid union select relid::oid from pg_partition_tree($1::oid::regclass)) \
    select case \
        when exists (select from pg_trigger t join tree on tree.oid = t.tgrelid \
                     where not t.tgisinternal and t.tgenabled <> 'D' and t.tgtype & 4 <> 0) then 'a trigger at INSERT' \
        when exists (select from pg_rewrite w join tree on tree.oid = w.ev_class where w.ev_type = '3') then 'a rule at INSERT' \
        when exists (select from pg_constraint k join tree on tree.oid = k.conrelid where k.contype in ('f', 'x', 'u') \
                     or (k.contype = 'c' and pg_get_constraintdef(k.oid) <> all (array[ \
                         'CHECK (((payload IS NULL) OR (binary_payload IS NULL)))']))) \
            then 'a constraint of its own' \
        when exists (select from pg_index i join tree on tree.oid = i.indrelid where i.indexprs is not null \
                     or (i.indisunique and not i.indisprimary) \
                     or (i.indpred is not null and pg_get_expr(i.indpred, i.indrelid) \
                         <> all (array['((extension = ''broadcast''::text) AND (private IS TRUE))', '(private IS TRUE)', \
                                       '(extension = ''broadcast''::text)']))) \
            then 'an index of its own' end";
