//! What facts cost, and what happens when they cost too much.

use std::sync::Arc;

use super::Dice;
use super::cases::{membership, transaction};
use super::world::World;
use crate::catalog::Snapshot;
use crate::pgtype::{Equality, Order};
use crate::policy::facts::{FactKey, FactState, FactTable, Facts, FactsError, Layout};
use crate::policy::rule::{Kind, RuleColumn};

fn column(name: &str, number: i16, oid: u32) -> RuleColumn {
    RuleColumn { name: name.into(), number, kind: Kind { oid, equality: Equality::Bytes, order: Some(Order::Bytes) } }
}

/// Memberships: (team uuid, user uuid) is the key, and a role.
pub(in crate::policy) fn memberships() -> Arc<Layout> {
    Arc::new(Layout {
        table_oid: 1001,
        leaves: vec![1001],
        key: FactKey::Columns(2),
        columns: vec![column("team_id", 1, 2950), column("user_id", 2, 2950), column("role", 3, 25)],
        types: vec![2950, 2950, 25],
    })
}

pub(in crate::policy) fn uuid(number: u64) -> String {
    let spread = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    format!("{:08x}-{:04x}-4000-8000-{:012x}", spread >> 32, spread >> 16 & 0xFFFF, number)
}

/// Each of so many users in one team of a hundred.
pub(in crate::policy) fn filled(rows: u64) -> FactTable {
    let mut table = FactTable::new(memberships());
    for user in 0..rows {
        let (team, user, role) =
            (uuid(user / 100), uuid((1 << 40) + user), if user % 100 == 0 { "admin" } else { "member" });
        let row = [&team, &user, role].map(|text: &str| Some(text.as_bytes()));
        table.insert(row.into_iter()).expect("a row");
    }
    table
}

#[test]
fn the_bytes_that_facts_say_they_take_are_those_they_take() {
    for rows in [1000, 30_000, 100_000] {
        let mut said = 0;
        let mut kept = None;
        let info = allocation_counter::measure(|| {
            let table = filled(rows);
            table.store.index_over(&[0]).expect("an index");
            said = table.bytes() as i64;
            kept = Some(table);
        });
        let taken = info.bytes_current;
        assert!((said - taken).abs() * 10 < taken * 3, "{rows} rows: said {said}, taken {taken}");
        assert!(said / (rows as i64) < 140, "{} bytes a row", said / rows as i64);
    }
}

#[test]
fn a_table_that_is_too_large_is_not_loaded() {
    let mut table = FactTable::limited(memberships(), 100_000);
    let row = |user: u64| [uuid(1), uuid(user), "member".to_owned()];
    let outcome = (0..100_000).try_for_each(|user| {
        let row = row(user);
        table.insert(row.iter().map(|text| Some(text.as_bytes())))
    });
    assert!(matches!(outcome, Err(FactsError::TooLarge { bytes, limit: 100_000 }) if bytes < 300_000), "{outcome:?}");

    let mut facts = Facts::new(10_000);
    facts.record(memberships());
    let outcome = facts.install(filled(1000), &Snapshot::parse("100:100:").expect("a snapshot"));
    assert!(matches!(outcome, Err(FactsError::TooLarge { .. })));
    assert!(matches!(facts.state(1001), FactState::Broken(_)));
    assert!(facts.bytes() < 10_000);
}

#[test]
fn facts_that_grow_over_the_limit_are_given_up() {
    for loaded in [true, false] {
        let mut facts = Facts::new(200_000);
        facts.record(memberships());
        if loaded {
            facts.install(filled(0), &Snapshot::parse("100:100:").expect("a snapshot")).expect("installed");
        }
        let mut broken = None;
        for xid in 200..10_000 {
            let [team, user] = [1, u64::from(xid)].map(uuid);
            let tx = transaction(xid, &[(b'I', &membership(), &[(b'N', &[Some(&team), Some(&user), Some("member")])])]);
            facts.begin(&tx).expect("it can be read");
            facts.end();
            assert!(facts.bytes() <= 200_000);
            if let FactState::Broken(why) = facts.state(1001) {
                broken = Some(why);
                break;
            }
        }
        let expected = if loaded { "limit of memory" } else { "while it was loaded" };
        assert!(broken.expect("it is full").contains(expected));
    }
}

#[test]
fn what_leaves_gives_its_memory_back() {
    let (mut dice, mut world) = (Dice::new(5), World::new());
    let mut facts = Facts::new(usize::MAX);
    for table in &world.tables {
        facts.record(table.layout.clone());
        let snapshot = Snapshot::parse("100:100:").expect("a snapshot");
        facts.install(FactTable::new(table.layout.clone()), &snapshot).expect("installed");
    }
    let mut after_warmup = 0;
    for turn in 0..4000 {
        let tx = world.transaction(&mut dice);
        facts.begin(&tx).expect("it can be read");
        facts.end();
        if turn == 2000 {
            after_warmup = facts.bytes();
        }
    }
    assert!(facts.bytes() < after_warmup * 3 / 2, "{} after {after_warmup}", facts.bytes());
}
