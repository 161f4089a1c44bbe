//! What is wrong with a database, a role and a machine on which a relay is to run, and what mends it.
//!
//! ```text
//! settings ─► Config ─► examine ─► machine.rs    folder, disk, keys, secret
//!                                  connection.rs reach it, TLS, poolers, the replication connection
//!                                  server.rs     version, settings, clock
//!                                  slot.rs       our slot, slots that nobody reads
//!                                  roles.rs      the login, the roles of tokens, schema rowcast
//!                                  publications.rs  what is sent, and what would break the writers
//!                                  tables.rs     keys, replica identity, row-level security, grants, deletes
//!                                  engines.rs    who judges each (table, role)
//!                                  fact_tables.rs  tables that policies look into
//! explain.rs, insight.rs  one (table, role) in full, for `rowcast explain-policy`
//! ```
//!
//! Invariants:
//! * Nothing is changed: no slot, no object, no file, no setting. A relay need not run, and one that runs is not disturbed.
//! * Every wait has a deadline. What can't be looked at is a finding itself, and the other checks go on.
//! * Collecting is apart from printing: everything is a [`Finding`], whose `check` is a name that scripts may rely on.
//! * `sql` is complete: its lines, each one statement in one session, make the finding go away. `todo` says what to think about
//!   before, what is left to do after, and what SQL can't do.
//! * No secret and no row is in a finding.
//!
//! Rejected: a `--fix` that runs the SQL. Most of it locks tables, rewrites WAL volume or loses history, and whoever owns the
//! database decides when.

mod asking;
mod channels;
mod connection;
mod engines;
mod explain;
mod fact_tables;
mod facts;
mod finding;
mod insight;
mod machine;
mod messages;
mod publications;
mod roles;
mod server;
mod slot;
mod tables;

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_postgres::Client;

use crate::catalog::{self, Catalog, Wanted};
use crate::clock::Clock;
use crate::config::Config;
use crate::error::{Fault as _, chain};
use crate::policy::{Plan, compile};

pub use channels::ChannelView;
pub use engines::what_would_make_it_pure;
pub use explain::{AskCost, DeleteView, ExplainError, Explanation, PolicyText, explain};
pub use finding::{Finding, Severity, Subject, SubjectKind, worst};
pub use insight::{FactView, RulesView};
pub use machine::usable;

use facts::Facts;

/// For one group of checks.
const GROUP: Duration = Duration::from_secs(30);
/// The roles that tokens name if nobody says otherwise.
pub const TOKEN_ROLES: [&str; 3] = ["anon", "authenticated", "service_role"];

/// Why something could not be looked at.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("the question failed")]
    Query(#[from] tokio_postgres::Error),
    #[error("the answer makes no sense")]
    Answer(#[from] serde_json::Error),
    #[error("no answer within {0:?}")]
    Silence(Duration),
}

/// What the checks of the database look at.
struct Patient<'a> {
    config: &'a Config,
    client: &'a Client,
    facts: &'a Facts,
    /// Roles that were asked for by name; the others may be absent.
    wanted: &'a [String],
}

/// Looks at everything. `roles` are those of the operator's tokens beside `anon`, `authenticated` and `service_role`. Takes some
/// minutes at the very most, usually less than a second.
pub async fn examine(config: &Config, roles: &[String], clock: &Clock) -> Vec<Finding> {
    let config = &with_publications(config);
    let mut findings = machine::check(config).await;
    let mut client = match connection::reach(config, &mut findings).await {
        Some(client) => client,
        None => return findings,
    };
    let facts = match within(Facts::read(&client, config, clock)).await {
        Ok(facts) => facts,
        Err(error) => {
            findings.push(unreadable("the server", chain(&error)));
            return findings;
        }
    };
    let patient = Patient { config, client: &client, facts: &facts, wanted: roles };
    findings.extend(connection::check(&patient).await);
    // Through a pooler, whatever else is seen may be another session's.
    if findings.iter().any(|finding| finding.check == "pooler") {
        return findings;
    }
    findings.extend(server::check(&patient));
    if database(&patient, &mut findings).await.is_err() {
        return findings;
    }
    let all = token_roles(config, roles);
    match read_catalog(&mut client, config, &all).await {
        Ok(catalog) => tables_and_engines(&client, &catalog, config, &facts, &all, &mut findings).await,
        Err(text) => findings.push(unreadable("the catalog", text)),
    }
    findings
}

