//! The texts of the catalog queries. All run with an empty search_path; `pg_catalog` is then the only schema searched.

/// One row: snapshot, server version, encoding, whether a claims setting has a value of its own.
pub(super) const SESSION: &str = "select pg_current_snapshot()::text, current_setting('server_version_num')::int4, \
    current_setting('server_encoding'), \
    coalesce(nullif(current_setting('request.jwt.claim', true), ''), \
             nullif(current_setting('request.jwt.claim.email', true), '')) is not null";

/// One text that differs if anything that a reading looks at differs: the tables `$1` with their columns, keys, policies and
/// places in trees, the functions `$2`, and all publications, schemas, roles, memberships and names of tables. Looks at rows
/// only, no function of which the server answers by its newest catalog, so it is true to the snapshot that it runs in.
pub(super) const FINGERPRINT: &str = "select concat_ws(' ', \
    (select md5(string_agg(concat(oid, ':', xmin), ',' order by oid)) from pg_class where oid = any($1::oid[])), \
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
pub(super) const TABLES: &str = "with wanted as ( \
        select unnest($1::oid[]) as oid union \
        select a.relid::oid from unnest($1::oid[]) as l(oid) cross join lateral pg_partition_ancestors(l.oid) as a(relid)) \
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
          select distinct leaf.relreplident::text from tree join pg_class leaf on leaf.oid = tree.oid where leaf.relkind <> 'p') \
    from wanted join pg_class c on c.oid = wanted.oid join pg_namespace n on n.oid = c.relnamespace";

/// Columns of the tables `$1`. The database's default collation is bytewise if it is C or POSIX of the C library, or the
/// built-in provider's (Postgres 17), which all order by code point; the provider's column is not there before Postgres 15.
pub(super) const COLUMNS: &str = "select a.attrelid, a.attnum, a.attname::text, a.atttypid, a.atttypmod, \
    coalesce(c.collisdeterministic, true), a.attgenerated::text <> '', a.atthasdef, a.attnotnull, \
    quote_ident(n.nspname) || '.' || quote_ident(c.collname), \
    coalesce(case c.collprovider when 'c' then c.collcollate::text in ('C', 'POSIX') when 'b' then true \
        when 'd' then (select case coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') \
            when 'c' then d.datcollate::text in ('C', 'POSIX') when 'b' then true end \
            from pg_database d where d.datname = current_database()) end, false) \
    from pg_attribute a left join pg_collation c on c.oid = a.attcollation left join pg_namespace n on n.oid = c.collnamespace \
    where a.attrelid = any($1::oid[]) and a.attnum > 0 and not a.attisdropped order by a.attrelid, a.attnum";

/// Policies of the tables `$1` that govern SELECT, with what their expressions depend on.
pub(super) const POLICIES: &str = "select p.polrelid, p.polname::text, p.polpermissive, p.polcmd::text, \
    array(select case when m = 0 then 'public' else pg_get_userbyid(m)::text end from unnest(p.polroles) as m), \
    p.polqual is not null, pg_get_expr(p.polqual, p.polrelid), \
    array(select distinct d.refobjsubid::int2 from pg_depend d where d.classid = 'pg_policy'::regclass and d.objid = p.oid \
          and d.refclassid = 'pg_class'::regclass and d.refobjid = p.polrelid and d.refobjsubid <> 0 order by 1), \
    array(select d.refobjid from pg_depend d where d.classid = 'pg_policy'::regclass and d.objid = p.oid \
          and d.refclassid = 'pg_proc'::regclass) \
    from pg_policy p where p.polrelid = any($1::oid[]) and p.polcmd in ('r', '*') order by p.polrelid, p.polname";

/// What each role of `$2` may do with each table of `$1`.
pub(super) const ACCESS: &str = "select c.oid, r.rolname::text, \
    coalesce(has_schema_privilege(r.oid, c.relnamespace, 'USAGE'), false), \
    coalesce(pg_has_role(r.oid, c.relowner, 'USAGE'), false), \
    array(select a.attnum from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped \
          and has_column_privilege(r.oid, c.oid, a.attnum, 'SELECT')), \
    array(select p.polname::text from pg_policy p where p.polrelid = c.oid and p.polcmd in ('r', '*') and exists ( \
          select from unnest(p.polroles) as m where case when m = 0 then true else pg_has_role(r.oid, m, 'USAGE') end)) \
    from pg_class c cross join pg_roles r where c.oid = any($1::oid[]) and r.rolname = any($2::text[])";

/// Functions among `$1` that take no argument; `$2` are the roles of interest. The body only where it says everything.
pub(super) const FUNCTIONS: &str = "select p.oid, n.nspname::text, p.proname::text, p.prorettype, \
    case when l.lanname = 'sql' and p.prokind = 'f' and not p.proretset and p.proconfig is null and p.prosqlbody is null \
         then p.prosrc end, \
    array(select r.rolname::text from pg_roles r where r.rolname = any($2::text[]) \
          and has_function_privilege(r.oid, p.oid, 'EXECUTE')) \
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace join pg_language l on l.oid = p.prolang \
    where p.oid = any($1::oid[]) and p.pronargs = 0";

/// The types of the columns of the tables `$1`, with the types they are made of. An array is what `array_out` writes:
/// `name`, `point` and `int2vector` have an element type too, but another text form.
pub(super) const TYPES: &str = "with recursive used(oid) as ( \
        select atttypid from pg_attribute where attrelid = any($1::oid[]) and attnum > 0 and not attisdropped \
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
