//! From a committed row to the phones of those who may see it, and to no other: real server, real relay, real sockets.
//!
//! Every subscription here also asks for table `marks`, which everybody may read. A mark in a later transaction proves that
//! what has not arrived before it never will, since changes arrive in commit order.

mod channel_rights;
mod client;
mod deletes;
mod device_sessions;
mod devices;
mod facts;
mod filters;
mod jwks;
mod messages;
mod held;
mod order;
mod pages;
mod payload;
mod planned;
mod publications;
mod refusals;
mod replay;
mod restart;
mod resume_cursor;
pub(crate) mod revocation;
mod rights;
mod rules;
mod snapshot;
mod stock;
mod subscriptions;
mod tokens;
mod topics;
mod users;
mod visibility;
mod wire;

use serde_json::{Value, json};

use crate::support::token::{self, ALICE, BOB};
use crate::support::{Relay, TestPg};

const EXAMPLES: [&str; 2] =
    [include_str!("../../sql/examples/session_events.sql"), include_str!("../../sql/examples/notifications.sql")];

const MARKS: &str = "create table public.marks (id bigint generated always as identity primary key, note text not null); \
     grant select on public.marks to anon, authenticated, service_role; \
     alter publication supabase_realtime add table public.marks;";

/// Each user's session, of the example tables.
const ALICES_SESSION: &str = "a11ce000-0000-4000-8000-00000000c0de";
const BOBS_SESSION: &str = "b0b00000-0000-4000-8000-00000000c0de";

/// A database with the examples, `marks` and a session of each user, and a relay on it.
struct Scene {
    // Dropped first: it would complain about the server's end.
    relay: Relay,
    pg: TestPg,
}

impl Scene {
    async fn start() -> Scene {
        Scene::with("").await
    }

    /// With more tables, made before the relay starts.
    async fn with(sql: &str) -> Scene {
        let pg = database(sql).await;
        Scene { relay: Relay::start(&pg).await, pg }
    }

    #[track_caller]
    fn exec<'a>(&'a self, sql: &'a str) -> impl Future<Output = ()> + 'a {
        self.pg.exec(sql)
    }

    /// A row that everybody gets, in a transaction of its own.
    async fn mark(&self, note: &str) {
        mark(&self.pg, note).await;
    }
}

async fn database(sql: &str) -> TestPg {
    let pg = TestPg::start().await;
    furnish(&pg, sql).await;
    pg
}

async fn furnish(pg: &TestPg, sql: &str) {
    for script in EXAMPLES.into_iter().chain([MARKS, sql]) {
        pg.exec(script).await;
    }
    pg.exec(&format!(
        "insert into public.coding_sessions (id, user_id) values ('{ALICES_SESSION}', '{ALICE}'), ('{BOBS_SESSION}', '{BOB}')"
    ))
    .await;
}

async fn mark(pg: &TestPg, note: &str) {
    pg.exec(&format!("insert into public.marks (note) values ('{note}')")).await;
}

/// Everything of these tables of schema `public`, and the marks.
fn watching(tables: &[&str]) -> Value {
    tables.iter().chain(&["marks"]).map(|table| json!({ "event": "*", "schema": "public", "table": table })).collect()
}

/// What passes the filter, of one table, and the marks.
fn filtered(table: &str, filter: &str) -> Value {
    json!([
        { "event": "*", "schema": "public", "table": table, "filter": filter },
        { "event": "*", "schema": "public", "table": "marks" },
    ])
}

/// An INSERT of one notification.
fn notify(user: &str, kind: &str) -> String {
    format!("insert into public.notifications (user_id, kind) values ('{user}', '{kind}');")
}

/// An INSERT of one event.
fn event(session: &str, kind: &str) -> String {
    format!("insert into public.session_events (session_id, event_type) values ('{session}', '{kind}');")
}

/// Waits until what was committed so far is in the log: a channel that joins now does not begin before it.
async fn caught_up(scene: &Scene) {
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.subscribe("marks", &watching(&[])).await;
    scene.mark("caught up").await;
    assert!(phone.next_change().await.is_mark("caught up"));
}
