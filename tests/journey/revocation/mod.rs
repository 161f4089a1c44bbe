//! Rights that end and begin while rows are written, under load: what each phone received is checked against the history of
//! commits, which a slot of the test's own tells.
//!
//! What a row is owed, as this test counts it:
//! * Of a table whose policy is judged in memory and does not change (`docs`, `notes`), a phone receives exactly the rows that
//!   its user was permitted at their commit (a DELETE: just before), in the order of commits.
//! * Of the others (Postgres is asked, or the rules themselves change), a row that was received was permitted in some state
//!   between its commit and its arrival: no right is older than the commit. One that was permitted in all of them was received.
//!
//! A state counts as possible from the moment when its operation began. `ROWCAST_REVOCATION_SECONDS` makes it longer,
//! `ROWCAST_SEED` repeats it as far as a race can be repeated.

pub(crate) mod history;
mod flood;
mod hidden;
pub(crate) mod model;
pub(crate) mod writers;

use std::collections::HashMap;
use std::fmt;

use rand::Rng as _;
use tokio::time::{Duration, Instant};

use self::model::{Model, Sent};
use self::writers::{Operations, Writer};
use super::{MARKS, mark, watching};
use crate::support::token;
use crate::support::{Change, Phone, Relay, TestPg};

const TEAMS: u32 = 12;
const ORGS: u32 = 4;
pub(crate) const USERS: u32 = 6;
pub(crate) const CONTENT: [&str; 6] = ["docs", "notes", "asks", "own", "lent", "called"];
/// Judged in memory, by rules that stay.
pub(crate) const EXACT: [&str; 2] = ["docs", "notes"];

const SCHEMA: &str = "
    create table orgs (id int primary key);
    create table teams (id int primary key, org_id int not null references orgs on delete cascade);
    create table members (team_id int references teams on delete cascade, user_id uuid, role text not null, primary key (team_id, user_id));
    create table blocks (team_id int, user_id uuid, primary key (team_id, user_id));
    create table borrowers (user_id uuid primary key);
    create table docs (id bigint generated always as identity primary key, team_id int references teams on delete cascade, rev int not null default 0);
    create table notes (id bigint generated always as identity primary key, org_id int, rev int not null default 0);
    create table asks (id bigint generated always as identity primary key, team_id int, rev int not null default 0);
    create table own (id bigint generated always as identity primary key, user_id uuid, rev int not null default 0);
    create table lent (id bigint generated always as identity primary key, user_id uuid, rev int not null default 0);
    create table called (id bigint generated always as identity primary key, user_id uuid, rev int not null default 0);
    create index on docs (team_id);
    create function mine(owner uuid) returns bool language sql stable as 'select owner = auth.uid()';
    alter table docs replica identity full;
    alter table notes replica identity full;
    alter table asks replica identity full;
    alter table docs enable row level security;
    alter table notes enable row level security;
    alter table asks enable row level security;
    alter table own enable row level security;
    alter table lent enable row level security;
    alter table called enable row level security;
    alter table members enable row level security;
    alter table borrowers enable row level security;
    grant select on docs, notes, asks, own, lent, called, teams, members, blocks, borrowers to authenticated;
    create policy mine on members for select to authenticated using (user_id = auth.uid());
    create policy readable on borrowers for select to authenticated using (true);
    create policy team on docs for select to authenticated using (
        exists (select 1 from members m where m.team_id = docs.team_id and m.user_id = auth.uid() and m.role = any ('{viewer,editor}'))
        and not exists (select 1 from blocks b where b.team_id = docs.team_id and b.user_id = auth.uid()));
    create policy org on notes for select to authenticated using (
        org_id in (select t.org_id from teams t join members m on m.team_id = t.id where m.user_id = auth.uid()));
    create policy asked on asks for select to authenticated using (now() > '2000-01-01' and
        exists (select 1 from members m where m.team_id = asks.team_id and m.user_id = auth.uid() and m.role = any ('{viewer,editor}'))
        and not exists (select 1 from blocks b where b.team_id = asks.team_id and b.user_id = auth.uid()));
    create policy own on own for select to authenticated using (user_id = auth.uid());
    create policy lent on lent for select to authenticated using (user_id = auth.uid() and user_id in (select b.user_id from borrowers b));
    create policy called on called for select to authenticated using (mine(user_id));
    alter publication supabase_realtime add table docs, notes, asks, own, lent, called;";

