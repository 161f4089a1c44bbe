//! Another version of the relay takes over: the same folder, slot and database, and the same phones.
//!
//! `scripts/upgrade` builds an older program of some revision. Without one, this build is the older one too, and what is tried
//! is that programs can take turns at all:
//!
//! ```text
//! scripts/upgrade 388d572
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use super::faults::Fault;
use super::world::{Cast, Machine, World};
use super::{Trouble, rooms, rounds};
use crate::journey::revocation::prepared_on;
use crate::support::relay::pause;
use crate::support::{Stock, TestPg};
use tokio::time::{Duration, Instant};

/// How long each program runs under writers.
const EACH: Duration = Duration::from_secs(5);
/// How long none does.
const NONE: Duration = Duration::from_secs(1);

/// Which program, and how the one before it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    NewAfterStop,
    NewAfterKill,
    OldAfterStop,
}

fn old_program() -> PathBuf {
    std::env::var_os("ROWCAST_OLD_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_rowcast").into(), PathBuf::from)
}

/// The older program runs, on a database that it has prepared.
pub(super) async fn begin(cast: Cast) -> World {
    let (old, pg) = (old_program(), TestPg::bare().await);
    let migrated = Command::new(&old).args(["migrate", "up"]).env("DATABASE_URL", pg.url()).output();
    let migrated = migrated.expect("the older program starts");
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let (pg, users) = prepared_on(pg).await;
    World::begin_on(pg, users, cast, Some(&old)).await
}

/// What must be the same afterwards, or go on from where it was.
#[derive(Debug)]
struct Kept {
    incarnation: String,
    confirmed: u64,
    /// Places by who it is.
    frontiers: BTreeMap<String, u64>,
}

async fn kept(world: &World) -> Kept {
    let client = super::unhurried(&world.pg).await;
    let lsn = |text: &str| text.parse::<rowcast::change::Lsn>().expect("an LSN").0;
    let sql = "select l.incarnation, s.confirmed_flush_lsn::text from rowcast.lineage l \
               join pg_replication_slots s on s.slot_name = l.slot";
    let row = client.query_one(sql, &[]).await.expect("one slot with its history");
    let sql = "select concat_ws(' ', slot, owner, device, what, tab), lsn::text from rowcast.frontiers";
    let frontiers = client.query(sql, &[]).await.expect("frontiers");
    let frontiers = frontiers.iter().map(|row| (row.get(0), lsn(row.get(1)))).collect();
    Kept { incarnation: row.get(0), confirmed: lsn(row.get(1)), frontiers }
}

async fn run_for(how_long: Duration) {
    let until = Instant::now() + how_long;
    while Instant::now() < until {
        pause().await;
    }
}

/// One program after the other, under writers and with all phones; at the end, members of private channels too.
pub(super) async fn one_after_the_other(world: &mut World, programs: &[Next]) {
    run_for(EACH).await;
    for next in programs {
        match next {
            Next::NewAfterKill => world.machine.kill().await,
            Next::NewAfterStop | Next::OldAfterStop => world.machine.stop().await,
        }
        world.tally.count(if *next == Next::NewAfterKill { Fault::Kill } else { Fault::Restart });
        let before = kept(world).await;
        run_for(NONE).await;
        let old = (*next == Next::OldAfterStop).then(old_program);
        let Machine::Binary(relay) = &mut world.machine else { unreachable!("a program of its own") };
        relay.run_instead(old.as_deref());
        relay.set("ROWCAST_MIGRATE", "true");
        let started = Instant::now();
        relay.start_again().await;
        let ready = started.elapsed();
        let after = kept(world).await;
        println!(
            "  {next:?}: ready after {ready:.1?}, slot of history {} from {:#x} to {:#x}, {} frontiers, then {}",
            after.incarnation,
            before.confirmed,
            after.confirmed,
            before.frontiers.len(),
            after.frontiers.len()
        );
        assert_eq!(before.incarnation, after.incarnation, "the slot was made anew");
        assert!(before.confirmed <= after.confirmed);
        assert!(!before.frontiers.is_empty(), "no device had a place");
        for (who, place) in &before.frontiers {
            assert!(
                after.frontiers.get(who).is_some_and(|now| now >= place),
                "the place of {who} is gone, or went back"
            );
        }
        run_for(EACH).await;
    }
    let sql = "select max(version)::int from rowcast.migrations";
    let version: i32 = super::unhurried(&world.pg).await.query_one(sql, &[]).await.expect("a version").get(0);
    assert!(version >= 10, "{version}");
    // What the older one did not have works in the same stream.
    world.pg.exec(rooms::SCHEMA).await;
    world.pg.exec(&rooms::let_all_in(&world.users)).await;
    world.people(Cast { members: 1, member_devices: 1, member_stock: &[Stock::JavaScript], ..Cast::default() });
    world.begun().await;
    run_for(EACH).await;
}

const CAST: Cast = Cast {
    cursors: 2,
    devices: 1,
    stock: &[Stock::JavaScript, Stock::Python],
    members: 0,
    member_devices: 0,
    member_stock: &[],
    in_process: false,
    lying: false,
    forgetful: false,
};

/// The database keeps what the newer one made, and the older one leaves it alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_phone_gets_what_it_is_owed_through_an_upgrade_that_is_taken_back_and_done_again() {
    let programs = &[Next::NewAfterStop, Next::OldAfterStop, Next::NewAfterKill];
    rounds("there and back", CAST, Trouble::Programs(programs)).await;
}