/// A session that has stopped answering.
struct Silent;

async fn database(patient: &Patient<'_>, findings: &mut Vec<Finding>) -> Result<(), Silent> {
    gather(findings, "the slots", within(slot::check(patient)).await)?;
    gather(findings, "the roles", within(roles::check(patient)).await)?;
    gather(findings, "locks", within(publications::locked(patient)).await)?;
    gather(findings, "the publications", within(publications::check(patient)).await)?;
    gather(findings, "realtime.messages", within(messages::check(patient)).await)
}

async fn tables_and_engines(
    client: &Client,
    catalog: &Catalog,
    config: &Config,
    facts: &Facts,
    roles: &BTreeSet<String>,
    findings: &mut Vec<Finding>,
) {
    let relatives = within(tables::relatives(client, catalog)).await.unwrap_or_else(|error| {
        findings.push(unreadable("partitions and foreign keys", chain(&error)));
        Default::default()
    });
    let plans = plans(catalog, config, roles);
    findings.extend(
        within(Box::pin(asking::check(client, catalog, config, facts, &plans)))
            .await
            .unwrap_or_else(|error| vec![unreadable("the login that asks about rows", chain(&error))]),
    );
    findings.extend(
        within(async { Ok(channels::check(client, catalog, facts).await) })
            .await
            .unwrap_or_else(|error: Unreadable| vec![unreadable("private channels", chain(&error))]),
    );
    findings.extend(tables::check(catalog, config, facts, &plans, &relatives));
    findings.extend(engines::check(&plans));
    findings.extend(
        within(fact_tables::check(client, catalog, config, facts, &plans))
            .await
            .unwrap_or_else(|error| vec![unreadable("tables that policies look into", chain(&error))]),
    );
    if fact_tables::need_bypass(catalog, &plans) {
        findings.retain(|finding| finding.check != "login_bypassrls");
    }
}

/// The stream reads one publication more than clients may name.
fn with_publications(config: &Config) -> Config {
    let mut config = config.clone();
    config.ingest.wal.publications = config.stream_publications();
    config
}

/// Roles of tokens: the usual ones, those of API keys, and those that were named.
fn token_roles(config: &Config, named: &[String]) -> BTreeSet<String> {
    let usual = TOKEN_ROLES.iter().map(|role| (*role).to_owned());
    usual.chain(config.verifier.opaque_keys.values().cloned()).chain(named.iter().cloned()).collect()
}

fn plans(catalog: &Catalog, config: &Config, roles: &BTreeSet<String>) -> Vec<Plan> {
    let mut tables: Vec<_> = catalog.tables().collect();
    tables.sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
    let known = || roles.iter().filter(|role| catalog.role(role).is_some());
    let of = |oid| known().map(move |role| compile(catalog, oid, role, config.hub.policy));
    tables.into_iter().flat_map(|table| of(table.oid)).collect()
}

/// The catalog as the hub reads it.
async fn read_catalog(client: &mut Client, config: &Config, roles: &BTreeSet<String>) -> Result<Catalog, String> {
    let wanted = Wanted {
        publications: config.publications.clone(),
        others: config.stream_publications().into_iter().filter(|name| !config.publications.contains(name)).collect(),
        roles: roles.clone(),
    };
    catalog::read(client, &wanted).await.map_err(|error| {
        let advice = error.advice();
        if advice.is_empty() { chain(&error) } else { format!("{} ({advice})", chain(&error)) }
    })
}

/// A group of checks within its deadline.
async fn within<T>(work: impl Future<Output = Result<T, Unreadable>>) -> Result<T, Unreadable> {
    tokio::time::timeout(GROUP, work).await.map_err(|_| Unreadable::Silence(GROUP))?
}

fn gather(findings: &mut Vec<Finding>, what: &str, found: Result<Vec<Finding>, Unreadable>) -> Result<(), Silent> {
    match found {
        Ok(found) => findings.extend(found),
        Err(error) => {
            findings.push(unreadable(what, chain(&error)));
            // Each statement has a shorter time on the server, so it is the session that is stuck, not the question.
            if matches!(error, Unreadable::Silence(_)) {
                return Err(Silent);
            }
        }
    }
    Ok(())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn unreadable(what: &str, text: String) -> Finding {
    Finding::error("unreadable", Subject::server(), format!("cannot look at {what}: {text}"))
        .why("What is wrong there stays unknown; the relay looks at it in the same way.")
}
