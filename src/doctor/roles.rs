//! The login, the roles of tokens, and schema `rowcast`.

use std::collections::BTreeMap;

use serde::Deserialize;
use tokio_postgres::Client;

use super::facts::Facts;
use super::finding::{ident, literal};
use super::{Finding, Patient, Subject, SubjectKind, TOKEN_ROLES, Unreadable, token_roles};
use crate::config::{FACTS_PUBLICATION, MESSAGES_PUBLICATION};
use crate::error::{Fault as _, chain};
use crate::migrate;
use crate::policy::Plan;

/// As it, Postgres judges filters that memory can't.
const FILTER_ROLE: &str = "rowcast_filter";
/// The name that is proposed for a login with few rights.
const RELAY_ROLE: &str = "rowcast_relay";

#[derive(Debug, Deserialize)]
struct Role {
    name: String,
    superuser: bool,
    assumable: bool,
}

const ROLES: &str = "select coalesce(json_agg(json_build_object('name', rolname, 'superuser', rolsuper, 'assumable', \
    pg_has_role(session_user, oid, case when current_setting('server_version_num')::int >= 160000 then 'SET' else 'MEMBER' end)) \
    order by rolname), '[]')::text from pg_catalog.pg_roles where rolname = any($1::text[])";

pub(super) async fn check(patient: &Patient<'_>) -> Result<Vec<Finding>, Unreadable> {
    let facts = patient.facts;
    let tokens = token_roles(patient.config, patient.wanted);
    let mut names: Vec<&str> = tokens.iter().map(String::as_str).collect();
    names.extend([FILTER_ROLE, RELAY_ROLE]);
    let row = patient.client.query_one(ROLES, &[&names]).await?;
    let roles: Vec<Role> = serde_json::from_str(row.try_get(0)?)?;
    let roles: BTreeMap<&str, &Role> = roles.iter().map(|role| (role.name.as_str(), role)).collect();

    let mut findings = login(facts, &roles, &tokens.iter().map(String::as_str).collect::<Vec<_>>());
    for name in &tokens {
        match roles.get(name.as_str()) {
            None => findings.push(absent(patient, name)),
            Some(role) if role.superuser => findings.push(
                Finding::error("token_role_superuser", Subject::role(name), "tokens name it, and it is a superuser")
                    .why("A token that names a superuser receives nothing.")
                    .sql(format!("alter role {} nosuperuser;", ident(name))),
            ),
            Some(_) => {}
        }
    }
    findings.push(filter_role(facts, roles.get(FILTER_ROLE).copied()));
    findings.extend(schema(patient).await?);
    Ok(findings)
}

fn login(facts: &Facts, roles: &BTreeMap<&str, &Role>, tokens: &[&str]) -> Vec<Finding> {
    let subject = || Subject::role(&facts.login);
    let mut findings = Vec::new();
    if !facts.replication {
        findings.push(
            Finding::error("login_replication", subject(), "may not read the stream")
                .why("Changes are read over a replication connection.")
                .sql(format!("alter role {} replication;", ident(&facts.login)))
                .todo(format!("On RDS: grant rds_replication to {}.", ident(&facts.login))),
        );
    }
    if facts.superuser {
        findings.push(
            Finding::warning("login_superuser", subject(), "the relay logs in as a superuser")
                .why("A function in a policy may RESET ROLE and then runs with the login's rights: on behalf of any subscriber.")
                .sql(small_login(facts, roles, tokens))
                .todo(format!("Give it a password (\\password {RELAY_ROLE} in psql), then name it in DATABASE_URL.")),
        );
    } else if facts.bypass && !facts.messages_by_bypass {
        findings.push(
            Finding::warning("login_bypassrls", subject(), "the relay's login bypasses row-level security")
                .why("It does not need to, and a function in a policy may RESET ROLE to it.")
                .sql(format!("alter role {} nobypassrls;", ident(&facts.login))),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::ok("login", subject(), "may read the stream and has no right that it should not have"));
    }
    findings
}

