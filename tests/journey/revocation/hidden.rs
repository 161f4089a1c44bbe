//! Rights that end, or begin, in a commit which the stream has and which no query sees yet, since it waits for a synchronous
//! standby that does not exist. What is committed behind it must be judged by it, whatever a query would say.

use tokio::time::Duration;

use super::super::visibility::{Held, hold_commits};
use super::{CONTENT, mark, prepared, watching};
use crate::support::relay::pause;
use crate::support::{Phone, Relay, TestPg, token};
use rowcast::clock::Clock;
use tokio::time::Instant;

/// Short, so that the relay gives up waiting within the test.
const DEADLINE: Duration = Duration::from_millis(500);

struct Stage {
    phone: Phone,
    relay: Relay,
    pg: TestPg,
    user: String,
}

/// A user who is in teams 6 and 12, subscribed, and whom a row of each table has reached.
async fn stage() -> Stage {
    let (pg, users) = prepared().await;
    let relay = Relay::with(&pg, Clock::system(), |config| config.hub.ask.deadline = DEADLINE).await;
    let user = users[0].clone();
    let mut phone = relay.phone(&token::user(&user)).await;
    phone.subscribe("room", &watching(&CONTENT)).await;
    let rows = format!(
        "insert into docs (team_id) values (6); insert into own (user_id) values ('{user}'); insert into lent (user_id) values ('{user}')"
    );
    pg.exec(&rows).await;
    mark(&pg, "known").await;
    assert_eq!(phone.changes_before("known").await.len(), 3);
    hold_commits(&pg).await;
    Stage { phone, relay, pg, user }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_membership_that_a_hidden_commit_ends_is_over_for_the_rows_behind_it() {
    let Stage { mut phone, relay: _relay, pg, user } = stage().await;
    let ended = format!("delete from members where team_id = 6 and user_id = '{user}';");
    let held = Held::commit(&pg, &ended).await;
    pg.exec("insert into docs (team_id) values (6)").await;
    let visible = format!("select count(*) from members where team_id = 6 and user_id = '{user}'");
    let still: i64 = pg.client().await.query_one(&visible, &[]).await.expect("a row").get(0);
    mark(&pg, "end").await;
    phone.expect_nothing_before("end").await;
    assert_eq!(still, 1, "a query would have called him a member");
    held.release(&pg).await;
    mark(&pg, "after").await;
    phone.expect_nothing_before("after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_membership_that_a_hidden_commit_begins_is_there_for_the_rows_behind_it() {
    let Stage { mut phone, relay: _relay, pg, user } = stage().await;
    let held = Held::commit(&pg, &format!("insert into members values (5, '{user}', 'viewer');")).await;
    pg.exec("insert into docs (team_id) values (5)").await;
    mark(&pg, "end").await;
    let seen = phone.changes_before("end").await;
    assert_eq!(seen.len(), 1, "before anybody can query it: {seen:?}");
    held.release(&pg).await;
}

/// Grants only: ALTER POLICY and the like keep their lock on the table until the commit is visible, so nobody writes behind it.
/// Nothing of the table arrives behind the hidden commit: not while it is hidden, not when the relay has waited long enough,
/// and not afterwards.
async fn closed_by(sql: &str, row: &str) {
    let Stage { mut phone, relay, pg, user } = stage().await;
    let held = Held::commit(&pg, sql).await;
    pg.exec(&row.replace("USER", &user)).await;
    mark(&pg, "end").await;
    // Long enough for the relay to go on without having seen the commit, if it does so.
    let waited = Instant::now();
    let mut early = Vec::new();
    while waited.elapsed() < 4 * DEADLINE && !early.iter().any(|change: &crate::support::Change| change.is_mark("end"))
    {
        early.extend(phone.changes_so_far());
        pause().await;
    }
    let leaked: Vec<_> = early.iter().filter(|change| change.table() != "marks").collect();
    assert!(leaked.is_empty(), "{leaked:#?}");
    held.release(&pg).await;
    mark(&pg, "after").await;
    let later = phone.changes_before("after").await;
    assert!(later.iter().all(|change| change.table() == "marks"), "{later:#?}");
    drop(relay);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_a_hidden_commit_takes_away_is_gone_for_the_rows_behind_it() {
    closed_by("revoke select on own from authenticated;", "insert into own (user_id) values ('USER')").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_on_an_inner_table_that_a_hidden_commit_takes_away_is_gone_for_the_rows_behind_it() {
    closed_by("revoke select on borrowers from authenticated;", "insert into lent (user_id) values ('USER')").await;
}
