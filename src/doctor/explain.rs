//! The rules of one table for one role, as the relay follows them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::channels::{self, ChannelView};
use super::engines::{denial, what_would_make_it_pure};
use super::insight::{self, FactView, RulesView};
use super::tables::unseen_in_deletes;
use super::{millis, read_catalog, with_publications};
use crate::catalog::{Catalog, PolicyCommand, Table};
use crate::config::Config;
use crate::error::{Fault, Remedy, chain};
use crate::pg::PgError;
use crate::policy::rule::Branch;
use crate::policy::{self, Engine, Plan, compile};

/// Why a table can't be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The database.
    #[error(transparent)]
    Pg(#[from] PgError),
    /// The catalog could not be read.
    #[error("cannot read the rules: {0}")]
    Catalog(String),
    /// No client publication sends it.
    #[error("table {table} is not published by {}", publications.join(", "))]
    NotPublished {
        /// As it was asked for.
        table: String,
        /// Where it was looked for.
        publications: Vec<String>,
        /// What is published, to choose from.
        published: Vec<String>,
    },
}

impl Fault for ExplainError {
    fn remedy(&self) -> Remedy {
        match self {
            ExplainError::Pg(error) => error.remedy(),
            ExplainError::Catalog(_) => Remedy::Retry,
            ExplainError::NotPublished { .. } => Remedy::Operator,
        }
    }

    fn advice(&self) -> String {
        match self {
            ExplainError::Pg(error) => error.advice(),
            ExplainError::Catalog(_) => String::new(),
            ExplainError::NotPublished { published, .. } if published.is_empty() => {
                "Nothing is published yet: alter publication … add table …".into()
            }
            ExplainError::NotPublished { published, .. } => format!("Published are: {}.", published.join(", ")),
        }
    }
}

/// A policy that governs reading.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyText {
    /// Its name.
    pub name: String,
    /// `permissive` or `restrictive`.
    pub kind: &'static str,
    /// `select` or `all`.
    pub command: &'static str,
    /// The roles in TO.
    pub roles: Vec<String>,
    /// Whether it applies to the role.
    pub applies: bool,
    /// USING; `None`: it neither permits nor restricts reading.
    pub using: Option<String>,
    /// Whether memory alone could judge it; `None` if it does not apply or has no USING.
    pub in_memory: Option<bool>,
    /// Why Postgres would have to be asked about it; `None` if not.
    pub asked_because: Option<String>,
}

/// What becomes of a DELETE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeleteView {
    /// Whether the role can receive any.
    pub delivered: bool,
    /// Why, or why not.
    pub why: String,
}

/// What asking Postgres costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AskCost {
    /// The statement; `$1` is the row.
    pub statement: String,
    /// For one user's statement.
    pub statement_timeout_ms: u64,
    /// For one change and all its users; then they are told of a gap.
    pub deadline_ms: u64,
    /// How often, in words.
    pub how_often: String,
}

/// The rules of one table for one role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// `schema.name`.
    pub table: String,
    /// The role.
    pub role: String,
    /// `everything`, `pure`, `ask` or `deny`.
    pub engine: &'static str,
    /// Why it is this one.
    pub reason: String,
    /// Of `pure`: the condition that memory evaluates.
    pub condition: Option<String>,
    /// The same as a tree.
    pub condition_tree: Option<Branch>,
    /// The tables that it looks into.
    pub facts: Vec<FactView>,
    /// The column by which the receivers of a row are found without looking at anybody else.
    pub owner_column: Option<String>,
    /// The policies that govern reading, whether they apply or not.
    pub policies: Vec<PolicyText>,
    /// The publication's row filter, where the relay applies it.
    pub row_filter: Option<String>,
    /// Columns in the payload.
    pub columns_shown: Vec<String>,
    /// Columns that the role may not select.
    pub columns_withheld: Vec<String>,
    /// Columns that the stream does not carry.
    pub columns_not_sent: Vec<String>,
    /// Why no INSERT or UPDATE is ever sent to the role; `None` if the policies decide.
    pub obstacle: Option<&'static str>,
    /// DELETEs.
    pub deletes: DeleteView,
    /// Of `ask`: what it costs.
    pub ask: Option<AskCost>,
    /// Of `ask`: what would let memory judge.
    pub pure_if: Option<String>,
    /// Of `realtime.messages`: how its policies decide who may read and write private channels.
    pub private_channels: Vec<ChannelView>,
    /// A change of the rules counts for every row that is judged later than this after its commit, in milliseconds.
    pub rules_followed_within_ms: u64,
    /// Which changes of rules count at their commit, and which are looked for.
    pub rules: RulesView,
}

