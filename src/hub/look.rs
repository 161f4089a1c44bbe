//! What the hub answers an operator who asks why somebody did not get a row: who is subscribed now, and how it would judge.
//!
//! Nothing here is part of a delivery; it uses the same plans, facts and filters as one.

use std::sync::Arc;

use super::registry::At;
use super::resolve;
use super::run::Hub;
use super::{Action, Entry, Name, Start};
use crate::catalog::{Catalog, OldImage, Table};
use crate::change::{Change, Lsn, Position, RowChange};
use crate::claims::Principal;
use crate::filter::{FilterError, OpenTerms, Predicate, Validator};
use crate::policy::{self, Bound, Judged, Plan};

/// Whose channels are looked for.
#[derive(Debug, Clone)]
pub struct Look {
    /// The token's `sub`.
    pub subject: Arc<str>,
    /// The token's `role`; `None`: whatever it is.
    pub role: Option<Arc<str>>,
}

/// A channel with active entries.
#[derive(Debug, Clone)]
pub struct LiveChannel {
    /// Its number in this run.
    pub id: u64,
    /// Its connection's number in this run.
    pub connection: u64,
    /// Its topic.
    pub topic: Arc<str>,
    /// Whom it speaks for.
    pub principal: Arc<Principal>,
    /// What it asked for.
    pub entries: Arc<Vec<Entry>>,
    /// Rows at or before this are not for it.
    pub from: Position,
    /// Bytes that wait for its connection to take them.
    pub waiting: usize,
    /// Its entries are in force; not while a changed table keeps them from being resolved.
    pub in_force: bool,
}

/// What there is.
#[derive(Debug, Clone)]
pub struct Looked {
    /// Up to where the log was taken up.
    pub position: Lsn,
    /// Rows that wait for Postgres's answers, or behind others that do.
    pub waiting: usize,
    /// The rules in force; `None` before the first reading.
    pub catalog: Option<Arc<Catalog>>,
    /// Whether they were read for the role that was asked about; if not, they will be.
    pub role_known: bool,
    /// Channels of that user, at most [`MOST`].
    pub channels: Vec<LiveChannel>,
}

/// Channels that are listed.
pub const MOST: usize = 100;

/// How a row would be judged now.
#[derive(Debug)]
pub struct Judgement {
    /// The rules for the role.
    pub plan: Arc<Plan>,
    /// Over the row's relation.
    pub bound: Arc<Bound>,
    /// The verdict, or that Postgres must be asked.
    pub judged: Judged,
}

/// Whether a filter lets a row through.
pub enum Passes {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// A column of the filter is not in the row as the stream has it.
    Absent,
    /// Postgres has to be asked.
    Open(OpenTerms),
}

impl Hub {
    pub(super) fn look(&self, look: &Look) -> Looked {
        let is = |channel: &&super::registry::Channel| {
            let principal = &channel.principal;
            principal.subject == look.subject && look.role.as_ref().is_none_or(|role| principal.role == *role)
        };
        let live = |channel: &super::registry::Channel| LiveChannel {
            id: channel.port.id.0,
            connection: channel.port.outbox.number(),
            topic: channel.port.topic.clone(),
            principal: channel.principal.clone(),
            entries: channel.entries.clone(),
            from: channel.from(),
            waiting: channel.port.outbox.waiting(),
            in_force: !channel.is_out() && channel.at != At::Paused,
        };
        let known = |role: &Arc<str>| self.current.as_ref().is_some_and(|rules| rules.roles.contains(&**role));
        let role_known = look.role.as_ref().is_none_or(known);
        if let Some(role) = look.role.as_ref().filter(|_| !role_known) {
            self.rules.want(role);
        }
        Looked {
            position: self.position().lsn,
            waiting: self.lane.depth().0,
            catalog: self.current.as_ref().map(|rules| rules.catalog.clone()),
            role_known,
            channels: self.registry.channels().filter(is).take(MOST).map(live).collect(),
        }
    }

    /// `None` before the first reading of the rules.
    pub(super) fn judge_now(&self, row: &RowChange, principal: &Principal) -> Option<Judgement> {
        let rules = self.current.as_ref()?;
        let plan = policy::compile(&rules.catalog, row.relation.oid, &principal.role, self.config.policy);
        let plan = Arc::new(plan);
        let bound = Arc::new(plan.bind(&row.relation));
        let viewer = plan.viewer(principal);
        // Facts that are not ready make it a question to Postgres, as they do for a delivery.
        let binding = plan.rule().and_then(|rule| self.facts.bind(rule).ok());
        let facts = binding.as_ref().map(|binding| (binding, &self.facts));
        let judged = bound.judge(&row.change, &viewer, principal, facts, self.deps.clock.unix_seconds());
        Some(Judgement { plan, bound, judged })
    }
}

/// Whether an entry wants this kind of change of this table, its filter not looked at.
pub fn wants(entry: &Entry, schema: &str, table: &str, change: &Change) -> bool {
    let kind = match change {
        Change::Insert { .. } => Action::Insert,
        Change::Update { .. } => Action::Update,
        Change::Delete { .. } => Action::Delete,
    };
    resolve::names(entry, schema, table) && (entry.action == Action::All || entry.action == kind)
}

/// The filter as the hub would have it for a subscriber of this role.
pub async fn predicate(
    catalog: &Catalog,
    validator: &Validator,
    table: &Table,
    filter: &str,
    role: &str,
) -> Result<Predicate, FilterError> {
    let conditions = crate::filter::parse(filter)?;
    let name = |text: &str| Name::Is(text.into());
    let (schema, name) = (name(&table.schema), name(&table.name));
    let (start, cursor_as, snapshot) = (Start::Now, None, None);
    let entry = Entry {
        id: 0,
        action: Action::All,
        schema,
        table: name,
        filter: None,
        select: None,
        start,
        cursor_as,
        snapshot,
        messages: None,
    };
    // Its own owner: an operator's question takes nobody's time.
    let target = resolve::on_table(catalog, validator, &entry, &conditions, table, (role, "operator")).await?;
    Ok(target.predicate)
}

/// Whether the predicate lets the row through.
pub fn passes(predicate: &Predicate, table: &Table, row: &RowChange) -> Passes {
    if predicate.is_empty() {
        return Passes::Yes;
    }
    let is_real = |name: &str| match table.old_image {
        OldImage::AsSent => true,
        OldImage::PrimaryKey => table.primary_key.iter().any(|key| key == name),
        OldImage::Nothing => false,
    };
    let Some(bound) = predicate.bind_within(&row.relation, is_real) else { return Passes::Absent };
    if !bound.matches(&row.change) {
        return Passes::No;
    }
    let open = bound.open(&row.change);
    if open.is_empty() { Passes::Yes } else { Passes::Open(open) }
}
