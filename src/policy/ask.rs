//! Postgres as the judge of one change for many principals of one role.
//!
//! A question is asked in rounds ([`super::round`]): one transaction each, in which every principal has statements of his own.
//! A round whose snapshot lacks a transaction up to the change is void, and asked again; until then only the snapshot is
//! looked at, so that a slow policy is not run in vain. When the connection breaks in the middle of a round, the answers that
//! had come stay, and the others are asked for once more on another connection, last the principal who was being judged: a
//! policy that ends its session for one user does so for him alone.
//!
//! A policy's function may `RESET ROLE` and then runs with the rights of our login: log in as a role with few rights. A
//! function that writes fails here (the transaction is read-only) although it may work in a real SELECT: the row is denied.
//!
//! Rejected: a PL/pgSQL loop over the principals (a helper object in the user's database, and one error ends all), and one
//! transaction per principal (as many snapshots as answers).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::bound::{Bound, Judged};
use super::permit::{DenyReason, UndecidedReason, Verdict};
use super::round::{Answer, Images, Round, Stop, visible};
use crate::change::{Change, RowChange};
use crate::claims::Principal;
use crate::error::{Fault as _, Remedy};
use crate::metrics::Metrics;
use crate::pg::{Lent, Pool};

/// Bounds of a question.
#[derive(Debug, Clone)]
pub struct AskConfig {
    /// Connections for questions, and so questions on their way at once. 4.
    pub connections: usize,
    /// For one principal's statement. 2 s.
    pub statement_timeout: Duration,
    /// For the whole question, with the times it is asked again. 10 s.
    pub deadline: Duration,
    /// Before asking again for the first time; doubles up to 100 ms. 5 ms.
    pub pause: Duration,
    /// Bytes of statements that are on their way at once. What is within is one round trip. 1 MiB.
    pub in_flight: usize,
    /// After so many questions in a row without a decision a policy is not asked about for a while. 5.
    pub failures: u32,
    /// For how long, at first; doubles up to 12 times this. 5 s.
    pub suspension: Duration,
}

impl Default for AskConfig {
    fn default() -> AskConfig {
        AskConfig {
            connections: 4,
            statement_timeout: Duration::from_secs(2),
            deadline: Duration::from_secs(10),
            pause: Duration::from_millis(5),
            in_flight: 1 << 20,
            failures: 5,
            suspension: Duration::from_secs(5),
        }
    }
}

const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// How often a question is asked again after its connection broke: a policy may be the cause.
const MAX_BREAKS: u32 = 1;

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

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// In the order of the question's principals.
    pub verdicts: Vec<Verdict>,
    /// Nobody got a decision, for a reason that may lie in the policy itself: its statements take too long or break the
    /// connection, or its role can't be assumed.
    pub failure: Option<UndecidedReason>,
}

/// Asks Postgres. Cheap to clone.
#[derive(Clone)]
pub struct Asker {
    pool: Pool,
    config: AskConfig,
    metrics: Arc<Metrics>,
}

/// How far a question has come.
struct Progress {
    answers: Vec<Option<Answer>>,
    /// Those without an answer, in the order in which they are asked for.
    open: Vec<usize>,
    /// Why there would be no answer, if it ended now.
    late: UndecidedReason,
    /// Whether that may be the policy's fault.
    blame: bool,
}

impl Asker {
    /// Over a pool ([`crate::pg::PgConfig::asking_pool`]) whose login may `SET ROLE` to the token roles.
    pub fn new(pool: Pool, config: AskConfig, metrics: Arc<Metrics>) -> Asker {
        Asker { pool, config, metrics }
    }

    /// Its bounds.
    pub fn config(&self) -> &AskConfig {
        &self.config
    }

    /// The verdicts, in the order of `question.principals`. Takes at most the deadline.
    pub async fn judge(&self, question: &Question) -> Vec<Verdict> {
        self.ask(question).await.verdicts
    }

