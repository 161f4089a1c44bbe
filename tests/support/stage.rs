//! `Stage`: a server, a relay on it, and [`Pair`]: a client of each protocol version that must be told the same.
//!
//! Table `marks` may be read by everybody; a mark in a later transaction proves that what has not come before it never will.

use std::panic::Location;
use std::time::Duration;

use rowcast::clock::Clock;
use rowcast::config::Config;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::phone::PATIENCE;
use super::relay::pause;
use super::{Change, Phone, Relay, TestPg, Version};

const MARKS: &str = "create table public.marks (id bigint generated always as identity primary key, note text not null); \
     grant select on public.marks to public; \
     alter publication supabase_realtime add table public.marks;";

/// A server with the test's tables and `marks`, and a relay on it.
pub(crate) struct Stage {
    // Dropped first: it would complain about the server's end.
    pub(crate) relay: Relay,
    pub(crate) pg: TestPg,
}

impl Stage {
    /// The statements run before the relay starts.
    #[track_caller]
    pub(crate) fn with(sql: &str) -> impl Future<Output = Stage> + use<'_> {
        Stage::configured(sql, |_| {})
    }

    /// With settings that the test changes.
    pub(crate) async fn configured(sql: &str, change: impl FnOnce(&mut Config)) -> Stage {
        let pg = TestPg::start().await;
        pg.exec(MARKS).await;
        pg.exec(sql).await;
        Stage {
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

    #[track_caller]
    pub(crate) fn exec<'a>(&'a self, sql: &'a str) -> impl Future<Output = ()> + 'a {
        self.pg.exec(sql)
    }

    /// A row that everybody gets, in a transaction of its own.
    pub(crate) async fn mark(&self, note: &str) {
        self.exec(&format!("insert into public.marks (note) values ('{note}')")).await;
    }

    /// A client of each version, connected.
    pub(crate) async fn pair(&self, token: &str) -> Pair {
        let base = self.relay.base();
        let connecting = [Version::V1, Version::V2].map(|version| Phone::connect(&base, token, version));
        let [one, two] = connecting;
        let (one, two) = tokio::join!(one, two);
        Pair { phones: [one, two], ids: Vec::new() }
    }

    /// The relay has all that was committed so far: who joins from here on is not sent it.
    pub(crate) async fn caught_up(&self) {
        let client = self.pg.client().await;
        let sql = "select (pg_logical_emit_message(true, 'stage', '') - '0/0')::text";
        let at: String = client.query_one(sql, &[]).await.expect("a message").get(0);
        let (at, deadline) = (at.parse().expect("a position"), Instant::now() + PATIENCE);
        while self.relay.end().0 < at {
            assert!(Instant::now() < deadline, "the relay is at {}, and not at {at}", self.relay.end().0);
            pause().await;
        }
    }

    /// A connected pair with one channel, `room`, in which changes flow that are committed from here on. `marks` is asked for
    /// as well, as the last entry.
    #[track_caller]
    pub(crate) fn watch<'a>(&'a self, token: &'a str, entries: &'a Value) -> impl Future<Output = Pair> + 'a {
        let at = Location::caller();
        async move {
            let mut pair = self.pair(token).await;
            self.caught_up().await;
            pair.subscribe_at("room", &with_marks(entries), at).await;
            pair
        }
    }
}

/// The entries and one for `marks`.
pub(crate) fn with_marks(entries: &Value) -> Value {
    let mut all = entries.as_array().expect("a list").clone();
    all.push(json!({ "event": "*", "schema": "public", "table": "marks" }));
    Value::Array(all)
}

/// One entry: everything of a table of schema `public`.
pub(crate) fn all_of(table: &str) -> Value {
    json!([{ "event": "*", "schema": "public", "table": table }])
}

/// Two connections of one user.
pub(crate) struct Pair {
    pub(crate) phones: [Phone; 2],
    /// Of the entries of the last subscription, in their order.
    pub(crate) ids: Vec<i64>,
}

