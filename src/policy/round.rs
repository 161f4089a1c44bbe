//! One transaction in which Postgres is asked about one row for several principals, sent without waiting for anything.
//!
//! Repeatable read, so one snapshot covers every answer. One statement per claims set: an uncorrelated sub-select is computed
//! once per statement, so a statement that judged two principals would give the second the first one's answer. Each
//! principal's statements go back to a savepoint, so one who makes the policy raise denies only himself.
//!
//! From BEGIN to the last principal all is on its way before the first answer comes: the network is crossed once. Therefore an
//! answer counts only if what it rests on came through: the transaction began with our own BEGIN, its snapshot sees what it
//! must, the principal's claims and role were set, and behind his statement the savepoint was still there. Should BEGIN fail,
//! the rest runs outside of a transaction: as the login, which a policy's function may be at any time (`RESET ROLE`), in a
//! session that is read-only by itself ([`crate::pg::PgConfig::asking_pool`]), and nobody looks at what it says.
//!
//! The statement is parsed for each principal, or, for several, once as the role without claims (`PREPARE`, in SQL, since that
//! can be sent without waiting too). It is planned for each principal in any case: a plan that is kept would keep the claims
//! of the one it was made for wherever a function that reads them is declared immutable. It is not kept for the next question:
//! USAGE on a schema is checked when a statement is parsed, so that one would outlive a REVOKE; and a function can put another
//! statement in its place.
//!
//! Rejected: statements prepared by the protocol, which takes a second crossing.

use std::collections::VecDeque;
use std::future::{Future, Ready, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use futures_util::future::{MaybeDone, maybe_done};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::ask::{AskConfig, Question};
use super::form::Form;
use super::permit::UndecidedReason;
use crate::catalog::Snapshot;
use crate::claims::Principal;
use crate::error::Remedy;
use crate::pg::ASSUME;

/// What came of one principal's statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
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

/// Why a round ended without all answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The snapshot lacks a transaction that the row may depend on.
    Void,
    /// The role can't be assumed.
    Role,
    /// There was nobody to ask, and what helps.
    NoConnection(Remedy),
    /// The connection or the transaction ended before its time.
    Broken,
}

/// The images, as literals.
pub(super) struct Images {
    pub(super) judged: String,
    /// The complete old row of an UPDATE.
    pub(super) old: Option<String>,
    /// The row can be looked up instead.
    pub(super) can_look_up: bool,
}

/// What is asked.
pub(super) struct Round<'a> {
    pub(super) question: &'a Question,
    pub(super) form: &'a Form,
    pub(super) images: &'a Images,
    pub(super) config: &'a AskConfig,
}

/// A statement with the images that it is run on.
struct Asking<'a> {
    sql: &'a str,
    judged: &'a str,
    old: Option<&'a str>,
    /// It is prepared under this name, and reads the images from settings.
    prepared: Option<&'static str>,
}

const BACK: &str = "rollback to savepoint asked";
/// From this number of principals on, preparing is cheaper.
const WORTH_PREPARING: usize = 3;
/// Of the protocol, about, for one principal.
const OVERHEAD: usize = 512;

const IMAGES: &str = "select set_config('rowcast.judged', $1, true), set_config('rowcast.old', $2, true)";
/// A function of the policy may overwrite them, which is no news to who wrote the policy.
const JUDGED: &str = "rowcast.judged";
const OLD: &str = "rowcast.old";

