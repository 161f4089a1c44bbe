//! Postgres as the judge of the conditions that memory can't judge, about one row.
//!
//! It runs only for subscriptions that `policy` has permitted the row to, in a role that owns nothing and is granted nothing,
//! in a read-only transaction, each condition with a time limit and a savepoint of its own: a pattern from a phone is hostile.
//! The statements are *parsed* as our own login, since an extension's operator may be in a schema that the role may not look
//! into, and *run* as the role: the savepoint that each condition goes back to is made after the role was assumed, so that
//! without the role nothing is run. No statement is sent that was not made by [`super::Validator`].
//!
//! Rejected: our own rights when the role is missing; one statement for all conditions, where the first error ends all.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

use super::asked::AskedTerm;
use super::predicate::sent;
use super::validate::{TextOf, parameter_type};
use crate::change::{RowChange, Value};
use crate::metrics::Metrics;
use crate::pg::{Lent, Pool, in_order};

/// The role without rights that migration 5 makes.
pub const FILTER_ROLE: &str = "rowcast_filter";

/// Most conditions in one question.
pub const MAX_TERMS: usize = 8;

/// Bounds of a question.
#[derive(Debug, Clone)]
pub struct FilterAskConfig {
    /// For one condition.
    pub statement_timeout: Duration,
    /// For the whole question, waiting for a connection included.
    pub deadline: Duration,
    /// Most conditions that one owner brings to a row. 32.
    pub conditions_of_owner: usize,
    /// He brings at most one in so many of the conditions that a row has room for yet: there is room for a newcomer, however
    /// many came. 16.
    pub part_of_rest: usize,
    /// Of Postgres's time, for all conditions of an owner in a minute. 2 s.
    pub budget: Duration,
}

impl Default for FilterAskConfig {
    fn default() -> FilterAskConfig {
        FilterAskConfig {
            statement_timeout: Duration::from_millis(100),
            deadline: Duration::from_secs(10),
            conditions_of_owner: 32,
            part_of_rest: 16,
            budget: Duration::from_secs(2),
        }
    }
}

/// Conditions about the values of one row, each with its column's index.
#[derive(Debug, Clone)]
pub struct FilterQuestion {
    /// The row.
    pub row: Arc<RowChange>,
    /// At most [`MAX_TERMS`], distinct.
    pub terms: Vec<(Arc<AskedTerm>, usize)>,
}

/// Why a condition has no answer by its own fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilterFailure {
    /// It took longer than the statement timeout.
    Timeout,
    /// Postgres raised an error.
    Raised,
}

/// What came of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilterAnswer {
    /// What it says; `None` is NULL.
    Says(Option<bool>),
    /// The condition itself failed.
    Failed(FilterFailure),
    /// It took longer than the statement timeout, on a value so large that it is not to blame.
    TooLarge,
    /// Postgres could not be asked.
    Undecided,
}

/// A condition that takes too long on a longer value than this, in bytes, may be a good one.
const LARGE_VALUE: usize = 64 << 10;

/// Asks Postgres. Cheap to clone.
#[derive(Clone)]
pub struct FilterAsker {
    pool: Pool,
    config: FilterAskConfig,
    metrics: Arc<Metrics>,
}

