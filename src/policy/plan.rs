//! What is to be done for one (table, role): comparable by value, and readable by people.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::bound::Bound;
use super::expr::Expr;
use super::form::Form;
use super::owner::OwnerKey;
use super::permit::DenyReason;
use crate::catalog::Table;
use crate::change::Relation;

/// How rows are judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Engine {
    /// No row-level security for this role: it is off, or the role is above it.
    Everything,
    /// In memory.
    Pure(Expr),
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
    pub(super) owner_key: Option<OwnerKey>,
}

impl Plan {
    /// Resolves names to the columns of a relation as the stream has it.
    pub fn bind(self: &Arc<Self>, relation: &Arc<Relation>) -> Bound {
        Bound::new(self.clone(), relation.clone())
    }

    /// The equality that every permit needs, if there is one.
    pub fn owner_key(&self) -> Option<&OwnerKey> {
        self.owner_key.as_ref()
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
            Engine::Pure(expr) => write!(f, "pure, {expr}")?,
            Engine::Ask { reason, .. } => write!(f, "ask Postgres, because {reason}")?,
            Engine::Deny(reason) => return write!(f, "deny, {}", reason.as_str()),
        }
        if let Some(key) = &self.owner_key {
            write!(f, "; owners found by {}", key.column)?;
        }
        let columns: Vec<&str> = self.readable.iter().map(String::as_str).collect();
        write!(f, "; shows {}", columns.join(", "))
    }
}
