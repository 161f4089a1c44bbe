//! One condition tried out as it will be asked: the operator found, the statement prepared, and run once in the role without
//! rights. What Postgres would raise at the first row it raises now, to the client who wrote it.

use tokio_postgres::types::{ToSql, Type};

use super::ask::FILTER_ROLE;
use super::asked::{self, AskedTerm, Found};
use super::validate::{ColumnSpec, TextOf, parameter_type};
use super::{Condition, FilterError, Operator};
use crate::pg::PgError;
use crate::pgtype::{array_over, oid};

/// One condition tried out in a transaction of its own.
pub(super) struct Trial<'a> {
    pub(super) transaction: &'a tokio_postgres::Transaction<'a>,
    pub(super) condition: &'a Condition,
    pub(super) column: &'a ColumnSpec<'a>,
    pub(super) base: u32,
    /// A value of the type to try it on, so that what Postgres raises at the first row is raised now.
    pub(super) value: Option<&'a str>,
    /// For running it.
    pub(super) timeout: std::time::Duration,
}

/// For a statement that looks something up.
const LOOK_UP_TIMEOUT_MS: u32 = 1000;

/// Of type `$2`: its category, and the schema and strictness of its own operator `$1`; whether we may be role `$3`, NULL if it
/// is not there. The operator between two values of just this type is what Postgres would take in any search_path that has it.
const LOOK_UP: &str = "select t.typcategory::text, o.schema, o.strict, \
    (select not (r.rolsuper or r.rolbypassrls) and pg_has_role(r.oid, 'MEMBER') from pg_roles r where r.rolname = $3) \
    from pg_type t left join lateral ( \
        select quote_ident(n.nspname) as schema, p.proisstrict as strict from pg_operator o \
        join pg_namespace n on n.oid = o.oprnamespace join pg_proc p on p.oid = o.oprcode \
        where o.oprname = $1 and o.oprkind = 'b' and o.oprleft = t.oid and o.oprright = t.oid \
        and (n.nspname = 'pg_catalog' or n.oid = t.typnamespace) order by n.nspname <> 'pg_catalog' limit 1) o on true \
    where t.oid = $2";

