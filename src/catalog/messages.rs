//! What private channels need to know of `realtime.messages` beyond its rows' rules: who may insert, under which policies, and
//! what a row that was inserted to ask about them looks like (`protocol.md` §7.5).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::read::{Reader, get};
use super::sql;
use super::{Access, CatalogError, PolicyCommand, PolicyRow, Table};

/// The table `realtime.messages`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Messages {
    /// As it is read.
    pub reading: Arc<Table>,
    /// The same table as it is inserted into: its policies are those for INSERT and ALL, their expressions what a new row must
    /// meet, and its access is what each role may insert.
    pub inserting: Arc<Table>,
    /// The defaults of its columns, in SQL.
    pub defaults: BTreeMap<String, String>,
    /// Why inserting a row may do more than look at policies, in words.
    pub obstacle: Option<String>,
}

/// What is found of it besides the table itself.
pub(super) struct Inserts {
    policies: Vec<PolicyRow>,
    access: BTreeMap<String, Access>,
    defaults: BTreeMap<String, String>,
    obstacle: Option<String>,
    /// The tables that the policies look into.
    pub(super) mentioned: BTreeSet<u32>,
}

impl Inserts {
    pub(super) fn of(self, reading: &Arc<Table>) -> Messages {
        let inserting = Table { policies: self.policies, access: self.access, ..Table::clone(reading) };
        Messages {
            reading: reading.clone(),
            inserting: Arc::new(inserting),
            defaults: self.defaults,
            obstacle: self.obstacle,
        }
    }
}

impl Reader<'_> {
    /// Its oid, if there is such a table.
    pub(super) async fn messages(&self) -> Result<Option<u32>, CatalogError> {
        let rows = self.rows("messages", sql::MESSAGES, &[]).await?;
        rows.first().map(|row| get(row, 0)).transpose()
    }

    /// Who may insert into it. Prints expressions, and so locks.
    pub(super) async fn inserts(&self, oid: u32, roles: &[String]) -> Result<Inserts, CatalogError> {
        let mut inserts = Inserts {
            policies: Vec::new(),
            access: BTreeMap::new(),
            defaults: BTreeMap::new(),
            obstacle: None,
            mentioned: BTreeSet::new(),
        };
        for row in &self.rows("rights to insert", sql::INSERT_ACCESS, &[&oid, &roles]).await? {
            let access = Access {
                schema_usage: get(row, 1)?,
                owner: get(row, 2)?,
                columns: get::<Vec<i16>>(row, 3)?.into_iter().collect(),
                policies: get::<Vec<String>>(row, 4)?.into_iter().collect(),
            };
            inserts.access.insert(get(row, 0)?, access);
        }
        let obstacles = self.rows("what happens at an insert", sql::INSERT_OBSTACLES, &[&oid]).await?;
        inserts.obstacle = obstacles.first().map_or(Ok(None), |row| get(row, 0))?;
        for row in &self.rows("defaults", sql::DEFAULTS, &[&oid]).await? {
            let Some(text) = get(row, 1)? else { return Err(changing("a default")) };
            inserts.defaults.insert(get(row, 0)?, text);
        }
        for row in &self.rows("policies for INSERT", sql::INSERT_POLICIES, &[&oid]).await? {
            let expression: Option<String> = get(row, 4)?;
            // NULL for what is being dropped, as with policies for SELECT.
            if get::<bool>(row, 3)? != expression.is_some() {
                return Err(changing("a policy"));
            }
            let columns: Vec<i16> = get(row, 5)?;
            inserts.mentioned.extend(get::<Vec<u32>>(row, 7)?);
            inserts.policies.push(PolicyRow {
                name: get(row, 0)?,
                permissive: get(row, 1)?,
                command: PolicyCommand::All,
                roles: get(row, 2)?,
                expression,
                system_columns: columns.iter().any(|n| *n < 0),
                columns: columns.into_iter().filter(|n| *n > 0).collect(),
                functions: get::<Vec<u32>>(row, 6)?.into_iter().collect(),
            });
        }
        Ok(inserts)
    }
}

fn changing(what: &str) -> CatalogError {
    CatalogError::Changing(format!("{what} of realtime.messages"))
}
