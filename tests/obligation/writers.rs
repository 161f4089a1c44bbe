//! Those who write: what the writers of the revocation test write (memberships, cascades, content, rules, in transactions of
//! several rows, now and then rolled back), and messages to rooms, whose members come and go. Over connections that may break at
//! any moment, a COMMIT's answer included: what was committed, the history tells.

use rand::Rng as _;
use rowcast::pg::PgConfig;
use rowcast::task::Drain;
use tokio::time::{Duration, Instant};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::rooms;
use crate::journey::revocation::writers::{Operations, RULES, Writer};
use crate::support::relay::pause;

/// One who writes until the end.
pub(super) struct Scribe<'a> {
    inner: Writer<'a>,
    url: String,
    /// Most milliseconds between two transactions.
    pace: u64,
    stop: Drain,
}

impl<'a> Scribe<'a> {
    pub(super) async fn new(
        url: &str,
        seed: u64,
        pace: u64,
        users: &'a [String],
        operations: &'a Operations,
        stop: &Drain,
    ) -> Scribe<'a> {
        // Told to stop, not at a time.
        let inner = Writer::new(connect(url).await, seed, users, operations, Instant::now()).await;
        Scribe { inner, url: url.to_owned(), pace, stop: stop.clone() }
    }

    /// So many rows a second for the first user, each in a transaction of its own with a message to a room.
    pub(super) async fn steady(mut self, per_second: u32) {
        let mut tick = tokio::time::interval(Duration::from_secs(1) / per_second);
        while !self.stop.is_draining() {
            tick.tick().await;
            let (note, user) = (self.note(), &self.inner.users[0]);
            let message = rooms::message(&mut self.inner.random);
            let sql = format!("begin; {note} insert into own (user_id) values ('{user}'); {message} commit");
            let _ = self.try_run(&sql).await;
        }
    }

    /// Memberships, teams and organisations, with content in between.
    pub(super) async fn rights(mut self) {
        while !self.stop.is_draining() {
            let steps = self.inner.random.random_range(1..=3);
            let sql: String = (0..steps)
                .map(|_| if self.inner.random.random_bool(0.7) { self.right() } else { self.row() })
                .collect();
            self.run(&sql).await;
            // Rights that change all the time leave little that is surely owed.
            self.pause(6 * self.pace).await;
        }
    }

    /// Content only.
    pub(super) async fn content(mut self) {
        while !self.stop.is_draining() {
            let steps = self.inner.random.random_range(1..=4);
            let sql: String = (0..steps).map(|_| self.row()).collect();
            self.run(&sql).await;
            self.pause(self.pace).await;
        }
    }

    /// Closes a table and opens it again, in one way and then in another.
    pub(super) async fn rules(mut self) {
        while !self.stop.is_draining() {
            let (table, close, open) = RULES[self.inner.random.random_range(0..RULES.len())];
            for (statement, message) in [(close, "closed"), (open, "opened")] {
                let sql = format!("{statement}; select pg_logical_emit_message(true, 'test.{message}', '{table}');");
                self.surely(&sql).await;
                self.pause(4000).await;
            }
        }
    }

    fn right(&mut self) -> String {
        match self.inner.random.random_range(0..8) {
            0 => rooms::right(&mut self.inner.random, self.inner.users),
            _ => self.inner.right(),
        }
    }

    /// A change of content, or a message.
    fn row(&mut self) -> String {
        match self.inner.random.random_range(0..4) {
            0 => rooms::message(&mut self.inner.random),
            _ => self.inner.row(),
        }
    }

    async fn pause(&mut self, at_most: u64) {
        tokio::time::sleep(Duration::from_millis(self.inner.random.random_range(0..=at_most))).await;
    }

    fn note(&self) -> String {
        let number = self.inner.operations.begin();
        format!("select pg_logical_emit_message(true, 'test.operation', '{number}');")
    }

    /// One transaction; what becomes of it is seen in the history.
    async fn run(&mut self, sql: &str) {
        let note = self.note();
        let sql = match self.inner.random.random_range(0..20) {
            0 => format!("begin; {sql} rollback"),
            1 => format!("begin; savepoint a; {sql} rollback to a; {note} {} commit", self.row()),
            _ => format!("begin; {note} {sql} commit"),
        };
        let _ = self.try_run(&sql).await;
    }

    /// One transaction that must be done in the end: half of a pair would change the tables for good.
    async fn surely(&mut self, sql: &str) {
        loop {
            let note = self.note();
            match self.try_run(&format!("begin; {note} {sql} commit")).await {
                Ok(()) => return,
                // An earlier try had been committed, and its answer was lost.
                Err(Some(SqlState::DUPLICATE_OBJECT | SqlState::UNDEFINED_OBJECT)) => return,
                Err(_) => pause().await,
            }
        }
    }

    async fn try_run(&mut self, sql: &str) -> Result<(), Option<SqlState>> {
        let Err(error) = self.inner.client.batch_execute(sql).await else { return Ok(()) };
        let code = error.code().cloned();
        let undone = self.inner.client.batch_execute("rollback").await;
        if undone.is_err() {
            self.inner.client = connect(&self.url).await;
        }
        Err(code)
    }
}

/// Until there is a server that takes it.
async fn connect(url: &str) -> Client {
    let config = PgConfig::from_url(url).expect("a good URL");
    loop {
        if let Ok(client) = config.connect().await
            && client.batch_execute("set deadlock_timeout = '10ms'; set lock_timeout = '200ms'").await.is_ok()
        {
            return client;
        }
        pause().await;
    }
}
