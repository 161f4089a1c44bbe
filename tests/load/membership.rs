//! The same under a membership policy: who receives a row is found in another table, in memory.
//!
//! Printed: how fast a backlog goes through with one subscriber and with many, and the times at a steady rate. To see them:
//!
//! ```text
//! cargo build --release --example phones
//! ROWCAST_LOAD_SUBSCRIBERS=10000 ROWCAST_LOAD_ROWS=300000 \
//!     cargo test --release --test main load::membership::a_backlog -- --nocapture
//! ROWCAST_LOAD_SECONDS=60 ROWCAST_LOAD_RATE=10000 \
//!     cargo test --release --test main load::membership::every_member -- --nocapture
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;
use tokio_postgres::Client;

use super::phones::{self, Phones};
use super::usage::{cpu_time, resident_bytes};
use super::{Written, check, report};
use crate::support::{RelayProcess, TestPg};

const SCHEMA: &str = "create table public.members (team_id int not null, user_id uuid not null, primary key (team_id, user_id));
    create table public.posts (id bigint generated always as identity primary key, user_id uuid not null, team_id int not null,
        kind text not null, body text not null);
    grant select on public.posts, public.members to authenticated;
    alter table public.posts enable row level security;
    create policy members on public.posts for select to authenticated using (
        exists (select 1 from public.members m where m.team_id = posts.team_id and m.user_id = (select auth.uid())));
    alter publication supabase_realtime add table public.posts;";
/// Rows of one transaction.
const BATCH: usize = 100;

pub(super) fn number(name: &str, default: usize) -> usize {
    std::env::var_os(name).map_or(default, |text| text.to_str().and_then(|text| text.parse().ok()).expect("a number"))
}

/// User `n` is the one member of team `n`.
async fn scene(count: usize) -> (TestPg, RelayProcess, Vec<String>) {
    phones::raise_file_limit();
    let pg = TestPg::start().await;
    pg.exec(SCHEMA).await;
    let users: Vec<String> = (0..count).map(|n| format!("00000000-0000-4000-8000-{n:012x}")).collect();
    let insert = "insert into public.members select place - 1, user_id::uuid from unnest($1::text[]) with ordinality as u(user_id, place)";
    pg.client().await.execute(insert, &[&users]).await.expect("members");
    let relay = RelayProcess::start(&pg).await;
    (pg, relay, users)
}

/// One transaction with a row for each of these teams; their ids in order.
async fn write(client: &Client, users: &[String], teams: &[usize]) -> Vec<i64> {
    let sql = "insert into public.posts (user_id, team_id, kind, body) \
               select user_id::uuid, team_id, 'load', $3 from unnest($1::text[], $2::int[]) as u(user_id, team_id) returning id";
    let (owners, numbers): (Vec<&str>, Vec<i32>) =
        teams.iter().map(|team| (users[*team].as_str(), i32::try_from(*team).expect("small"))).unzip();
    let body = format!("{} {}", phones::unix_micros(), "x".repeat(280));
    let rows = client.query(sql, &[&owners, &numbers, &body]).await.expect("rows");
    rows.iter().map(|row| row.get(0)).collect()
}

async fn write_last(client: &Client, users: &[String]) {
    let places: Vec<(usize, &String)> = users.iter().enumerate().collect();
    for some in places.chunks(BATCH) {
        let sql = "insert into public.posts (user_id, team_id, kind, body) \
                   select user_id::uuid, team_id, 'last', $3 from unnest($1::text[], $2::int[]) as u(user_id, team_id)";
        let (owners, numbers): (Vec<&str>, Vec<i32>) =
            some.iter().map(|(team, user)| (user.as_str(), i32::try_from(*team).expect("small"))).unzip();
        client.execute(sql, &[&owners, &numbers, &phones::unix_micros().to_string()]).await.expect("rows");
    }
}

