//! The login as which Postgres is asked about rows: a function of a policy may `RESET ROLE` and then is this login, on behalf of
//! any subscriber. So it should be a member of the token roles and have no other right.

use serde::Deserialize;
use tokio_postgres::Client;

use super::facts::Facts;
use super::finding::ident;
use super::{Finding, Subject, Unreadable, roles};
use crate::catalog::Catalog;
use crate::config::Config;
use crate::error::{Fault as _, chain};
use crate::policy::{Engine, Plan};

#[derive(Debug, Deserialize)]
struct Login {
    superuser: bool,
    bypass: bool,
    createrole: bool,
    inherits: bool,
    /// Relations and functions.
    owns: i64,
    /// Roles that it is a member of.
    member_of: Vec<String>,
    /// Those of them that it may become, and through them others.
    may_become: Vec<String>,
}

const LOGIN: &str = "select json_build_object('superuser', r.rolsuper, 'bypass', r.rolbypassrls, 'createrole', r.rolcreaterole, \
    'inherits', r.rolinherit, \
    'owns', (select count(*) from pg_catalog.pg_class c where c.relowner = r.oid and c.relkind in ('r', 'p', 'v', 'm', 'f')) \
          + (select count(*) from pg_catalog.pg_proc p where p.proowner = r.oid), \
    'member_of', (select coalesce(json_agg(g.rolname order by g.rolname), '[]') from pg_catalog.pg_auth_members m \
                  join pg_catalog.pg_roles g on g.oid = m.roleid where m.member = r.oid), \
    'may_become', (select coalesce(json_agg(g.rolname), '[]') from pg_catalog.pg_roles g where pg_has_role(r.oid, g.oid, \
                  case when current_setting('server_version_num')::int >= 160000 then 'SET' else 'MEMBER' end)))::text \
    from pg_catalog.pg_roles r where r.rolname = $1";

pub(super) async fn check(
    client: &Client,
    catalog: &Catalog,
    config: &Config,
    facts: &Facts,
    plans: &[Plan],
) -> Result<Vec<Finding>, Unreadable> {
    let own = config.ask_login.is_some();
    let name = config.ask_pg().connection.get_user().unwrap_or(&facts.login);
    if let Some(asking) = &config.ask_login
        && let Err(error) = asking.connect().await
    {
        let finding = Finding::error("ask_login", Subject::role(name), chain(&error))
            .why("As this login Postgres is asked about rows that memory can't judge (ROWCAST_ASK_USER); the relay does not start.");
        let advice = error.advice();
        return Ok(vec![if advice.is_empty() { finding } else { finding.todo(advice) }]);
    }
    let Some(row) = client.query_opt(LOGIN, &[&name]).await? else { return Ok(Vec::new()) };
    let login: Login = serde_json::from_str(row.try_get(0)?)?;
    let known =
        |role: &str| catalog.role(role).is_none() || login.superuser || login.may_become.iter().any(|m| m == role);
    let mut findings = roles::in_use(facts, plans, name, known);
    if own || plans.iter().any(|plan| matches!(plan.engine, Engine::Ask { .. })) {
        findings.extend(rights(name, &login, plans, own));
    }
    Ok(findings)
}

fn rights(name: &str, login: &Login, plans: &[Plan], own: bool) -> Option<Finding> {
    let others: Vec<&str> = login
        .member_of
        .iter()
        .map(String::as_str)
        // Those of roles.sql; filters are judged as one that has no rights.
        .filter(|role| !["rowcast_filter", "rowcast_retention", "supabase_realtime_admin"].contains(role) || own)
        .filter(|role| !super::TOKEN_ROLES.contains(role) && plans.iter().all(|plan| plan.role != *role))
        .collect();
    let mut excess = Vec::new();
    // Of the relay's own login these are told elsewhere.
    for (has, what) in [
        (login.superuser, "is a superuser"),
        (login.bypass, "bypasses row-level security"),
        (login.createrole, "may make roles"),
    ] {
        if own && has {
            excess.push(what.to_owned());
        }
    }
    if login.owns > 0 && (own || !login.superuser) {
        excess.push(format!("owns {} tables, views or functions", login.owns));
    }
    if !others.is_empty() {
        excess.push(format!("is a member of {}", others.join(", ")));
    }
    if own && login.inherits && !login.member_of.is_empty() {
        excess.push("inherits the rights of its roles".to_owned());
    }
    if excess.is_empty() {
        return own
            .then(|| Finding::ok("ask_login", Subject::role(name), "may become the roles of tokens and nothing else"));
    }
    let what = format!("Postgres is asked about rows as this login, which {}", excess.join(", "));
    let why =
        "A function in a policy may RESET ROLE, and then runs with this login's rights on behalf of any subscriber.";
    let subject = Subject::role(name);
    let dangerous = own && (login.superuser || login.bypass);
    let finding = if dangerous {
        Finding::warning("ask_login", subject, what)
    } else {
        Finding::note("ask_login", subject, what)
    };
    let finding = finding.why(why);
    if !own {
        return Some(
            finding.todo("sql/roles.sql makes rowcast_ask, which has no other right; name it in ROWCAST_ASK_USER."),
        );
    }
    let mut sql = format!("alter role {} nosuperuser nobypassrls nocreaterole noinherit;", ident(name));
    for role in others {
        sql.push_str(&format!("\nrevoke {} from {};", ident(role), ident(name)));
    }
    let finding = finding.sql(sql);
    Some(if login.owns > 0 {
        finding.todo("Give what it owns to another role: reassign owned by …")
    } else {
        finding
    })
}