    /// The verdicts, and whether the policy is to blame if there are none. Takes at most the deadline.
    pub async fn ask(&self, question: &Question) -> Answers {
        let started = Instant::now();
        let progress = self.answers(question, started + self.config.deadline).await;
        self.metrics.ask.observe(started.elapsed().as_secs_f64());
        let progress = match progress {
            Ok(progress) => progress,
            Err(verdict) => return Answers { verdicts: vec![verdict; question.principals.len()], failure: None },
        };
        let failure = match progress.answers.first() {
            _ if progress.answers.iter().flatten().any(|answer| !matches!(answer, Answer::Undecided(_))) => None,
            Some(Some(Answer::Undecided(reason @ (UndecidedReason::Timeout | UndecidedReason::Connection)))) => {
                Some(*reason)
            }
            Some(None) => progress.blame.then_some(progress.late),
            _ => None,
        };
        let verdicts = progress.answers.iter().zip(&question.principals).map(|(answer, principal)| {
            verdict(question, principal, answer.unwrap_or(Answer::Undecided(progress.late)))
        });
        Answers { verdicts: verdicts.collect(), failure }
    }

    async fn answers(&self, question: &Question, deadline: Instant) -> Result<Progress, Verdict> {
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
        let count = question.principals.len();
        let mut progress = Progress {
            answers: vec![None; count],
            open: (0..count).collect(),
            late: UndecidedReason::Timeout,
            blame: true,
        };
        let mut pause = self.config.pause;
        let mut breaks = 0;
        let mut was_void = false;
        while !progress.open.is_empty() {
            let round = Round { question, form, images: &images, config: &self.config };
            let asked = tokio::time::timeout_at(deadline, self.round(&round, &mut progress, was_void)).await;
            match asked {
                Err(_) => break,
                Ok(Ok(())) => continue,
                Ok(Err(Stop::Void)) => {
                    self.metrics.ask_not_visible.inc();
                    was_void = true;
                    (progress.late, progress.blame) = (UndecidedReason::NotVisibleYet, false);
                }
                Ok(Err(Stop::Role)) => {
                    (progress.late, progress.blame) = (UndecidedReason::Role, true);
                    break;
                }
                Ok(Err(Stop::NoConnection(remedy))) => {
                    (progress.late, progress.blame) = (UndecidedReason::Connection, false);
                    if remedy != Remedy::Retry {
                        break;
                    }
                }
                Ok(Err(Stop::Broken)) => {
                    self.metrics.ask_broken.inc();
                    breaks += 1;
                    (progress.late, progress.blame) = (UndecidedReason::Connection, true);
                    if breaks > MAX_BREAKS {
                        break;
                    }
                    progress.open.rotate_left(1);
                }
            }
            if Instant::now() + pause >= deadline {
                break;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Ok(progress)
    }

    /// One round for those who have no answer yet. Answers that came stay, however it ends.
    async fn round(&self, round: &Round<'_>, progress: &mut Progress, was_void: bool) -> Result<(), Stop> {
        let object = self.pool.get().await.map_err(|error| {
            tracing::debug!(error = %crate::error::chain(&error), "no connection to ask Postgres");
            Stop::NoConnection(error.remedy())
        })?;
        let mut lent = Lent(Some(object));
        let Some(client) = lent.0.as_ref() else { return Err(Stop::Broken) };
        if was_void && !visible(client, &round.question.xids).await? {
            drop(lent.0.take());
            return Err(Stop::Void);
        }
        self.metrics.ask_rounds.inc();
        self.metrics.ask_principals.inc_by(progress.open.len() as u64);
        let Progress { answers, open, late, blame } = progress;
        // Should the deadline come now, it is this round that took too long.
        (*late, *blame) = (UndecidedReason::Timeout, true);
        let asked = round.ask(client, &open.clone(), &mut |principal, answer| answers[principal] = Some(answer)).await;
        open.retain(|principal| answers[*principal].is_none());
        match asked {
            Ok(()) | Err(Stop::Void) => {
                round.end(client).await;
                drop(lent.0.take());
            }
            Err(_) => {}
        }
        asked
    }
}

fn verdict(question: &Question, principal: &Principal, answer: Answer) -> Verdict {
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
}
