//! Steady inserts from several sessions: transactions of 1 to 20 rows, some rolled back, in whole or in part, and now and
//! then one so large that it goes through a file.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rowcast::task::Drain;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::support::TestPg;

const SESSIONS: i32 = 4;
/// The longest pause between two transactions of a session.
const PAUSE: Duration = Duration::from_millis(15);
/// Between two large transactions.
const LARGE_EVERY: Duration = Duration::from_secs(2);

/// Running sessions.
pub(super) struct Writers {
    drain: Drain,
    sessions: Vec<JoinHandle<u64>>,
}

impl Writers {
    pub(super) async fn start(pg: &TestPg, dice: &mut StdRng) -> Writers {
        let drain = Drain::new();
        let mut sessions = Vec::new();
        for number in 0..SESSIONS {
            let (client, dice) = (pg.client().await, StdRng::from_rng(dice));
            sessions.push(rowcast::task::spawn("writer", write(client, number, dice, drain.clone())));
        }
        Writers { drain, sessions }
    }

    /// Ends them; returns the number of rows that they committed.
    pub(super) async fn stop(self) -> u64 {
        self.drain.drain();
        let mut rows = 0;
        for session in self.sessions {
            rows += session.await.expect("a session that did its work");
        }
        rows
    }
}

async fn write(client: Client, number: i32, mut dice: StdRng, drain: Drain) -> u64 {
    let mut committed = 0;
    let mut large_at = Instant::now();
    while !drain.is_draining() {
        let rows = dice.random_range(1..=20);
        let lost = dice.random_range(1..=20);
        let insert = |rows: u64, note: &str| {
            format!("insert into public.steps (writer, note) select {number}, {note} from generate_series(1, {rows});")
        };
        let large = number == 0 && large_at.elapsed() >= LARGE_EVERY;
        let (text, count) = match dice.random_range(0..10) {
            _ if large => (format!("begin; {} commit", insert(20, "repeat(md5(random()::text), 15000)")), 20),
            0 | 1 => (format!("begin; {} rollback", insert(rows, "'rolled back'")), 0),
            2 => {
                let (kept, lost) = (insert(rows, "'kept'"), insert(lost, "'undone'"));
                (format!("begin; {kept} savepoint s; {lost} rollback to s; {kept} commit"), 2 * rows)
            }
            // Without BEGIN: one statement, one transaction.
            _ => (insert(rows, "repeat('x', (random() * 200)::int)"), rows),
        };
        client.batch_execute(&text).await.expect("the rows");
        committed += count;
        if large {
            large_at = Instant::now();
        }
        tokio::time::sleep(PAUSE.mul_f64(dice.random())).await;
    }
    committed
}