/// A login that can do what the relay does, and no more.
fn small_login(facts: &Facts, roles: &BTreeMap<&str, &Role>, tokens: &[&str]) -> String {
    let mut lines = Vec::new();
    if !roles.contains_key(RELAY_ROLE) {
        lines.push(format!("create role {RELAY_ROLE} login replication;"));
    }
    for name in tokens.iter().chain(&[FILTER_ROLE]) {
        if roles.get(name).is_some_and(|role| !role.superuser) {
            lines.push(grant_role(facts, name, RELAY_ROLE));
        }
    }
    if facts.has_schema {
        lines.extend(schema_grants(RELAY_ROLE));
        if let Some(owner) = &facts.messages_owner {
            lines.push(format!("grant select on rowcast.installed to {RELAY_ROLE};"));
            lines.push(format!("grant {} to {RELAY_ROLE};", ident(owner)));
        }
    } else {
        lines.push(format!("grant create on database {} to {RELAY_ROLE};", ident(&facts.database)));
    }
    lines.join("\n")
}

fn schema_grants(login: &str) -> [String; 7] {
    let login = ident(login);
    [
        format!("grant usage on schema rowcast to {login};"),
        format!("grant select on rowcast.migrations to {login};"),
        format!("grant select, insert, update on rowcast.lineage to {login};"),
        format!("grant select, insert, update on rowcast.relay_status to {login};"),
        format!("grant select, insert, update on rowcast.frontier_owners to {login};"),
        format!("grant select, insert, update, delete on rowcast.frontiers to {login};"),
        format!("grant execute on function rowcast.take_sample() to {login};"),
    ]
}

pub(super) fn grant_role(facts: &Facts, role: &str, login: &str) -> String {
    // The relay acts as these roles on purpose or not at all.
    let options = if facts.version >= 160_000 { " with inherit false, set true" } else { "" };
    format!("grant {} to {}{options};", ident(role), ident(login))
}

fn absent(patient: &Patient<'_>, name: &str) -> Finding {
    let facts = patient.facts;
    let bypass = if name == "service_role" { " bypassrls" } else { "" };
    let sql =
        format!("create role {} nologin noinherit{bypass};\n{}", ident(name), grant_role(facts, name, &facts.login));
    let subject = Subject::role(name);
    let finding = if TOKEN_ROLES.contains(&name) && !patient.wanted.iter().any(|wanted| wanted == name) {
        Finding::note("token_role_missing", subject, "there is no such role")
            .why("Tokens that name it receive nothing. That is fine if yours name others.")
    } else {
        Finding::warning("token_role_missing", subject, "there is no such role, though tokens or API keys name it")
            .why("A token that names it receives nothing.")
    };
    finding.sql(sql)
}

fn filter_role(facts: &Facts, role: Option<&Role>) -> Finding {
    let subject = Subject::role(FILTER_ROLE);
    let why = "Filters that memory can't judge (regular expressions, ilike, the order of text) are asked of Postgres in this role \
               without rights; without it such filters are refused.";
    match role {
        Some(role) if role.assumable => Finding::ok("filter_role", subject, "filters can be asked of Postgres"),
        Some(_) => Finding::warning("filter_role", subject, format!("{} may not become it", facts.login))
            .why(why)
            .sql(grant_role(facts, FILTER_ROLE, &facts.login)),
        None => Finding::warning("filter_role", subject, "there is no such role").why(why).sql(format!(
            "create role {FILTER_ROLE} nologin noinherit;\n{}",
            grant_role(facts, FILTER_ROLE, &facts.login)
        )),
    }
}

