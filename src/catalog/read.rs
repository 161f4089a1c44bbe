//! Reads the catalog in one transaction, and makes sure that it was one state.
//!
//! A snapshot is not enough. Rows of the catalog tables are read at it, but `has_column_privilege`, `pg_has_role`,
//! `pg_get_expr` and `pg_publication_tables` answer by the newest committed catalog: of a transaction that replaces an open
//! policy by a closed one and adds a grant, a reading could see the old policy and the new grant, a state in which rows leak
//! and which never was. So all rows that matter are fingerprinted at the snapshot and once more afterwards in a newer one;
//! if the two differ, the reading is thrown away. Rejected: locking the tables against DDL, which would make us a part of the
//! user's migrations.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::types::ToSql;
use tokio_postgres::{IsolationLevel, Row, Transaction};

use super::closure::Closure;
use super::sql;
use super::stream;
use super::{
    Access, Catalog, CatalogError, Collation, Column, FACTS_PUBLICATION, Function, OldImage, PolicyCommand, PolicyRow,
    Published, Role, RowFilter, Rules, Snapshot, Streamed, Table, Wanted,
};
use crate::change::ReplicaIdentity;
use crate::pgtype::{TypeInfo, TypeKind, Types};

/// For the whole read. Each statement has a third of it.
const DEADLINE: Duration = Duration::from_secs(15);

/// Reads everything in `wanted` at one snapshot. Leaves the session as it was; a client whose read timed out should be
/// dropped, since the server may still be busy with it.
pub async fn read(client: &mut tokio_postgres::Client, wanted: &Wanted) -> Result<Catalog, CatalogError> {
    tokio::time::timeout(DEADLINE, read_within(client, wanted)).await.map_err(|_| CatalogError::Timeout(DEADLINE))?
}

/// Readings that may be thrown away before giving up.
const ATTEMPTS: usize = 10;

async fn read_within(client: &mut tokio_postgres::Client, wanted: &Wanted) -> Result<Catalog, CatalogError> {
    let mut why = String::from("rules");
    for _ in 0..ATTEMPTS {
        match read_whole(client, wanted).await {
            Ok(Some(catalog)) => return Ok(catalog),
            Ok(None) => {}
            Err(CatalogError::Changing(what)) => why = what,
            Err(error) => return Err(error),
        }
        tracing::debug!(why, "the catalog changed while it was read; reading again");
    }
    Err(CatalogError::Changing(format!("{why}, {ATTEMPTS} times in a row")))
}

/// `None`: what was read may be two states.
async fn read_whole(client: &mut tokio_postgres::Client, wanted: &Wanted) -> Result<Option<Catalog>, CatalogError> {
    let (catalog, before) = read_once(client, wanted).await?;
    let reader = Reader { transaction: begin(client).await? };
    let after = reader.fingerprint(&catalog.rules).await?;
    reader.transaction.commit().await.map_err(failed("commit"))?;
    Ok((before == after).then_some(catalog))
}

/// Printing a sub-select locks its tables against being dropped, until we commit. Whoever changes two of them in the other
/// order would deadlock with us; we give up first, well before the server looks for deadlocks (`deadlock_timeout`, 1 s), so
/// that it is never the user's migration that fails.
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);

/// Without JIT, which takes longer to compile these statements than they run.
async fn begin(client: &mut tokio_postgres::Client) -> Result<Transaction<'_>, CatalogError> {
    let start = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true).start();
    let transaction = start.await.map_err(failed("begin"))?;
    let settings = format!(
        "set local search_path = ''; set local jit = off; set local statement_timeout = {}; set local lock_timeout = {}",
        DEADLINE.as_millis() / 3,
        LOCK_TIMEOUT.as_millis()
    );
    transaction.batch_execute(&settings).await.map_err(failed("settings"))?;
    Ok(transaction)
}

