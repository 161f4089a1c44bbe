//! Clients that mean harm, against the built program in a process of its own.
//!
//! Asserted of each attack: what goes wrong goes wrong on the attacker's own connection; others are served throughout (a
//! [`Siege`] broadcasts, inserts rows and connects anew all the time, and waits for each); memory stays under a bound that is
//! stated beside the attack; nothing panicked. Printed: how long the others waited.
//!
//! Each attack is made once, within some seconds. To see that nothing adds up over time:
//!
//! ```text
//! ROWCAST_HOSTILE_ROUNDS=50 cargo test --test main hostile:: -- --nocapture --test-threads=1
//! ```

mod frames;
mod intruder;
mod joins;
mod requests;
mod rooms;
mod rows;
mod witness;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use self::witness::Witness;
use crate::load::phones::raise_file_limit;
use crate::load::usage::resident_bytes;
use crate::support::token::{self, BOB};
use crate::support::{Phone, RelayProcess, TestPg, Version};

const MARKS: &str = "create table public.marks (id bigint generated always as identity primary key, note text not null); \
     grant select on public.marks to public; \
     alter publication supabase_realtime add table public.marks;";
/// The room of those who are to be served.
const ROOM: &str = "witness";
/// What half of the others' round trips must stay below, on a machine that runs other tests too.
const USUAL: Duration = Duration::from_secs(2);
/// Bytes by which memory may grow in the second half of many rounds beside half of what it grew by in the first: the allocator
/// keeps what it once had, and finds its most after some dozen rounds, while what adds up goes on as it began.
const SLACK: u64 = 8 << 20;

const MIB: u64 = 1 << 20;

/// A relay, and two users of it who go on with their work whatever is done to it.
struct Siege {
    relay: RelayProcess,
    pg: TestPg,
    hearer: Witness,
    sayer: Witness,
    said: u64,
}

/// How long the others waited for one thing of a kind.
#[derive(Default)]
struct Waits {
    broadcasts: Vec<Duration>,
    rows: Vec<Duration>,
    handshakes: Vec<Duration>,
}

impl Siege {
    /// With these settings of the relay's.
    async fn begin(settings: &[(&str, &str)]) -> Siege {
        raise_file_limit();
        let pg = TestPg::start().await;
        pg.exec(MARKS).await;
        let mut relay = RelayProcess::new(&pg);
        settings.iter().for_each(|(name, value)| relay.set(name, value));
        relay.start_again().await;
        let (hearer, sayer) = (Witness::join(relay.addr()).await, Witness::join(relay.addr()).await);
        let mut siege = Siege { relay, pg, hearer, sayer, said: 0 };
        // What is loaded once is not the attack's.
        for _ in 0..5 {
            siege.round(&mut Waits::default()).await;
        }
        siege
    }

    fn addr(&self) -> SocketAddr {
        self.relay.addr()
    }

    /// Makes the attack, once or as often as the environment says, and serves the others all the while. `bound`: bytes by which
    /// the relay may grow while it is made once.
    async fn withstands<F>(&mut self, what: &str, bound: u64, attack: impl Fn(SocketAddr) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let rounds = std::env::var_os("ROWCAST_HOSTILE_ROUNDS");
        let rounds = rounds
            .map_or(1, |text| text.to_str().and_then(|text| text.parse::<u32>().ok()).expect("a number of rounds"));
        let mut after = Vec::new();
        let (begun, addr, before) = (Instant::now(), self.addr(), resident_bytes(self.relay.pid()));
        let (mut waits, mut most) = (Waits::default(), before);
        for _ in 0..rounds {
            let attacking = rowcast::task::spawn("attack", attack(addr));
            while !attacking.is_finished() {
                self.round(&mut waits).await;
                if after.is_empty() {
                    most = most.max(resident_bytes(self.relay.pid()));
                }
            }
            let attacked = attacking.await;
            assert!(attacked.is_ok(), "{what}:\n{}", self.relay.log());
            self.round(&mut waits).await;
            after.push(resident_bytes(self.relay.pid()));
        }
        let grown = most.max(after[0]).saturating_sub(before);
        println!(
            "{what}: {:.1?}; others: broadcasts {}, rows {}, handshakes {}; memory {} MiB, grown by {} KiB at most",
            begun.elapsed(),
            shown(&mut waits.broadcasts),
            shown(&mut waits.rows),
            shown(&mut waits.handshakes),
            before / MIB,
            grown / 1024
        );
        assert!(!self.relay.log().contains("panicked"), "{what}:\n{}", self.relay.log());
        assert!(grown <= bound, "{what}: it grew by {grown} bytes");
        let (first, middle, last) = (after[0], after[after.len() / 2], after[after.len() - 1]);
        let settles = last.saturating_sub(middle) <= middle.saturating_sub(first) / 2 + SLACK;
        assert!(settles, "{what}: {after:?}");
        for waits in [&waits.broadcasts, &waits.rows, &waits.handshakes] {
            assert!(waits[(waits.len() - 1) / 2] < USUAL, "{what}: {waits:?}");
        }
    }

    /// A broadcast, a row and a handshake; each arrives within the patience of a [`Phone`].
    async fn round(&mut self, waits: &mut Waits) {
        self.said += 1;
        let number = format!("number {}", self.said);
        let begun = Instant::now();
        self.sayer.say(&number).await;
        self.hearer.hears("broadcast", &number).await;
        waits.broadcasts.push(begun.elapsed());
        let begun = Instant::now();
        self.pg.exec(&format!("insert into public.marks (note) values ('{number}')")).await;
        self.hearer.hears("postgres_changes", &number).await;
        waits.rows.push(begun.elapsed());
        let begun = Instant::now();
        Phone::connect(&self.relay.base(), &token::user(BOB), Version::V1).await.heartbeat().await;
        waits.handshakes.push(begun.elapsed());
        // What other tests of this machine would have, too.
        crate::support::relay::pause().await;
    }

    /// The relay ends as it should.
    async fn end(mut self) {
        let Siege { hearer, sayer, .. } = self;
        drop((hearer, sayer));
        assert!(self.relay.stop().await.success(), "{}", self.relay.log());
        let log = self.relay.log();
        assert!(!log.contains("panicked") && !log.contains("overflowed its stack"), "{log}");
    }
}

/// The middle and the longest. Sorts them.
fn shown(waits: &mut [Duration]) -> String {
    waits.sort_unstable();
    format!("{:.1?}/{:.1?}", waits[waits.len() / 2], waits[waits.len() - 1])
}
