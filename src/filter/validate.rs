//! Checks conditions against a table, and lets Postgres turn literals into the text that rows come with.
//!
//! A literal goes as a text parameter *of the column's type*, so it meets the type's own input function (without the column's
//! length: `f::T` in `protocol.md` §5.3), and no text from a client is ever part of a statement. It comes back through
//! `format('%s', …)`, which uses the output function; a cast to text would print `true` for `t` and drop the blanks of `char(n)`.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};

use super::literals::{Literals, Values};
use super::predicate::{Comparison, Predicate, Term, Test};
use super::{Condition, FilterError, Operator};
use crate::pg::{PgError, Pool};
use crate::pgtype::{Equality, TypeKind, Types, array_over, canonical, equality, oid, order};

/// The most values of an `in` list.
pub const MAX_IN_VALUES: usize = 100;
/// For everything that one filter asks of the database, waiting for a connection included.
const DEADLINE: Duration = Duration::from_secs(15);

/// A column as the role of the subscriber sees it.
#[derive(Debug, Clone, Copy)]
pub struct ColumnSpec<'a> {
    /// Unquoted.
    pub name: &'a str,
    /// `pg_attribute.atttypid`; for a domain, the domain's.
    pub type_oid: u32,
    /// `format_type(…)`, for messages only.
    pub type_name: &'a str,
    /// `pg_collation.collisdeterministic`; true where there is no collation.
    pub collation_deterministic: bool,
    /// Whether the role may select it.
    pub readable: bool,
}

/// Refuses a selection of columns that are not there, or that the role may not read.
pub fn check_select<'a>(
    select: impl IntoIterator<Item = &'a str>,
    columns: &[ColumnSpec<'_>],
) -> Result<(), FilterError> {
    let known = |name: &str| columns.iter().any(|c| c.name == name && c.readable);
    match select.into_iter().find(|name| !known(name)) {
        Some(name) => Err(FilterError::raised(format!("invalid column for select {name}"))),
        None => Ok(()),
    }
}

/// Connections that all validations together may use.
const AT_ONCE: usize = 3;

/// Makes predicates of conditions.
pub struct Validator {
    pool: Pool,
    /// A storm of joins must not take all connections of the pool, nor wait for one until it times out.
    turns: Semaphore,
    literals: Literals,
}

/// A parameter in text form, whatever its type.
#[derive(Debug)]
struct TextOf<'a>(&'a str);