/// Token roles that this login would have to become, now that it is known who asks Postgres.
pub(super) fn in_use(facts: &Facts, plans: &[Plan], login: &str, may_become: impl Fn(&str) -> bool) -> Vec<Finding> {
    let mut asked: BTreeMap<&str, usize> = BTreeMap::new();
    for plan in plans.iter().filter(|plan| plan.form.is_some()) {
        *asked.entry(&plan.role).or_default() += 1;
    }
    let missing = asked.into_iter().filter(|(name, _)| !may_become(name));
    missing
        .map(|(name, tables)| {
            let what = format!("{login} may not become it, though policies of {tables} published table(s) apply to it");
            Finding::error("token_role_not_granted", Subject::role(name), what)
                .why("Postgres has to be asked in this role; as it is, rows stay undecided and clients are told of gaps.")
                .sql(grant_role(facts, name, login))
        })
        .collect()
}

/// Whether the relay's own objects are there and may be used.
async fn schema(patient: &Patient<'_>) -> Result<Vec<Finding>, Unreadable> {
    let (client, facts) = (patient.client, patient.facts);
    let subject = || Subject::new(SubjectKind::Schema, "rowcast");
    if !facts.has_schema {
        let finding = if facts.may_create {
            Finding::note("schema", subject(), "is not there yet; `rowcast serve` makes it at its first start")
                .why("It keeps what the relay has to remember in the database.")
        } else {
            Finding::error("schema", subject(), format!("is not there, and {} may not make it", facts.login))
                .why("It keeps what the relay has to remember in the database; without it the relay does not start.")
                .sql(format!("grant create on database {} to {};", ident(&facts.database), ident(&facts.login)))
        };
        return Ok(vec![finding.todo("Run `rowcast migrate up` once, as an owner of the database.")]);
    }
    let rights = "select has_schema_privilege('rowcast', 'USAGE') \
        and coalesce(has_table_privilege(to_regclass('rowcast.migrations'), 'SELECT'), false) \
        and coalesce(has_table_privilege(to_regclass('rowcast.lineage'), 'SELECT'), false) \
        and coalesce(has_table_privilege(to_regclass('rowcast.lineage'), 'INSERT'), false) \
        and coalesce(has_table_privilege(to_regclass('rowcast.lineage'), 'UPDATE'), false)";
    // Without USAGE, to_regclass itself would raise.
    let usage = client.query_one("select has_schema_privilege('rowcast', 'USAGE')", &[]).await?;
    let may = usage.try_get::<_, bool>(0)? && client.query_one(rights, &[]).await?.try_get::<_, bool>(0)?;
    if !may {
        return Ok(vec![
            Finding::error("schema_rights", subject(), format!("{} may not use it", facts.login))
                .why("The relay reads its migrations and keeps its slot's history there; without that it does not start.")
                .sql(schema_grants(&facts.login).join("\n")),
        ]);
    }
    let mut findings = steps(patient).await;
    findings.push(hints(client).await?);
    Ok(findings)
}

/// Event triggers that tell of changed rules in the stream.
async fn hints(client: &Client) -> Result<Finding, Unreadable> {
    let subject = Subject::new(SubjectKind::Schema, "rowcast");
    if client.query_one(migrate::HINTS_INSTALLED, &[]).await?.try_get(0)? {
        return Ok(Finding::ok("rule_hints", subject, "event triggers tell of changed rules"));
    }
    let disabled = "select evtname::text from pg_catalog.pg_event_trigger \
        where evtname in ('rowcast_rules_changed', 'rowcast_rules_dropped') and evtenabled not in ('A', 'O') order by 1";
    let rows = client.query(disabled, &[]).await?;
    let sql = rows.iter().map(|row| Ok(format!("alter event trigger {} enable always;", ident(row.try_get(0)?))));
    let sql = sql.collect::<Result<Vec<String>, tokio_postgres::Error>>()?;
    let what = if sql.is_empty() { "has no event triggers" } else { "has its event triggers disabled" };
    let finding = Finding::note("rule_hints", subject, format!("{what} that tell of changed rules"))
        .why(
            "Without them, a changed function or schema, what changes on a table that another's policy looks into, and rules of \
             a partitioned table that is published as its root are noticed a second or two late. A table's own policies and \
             grants are not: Postgres tells of them before its next row.",
        );
    Ok(match sql.is_empty() {
        true => finding.todo("Run `rowcast migrate up` as a superuser: only one can make event triggers."),
        false => finding.sql(sql.join("\n")),
    })
}

