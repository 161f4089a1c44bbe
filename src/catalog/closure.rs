//! Which tables and functions the policies of the published tables can look into, however indirectly.
//!
//! Invariants:
//! * What the server tracks (`pg_depend`: policies, bodies in the new style) is followed completely; bodies that are text by the
//!   names in them ([`super::body`]).
//! * It is bounded. What lies beyond is not known here, as if it were a view: a policy that needs it is left to Postgres.
//!
//! Rejected: every table and function of the database. It is less to write and, in a database with thousands of tables, too
//! much to read each second.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Once;

use super::body::{self, Mentions};
use super::read::{Reader, get};
use super::{CatalogError, Function, sql};

/// Tables that are read because policies look into them.
const MAX_INNER_TABLES: usize = 500;
/// Functions.
const MAX_FUNCTIONS: usize = 500;
/// Questions for rights (a role, a table) in one reading; tables that clients subscribe to are read whatever it costs.
const MAX_PAIRS: usize = 100_000;
/// How often text bodies may lead to more text bodies.
const ROUNDS: usize = 8;
/// Rows of one answer.
const MAX_ROWS: i64 = 20_000;

/// What is to be read.
#[derive(Default)]
pub(super) struct Closure {
    /// Published tables, their ancestors, and what policies look into.
    pub(super) tables: BTreeSet<u32>,
    /// Without parsed bodies, and the roles that may execute them.
    pub(super) functions: BTreeMap<u32, Function>,
    /// Tables that some function's body refers to, or may.
    pub(super) mentioned: BTreeSet<u32>,
}