/// One reading, and its fingerprint at its snapshot.
async fn read_once(client: &mut tokio_postgres::Client, wanted: &Wanted) -> Result<(Catalog, String), CatalogError> {
    let transaction = begin(client).await?;
    let reader = Reader { transaction };
    let session = reader.rows("session", sql::SESSION, &[]).await?;
    let session = session.first().ok_or_else(|| CatalogError::Malformed("no session row".into()))?;
    let text: String = get(session, 0)?;
    let snapshot = Snapshot::parse(&text).map_err(|e| CatalogError::Malformed(e.to_string()))?;
    let version: i32 = get(session, 1)?;
    let encoding = get(session, 2)?;
    let foreign_claims = get(session, 3)?;
    let plain_backslashes = get(session, 4)?;

    let published = reader.published(wanted, version).await?;
    let messages = reader.messages().await?;
    let oids: BTreeSet<u32> = published.keys().copied().chain(messages).collect();
    let oids: Vec<u32> = oids.into_iter().collect();
    let Closure { tables: known, mut functions, mut mentioned } =
        reader.closure(&oids, messages, wanted.roles.len()).await?;
    let oids: Vec<u32> = known.into_iter().collect();
    let mut tables = reader.tables(&oids, published).await?;
    let kept = reader.columns(&oids, &mut tables).await?;
    let trees = reader.streams(&oids, wanted, version, &mut tables).await?;

    let roles = reader.roles(&with_owners(&wanted.roles, &tables, &functions)).await?;
    let names: Vec<String> = roles.keys().cloned().collect();
    reader.access(&oids, &names, &mut tables).await?;
    reader.executable(&names, &mut functions).await?;
    let schemas = reader.schemas(&names, &tables, &functions).await?;
    let (operators, builtins) = reader.operators(&functions).await?;
    let types = Arc::new(reader.types(&oids, &functions).await?);

    // Printing locks, so it comes last; nothing after it waits for another lock.
    mentioned.extend(reader.policies(&oids, &mut tables).await?);
    let inserts = match messages {
        Some(oid) => Some((oid, reader.inserts(oid, &names).await?)),
        None => None,
    };
    mentioned.extend(inserts.iter().flat_map(|(_, inserts)| &inserts.mentioned));
    reader.bodies(&mut functions).await?;
    for oid in &mentioned {
        if let (Some(table), Some(tree)) = (tables.get_mut(oid), trees.get(oid)) {
            // Only for tables that policies look into: nobody keeps rows of others, and a new state is a new catalog.
            table.storage = stream::storage(tree, &kept.get(oid));
        }
    }
    let tables: BTreeMap<u32, Arc<Table>> = tables.into_iter().map(|(oid, table)| (oid, Arc::new(table))).collect();
    let messages = inserts.and_then(|(oid, inserts)| Some(inserts.of(tables.get(&oid)?)));
    let functions = functions.into_iter().map(|(oid, function)| (oid, Arc::new(function))).collect();
    let rules = Rules {
        tables,
        roles,
        functions,
        schemas,
        operators,
        builtins,
        types,
        encoding,
        foreign_claims,
        plain_backslashes,
        messages,
    };
    let fingerprint = reader.fingerprint(&rules).await?;
    reader.transaction.commit().await.map_err(failed("commit"))?;
    Ok((Catalog::new(snapshot, rules), fingerprint))
}

