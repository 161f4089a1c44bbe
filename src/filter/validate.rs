//! Checks conditions against a table, and lets Postgres turn literals into the text that rows come with.
//!
//! A literal goes as a text parameter *of the column's type*, so it meets the type's own input function (without the column's
//! length: `f::T` in `protocol.md` §5.3), and no text from a client is ever part of a statement. It comes back through
//! `format('%s', …)`, which uses the output function; a cast to text would print `true` for `t` and drop the blanks of `char(n)`.
//!
//! A condition for Postgres is tried out, and may be made to take long. Trials have turns of their own, so that literals don't
//! wait for them, and everybody has one trial at a time, so that others' trials wait for one of his and not for all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};

use super::asked::{self, AskedTerm, Found};
use super::like::Pattern;
use super::literals::{Known, MAX_LITERAL_BYTES, Values};
use super::predicate::{Comparison, Predicate, Term, Test};
use super::trial::{Trial, array_oid, is_pattern};
use super::{Condition, FilterError, Operator};
use crate::pg::{Lent, PgError, Pool};
use crate::pgtype::{Equality, TypeKind, Types, canonical, equality, oid, order};

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
    /// The collation, qualified and quoted; `None` for types without one.
    pub collation: Option<&'a str>,
    /// It orders by bytes, as C and POSIX do.
    pub collation_bytewise: bool,
    /// The database's encoding is UTF8, as the stream's is.
    pub utf8: bool,
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

/// Connections that the literals of all validations together may use.
const AT_ONCE: usize = 2;
/// The same for trials.
const TRIALS_AT_ONCE: usize = 2;
/// Of the time that a condition may take at a row; a refusal is final, and should not be for a busy moment.
const TRIAL_PATIENCE: u32 = 3;
/// Lines of trials that may be there before those that nobody waits in are cleared away.
const MANY_LINES: usize = 256;

/// Makes predicates of conditions.
pub struct Validator {
    pool: Pool,
    /// A storm of joins must not take all connections of the pool, nor wait for one until it times out.
    pub(super) turns: Semaphore,
    trials: Semaphore,
    /// For one trial.
    timeout: Duration,
    /// Where everybody's trials wait for each other.
    lines: Mutex<HashMap<Box<str>, Weak<Line>>>,
    literals: Known<(u32, bool, Box<str>), Values>,
    asked: Known<AskedKey, Arc<AskedTerm>>,
}

type Line = tokio::sync::Mutex<()>;

/// Everything that an [`AskedTerm`] is made of: the column's type, its collation, and the condition.
type AskedKey = (u32, Option<Box<str>>, Condition);

/// Who judges a condition.
pub(super) enum Judge {
    /// The test, and whether it says the opposite of the condition's operator.
    Memory(Test, bool),
    Postgres(Arc<AskedTerm>),
}

/// A parameter in text form, whatever its type.
#[derive(Debug)]
pub(crate) struct TextOf<'a>(pub(crate) &'a [u8]);