/// A database with all that, and its history's begin; users and their borrower rows.
pub(crate) async fn prepared() -> (TestPg, Vec<String>) {
    prepared_on(TestPg::start().await).await
}

/// The same on a server of the test's choice.
pub(crate) async fn prepared_on(pg: TestPg) -> (TestPg, Vec<String>) {
    pg.exec(MARKS).await;
    pg.exec(SCHEMA).await;
    history::begin(&pg.client().await).await;
    let users: Vec<String> = (0..USERS).map(|n| format!("00000000-0000-4000-8000-00000000000{n}")).collect();
    for org in 1..=ORGS {
        pg.exec(&format!("insert into orgs values ({org})")).await;
    }
    for team in 1..=TEAMS {
        pg.exec(&format!("insert into teams values ({team}, {})", 1 + team % ORGS)).await;
    }
    for (n, user) in users.iter().enumerate() {
        pg.exec(&format!("insert into borrowers values ('{user}')")).await;
        pg.exec(&format!("insert into members select id, '{user}', 'viewer' from teams where id % {USERS} = {n}"))
            .await;
    }
    (pg, users)
}

/// What one phone received, and when.
type Received = Vec<(Change, Instant)>;

async fn collect(mut phone: Phone) -> Received {
    let mut received = Vec::new();
    let mut alive = Instant::now();
    loop {
        if alive.elapsed() > Duration::from_secs(10) {
            phone.heartbeat().await;
            alive = Instant::now();
        }
        let change = phone.next_change().await;
        if change.is_mark("end") {
            return received;
        }
        received.push((change, Instant::now()));
    }
}

fn key(change: &Change) -> String {
    let row = if change.kind() == "DELETE" { change.old_record() } else { change.record() };
    let rev = if change.kind() == "DELETE" { String::new() } else { row["rev"].to_string() };
    format!("{} {} {} {rev}", change.kind(), change.table(), row["id"])
}

#[derive(Debug, Default)]
struct Tally {
    commits: usize,
    rows: usize,
    received: usize,
    /// Of these, judged by Postgres or by rules that change, and permitted only by a state newer than the commit.
    newer: usize,
    leaks: Vec<String>,
    missing: Vec<String>,
    /// From the operation's begin to the arrival.
    exact: Vec<Duration>,
    asked: Vec<Duration>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = |times: &[Duration]| {
            let mut times = times.to_vec();
            times.sort_unstable();
            let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or_default();
            format!(
                "p50 {:.1?}, p99 {:.1?}, longest {:.1?}",
                at(0.5),
                at(0.99),
                times.last().copied().unwrap_or_default()
            )
        };
        let Tally { commits, rows, received, newer, leaks, missing, exact, asked } = self;
        writeln!(
            f,
            "{commits} commits, {rows} rows, {received} received: {} leaks, {} missing",
            leaks.len(),
            missing.len()
        )?;
        writeln!(f, "judged in memory: {}", times(exact))?;
        write!(f, "asked: {}; permitted by a state newer than the commit: {newer}", times(asked))
    }
}

struct Judge<'a> {
    model: &'a Model,
    /// When each state's operation began.
    begun: Vec<Option<Instant>>,
    tally: Tally,
}

