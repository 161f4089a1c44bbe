//! The table by which the database broadcasts, and whose policies say who may use a private channel.

use serde::Deserialize;

use super::finding::{ident, qualified};
use super::{Finding, Patient, Subject, Unreadable};

/// What there is to know of it.
#[derive(Debug, Deserialize)]
struct Messages {
    owner: String,
    /// Its owner is a superuser, so nobody should be a member.
    owner_superuser: bool,
    /// Not partitioned: somebody's own table, whose days are not cared for.
    partitioned: bool,
    default_partition: Option<String>,
    /// Days from today to tomorrow that no partition covers, as `2026-11-21`, with the day after each.
    missing: Vec<(String, String)>,
    /// The login may read and insert.
    granted: bool,
    /// The login is above the policies.
    above: bool,
    /// The login inherits what it is granted membership of.
    inherits: bool,
    /// The login may assume the owner's role, as making and dropping partitions takes.
    may_tend: bool,
    /// The login may see who made the table.
    knows: bool,
}

const MESSAGES: &str = "select json_build_object('owner', r.rolname, 'owner_superuser', r.rolsuper, \
    'partitioned', c.relkind = 'p', \
    'default_partition', (select p.partdefid::regclass::text from pg_catalog.pg_partitioned_table p where p.partrelid = c.oid and p.partdefid <> 0), \
    'missing', coalesce((select json_agg(json_build_array(to_char(day, 'YYYY-MM-DD'), to_char(day + 1, 'YYYY-MM-DD')) order by day) \
        from (select (now() at time zone 'utc')::date + ahead as day from generate_series(0, 1) as ahead) days where not exists ( \
            select from pg_catalog.pg_inherits i join pg_catalog.pg_class leaf on leaf.oid = i.inhrelid \
            cross join lateral (select pg_get_expr(leaf.relpartbound, leaf.oid) as text) b \
            where i.inhparent = c.oid and b.text <> 'DEFAULT' \
            and coalesce((regexp_match(b.text, 'FROM \\(''([^'']+)''\\)'))[1], '-infinity')::timestamp < (day + 1)::timestamp \
            and coalesce((regexp_match(b.text, 'TO \\(''([^'']+)''\\)'))[1], 'infinity')::timestamp > day::timestamp)), '[]'), \
    'granted', has_schema_privilege(n.oid, 'USAGE') and has_table_privilege(c.oid, 'SELECT') and has_table_privilege(c.oid, 'INSERT'), \
    'above', me.rolsuper or me.rolbypassrls or (pg_has_role(c.relowner, 'USAGE') and not c.relforcerowsecurity), \
    'inherits', me.rolinherit, \
    'may_tend', pg_has_role(c.relowner, case when current_setting('server_version_num')::int >= 160000 then 'SET' else 'MEMBER' end), \
    'knows', coalesce((select has_schema_privilege(i.relnamespace, 'USAGE') and has_table_privilege(i.oid, 'SELECT') \
        from pg_catalog.pg_class i join pg_catalog.pg_namespace s on s.oid = i.relnamespace \
        where s.nspname = 'rowcast' and i.relname = 'installed'), true))::text \
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
    join pg_catalog.pg_roles r on r.oid = c.relowner, pg_catalog.pg_roles me \
    where n.nspname = 'realtime' and c.relname = 'messages' and c.relkind in ('r', 'p') and me.rolname = current_user";

fn subject() -> Subject {
    Subject::table("realtime", "messages")
}

pub(super) async fn check(patient: &Patient<'_>) -> Result<Vec<Finding>, Unreadable> {
    let Some(row) = patient.client.query_opt(MESSAGES, &[]).await? else {
        return Ok(vec![
            Finding::note("messages", subject(), "there is no such table")
                .why("Private channels are refused, and the database can't broadcast.")
                .todo("rowcast migrate up"),
        ]);
    };
    let messages: Messages = serde_json::from_str(row.try_get(0)?)?;
    let mut findings = Vec::new();
    findings.extend(rights(&messages, &patient.facts.login));
    findings.extend(messages.missing.iter().filter(|_| messages.partitioned).map(|day| missing(&messages, day)));
    if let Some(default) = messages.default_partition.as_ref().filter(|_| messages.granted && messages.above) {
        // Through the table, on which alone the login has rights.
        let sql = format!("select exists (select from realtime.messages where tableoid = '{default}'::regclass)");
        if patient.client.query_one(&sql, &[]).await?.try_get(0)? {
            findings.push(held(default));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            "messages",
            subject(),
            "has its partitions, and the login may judge private channels",
        ));
    }
    Ok(findings)
}

fn rights(messages: &Messages, login: &str) -> Option<Finding> {
    let (login, owner) = (ident(login), ident(&messages.owner));
    let mut sql = Vec::new();
    // A member inherits the owner's rights, and is above the policies as the owner is.
    let by_membership = messages.inherits && !messages.owner_superuser;
    if !(messages.granted && messages.above || by_membership) {
        sql.push(format!("grant usage on schema realtime to {login};"));
        sql.push(format!("grant select, insert on realtime.messages to {login};"));
        sql.push(format!("alter role {login} bypassrls;"));
    }
    let judges = messages.granted && messages.above;
    if !messages.owner_superuser && (!messages.may_tend || !judges && by_membership) {
        sql.push(format!("grant {owner} to {login};"));
    }
    if !messages.knows {
        sql.push(format!("grant select on rowcast.installed to {login};"));
    }
    if sql.is_empty() {
        return None;
    }
    let (what, why) = if judges {
        ("the login may not care for its partitions", "Days are not made ahead, and old ones are not dropped.")
    } else {
        (
            "the login may not read and insert above its policies",
            "Who may use a private channel is found out by trying, so all of them are refused; and nothing can be replayed.",
        )
    };
    let finding = Finding::warning("messages_rights", subject(), what).why(why).sql(sql.join("\n"));
    Some(if judges { finding.todo("Or set ROWCAST_MESSAGES_UPKEEP=off, if others do.") } else { finding })
}

fn missing(messages: &Messages, (day, after): &(String, String)) -> Finding {
    let what = format!("has no partition for {day}");
    let name = qualified("realtime", &format!("messages_{}", day.replace('-', "_")));
    let sql = format!("create table {name} partition of realtime.messages for values from ('{day}') to ('{after}');");
    let todo = "A running relay makes it, if its login may.";
    match &messages.default_partition {
        Some(default) => Finding::note("messages_partition", subject(), what)
            .why(format!("Messages of that day go to {default}, from which they are deleted one by one.")),
        None => Finding::warning("messages_partition", subject(), what)
            .why("Messages of that day are refused: realtime.send() only warns its caller, and nobody hears them."),
    }
    .sql(sql)
    .todo(todo)
}

fn held(default: &str) -> Finding {
    Finding::note("messages_default", subject(), format!("has rows in its default partition {default}"))
        .why("Their days had no partitions. They are sent and replayed like others.")
        .todo("A running relay moves them, or deletes them when their time is over.")
}
