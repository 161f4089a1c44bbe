//! Tokens that come to their end, and new ones that come in time, or a moment later.

use super::lane_tests::{WAITING, patient};
use super::*;

/// A token of so many seconds from now on.
fn lasting(bench: &Bench, sub: &str, seconds: i64) -> Arc<Principal> {
    let exp = bench.clock.unix_seconds() + seconds;
    let claims = json!({"role": "authenticated", "sub": sub, "exp": exp});
    Arc::new(Principal::new(claims.as_object().unwrap().clone(), exp).unwrap())
}

/// Alice has a token of 100 seconds, Bob one that lasts; what Bob gets tells how far the hub is.
async fn alice_and_bob(bench: &Bench, entries: Vec<Entry>) -> (Arc<Port>, Arc<Port>) {
    let (alice, bob) = (port(), port());
    let short = lasting(bench, ALICE, 100);
    bench.hub.subscribe(alice.clone(), entries.clone(), short).await.expect("accepted");
    bench.subscribe(&bob, vec![entry(9, "owned", None)], BOB).await;
    (alice, bob)
}

fn ids(received: &BTreeMap<ChannelId, Received>, port: &Arc<Port>) -> Vec<String> {
    received.get(&port.id).map(|r| r.rows.iter().map(|(id, _)| id.clone()).collect()).unwrap_or_default()
}

#[tokio::test]
async fn what_comes_between_the_end_of_a_token_and_the_activation_of_the_next_one_is_judged_by_that_and_not_lost() {
    let mut bench = Bench::new(OWNED).await;
    let (alice, bob) = alice_and_bob(&bench, vec![entry(1, "owned", None)]).await;
    let owned = bench.relation("owned").await;
    bench.insert(&owned, &[vec!["1", ALICE, "x"], vec!["2", BOB, "x"]]);
    let received = bench.until(&bob, "2").await;
    assert_eq!(ids(&received, &alice), ["1"]);
    // Her client has renewed it in time; that takes a while to be in force.
    bench.clock.advance(200_000);
    bench.insert(&owned, &[vec!["3", BOB, "x"], vec!["4", ALICE, "x"], vec!["5", ALICE, "x"], vec!["6", BOB, "x"]]);
    bench.insert(&owned, &[vec!["7", ALICE, "x"], vec!["8", BOB, "x"]]);
    let received = bench.until(&bob, "8").await;
    assert_eq!(ids(&received, &alice), [""; 0], "by a token that is no longer valid she gets nothing");
    bench.hub.reclaim(alice.id, lasting(&bench, ALICE, 100)).await.expect("reclaimed");
    bench.insert(&owned, &[vec!["9", ALICE, "x"]]);
    let received = bench.until(&alice, "9").await;
    assert_eq!(ids(&received, &alice), ["4", "5", "7", "9"]);
    assert_eq!(received[&alice.id].notices, [""; 0], "nothing is missing");
    bench.stop().await;
}

#[tokio::test]
async fn what_comes_after_the_end_of_a_token_is_never_given_by_it_when_the_next_one_permits_less() {
    let mut bench = Bench::new(OWNED).await;
    let (alice, bob) = alice_and_bob(&bench, vec![entry(1, "owned", None)]).await;
    let owned = bench.relation("owned").await;
    bench.clock.advance(200_000);
    bench.insert(&owned, &[vec!["1", ALICE, "x"], vec!["2", BOB, "x"]]);
    bench.until(&bob, "2").await;
    let other = "cccccccc-cccc-cccc-cccc-cccccccccccc";
    bench.hub.reclaim(alice.id, lasting(&bench, other, 100)).await.expect("reclaimed");
    bench.insert(&owned, &[vec!["3", ALICE, "x"], vec!["4", other, "x"]]);
    let received = bench.until(&alice, "4").await;
    assert_eq!(ids(&received, &alice), ["4"]);
    bench.stop().await;
}

#[tokio::test]
async fn a_token_of_equal_rights_brings_what_came_after_the_end_of_the_last_one_while_the_database_is_away() {
    let mut bench = Bench::new(OWNED).await;
    // Too long to be remembered.
    let filter = format!("kind=neq.{}", "x".repeat(5000));
    let (alice, bob) = alice_and_bob(&bench, vec![entry(1, "owned", Some(&filter))]).await;
    let owned = bench.relation("owned").await;
    bench.pool.close();
    bench.clock.advance(200_000);
    bench.insert(&owned, &[vec!["1", ALICE, "x"], vec!["2", BOB, "x"]]);
    bench.until(&bob, "2").await;
    bench.hub.reclaim(alice.id, lasting(&bench, ALICE, 100)).await.expect("stays in force");
    bench.insert(&owned, &[vec!["3", ALICE, "x"]]);
    let received = bench.until(&alice, "3").await;
    assert_eq!(ids(&received, &alice), ["1", "3"]);
    bench.stop().await;
}

#[tokio::test]
async fn a_row_that_waits_for_postgres_beyond_the_end_of_its_token_is_told_as_a_gap() {
    let mut bench = Bench::with(&format!("{OWNED}{WAITING}"), patient(|_| {})).await;
    let entries = vec![entry(1, "waiting", None), entry(2, "owned", None)];
    let (alice, bob) = alice_and_bob(&bench, entries).await;
    let (owned, waiting) = (bench.relation("owned").await, bench.relation("waiting").await);
    bench.database.run("select pg_advisory_lock(7)").await;
    bench.insert(&waiting, &[vec!["1", ALICE, "held"]]);
    bench.insert(&owned, &[vec!["2", ALICE, "x"], vec!["3", BOB, "x"]]);
    bench.until(&bob, "3").await;
    bench.clock.advance(200_000);
    bench.insert(&owned, &[vec!["4", ALICE, "x"], vec!["5", BOB, "x"]]);
    bench.until(&bob, "5").await;
    bench.database.run("select pg_advisory_unlock(7)").await;
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let mut told = Vec::new();
    while told.len() < 2 {
        let batch = tokio::time::timeout_at(deadline, bench.batches.recv()).await;
        let items = batch.unwrap_or_else(|_| panic!("only {told:?} came")).expect("runs").items;
        told.extend(items.into_iter().filter_map(|outgoing| match outgoing {
            Outgoing::Notice(notice) => Some(notice.message.to_string()),
            _ => None,
        }));
    }
    assert!(told.iter().all(|message| message.starts_with("Gap:")), "{told:?}");
    bench.hub.reclaim(alice.id, lasting(&bench, ALICE, 100)).await.expect("reclaimed");
    bench.insert(&owned, &[vec!["6", ALICE, "x"]]);
    let received = bench.until(&alice, "6").await;
    assert_eq!(ids(&received, &alice), ["4", "6"]);
    bench.stop().await;
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_and_back_again_costs_no_row() {
    let mut bench = Bench::new(OWNED).await;
    let (alice, bob) = alice_and_bob(&bench, vec![entry(1, "owned", None)]).await;
    let owned = bench.relation("owned").await;
    bench.clock.advance(200_000);
    bench.insert(&owned, &[vec!["1", ALICE, "x"], vec!["2", BOB, "x"]]);
    bench.until(&bob, "2").await;
    bench.clock.advance(-200_000);
    let received = bench.until(&alice, "1").await;
    assert_eq!(ids(&received, &alice), ["1"]);
    bench.stop().await;
}
