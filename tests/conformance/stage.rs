//! Where the items are tried out: a relay that several tests share, and one with a database of its own.

use std::panic::Location;
use std::time::Duration;

use std::sync::{Arc, Mutex, PoisonError, Weak};

use rowcast::clock::Clock;
use rowcast::config::Config;
use rowcast::pg::PgConfig;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::support::phone::Frame;
use crate::support::token::ALICE;
use crate::support::{Phone, Relay, TestPg, Version, token};

pub(super) const BOTH: [Version; 2] = [Version::V1, Version::V2];

const TABLES: [&str; 2] = [
    include_str!("../../sql/examples/notifications.sql"),
    "create table public.marks (id bigint generated always as identity primary key, note text not null); \
     grant select on public.marks to anon, authenticated, service_role; \
     alter publication supabase_realtime add table public.marks;",
];

/// Private topics that everybody who is signed in may read and write, such as `open 100`: one for each item of §13.7 to §13.10.
fn open_topics() -> String {
    let topics: Vec<String> = (100..=153).map(|item| format!("'open {item}'")).collect();
    let open = format!("realtime.topic() in ({})", topics.join(", "));
    format!(
        "create policy open_read on realtime.messages for select to authenticated using ({open}); \
         create policy open_write on realtime.messages for insert to authenticated with check ({open});"
    )
}

/// A relay with default settings for whoever needs no setting, no rows of `TABLES` and no policies but those of the open topics.
/// It lives as long as a test holds it: tests that run at the same time have it in common.
pub(super) struct Shared {
    base: String,
    url: String,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Shared {
    pub(super) async fn relay() -> Arc<Shared> {
        static CURRENT: Mutex<Weak<Shared>> = Mutex::new(Weak::new());
        // Starting takes a fraction of a second; who comes meanwhile waits for the same one.
        let current = || {
            let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
            current.upgrade().unwrap_or_else(|| {
                let new = Arc::new(Shared::start());
                *current = Arc::downgrade(&new);
                new
            })
        };
        tokio::task::spawn_blocking(current).await.expect("it starts")
    }

    /// On a thread with a runtime of its own, since a test's runtime ends with the test.
    fn start() -> Shared {
        let (started, base) = std::sync::mpsc::channel();
        let (end, ended) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            let runtime = runtime.worker_threads(2).enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let scene = Scene::open().await;
                started.send((scene.relay.base(), scene.pg.url())).expect("somebody waits for it");
                let _ = ended.await;
            });
        });
        let (base, url) = base.recv().expect("it starts");
        Shared { base, url, end: Some(end), thread: Some(thread) }
    }

    /// Runs statements as the superuser, in a session of its own: one that is kept would end with the test that began it.
    #[track_caller]
    pub(super) fn exec<'a>(&'a self, sql: &'a str) -> impl Future<Output = ()> + 'a {
        let at = Location::caller();
        async move {
            let client = PgConfig::from_url(&self.url).expect("a good URL").connect().await.expect("a connection");
            if let Err(error) = client.batch_execute(sql).await {
                panic!("at {at}: {}\n{sql}", rowcast::error::chain(&error));
            }
        }
    }

    /// Of the database, for the superuser.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// A raw client with the token of a user.
    pub(super) async fn phone(&self, version: Version) -> Phone {
        Phone::connect(&self.base, &token::user(ALICE), version).await
    }

    /// What clients are configured with.
    pub(super) fn base(&self) -> &str {
        &self.base
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the shared relay panicked");
        }
    }
}

/// A database with table `notifications`, whose rows are their users' own, and `marks`, which everybody may read; and a relay.
pub(super) struct Scene {
    // Dropped first: it would complain about the server's end.
    pub(super) relay: Relay,
    pub(super) pg: TestPg,
}

impl Scene {
    pub(super) async fn start() -> Scene {
        Scene::with(|_| {}).await
    }

    /// With settings that the test changes.
    pub(super) async fn with(change: impl FnOnce(&mut Config)) -> Scene {
        Scene::prepared("", change).await
    }

    /// With private topics that are open to everybody.
    pub(super) async fn open() -> Scene {
        Scene::prepared(&open_topics(), |_| {}).await
    }

    /// With statements that are run before the relay starts, and settings that the test changes.
    pub(super) async fn prepared(sql: &str, change: impl FnOnce(&mut Config)) -> Scene {
        let pg = tables().await;
        pg.exec(sql).await;
        Scene {
            relay: Relay::with(&pg, Clock::system(), |config| {
                // A busy machine must not look like a hostile pattern.
                config.hub.filter_ask.statement_timeout = Duration::from_secs(5);
                config.hub.filter_ask.budget = Duration::from_secs(600);
                (config.hub.filter_ask.conditions_of_owner, config.hub.filter_ask.part_of_rest) = (1000, 1);
                change(config);
            })
            .await,
            pg,
        }
    }

    /// A raw client with the token of a user.
    pub(super) async fn phone(&self, version: Version) -> Phone {
        self.phone_of(&token::user(ALICE), version).await
    }

    /// A raw client with this token.
    pub(super) async fn phone_of(&self, token: &str, version: Version) -> Phone {
        Phone::connect(&self.relay.base(), token, version).await
    }

    /// A row of a user's own, in a transaction of its own.
    pub(super) async fn notify(&self, user: &str, kind: &str) {
        let insert = format!("insert into public.notifications (user_id, kind) values ('{user}', '{kind}')");
        self.pg.exec(&insert).await;
    }

    /// A row that everybody gets, in a transaction of its own.
    pub(super) async fn mark(&self, note: &str) {
        self.pg.exec(&format!("insert into public.marks (note) values ('{note}')")).await;
    }
}

/// A database with both tables.
pub(super) async fn tables() -> TestPg {
    let pg = TestPg::start().await;
    for script in TABLES {
        pg.exec(script).await;
    }
    pg
}

/// Entries for both tables.
pub(super) fn watching() -> Value {
    json!([
        { "event": "*", "schema": "public", "table": "notifications" },
        { "event": "*", "schema": "public", "table": "marks" },
    ])
}

/// Both refs of a push.
pub(super) fn refs(join_ref: &str, reference: &str) -> (Value, Value) {
    (json!(join_ref), json!(reference))
}

/// `{"status": "ok", "response": {}}`.
pub(super) fn ok() -> Value {
    json!({ "status": "ok", "response": {} })
}

/// The payload of a refusal.
pub(super) fn refused(reason: &str) -> Value {
    json!({ "status": "error", "response": { "reason": reason } })
}

/// The answer to a good join without entries.
pub(super) fn joined() -> Value {
    json!({ "status": "ok", "response": { "postgres_changes": [] } })
}

/// What a frame must have as join_ref, which version 1 doesn't show.
pub(super) fn shown(version: Version, join_ref: Value) -> Value {
    if version == Version::V2 { join_ref } else { Value::Null }
}

/// `event ref` of each, for comparing whole sequences.
pub(super) fn summary(frames: &[Frame]) -> Vec<String> {
    frames.iter().map(|frame| format!("{} {}", frame.event, frame.reference)).collect()
}

/// The topic is joined: leaving it is told by a `phx_close`.
pub(super) async fn assert_joined(phone: &mut Phone, topic: &str) {
    phone.send_as((Value::Null, json!("goodbye")), topic, "phx_leave", json!({})).await;
    let reply = phone.reply_to(&json!("goodbye")).await;
    assert_eq!(reply.payload, ok());
    let frames = phone.frames_so_far().await;
    assert!(frames.iter().any(|frame| frame.event == "phx_close" && frame.topic == topic), "{frames:#?}");
}