impl Round<'_> {
    /// Asks for these principals in this order, by index in the question. `answered` is called for each as his answer comes;
    /// those for whom it was not called when this ends have none.
    pub(super) async fn ask(
        &self,
        client: &Client,
        principals: &[usize],
        answered: &mut (dyn FnMut(usize, Answer) + Send),
    ) -> Result<(), Stop> {
        let mut again = Vec::new();
        let lookup = self.form.lookup.as_ref().filter(|_| self.images.can_look_up);
        let first = &mut |principal, answer| match answer {
            Answer::Unusable | Answer::Missing if lookup.is_some() => again.push(principal),
            answer => answered(principal, answer),
        };
        let begin = sent(self.begin(client)).await;
        let old = self.images.old.as_deref();
        self.all(client, Some(begin), ("asked", &self.form.question, old), principals, first).await?;
        if let Some(lookup) = lookup.filter(|_| !again.is_empty()) {
            let second = &mut |principal, answer| match answer {
                // The table itself has changed since the catalog was read.
                Answer::Missing => answered(principal, Answer::Undecided(UndecidedReason::Catalog)),
                answer => answered(principal, answer),
            };
            // The current row says nothing about the old one.
            self.all(client, None::<Sent<Ready<_>>>, ("looked_up", lookup, None), &again, second).await?;
        }
        Ok(())
    }

    /// Ends the transaction, without waiting for it: whatever this connection does next comes behind.
    pub(super) async fn end(&self, client: &Client) {
        drop(sent(client.batch_execute("rollback; deallocate all")).await);
    }

    /// Begins the transaction; fails unless it is a new one, in which no statement has run, and its snapshot sees enough.
    async fn begin(&self, client: &Client) -> Result<(), Stop> {
        // Names in the text mean what they meant when it was printed: with an empty search_path.
        let timeout = self.config.statement_timeout.as_millis().max(1);
        let begin = format!(
            "begin isolation level repeatable read read only; set local statement_timeout = {timeout}; \
             set local search_path = ''; set local row_security = on; set local plan_cache_mode = force_custom_plan; \
             select pg_current_snapshot()::text, now() = statement_timestamp(); savepoint asked"
        );
        let messages = client.simple_query(&begin).await.map_err(broken)?;
        let row = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let row = row.filter(|row| row.get(1) == Some("t")).ok_or(Stop::Broken)?;
        let snapshot = row.get(0).and_then(|text| Snapshot::parse(text).ok()).ok_or(Stop::Broken)?;
        if self.question.xids.iter().all(|xid| snapshot.sees(*xid)) { Ok(()) } else { Err(Stop::Void) }
    }

    /// Sends as much as may be on its way, and takes the answers as they come.
    async fn all(
        &self,
        client: &Client,
        begin: Option<Sent<impl Future<Output = Result<(), Stop>>>>,
        (name, sql, old): (&'static str, &str, Option<&str>),
        principals: &[usize],
        answered: &mut (dyn FnMut(usize, Answer) + Send),
    ) -> Result<(), Stop> {
        let prepared = (principals.len() >= WORTH_PREPARING).then_some(name);
        let asking = Asking { sql, judged: &self.images.judged, old, prepared };
        let text = if prepared.is_some() { 0 } else { sql.len() + asking.judged.len() + old.map_or(0, str::len) };
        let size = |at: usize| text + self.question.principals[at].claims_json.len() + OVERHEAD;
        let mut prepare = match prepared {
            Some(name) => Some(sent(self.prepare(client, name, &asking)).await),
            None => None,
        };
        let mut begun = begin;
        let mut on_the_way = VecDeque::new();
        let mut bytes = 0;
        let mut rest = principals.iter().copied().peekable();
        let mut void = false;
        // What the statement says of everybody, if it can't be parsed.
        let mut unparsed = None;
        loop {
            while let Some(at) = rest.next_if(|at| on_the_way.is_empty() || bytes + size(*at) <= self.config.in_flight)
            {
                bytes += size(at);
                let one = self.ask_one(client, &asking, &self.question.principals[at]);
                on_the_way.push_back((at, sent(one).await));
            }
            if let Some(begin) = begun.take() {
                match received(begin).await {
                    Ok(()) => {}
                    // What was sent is waited for, so that the connection can be used again.
                    Err(Stop::Void) => {
                        void = true;
                        rest = [].iter().copied().peekable();
                    }
                    Err(other) => return Err(other),
                }
            }
            if let Some(prepare) = prepare.take() {
                unparsed = received(prepare).await?;
            }
            let Some((at, one)) = on_the_way.pop_front() else { break };
            let answer = received(one).await?;
            bytes -= size(at);
            if !void {
                answered(at, unparsed.unwrap_or(answer));
            }
        }
        if void { Err(Stop::Void) } else { Ok(()) }
    }

    /// Parses the statement as the role, without claims. What that says of everybody, if it fails.
    async fn prepare(&self, client: &Client, name: &str, asking: &Asking<'_>) -> Result<Option<Answer>, Stop> {
        let role: &str = &self.question.bound.plan().role;
        let images: [(&(dyn ToSql + Sync), Type); 2] = [(&asking.judged, Type::TEXT), (&asking.old, Type::TEXT)];
        let role: [(&(dyn ToSql + Sync), Type); 1] = [(&role, Type::TEXT)];
        let prepare = format!("prepare {name}(text) as {}", asking.sql);
        let (out, kept, again, assumed, prepared, back) = tokio::join!(
            biased;
            client.batch_execute("release savepoint asked"),
            client.query_typed(IMAGES, &images),
            client.batch_execute("savepoint asked"),
            client.query_typed("select set_config('role', $1, true)", &role),
            client.batch_execute(&prepare),
            client.batch_execute(BACK),
        );
        for done in [out, again, back] {
            done.map_err(broken)?;
        }
        kept.map_err(broken)?;
        assumed.map_err(|error| cannot_assume(&error))?;
        match prepared {
            Ok(()) => Ok(None),
            // One of this name is left: not ours.
            Err(error) if error.code() == Some(&SqlState::DUPLICATE_PSTATEMENT) => Err(broken(error)),
            Err(error) => Ok(Some(answer_of(&error))),
        }
    }

    /// Sends everything for one principal in its first poll, in this order.
    async fn ask_one(&self, client: &Client, asking: &Asking<'_>, principal: &Principal) -> Result<Answer, Stop> {
        // A NUL can't be in a setting. The JSON has it escaped, and what reads it there raises.
        let subject = if principal.subject.contains('\0') { "" } else { &*principal.subject };
        let role: &str = &self.question.bound.plan().role;
        let claims: &str = &principal.claims_json;
        let claims = [claims, subject, role];
        let claims = claims.each_ref().map(|text| (text as &(dyn ToSql + Sync), Type::TEXT));
        let ask_old = async {
            match asking.old {
                Some(old) => truth(client, asking, old, OLD).await.unwrap_or(false),
                None => false,
            }
        };
        let (assumed, new, old_too, back) = tokio::join!(
            biased;
            client.query_typed(ASSUME, &claims),
            truth(client, asking, asking.judged, JUDGED),
            ask_old,
            client.batch_execute(BACK),
        );
        // Without this he may have been asked for in a foreign state, and so may the next one.
        back.map_err(broken)?;
        Ok(match (assumed, new) {
            (Err(error), _) => match answer_of(&error) {
                answer @ Answer::Undecided(_) => answer,
                _ => return Err(cannot_assume(&error)),
            },
            (Ok(_), Err(error)) => answer_of(&error),
            (Ok(_), Ok(true)) => Answer::Yes { old_too },
            (Ok(_), Ok(false)) => Answer::No,
        })
    }
}

