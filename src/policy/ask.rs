//! Postgres as the judge of one change for many principals of one role.
//!
//! One repeatable-read, read-only transaction per question, so one snapshot covers every answer in it; if that snapshot lacks
//! a transaction up to the change, all its answers are void and the question is asked again. One statement per claims set: an
//! uncorrelated sub-select is computed once per statement, so a statement that judged two principals would give the second the
//! first one's answer. The statements are sent without waiting for each other, and each principal's go back to a savepoint, so
//! one who makes the policy raise denies only himself.
//!
//! A policy's function may `RESET ROLE` and then runs with the rights of our login: log in as a role with few rights. A
//! function that writes fails here (the transaction is read-only) although it may work in a real SELECT: the row is denied.
//!
//! Rejected: a PL/pgSQL loop over the principals (a helper object in the user's database, and one error ends all), and one
//! transaction per principal (as many snapshots as answers).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{IsolationLevel, SimpleQueryMessage, Statement, Transaction};

use super::bound::{Bound, Judged};
use super::form::Form;
use super::permit::{DenyReason, UndecidedReason, Verdict};
use crate::catalog::Snapshot;
use crate::change::{Change, RowChange};
use crate::claims::Principal;
use crate::metrics::Metrics;
use crate::pg::{ASSUME, Lent, Pool, in_order};

/// Bounds of a question.
#[derive(Debug, Clone)]
pub struct AskConfig {
    /// For one principal's statement.
    pub statement_timeout: Duration,
    /// For the whole question, with the times it is asked again.
    pub deadline: Duration,
    /// Before asking again for the first time; doubles up to 100 ms.
    pub pause: Duration,
    /// How many principals' statements are on their way at once.
    pub pipeline: usize,
}

impl Default for AskConfig {
    fn default() -> AskConfig {
        AskConfig {
            statement_timeout: Duration::from_secs(2),
            deadline: Duration::from_secs(10),
            pause: Duration::from_millis(5),
            pipeline: 16,
        }
    }
}

const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// One change, for principals of the plan's role.
#[derive(Debug, Clone)]
pub struct Question {
    /// Whose `judge` said Ask.
    pub bound: Arc<Bound>,
    /// The change.
    pub change: Arc<RowChange>,
    /// Distinct by `sharing_key`.
    pub principals: Vec<Arc<Principal>>,
    /// Transactions at or before this change that may still be invisible to others, its own included.
    pub xids: Arc<[u32]>,
}

/// Asks Postgres. Cheap to clone.
#[derive(Clone)]
pub struct Asker {
    pool: Pool,
    config: AskConfig,
    metrics: Arc<Metrics>,
}

/// What came of one principal's statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Yes {
        old_too: bool,
    },
    No,
    /// The policy raised.
    Raised,
    /// The statement could not be run as it stands, which tells nothing about a real SELECT.
    Unusable,
    /// The same, because a name in our own statement is not there.
    Missing,
    Undecided(UndecidedReason),
}

/// The images, as literals.
struct Images {
    judged: String,
    /// The complete old row of an UPDATE.
    old: Option<String>,
    /// The row can be looked up instead.
    can_look_up: bool,
}

impl Asker {
    /// Over a pool whose login may `SET ROLE` to the token roles.
    pub fn new(pool: Pool, config: AskConfig, metrics: Arc<Metrics>) -> Asker {
        Asker { pool, config, metrics }
    }

    /// The verdicts, in the order of `question.principals`. Takes at most the deadline.
    pub async fn judge(&self, question: &Question) -> Vec<Verdict> {
        let started = Instant::now();
        let answers = self.answers(question, started + self.config.deadline).await;
        self.metrics.ask.observe(started.elapsed().as_secs_f64());
        let verdict = |(answer, principal): (Answer, &Arc<Principal>)| {
            if *principal.role != *question.bound.plan().role {
                return Verdict::Deny(DenyReason::UnknownRole);
            }
            match answer {
                Answer::Yes { old_too } => match question.bound.permit(&question.change.change, old_too) {
                    Judged::Decided(verdict) => verdict,
                    Judged::Ask => Verdict::Deny(DenyReason::PolicyError),
                },
                Answer::No => Verdict::Deny(DenyReason::Policy),
                Answer::Raised | Answer::Unusable | Answer::Missing => Verdict::Deny(DenyReason::PolicyError),
                Answer::Undecided(reason) => Verdict::Undecided(reason),
            }
        };
        match answers {
            Ok(answers) => answers.into_iter().zip(&question.principals).map(verdict).collect(),
            Err(verdict) => vec![verdict; question.principals.len()],
        }
    }

