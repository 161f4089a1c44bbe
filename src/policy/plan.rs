//! What is to be done for one (table, role): comparable by value, and readable by people.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::bound::Bound;
use super::form::Form;
use super::permit::DenyReason;
use super::rule::{FactSource, Keys, Rule, Viewer};
use crate::catalog::Table;
use crate::change::Relation;
use crate::claims::Principal;

/// What the operator decides beside Postgres's own rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Who gets a DELETE.
    pub deletes: Deletes,
    /// A partition without row-level security that is published under its own name is as open as Postgres has it, also if its
    /// root has row-level security. Otherwise nobody gets its rows.
    pub open_partitions: bool,
}

/// Who gets a DELETE (`protocol.md` §15, decision 24).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Deletes {
    /// Who may see the old row; he gets the columns of its identity that he may read.
    #[default]
    Judged,
    /// As Supabase Realtime does: every subscriber whose filter passes. Under row-level security it is the primary key and
    /// nothing else. Policies are not looked at.
    KeyToAll,
}

/// How rows are judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Engine {
    /// No row-level security for this role: it is off, or the role is above it.
    Everything,
    /// In memory.
    Pure(Arc<Rule>),
    /// By Postgres.
    Ask {
        /// The statement, with the image as `$1`.
        sql: String,
        /// Why it is not Pure.
        reason: String,
    },
    /// Never.
    Deny(DenyReason),
}

/// The rules of one table for one role, compiled.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// `pg_class.oid`.
    pub table_oid: u32,
    /// The table; `None` if the catalog does not know it.
    pub table: Option<Arc<Table>>,
    /// The role.
    pub role: String,
    /// How rows are judged.
    pub engine: Engine,
    /// Names of the columns that the role may select.
    pub readable: BTreeSet<String>,
    /// What Postgres is asked: always for Ask, and for single principals of a Pure plan whose claims only it can judge.
    pub form: Option<Form>,
    pub(super) keys: Option<Keys>,
    /// Why nobody gets a row, if Postgres refuses every query of the role: an inner table that it may not select from, or
    /// policies that look into themselves.
    pub refused: Option<String>,
    /// What it was compiled with.
    pub options: Options,
}

impl Plan {
    /// Resolves names to the columns of a relation as the stream has it.
    pub fn bind(self: &Arc<Self>, relation: &Arc<Relation>) -> Bound {
        Bound::new(self.clone(), relation.clone())
    }

    /// The fact tables that it looks into, once for each place in the rule.
    pub fn sources(&self) -> &[FactSource] {
        self.rule().map_or(&[], |rule| &rule.sources)
    }

    /// What every permit needs: a value that the row and the principal have in common. `None`: everybody must be judged.
    pub fn keys(&self) -> Option<&Keys> {
        self.keys.as_ref()
    }

    /// The rule that memory judges by, if there is one.
    pub fn rule(&self) -> Option<&Arc<Rule>> {
        match &self.engine {
            Engine::Pure(rule) => Some(rule),
            Engine::Everything | Engine::Ask { .. } | Engine::Deny(_) => None,
        }
    }

    /// What the plan takes from a principal: two of the same role with equal viewers share every verdict of memory.
    pub fn viewer(&self, principal: &Principal) -> Viewer {
        self.rule().map_or_else(|| Viewer::new([]), |rule| rule.viewer(principal))
    }

    /// Whether DELETEs go to everybody whose filter passes. Never where the relay has to apply the publication's row filter
    /// itself: the publication does not send such rows to anybody.
    pub fn deletes_to_all(&self) -> bool {
        let published = self.table.as_ref().and_then(|table| table.published.as_ref());
        self.options.deletes == Deletes::KeyToAll && published.is_some_and(|p| p.row_filter.is_none())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.table {
            Some(table) => write!(f, "{}.{} for {}: ", table.schema, table.name, self.role)?,
            None => write!(f, "table {} for {}: ", self.table_oid, self.role)?,
        }
        match &self.engine {
            Engine::Everything => f.write_str("everything")?,
            Engine::Pure(rule) => write!(f, "pure, {rule}")?,
            Engine::Ask { reason, .. } => write!(f, "ask Postgres, because {reason}")?,
            Engine::Deny(reason) => {
                write!(f, "deny, {}", reason.as_str())?;
                return self.refused.as_ref().map_or(Ok(()), |why| write!(f, " ({why})"));
            }
        }
        if let Some(keys) = &self.keys {
            write!(f, "; owners found by {keys}")?;
        }
        let columns: Vec<&str> = self.readable.iter().map(String::as_str).collect();
        write!(f, "; shows {}", columns.join(", "))
    }
}

/// A plan of a table that is not there.
#[cfg(test)]
pub(crate) fn denying_for_tests(table_oid: u32, role: &str) -> Arc<Plan> {
    Arc::new(Plan {
        table_oid,
        table: None,
        role: role.to_owned(),
        engine: Engine::Deny(DenyReason::UnknownTable),
        readable: BTreeSet::new(),
        form: None,
        keys: None,
        refused: None,
        options: Options::default(),
    })
}
