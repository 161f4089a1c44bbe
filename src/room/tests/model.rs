//! Members who do anything at any time, from several threads; then it is checked what each has read.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;

const SHARDS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    Enter,
    Leave,
    Track(u8),
    Untrack,
    Say(bool),
    Pause,
}

/// What a member reads, in its order.
#[derive(Debug, Clone)]
enum Heard {
    Said(u64),
    Diff(Value),
    State(Value),
}

type Heards = Arc<Mutex<HashMap<u64, Vec<Heard>>>>;

/// Writes down what a shard would write.
async fn listen(mut batches: mpsc::Receiver<RoomBatch>, heards: Heards) {
    while let Some(batch) = batches.recv().await {
        write_down(batch, &mut heards.lock().unwrap());
        // Others get to run at every place that there is.
        tokio::task::yield_now().await;
    }
}

fn write_down(batch: RoomBatch, heards: &mut HashMap<u64, Vec<Heard>>) {
    match batch.what {
        What::State { slot, payload } => {
            let state = serde_json::from_slice(&payload).unwrap();
            heards.entry(slot.port.id.0).or_default().push(Heard::State(state));
        }
        What::Casts { members, casts, skip } => {
            let said: Vec<Heard> = casts.iter().map(|cast| heard(&cast.kind)).collect();
            for slot in members.iter().flat_map(|block| block.iter()).filter(|slot| Some(slot.port.id) != skip) {
                heards.entry(slot.port.id.0).or_default().extend(said.iter().cloned());
            }
        }
    }
}

fn heard(kind: &Kind) -> Heard {
    match kind {
        Kind::Diff(payload) => Heard::Diff(serde_json::from_slice(payload).unwrap()),
        Kind::Broadcast(Message::Text { payload }) => Heard::Said(serde_json::from_slice(payload).unwrap()),
        Kind::Broadcast(Message::Event { .. }) => panic!("nobody said that"),
    }
}

/// Metas by reference, as a client has them that applies diffs to the state that it got. Every diff must fit exactly.
fn view(heard: &[Heard]) -> Option<BTreeMap<String, (String, Value)>> {
    fn metas(of: &Value) -> impl Iterator<Item = (String, (String, Value))> {
        let keys = of.as_object().unwrap().iter();
        keys.flat_map(|(key, group)| {
            let metas = group["metas"].as_array().unwrap();
            assert!(!metas.is_empty());
            metas.iter().map(|meta| (meta["phx_ref"].as_str().unwrap().to_owned(), (key.clone(), meta.clone())))
        })
    }
    let mut view: Option<BTreeMap<_, _>> = None;
    for heard in heard {
        match (heard, &mut view) {
            (Heard::State(state), None) => view = Some(metas(state).collect()),
            (Heard::State(_), Some(_)) => panic!("the state comes once"),
            (Heard::Diff(diff), Some(view)) => {
                let left: BTreeMap<_, _> = metas(&diff["leaves"]).collect();
                for (reference, meta) in &left {
                    assert_eq!(view.remove(reference).as_ref(), Some(meta), "who leaves was there");
                }
                for (reference, meta) in metas(&diff["joins"]) {
                    if let Some(previous) = meta.1.get("phx_ref_prev") {
                        assert!(left.contains_key(previous.as_str().unwrap()), "an update is one diff");
                    }
                    assert!(view.insert(reference, meta).is_none(), "who joins was not there");
                }
            }
            (Heard::Diff(_), None) | (Heard::Said(_), _) => {}
        }
    }
    view
}

fn said(heard: &[Heard]) -> Vec<u64> {
    heard.iter().filter_map(|heard| if let Heard::Said(number) = heard { Some(*number) } else { None }).collect()
}

/// One who does these steps; returns what it tracks in the end, with the seat that keeps it there.
async fn act(rooms: Arc<Rooms>, actor: u64, steps: Vec<Step>, ids: Arc<AtomicU64>) -> (Option<Seat>, Option<Value>) {
    let (mut seat, mut tracked, mut number) = (None, None, 0);
    for step in steps {
        match (step, &seat) {
            (Step::Enter, None) => {
                let id = ids.fetch_add(1, Ordering::Relaxed);
                let port = port(id, actor as usize % SHARDS, Version::V2, Stage::greeted()).0;
                let (key, user) = (format!("k{}", actor % 3).into(), format!("u{}", actor % 4).into());
                let entered = rooms.enter(public("a"), Member { port, rights: None, presence: true, key, user });
                entered.send_state().await;
                seat = Some(entered);
            }
            (Step::Leave, Some(_)) => (seat, tracked) = (None, None),
            (Step::Track(what), Some(seat)) => {
                let payload = json!({"actor": actor, "what": what});
                seat.track(raw(&payload.to_string())).await.unwrap();
                tracked = Some(payload);
            }
            (Step::Untrack, Some(seat)) => {
                seat.untrack().await.unwrap();
                tracked = None;
            }
            (Step::Say(to_self), Some(seat)) => {
                number += 1;
                let payload = (actor * 1_000_000 + number).to_string().into();
                seat.broadcast(Message::Text { payload }, to_self).await.unwrap();
            }
            (Step::Pause, _) => tokio::task::yield_now().await,
            _ => {}
        }
    }
    (seat, tracked)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Enter),
        1 => Just(Step::Leave),
        3 => (0u8..3).prop_map(Step::Track),
        1 => Just(Step::Untrack),
        4 => any::<bool>().prop_map(Step::Say),
        3 => Just(Step::Pause),
    ]
}