impl Trial<'_> {
    pub(super) async fn run(&self) -> Result<AskedTerm, FilterError> {
        let (condition, column, base) = (self.condition, self.column, self.base);
        let failed = || PgError::query("cannot check a filter");
        let begin = format!("set local search_path = ''; set local statement_timeout = {LOOK_UP_TIMEOUT_MS}");
        self.transaction.batch_execute(&begin).await.map_err(failed())?;
        let sign = asked::sign(condition.operator);
        let row = self.transaction.query_opt(LOOK_UP, &[&sign, &base, &FILTER_ROLE]).await.map_err(failed())?;
        let gone = || FilterError::Refused { sqlstate: "42704".into(), message: "the column's type is gone".into() };
        let row = row.ok_or_else(gone)?;
        if row.get::<_, Option<bool>>(3) != Some(true) {
            return Err(no_role());
        }
        let found = match (row.get::<_, Option<String>>(1), row.get::<_, Option<bool>>(2)) {
            (Some(schema), Some(strict)) => Found { schema, strict },
            // Through a cast that Postgres makes by itself, or for a class of types such as arrays.
            _ => Found { schema: "pg_catalog".into(), strict: true },
        };
        let term = self.term(&found).await?;
        let statement = self.prepare(&term).await?;
        let timeout = self.timeout.as_millis().max(1);
        self.transaction
            .batch_execute(&format!("set local role {FILTER_ROLE}; set local statement_timeout = {timeout}"))
            .await
            .map_err(|error| if error.as_db_error().is_some() { no_role() } else { failed()(error).into() })?;
        // A pattern is looked at when it is first used, and with NULL it is not.
        let is_text = row.get::<_, &str>(0) == "S" || base == oid::CHAR;
        let empty = (is_pattern(condition.operator) && is_text).then_some("");
        let value = self.value.or(empty).map(|text| TextOf(text.as_bytes()));
        let literal = term.literal.as_ref().map(|(_, text)| TextOf(text.as_bytes()));
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&value];
        parameters.extend(literal.iter().map(|literal| literal as &(dyn ToSql + Sync)));
        match self.transaction.query_one(&statement, &parameters).await {
            Ok(_) if matches!(condition.operator, Operator::Like | Operator::Ilike) => {
                self.check_escape().await.map(|()| term)
            }
            Ok(_) => Ok(term),
            Err(error) => Err(match error.as_db_error() {
                Some(db) if db.code().code() == "57014" => {
                    let message = format!("the filter {} takes too long", term.describe());
                    FilterError::Refused { sqlstate: "57014".into(), message }
                }
                Some(db) if db.code().code() == "2201B" => {
                    let name = condition.operator.as_str();
                    FilterError::raised(format!("invalid regular expression for {name} filter: {}", db.message()))
                }
                _ => {
                    tracing::debug!(column = column.name, "a filter failed its trial");
                    failed()(error).into()
                }
            }),
        }
    }

    /// The pattern as Postgres will read it: its type may have cut it.
    async fn check_escape(&self) -> Result<(), FilterError> {
        let failed = || PgError::query("cannot check a filter");
        let sql = "select pg_catalog.format('%s', $1)";
        let statement = self.transaction.prepare_typed(sql, &[parameter_type(self.base)]).await.map_err(failed())?;
        let literal = TextOf(self.condition.value.as_bytes());
        let row = self.transaction.query_one(&statement, &[&literal]).await.map_err(failed())?;
        if asked::ends_in_escape(self.base, row.get(0)) {
            let message = "LIKE pattern must not end with escape character".into();
            return Err(FilterError::Refused { sqlstate: "22025".into(), message });
        }
        Ok(())
    }

    async fn term(&self, found: &Found) -> Result<AskedTerm, FilterError> {
        let Condition { operator, negated, value, .. } = self.condition;
        let (sql, literal, of_null) = match operator {
            Operator::Is => (asked::null_statement(*negated).to_owned(), None, Some(Some(!negated))),
            _ => {
                let list = *operator == Operator::In;
                let literal_type = if list { array_oid(self.transaction, self.base).await? } else { self.base };
                let sql = asked::statement(*operator, found, self.column.collation);
                (sql, Some((literal_type, value.as_str().into())), asked::of_null(*operator, found))
            }
        };
        Ok(AskedTerm {
            column: self.column.name.into(),
            type_oid: self.column.type_oid,
            operator: *operator,
            // IS NOT NULL has a statement of its own.
            negated: *negated && *operator != Operator::Is,
            sql: sql.into(),
            value_type: self.base,
            literal,
            of_null,
        })
    }

    /// Preparing resolves the operator; nothing is run.
    async fn prepare(&self, term: &AskedTerm) -> Result<tokio_postgres::Statement, FilterError> {
        let mut types = vec![parameter_type(term.value_type)];
        types.extend(term.literal.as_ref().map(|(oid, _)| parameter_type(*oid)));
        let is_pattern = is_pattern(term.operator);
        let of = self.column.type_name;
        let not_text = || {
            let name = term.operator.as_str();
            FilterError::raised(format!("operator {name} requires a text-compatible column type, got {of}"))
        };
        let no_answer = |of: &Type| {
            let message =
                format!("operator {} must return type boolean, not type {}", term.operator.as_str(), of.name());
            FilterError::Refused { sqlstate: "42804".into(), message }
        };
        match self.transaction.prepare_typed(&term.sql, &types).await {
            Ok(statement) => match statement.columns().first().map(tokio_postgres::Column::type_) {
                Some(&Type::BOOL) | None => Ok(statement),
                Some(_) if is_pattern => Err(not_text()),
                Some(other) => Err(no_answer(other)),
            },
            Err(error) => Err(match error.as_db_error() {
                Some(db) if is_pattern && db.code().code().starts_with("42") => not_text(),
                // We name the operator's schema, which a client has never heard of.
                Some(db) if db.code().code() == "42883" => FilterError::Refused {
                    sqlstate: "42883".into(),
                    message: db.message().replace(" pg_catalog.", " "),
                },
                _ => PgError::query("cannot check a filter")(error).into(),
            }),
        }
    }
}

pub(super) fn is_pattern(operator: Operator) -> bool {
    matches!(operator, Operator::Like | Operator::Ilike | Operator::Match | Operator::Imatch)
}

fn no_role() -> FilterError {
    FilterError::Unsupported(format!(
        "this filter has to be judged by the database in role {FILTER_ROLE}, which is missing there or not granted to the \
         relay's login; run `rowcast migrate up`"
    ))
}

/// Of the type whose arrays these are.
pub(super) async fn array_oid<C: tokio_postgres::GenericClient>(client: &C, element: u32) -> Result<u32, FilterError> {
    if let Some(known) = array_over(element) {
        return Ok(known);
    }
    // An array of arrays is an array: `f::int[][]` is `f::int[]`.
    let sql = "select case when typarray = 0 and typoutput = 'pg_catalog.array_out'::pg_catalog.regproc then oid else typarray end \
               from pg_catalog.pg_type where oid = $1";
    let row = client.query_opt(sql, &[&element]).await.map_err(PgError::query("cannot read a type"))?;
    match row.map_or(0, |row| row.get::<_, u32>(0)) {
        0 => Err(FilterError::Refused { sqlstate: "42704".into(), message: "could not find array type".into() }),
        array => Ok(array),
    }
}
