//! Other publications than the log was read with.

use super::*;

fn names(of: &[&str]) -> Vec<String> {
    of.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn another_publication_is_read_behind_what_was_begun_before_it_and_the_history_goes_on() {
    let mut bench = Bench::new();
    let running = bench.running().await;
    bench.server.commit(110, 10);
    bench.confirmed(110).await;
    running.stop().await.expect("a clean stop");
    {
        let mut server = bench.server.lock();
        (server.more, server.unsettled) = (vec![("q".into(), 9)], true);
        server.asked.clear();
    }
    bench.server.commit(120, 10);
    bench.config.wal.publications = names(&["p", "q"]);
    let running = bench.start();
    // Changes flow while the old transactions are waited for.
    bench.server.commit(130, 10);
    bench.confirmed(130).await;
    assert_eq!(bench.server.lock().asked, [names(&["p"])]);
    // Also over a crash.
    bench.crash(running).await;
    bench.server.lock().connected = false;
    let running = bench.start();
    bench.server.commit(140, 10);
    bench.confirmed(140).await;
    assert_eq!(bench.server.lock().asked, [names(&["p"]), names(&["p"])]);
    bench.server.lock().unsettled = false;
    bench.server.commit(150, 10);
    bench.server.until("both are asked for", |server| server.asked.last() == Some(&names(&["p", "q"]))).await;
    bench.server.commit(200, 10);
    bench.confirmed(200).await;
    assert_eq!(running.ends().await, [110, 120, 130, 140, 150, 200]);
    running.stop().await.expect("a clean stop");
    let asked = bench.server.lock().asked.len();
    let running = bench.start();
    bench.server.commit(210, 10);
    bench.confirmed(210).await;
    assert_eq!(bench.server.lock().asked[asked..], [names(&["p", "q"])]);
    running.stop().await.expect("a clean stop");
}

#[tokio::test]
async fn where_an_old_publication_is_gone_or_another_history_begins_there_is_nothing_to_wait_for() {
    let mut bench = Bench::new();
    bench.server.lock().more = vec![("q".into(), 9), ("r".into(), 10)];
    bench.config.wal.publications = names(&["p", "q"]);
    bench.server.lock().unsettled = true;
    let running = bench.running().await;
    assert_eq!(bench.server.lock().asked, [names(&["p", "q"])]);
    running.stop().await.expect("a clean stop");
    bench.server.lock().more = vec![("r".into(), 10)];
    bench.config.wal.publications = names(&["p", "r"]);
    let running = bench.running().await;
    assert_eq!(bench.server.lock().asked.last(), Some(&names(&["p", "r"])));
    running.stop().await.expect("a clean stop");
}
