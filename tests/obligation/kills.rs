//! SIGKILL, as often as the clients have come back.

use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::time::Duration;

use super::faults::Fault;
use super::world::World;

pub(super) async fn kill_again_and_again(world: &mut World, times: u64, dice: &mut StdRng) {
    for number in 0..times {
        tokio::time::sleep(Duration::from_millis(dice.random_range(0..1500))).await;
        world.machine.kill().await;
        world.tally.count(Fault::Kill);
        tokio::time::sleep(Duration::from_millis(dice.random_range(0..1000))).await;
        world.machine.start(&world.db).await;
        let stuck = world.caught_up(&format!("back-{number}")).await;
        assert!(stuck.is_empty(), "not back after kill {number}:\n{}", world.machine.log_tail());
    }
}
