//! Who has to wait, who is refused, and who is not.

use super::*;

async fn said(batches: &mut mpsc::Receiver<RoomBatch>) -> u64 {
    next(batches).await.1[0].as_u64().unwrap()
}

fn number(number: u64) -> Message {
    Message::Text { payload: number.to_string().into() }
}

/// A room of which the shard takes one message at a time.
fn narrow() -> (Arc<Rooms>, mpsc::Receiver<RoomBatch>) {
    let (queue, batches) = mpsc::channel(1);
    (Rooms::new(RoomConfig::default(), vec![queue], Arc::default()), batches)
}

#[tokio::test]
async fn who_sends_faster_than_the_shards_write_waits_and_loses_nothing() {
    let (rooms, mut batches) = narrow();
    let one = Arc::new(rooms.enter(public("a"), member(1, "u")));
    let sending = task::spawn("sender", {
        let one = one.clone();
        async move {
            for number in 0..200 {
                one.broadcast(self::number(number), true).await.unwrap();
            }
        }
    });
    tokio::task::yield_now().await;
    assert!(!sending.is_finished());
    for number in 0..200 {
        assert_eq!(said(&mut batches).await, number);
    }
    sending.await.unwrap();
}

#[tokio::test]
async fn users_share_a_room_however_many_connections_each_has() {
    let (rooms, mut batches) = narrow();
    let greedy: Vec<_> = (1..=20).map(|id| rooms.enter(public("a"), member(id, "greedy"))).collect();
    let modest = rooms.enter(public("a"), member(21, "modest"));
    for seat in greedy {
        drop(task::spawn("sender", async move {
            loop {
                if seat.broadcast(number(1), true).await.is_err() {
                    return;
                }
            }
        }));
    }
    // The queue is full, and all of them wait.
    for _ in 0..50 {
        said(&mut batches).await;
        tokio::task::yield_now().await;
    }
    drop(task::spawn("sender", async move {
        for _ in 0..20 {
            modest.broadcast(number(2), true).await.unwrap();
        }
    }));
    let mut between = 0;
    let mut others = Vec::new();
    while others.len() < 20 {
        match said(&mut batches).await {
            1 => between += 1,
            _ => others.push(std::mem::take(&mut between)),
        }
    }
    assert!(others.iter().skip(1).all(|between| *between <= 3), "{others:?}");
}

