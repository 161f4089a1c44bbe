//! "Why did this user not get this row?", answered from evidence: the change in the log, the journal, the hub as it is, and the
//! rules as they are now.
//!
//! ```text
//!  log ──► the change(s) ──┐
//!  journal ──► channels ───┼──► published? subscribed? filter? rights now, rights then? ──► sent · not sent · not known
//!  hub ──► plans, facts ───┘
//! ```
//!
//! Invariants:
//! * What is not known is said to be unknown, with from when on it would be; nothing is guessed. Deliveries are not kept: "sent"
//!   means that everything that could have kept it from being sent is known not to have.
//! * One question at a time, bounded in time and in bytes read; it holds up nothing.
//! * Only an operator may ask, at the admin address; a row's values are in the answer only if they are asked for.

mod answer;
mod clock;
mod evidence;
mod rights;
mod scene;
mod search;
mod story;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

pub use answer::{Answer, Explained, Outcome, Request, Says, Step};

use crate::catalog::Catalog;
use crate::change::{Lsn, Position};
use crate::claims::{Principal, TokenError, Verifier};
use crate::clock::Clock;
use crate::error::{ClientFacing, Fault, Remedy};
use crate::filter::{FilterAskConfig, Validator};
use crate::hub::{HubHandle, Look, Looked};
use crate::journal::Journal;
use crate::log::{Log, LogError, Place};
use crate::pg::Pool;
use crate::policy::AskConfig;
use crate::resume::{CursorError, CursorKey};
use evidence::Evidence;
use scene::Scene;
use search::{Searched, TableName};

/// For an answer of the hub.
const HUB_DEADLINE: Duration = Duration::from_secs(5);
/// Between two looks for a role that the rules were not read for.
const ROLE_PAUSE: Duration = Duration::from_millis(100);

