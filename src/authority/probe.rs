//! Postgres as the judge of a private channel (`protocol.md` §7.5): rows are inserted, looked at, and rolled back.
//!
//! Invariants:
//! * Nothing is committed. An INSERT stands behind `rollback to savepoint` in one simple query, which the server does not get
//!   past outside of our own transaction; whatever is broken off closes its connection, and so ends the transaction.
//! * Everything is on its way before the first answer comes: the network is crossed once.
//! * What a policy does with the session ends with the transaction; role and settings are local to it.
//!
//! Rejected: evaluating the policies' text over a made-up row, as rows of the stream are judged. Functions in them may look at
//! the table, and the rows that Supabase shows them are really there.

use std::sync::Once;
use std::time::Duration;

use postgres_protocol::escape::escape_literal;
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use super::error::{AuthorityError, Meaning, Part, meaning};
use crate::pg::Lent;
use crate::policy::Asking;

/// Claims, subject, role, topic, headers. The role comes last: the others are set with our own rights. A token must not name
/// a superuser, whom no policy holds, nor `none`, which is the login itself.
const SETTINGS: &str = "select pg_catalog.set_config('request.jwt.claims', $1, true), \
    pg_catalog.set_config('request.jwt.claim.sub', $2, true), pg_catalog.set_config('request.jwt.claim.role', $3, true), \
    pg_catalog.set_config('realtime.topic', $4, true), pg_catalog.set_config('request.headers', $5, true), \
    (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = $3), \
    pg_catalog.set_config('role', $3, true)";

const VISIBLE: &str =
    "select m.id::pg_catalog.text from realtime.messages m where m.id = any($1::pg_catalog.text::pg_catalog.uuid[])";

const BACK: &str = "rollback to savepoint probe";

/// The extensions that a probe is about, in their order.
pub(super) const BROADCAST: &str = "broadcast";
pub(super) const PRESENCE: &str = "presence";

/// Which of the extensions may be read.
pub(super) async fn read(
    lent: &mut Lent,
    asking: &Asking,
    extensions: &[&str],
    timeout: Duration,
) -> Result<Vec<bool>, AuthorityError> {
    let Some(client) = lent.0.as_ref() else { return Err(AuthorityError::Unavailable) };
    let topic = literal(&asking.topic)?;
    let ids: Vec<String> = extensions.iter().map(|_| random_id()).collect();
    let rows = ids.iter().zip(extensions).map(|(id, extension)| {
        format!("('{id}', {topic}, '{extension}', pg_catalog.timezone('utc', pg_catalog.now()))")
    });
    let rows: Vec<String> = rows.collect();
    let insert =
        format!("{BACK}; insert into realtime.messages (id, topic, extension, inserted_at) values {}", rows.join(", "));
    let begin = begin(timeout);
    let list = format!("{{{}}}", ids.join(","));
    let parameters: [(&(dyn ToSql + Sync), Type); 1] = [(&list, Type::TEXT)];
    let (begun, inserted, assumed, visible, ended) = tokio::join!(
        biased;
        client.batch_execute(&begin),
        client.batch_execute(&insert),
        assume(client, asking),
        client.query_typed(VISIBLE, &parameters),
        client.batch_execute("rollback"),
    );
    let outcome = (|| {
        begun.map_err(|error| ours(&error))?;
        inserted.map_err(|error| ours(&error))?;
        if assumed? {
            return Ok(vec![false; extensions.len()]);
        }
        let visible = match visible {
            Ok(rows) => rows,
            Err(error) => return denied(&error).map(|()| vec![false; extensions.len()]),
        };
        let visible: Vec<String> = visible.iter().filter_map(|row| row.try_get(0).ok()).collect();
        Ok(ids.iter().map(|id| visible.contains(id)).collect())
    })();
    give_back(lent, ended, outcome)
}

/// Which of the extensions may be written.
pub(super) async fn write(
    lent: &mut Lent,
    asking: &Asking,
    extensions: [&str; 2],
    timeout: Duration,
) -> Result<[bool; 2], AuthorityError> {
    let Some(client) = lent.0.as_ref() else { return Err(AuthorityError::Unavailable) };
    let topic = literal(&asking.topic)?;
    let insert =
        |extension| format!("{BACK}; insert into realtime.messages (topic, extension) values ({topic}, '{extension}')");
    let [one, two] = extensions.map(insert);
    let begin = begin(timeout);
    let (begun, assumed, saved, one, two, ended) = tokio::join!(
        biased;
        client.batch_execute(&begin),
        assume(client, asking),
        // Behind the settings, so that going back does not undo them; and if they failed, there is nothing to go back to.
        client.batch_execute("release savepoint probe; savepoint probe"),
        client.batch_execute(&one),
        client.batch_execute(&two),
        client.batch_execute("rollback"),
    );
    let outcome = (|| {
        begun.map_err(|error| ours(&error))?;
        if assumed? {
            return Ok([false, false]);
        }
        saved.map_err(|error| ours(&error))?;
        let allowed = |inserted: Result<(), tokio_postgres::Error>| match inserted {
            Ok(()) => Ok(true),
            Err(error) => denied(&error).map(|()| false),
        };
        Ok([allowed(one)?, allowed(two)?])
    })();
    give_back(lent, ended, outcome)
}