/// Internal errors are what the printing functions answer about something that was dropped since the snapshot.
fn failed(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> CatalogError {
    use tokio_postgres::error::SqlState;
    const CHANGING: [SqlState; 3] =
        [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED, SqlState::INTERNAL_ERROR];
    move |source| match source.as_db_error().filter(|error| CHANGING.contains(error.code())) {
        Some(error) => CatalogError::Changing(format!("{what}: {}", error.message())),
        None => CatalogError::Query { what, source },
    }
}

/// Owners whose rights are read, beside the roles of tokens. Whose aren't has none that anybody knows of.
const MAX_OWNERS: usize = 50;

/// The roles of tokens, and those that what tokens do may run as: first the owners of functions that run as their owner.
fn with_owners(
    wanted: &BTreeSet<String>,
    tables: &BTreeMap<u32, Table>,
    functions: &BTreeMap<u32, Function>,
) -> BTreeSet<String> {
    let definers = functions.values().filter(|f| f.security_definer).map(|f| &f.owner);
    let owners = definers.chain(tables.values().map(|t| &t.owner)).filter(|owner| !wanted.contains(*owner));
    let mut all = wanted.clone();
    for owner in owners {
        if all.len() < wanted.len() + MAX_OWNERS {
            all.insert(owner.clone());
        }
    }
    all
}

/// What of each mentioned table's columns gives its rows other values without writing them.
type Kept = BTreeMap<u32, Vec<(i16, u32, i32, Option<String>, Option<String>)>>;

pub(super) fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, CatalogError> {
    row.try_get(column).map_err(|e| CatalogError::Malformed(crate::error::chain(&e)))
}

/// The row filters of one table in the client publications.
#[derive(Default)]
struct Filters {
    /// For each publication whether it sends INSERT, UPDATE, DELETE, and which rows; `None` sends every row.
    publications: Vec<([bool; 3], Option<String>)>,
    columns: BTreeSet<i16>,
    /// Another publication in the stream sends what one of them holds back.
    undone: bool,
}

impl Filters {
    /// Postgres unites filters for each action. One filter for all actions is enough for us, and holds back too much rather than
    /// too little where the publications of one table differ in their actions as well.
    fn united(self) -> Option<RowFilter> {
        let expression = self.undone.then(|| self.expression()).flatten()?;
        Some(RowFilter { expression, columns: self.columns })
    }

    /// What holds for all that is sent of some action.
    fn expression(&self) -> Option<String> {
        let holds_back = |action: usize| {
            let mut sending = self.publications.iter().filter(|(actions, _)| actions[action]).peekable();
            sending.peek().is_some() && sending.all(|(_, filter)| filter.is_some())
        };
        if !(0..3).any(holds_back) {
            return None;
        }
        let filters = self.publications.iter().filter_map(|(_, filter)| filter.as_ref());
        Some(filters.map(|filter| format!("({filter})")).collect::<Vec<_>>().join(" OR "))
    }
}

pub(super) struct Reader<'a> {
    transaction: Transaction<'a>,
}