/// Reads the rules and explains them, one explanation a role. `table` is `schema.name`, or a name in schema `public`. Reads
/// only the catalog.
pub async fn explain(config: &Config, table: &str, roles: &[String]) -> Result<Vec<Explanation>, ExplainError> {
    let config = with_publications(config);
    let mut client = config.pg.connect().await?;
    let wanted = roles.iter().cloned().collect();
    let catalog = read_catalog(&mut client, &config, &wanted).await.map_err(ExplainError::Catalog)?;
    let Some(found) = find(&catalog, table) else {
        let mut published: Vec<String> = catalog.tables().map(|t| format!("{}.{}", t.schema, t.name)).collect();
        published.sort_unstable();
        return Err(ExplainError::NotPublished {
            table: table.to_owned(),
            publications: config.publications.clone(),
            published,
        });
    };
    let failed = |error: tokio_postgres::Error| ExplainError::Catalog(chain(&error));
    let hinted = insight::hinted(&client).await.map_err(failed)?;
    let mut explanations = Vec::with_capacity(roles.len());
    for role in roles {
        let plan = compile(&catalog, found.oid, role, config.hub.policy);
        let facts = match &plan.engine {
            Engine::Pure(rule) => insight::facts(&client, rule).await.map_err(failed)?,
            _ => Vec::new(),
        };
        let mut explanation = explained(&catalog, found, &plan, &config);
        explanation.facts = facts;
        if catalog.messages().is_some_and(|messages| messages.reading.oid == found.oid) {
            let views = channels::views(&client, &catalog, role, &config).await;
            explanation.private_channels = views.map_err(failed)?;
        }
        explanation.rules = insight::rules(&config, hinted);
        explanations.push(explanation);
    }
    Ok(explanations)
}

/// A dot may also stand in a name.
fn find<'a>(catalog: &'a Catalog, text: &str) -> Option<&'a Table> {
    let splits = text.match_indices('.').map(|(dot, _)| (&text[..dot], &text[dot + 1..]));
    let mut tried = splits.chain([("public", text)]);
    // Private channels go by its policies, whether it is published to clients or not.
    let messages = || catalog.messages().map(|messages| &messages.reading).filter(|_| text == "realtime.messages");
    tried.find_map(|(schema, name)| catalog.find(schema, name)).or_else(messages).map(|table| &**table)
}

fn explained(catalog: &Catalog, table: &Table, plan: &Plan, config: &Config) -> Explanation {
    let (engine, reason) = engine(table, plan);
    let names = |wanted: &dyn Fn(&crate::catalog::Column) -> bool| -> Vec<String> {
        table.columns.iter().filter(|column| wanted(column)).map(|column| column.name.clone()).collect()
    };
    let readable = |column: &crate::catalog::Column| plan.readable.contains(&column.name);
    let obstacle = policy::obstacle(catalog, table, &plan.role, config.hub.policy);
    let asked = match &plan.engine {
        Engine::Ask { sql, reason } => Some((sql, reason)),
        _ => None,
    };
    let row_filter = table.published.as_ref().and_then(|published| published.row_filter.as_ref());
    Explanation {
        table: format!("{}.{}", table.schema, table.name),
        role: plan.role.clone(),
        engine,
        reason,
        condition: match &plan.engine {
            Engine::Pure(rule) => Some(rule.to_string()),
            _ => None,
        },
        condition_tree: match &plan.engine {
            Engine::Pure(rule) => Some(rule.tree(&|rule| rule.to_string())),
            _ => None,
        },
        facts: Vec::new(),
        rules: insight::rules(config, false),
        owner_column: plan.keys().map(ToString::to_string),
        policies: policies(catalog, table, &plan.role),
        row_filter: row_filter.map(|filter| filter.expression.clone()),
        columns_shown: names(&|column| readable(column) && table.is_sent(column)),
        columns_withheld: names(&|column| !readable(column) && table.is_sent(column)),
        columns_not_sent: names(&|column| !table.is_sent(column)),
        obstacle: obstacle.map(denial),
        deletes: deletes(table, plan),
        ask: asked.map(|(sql, _)| cost(sql, plan, config)),
        private_channels: Vec::new(),
        pure_if: asked.map(|(_, reason)| what_would_make_it_pure(reason)),
        rules_followed_within_ms: millis(config.hub.max_rules_age),
    }
}