/// Whether the policy says yes of an image, which is in this setting too; sends in its first poll.
async fn truth(
    client: &Client,
    asking: &Asking<'_>,
    image: &str,
    setting: &str,
) -> Result<bool, tokio_postgres::Error> {
    if let Some(name) = asking.prepared {
        let messages = client.simple_query(&format!("execute {name}(current_setting('{setting}'))")).await?;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0) == Some("t")),
            _ => None,
        });
        return Ok(rows.eq([true]));
    }
    let image: [(&(dyn ToSql + Sync), Type); 1] = [(&image, Type::TEXT)];
    let rows = client.query_typed(asking.sql, &image).await?;
    Ok(rows.len() == 1 && rows[0].try_get::<_, Option<bool>>(0)?.unwrap_or(false))
}

fn cannot_assume(error: &tokio_postgres::Error) -> Stop {
    tracing::debug!(error = %crate::error::chain(error), "cannot become the role to ask as");
    if matches!(answer_of(error), Answer::Undecided(_)) { Stop::Broken } else { Stop::Role }
}

/// Whether a snapshot taken now sees these transactions. Later ones see them as well.
pub(super) async fn visible(client: &Client, xids: &[u32]) -> Result<bool, Stop> {
    let messages = client.simple_query("select pg_catalog.pg_current_snapshot()::pg_catalog.text").await;
    let messages = messages.map_err(broken)?;
    let text = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    let snapshot = text.and_then(|text| Snapshot::parse(text).ok()).ok_or(Stop::Broken)?;
    Ok(xids.iter().all(|xid| snapshot.sees(*xid)))
}

/// A request that is on its way.
type Sent<F> = Pin<Box<MaybeDone<F>>>;

/// Polls once, which sends.
async fn sent<F: Future>(request: F) -> Sent<F> {
    let mut request = Box::pin(maybe_done(request));
    poll_fn(|context| {
        let _ = request.as_mut().poll(context);
        Poll::Ready(())
    })
    .await;
    request
}

/// Its answer.
async fn received<T, F: Future<Output = Result<T, Stop>>>(mut request: Sent<F>) -> Result<T, Stop> {
    request.as_mut().await;
    request.as_mut().take_output().unwrap_or(Err(Stop::Broken))
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

fn broken(error: tokio_postgres::Error) -> Stop {
    tracing::debug!(
        sqlstate = error.code().map(tokio_postgres::error::SqlState::code),
        "a question to Postgres broke off"
    );
    Stop::Broken
}