impl ToSql for TextOf<'_> {
    fn to_sql(&self, _: &Type, out: &mut bytes::BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(self.0);
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
pub(crate) fn parameter_type(oid: u32) -> Type {
    Type::new(String::new(), oid, tokio_postgres::types::Kind::Simple, String::new())
}

/// Words that mean another instant each time they are read: Postgres would read them again for each row.
fn moves_with_the_clock(base: u32, literal: &str) -> bool {
    let dated = matches!(base, oid::DATE | oid::TIME | oid::TIMESTAMP | oid::TIMESTAMPTZ);
    let literal = literal.to_ascii_lowercase();
    dated && ["now", "today", "tomorrow", "yesterday"].iter().any(|word| literal.contains(word))
}

impl Validator {
    /// Asks through this pool. `statement_timeout`: what a condition may take at a row; a trial gets somewhat more.
    pub fn new(pool: Pool, statement_timeout: Duration) -> Validator {
        Validator {
            pool,
            turns: Semaphore::new(AT_ONCE),
            trials: Semaphore::new(TRIALS_AT_ONCE),
            timeout: statement_timeout * TRIAL_PATIENCE,
            lines: Mutex::default(),
            literals: Known::new(),
            asked: Known::new(),
        }
    }

    /// Checks the conditions against one table, whose columns are given as the subscriber's role sees them. Asks the database
    /// only for literals that are not known yet. `owner`: on whose behalf, for fairness alone.
    pub async fn validate(
        &self,
        owner: &str,
        conditions: &[Condition],
        columns: &[ColumnSpec<'_>],
        types: &Types,
    ) -> Result<Predicate, FilterError> {
        let checked = async {
            let (mut terms, mut asked) = (Vec::new(), Vec::new());
            for condition in conditions {
                let column = readable(columns, condition)?;
                match self.judge(owner, condition, column, types).await? {
                    Judge::Memory(test, inverted) => {
                        let negated = condition.negated != inverted;
                        terms.push(Term { column: column.name.into(), type_oid: column.type_oid, negated, test });
                    }
                    Judge::Postgres(term) => asked.push(term),
                }
            }
            Ok(Predicate::new(terms, asked))
        };
        within_deadline(checked).await
    }

    pub(super) async fn connection<'a>(
        &self,
        turns: &'a Semaphore,
    ) -> Result<(SemaphorePermit<'a>, deadpool_postgres::Object), FilterError> {
        // Never closed; waiting is bounded by the deadline of the whole validation.
        let turn = turns.acquire().await.map_err(|_| FilterError::Unavailable(PgError::Timeout(DEADLINE)))?;
        Ok((turn, self.pool.get().await?))
    }

    fn line(&self, owner: &str) -> Arc<Line> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get(owner).and_then(Weak::upgrade) {
            return line;
        }
        if lines.len() >= MANY_LINES {
            lines.retain(|_, line| line.strong_count() > 0);
        }
        let line = Arc::new(Line::default());
        lines.insert(owner.into(), Arc::downgrade(&line));
        line
    }

    /// Memory where it can tell what Postgres would say, else Postgres.
    pub(super) async fn judge(
        &self,
        owner: &str,
        condition: &Condition,
        column: &ColumnSpec<'_>,
        types: &Types,
    ) -> Result<Judge, FilterError> {
        let base = types.base_of(column.type_oid);
        let in_memory = match condition.operator {
            Operator::Is => is(condition, column, types)?,
            Operator::Like => like(condition, column, base),
            Operator::Ilike | Operator::Match | Operator::Imatch => None,
            // It would be another value for each row.
            _ if moves_with_the_clock(base, &condition.value) => None,
            _ => self.comparison(condition, column, types).await?,
        };
        match in_memory {
            Some(test) => Ok(Judge::Memory(test, condition.operator == Operator::Neq)),
            None => Ok(Judge::Postgres(self.asked(owner, condition, column, types).await?)),
        }
    }

    /// `None` where text can't tell.
    async fn comparison(
        &self,
        condition: &Condition,
        column: &ColumnSpec<'_>,
        types: &Types,
    ) -> Result<Option<Test>, FilterError> {
        let Some(equality) = equality(types, column.type_oid, column.collation_deterministic) else { return Ok(None) };
        let comparison = match condition.operator {
            Operator::Lt => Comparison::Less,
            Operator::Lte => Comparison::LessOrEqual,
            Operator::Gt => Comparison::Greater,
            Operator::Gte => Comparison::GreaterOrEqual,
            Operator::In => {
                let texts = self.list(condition, column).await?;
                return Ok(one_of(equality, &texts));
            }
            operator => {
                let value = self.scalar(condition, column, equality).await?;
                let test = if operator == Operator::IsDistinct { Test::Distinct } else { Test::Equal };
                return Ok(value.map(|value| test(equality, value)));
            }
        };
        let bytewise = column.collation_bytewise && column.utf8;
        let Some(order) = order(types, column.type_oid, bytewise) else { return Ok(None) };
        let value = self.scalar(condition, column, equality).await?;
        Ok(value.map(|value| Test::Compare(order, comparison, value)))
    }

    async fn scalar(
        &self,
        condition: &Condition,
        column: &ColumnSpec<'_>,
        equality: Equality,
    ) -> Result<Option<Box<[u8]>>, FilterError> {
        let texts = self.texts(column.type_oid, false, &condition.value).await?;
        let text = texts.first().and_then(Option::as_deref);
        let text = text.and_then(|text| canonical(equality, text.as_bytes()));
        Ok(text.map(|text| text.into_owned().into()))
    }

    async fn list(&self, condition: &Condition, column: &ColumnSpec<'_>) -> Result<Values, FilterError> {
        let texts = self.texts(column.type_oid, true, &condition.value).await?;
        if texts.len() > MAX_IN_VALUES {
            return Err(FilterError::raised(format!("too many values for `in` filter. Maximum {MAX_IN_VALUES}")));
        }
        Ok(texts)
    }

    /// The texts that Postgres prints for a literal of the type, or for the elements of an array literal.
    async fn texts(&self, type_oid: u32, list: bool, literal: &str) -> Result<Values, FilterError> {
        let key = (literal.len() <= MAX_LITERAL_BYTES).then(|| (type_oid, list, literal.into()));
        if let Some(known) = key.clone().and_then(|key| self.literals.get(key)) {
            return Ok(known);
        }
        let (_turn, client) = self.connection(&self.turns).await?;
        let (oid, sql) = if list {
            (array_oid(&**client, type_oid).await?, "select format('%s', e), e is null from unnest($1) e")
        } else {
            (type_oid, "select format('%s', $1), false")
        };
        let failed = || PgError::query("cannot check a filter literal");
        let statement = client.prepare_typed(sql, &[parameter_type(oid)]).await.map_err(failed())?;
        let rows = client.query(&statement, &[&TextOf(literal.as_bytes())]).await.map_err(failed())?;
        let text = |row: &tokio_postgres::Row| (!row.get::<_, bool>(1)).then(|| row.get::<_, &str>(0).into());
        let values: Values = rows.iter().map(text).collect();
        if let Some(key) = key {
            self.literals.insert(key, values.clone());
        }
        Ok(values)
    }

    /// The condition as a question to Postgres, after it has answered it once in the role that will judge it.
    async fn asked(
        &self,
        owner: &str,
        condition: &Condition,
        column: &ColumnSpec<'_>,
        types: &Types,
    ) -> Result<Arc<AskedTerm>, FilterError> {
        let base = types.base_of(column.type_oid);
        refuse_names(condition, column, base)?;
        let key = (column.type_oid, column.collation.map(Box::from), condition.clone());
        let fits = condition.value.len() <= MAX_LITERAL_BYTES;
        if let Some(known) = self.asked.get(key.clone()).filter(|_| fits) {
            return Ok(known);
        }
        let values = match condition.operator {
            Operator::Is => None,
            operator if is_pattern(operator) => None,
            // As the column's own type, so that a domain refuses what it would never hold.
            Operator::In => Some(self.list(condition, column).await?),
            _ => Some(self.texts(column.type_oid, false, &condition.value).await?),
        };
        let value = values.as_ref().and_then(|values| values.iter().flatten().next()).map(|text| &**text);
        let line = self.line(owner);
        let _first = line.lock().await;
        if let Some(known) = self.asked.get(key.clone()).filter(|_| fits) {
            return Ok(known);
        }
        let (_turn, object) = self.connection(&self.trials).await?;
        let mut lent = Lent(Some(object));
        let failed = || PgError::query("cannot check a filter");
        let Some(client) = lent.0.as_mut() else { return Err(FilterError::Unavailable(PgError::Timeout(DEADLINE))) };
        let transaction = client.build_transaction().read_only(true).start().await.map_err(failed())?;
        let trial = Trial { transaction: &transaction, condition, column, base, value, timeout: self.timeout };
        let term = trial.run().await;
        transaction.rollback().await.map_err(failed())?;
        drop(lent.0.take());
        let term = Arc::new(term?);
        if fits {
            self.asked.insert(key, term.clone());
        }
        Ok(term)
    }
}

