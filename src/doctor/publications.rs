//! What is sent, and what a publication does to those who write.

use serde::Deserialize;

use super::finding::{ident, qualified};
use super::roles::missing_publications;
use super::{Finding, Patient, Subject, SubjectKind, Unreadable};
use crate::config::{FACTS_PUBLICATION, MESSAGES_PUBLICATION};

#[derive(Debug, Deserialize)]
struct Publication {
    name: String,
    all_tables: bool,
    insert: bool,
    update: bool,
    delete: bool,
    /// How many tables it sends.
    tables: i64,
}

/// A table that is a member of a publication by name.
#[derive(Debug, Deserialize)]
struct Member {
    publication: String,
    schema: String,
    table: String,
    /// The row filter.
    filter: Option<String>,
    /// It has a list of columns.
    listed: bool,
    /// UPDATE or DELETE is published.
    changes: bool,
    /// Columns of the filter that are not in the replica identity.
    filter_beyond: Vec<String>,
    /// Columns of the replica identity that are not in the list.
    identity_beyond: Vec<String>,
}

const PUBLICATIONS: &str = "select coalesce(json_agg(json_build_object('name', p.pubname, 'all_tables', p.puballtables, \
    'insert', p.pubinsert, 'update', p.pubupdate, 'delete', p.pubdelete, \
    'tables', (select count(*) from pg_catalog.pg_publication_tables t where t.pubname = p.pubname)) order by p.pubname), '[]')::text \
    from pg_catalog.pg_publication p where p.pubname = any($1::text[])";

/// The identity of a table: all columns for FULL, else those of the index in question.
const MEMBERS: &str = "with members as ( \
        select p.pubname, p.pubupdate or p.pubdelete as changes, r.oid as rel, r.prrelid, r.prattrs::int2[] as listed, \
            pg_get_expr(r.prqual, r.prrelid) as filter, c.relname, n.nspname, \
            case c.relreplident when 'f' then array(select a.attnum from pg_catalog.pg_attribute a \
                    where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) \
                else coalesce((select (i.indkey::int2[])[0:i.indnkeyatts - 1] from pg_catalog.pg_index i where i.indrelid = c.oid \
                    and (c.relreplident = 'd' and i.indisprimary or c.relreplident = 'i' and i.indisreplident) limit 1), '{}') end as identity \
        from pg_catalog.pg_publication p join pg_catalog.pg_publication_rel r on r.prpubid = p.oid \
        join pg_catalog.pg_class c on c.oid = r.prrelid join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
        where p.pubname = any($1::text[])) \
    select coalesce(json_agg(json_build_object('publication', pubname, 'schema', nspname, 'table', relname, 'filter', filter, \
        'listed', listed is not null, 'changes', changes, \
        'filter_beyond', array(select distinct a.attname::text from pg_catalog.pg_depend d join pg_catalog.pg_attribute a \
            on a.attrelid = m.prrelid and a.attnum = d.refobjsubid where d.classid = 'pg_catalog.pg_publication_rel'::regclass \
            and d.objid = m.rel and d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = m.prrelid and d.refobjsubid <> 0 \
            and filter is not null and not a.attnum = any (m.identity) \
            and not (m.listed is not null and a.attnum = any (m.listed) and strpos(filter, quote_ident(a.attname)) = 0) order by 1), \
        'identity_beyond', array(select a.attname::text from pg_catalog.pg_attribute a where m.listed is not null \
            and a.attrelid = m.prrelid and a.attnum = any (m.identity) and not a.attnum = any (m.listed) order by a.attnum) \
        ) order by pubname, nspname, relname), '[]')::text from members m";

/// Tables of which two publications of the stream send different columns.
const CONFLICTS: &str = "select schemaname::text, tablename::text from pg_catalog.pg_publication_tables t \
    where pubname = any($1::text[]) group by 1, 2 having count(distinct attnames::text[]) > 1 order by 1, 2";

/// Partition trees that one publication sends as their root and another as their leaves.
const MIXED: &str = "select distinct rn.nspname::text, rc.relname::text, leaves.pubname::text \
    from pg_catalog.pg_publication_tables leaves \
    join pg_catalog.pg_publication lp on lp.pubname = leaves.pubname and not lp.pubviaroot \
    join pg_catalog.pg_namespace n on n.nspname = leaves.schemaname \
    join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = leaves.tablename and c.relispartition \
    cross join lateral pg_catalog.pg_partition_ancestors(c.oid) as a(relid) \
    join pg_catalog.pg_class rc on rc.oid = a.relid and rc.oid <> c.oid \
    join pg_catalog.pg_namespace rn on rn.oid = rc.relnamespace \
    join pg_catalog.pg_publication_tables roots on roots.schemaname = rn.nspname and roots.tablename = rc.relname \
    where leaves.pubname = any($1::text[]) and roots.pubname = any($1::text[]) order by 1, 2, 3";

