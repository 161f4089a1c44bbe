//! The policies of `realtime.messages` for one role and one way, compiled, and what the row that they judge looks like.
//!
//! Invariants:
//! * The row is the one that the probe inserts: topic, extension, and in all other columns NULL or a default. A policy that
//!   reads what differs from probe to probe (its id, its times) is left to Postgres.
//! * What could happen at the INSERT beside the policies (a trigger, a constraint) leaves everything to Postgres.
//! * A policy that raises for somebody is left to Postgres, too: whether it comes to that is its planner's affair.

use std::sync::Arc;

use super::Way;
use crate::catalog::{Catalog, Column, Messages, PolicyRow, Table};
use crate::change::Value;
use crate::pgtype::oid;
use crate::policy::facts::{FactBinding, Facts, Side};
use crate::policy::rule::{self, Compiled, KnownViewer, Rule, Truth};

/// How a channel is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberEngine {
    /// Everything is allowed: row-level security does not apply to the role.
    Everything,
    /// Nothing is: no privilege, no policy, or a superuser, whom a token must not name. Why, in words.
    Nothing(&'static str),
    /// In memory.
    Pure(Arc<Rule>),
    /// By Postgres, for this reason.
    Probe(String),
}

/// See the module's comment. Comparable: equal plans give equal answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberPlan {
    /// How.
    pub engine: MemberEngine,
    /// What the rule's columns are in the row, in its order.
    cells: Vec<Cell>,
    /// What Postgres would judge by: only so that other policies make another plan.
    policies: Vec<PolicyRow>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cell {
    Topic,
    Extension,
    False,
    True,
    Null,
}

/// What makes no difference: times and ids.
const HARMLESS: &[&str] = &[
    "now()",
    "CURRENT_TIMESTAMP",
    "LOCALTIMESTAMP",
    "timezone('utc'::text, now())",
    "(now() AT TIME ZONE 'utc'::text)",
    "gen_random_uuid()",
    "extensions.uuid_generate_v4()",
    "uuid_generate_v4()",
];

impl MemberPlan {
    /// Never fails: what memory can't judge is left to Postgres, with the reason.
    pub fn compile(catalog: &Catalog, role: &str, way: Way) -> MemberPlan {
        let Some(messages) = catalog.messages() else { return probe("there is no table realtime.messages") };
        let table = match way {
            Way::Read => &messages.reading,
            Way::Write => &messages.inserting,
        };
        let (Some(known), Some(access)) = (catalog.role(role), table.access.get(role)) else {
            return probe("the role is not known");
        };
        if let Some(why) = obstacle(messages) {
            return probe(why);
        }
        if known.superuser {
            return nothing("a token must not name a superuser");
        }
        let needed: &[&str] = if way == Way::Read { &["id"] } else { &["topic", "extension"] };
        let has = |name: &&str| table.column(name).is_some_and(|column| access.columns.contains(&column.number));
        if !access.schema_usage || !needed.iter().all(has) {
            return nothing("the role lacks the privilege");
        }
        if known.bypass_row_security || (access.owner && !table.force_row_security) || !table.row_security {
            return MemberPlan { engine: MemberEngine::Everything, cells: Vec::new(), policies: Vec::new() };
        }
        let applying = table.policies.iter().filter(|policy| access.policies.contains(&policy.name));
        let applying: Vec<(&PolicyRow, &str)> =
            applying.filter_map(|policy| Some((policy, policy.expression.as_deref()?))).collect();
        let (permissive, restrictive): (Vec<_>, Vec<_>) = applying.iter().partition(|(policy, _)| policy.permissive);
        if permissive.is_empty() {
            return nothing("no policy for the role");
        }
        let mut plan = match rule::compile_channel(catalog, table, role, &permissive, &restrictive) {
            Compiled::Pure(rule) => pure(*rule, messages),
            Compiled::NotPure(why) => probe(why),
            Compiled::Refused(why) => probe(format!("Postgres refuses every query of the role: {why}")),
        };
        if let MemberEngine::Probe(_) = plan.engine {
            plan.policies = applying.iter().map(|(policy, _)| PolicyRow::clone(policy)).collect();
        }
        plan
    }

    /// The rule that memory judges by, if there is one.
    pub fn rule(&self) -> Option<&Arc<Rule>> {
        match &self.engine {
            MemberEngine::Pure(rule) => Some(rule),
            MemberEngine::Everything | MemberEngine::Nothing(_) | MemberEngine::Probe(_) => None,
        }
    }

