//! What goes wrong, one thing after the other, and several at a time.

use std::collections::BTreeMap;
use std::fmt;

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use tokio::time::{Duration, Instant};

use super::world::{World, unhurried};
use crate::support::Flow;
use crate::support::relay::pause;

/// A kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// SIGKILL of the binary; within the process, all its tasks are dropped where they stand.
    Kill,
    /// SIGTERM, and another start.
    Restart,
    /// SIGSTOP, and SIGCONT later.
    Freeze,
    /// Phones' connections are reset.
    PhonesCut,
    /// Nothing passes between phones and relay for a while.
    PhonesStall,
    /// A few bytes at a time do.
    PhonesDrip,
    /// Phones are cut off, and the relay does not hear of it.
    HalfOpen,
    /// Some phones do not read while much is written.
    SlowPhones,
    /// The relay's connections to Postgres are reset.
    DatabaseCut,
    DatabaseStall,
    DatabaseDrip,
    /// The relay's connections hang for good; it may make new ones.
    DatabaseHalfOpen,
    /// Fast shutdown, and another start.
    PostgresRestart,
    /// As when its machine fails.
    PostgresCrash,
    /// A table that policies read is locked for longer than a question may take.
    AskTimeout,
    /// The log's disk is full for a while.
    DiskFull,
    /// The relay's wall clock jumps, and later back.
    ClockJump,
    /// The process ends itself at one place of a row's journey.
    Failpoint,
}

/// Those that a world with the binary can have.
pub(super) const OF_BINARY: &[Fault] = &[
    Fault::Kill,
    Fault::Kill,
    Fault::Restart,
    Fault::Freeze,
    Fault::PhonesCut,
    Fault::PhonesStall,
    Fault::PhonesDrip,
    Fault::HalfOpen,
    Fault::SlowPhones,
    Fault::DatabaseCut,
    Fault::DatabaseStall,
    Fault::DatabaseDrip,
    Fault::DatabaseHalfOpen,
    Fault::PostgresRestart,
    Fault::PostgresCrash,
    Fault::AskTimeout,
];

/// Those that a world with the relay in this process can have.
pub(super) const OF_PROCESS: &[Fault] =
    &[Fault::DiskFull, Fault::ClockJump, Fault::Kill, Fault::Restart, Fault::PhonesCut, Fault::DatabaseCut];

impl Fault {
    /// The relay begins anew with facts that are ahead of what it has yet to judge: deletes in between can't be told any more
    /// whose they were, and that is said.
    pub(super) fn forgets_facts(self) -> bool {
        matches!(self, Fault::Kill | Fault::Restart | Fault::Failpoint)
    }

    /// A connection may have ended and the relay not know of it, or the other way about; and receipts don't come meanwhile.
    pub(super) fn leaves_connections(self) -> bool {
        use Fault::{Freeze, HalfOpen, PhonesDrip, PhonesStall, SlowPhones};
        matches!(self, HalfOpen | PhonesStall | PhonesDrip | SlowPhones | Freeze)
    }

    /// After it, Postgres could not be asked for a while, so that rows may stay undecided.
    pub(super) fn hinders_questions(self) -> bool {
        matches!(
            self,
            Fault::DatabaseCut
                | Fault::DatabaseStall
                | Fault::DatabaseDrip
                | Fault::DatabaseHalfOpen
                | Fault::PostgresRestart
                | Fault::PostgresCrash
                | Fault::AskTimeout
                | Fault::Freeze
        )
    }
}

/// How often each was done, and when the last was.
#[derive(Debug, Default, Clone)]
pub(super) struct Tally {
    counts: BTreeMap<Fault, u32>,
    pub(super) done: Vec<(Instant, Fault)>,
}

impl Tally {
    pub(super) fn count(&mut self, fault: Fault) {
        *self.counts.entry(fault).or_default() += 1;
        self.done.push((Instant::now(), fault));
    }

    pub(super) fn total(&self) -> u32 {
        self.counts.values().sum()
    }

