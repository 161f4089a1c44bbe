//! No allocation per delivery: whoever shares a row's encoding costs a shard two counters and a place in a list.

use super::*;

/// Allocations of a shard that writes one change to these members, after a change of the same table has gone by.
fn counted(shard: &mut Shard, fixture: &Fixture, members: Vec<Member>) -> u64 {
    let batch = fixture.batch(&fixture.event(), members);
    allocation_counter::measure(|| shard.write(batch)).count_total
}

#[tokio::test]
async fn a_change_for_a_thousand_members_allocates_what_a_change_for_one_does() {
    let fixture = Fixture::new().await;
    let (mut shard, _sender) = shard();
    let (one, thousand) = (members(1), members(1000));
    // The lists of the shard and of the outboxes grow once and stay.
    for members in [&one, &thousand] {
        counted(&mut shard, &fixture, members.clone());
    }
    let for_one = counted(&mut shard, &fixture, one);
    let for_thousand = counted(&mut shard, &fixture, thousand);
    // The sort by connection takes one list for them all.
    assert!(for_thousand <= for_one + 1, "{for_one} for one, {for_thousand} for a thousand");
    assert!(for_one <= 8, "{for_one}");
}
