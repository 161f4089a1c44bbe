//! Those who write, all at once, and each at random: memberships, blocks, content, cascades, rules.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::{Duration, Instant};
use tokio_postgres::Client;

use super::{ORGS, TEAMS};

/// Most milliseconds between two transactions of a writer: the relay of a debug build should not fall behind for long.
const PACE: u64 = 20;

/// When each operation was begun: nothing of it was in force before.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    next: AtomicU64,
    begun: Mutex<Vec<Instant>>,
}

impl Operations {
    pub(crate) fn begin(&self) -> u64 {
        let mut begun = self.begun.lock().expect("nobody panicked");
        begun.push(Instant::now());
        self.next.fetch_add(1, Ordering::SeqCst)
    }

    /// By number.
    pub(crate) fn begun(&self) -> Vec<Instant> {
        self.begun.lock().expect("nobody panicked").clone()
    }
}

/// One who writes until the end.
pub(crate) struct Writer<'a> {
    pub(crate) client: Client,
    pub(crate) random: StdRng,
    pub(crate) users: &'a [String],
    pub(crate) operations: &'a Operations,
    pub(crate) until: Instant,
}

impl<'a> Writer<'a> {
    pub(crate) async fn new(
        client: Client,
        seed: u64,
        users: &'a [String],
        operations: &'a Operations,
        until: Instant,
    ) -> Self {
        // Writers that meet give way soon; what they did is undone and not missed.
        let quick = "set deadlock_timeout = '10ms'; set lock_timeout = '200ms'";
        client.batch_execute(quick).await.expect("set");
        Writer { client, random: StdRng::seed_from_u64(seed), users, operations, until }
    }

    /// Memberships, blocks, teams and organisations, with content in between.
    pub(crate) async fn rights(mut self) {
        while Instant::now() < self.until {
            let steps = self.random.random_range(1..=3);
            let sql: String =
                (0..steps).map(|_| if self.random.random_bool(0.7) { self.right() } else { self.row() }).collect();
            self.run(&sql).await;
            self.pause(PACE).await;
        }
    }

    /// Content only.
    pub(crate) async fn content(mut self) {
        while Instant::now() < self.until {
            let steps = self.random.random_range(1..=4);
            let sql: String = (0..steps).map(|_| self.row()).collect();
            self.run(&sql).await;
            self.pause(PACE).await;
        }
    }

    /// Closes a table and opens it again, in one way and then in another.
    pub(crate) async fn rules(mut self) {
        while Instant::now() < self.until {
            let (table, close, open) = RULES[self.random.random_range(0..RULES.len())];
            self.run(&format!("{close}; select pg_logical_emit_message(true, 'test.closed', '{table}');")).await;
            self.pause(300).await;
            self.run(&format!("{open}; select pg_logical_emit_message(true, 'test.opened', '{table}');")).await;
            self.pause(300).await;
        }
    }

    /// So that other transactions come in between.
    async fn pause(&mut self, at_most: u64) {
        tokio::time::sleep(Duration::from_millis(self.random.random_range(0..=at_most))).await;
    }

    /// One transaction; now and then it is rolled back, in part or as a whole, and sometimes it fails.
    async fn run(&mut self, sql: &str) {
        let number = self.operations.begin();
        let note = format!("select pg_logical_emit_message(true, 'test.operation', '{number}');");
        let is_rule = sql.contains("test.opened") || sql.contains("test.closed");
        let sql = match self.random.random_range(0..20) {
            0 if !is_rule => format!("begin; {sql} rollback"),
            1 if !is_rule => format!("begin; savepoint a; {sql} rollback to a; {note} {} commit", self.row()),
            _ => format!("begin; {note} {sql} commit"),
        };
        let mut failed = self.client.batch_execute(&sql).await.err();
        if let Some(error) = &failed {
            assert!(error.code().is_some(), "{error}");
            self.client.batch_execute("rollback").await.expect("rolled back");
        }
        // A rule that could not be changed would stay closed.
        while is_rule && failed.is_some() {
            failed = self.client.batch_execute(&sql).await.err();
            if failed.is_some() {
                self.client.batch_execute("rollback").await.expect("rolled back");
            }
        }
    }

