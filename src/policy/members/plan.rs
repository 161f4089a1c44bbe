//! The policies of `realtime.messages` for one role and one way, compiled, and what the row that they judge looks like.
//!
//! Invariants:
//! * The row is the one that the probe inserts: topic, extension, and in all other columns NULL or a default. A policy that
//!   reads what differs from probe to probe (its id, its times) is left to Postgres.
//! * What could happen at the INSERT beside the policies (a trigger, a constraint) leaves everything to Postgres.
//! * A policy that raises for somebody is left to Postgres, too: whether it comes to that is its planner's affair.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::Way;
use crate::catalog::{Catalog, Column, Messages, PolicyRow, Table};
use crate::change::Value;
use crate::pgtype::oid;
use crate::policy::facts::{Concerns, FactBinding, Facts, Numbers, Side};
use crate::policy::rule::{self, Compiled, KnownViewer, Policies, Rule, TopicValue, Truth, Viewer};
use crate::policy::term::Fault;

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
    /// What the rule's columns are in the row, in its order; then what must not raise, though it reads it no more.
    cells: Vec<Cell>,
    /// What Postgres would judge by: only so that other policies make another plan.
    policies: Vec<PolicyRow>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Cell {
    Topic(TopicValue),
    Extension,
    False,
    True,
    Null,
}

impl Cell {
    /// What Postgres would print; `None` for NULL.
    fn value<'a>(&'a self, topic: &'a str, extension: &'a str) -> Result<Option<Cow<'a, [u8]>>, Fault> {
        match self {
            Cell::Topic(value) => value.of(topic),
            Cell::Extension => Ok(Some(Cow::Borrowed(extension.as_bytes()))),
            Cell::False => Ok(Some(Cow::Borrowed(b"f"))),
            Cell::True => Ok(Some(Cow::Borrowed(b"t"))),
            Cell::Null => Ok(None),
        }
    }
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
        let table = messages.of(way);
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
        let applying = applying(table, role);
        let (permissive, restrictive): (Vec<_>, Vec<_>) = applying.iter().partition(|(policy, _)| policy.permissive);
        if permissive.is_empty() {
            return nothing("no policy for the role");
        }
        let mut plan = judged(catalog, messages, table, role, (&permissive, &restrictive));
        if let MemberEngine::Probe(_) = plan.engine {
            plan.policies = applying.iter().map(|(policy, _)| PolicyRow::clone(policy)).collect();
        }
        plan
    }

    /// Of each policy that applies to the role: why memory could not judge it if it were the only one; `None` if it could.
    pub fn obstacles(catalog: &Catalog, role: &str, way: Way) -> BTreeMap<String, Option<String>> {
        let Some(messages) = catalog.messages() else { return BTreeMap::new() };
        let table = messages.of(way);
        let alone = |(policy, text): (&PolicyRow, &str)| {
            let plan = judged(catalog, messages, table, role, (&[(policy, text)], &[]));
            let why = match plan.engine {
                // The name of the policy stands beside it.
                MemberEngine::Probe(why) => {
                    Some(why.strip_prefix(&format!("policy \"{}\": ", policy.name)).unwrap_or(&why).to_owned())
                }
                MemberEngine::Everything | MemberEngine::Nothing(_) | MemberEngine::Pure(_) => None,
            };
            (policy.name.clone(), why)
        };
        applying(table, role).into_iter().map(alone).collect()
    }

    /// What the rule makes of the topic by casts: a topic for which one of them raises is left to Postgres.
    pub fn casts(&self) -> Vec<String> {
        let raising = |cell: &Cell| match cell {
            Cell::Topic(value) if value.may_raise() => Some(value.to_string()),
            _ => None,
        };
        self.cells.iter().filter_map(raising).collect()
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
        let values = self.values(topic, extension)?;
        let column = |place: usize| value(&values, place);
        match rule.judge_row(binding, facts, Side::After, &column).truth(viewer) {
            Truth::True => Some(true),
            Truth::False | Truth::Null => Some(false),
            Truth::Raises | Truth::Unsure => None,
        }
    }

    /// Calls `found` with the numbers by which changes of facts find who is judged for this topic ([`Concerns::of_viewer`]).
    /// `concerns` are those of the plan's rule, and so is the viewer.
    pub fn places(
        &self,
        concerns: &Concerns,
        viewer: &Viewer,
        topic: &str,
        numbers: Numbers<'_>,
        found: &mut dyn FnMut(u64),
    ) {
        let extensions = if self.reads_extension() { &["broadcast", "presence"][..] } else { &["broadcast"] };
        for extension in extensions {
            match self.values(topic, extension) {
                Some(values) => concerns.of_viewer(viewer, &|place| value(&values, place), numbers, found),
                None => found(numbers.always()),
            }
        }
    }

    /// Whether a topic's broadcasts may be judged otherwise than its presence.
    pub fn reads_extension(&self) -> bool {
        self.cells.contains(&Cell::Extension)
    }

    /// The row's; `None` where a cast of the topic raises: Postgres may have come to it while it planned, whatever the policy says
    /// before it.
    fn values<'a>(&'a self, topic: &'a str, extension: &'a str) -> Option<Values<'a>> {
        self.cells.iter().map(|cell| cell.value(topic, extension)).collect::<Result<_, _>>().ok()
    }
}

