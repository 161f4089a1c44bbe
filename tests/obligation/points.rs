//! Crashes at each failpoint.

use rand::Rng as _;
use rand::rngs::StdRng;
use rowcast::fail::Point;

use super::faults::Fault;
use super::world::World;

/// The relay is started again and again, each time to end itself at another place; at last, to stay.
pub(super) async fn crash_at_each(world: &mut World, times: u64, dice: &mut StdRng) {
    world.machine.stop().await;
    for round in 0..times {
        for point in Point::ALL {
            // The very first pass, and later ones.
            let pass = if round == 0 { 1 } else { dice.random_range(2..40) };
            let failpoint = format!("{}:{pass}", point.as_str());
            let crashed = world.machine.crash_at(&failpoint).await;
            assert!(crashed, "it did not end itself at {failpoint}:\n{}", world.machine.log_tail());
            world.tally.count(Fault::Failpoint);
        }
    }
    world.machine.start(&world.db).await;
}