async fn run(actors: Vec<Vec<Step>>, window: Duration, places: usize) {
    let heards = Heards::default();
    let (queues, batches): (Vec<_>, Vec<_>) = (0..SHARDS).map(|_| mpsc::channel(places)).unzip();
    for batches in batches {
        drop(task::spawn("listener", listen(batches, heards.clone())));
    }
    let config = RoomConfig { presence_window: window, ..RoomConfig::default() };
    let (rooms, drain) = (Rooms::new(config, queues, Arc::default()), Drain::new());
    let keeper = task::spawn("rooms", rooms.clone().run(drain.clone()));
    // One on each shard who only listens.
    let mut observers = Vec::new();
    for shard in 0..SHARDS {
        let port = port(shard as u64, shard, Version::V1, Stage::greeted()).0;
        let (key, user) = ("observer".into(), "observer".into());
        let seat = rooms.enter(public("a"), Member { port, rights: None, presence: true, key, user });
        seat.send_state().await;
        observers.push(seat);
    }
    let ids = Arc::new(AtomicU64::new(SHARDS as u64));
    let actors: Vec<_> = actors.into_iter().enumerate().collect();
    let actors: Vec<_> = actors
        .into_iter()
        .map(|(actor, steps)| task::spawn("actor", act(rooms.clone(), actor as u64 + 1, steps, ids.clone())))
        .collect();
    let (mut seats, mut there) = (Vec::new(), Vec::new());
    for actor in actors {
        let (seat, tracked) = timeout(PATIENCE, actor).await.expect("in time").unwrap();
        seats.push(seat);
        there.extend(tracked.map(|payload| (format!("k{}", payload["actor"].as_u64().unwrap() % 3), payload)));
    }
    observers[0].broadcast(text("0"), true).await.unwrap();
    let expected: Vec<String> = sorted(there.into_iter());
    let settled = || {
        let heards = heards.lock().unwrap();
        let is_there = |heard: &Vec<Heard>| {
            let view = view(heard).into_iter().flatten().map(|(_, (key, mut meta))| {
                let meta_object = meta.as_object_mut().unwrap();
                meta_object.retain(|name, _| !name.starts_with("phx_ref"));
                (key, meta)
            });
            said(heard).last() == Some(&0) && sorted(view) == expected
        };
        let now = seats.iter().flatten().map(Seat::id).chain(0..SHARDS as u64);
        now.into_iter().all(|id| heards.get(&id).is_some_and(is_there))
    };
    let waited = timeout(PATIENCE, async {
        while !settled() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(waited.await.is_ok(), "all see {expected:?}: {:?}", heards.lock().unwrap());
    check_order(&heards.lock().unwrap());
    assert_eq!(rooms.metrics.presence_metas.get(), expected.len() as i64);
    drop((seats, observers));
    assert_eq!((rooms.metrics.rooms.get(), rooms.metrics.room_members.get()), (0, 0));
    assert_eq!(rooms.metrics.presence_metas.get(), 0);
    drain.drain();
    keeper.await.unwrap();
}

fn sorted(of: impl Iterator<Item = (String, Value)>) -> Vec<String> {
    let mut all: Vec<String> = of.map(|(key, meta)| format!("{key} {meta}")).collect();
    all.sort();
    all
}

/// The observers read the same in the same order; everybody else a part of that; of each sender all in its order.
fn check_order(heards: &HashMap<u64, Vec<Heard>>) {
    let all = said(&heards[&0]);
    for (id, heard) in heards {
        let numbers = said(heard);
        if *id < SHARDS as u64 {
            assert_eq!(numbers, all);
        }
        let mut rest = all.iter();
        assert!(numbers.iter().all(|number| rest.any(|other| other == number)), "{numbers:?} in {all:?}");
    }
    let mut last: HashMap<u64, u64> = HashMap::new();
    for number in all {
        let before = last.insert(number / 1_000_000, number % 1_000_000).unwrap_or(0);
        assert!(number == 0 || number % 1_000_000 == before + 1, "nothing is lost, and each comes once");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn whatever_they_do_all_read_one_order_and_see_the_same_presence(
        actors in prop::collection::vec(prop::collection::vec(step(), 1..60), 1..8),
        window in 0u64..4, places in 1usize..5,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
        runtime.block_on(run(actors, Duration::from_millis(window), places));
    }
}