fn engine(table: &Table, plan: &Plan) -> (&'static str, String) {
    match &plan.engine {
        Engine::Everything if table.row_security => {
            ("everything", "row-level security does not apply to the role: it has BYPASSRLS or owns the table".into())
        }
        Engine::Everything => ("everything", "the table has no row-level security".into()),
        Engine::Pure(_) => ("pure", "memory judges the policies exactly as Postgres does".into()),
        Engine::Ask { reason, .. } => ("ask", reason.clone()),
        Engine::Deny(reason) => ("deny", plan.refused.clone().unwrap_or_else(|| denial(*reason).into())),
    }
}

fn policies(catalog: &Catalog, table: &Table, role: &str) -> Vec<PolicyText> {
    policy_texts(table, role, &mut policy::obstacles_to_memory(catalog, table, role))
}

/// Of each policy of the table; `asked`: of those that apply, why memory can't judge them.
pub(super) fn policy_texts(table: &Table, role: &str, asked: &mut BTreeMap<String, Option<String>>) -> Vec<PolicyText> {
    let applying = table.access.get(role).map(|access| &access.policies);
    let text = |row: &crate::catalog::PolicyRow| PolicyText {
        in_memory: asked.get(&row.name).map(Option::is_none),
        asked_because: asked.remove(&row.name).flatten(),
        name: row.name.clone(),
        kind: if row.permissive { "permissive" } else { "restrictive" },
        command: match row.command {
            PolicyCommand::Select => "select",
            PolicyCommand::All => "all",
        },
        roles: row.roles.clone(),
        applies: applying.is_some_and(|names| names.contains(&row.name)),
        using: row.expression.clone(),
    };
    table.policies.iter().map(text).collect()
}

fn deletes(table: &Table, plan: &Plan) -> DeleteView {
    let (delivered, why) = match &plan.engine {
        _ if !table.published.as_ref().is_some_and(|published| published.delete) => {
            (false, "the publication does not send DELETE".to_owned())
        }
        _ if plan.deletes_to_all() => {
            (true, "ROWCAST_DELETES=key-to-all: every subscriber gets the primary key".to_owned())
        }
        Engine::Deny(reason) => (false, denial(*reason).to_owned()),
        _ => {
            let unseen = unseen_in_deletes(table, plan);
            if unseen.is_empty() {
                let gone =
                    "; one that cascades from a table which the policy looks into is denied, since that row is gone";
                let asked = matches!(plan.engine, Engine::Ask { .. });
                (true, format!("the old row has all that decides{}", if asked { gone } else { "" }))
            } else {
                let names = unseen.join(", ");
                (false, format!("the old row lacks {names}, which the policy reads: use REPLICA IDENTITY FULL"))
            }
        }
    };
    DeleteView { delivered, why }
}

fn cost(sql: &str, plan: &Plan, config: &Config) -> AskCost {
    let who = match plan.keys() {
        Some(keys) => format!("users found by {keys}"),
        None => "subscribed users whose filter passes".to_owned(),
    };
    let ask = &config.hub.ask;
    AskCost {
        statement: sql.to_owned(),
        statement_timeout_ms: millis(ask.statement_timeout),
        deadline_ms: millis(ask.deadline),
        how_often: format!(
            "one statement for each change and each of the {who}, in one read-only transaction and one round trip; users with \
             equal claims share one"
        ),
    }
}