impl Reader<'_> {
    pub(super) async fn rows(
        &self,
        what: &'static str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, CatalogError> {
        self.transaction.query(sql, parameters).await.map_err(failed(what))
    }

    async fn fingerprint(&self, rules: &Rules) -> Result<String, CatalogError> {
        let tables: Vec<u32> = rules.tables.keys().copied().collect();
        let functions: Vec<u32> = rules.functions.keys().copied().collect();
        let leaves: BTreeSet<u32> = rules.tables.values().flat_map(|table| table.leaves.iter().copied()).collect();
        let leaves: Vec<u32> = leaves.into_iter().collect();
        let rows = self.rows("fingerprint", sql::FINGERPRINT, &[&tables, &functions, &leaves]).await?;
        let mut text: String = rows.first().map_or(Ok(String::new()), |row| get(row, 0))?;
        let version = self.rows("version", "select current_setting('server_version_num')::int4", &[]).await?;
        if version.first().map_or(Ok(0), |row| get::<i32>(row, 0))? >= 150_000 {
            let rows = self.rows("fingerprint", sql::FINGERPRINT_15, &[]).await?;
            text.push_str(&rows.first().map_or(Ok(None), |row| get::<Option<String>>(row, 0))?.unwrap_or_default());
        }
        Ok(text)
    }

    async fn roles(&self, wanted: &BTreeSet<String>) -> Result<BTreeMap<String, Arc<Role>>, CatalogError> {
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).filter(|name| !name.contains('\0')).collect();
        let rows = self.rows("roles", sql::ROLES, &[&wanted]).await?;
        let role = |row: &Row| {
            let name: String = get(row, 1)?;
            let role = Role {
                oid: get(row, 0)?,
                name: name.clone(),
                superuser: get(row, 2)?,
                bypass_row_security: get(row, 3)?,
                assumable: get(row, 4)?,
            };
            Ok((name, Arc::new(role)))
        };
        rows.iter().map(role).collect()
    }

    /// Several publications are united: a row comes if any of them sends it.
    async fn published(&self, wanted: &Wanted, version: i32) -> Result<BTreeMap<u32, Published>, CatalogError> {
        let sql = if version >= 150_000 { sql::PUBLISHED } else { sql::PUBLISHED_14 };
        let mut all: BTreeMap<u32, Published> = BTreeMap::new();
        let mut filters: BTreeMap<u32, Filters> = BTreeMap::new();
        for row in &self.rows("publications", sql, &[&wanted.publications, &wanted.others]).await? {
            let oid = get(row, 0)?;
            let table = all.entry(oid).or_default();
            table.insert |= get::<bool>(row, 1)?;
            table.update |= get::<bool>(row, 2)?;
            table.delete |= get::<bool>(row, 3)?;
            table.truncate |= get::<bool>(row, 4)?;
            table.via_root |= get::<bool>(row, 5)?;
            if let Some(columns) = get::<Option<Vec<String>>>(row, 6)? {
                table.columns.get_or_insert_default().extend(columns);
            }
            let filters = filters.entry(oid).or_default();
            filters.publications.push(([get(row, 1)?, get(row, 2)?, get(row, 3)?], get(row, 7)?));
            filters.columns.extend(get::<Vec<i16>>(row, 8)?);
            filters.undone |= get::<bool>(row, 9)?;
        }
        for (oid, filters) in filters {
            if let Some(table) = all.get_mut(&oid) {
                table.sent_rows = filters.expression();
                table.row_filter = filters.united();
            }
        }
        Ok(all)
    }

    async fn tables(
        &self,
        oids: &[u32],
        mut published: BTreeMap<u32, Published>,
    ) -> Result<BTreeMap<u32, Table>, CatalogError> {
        let rows = self.rows("tables", sql::TABLES, &[&oids, &FACTS_PUBLICATION]).await?;
        let table = |row: &Row| {
            let oid: u32 = get(row, 0)?;
            let identity = identity(get(row, 3)?)?;
            let is_partitioned: bool = get(row, 7)?;
            let primary_key: Vec<String> = get(row, 9)?;
            let leaves: Vec<String> = get(row, 11)?;
            let identity_columns = match identity {
                ReplicaIdentity::Default => primary_key.clone(),
                ReplicaIdentity::Index => get(row, 10)?,
                // FULL is filled in when the columns are known.
                ReplicaIdentity::Full | ReplicaIdentity::Nothing => Vec::new(),
            };
            let table = Table {
                oid,
                schema: get(row, 1)?,
                name: get(row, 2)?,
                columns: Vec::new(),
                primary_key,
                identity,
                identity_columns,
                old_image: old_image(is_partitioned, &leaves),
                row_security: get(row, 4)?,
                force_row_security: get(row, 5)?,
                owner: get(row, 6)?,
                policies: Vec::new(),
                published: published.remove(&oid),
                is_partitioned,
                ancestors: get(row, 8)?,
                access: BTreeMap::new(),
                // These are filled in when the tree under it is known, the storage at the end.
                leaves: Vec::new(),
                streamed: Streamed::default(),
                storage: 0,
                loadable: get(row, 12)?,
                ours: get(row, 13)?,
            };
            Ok((oid, table))
        };
        rows.iter().map(table).collect()
    }

    async fn columns(&self, oids: &[u32], tables: &mut BTreeMap<u32, Table>) -> Result<Kept, CatalogError> {
        let mut kept = Kept::new();
        for row in &self.rows("columns", sql::COLUMNS, &[&oids]).await? {
            let Some(table) = tables.get_mut(&get(row, 0)?) else { continue };
            let column = Column {
                number: get(row, 1)?,
                name: get(row, 2)?,
                type_oid: get(row, 3)?,
                type_modifier: get(row, 4)?,
                collation_deterministic: get(row, 5)?,
                generated: get(row, 6)?,
                has_default: get(row, 7)?,
                not_null: get(row, 8)?,
                collation: match get::<Option<String>>(row, 9)? {
                    Some(name) => Some(Collation { name, bytewise: get(row, 10)? }),
                    None => None,
                },
            };
            if table.identity == ReplicaIdentity::Full {
                table.identity_columns.push(column.name.clone());
            }
            let facts = (column.number, column.type_oid, column.type_modifier, get(row, 11)?, get(row, 12)?);
            kept.entry(table.oid).or_default().push(facts);
            table.columns.push(column);
        }
        Ok(kept)
    }

    /// Answers with the tables that the policies look into.
    async fn policies(&self, oids: &[u32], tables: &mut BTreeMap<u32, Table>) -> Result<BTreeSet<u32>, CatalogError> {
        let mut mentioned = BTreeSet::new();
        for row in &self.rows("policies", sql::POLICIES, &[&oids]).await? {
            let Some(table) = tables.get_mut(&get(row, 0)?) else { continue };
            let name: String = get(row, 1)?;
            let command: String = get(row, 3)?;
            let expression: Option<String> = get(row, 6)?;
            // pg_get_expr answers NULL for a table that is being dropped. Taken as "no USING", a restrictive policy would
            // restrict nothing.
            if get::<bool>(row, 5)? != expression.is_some() {
                return Err(CatalogError::Changing(format!("policy \"{name}\" on \"{}\"", table.name)));
            }
            mentioned.extend(get::<Vec<u32>>(row, 9)?);
            if get(row, 10)? {
                mentioned.insert(table.oid);
            }
            let columns: Vec<i16> = get(row, 7)?;
            let functions: Vec<u32> = get(row, 8)?;
            table.policies.push(PolicyRow {
                name,
                permissive: get(row, 2)?,
                command: if command == "r" { PolicyCommand::Select } else { PolicyCommand::All },
                roles: get(row, 4)?,
                expression,
                system_columns: columns.iter().any(|n| *n < 0),
                columns: columns.into_iter().filter(|n| *n > 0).collect(),
                functions: functions.into_iter().collect(),
            });
        }
        Ok(mentioned)
    }

    async fn access(
        &self,
        oids: &[u32],
        roles: &[String],
        tables: &mut BTreeMap<u32, Table>,
    ) -> Result<(), CatalogError> {
        for row in &self.rows("privileges", sql::ACCESS, &[&oids, &roles]).await? {
            let Some(table) = tables.get_mut(&get(row, 0)?) else { continue };
            let access = Access {
                schema_usage: get(row, 2)?,
                owner: get(row, 3)?,
                columns: match get::<Option<Vec<i16>>>(row, 4)? {
                    Some(numbers) => numbers.into_iter().collect(),
                    None => table.columns.iter().map(|column| column.number).collect(),
                },
                policies: get::<Vec<String>>(row, 5)?.into_iter().collect(),
            };
            table.access.insert(get(row, 1)?, access);
        }
        Ok(())
    }

    async fn executable(&self, roles: &[String], functions: &mut BTreeMap<u32, Function>) -> Result<(), CatalogError> {
        let oids: Vec<u32> = functions.keys().copied().collect();
        if oids.is_empty() {
            return Ok(());
        }
        for row in &self.rows("functions", sql::EXECUTABLE, &[&oids, &roles]).await? {
            if let Some(function) = functions.get_mut(&get(row, 0)?) {
                function.executable_by = get::<Vec<String>>(row, 1)?.into_iter().collect();
            }
        }
        Ok(())
    }

    /// Which roles may look into the schemas that tables, functions and search paths name.
    async fn schemas(
        &self,
        roles: &[String],
        tables: &BTreeMap<u32, Table>,
        functions: &BTreeMap<u32, Function>,
    ) -> Result<BTreeMap<String, BTreeSet<String>>, CatalogError> {
        let of_functions = functions.values().flat_map(|f| f.search_path.iter().flatten().chain([&f.schema]));
        let schemas: BTreeSet<&String> = tables.values().map(|t| &t.schema).chain(of_functions).collect();
        let schemas: Vec<&String> = schemas.into_iter().collect();
        let rows = self.rows("schemas", sql::SCHEMAS, &[&schemas, &roles]).await?;
        rows.iter().map(|row| Ok((get(row, 0)?, get::<Vec<String>>(row, 1)?.into_iter().collect()))).collect()
    }

    /// The operators in schemas that search paths name, and the names of functions that `pg_catalog` has too.
    async fn operators(&self, functions: &BTreeMap<u32, Function>) -> Result<(Operators, Names), CatalogError> {
        let schemas: BTreeSet<&String> = functions.values().flat_map(|f| f.search_path.iter().flatten()).collect();
        let schemas: Vec<&String> = schemas.into_iter().filter(|name| *name != "pg_catalog").collect();
        let (mut operators, mut builtins) = (BTreeSet::new(), BTreeSet::new());
        if schemas.is_empty() {
            return Ok((operators, builtins));
        }
        let names: Vec<&String> = functions.values().map(|f| &f.name).collect();
        for row in &self.rows("operators", sql::OPERATORS, &[&schemas, &names]).await? {
            let name = get(row, 1)?;
            let _ = match get(row, 0)? {
                Some(schema) => operators.insert((schema, name)),
                None => builtins.insert(name),
            };
        }
        Ok((operators, builtins))
    }

    async fn types(&self, oids: &[u32], functions: &BTreeMap<u32, Function>) -> Result<Types, CatalogError> {
        let functions: Vec<u32> = functions.keys().copied().collect();
        let rows = self.rows("types", sql::TYPES, &[&oids, &functions]).await?;
        let one = |row: &Row| {
            let (typtype, base, element): (String, u32, u32) = (get(row, 3)?, get(row, 4)?, get(row, 5)?);
            let delimiter: String = get(row, 6)?;
            let kind = match typtype.as_str() {
                _ if element != 0 => TypeKind::Array { element, delimiter: delimiter.bytes().next().unwrap_or(b',') },
                "d" => TypeKind::Domain { base },
                "e" => TypeKind::Enum,
                "r" | "m" => TypeKind::Range,
                "c" => {
                    let (names, types): (Vec<String>, Vec<u32>) = (get(row, 7)?, get(row, 8)?);
                    TypeKind::Composite { attributes: names.into_iter().zip(types).collect() }
                }
                _ => TypeKind::Base,
            };
            Ok(TypeInfo { oid: get(row, 0)?, schema: get(row, 1)?, name: get(row, 2)?, kind })
        };
        rows.iter().map(one).collect()
    }
}