/// Tables that a publication of everything, or of a whole schema, leaves out because they are not in the WAL.
const UNLOGGED: &str = "select distinct n.nspname::text, c.relname::text from pg_catalog.pg_class c \
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace join pg_catalog.pg_publication p on p.pubname = any($1::text[]) \
    where c.relpersistence = 'u' and c.relkind in ('r', 'p') and (p.puballtables or exists ( \
        select from pg_catalog.pg_publication_namespace s where s.pnpubid = p.oid and s.pnnspid = n.oid)) order by 1, 2";

/// Published tables that somebody has locked against reading: also against the catalog functions that the relay needs.
const LOCKED: &str = "select n.nspname::text, c.relname::text, l.pid from pg_catalog.pg_locks l \
    join pg_catalog.pg_class c on c.oid = l.relation and c.relkind in ('r', 'p') \
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace and n.nspname !~ '^pg_' \
    where l.locktype = 'relation' and l.mode = 'AccessExclusiveLock' and l.granted and l.pid is not null \
    and l.database = (select oid from pg_catalog.pg_database where datname = current_database()) \
    and exists (select from pg_catalog.pg_publication p left join pg_catalog.pg_publication_rel r on r.prpubid = p.oid \
        where p.pubname = any($1::text[]) and (p.puballtables or r.prrelid = c.oid)) order by 1, 2, 3";

/// Asked before anything that would wait for such a lock.
pub(super) async fn locked(patient: &Patient<'_>) -> Result<Vec<Finding>, Unreadable> {
    let rows = patient.client.query(LOCKED, &[&patient.config.stream_publications()]).await?;
    let one = |row: &tokio_postgres::Row| -> Result<Finding, Unreadable> {
        let (schema, table, pid): (&str, &str, i32) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let what = format!("is locked ACCESS EXCLUSIVE by server process {pid}");
        Ok(Finding::warning("locked", Subject::table(schema, table), what)
            .why("While it is, the rules can't be read, and the deliveries of all tables wait.")
            .sql(format!("select pg_terminate_backend({pid});"))
            .todo("A rewrite (ALTER TABLE, VACUUM FULL, TRUNCATE) ends by itself; the SQL ends whoever holds the lock, and undoes his work."))
    };
    rows.iter().map(one).collect()
}

/// The publication of broadcasts, and whether the table is in it.
const MESSAGES: &str = "select p.pubinsert and p.pubviaroot, c.oid is not null, \
    exists (select from pg_catalog.pg_publication_tables t where t.pubname = p.pubname and t.schemaname = 'realtime' \
        and t.tablename = 'messages') \
    from pg_catalog.pg_publication p left join pg_catalog.pg_class c on c.oid = to_regclass('realtime.messages') \
    where p.pubname = $1::text";

