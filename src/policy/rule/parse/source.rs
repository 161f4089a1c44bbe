//! A table that a policy looks into: whether it can be kept in memory, what the role may read of it, and its own policies.

use super::scope::{Columns, Env};
use super::{Compiler, Frame, NotPure, Result};
use crate::catalog::{Access, Role, Table};
use crate::policy::rule::{Expr, FactSource, RuleColumn};

/// Sub-selects within sub-selects.
const DEPTH: usize = 12;

/// Tables of one rule; more would be a mistake of somebody's.
const SOURCES: usize = 64;

/// The parts of a rule that a column which is not needed may have added to.
pub(super) struct Reads {
    reads: Vec<RuleColumn>,
    columns: Vec<Vec<RuleColumn>>,
    claims: usize,
}

impl<'a> Compiler<'a> {
    /// A new slot for a table of this name, and the condition that row-level security puts on its rows.
    pub(super) fn source(&mut self, name: &[&str]) -> Result<(&'a Table, u16, Option<Expr>)> {
        let table = self.table_named(name)?;
        let shown = format!("{}.{}", table.schema, table.name);
        if let Some(why) = table.streamed.obstacle {
            return Err(NotPure(format!("{shown} can't be followed in the stream: {why}")));
        }
        if self.sources.len() >= SOURCES || self.frames.len() >= DEPTH {
            return Err(NotPure("too many tables within each other".into()));
        }
        let role = self.env.role;
        let unknown = || NotPure(format!("nothing is known of role {role} and {shown}"));
        let access = table.access.get(role).ok_or_else(unknown)?;
        let role = self.catalog.role(role).ok_or_else(unknown)?;
        let source = FactSource { table_oid: table.oid, table: shown.as_str().into(), columns: Vec::new() };
        self.sources.push(source);
        let slot = u16::try_from(self.sources.len()).map_err(|_| NotPure("too many tables".into()))?;
        self.privileges.entry(slot).or_default();
        // Names in a function's text are looked up when it runs; in a policy they were when it was made.
        if self.env.source && !access.schema_usage {
            return Err(NotPure(format!("{} may not use schema {}", role.name, table.schema)));
        }
        let condition = self.row_security(table, slot, role, access)?;
        Ok((table, slot, condition))
    }