    /// Whether a row of this topic and extension would be visible, or may be inserted, by the facts after the transaction at
    /// hand; `None`: only Postgres knows, or the facts are not there. `viewer`: [`Rule::viewer`] of the member; of anybody if
    /// there is no rule.
    pub fn judge(
        &self,
        viewer: &KnownViewer,
        topic: &str,
        extension: &str,
        facts: Option<(&FactBinding, &Facts)>,
    ) -> Option<bool> {
        let rule = match &self.engine {
            MemberEngine::Everything => return Some(true),
            MemberEngine::Nothing(_) => return Some(false),
            MemberEngine::Probe(_) => return None,
            MemberEngine::Pure(rule) => rule,
        };
        // Postgres can't be told such a topic.
        if topic.contains('\0') {
            return None;
        }
        let (binding, facts) = facts?;
        let column = |place: usize| match self.cells.get(place) {
            Some(Cell::Topic) => Value::Text(topic.as_bytes()),
            Some(Cell::Extension) => Value::Text(extension.as_bytes()),
            Some(Cell::False) => Value::Text(b"f"),
            Some(Cell::True) => Value::Text(b"t"),
            Some(Cell::Null) => Value::Null,
            None => Value::Unchanged,
        };
        match rule.judge_row(binding, facts, Side::After, &column).truth(viewer) {
            Truth::True => Some(true),
            Truth::False | Truth::Null => Some(false),
            Truth::Raises | Truth::Unsure => None,
        }
    }
}

fn probe(why: impl Into<String>) -> MemberPlan {
    MemberPlan { engine: MemberEngine::Probe(why.into()), cells: Vec::new(), policies: Vec::new() }
}

fn nothing(why: &'static str) -> MemberPlan {
    MemberPlan { engine: MemberEngine::Nothing(why), cells: Vec::new(), policies: Vec::new() }
}

fn pure(rule: Rule, messages: &Messages) -> MemberPlan {
    let table = &messages.reading;
    let own = |oid: &u32| *oid == table.oid || table.leaves.contains(oid);
    if rule.sources.iter().any(|source| own(&source.table_oid)) {
        return probe("it looks into realtime.messages itself");
    }
    let mut cells = Vec::new();
    for read in &rule.reads {
        match cell(messages, &read.name) {
            Some(cell) => cells.push(cell),
            None => return probe(format!("it reads column {}, which differs from question to question", read.name)),
        }
    }
    MemberPlan { engine: MemberEngine::Pure(Arc::new(rule)), cells, policies: Vec::new() }
}

/// What the column is in the row; `None` if that is not always the same.
fn cell(messages: &Messages, name: &str) -> Option<Cell> {
    match name {
        "topic" => return Some(Cell::Topic),
        "extension" => return Some(Cell::Extension),
        "id" | "inserted_at" => return None,
        _ => {}
    }
    let column = messages.reading.column(name)?;
    match messages.defaults.get(name).map(String::as_str) {
        Some("false") => Some(Cell::False),
        Some("true") => Some(Cell::True),
        Some(_) => None,
        None => (!column.has_default && !column.generated).then_some(Cell::Null),
    }
}

/// Why an INSERT of topic and extension may do more, or other things, than have the policies looked at.
fn obstacle(messages: &Messages) -> Option<String> {
    if let Some(why) = &messages.obstacle {
        return Some(format!("realtime.messages has {why}"));
    }
    let table = &messages.reading;
    let is_text = |name: &str| {
        table.column(name).is_some_and(|column| column.type_oid == oid::TEXT && column.collation_deterministic)
    };
    if !is_text("topic") || !is_text("extension") || !is_keyed(table) {
        return Some("realtime.messages is not of the known shape".into());
    }
    let default = |column: &Column| messages.defaults.get(&column.name).map(String::as_str);
    let odd = |column: &&Column| {
        let named = matches!(column.name.as_str(), "topic" | "extension");
        match default(column) {
            _ if column.generated => true,
            Some("false" | "true") => column.type_oid != oid::BOOL,
            Some(text) => !HARMLESS.contains(&text),
            // An identity column counts as one without a default, and so as one that can't be filled.
            None => column.not_null && !named,
        }
    };
    table
        .columns
        .iter()
        .find(odd)
        .map(|column| format!("realtime.messages fills its column {} in its own way", column.name))
}

/// The random id makes every row a new one.
fn is_keyed(table: &Table) -> bool {
    table.primary_key.is_empty() || table.primary_key.iter().any(|name| name == "id")
}