/// No answer to any condition, and why.
struct Silence(&'static str);

impl FilterAsker {
    /// Over a pool whose login may `SET ROLE` to [`FILTER_ROLE`].
    pub fn new(pool: Pool, config: FilterAskConfig, metrics: Arc<Metrics>) -> FilterAsker {
        FilterAsker { pool, config, metrics }
    }

    /// Its bounds.
    pub fn config(&self) -> &FilterAskConfig {
        &self.config
    }

    /// For one condition; part of what a client is told.
    pub fn statement_timeout(&self) -> Duration {
        self.config.statement_timeout
    }

    /// The answers, in the order of `question.terms`, each with the time that Postgres took for it (zero if it was not asked).
    /// Takes at most the deadline.
    pub async fn judge(&self, question: &FilterQuestion) -> Vec<(FilterAnswer, Duration)> {
        let started = Instant::now();
        self.metrics.filter_terms.inc_by(question.terms.len() as u64);
        let round = tokio::time::timeout(self.config.deadline, self.round(question));
        let answers = round.await.unwrap_or(Err(Silence("connection")));
        self.metrics.filter_ask.observe(started.elapsed().as_secs_f64());
        let failed = |kind, count| self.metrics.filter_failures.get_or_create(&[("kind", kind)]).inc_by(count);
        match answers {
            Ok(answers) => {
                for (answer, _) in &answers {
                    match answer {
                        FilterAnswer::Says(_) => continue,
                        FilterAnswer::Failed(FilterFailure::Timeout) | FilterAnswer::TooLarge => failed("timeout", 1),
                        FilterAnswer::Failed(FilterFailure::Raised) => failed("raised", 1),
                        FilterAnswer::Undecided => failed("connection", 1),
                    };
                }
                answers
            }
            Err(Silence(kind)) => {
                failed(kind, question.terms.len() as u64);
                vec![(FilterAnswer::Undecided, Duration::ZERO); question.terms.len()]
            }
        }
    }

    async fn round(&self, question: &FilterQuestion) -> Result<Vec<(FilterAnswer, Duration)>, Silence> {
        let object = self.pool.get().await.map_err(|error| {
            tracing::debug!(error = %crate::error::chain(&error), "no connection to ask Postgres about a filter");
            Silence("connection")
        })?;
        let mut lent = Lent(Some(object));
        let Some(client) = lent.0.as_mut() else { return Err(Silence("connection")) };
        let transaction = client.build_transaction().read_only(true).start().await.map_err(silence)?;
        transaction.batch_execute("set local search_path = ''; savepoint parsed").await.map_err(silence)?;
        let mut statements = Vec::with_capacity(question.terms.len());
        for (term, _) in &question.terms {
            let mut types = vec![parameter_type(term.value_type)];
            types.extend(term.literal.as_ref().map(|(oid, _)| parameter_type(*oid)));
            let prepared = transaction.prepare_typed_cached(&term.sql, &types).await;
            if prepared.is_err() {
                transaction.batch_execute("rollback to savepoint parsed").await.map_err(silence)?;
            }
            statements.push(prepared.map_err(|error| answer_of(&error)));
        }
        let timeout = self.config.statement_timeout.as_millis().max(1);
        let assume =
            format!("set local role {FILTER_ROLE}; set local statement_timeout = {timeout}; savepoint assumed");
        let asked = question.terms.iter().zip(statements).map(|((term, index), statement)| {
            let transaction = &transaction;
            async move {
                match statement {
                    Ok(statement) => ask_one(transaction, &statement, term, sent(&question.row.change, *index)).await,
                    Err(answer) => Ok((answer, None)),
                }
            }
        });
        // Sent together. Should it fail to become the role, the transaction has failed, and nothing after it is run: the
        // savepoint that the conditions go back to was not made.
        let become_role = async { (transaction.batch_execute(&assume).await, Instant::now()) };
        let ((assumed, mut before), answers) = tokio::join!(biased; become_role, in_order(asked.collect()));
        assumed.map_err(|error| {
            tracing::debug!(error = %crate::error::chain(&error), "cannot become the role that judges filters");
            Silence(if error.as_db_error().is_some() { "role" } else { "connection" })
        })?;
        let answers: Vec<_> = answers.into_iter().collect::<Result<_, _>>().map_err(silence)?;
        transaction.rollback().await.map_err(silence)?;
        drop(lent.0.take());
        // They are answered one after another: each has taken the time since the one before.
        let timed = answers.into_iter().map(|(answer, at)| {
            let at = at.unwrap_or(before);
            (answer, at.saturating_duration_since(std::mem::replace(&mut before, at)))
        });
        Ok(timed.collect())
    }
}

/// Sends everything for one condition in its first poll. With the answer, when it came.
async fn ask_one(
    transaction: &tokio_postgres::Transaction<'_>,
    statement: &Statement,
    term: &AskedTerm,
    value: Value<'_>,
) -> Result<(FilterAnswer, Option<Instant>), tokio_postgres::Error> {
    let text = match value {
        Value::Text(text) => Some(TextOf(text)),
        Value::Null => None,
        // The hub asks about what was sent only.
        Value::Unchanged => return Ok((FilterAnswer::Says(None), None)),
    };
    let literal = term.literal.as_ref().map(|(_, text)| TextOf(text.as_bytes()));
    let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&text];
    parameters.extend(literal.iter().map(|literal| literal as &(dyn ToSql + Sync)));
    let ((answer, at), back) = tokio::join!(
        biased;
        async { (transaction.query_one(statement, &parameters).await, Instant::now()) },
        transaction.batch_execute("rollback to savepoint assumed"),
    );
    // Without this the next condition would be asked in a failed transaction.
    back?;
    let answer = match answer {
        Ok(row) => row.try_get(0).map_or(FilterAnswer::Undecided, FilterAnswer::Says),
        Err(error) => answer_of(&error),
    };
    let is_large = matches!(value, Value::Text(text) if text.len() > LARGE_VALUE);
    let to_blame = !is_large || answer != FilterAnswer::Failed(FilterFailure::Timeout);
    Ok((if to_blame { answer } else { FilterAnswer::TooLarge }, Some(at)))
}

fn answer_of(error: &tokio_postgres::Error) -> FilterAnswer {
    let Some(state) = error.code() else { return FilterAnswer::Undecided };
    match (&state.code()[..2], state.code()) {
        (_, "57014") => FilterAnswer::Failed(FilterFailure::Timeout),
        (_, "25006") => FilterAnswer::Failed(FilterFailure::Raised),
        ("08" | "25" | "26" | "40" | "53" | "57" | "58" | "F0", _) => FilterAnswer::Undecided,
        _ => {
            // The SQLSTATE alone: messages quote values.
            tracing::debug!(sqlstate = state.code(), "a filter raised an error");
            FilterAnswer::Failed(FilterFailure::Raised)
        }
    }
}

fn silence(error: tokio_postgres::Error) -> Silence {
    tracing::debug!(
        sqlstate = error.code().map(tokio_postgres::error::SqlState::code),
        "a question about filters broke off"
    );
    Silence("connection")
}