/// The condition's column, if the role may select it.
pub(super) fn readable<'a, 'b>(
    columns: &'b [ColumnSpec<'a>],
    condition: &Condition,
) -> Result<&'b ColumnSpec<'a>, FilterError> {
    let column = columns.iter().find(|c| c.name == condition.column && c.readable);
    column.ok_or_else(|| FilterError::raised(format!("invalid column for filter {}", condition.column)))
}

/// For all that one filter asks of the database.
pub(super) async fn within_deadline<T>(
    checked: impl Future<Output = Result<T, FilterError>>,
) -> Result<T, FilterError> {
    let timeout = |_| FilterError::Unavailable(PgError::Timeout(DEADLINE));
    tokio::time::timeout(DEADLINE, checked).await.map_err(timeout)?
}

/// The text of these types is a name as the search_path of the session that wrote it shortens it; in another it may name
/// something else, or nothing.
fn refuse_names(condition: &Condition, column: &ColumnSpec<'_>, base: u32) -> Result<(), FilterError> {
    // regproc, regprocedure, regoper, regoperator, regclass, regtype, regconfig, regdictionary, regcollation.
    if !matches!(base, 24 | 2202..=2206 | 3734 | 3769 | 4191) {
        return Ok(());
    }
    let (operator, name, of) = (condition.operator.as_str(), column.name, column.type_name);
    Err(FilterError::Unsupported(format!(
        "filter operator {operator} is not supported on column {name} of type {of}: its text depends on the search_path. \
         On this column use is.null, or filter in the client"
    )))
}