/// What is asked.
#[derive(Clone)]
pub struct WhyDeps {
    /// Who is subscribed, and how it judges.
    pub hub: HubHandle,
    /// Where the changes are.
    pub log: Log,
    /// What happened.
    pub journal: Journal,
    /// For what only Postgres can judge.
    pub pool: Pool,
    /// Bounds of such a question.
    pub ask: AskConfig,
    /// Bounds of questions about filters.
    pub filter_ask: FilterAskConfig,
    /// For filters.
    pub validator: Arc<Validator>,
    /// For tokens.
    pub verifier: Arc<Verifier>,
    /// For their expiry.
    pub clock: Clock,
    /// For cursors as clients have them.
    pub cursor_key: Arc<CursorKey>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum WhyError {
    /// The question.
    #[error("{problem}")]
    Question {
        /// What is wrong with it.
        problem: String,
        /// What to do.
        advice: String,
    },
    /// The token.
    #[error("--token is refused: {0}")]
    Token(String),
    /// Another one is being answered.
    #[error("another question is being answered")]
    Busy,
    /// The hub.
    #[error("the relay can't answer yet: {0}")]
    NotReady(&'static str),
    /// The log.
    #[error("the log can't be read")]
    Log(#[from] LogError),
    /// The journal.
    #[error("the journal can't be read")]
    Journal(#[source] std::io::Error),
}

impl Fault for WhyError {
    fn remedy(&self) -> Remedy {
        match self {
            WhyError::Question { .. } | WhyError::Token(_) | WhyError::Journal(_) => Remedy::Operator,
            WhyError::Busy | WhyError::NotReady(_) => Remedy::Retry,
            WhyError::Log(error) => error.remedy(),
        }
    }

    fn advice(&self) -> String {
        match self {
            WhyError::Question { advice, .. } => advice.clone(),
            WhyError::Token(_) => {
                "Give the token as the client sends it, or --user and --role instead. One that has expired may be given.".into()
            }
            WhyError::Busy => "Ask again in a moment: one question is answered at a time.".into(),
            WhyError::NotReady(_) => "Ask again when /readyz says that changes are streaming.".into(),
            WhyError::Log(error) => error.advice(),
            WhyError::Journal(_) => "See that the relay may read the folder journal in ROWCAST_DATA_DIR.".into(),
        }
    }
}

fn wrong(problem: impl Into<String>, advice: impl Into<String>) -> WhyError {
    WhyError::Question { problem: problem.into(), advice: advice.into() }
}

/// See the module's comment.
pub struct Why {
    deps: WhyDeps,
    one: Semaphore,
}

/// Whom the question is about.
struct Subject {
    subject: Arc<str>,
    role: Option<Arc<str>>,
    /// Of a token that was given.
    principal: Option<Arc<Principal>>,
    remark: Option<String>,
}

impl Why {
    /// Over these.
    pub fn new(deps: WhyDeps) -> Why {
        Why { deps, one: Semaphore::new(1) }
    }

    /// Answers one question.
    pub async fn answer(&self, request: &Request) -> Result<Answer, WhyError> {
        let _one = self.one.try_acquire().map_err(|_| WhyError::Busy)?;
        let subject = self.subject(request)?;
        let looked = self.look(&subject).await?;
        let Some(catalog) = looked.catalog.clone() else {
            return Err(WhyError::NotReady("the rules were not read yet"));
        };
        let table = request.table.as_deref().map(|text| named(&catalog, text));
        let searched = self.search(request, &catalog, table.as_ref()).await?;
        let evidence = self.evidence(&subject, &looked).await?;
        let scene = Scene {
            deps: &self.deps,
            request,
            subject: &subject,
            looked: &looked,
            catalog: &catalog,
            unknown: scene::unknown(&looked, &evidence),
            evidence: &evidence,
        };
        Ok(scene.answer(searched, table.as_ref()).await)
    }

    fn subject(&self, request: &Request) -> Result<Subject, WhyError> {
        match (&request.token, &request.user, &request.role) {
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
                Err(wrong("--token says who it is", "Leave --user and --role out, or give them instead of the token."))
            }
            (Some(token), None, None) => {
                let (principal, remark) = self.verified(token)?;
                let (subject, role) = (principal.subject.clone(), Some(principal.role.clone()));
                Ok(Subject { subject, role, principal: Some(Arc::new(principal)), remark })
            }
            (None, None, None) => Err(wrong(
                "the question names nobody",
                "Give --user with the sub of the user's token, or --token with the token itself.",
            )),
            (None, user, role) => Ok(Subject {
                subject: user.as_deref().unwrap_or_default().into(),
                role: role.as_deref().map(Arc::from),
                principal: None,
                remark: None,
            }),
        }
    }

    fn verified(&self, token: &str) -> Result<(Principal, Option<String>), WhyError> {
        let refused = |error: TokenError| WhyError::Token(error.client_text());
        match self.deps.verifier.verify(token, self.deps.clock.unix_seconds()) {
            Ok(principal) => Ok((principal, None)),
            Err(TokenError::Expired { .. }) => {
                let principal = self.deps.verifier.verify(token, 0).map_err(refused)?;
                let when = clock::time(principal.expires_at.saturating_mul(1000));
                let remark =
                    format!("the token has expired at {when}; what its user may see is judged as if it had not");
                Ok((principal, Some(remark)))
            }
            Err(error) => Err(refused(error)),
        }
    }

    /// The hub as it is, its rules read for the role.
    async fn look(&self, subject: &Subject) -> Result<Looked, WhyError> {
        let look = Look { subject: subject.subject.clone(), role: subject.role.clone() };
        let looking = async {
            loop {
                match self.deps.hub.look(look.clone()).await {
                    Some(looked) if looked.role_known && looked.catalog.is_some() => return Some(looked),
                    Some(_) => tokio::time::sleep(ROLE_PAUSE).await,
                    None => return None,
                }
            }
        };
        match tokio::time::timeout(HUB_DEADLINE, looking).await {
            Ok(Some(looked)) => Ok(looked),
            Ok(None) => Err(WhyError::NotReady("it is starting or stopping")),
            Err(_) => Err(WhyError::NotReady("the hub does not answer, or can't read the rules")),
        }
    }

    async fn search(
        &self,
        request: &Request,
        catalog: &Catalog,
        table: Option<&TableName>,
    ) -> Result<Searched, WhyError> {
        let known = table.and_then(|table| catalog.table(table.oid?));
        let key_advice = "The primary key as Postgres prints it: --pk 5, --pk 5,17 or --pk id=5.";
        let key = match request.pk.is_empty() {
            true => Vec::new(),
            false => search::key(&request.pk, known.map(|table| &**table)).map_err(|text| wrong(text, key_advice))?,
        };
        let types = catalog.types();
        match &request.cursor {
            Some(cursor) => {
                let (lsn, ordinal) = self.position(cursor)?;
                let wanted = search::Wanted { table: table.cloned(), key, ordinal };
                Ok(search::at(&self.deps.log, lsn, &wanted, types).await?)
            }
            None if table.is_none() || key.is_empty() => Err(wrong(
                "the question names no row",
                "Give --table and --pk, or --cursor with the cursor or the position of the change.",
            )),
            None => {
                let since = request.since_seconds.map(|seconds| {
                    let millis = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000);
                    self.deps.clock.unix_millis().saturating_sub(millis)
                });
                let wanted = search::Wanted { table: table.cloned(), key, ordinal: None };
                Ok(search::newest(&self.deps.log, &wanted, types, since).await?)
            }
        }
    }

    /// What is meant by `--cursor`: a cursor as clients have it, or a position as the log has it.
    fn position(&self, text: &str) -> Result<(Lsn, Option<u32>), WhyError> {
        let cursor = match self.deps.cursor_key.open(text) {
            Ok(cursor) => cursor,
            Err(CursorError::Malformed) => {
                let advice = "Give `data.cursor` as the client has it; or a position: a commit's end LSN and the \
                              change's number in its transaction.";
                return search::position(text).map_err(|text| wrong(text, advice));
            }
            Err(error @ CursorError::OtherKey) => {
                let advice = "Ask the relay that gave it, or give the key of the row or the position of the change.";
                return Err(wrong(error.to_string(), advice));
            }
        };
        let Position { lsn, ordinal } = cursor.position;
        if self.deps.log.place(cursor.epoch, cursor.position) == Place::Diverged {
            let problem =
                "the cursor is of another history: of another database, or from before the slot was made anew";
            return Err(wrong(problem, "Give the key of the row instead: --table and --pk."));
        }
        // The place of a join or a notice stands between transactions.
        Ok((lsn, (ordinal != u32::MAX).then_some(ordinal)))
    }

    async fn evidence(&self, subject: &Subject, looked: &Looked) -> Result<Evidence, WhyError> {
        // Late or not: what is missing then is at the journal's end, and the hub tells who is subscribed now.
        self.deps.journal.flush().await;
        let read = || {
            let live = looked.channels.iter().map(|live| live.id).collect();
            let mut evidence = Evidence::of(subject.subject.clone(), subject.role.clone(), live);
            let journal = self.deps.journal.clone();
            tokio::task::spawn_blocking(move || {
                let extent = journal.read(&mut |at, note| evidence.take(at, note))?;
                evidence.extent = extent;
                Ok(evidence)
            })
        };
        let aborted = || WhyError::NotReady("it is stopping");
        match read().await.map_err(|_| aborted())? {
            Ok(evidence) => Ok(evidence),
            // A file was removed under the reader as the oldest: the next reading begins after it.
            Err(_) => read().await.map_err(|_| aborted())?.map_err(WhyError::Journal),
        }
    }
}

/// The table of a name; the schema is `public` unless it is named. A dot may also stand in a name.
fn named(catalog: &Catalog, text: &str) -> TableName {
    let splits = text.match_indices('.').map(|(dot, _)| (&text[..dot], &text[dot + 1..]));
    let mut tried = splits.clone().chain([("public", text)]);
    let known = tried.find_map(|(schema, name)| catalog.named(schema, name));
    match known {
        Some(table) => TableName { oid: Some(table.oid), schema: table.schema.clone(), name: table.name.clone() },
        None => {
            let (schema, name) = splits.into_iter().next().unwrap_or(("public", text));
            TableName { oid: None, schema: schema.into(), name: name.into() }
        }
    }
}