    async fn answers(&self, question: &Question, deadline: Instant) -> Result<Vec<Answer>, Verdict> {
        let (bound, change) = (&question.bound, &question.change.change);
        let missing = Verdict::Deny(DenyReason::MissingEvidence);
        let Some(form) = &bound.plan().form else { return Err(missing) };
        let judged = bound.judged(change);
        // The images are checked again here, so that no caller can ask about a row that has holes.
        if !bound.can_be_asked(change) {
            return Err(missing);
        }
        let images = Images {
            judged: bound.literal(judged).ok_or(missing)?,
            old: bound.old_to_widen(change).and_then(|old| bound.literal(old)),
            can_look_up: !matches!(change, Change::Delete { .. }) && bound.has_key(judged),
        };
        let mut pause = self.config.pause;
        let mut late = UndecidedReason::Timeout;
        loop {
            let round = self.round(form, &images, question);
            match tokio::time::timeout_at(deadline, round).await {
                Err(_) => return Err(Verdict::Undecided(late)),
                Ok(Err(reason)) => return Err(Verdict::Undecided(reason)),
                Ok(Ok(Some(answers))) => return Ok(answers),
                Ok(Ok(None)) => {
                    self.metrics.ask_not_visible.inc();
                    late = UndecidedReason::NotVisibleYet;
                }
            }
            if Instant::now() + pause >= deadline {
                return Err(Verdict::Undecided(late));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Asks once. `None`: void, the snapshot lacks a transaction.
    async fn round(
        &self,
        form: &Form,
        images: &Images,
        question: &Question,
    ) -> Result<Option<Vec<Answer>>, UndecidedReason> {
        let object = self.pool.get().await.map_err(|error| {
            tracing::debug!(error = %crate::error::chain(&error), "no connection to ask Postgres");
            UndecidedReason::Connection
        })?;
        let mut lent = Lent(Some(object));
        let Some(client) = lent.0.as_mut() else { return Err(UndecidedReason::Connection) };
        let start = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
        let transaction = start.start().await.map_err(undecided)?;
        // Names in the text mean what they meant when it was printed: with an empty search_path.
        let timeout = self.config.statement_timeout.as_millis();
        let begin = format!(
            "set local statement_timeout = {timeout}; set local search_path = ''; set local row_security = on; \
             select pg_current_snapshot()::text"
        );
        let snapshot = snapshot(&transaction.simple_query(&begin).await.map_err(undecided)?)?;
        let answers = if question.xids.iter().all(|xid| snapshot.sees(*xid)) {
            let session = Session { transaction: &transaction, question, pipeline: self.config.pipeline.max(1) };
            Some(session.answers(form, images).await?)
        } else {
            None
        };
        transaction.rollback().await.map_err(undecided)?;
        drop(lent.0.take());
        Ok(answers)
    }
}

/// The part of a round between its snapshot and its end.
struct Session<'a> {
    transaction: &'a Transaction<'a>,
    question: &'a Question,
    pipeline: usize,
}

const BACK: &str = "rollback to savepoint asked";

impl Session<'_> {
    async fn answers(&self, form: &Form, images: &Images) -> Result<Vec<Answer>, UndecidedReason> {
        let principals = &self.question.principals;
        let assume = self.transaction.prepare_typed(ASSUME, &[Type::TEXT, Type::TEXT, Type::TEXT]);
        let assume = assume.await.map_err(undecided)?;
        self.transaction.batch_execute("savepoint asked").await.map_err(undecided)?;
        let everyone: Vec<usize> = (0..principals.len()).collect();
        let mut answers = match self.prepare(&form.question).await? {
            Ok(statement) => self.execute(&assume, &statement, images, &everyone).await?,
            Err(answer) => vec![answer; principals.len()],
        };
        let unusable = |i: &usize| matches!(answers[*i], Answer::Unusable | Answer::Missing);
        let again: Vec<usize> = everyone.into_iter().filter(unusable).collect();
        let lookup = form.lookup.as_ref().filter(|_| images.can_look_up && !again.is_empty());
        if let Some(lookup) = lookup {
            let looked_up = match self.prepare(lookup).await? {
                Ok(statement) => {
                    // The current row says nothing about the old one.
                    let images = Images { judged: images.judged.clone(), old: None, can_look_up: false };
                    self.execute(&assume, &statement, &images, &again).await?
                }
                Err(answer) => vec![answer; again.len()],
            };
            for (i, answer) in again.into_iter().zip(looked_up) {
                answers[i] = match answer {
                    // The table itself has changed since the catalog was read.
                    Answer::Missing => Answer::Undecided(UndecidedReason::Catalog),
                    answer => answer,
                };
            }
        }
        Ok(answers)
    }

    /// Parses a statement as the role, without claims. The inner error is the answer for everybody.
    async fn prepare(&self, sql: &str) -> Result<Result<Statement, Answer>, UndecidedReason> {
        let role: &str = &self.question.bound.plan().role;
        let become_role = "select set_config('role', $1, true)";
        let parameters: [(&(dyn ToSql + Sync), Type); 1] = [(&role, Type::TEXT)];
        if let Err(error) = self.transaction.query_typed(become_role, &parameters).await {
            tracing::debug!(role, error = %crate::error::chain(&error), "cannot become the role to ask as");
            return Err(if error.as_db_error().is_some() {
                UndecidedReason::Role
            } else {
                UndecidedReason::Connection
            });
        }
        let prepared = self.transaction.prepare_typed(sql, &[Type::TEXT]).await;
        self.transaction.batch_execute(BACK).await.map_err(undecided)?;
        Ok(prepared.map_err(|error| answer_of(&error)))
    }

    /// Runs the statement for each of these principals, a pipeline's worth at a time.
    async fn execute(
        &self,
        assume: &Statement,
        statement: &Statement,
        images: &Images,
        principals: &[usize],
    ) -> Result<Vec<Answer>, UndecidedReason> {
        let mut answers = Vec::with_capacity(principals.len());
        for batch in principals.chunks(self.pipeline) {
            let asked = batch.iter().map(|i| self.ask_one(assume, statement, images, &self.question.principals[*i]));
            for answer in in_order(asked.collect()).await {
                answers.push(answer?);
            }
        }
        Ok(answers)
    }

    /// Sends everything for one principal in its first poll, in this order.
    async fn ask_one(
        &self,
        assume: &Statement,
        statement: &Statement,
        images: &Images,
        principal: &Principal,
    ) -> Result<Answer, UndecidedReason> {
        // A NUL can't be in a setting. The JSON has it escaped, and what reads it there raises.
        let subject = if principal.subject.contains('\0') { "" } else { &*principal.subject };
        let claims: [&(dyn ToSql + Sync); 3] = [&&*principal.claims_json, &subject, &&*principal.role];
        let judged: [&(dyn ToSql + Sync); 1] = [&images.judged];
        let old: [&(dyn ToSql + Sync); 1] = [&images.old];
        let ask_old = async {
            match images.old {
                Some(_) => Some(self.transaction.query_one(statement, &old).await),
                None => None,
            }
        };
        let (assumed, new, old, back) = tokio::join!(
            biased;
            self.transaction.query_one(assume, &claims),
            self.transaction.query_one(statement, &judged),
            ask_old,
            self.transaction.batch_execute(BACK),
        );
        // Without this the next principal would be asked in a failed or foreign state.
        back.map_err(undecided)?;
        let truth = |row: &tokio_postgres::Row| row.try_get::<_, Option<bool>>(0).ok().flatten().unwrap_or(false);
        Ok(match (assumed, new) {
            (Err(error), _) => answer_of(&error),
            (Ok(_), Err(error)) => answer_of(&error),
            (Ok(_), Ok(row)) if truth(&row) => {
                Answer::Yes { old_too: old.is_some_and(|old| old.is_ok_and(|row| truth(&row))) }
            }
            (Ok(_), Ok(_)) => Answer::No,
        })
    }
}

fn snapshot(messages: &[SimpleQueryMessage]) -> Result<Snapshot, UndecidedReason> {
    let text = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    text.and_then(|text| Snapshot::parse(text).ok()).ok_or(UndecidedReason::Connection)
}

/// What an error says about the policy: whether it raised, or whether the question did not come through.
fn answer_of(error: &tokio_postgres::Error) -> Answer {
    let Some(state) = error.code() else {
        // A value that could not be sent is the principal's; anything else without a code is the connection's.
        return Answer::Undecided(UndecidedReason::Connection);
    };
    let code = state.code();
    let database = error.as_db_error();
    // DDL came between the catalog reading and the question: the row's type has other fields now.
    if database.is_some_and(|db| db.routine() == Some("record_in")) {
        return Answer::Undecided(UndecidedReason::Catalog);
    }
    // What a function of the policy raises has a context.
    if matches!(code, "42703" | "42P01" | "42704" | "42804") && database.is_some_and(|db| db.where_().is_none()) {
        return Answer::Missing;
    }
    match (&code[..2], code) {
        (_, "57014" | "55P03" | "40P01") => Answer::Undecided(UndecidedReason::Timeout),
        (_, "25006") => Answer::Raised,
        ("08" | "25" | "26" | "40" | "53" | "57" | "58" | "72" | "F0", _) => {
            Answer::Undecided(UndecidedReason::Connection)
        }
        ("42" | "3F", _) => Answer::Unusable,
        _ => Answer::Raised,
    }
}

fn undecided(error: tokio_postgres::Error) -> UndecidedReason {
    match answer_of(&error) {
        Answer::Undecided(reason) => reason,
        _ => UndecidedReason::Connection,
    }
}