/// Whether what is inserted into `realtime.messages` comes through the stream.
async fn messages(patient: &Patient<'_>) -> Result<Vec<Finding>, Unreadable> {
    let Some(row) = patient.client.query_opt(MESSAGES, &[&MESSAGES_PUBLICATION]).await? else { return Ok(Vec::new()) };
    let (is_fit, has_table, is_sent): (bool, bool, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let mut findings = Vec::new();
    if !is_fit {
        let subject = Subject::new(SubjectKind::Publication, MESSAGES_PUBLICATION);
        let what = "does not send INSERTs under the name of the partitioned table";
        findings.push(
            Finding::warning("messages_publication", subject, what)
                .why("What is inserted into realtime.messages is not broadcast.")
                .sql(format!(
                    "alter publication {MESSAGES_PUBLICATION} set (publish = 'insert', publish_via_partition_root = true);"
                )),
        );
    }
    if has_table && is_fit && !is_sent {
        let what = format!("is not in publication {MESSAGES_PUBLICATION}");
        findings.push(
            Finding::warning("messages_unpublished", Subject::table("realtime", "messages"), what)
                .why("What is inserted into it is not broadcast.")
                .sql(format!("alter publication {MESSAGES_PUBLICATION} add table realtime.messages;"))
                .todo(
                    "It takes somebody who owns both, or a superuser; the relay does it at a start if its login may.",
                ),
        );
    }
    Ok(findings)
}

pub(super) async fn check(patient: &Patient<'_>) -> Result<Vec<Finding>, Unreadable> {
    let client = patient.client;
    let exists =
        "select exists (select from pg_catalog.pg_replication_slots where slot_name = $1::text and not active)";
    let slot_exists = client.query_one(exists, &[&patient.config.ingest.wal.slot]).await?.try_get(0)?;
    let mut findings = missing_publications(patient, slot_exists);
    let names = patient.config.stream_publications();
    let row = client.query_one(PUBLICATIONS, &[&names]).await?;
    let publications: Vec<Publication> = serde_json::from_str(row.try_get(0)?)?;
    let is_own = |name: &str| [FACTS_PUBLICATION, MESSAGES_PUBLICATION].contains(&name);
    let clients = publications.iter().filter(|publication| !is_own(&publication.name));
    findings.extend(clients.flat_map(content));
    findings.extend(messages(patient).await?);
    if patient.facts.version < 150_000 {
        return Ok(findings);
    }
    let row = client.query_one(MEMBERS, &[&names]).await?;
    let members: Vec<Member> = serde_json::from_str(row.try_get(0)?)?;
    findings.extend(members.iter().filter(|member| member.changes).filter_map(breaks_writers));
    for row in client.query(CONFLICTS, &[&names]).await? {
        findings.push(conflict(row.try_get(0)?, row.try_get(1)?, &members));
    }
    for row in client.query(MIXED, &[&names]).await? {
        findings.push(mixed(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
    }
    for row in client.query(UNLOGGED, &[&names]).await? {
        let (schema, table): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
        findings.push(
            Finding::note("unlogged", Subject::table(schema, table), "is unlogged, so nothing of it is ever sent")
                .why("The publication seems to cover it; only what is in the write-ahead log can be sent.")
                .sql(format!("alter table {} set logged;", qualified(schema, table))),
        );
    }
    Ok(findings)
}

fn content(publication: &Publication) -> Vec<Finding> {
    let subject = || Subject::new(SubjectKind::Publication, &publication.name);
    let name = ident(&publication.name);
    let mut findings = Vec::new();
    if publication.tables == 0 {
        findings.push(
            Finding::warning("publication_empty", subject(), "has no tables")
                .why("There is nothing that a client could subscribe to.")
                .todo(format!("alter publication {name} add table …; by the table's owner")),
        );
    } else {
        let all = if publication.all_tables { " (all there are)" } else { "" };
        findings.push(Finding::ok("publication", subject(), format!("sends {} table(s){all}", publication.tables)));
    }
    let actions = [(publication.insert, "INSERT"), (publication.update, "UPDATE"), (publication.delete, "DELETE")];
    let held: Vec<&str> = actions.iter().filter(|(sent, _)| !sent).map(|(_, action)| *action).collect();
    if !held.is_empty() {
        findings.push(
            Finding::note("publication_actions", subject(), format!("does not send {}", held.join(" and ")))
                .why("Subscribers of these events get nothing, and are not told.")
                .sql(format!("alter publication {name} set (publish = 'insert, update, delete, truncate');")),
        );
    }
    findings
}

/// The whole table in place of some columns; the row filter stays.
fn whole(member: &Member) -> String {
    replaced(&member.publication, &qualified(&member.schema, &member.table), member.filter.as_deref())
}

/// A table taken out of a publication and put in again as a whole. In one transaction: rows between the two would never be sent.
pub(super) fn replaced(publication: &str, table: &str, filter: Option<&str>) -> String {
    let publication = ident(publication);
    let filter = filter.map(|filter| format!(" where ({filter})")).unwrap_or_default();
    format!(
        "begin;\nalter publication {publication} drop table {table};\n\
         alter publication {publication} add table {table}{filter};\ncommit;"
    )
}

fn breaks_writers(member: &Member) -> Option<Finding> {
    let subject = Subject::table(&member.schema, &member.table);
    let (table, publication) = (qualified(&member.schema, &member.table), &member.publication);
    if !member.identity_beyond.is_empty() {
        let missing = member.identity_beyond.join(", ");
        let what = format!("publication {publication} leaves out column(s) {missing} of the replica identity");
        let finding = Finding::error("column_list_identity", subject, what)
            .why("Every UPDATE and DELETE of the table fails at the writer (42P10).")
            .sql(whole(member));
        return Some(finding);
    }
    if !member.filter_beyond.is_empty() {
        let beyond = member.filter_beyond.join(", ");
        let what =
            format!("the row filter in publication {publication} reads {beyond}, which the replica identity lacks");
        let finding = Finding::error("row_filter_identity", subject, what)
            .why("Every UPDATE and DELETE of the table fails at the writer (42P10).");
        return Some(if member.listed {
            finding.todo("Publish all columns, then `alter table … replica identity full`.")
        } else {
            finding.sql(format!("alter table {table} replica identity full;"))
        });
    }
    None
}

fn conflict(schema: &str, table: &str, members: &[Member]) -> Finding {
    let listed = members.iter().filter(|m| m.schema == schema && m.table == table && m.listed);
    let sql: Vec<String> = listed.map(whole).collect();
    Finding::error(
        "column_lists",
        Subject::table(schema, table),
        "the relay's publications send different columns of it",
    )
    .why("Postgres then refuses to decode its rows (0A000), at every attempt: the whole stream stands still.")
    .sql(sql.join("\n"))
}

fn mixed(schema: &str, root: &str, publication: &str) -> Finding {
    let what = format!("is published as a whole, and its partitions one by one by publication {publication}");
    Finding::warning("via_root_mix", Subject::table(schema, root), what)
        .why("Subscribers of the partitions get nothing: the server sends each row once, under the root's name.")
        .sql(format!("alter publication {} set (publish_via_partition_root = true);", ident(publication)))
}