    fn user(&mut self) -> &'a str {
        let users = self.users;
        &users[self.random.random_range(0..users.len())]
    }

    /// A change of rights.
    pub(crate) fn right(&mut self) -> String {
        let (team, org) = (self.random.random_range(1..=TEAMS), self.random.random_range(1..=ORGS));
        let (user, other) = (self.user(), self.user());
        let role = ["viewer", "editor", "banned"][self.random.random_range(0..3)];
        match self.random.random_range(0..100) {
            0..30 => format!(
                "insert into members select id, '{user}', '{role}' from teams where id = {team} \
                 on conflict (team_id, user_id) do update set role = excluded.role;"
            ),
            30..50 => format!("delete from members where team_id = {team} and user_id = '{user}';"),
            50..60 => format!("update members set role = '{role}' where team_id = {team} and user_id = '{user}';"),
            60..66 => format!(
                "update members set user_id = '{other}' where team_id = {team} and user_id = '{user}' \
                 and not exists (select from members where team_id = {team} and user_id = '{other}');"
            ),
            66..76 => format!("insert into blocks values ({team}, '{user}') on conflict do nothing;"),
            76..86 => format!("delete from blocks where team_id = {team} and user_id = '{user}';"),
            86..90 => format!(
                "update teams set org_id = {org} where id = {team} and exists (select from orgs where id = {org});"
            ),
            90..93 => format!("delete from teams where id = {team};"),
            93 => format!("delete from orgs where id = {org};"),
            94 => format!("delete from members where user_id = '{user}';"),
            95 => "truncate blocks;".into(),
            96 => "truncate members;".into(),
            _ => format!(
                "insert into orgs values ({org}) on conflict do nothing; \
                 insert into teams values ({team}, {org}) on conflict do nothing;"
            ),
        }
    }

    /// A change of content.
    pub(crate) fn row(&mut self) -> String {
        let (team, org) = (self.random.random_range(1..=TEAMS), self.random.random_range(1..=ORGS));
        let (user, back) = (self.user(), self.random.random_range(0..20));
        let recent = |table: &str| format!("id = (select max(id) from {table}) - {back}");
        match self.random.random_range(0..100) {
            0..35 => format!("insert into docs (team_id) select id from teams where id = {team};"),
            35..50 => format!("insert into notes (org_id) values ({org});"),
            50..58 => format!("insert into asks (team_id) values ({team});"),
            58..66 => format!("insert into own (user_id) values ('{user}');"),
            66..74 => format!("insert into lent (user_id) values ('{user}');"),
            74..78 => format!("insert into called (user_id) values ('{user}');"),
            78..86 => format!(
                "update docs set team_id = {team}, rev = rev + 1 where {} and exists (select from teams where id = {team});",
                recent("docs")
            ),
            86..92 => format!("delete from docs where {};", recent("docs")),
            92..95 => format!("update notes set org_id = {org}, rev = rev + 1 where {};", recent("notes")),
            95..98 => format!("delete from notes where {};", recent("notes")),
            _ => format!("delete from asks where {};", recent("asks")),
        }
    }
}

/// The table that closes, how, and how it opens again.
pub(crate) const RULES: [(&str, &str, &str); 8] = [
    ("own", "revoke select on own from authenticated", "grant select on own to authenticated"),
    ("own", "alter policy own on own using (false)", "alter policy own on own using (user_id = auth.uid())"),
    (
        "own",
        "create policy never on own as restrictive for select to authenticated using (false)",
        "drop policy never on own",
    ),
    ("own", "alter policy own on own to service_role", "alter policy own on own to authenticated"),
    ("lent", "revoke select on borrowers from authenticated", "grant select on borrowers to authenticated"),
    ("lent", "alter policy readable on borrowers using (false)", "alter policy readable on borrowers using (true)"),
    (
        "lent",
        "alter policy lent on lent using (false)",
        "alter policy lent on lent using (user_id = auth.uid() and user_id in (select b.user_id from borrowers b))",
    ),
    (
        "called",
        "create or replace function mine(owner uuid) returns bool language sql stable as 'select false'",
        "create or replace function mine(owner uuid) returns bool language sql stable as 'select owner = auth.uid()'",
    ),
];