/// `None` where the pattern's letters or characters are not the stream's, or Postgres would refuse it.
fn like(condition: &Condition, column: &ColumnSpec<'_>, base: u32) -> Option<Test> {
    let plain = matches!(base, oid::TEXT | oid::VARCHAR) && column.collation_deterministic && column.utf8;
    let pattern = Some(&condition.value).filter(|text| plain && !text.contains('\0'))?;
    let found = Found { schema: "pg_catalog".into(), strict: true };
    let asked = || AskedTerm {
        column: column.name.into(),
        type_oid: column.type_oid,
        operator: condition.operator,
        negated: condition.negated,
        sql: asked::statement(condition.operator, &found, column.collation).into(),
        value_type: base,
        literal: Some((base, pattern.as_str().into())),
        of_null: asked::of_null(condition.operator, &found),
    };
    Pattern::parse(pattern).map(|parsed| Test::Like(parsed, Arc::new(asked())))
}

/// `None` if an element has no comparable form.
fn one_of(equality: Equality, texts: &Values) -> Option<Test> {
    let has_null = texts.iter().any(Option::is_none);
    let values = texts.iter().flatten().map(|text| canonical(equality, text.as_bytes()).map(|text| Box::from(&*text)));
    let mut values: Vec<Box<[u8]>> = values.collect::<Option<_>>()?;
    values.sort_unstable();
    values.dedup();
    Some(Test::In { equality, values: values.into(), has_null })
}

/// `None`: a composite IS NULL if all its fields are, and NOT NULL if none is.
fn is(condition: &Condition, column: &ColumnSpec<'_>, types: &Types) -> Result<Option<Test>, FilterError> {
    let base = types.base_of(column.type_oid);
    let keyword = condition.value.as_str();
    if keyword == "null" {
        let composite = types.get(base).is_some_and(|info| matches!(info.kind, TypeKind::Composite { .. }));
        return Ok((!composite).then_some(Test::Null));
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
    Ok(Some(test))
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
