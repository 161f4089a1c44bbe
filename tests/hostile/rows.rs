//! Rows of `realtime.messages` that can't be sent, as many as somebody likes who may insert there.

use super::{ROOM, Siege, Waits};

/// Rows of a kind.
const ROWS: u32 = 2000;
/// Lines that the log may have of them: one at once, and one in ten seconds from each task that meets them.
const LINES: usize = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_can_not_be_sent_do_not_fill_the_log() {
    let mut siege = Siege::begin(&[]).await;
    let columns = "insert into realtime.messages (topic, extension, event, private, payload)";
    let noise = format!("{columns} select '{ROOM}', 'noise', 'e', false, '{{}}' from generate_series(1, {ROWS})");
    // Members hear it in a frame whose names have 255 bytes at most.
    let long = format!(
        "{columns} select '{ROOM}', 'broadcast', repeat('e', 300), false, '{{}}' from generate_series(1, {ROWS})"
    );
    for (sql, line) in [(noise, "is not broadcast"), (long, "is not sent to members")] {
        siege.pg.exec(&sql).await;
        // Its row is behind them.
        siege.round(&mut Waits::default()).await;
        let told = siege.relay.log().matches(line).count();
        assert!((1..=LINES).contains(&told), "{told} lines of {ROWS} rows: {line}");
    }
    siege.end().await;
}