    fn table_named(&self, name: &[&str]) -> Result<&'a Table> {
        let catalog = self.catalog;
        let found = match name {
            [schema, name] => catalog.named(schema, name),
            [name] => {
                let Some(path) = self.env.search_path.filter(|_| self.env.source) else {
                    return Err(NotPure(format!("table {name} without a schema, in a function without a search_path")));
                };
                if path.iter().any(|schema| schema == "$user") {
                    return Err(NotPure(format!("table {name} in a search_path with \"$user\"")));
                }
                // Only tables are known: in a later schema, a view of an earlier one might hide it.
                let first = path.iter().find(|schema| *schema != "pg_catalog");
                first.filter(|_| !name.starts_with("pg_")).and_then(|schema| catalog.named(schema, name))
            }
            _ => None,
        };
        let table = found.ok_or_else(|| NotPure(format!("{} is not a table that we know", name.join("."))))?;
        Ok(table)
    }

    /// As `check_enable_rls` and `get_row_security_policies` have it for a table in a sub-select.
    fn row_security(&mut self, table: &'a Table, slot: u16, role: &Role, access: &'a Access) -> Result<Option<Expr>> {
        let above = role.superuser || role.bypass_row_security || (access.owner && !table.force_row_security);
        if !table.row_security || above {
            return Ok(None);
        }
        // Within a function it is a query of its own, where Postgres would go round until its stack is full.
        let own_query = self.frames.iter().rposition(|frame| matches!(frame, Frame::Function(_))).unwrap_or(0);
        match self.frames.iter().rposition(|frame| *frame == Frame::Policies(table.oid)) {
            Some(place) if place >= own_query => {
                let why =
                    format!("infinite recursion: the policies of {}.{} look into itself", table.schema, table.name);
                self.refuse_query(why)?;
                return Ok(Some(Expr::Constant(Some(false))));
            }
            Some(_) => return Err(NotPure(format!("the policies of {} look into itself", table.name))),
            None => {}
        }
        let applying = table.policies.iter().filter(|policy| access.policies.contains(&policy.name));
        let applying = applying.filter_map(|policy| Some((policy, policy.expression.as_deref()?)));
        let outer = self.env.clone();
        self.frames.push(Frame::Policies(table.oid));
        let (mut permissive, mut all) = (Vec::new(), Vec::new());
        let (mut doubt, mut restricted) = (None, None);
        for (policy, text) in applying {
            self.env = Env::of_policy(outer.role, &policy.functions, slot, table);
            let why = |NotPure(why)| NotPure(format!("policy \"{}\" of {}: {why}", policy.name, table.name));
            match self.policy_text(policy, text).map_err(why) {
                Ok(condition) if policy.permissive => permissive.push(condition),
                Ok(condition) => all.push(condition),
                Err(why) if policy.permissive => doubt = doubt.or(Some(why)),
                Err(why) => {
                    restricted = restricted.or(Some(why));
                }
            }
        }
        self.frames.pop();
        self.env = outer;
        // Whatever the others say, Postgres folds `true OR …` before it runs anything.
        let open = permissive.contains(&Expr::Constant(Some(true)));
        if let Some(why) = restricted.or(doubt.filter(|_| !open)) {
            return Err(why);
        }
        all.push(Expr::any(permissive));
        Ok(Some(Expr::all(all)))
    }

    /// Whether the role may read what the text reads; the query fails otherwise.
    pub(super) fn check_privileges(&mut self, slot: u16) -> Result<()> {
        let source = usize::from(slot).checked_sub(1).and_then(|place| self.sources.get(place));
        let Some(table) = source.and_then(|source| self.catalog.table(source.table_oid)) else {
            return Err(NotPure("a slot without a table".into()));
        };
        let needed = self.privileges.get(&slot).cloned().unwrap_or_default();
        let granted = table.access.get(self.env.role).map(|access| &access.columns);
        // A query that reads no column needs the privilege for any.
        let allowed = granted.is_some_and(|granted| !granted.is_empty() && needed.is_subset(granted));
        if !allowed {
            let why = format!("{} may not select from {}.{}", self.env.role, table.schema, table.name);
            if self.in_function() {
                return Err(NotPure(why));
            }
            self.forbidden.push((slot, why));
        }
        Ok(())
    }

    fn refuse_query(&mut self, why: String) -> Result<()> {
        if self.in_function() {
            return Err(NotPure(why));
        }
        self.refused.get_or_insert(why);
        Ok(())
    }

    /// A function's query is refused when it runs, which it may not do for every row.
    fn in_function(&self) -> bool {
        self.frames.iter().any(|frame| matches!(frame, Frame::Function(_)))
    }

    /// `SELECT *` where the values don't matter.
    pub(super) fn read_everything(&mut self) {
        let Some(level) = self.env.levels.last() else { return };
        for item in level {
            if let Columns::Table { slot, table, .. } = &item.columns {
                let needed = self.privileges.entry(*slot).or_default();
                needed.extend(table.columns.iter().map(|column| column.number));
            }
        }
    }

    pub(super) fn clone_reads(&self) -> Reads {
        let columns = self.sources.iter().map(|source| source.columns.clone()).collect();
        Reads { reads: self.reads.clone(), columns, claims: self.claims.len() }
    }

    pub(super) fn restore_reads(&mut self, before: Reads) -> Result<()> {
        if self.sources.len() != before.columns.len() {
            return Err(NotPure("a sub-select among the columns of EXISTS".into()));
        }
        self.reads = before.reads;
        self.claims.truncate(before.claims);
        for (source, columns) in self.sources.iter_mut().zip(before.columns) {
            source.columns = columns;
        }
        Ok(())
    }
}