/// Whether the relay's login may make the probe rows of a read check, for `doctor`: if not, the error is
/// [`AuthorityError::Unavailable`], and also if the connection breaks.
pub async fn can_probe(client: &Client) -> Result<(), AuthorityError> {
    let insert = format!(
        "{BACK}; insert into realtime.messages (topic, extension, inserted_at) \
         values ('', 'broadcast', pg_catalog.timezone('utc', pg_catalog.now()))"
    );
    let begin = begin(Duration::from_secs(5));
    let (begun, inserted, ended) = tokio::join!(
        biased;
        client.batch_execute(&begin),
        client.batch_execute(&insert),
        client.batch_execute("rollback"),
    );
    [begun, inserted, ended].into_iter().try_for_each(|done| done.map_err(|error| ours(&error)))
}

/// A transaction that may write, whatever the session's default, with the pinned limits and a savepoint.
fn begin(timeout: Duration) -> String {
    let millis = timeout.as_millis().max(1);
    format!(
        "begin isolation level read committed read write; set local statement_timeout = {millis}; \
         set local lock_timeout = {millis}; set local row_security = on; set local timezone = 'UTC'; savepoint probe"
    )
}

/// Becomes the role with everything that policies may look at; says whether it is a superuser.
async fn assume(client: &Client, asking: &Asking) -> Result<bool, AuthorityError> {
    let principal = &asking.principal;
    let texts: [&str; 5] =
        [&principal.claims_json, &principal.subject, &principal.role, &asking.topic, &asking.headers];
    let parameters = texts.each_ref().map(|text| (text as &(dyn ToSql + Sync), Type::TEXT));
    let rows = client.query_typed(SETTINGS, &parameters).await.map_err(|error| match meaning(Part::Role, &error) {
        Meaning::Failed(why) => why,
        Meaning::Denied | Meaning::Unfit => {
            tracing::error!(
                role = %principal.role,
                "the relay's login may not become this role of a token, so its private channels are closed; grant the role \
                 to the login (`rowcast doctor` prints the SQL)"
            );
            AuthorityError::Policy
        }
    })?;
    let found: Option<Option<bool>> = rows.first().and_then(|row| row.try_get(5).ok());
    found.ok_or(AuthorityError::Unavailable)?.ok_or(AuthorityError::Policy)
}

/// An error of a statement of our own.
fn ours(error: &tokio_postgres::Error) -> AuthorityError {
    match meaning(Part::Ours, error) {
        Meaning::Failed(why) => {
            tracing::debug!(error = %crate::error::chain(error), "a probe of a private channel failed");
            why
        }
        Meaning::Denied | Meaning::Unfit => {
            static ONCE: Once = Once::new();
            ONCE.call_once(|| {
                tracing::error!(
                    error = %crate::error::chain(error),
                    "the relay's login may not insert the probe rows that decide about private channels, so all of them are \
                     closed; make it a member of the owner of realtime.messages, or give it BYPASSRLS and INSERT"
                );
            });
            AuthorityError::Unavailable
        }
    }
}

/// Ok if the policies say no.
fn denied(error: &tokio_postgres::Error) -> Result<(), AuthorityError> {
    match meaning(Part::Theirs, error) {
        Meaning::Denied => Ok(()),
        Meaning::Unfit => Err(AuthorityError::Policy),
        Meaning::Failed(why) => {
            if why == AuthorityError::Policy {
                tracing::warn!(
                    sqlstate = error.code().map(tokio_postgres::error::SqlState::code),
                    "RlsPolicyError: a policy of realtime.messages raised an error; the channel is refused"
                );
            }
            Err(why)
        }
    }
}

/// The connection can be used again if the transaction is over.
fn give_back<T>(
    lent: &mut Lent,
    ended: Result<(), tokio_postgres::Error>,
    outcome: Result<T, AuthorityError>,
) -> Result<T, AuthorityError> {
    if ended.is_ok() {
        drop(lent.0.take());
    }
    outcome
}

fn literal(topic: &str) -> Result<String, AuthorityError> {
    // Postgres has no text with a NUL, so no policy could be asked about it.
    if topic.contains('\0') { Err(AuthorityError::Policy) } else { Ok(escape_literal(topic)) }
}

/// A random UUID of version 4, as Postgres prints it.
fn random_id() -> String {
    let bits: u128 = rand::random();
    let bits = bits & !(0xf << 76) & !(0b11 << 62) | 4 << 76 | 0b10 << 62;
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestDatabase;

    async fn backend(lent: &Lent) -> i32 {
        let row = lent.0.as_ref().expect("lent").query_one("select pg_backend_pid()", &[]).await;
        row.expect("an answer").get(0)
    }

    #[tokio::test]
    async fn a_connection_whose_transaction_may_not_be_over_is_given_to_nobody_else() {
        let database = TestDatabase::new().await;
        let mut config = database.config("relay");
        config.pool_size = 1;
        let pool = config.pool().expect("a pool");
        let lend = async || Lent(Some(pool.get().await.expect("a connection")));
        let mut lent = lend().await;
        let first = backend(&lent).await;
        // The connection itself is as good as before.
        let failed = lent.0.as_ref().expect("lent").batch_execute("select 1 / 0").await;
        assert!(failed.is_err());
        assert_eq!(give_back(&mut lent, failed, Ok(1)), Ok(1), "what was found out is so all the same");
        drop(lent);
        let mut lent = lend().await;
        let second = backend(&lent).await;
        assert_ne!(second, first);
        assert_eq!(give_back(&mut lent, Ok(()), Err::<(), _>(AuthorityError::Policy)), Err(AuthorityError::Policy));
        drop(lent);
        assert_eq!(backend(&lend().await).await, second, "one whose transaction is over is used again");
    }
}