/// Rows per second from the first insert until the last subscriber has his last row.
async fn throughput(subscribers: usize, everybody: usize, rows: usize) -> f64 {
    let (pg, relay, users) = scene(everybody).await;
    let empty = resident_bytes(relay.pid());
    let mut phones = Phones::start(&relay.addr().to_string(), "posts", &users[..subscribers]);
    let seconds = phones.ready().await;
    let each = resident_bytes(relay.pid()).saturating_sub(empty) / subscribers as u64;
    println!("{subscribers} of {everybody} members subscribed in {seconds:.2} s; {each} bytes of relay memory each");
    let client = pg.client().await;
    let (started, start, before) = (Instant::now(), phones::unix_micros(), cpu_time(relay.pid()));
    let mut written = BTreeMap::new();
    for first in (0..rows).step_by(BATCH) {
        // 7,919 has no factor in common with a round number.
        let teams: Vec<usize> = (first..(first + BATCH).min(rows)).map(|n| n * 7919 % everybody).collect();
        let (sent, ids) = (phones::unix_micros(), write(&client, &users, &teams).await);
        for (id, owner) in ids.into_iter().zip(teams) {
            written.insert(id, Written { owner, sent, committed: phones::unix_micros() });
        }
    }
    let wrote = started.elapsed();
    write_last(&client, &users[..subscribers]).await;
    let summary = phones.summary().await;
    // Not their hanging up.
    let arrivals = summary.phones.iter().flat_map(|phone| &phone.rows).map(|(_, at)| *at);
    let took = Duration::from_micros(u64::try_from(arrivals.max().unwrap_or(start) - start).unwrap_or_default());
    written.retain(|_, row| row.owner < subscribers);
    check(&users[..subscribers], &written, &summary, subscribers);
    let cpu = cpu_time(relay.pid()).saturating_sub(before);
    let rate = rows as f64 / took.as_secs_f64();
    println!(
        "{rows} rows for {subscribers}: written in {wrote:.2?}, all received in {took:.2?}, {rate:.0} rows/s, relay CPU {cpu:.2?}"
    );
    rate
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_costs_what_is_received_not_who_is_connected() {
    let (subscribers, rows) = (number("ROWCAST_LOAD_SUBSCRIBERS", 300), number("ROWCAST_LOAD_ROWS", 3000));
    let one = throughput(1, subscribers, rows).await;
    let all = throughput(subscribers, subscribers, rows).await;
    println!("with {subscribers} subscribers: {:.2} x the rows/s with one", all / one);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_gets_exactly_the_rows_of_his_team_at_a_steady_rate() {
    let (seconds, rate) = (number("ROWCAST_LOAD_SECONDS", 3), number("ROWCAST_LOAD_RATE", 500));
    let (pg, relay, users) = scene(1000).await;
    let mut phones = Phones::start(&relay.addr().to_string(), "posts", &users);
    phones.ready().await;
    let client = pg.client().await;
    let (per_second, batch) = if rate > 1000 { (200, rate / 200) } else { (rate, 1) };
    let mut tick = tokio::time::interval(Duration::from_secs(1) / u32::try_from(per_second).expect("small"));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (started, before) = (Instant::now(), cpu_time(relay.pid()));
    let mut written = BTreeMap::new();
    for number in 0..seconds * per_second {
        tick.tick().await;
        let teams: Vec<usize> = (number * batch..(number + 1) * batch).map(|n| n * 389 % users.len()).collect();
        let (sent, ids) = (phones::unix_micros(), write(&client, &users, &teams).await);
        let committed = phones::unix_micros();
        for (id, owner) in ids.into_iter().zip(teams) {
            written.insert(id, Written { owner, sent, committed });
        }
    }
    let took = started.elapsed();
    write_last(&client, &users).await;
    let summary = phones.summary().await;
    check(&users, &written, &summary, users.len());
    report(&written, &summary, took, cpu_time(relay.pid()).saturating_sub(before), relay.pid());
}