impl Reader<'_> {
    /// Follows policies and functions from `published`, with as many inner tables as `roles` roles allow; of `messages` also
    /// those for INSERT.
    pub(super) async fn closure(
        &self,
        published: &[u32],
        messages: Option<u32>,
        roles: usize,
    ) -> Result<Closure, CatalogError> {
        let mut closure = Closure::default();
        let rows = self.rows("partitions", sql::ANCESTORS, &[&published]).await?;
        closure.tables = rows.iter().map(|row| get(row, 0)).collect::<Result<_, _>>()?;
        let most =
            closure.tables.len() + MAX_INNER_TABLES.min((MAX_PAIRS / roles.max(1)).saturating_sub(published.len()));
        let (mut tables, mut functions): (Vec<u32>, Vec<u32>) = (closure.tables.iter().copied().collect(), Vec::new());
        for _ in 0..ROUNDS {
            let fresh = self.follow((&tables, &functions), messages, most, &mut closure).await?;
            let mentions = self.describe(&fresh, &mut closure).await?;
            (tables, functions) = self.resolve(&mentions).await?;
            closure.mentioned.extend(&tables);
            tables.retain(|oid| !closure.tables.contains(oid));
            functions.retain(|oid| !closure.functions.contains_key(oid));
            if tables.is_empty() && functions.is_empty() {
                break;
            }
        }
        Ok(closure)
    }

    /// Adds the tables that can be reached from these; answers with the functions that are new.
    async fn follow(
        &self,
        (tables, functions): (&[u32], &[u32]),
        messages: Option<u32>,
        most: usize,
        closure: &mut Closure,
    ) -> Result<Vec<u32>, CatalogError> {
        let mut fresh = Vec::new();
        let mut complete = true;
        for row in &self.rows("references", sql::REFERENCES, &[&tables, &functions, &MAX_ROWS, &messages]).await? {
            let oid: u32 = get(row, 1)?;
            if get(row, 0)? {
                complete &= closure.tables.len() < most || closure.tables.contains(&oid);
                if closure.tables.len() < most {
                    closure.tables.insert(oid);
                }
            } else if !closure.functions.contains_key(&oid) {
                complete &= closure.functions.len() + fresh.len() < MAX_FUNCTIONS;
                if closure.functions.len() + fresh.len() < MAX_FUNCTIONS {
                    fresh.push(oid);
                }
            }
        }
        if !complete {
            static ONCE: Once = Once::new();
            ONCE.call_once(|| {
                tracing::warn!(
                    "policies look into more tables or functions than are read; Postgres is asked about the others"
                );
            });
        }
        Ok(fresh)
    }

    /// Reads the functions; answers with the names in their bodies.
    async fn describe(&self, oids: &[u32], closure: &mut Closure) -> Result<Mentions, CatalogError> {
        let mut mentions = Mentions::default();
        if oids.is_empty() {
            return Ok(mentions);
        }
        for row in &self.rows("functions", sql::FUNCTIONS, &[&oids]).await? {
            let function = function(row)?;
            if let Some(source) = &function.source {
                mentions.add(source, function.search_path.as_deref().unwrap_or_default());
            }
            closure.mentioned.extend(get::<Vec<u32>>(row, 15)?);
            closure.functions.insert(function.oid, function);
        }
        Ok(mentions)
    }

    /// Prints the bodies that are not text, and the defaults of arguments.
    pub(super) async fn bodies(&self, functions: &mut BTreeMap<u32, Function>) -> Result<(), CatalogError> {
        let oids: Vec<u32> = functions.keys().copied().collect();
        if oids.is_empty() {
            return Ok(());
        }
        for row in &self.rows("function bodies", sql::BODIES, &[&oids]).await? {
            let oid: u32 = get(row, 0)?;
            let (body, defaults): (Option<String>, Option<String>) = (get(row, 2)?, get(row, 4)?);
            // NULL for a function that is being dropped. Without a body it would seem to be written in another language.
            if (get(row, 1)?, get(row, 3)?) != (body.is_some(), defaults.is_some()) {
                return Err(CatalogError::Changing(format!("function {oid}")));
            }
            if let Some(function) = functions.get_mut(&oid) {
                (function.parsed_body, function.defaults) = (body, defaults);
            }
        }
        Ok(())
    }

    async fn resolve(&self, mentions: &Mentions) -> Result<(Vec<u32>, Vec<u32>), CatalogError> {
        let (mut tables, mut functions) = (Vec::new(), Vec::new());
        if mentions.is_empty() {
            return Ok((tables, functions));
        }
        let split =
            |names: &BTreeSet<(String, String)>| -> (Vec<String>, Vec<String>) { names.iter().cloned().unzip() };
        let ((schemas, names), (function_schemas, function_names)) =
            (split(&mentions.tables), split(&mentions.functions));
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&schemas, &names, &function_schemas, &function_names];
        for row in &self.rows("names in functions", sql::RESOLVE, &parameters).await? {
            if get(row, 0)? { &mut tables } else { &mut functions }.push(get(row, 1)?);
        }
        Ok((tables, functions))
    }
}

fn function(row: &tokio_postgres::Row) -> Result<Function, CatalogError> {
    let name: String = get(row, 2)?;
    let (types, names): (Vec<u32>, Option<Vec<String>>) = (get(row, 5)?, get(row, 6)?);
    let callable: bool = get(row, 7)?;
    // The names of a function with OUT arguments stand elsewhere.
    let names = names.filter(|_| callable).unwrap_or_default().into_iter().chain(std::iter::repeat_with(String::new));
    let volatility: String = get(row, 11)?;
    let (search_path, other_settings) = body::settings(&get::<Option<Vec<String>>>(row, 14)?.unwrap_or_default());
    Ok(Function {
        oid: get(row, 0)?,
        schema: get(row, 1)?,
        name,
        result_type: get(row, 3)?,
        sql_body: get(row, 4)?,
        arguments: names.zip(types).collect(),
        source: get(row, 8)?,
        parsed_body: None,
        defaults: None,
        callable,
        returns_set: get(row, 9)?,
        strict: get(row, 10)?,
        volatility: volatility.chars().next().unwrap_or('v'),
        security_definer: get(row, 12)?,
        owner: get(row, 13)?,
        search_path,
        other_settings,
        executable_by: BTreeSet::new(),
    })
}