/// Schema and name of each.
type Operators = BTreeSet<(String, String)>;
type Names = BTreeSet<String>;

fn identity(letter: String) -> Result<ReplicaIdentity, CatalogError> {
    match letter.as_str() {
        "d" => Ok(ReplicaIdentity::Default),
        "f" => Ok(ReplicaIdentity::Full),
        "i" => Ok(ReplicaIdentity::Index),
        "n" => Ok(ReplicaIdentity::Nothing),
        _ => Err(CatalogError::Malformed(format!("replica identity `{letter}`"))),
    }
}

/// A root's Relation message speaks of the root, but old rows are logged by the leaves.
fn old_image(is_partitioned: bool, leaves: &[String]) -> OldImage {
    if !is_partitioned || leaves.iter().all(|l| l == "f") {
        OldImage::AsSent
    } else if leaves.iter().all(|l| l == "f" || l == "d") {
        OldImage::PrimaryKey
    } else {
        OldImage::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_filters_are_united_and_none_that_holds_for_an_action_is_lost() {
        let all = [true; 3];
        let united = |undone, publications: &[([bool; 3], Option<&str>)]| {
            let publications =
                publications.iter().map(|(actions, filter)| (*actions, filter.map(str::to_owned))).collect();
            Filters { publications, columns: BTreeSet::new(), undone }.united().map(|filter| filter.expression)
        };
        assert_eq!(united(false, &[(all, Some("a"))]), None, "the server applies it");
        assert_eq!(united(true, &[(all, Some("a"))]).as_deref(), Some("(a)"));
        assert_eq!(united(true, &[(all, Some("a")), (all, Some("b"))]).as_deref(), Some("(a) OR (b)"));
        assert_eq!(united(true, &[(all, Some("a")), (all, None)]), None, "one of them sends everything");
        let (inserts, updates) = ([true, false, false], [false, true, false]);
        assert_eq!(united(true, &[(inserts, None), (updates, Some("b"))]).as_deref(), Some("(b)"));
    }
}