impl Judge<'_> {
    /// The last state that could be in force at this time, from `from` on.
    fn latest(&self, from: usize, at: Instant) -> usize {
        let later = self.begun[from + 1..].iter().position(|begun| begun.is_some_and(|begun| begun > at));
        // States of one commit order: a later one that began earlier is not in force before those that it follows.
        later.map_or(self.begun.len() - 1, |found| from + found)
    }

    fn phone(&mut self, user: &str, received: &Received) {
        let places: HashMap<String, usize> =
            self.model.sent.iter().enumerate().map(|(n, sent)| (sent.key(), n)).collect();
        let mut arrived: Vec<Option<Instant>> = vec![None; self.model.sent.len()];
        let mut last = None;
        for (change, at) in received {
            let place = *places.get(&key(change)).unwrap_or_else(|| panic!("never committed: {}", key(change)));
            assert!(last < Some(place), "{user} received {} out of order, or twice", key(change));
            (last, arrived[place]) = (Some(place), Some(*at));
        }
        // When a row had been judged at the latest: when one behind it arrived.
        let mut bound = received.last().map(|(_, at)| *at);
        for (place, sent) in self.model.sent.iter().enumerate().rev() {
            if let Some(at) = arrived[place] {
                bound = Some(at);
            }
            let exact = EXACT.contains(&&sent.table[..]);
            let permitted = self.model.permits(sent, user, sent.from());
            match (arrived[place], bound) {
                (Some(at), _) => self.arrived(sent, user, at, permitted, exact),
                (None, _) if exact && permitted => self.tally.missing.push(format!("{user}: {sent:?}")),
                (None, Some(bound)) if !exact => {
                    let last = self.latest(sent.from(), bound);
                    if (sent.from()..=last).all(|state| self.model.permits(sent, user, state)) {
                        self.tally.missing.push(format!(
                            "{user}: {sent:?} (states to {last}; {})",
                            self.model.turns(&sent.table, sent.commit)
                        ));
                    }
                }
                _ => {}
            }
        }
    }

    fn arrived(&mut self, sent: &Sent, user: &str, at: Instant, permitted: bool, exact: bool) {
        self.tally.received += 1;
        if let Some(begun) = self.begun[sent.commit] {
            let times = if sent.table == "asks" { &mut self.tally.asked } else { &mut self.tally.exact };
            times.push(at.saturating_duration_since(begun));
        }
        if permitted {
            return;
        }
        let last = self.latest(sent.from(), at);
        let later = (sent.from()..=last).any(|state| self.model.permits(sent, user, state));
        if exact || !later {
            self.tally
                .leaks
                .push(format!("{user}: {sent:?} (states to {last}; {})", self.model.turns(&sent.table, sent.commit)));
        } else {
            self.tally.newer += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_load_each_phone_receives_what_its_user_was_permitted_at_the_commit() {
    let number = |name: &str| std::env::var_os(name).and_then(|text| text.to_str()?.parse::<u64>().ok());
    let seed = number("ROWCAST_SEED").unwrap_or_else(|| rand::rng().random());
    let lasts = Duration::from_secs(number("ROWCAST_REVOCATION_SECONDS").unwrap_or(6));
    println!("ROWCAST_SEED={seed}");
    let (pg, users) = prepared().await;
    let relay = Relay::start(&pg).await;
    let mut collecting = Vec::new();
    for user in &users {
        let mut phone = relay.phone(&token::user(user)).await;
        phone.subscribe("room", &watching(&CONTENT)).await;
        collecting.push((user, rowcast::task::spawn("phone", collect(phone))));
    }
    let operations = Operations::default();
    let until = Instant::now() + lasts;
    let mut writing = Vec::new();
    for n in 0..7 {
        writing.push(Writer::new(pg.client().await, seed.wrapping_add(n), &users, &operations, until).await);
    }
    let mut writing = writing.into_iter();
    let mut next = || writing.next().expect("as many as were made");
    tokio::join!(
        next().rights(),
        next().rights(),
        next().rights(),
        next().content(),
        next().content(),
        next().content(),
        next().rules(),
    );
    mark(&pg, "end").await;
    let model = Model::of(&history::read(&pg.client().await).await);
    let times = operations.begun();
    let begun = model.operations.iter().map(|number| number.map(|number| times[number as usize])).collect();
    let tally = Tally { commits: model.operations.len(), rows: model.sent.len(), ..Tally::default() };
    let mut judge = Judge { model: &model, begun, tally };
    for (user, phone) in collecting {
        judge.phone(user, &phone.await.expect("it does not panic"));
    }
    let tally = judge.tally;
    println!("{tally}");
    for kind in ["facts", "rules"] {
        let label = format!("kind=\"{kind}\"");
        let sum = relay.metric("rowcast_revocation_seconds_sum", &label).await;
        let count = relay.metric("rowcast_revocation_seconds_count", &label).await;
        println!("rights in force ({kind}): {count} commits, {:.1} ms on average", 1000.0 * sum / count.max(1.0));
    }
    let show = |list: &[String]| list.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
    assert!(tally.leaks.is_empty(), "seed {seed}, {tally}\nleaks:\n{}", show(&tally.leaks));
    assert!(tally.missing.is_empty(), "seed {seed}, {tally}\nmissing:\n{}", show(&tally.missing));
    assert!(tally.received > 0);
}