impl ToSql for TextOf<'_> {
    fn to_sql(&self, _: &Type, out: &mut bytes::BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

/// Only the oid is sent.
fn parameter_type(oid: u32) -> Type {
    Type::new(String::new(), oid, tokio_postgres::types::Kind::Simple, String::new())
}

/// Words that mean another instant each time they are read: Postgres would read them again for each row.
fn moves_with_the_clock(base: u32, literal: &str) -> bool {
    let dated = matches!(base, oid::DATE | oid::TIME | oid::TIMESTAMP | oid::TIMESTAMPTZ);
    let literal = literal.to_ascii_lowercase();
    dated && ["now", "today", "tomorrow", "yesterday"].iter().any(|word| literal.contains(word))
}

impl Validator {
    /// Asks through this pool.
    pub fn new(pool: Pool) -> Validator {
        Validator { pool, turns: Semaphore::new(AT_ONCE), literals: Literals::default() }
    }

    /// Checks the conditions against one table, whose columns are given as the subscriber's role sees them. Asks the database
    /// only for literals that are not known yet.
    pub async fn validate(
        &self,
        conditions: &[Condition],
        columns: &[ColumnSpec<'_>],
        types: &Types,
    ) -> Result<Predicate, FilterError> {
        let checked = async {
            let mut terms = Vec::with_capacity(conditions.len());
            for condition in conditions {
                let column = columns.iter().find(|c| c.name == condition.column && c.readable);
                let column = column
                    .ok_or_else(|| FilterError::raised(format!("invalid column for filter {}", condition.column)))?;
                let (test, inverted) = self.test(condition, column, types).await?;
                let negated = condition.negated != inverted;
                terms.push(Term { column: column.name.into(), type_oid: column.type_oid, negated, test });
            }
            Ok(Predicate::new(terms))
        };
        let timeout = |_| FilterError::Unavailable(PgError::Timeout(DEADLINE));
        tokio::time::timeout(DEADLINE, checked).await.map_err(timeout)?
    }

    async fn connection(&self) -> Result<(SemaphorePermit<'_>, deadpool_postgres::Object), FilterError> {
        // Never closed; waiting is bounded by the deadline of the whole validation.
        let turn = self.turns.acquire().await.map_err(|_| FilterError::Unavailable(PgError::Timeout(DEADLINE)))?;
        Ok((turn, self.pool.get().await?))
    }

    /// The test, and whether it says the opposite of the condition's operator.
    async fn test(
        &self,
        condition: &Condition,
        column: &ColumnSpec<'_>,
        types: &Types,
    ) -> Result<(Test, bool), FilterError> {
        let base = types.base_of(column.type_oid);
        let compared = || {
            equality(types, column.type_oid, column.collation_deterministic)
                .ok_or_else(|| unsupported(condition, column, "its equality can't be judged exactly in memory", types))
        };
        let comparison = match condition.operator {
            Operator::Is => return Ok((is(condition, column, types)?, false)),
            Operator::Eq | Operator::Neq => {
                let equality = compared()?;
                let value = self.scalar(condition, column, types, equality).await?;
                return Ok((Test::Equal(equality, value), condition.operator == Operator::Neq));
            }
            Operator::IsDistinct => {
                let equality = compared()?;
                return Ok((Test::Distinct(equality, self.scalar(condition, column, types, equality).await?), false));
            }
            Operator::In => return Ok((self.list(condition, column, types, compared()?).await?, false)),
            Operator::Like | Operator::Ilike | Operator::Match | Operator::Imatch => {
                self.pattern_operator(condition, column, base).await?;
                let why = "patterns can't be judged exactly in memory";
                return Err(unsupported(condition, column, why, types));
            }
            Operator::Lt => Comparison::Less,
            Operator::Lte => Comparison::LessOrEqual,
            Operator::Gt => Comparison::Greater,
            Operator::Gte => Comparison::GreaterOrEqual,
        };
        let (Some(order), equality) = (order(types, column.type_oid), compared()?) else {
            return Err(unsupported(condition, column, "its order can't be judged exactly in memory", types));
        };
        let value = self.scalar(condition, column, types, equality).await?;
        Ok((Test::Compare(order, comparison, value), false))
    }

    async fn scalar(
        &self,
        condition: &Condition,
        column: &ColumnSpec<'_>,
        types: &Types,
        equality: Equality,
    ) -> Result<Box<[u8]>, FilterError> {
        refuse_moving(condition, column, types)?;
        let texts = self.texts(column.type_oid, false, &condition.value).await?;
        let text = texts.first().and_then(Option::as_deref);
        let text = text.and_then(|text| canonical(equality, text.as_bytes()));
        let text = text.ok_or_else(|| unsupported(condition, column, "the literal has no comparable form", types))?;
        Ok(text.into_owned().into())
    }

    async fn list(
        &self,
        condition: &Condition,
        column: &ColumnSpec<'_>,
        types: &Types,
        equality: Equality,
    ) -> Result<Test, FilterError> {
        refuse_moving(condition, column, types)?;
        let texts = self.texts(column.type_oid, true, &condition.value).await?;
        if texts.len() > MAX_IN_VALUES {
            return Err(FilterError::raised(format!("too many values for `in` filter. Maximum {MAX_IN_VALUES}")));
        }
        let has_null = texts.iter().any(Option::is_none);
        let values = texts.iter().flatten().map(|text| {
            let text = canonical(equality, text.as_bytes());
            text.map(|text| Box::from(&*text))
                .ok_or_else(|| unsupported(condition, column, "a literal has no comparable form", types))
        });
        let mut values: Vec<Box<[u8]>> = values.collect::<Result<_, _>>()?;
        values.sort_unstable();
        values.dedup();
        Ok(Test::In { equality, values: values.into(), has_null })
    }

    /// The texts that Postgres prints for a literal of the type, or for the elements of an array literal.
    async fn texts(&self, type_oid: u32, list: bool, literal: &str) -> Result<Values, FilterError> {
        if let Some(known) = self.literals.get(type_oid, list, literal) {
            return Ok(known);
        }
        let (_turn, client) = self.connection().await?;
        let (oid, sql) = if list {
            (array_oid(&client, type_oid).await?, "select format('%s', e), e is null from unnest($1) e")
        } else {
            (type_oid, "select format('%s', $1), false")
        };
        let failed = || PgError::query("cannot check a filter literal");
        let statement = client.prepare_typed(sql, &[parameter_type(oid)]).await.map_err(failed())?;
        let rows = client.query(&statement, &[&TextOf(literal)]).await.map_err(failed())?;
        let text = |row: &tokio_postgres::Row| (!row.get::<_, bool>(1)).then(|| row.get::<_, &str>(0).into());
        let values: Values = rows.iter().map(text).collect();
        self.literals.insert(type_oid, list, literal, values.clone());
        Ok(values)
    }

    /// Refuses an operator that Postgres doesn't have between two values of the type.
    async fn pattern_operator(
        &self,
        condition: &Condition,
        column: &ColumnSpec<'_>,
        base: u32,
    ) -> Result<(), FilterError> {
        let sign = match condition.operator {
            Operator::Like => "~~",
            Operator::Ilike => "~~*",
            Operator::Match => "~",
            _ => "~*",
        };
        let (_turn, client) = self.connection().await?;
        // Preparing resolves the operator; nothing is run.
        let sql = format!("select coalesce($1 {sign} $2, true)");
        let operand = parameter_type(base);
        let prepared = client.prepare_typed(&sql, &[operand.clone(), operand]).await;
        match prepared {
            Ok(_) => Ok(()),
            // No such operator, or one with another answer than yes or no.
            Err(error) if error.code().is_some_and(|state| state.code().starts_with("42")) => {
                let (name, of) = (condition.operator.as_str(), column.type_name);
                let text = format!("operator {name} requires a text-compatible column type, got {of}");
                Err(FilterError::raised(text))
            }
            Err(error) => Err(PgError::query("cannot check a filter")(error).into()),
        }
    }
}

async fn array_oid(client: &tokio_postgres::Client, element: u32) -> Result<u32, FilterError> {
    if let Some(known) = array_over(element) {
        return Ok(known);
    }
    let sql = "select typarray from pg_catalog.pg_type where oid = $1";
    let row = client.query_opt(sql, &[&element]).await.map_err(PgError::query("cannot read a type"))?;
    match row.map_or(0, |row| row.get::<_, u32>(0)) {
        0 => Err(FilterError::Refused { sqlstate: "42704".into(), message: "could not find array type".into() }),
        array => Ok(array),
    }
}

fn refuse_moving(condition: &Condition, column: &ColumnSpec<'_>, types: &Types) -> Result<(), FilterError> {
    if moves_with_the_clock(types.base_of(column.type_oid), &condition.value) {
        return Err(unsupported(
            condition,
            column,
            "a literal relative to the clock is another one for each row",
            types,
        ));
    }
    Ok(())
}

fn is(condition: &Condition, column: &ColumnSpec<'_>, types: &Types) -> Result<Test, FilterError> {
    let base = types.base_of(column.type_oid);
    let keyword = condition.value.as_str();
    if keyword == "null" {
        // A composite IS NULL if all its fields are, and NOT NULL if none is.
        let composite = types.get(base).is_some_and(|info| matches!(info.kind, TypeKind::Composite { .. }));
        return if composite {
            Err(unsupported(condition, column, "NULL of a composite can't be judged in memory", types))
        } else {
            Ok(Test::Null)
        };
    }
    let test = match keyword {
        "true" => Test::True,
        "false" => Test::False,
        "unknown" => Test::Null,
        _ => {
            let text = "invalid value for is filter: must be null, true, false, or unknown";
            return Err(FilterError::raised(text));
        }
    };
    if base != oid::BOOL {
        let of = column.type_name;
        return Err(FilterError::raised(format!("is {keyword} filter requires a boolean column, got {of}")));
    }
    Ok(test)
}

/// Says what does work on the column instead.
fn unsupported(condition: &Condition, column: &ColumnSpec<'_>, why: &str, types: &Types) -> FilterError {
    let equal = equality(types, column.type_oid, column.collation_deterministic).is_some();
    let works = match (order(types, column.type_oid).is_some(), equal) {
        (true, _) => "eq, neq, lt, lte, gt, gte, in, is and isdistinct with fixed values",
        (false, true) => "eq, neq, in, is and isdistinct",
        (false, false) => "is.null",
    };
    let (operator, name, of) = (condition.operator.as_str(), column.name, column.type_name);
    FilterError::Unsupported(format!(
        "filter operator {operator} is not supported on column {name} of type {of}: {why}. \
         On this column use {works}, or filter in the client"
    ))
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