type Values<'a> = SmallVec<[Option<Cow<'a, [u8]>>; 4]>;

fn value<'a>(values: &'a Values<'_>, place: usize) -> Value<'a> {
    match values.get(place) {
        Some(Some(text)) => Value::Text(text),
        Some(None) => Value::Null,
        None => Value::Unchanged,
    }
}

fn probe(why: impl Into<String>) -> MemberPlan {
    MemberPlan { engine: MemberEngine::Probe(why.into()), cells: Vec::new(), policies: Vec::new() }
}

fn nothing(why: &'static str) -> MemberPlan {
    MemberPlan { engine: MemberEngine::Nothing(why), cells: Vec::new(), policies: Vec::new() }
}

impl Messages {
    fn of(&self, way: Way) -> &Arc<Table> {
        match way {
            Way::Read => &self.reading,
            Way::Write => &self.inserting,
        }
    }
}

/// Those that say something, with what they say.
fn applying<'a>(table: &'a Table, role: &str) -> Vec<(&'a PolicyRow, &'a str)> {
    let Some(access) = table.access.get(role) else { return Vec::new() };
    let applying = table.policies.iter().filter(|policy| access.policies.contains(&policy.name));
    applying.filter_map(|policy| Some((policy, policy.expression.as_deref()?))).collect()
}

fn judged<'a>(
    catalog: &'a Catalog,
    messages: &Messages,
    table: &'a Table,
    role: &'a str,
    (permissive, restrictive): (&Policies<'a>, &Policies<'a>),
) -> MemberPlan {
    let (compiled, values) = rule::compile_channel(catalog, table, role, permissive, restrictive);
    match compiled {
        Compiled::Pure(rule) => pure(*rule, &values, messages),
        Compiled::NotPure(why) => probe(why),
        Compiled::Refused(why) => probe(format!("Postgres refuses every query of the role: {why}")),
    }
}

fn pure(rule: Rule, values: &[TopicValue], messages: &Messages) -> MemberPlan {
    let table = &messages.reading;
    let own = |oid: &u32| *oid == table.oid || table.leaves.contains(oid);
    if rule.sources.iter().any(|source| own(&source.table_oid)) {
        return probe("it looks into realtime.messages itself");
    }
    let mut cells = Vec::new();
    for read in &rule.reads {
        let made = usize::try_from(-1 - i32::from(read.number)).ok().and_then(|place| values.get(place));
        if let Some(value) = made {
            cells.push(Cell::Topic(value.clone()));
            continue;
        }
        match cell(messages, &read.name) {
            Some(cell) => cells.push(cell),
            None => return probe(format!("it reads column {}, which differs from question to question", read.name)),
        }
    }
    // What folding has left out of the rule may raise all the same.
    for value in values.iter().filter(|value| value.may_raise()) {
        let cell = Cell::Topic(value.clone());
        if !cells.contains(&cell) {
            cells.push(cell);
        }
    }
    MemberPlan { engine: MemberEngine::Pure(Arc::new(rule)), cells, policies: Vec::new() }
}

/// What the column is in the row; `None` if that is not always the same.
fn cell(messages: &Messages, name: &str) -> Option<Cell> {
    match name {
        "topic" => return Some(Cell::Topic(TopicValue::Topic)),
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