async fn steps(patient: &Patient<'_>) -> Vec<Finding> {
    let subject = || Subject::new(SubjectKind::Schema, "rowcast");
    let steps = match migrate::status(patient.client).await {
        Ok(steps) => steps,
        Err(error) => {
            return vec![Finding::error("migrations", subject(), chain(&error)).todo(error.advice())];
        }
    };
    let named = |wanted: &dyn Fn(&migrate::Status) -> bool| -> Vec<String> {
        steps.iter().filter(|step| wanted(step)).map(|step| format!("{:04} {}", step.version, step.name)).collect()
    };
    let changed = named(&|step| step.changed);
    if !changed.is_empty() {
        return vec![
            Finding::error("migrations", subject(), format!("was made by another Rowcast: {}", changed.join(", ")))
                .why("This Rowcast does not know what is there, and does not start.")
                .todo("Use the Rowcast that migrated this database, or a newer one."),
        ];
    }
    let own = named(&|step| step.applied_at.is_none() && step.scope == migrate::Scope::Own);
    if !own.is_empty() {
        return vec![
            Finding::note("migrations", subject(), format!("`rowcast serve` will apply {}", own.join(", ")))
                .why("They make what the relay itself needs."),
        ];
    }
    let shared = named(&|step| step.applied_at.is_none() && !step.optional);
    if !shared.is_empty() {
        let what = format!("not applied, which is fine if you have your own: {}", shared.join(", "));
        return vec![
            Finding::note("migrations", subject(), what)
                .why("They make the roles of tokens, auth.uid() and the publication, where absent.")
                .todo("Run `rowcast migrate up` as an owner if you want them."),
        ];
    }
    let applied = steps.iter().filter(|step| step.applied_at.is_some()).count();
    let what = match applied == steps.len() {
        true => format!("all {applied} steps are applied"),
        false => format!("all {applied} steps that are needed are applied"),
    };
    vec![Finding::ok("migrations", subject(), what)]
}

/// Publications that are missing: found with the login's rights, mended by an owner.
pub(super) fn missing_publications(patient: &Patient<'_>, slot_exists: bool) -> Vec<Finding> {
    let facts = patient.facts;
    // The relay makes its own publications together with its schema.
    let is_own = |name: &str| [FACTS_PUBLICATION, MESSAGES_PUBLICATION].contains(&name);
    let wanted = facts.missing_publications.iter().filter(|name| !is_own(name) || facts.has_schema);
    wanted
        .map(|name| {
            if name == MESSAGES_PUBLICATION {
                // A relay from before it was there; the next start makes it, and takes it into the stream behind what is there.
                return Finding::warning("publication_missing", Subject::new(SubjectKind::Publication, name), "there is no such publication")
                    .why("Without it what is inserted into realtime.messages is not broadcast.")
                    .sql(format!("create publication {name} with (publish = 'insert', publish_via_partition_root = true);"))
                    .todo("Then start the relay again, which adds the table if its login may.");
            }
            let mut sql = format!("create publication {};", ident(name));
            let mut todo = "Then add your tables to it: alter publication … add table …".to_owned();
            if slot_exists {
                let slot = literal(&patient.config.ingest.wal.slot);
                sql.push_str(&format!("\nselect pg_drop_replication_slot({slot});"));
                todo.push_str(
                    ". The slot has to be made anew by the next start: one that is older than its publication fails at the \
                     first row. Clients are told of a gap.",
                );
            }
            Finding::error("publication_missing", Subject::new(SubjectKind::Publication, name), "there is no such publication")
                .why("The relay does not start without it.")
                .sql(sql)
                .todo(todo)
        })
        .collect()
}