    pub(super) fn add(&mut self, other: &Tally) {
        for (fault, count) in &other.counts {
            *self.counts.entry(*fault).or_default() += count;
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<String> = self.counts.iter().map(|(fault, count)| format!("{fault:?} {count}")).collect();
        write!(f, "{} faults ({})", self.total(), each.join(", "))
    }
}

/// Something that ends later, while other things go wrong.
struct Lasting {
    fault: Fault,
    until: Instant,
}

/// Until then; each kind at least once if there is time, in an order of chance.
pub(super) async fn strike(world: &mut World, kinds: &[Fault], dice: &mut StdRng, until: Instant) {
    let mut lasting: Vec<Lasting> = Vec::new();
    let mut bag: Vec<Fault> = Vec::new();
    if kinds.is_empty() {
        tokio::time::sleep_until(until).await;
    }
    while !kinds.is_empty() && Instant::now() < until {
        if bag.is_empty() {
            bag = kinds.to_vec();
        }
        let fault = bag.swap_remove(dice.random_range(0..bag.len()));
        let held = |kinds: &[Fault]| lasting.iter().any(|lasting| kinds.contains(&lasting.fault));
        // What would undo or hide another that still lasts.
        let clashes = match fault {
            Fault::PhonesStall | Fault::PhonesDrip => held(&[Fault::PhonesStall, Fault::PhonesDrip]),
            Fault::DatabaseStall | Fault::DatabaseDrip => held(&[Fault::DatabaseStall, Fault::DatabaseDrip]),
            // A relay does not start without its database, or on a full disk.
            Fault::Restart | Fault::Kill | Fault::PostgresRestart | Fault::PostgresCrash => {
                held(&[Fault::DatabaseStall, Fault::DatabaseDrip, Fault::DiskFull])
            }
            _ => held(&[fault]),
        };
        if !clashes {
            let begun = Instant::now();
            begin(world, fault, dice, &mut lasting).await;
            world.tally.count(fault);
            if super::number("ROWCAST_OBLIGATION_LOG").is_some() {
                println!("  {fault:?} took {:.1?}", begun.elapsed());
            }
        }
        tokio::time::sleep(Duration::from_millis(dice.random_range(50..900))).await;
        let now = Instant::now();
        for ended in lasting.extract_if(.., |lasting| lasting.until <= now) {
            end(world, ended.fault).await;
        }
    }
    for ended in lasting {
        end(world, ended.fault).await;
    }
}

async fn begin(world: &mut World, fault: Fault, dice: &mut StdRng, lasting: &mut Vec<Lasting>) {
    let millis = |dice: &mut StdRng, from: u64, to: u64| Duration::from_millis(dice.random_range(from..to));
    let mut last = |length| lasting.push(Lasting { fault, until: Instant::now() + length });
    match fault {
        Fault::Kill => {
            world.machine.kill().await;
            // Long enough for rows to be missed, at times.
            tokio::time::sleep(millis(dice, 0, 900)).await;
            if dice.random_bool(0.3) {
                // And again, somewhere in its start.
                world.machine.start_and_kill(millis(dice, 0, 400)).await;
                world.tally.count(Fault::Kill);
            }
            world.machine.start(&world.db).await;
        }
        Fault::Restart => {
            world.machine.stop().await;
            tokio::time::sleep(millis(dice, 0, 500)).await;
            world.machine.start(&world.db).await;
        }
        Fault::Freeze => {
            world.machine.freeze();
            tokio::time::sleep(millis(dice, 200, 3000)).await;
            world.machine.thaw();
        }
        Fault::PhonesCut => world.phones.cut(),
        Fault::HalfOpen => world.phones.half_open(),
        Fault::PhonesStall => {
            world.phones.set(Flow::Stalled);
            last(millis(dice, 300, 4000));
        }
        Fault::PhonesDrip => {
            world.phones.set(Flow::Dripping);
            last(millis(dice, 300, 2500));
        }
        Fault::SlowPhones => {
            world.board.slow_down(*[2, 3, 4].choose(dice).expect("some"));
            world.flood().await;
            last(millis(dice, 500, 2500));
        }
        Fault::DatabaseCut => world.db.cut(),
        Fault::DatabaseHalfOpen => world.db.half_open(),
        Fault::DatabaseStall => {
            world.db.set(Flow::Stalled);
            last(millis(dice, 300, 4000));
        }
        Fault::DatabaseDrip => {
            world.db.set(Flow::Dripping);
            last(millis(dice, 300, 2000));
        }
        Fault::PostgresRestart => world.pg.restart().await,
        Fault::PostgresCrash => {
            world.pg.kill().await;
            tokio::time::sleep(millis(dice, 0, 500)).await;
            world.pg.start_again().await;
        }
        Fault::AskTimeout => {
            let lock = "set statement_timeout = 0; begin; lock table members in access exclusive mode";
            let client = unhurried(&world.pg).await;
            if client.batch_execute(lock).await.is_ok() {
                tokio::time::sleep(millis(dice, 500, 4000)).await;
                let _ = client.batch_execute("rollback").await;
            }
        }
        Fault::DiskFull => {
            world.machine.set_room(Some(dice.random_range(0..20_000)));
            last(millis(dice, 300, 3000));
        }
        Fault::ClockJump => {
            let minutes = *[-20, -5, 5, 20].choose(dice).expect("some");
            world.machine.jump(minutes);
            last(millis(dice, 300, 3000));
        }
        Fault::Failpoint => unreachable!("the process is begun for it"),
    }
    pause().await;
}

async fn end(world: &mut World, fault: Fault) {
    match fault {
        Fault::PhonesStall | Fault::PhonesDrip => world.phones.set(Flow::Free),
        Fault::DatabaseStall | Fault::DatabaseDrip => world.db.set(Flow::Free),
        Fault::SlowPhones => world.board.slow_down(0),
        Fault::DiskFull => world.machine.set_room(None),
        Fault::ClockJump => world.machine.jump_back(),
        _ => {}
    }
}