impl Pair {
    /// Joins on both and waits until changes flow.
    #[track_caller]
    pub(crate) fn subscribe<'a>(&'a mut self, topic: &'a str, entries: &'a Value) -> impl Future<Output = ()> + 'a {
        self.subscribe_at(topic, entries, Location::caller())
    }

    async fn subscribe_at(&mut self, topic: &str, entries: &Value, at: &Location<'_>) {
        let [one, two] = &mut self.phones;
        let (one, two) = tokio::join!(one.subscribe(topic, entries), two.subscribe(topic, entries));
        assert_eq!(one, two, "at {at}");
        self.ids = one;
    }

    /// The join is answered ok; the payload of the first `system` frame after it.
    #[track_caller]
    pub(crate) fn joined<'a>(&'a mut self, topic: &'a str, entries: &'a Value) -> impl Future<Output = Value> + 'a {
        let at = Location::caller();
        async move {
            let [one, two] = &mut self.phones;
            let (mut one, mut two) = tokio::join!(one.join(topic, entries), two.join(topic, entries));
            assert_eq!(one["status"], "ok", "at {at}: {one}");
            // They need not have joined at the same place of the stream.
            let cursors = [&mut one, &mut two].map(|reply| reply["response"]["cursor"].take());
            assert_eq!(cursors[0].is_string(), cursors[1].is_string(), "at {at}: {cursors:?}");
            assert_eq!(one, two, "at {at}");
            self.system_at(topic, at).await
        }
    }

    /// The payload of the next `system` frame of both.
    #[track_caller]
    pub(crate) fn system<'a>(&'a mut self, topic: &'a str) -> impl Future<Output = Value> + 'a {
        self.system_at(topic, Location::caller())
    }

    async fn system_at(&mut self, topic: &str, at: &Location<'_>) -> Value {
        let [one, two] = &mut self.phones;
        let (one, two) = tokio::join!(one.system(topic), two.system(topic));
        assert_eq!(one, two, "at {at}");
        one
    }

    /// The join is answered ok and its entries are refused; the message.
    #[track_caller]
    pub(crate) fn refused<'a>(&'a mut self, topic: &'a str, entries: &'a Value) -> impl Future<Output = String> + 'a {
        let at = Location::caller();
        let system = self.joined(topic, entries);
        async move {
            let system = system.await;
            let message = system["message"].as_str().expect("a text").to_owned();
            let expected =
                json!({ "extension": "postgres_changes", "status": "error", "message": message, "channel": topic });
            assert_eq!(system, expected, "at {at}: {entries}");
            message
        }
    }

    /// What both received before the mark.
    #[track_caller]
    pub(crate) fn changes_before<'a>(&'a mut self, mark: &'a str) -> impl Future<Output = Vec<Change>> + 'a {
        let at = Location::caller();
        async move {
            let [one, two] = &mut self.phones;
            let (one, two) = tokio::join!(one.changes_before(mark), two.changes_before(mark));
            assert_eq!(one, two, "at {at}: version 1 and version 2 differ");
            one
        }
    }

    /// The next change of both.
    #[track_caller]
    pub(crate) fn next_change(&mut self) -> impl Future<Output = Change> + '_ {
        let at = Location::caller();
        async move {
            let [one, two] = &mut self.phones;
            let (one, two) = tokio::join!(one.next_change(), two.next_change());
            assert_eq!(one, two, "at {at}: version 1 and version 2 differ");
            one
        }
    }

    /// Nothing but changes has come for this topic: no `system` frame, no close.
    #[track_caller]
    pub(crate) fn expect_no_more_frames<'a>(&'a mut self, topic: &'a str) -> impl Future<Output = ()> + 'a {
        let at = Location::caller();
        async move {
            for phone in &mut self.phones {
                phone.heartbeat().await;
                let frames = phone.frames_of(topic);
                assert!(frames.is_empty(), "at {at}: {frames:#?}");
            }
        }
    }

    /// The indexes of the entries, of the last subscription, that a change is for.
    pub(crate) fn entries_of(&self, change: &Change) -> Vec<usize> {
        let place = |id: &i64| self.ids.iter().position(|known| known == id).expect("an id of this subscription");
        let mut places: Vec<usize> = change.ids.iter().map(place).collect();
        places.sort_unstable();
        places
    }
}