#[tokio::test]
async fn a_member_that_is_full_of_work_elsewhere_does_not_hold_up_other_rooms() {
    let (one, mut busy) = mpsc::channel(1);
    let (two, mut free) = mpsc::channel(1);
    let rooms = Rooms::new(RoomConfig::default(), vec![one, two], Arc::default());
    let on = |id: u64, shard| Member { port: port(id, shard, Version::V2, Stage::greeted()).0, ..member(id, "u") };
    let stuck = rooms.enter(public("a"), on(1, 0));
    stuck.broadcast(number(1), true).await.unwrap();
    let waiting = task::spawn("sender", async move { stuck.broadcast(number(2), true).await });
    let other = rooms.enter(public("b"), on(2, 1));
    for at in 3..10 {
        other.broadcast(number(at), true).await.unwrap();
        assert_eq!(said(&mut free).await, at);
    }
    assert_eq!((said(&mut busy).await, said(&mut busy).await), (1, 2));
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn over_the_rooms_rate_those_are_refused_who_have_sent_more_than_their_share() {
    let config = RoomConfig { messages_per_second: 1, ..RoomConfig::default() };
    let (rooms, mut batches, _drain) = rooms(config);
    drop(task::spawn("shard", async move { while batches.recv().await.is_some() {} }));
    let greedy = rooms.enter(public("a"), member(1, "greedy"));
    let modest = rooms.enter(public("a"), member(2, "modest"));
    for at in 0..60 {
        greedy.broadcast(number(at), true).await.unwrap();
    }
    assert_eq!(greedy.broadcast(number(60), true).await, Err(RoomError::TooManyMessages));
    assert_eq!(rooms.publish(&public("a"), number(60), &"greedy".into()).await, Err(RoomError::TooManyMessages));
    for at in 0..20 {
        modest.broadcast(number(at), true).await.unwrap();
    }
    for _ in 0..20 {
        let _ = modest.broadcast(number(60), true).await;
    }
    assert_eq!(modest.broadcast(number(60), true).await, Err(RoomError::TooManyMessages), "its share has an end too");
    assert_eq!(greedy.broadcast(number(60), true).await, Err(RoomError::TooManyMessages));
    let other = rooms.enter(public("b"), member(3, "greedy"));
    other.broadcast(number(0), true).await.unwrap();
}

#[tokio::test]
async fn changes_of_presence_have_a_rate_and_the_same_again_counts() {
    let config = RoomConfig { presence_per_second: 1, presence_metas: 1, ..RoomConfig::default() };
    let (rooms, _batches, _drain) = rooms(config);
    let (one, two) = (rooms.enter(public("a"), member(1, "u")), rooms.enter(public("a"), member(2, "v")));
    one.track(raw("{}")).await.unwrap();
    assert_eq!(two.track(raw("{}")).await, Err(RoomError::PresenceFull));
    for _ in 2..60 {
        one.track(raw("{}")).await.unwrap();
    }
    assert_eq!(one.track(raw("{}")).await, Err(RoomError::TooManyPresence));
    one.untrack().await.unwrap();
    assert_eq!(rooms.metrics.presence_metas.get(), 0);
}

#[tokio::test]
async fn without_shards_a_room_is_closed() {
    let (rooms, batches, _drain) = rooms(RoomConfig::default());
    let one = rooms.enter(public("a"), member(1, "u"));
    drop(batches);
    assert_eq!(one.broadcast(number(1), true).await, Err(RoomError::Closed));
    one.send_state().await;
    one.track(raw("{}")).await.unwrap();
}

#[tokio::test]
async fn a_quiet_room_tells_presence_at_once_and_a_busy_one_once_in_a_window() {
    let presence_window = Duration::from_secs(1);
    let (rooms, mut batches, _drain) = rooms(RoomConfig { presence_window, ..RoomConfig::default() });
    let seats: Vec<_> = (1..=3).map(|id| rooms.enter(public("a"), member(id, "u"))).collect();
    let start = std::time::Instant::now();
    seats[0].track(raw("{}")).await.unwrap();
    let first = next(&mut batches).await.1;
    assert_eq!(first[0]["joins"].as_object().unwrap().len(), 1);
    seats[1].track(raw("{}")).await.unwrap();
    seats[2].track(raw("{}")).await.unwrap();
    seats[2].untrack().await.unwrap();
    let diff = next(&mut batches).await.1;
    assert!(start.elapsed() >= presence_window);
    assert_eq!(diff[0]["joins"].as_object().unwrap().keys().collect::<Vec<_>>(), ["k2"]);
    assert_eq!(rooms.metrics.presence_diffs.get(), 2);
    assert_eq!(rooms.metrics.presence_coalesced.get(), 2, "of three changes one had a diff");
}

/// Another member of the same connection, in another room or here.
fn beside(of: &Member, id: u64) -> Member {
    let own = port(id, 0, Version::V2, Stage::greeted()).0;
    let mut port = Arc::into_inner(own).unwrap();
    port.outbox = of.port.outbox.clone();
    Member { port: Arc::new(port), key: format!("k{id}").into(), ..of.clone() }
}

fn object(bytes: usize) -> Arc<RawValue> {
    raw(&format!("{{\"a\":\"{}\"}}", "x".repeat(bytes)))
}

#[tokio::test]
async fn presence_of_a_connection_is_bounded_however_many_topics_it_joins() {
    let config = RoomConfig { presence_connection_bytes: 2500, presence_meta_bytes: 2000, ..RoomConfig::default() };
    let (rooms, _batches, _drain) = rooms(config);
    let first = member(1, "u");
    let one = rooms.enter(public("a"), first.clone());
    let two = rooms.enter(public("b"), beside(&first, 2));
    assert_eq!(one.track(object(2000)).await, Err(RoomError::PresenceFull), "one meta has a bound");
    one.track(object(1500)).await.unwrap();
    assert_eq!(two.track(object(1500)).await, Err(RoomError::PresenceFull), "both are of one connection");
    one.track(object(500)).await.unwrap();
    two.track(object(1500)).await.unwrap();
    one.untrack().await.unwrap();
    drop(two);
    assert!(rooms.tracked.lock().unwrap().is_empty());
    let other = rooms.enter(public("a"), member(3, "u"));
    one.track(object(1500)).await.unwrap();
    other.track(object(1500)).await.unwrap();
    drop((one, other));
    assert!(rooms.tracked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn presence_of_all_rooms_is_bounded_together() {
    let config = RoomConfig { presence_all_bytes: 4000, ..RoomConfig::default() };
    let (rooms, mut batches, _drain) = rooms(config);
    let seats: Vec<_> = (1..=3).map(|id| rooms.enter(public(&format!("r{id}")), member(id, "u"))).collect();
    seats[0].track(object(1800)).await.unwrap();
    seats[1].track(object(1800)).await.unwrap();
    assert_eq!(seats[2].track(object(1800)).await, Err(RoomError::PresenceFull));
    // What was told is kept until it is told that it is gone.
    next(&mut batches).await;
    next(&mut batches).await;
    seats[0].untrack().await.unwrap();
    next(&mut batches).await;
    seats[2].track(object(1800)).await.unwrap();
}

#[tokio::test]
async fn diffs_of_a_large_room_are_further_apart() {
    let (rooms, _batches, _drain) = rooms(RoomConfig::default());
    let millis = |members| rooms.window(members).as_millis();
    assert_eq!([0, 1000, 5000, 30_000, 1_000_000].map(millis), [50, 50, 250, 1500, 1500]);
    let (presence_window, presence_longest_window) = (Duration::from_millis(20), Duration::from_millis(100));
    let (rooms, _batches, _drain) =
        self::rooms(RoomConfig { presence_window, presence_longest_window, ..RoomConfig::default() });
    let millis = |members| rooms.window(members).as_millis();
    assert_eq!([0, 1000, 5000].map(millis), [20, 50, 100], "as it was set");
}

#[tokio::test]
async fn who_publishes_over_http_has_a_share_of_a_room_over_its_rate() {
    let config = RoomConfig { messages_per_second: 1, ..RoomConfig::default() };
    let (rooms, mut batches, _drain) = rooms(config);
    drop(task::spawn("shard", async move { while batches.recv().await.is_some() {} }));
    let greedy = rooms.enter(public("a"), member(1, "greedy"));
    for at in 0..60 {
        greedy.broadcast(number(at), true).await.unwrap();
    }
    assert_eq!(greedy.broadcast(number(60), true).await, Err(RoomError::TooManyMessages));
    let server: Arc<str> = "server".into();
    rooms.publish(&public("a"), number(61), &server).await.unwrap();
    for _ in 0..60 {
        let _ = rooms.publish(&public("a"), number(62), &server).await;
    }
    assert_eq!(rooms.publish(&public("a"), number(63), &server).await, Err(RoomError::TooManyMessages));
}

#[tokio::test]
async fn presence_of_one_room_is_bounded_for_all_who_are_in_it() {
    let config = RoomConfig { presence_bytes: 4000, ..RoomConfig::default() };
    let (rooms, _batches, _drain) = rooms(config);
    let seats: Vec<_> = (1..=3).map(|id| rooms.enter(public("a"), member(id, &format!("u{id}")))).collect();
    seats[0].track(object(1800)).await.unwrap();
    seats[1].track(object(1800)).await.unwrap();
    assert_eq!(seats[2].track(object(1800)).await, Err(RoomError::PresenceFull));
    let elsewhere = rooms.enter(public("b"), member(4, "u3"));
    elsewhere.track(object(1800)).await.unwrap();
}
