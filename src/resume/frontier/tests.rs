//! Tabs that come and go, against what each of them really has; bounds and ends.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::change::Lsn;
use crate::claims::Principal;

mod bounds;
mod surety;

const EPOCH: u64 = 7;

fn at(lsn: u64) -> Cursor {
    Cursor { epoch: EPOCH, position: Position { lsn: Lsn(lsn), ordinal: 0 } }
}

fn key_of(subject: &str, device: &str, entry: &str) -> Key {
    let claims = json!({ "role": "authenticated", "sub": subject });
    Key::new(&Principal::new(claims.as_object().unwrap().clone(), 0).unwrap(), device, "realtime:t", entry)
}

fn key() -> Key {
    key_of("alice", "phone", "{}")
}

struct Stage {
    frontiers: Arc<Frontiers>,
    metrics: Arc<Metrics>,
    now: Instant,
}

impl Stage {
    fn new(config: FrontierConfig) -> Stage {
        let metrics = Arc::new(Metrics::new());
        Stage { frontiers: Frontiers::in_memory(config, metrics.clone()), metrics, now: Instant::now() }
    }

    fn join(&self, key: Key, otherwise: u64) -> (Option<u64>, Arc<Tracked>) {
        self.join_since(key, None, otherwise)
    }

    fn join_since(&self, key: Key, since: Option<&str>, otherwise: u64) -> (Option<u64>, Arc<Tracked>) {
        let wanted = [Wanted { key, since, otherwise: Some(at(otherwise)) }];
        let (starts, tracked) = self.frontiers.join(&wanted, Some(EPOCH), &Arc::default(), self.now);
        (starts[0].map(|start| start.position.lsn.0), tracked)
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.frontiers.with(|access| access.expire(self.now));
    }

    fn end(&self, tracked: &Tracked) {
        tracked.end(false, self.now, self.now);
    }

    fn dropped(&self, reason: &'static str) -> u64 {
        self.metrics.frontiers_dropped.get_or_create(&[("reason", reason)]).get()
    }
}

#[test]
fn a_device_goes_on_where_it_was_and_a_new_one_where_the_stream_is() {
    let stage = Stage::new(FrontierConfig::default());
    let (start, tracked) = stage.join(key(), 10);
    assert_eq!(start, None);
    tracked.handles().advance(at(20), true);
    stage.end(&tracked);
    let (start, tracked) = stage.join(key(), 90);
    assert_eq!(start, Some(20));
    // Without a receipt it is still there.
    drop(tracked);
    assert_eq!(stage.join(key(), 90).0, Some(20));
    for other in [key_of("bob", "phone", "{}"), key_of("alice", "tablet", "{}"), key_of("alice", "phone", "{1}")] {
        assert_eq!(stage.join(other, 90).0, None);
    }
}

#[test]
fn who_joined_and_received_nothing_begins_at_his_join() {
    let stage = Stage::new(FrontierConfig::default());
    stage.end(&stage.join(key(), 10).1);
    assert_eq!(stage.join(key(), 90).0, Some(10));
}

#[test]
fn a_second_tab_begins_where_the_first_one_is() {
    let stage = Stage::new(FrontierConfig::default());
    let (_, one) = stage.join(key(), 10);
    one.handles().advance(at(30), true);
    let (start, two) = stage.join(key(), 90);
    assert_eq!(start, Some(30));
    two.handles().advance(at(50), true);
    assert_eq!(stage.join(key(), 90).0, Some(30));
}

#[test]
fn a_socket_that_was_dead_when_its_successor_came_leaves_nothing_behind() {
    let mut stage = Stage::new(FrontierConfig::default());
    let (_, old) = stage.join(key(), 10);
    old.handles().advance(at(30), true);
    let seen = stage.now;
    stage.pass(5);
    let (start, new) = stage.join(key(), 90);
    assert_eq!(start, Some(30));
    new.handles().advance(at(60), true);
    stage.pass(40);
    old.end(false, seen, stage.now);
    stage.end(&new);
    assert_eq!(stage.join(key(), 90).0, Some(60));
}

#[test]
fn a_tab_that_lived_on_after_the_other_came_keeps_its_place() {
    let mut stage = Stage::new(FrontierConfig::default());
    let (_, one) = stage.join(key(), 10);
    stage.pass(5);
    let (_, two) = stage.join(key(), 90);
    two.handles().advance(at(60), true);
    stage.pass(5);
    one.end(false, stage.now, stage.now);
    assert_eq!(stage.join(key(), 90).0, Some(10));
}

#[test]
fn a_left_channel_is_kept_for_a_minute() {
    let mut stage = Stage::new(FrontierConfig::default());
    let (_, tracked) = stage.join(key(), 10);
    tracked.handles().advance(at(20), true);
    tracked.end(true, stage.now, stage.now);
    stage.pass(59);
    let (start, tracked) = stage.join(key(), 90);
    assert_eq!(start, Some(20));
    tracked.end(true, stage.now, stage.now);
    stage.pass(60);
    assert_eq!(stage.join(key(), 90).0, None);
}

#[test]
fn a_receipt_that_comes_after_the_end_still_counts() {
    let stage = Stage::new(FrontierConfig::default());
    let (_, tracked) = stage.join(key(), 10);
    stage.end(&tracked);
    tracked.handles().advance(at(20), true);
    let (start, new) = stage.join(key(), 90);
    assert_eq!(start, Some(20));
    // But not for another connection's.
    tracked.handles().advance(at(70), true);
    stage.end(&new);
    assert_eq!(stage.join(key(), 90).0, Some(20));
}

#[test]
fn a_frontier_never_goes_back_within_a_history() {
    let stage = Stage::new(FrontierConfig::default());
    let (_, tracked) = stage.join(key(), 10);
    tracked.handles().advance(at(20), true);
    tracked.handles().advance(at(15), true);
    stage.end(&tracked);
    assert_eq!(stage.join(key(), 90).0, Some(20));
}

#[test]
fn of_several_histories_the_other_one_is_the_lowest() {
    let stage = Stage::new(FrontierConfig::default());
    let (_, old) = stage.join(key(), 10);
    old.handles().advance(Cursor { epoch: EPOCH + 1, ..at(500) }, true);
    let (start, _new) = stage.join(key(), 90);
    assert_eq!(start, Some(500));
}

#[test]
fn the_same_since_goes_on_and_another_begins_where_it_says() {
    let stage = Stage::new(FrontierConfig::default());
    let (start, tracked) = stage.join_since(key(), Some("\"c1\""), 10);
    assert_eq!(start, None);
    tracked.handles().advance(at(20), true);
    stage.end(&tracked);
    let (start, tracked) = stage.join_since(key(), Some("\"c1\""), 10);
    assert_eq!(start, Some(20));
    stage.end(&tracked);
    // It knows better.
    let (start, tracked) = stage.join_since(key(), Some("\"c2\""), 40);
    assert_eq!(start, None);
    stage.end(&tracked);
    let (start, tracked) = stage.join_since(key(), Some("\"c2\""), 40);
    assert_eq!(start, Some(40));
    stage.end(&tracked);
    assert_eq!(stage.frontiers.count_all(), (0, 1), "they don't pile up");
    assert_eq!(stage.join(key(), 90).0, Some(40));
}

#[test]
fn an_entry_named_twice_has_one_frontier() {
    let stage = Stage::new(FrontierConfig::default());
    let wanted = [Wanted { key: key(), since: None, otherwise: Some(at(10)) }; 2];
    let (starts, tracked) = stage.frontiers.join(&wanted, Some(EPOCH), &Arc::default(), stage.now);
    assert_eq!(starts, [None, None]);
    assert_eq!(stage.frontiers.count_all(), (1, 0));
    stage.end(&tracked);
    let (starts, _tracked) = stage.frontiers.join(&wanted, Some(EPOCH), &Arc::default(), stage.now);
    assert_eq!(starts, [Some(at(10)); 2]);
}

#[test]
fn what_is_kept_ends_and_is_counted() {
    let mut stage = Stage::new(FrontierConfig { keep: Duration::from_secs(100), ..FrontierConfig::default() });
    stage.end(&stage.join(key(), 10).1);
    stage.pass(99);
    assert_eq!(stage.frontiers.count_all(), (0, 1));
    stage.pass(1);
    assert_eq!((stage.frontiers.count_all(), stage.dropped("expired")), ((0, 0), 1));
}

#[test]
fn who_comes_back_again_and_again_takes_no_more_memory_each_time() {
    let mut stage = Stage::new(FrontierConfig::default());
    // Whoever stays away is first in the queue, for two days.
    stage.end(&stage.join(key_of("bob", "drawer", "{}"), 5).1);
    for _ in 0..5000 {
        let tracked = stage.join(key(), 10).1;
        stage.pass(1);
        tracked.end(false, stage.now, stage.now);
    }
    assert_eq!(stage.frontiers.count_all(), (0, 2));
    let ends = stage.frontiers.registry().ends();
    assert!(ends <= 2 * 64, "{ends} ends of two orphans");
    // And they still end when they should.
    stage.pass(48 * 3600 - 5000);
    assert_eq!((stage.frontiers.count_all(), stage.dropped("expired")), ((0, 1), 1));
    stage.pass(5000);
    assert_eq!((stage.frontiers.count_all(), stage.dropped("expired")), ((0, 0), 2));
}

#[test]
fn what_is_saved_is_what_there_is() {
    let stage = Stage::new(FrontierConfig::default());
    let take = |stage: &Stage| stage.frontiers.with(|access| access.take_unsaved(100));
    let (_, tracked) = stage.join(key(), 10);
    let first = take(&stage);
    assert_eq!((first.rows.len(), first.rows[0].at, first.gone.len()), (1, at(10), 0));
    // Quiet progress waits, receipts of rows don't.
    tracked.handles().advance(at(20), false);
    assert!(take(&stage).rows.is_empty());
    tracked.handles().advance(at(30), true);
    let second = take(&stage);
    assert_eq!(second.rows[0].at, at(30));
    tracked.handles().advance(at(31), false);
    assert!(take(&stage).rows.is_empty());
    // What could not be saved comes again, as it is by then.
    stage.frontiers.with(|access| access.not_saved(second));
    assert_eq!(take(&stage).rows[0].at, at(31));
    tracked.handles().advance(at(40), false);
    stage.frontiers.with(|access| access.save_behind(EPOCH, at(31).position, stage.now));
    assert!(take(&stage).rows.is_empty());
    stage.frontiers.with(|access| access.save_behind(EPOCH, at(32).position, stage.now));
    assert_eq!(take(&stage).rows[0].at, at(40));
    // A rejoin writes nothing: the row is the same.
    stage.end(&tracked);
    let (_, tracked) = stage.join(key(), 90);
    assert!(take(&stage).rows.is_empty());
    tracked.end(true, stage.now, stage.now);
    assert!(take(&stage).rows[0].left);
    stage.frontiers.with(|access| access.expire(stage.now + Duration::from_secs(61)));
    assert_eq!(take(&stage).gone, [(key(), 0)]);
}

#[test]
fn what_was_saved_is_loaded_and_what_is_too_old_is_not() {
    let mut stage = Stage::new(FrontierConfig::default());
    let row = |device: &str, left| Row { key: key_of("alice", device, "{}"), tab: 3, at: at(10), since: None, left };
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let rows = vec![(row("old", false), hours(49)), (row("left", true), hours(1)), (row("phone", false), hours(47))];
    stage.frontiers.with(|access| access.load(rows, false, stage.now));
    assert_eq!(stage.frontiers.count_all(), (0, 1));
    let gone = stage.frontiers.with(|access| access.take_unsaved(100)).gone;
    assert_eq!(gone, [(key_of("alice", "old", "{}"), 3), (key_of("alice", "left", "{}"), 3)]);
    let (start, tracked) = stage.join(key(), 90);
    assert_eq!(start, Some(10));
    stage.end(&tracked);
    stage.pass(47 * 3600);
    assert_eq!(stage.join(key(), 90).0, Some(10), "its time began anew");
}

/// What happens to one tab.
#[derive(Debug, Clone)]
enum Act {
    /// Its connection ends, noticed at once or not.
    Cut { tab: usize, noticed: bool },
    /// It comes back, if it is away.
    Return { tab: usize },
    /// The stream goes on, and those who are there receive and maybe receipt it.
    Go { receipts: Vec<bool> },
    /// What was not noticed is.
    Notice,
}

fn act(tabs: usize) -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0..tabs, any::<bool>()).prop_map(|(tab, noticed)| Act::Cut { tab, noticed }),
        4 => (0..tabs).prop_map(|tab| Act::Return { tab }),
        4 => prop::collection::vec(any::<bool>(), tabs).prop_map(|receipts| Act::Go { receipts }),
        1 => Just(Act::Notice),
    ]
}

struct Tab {
    /// What it really has.
    has: u64,
    line: Option<(Arc<Tracked>, Instant)>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn tabs_that_come_back_in_any_order_lose_nothing(acts in prop::collection::vec(act(3), 1..60)) {
        let mut stage = Stage::new(FrontierConfig::default());
        let mut end = 10;
        let mut unnoticed: Vec<(Arc<Tracked>, Instant)> = Vec::new();
        let mut tabs: Vec<Tab> = (0..3).map(|_| Tab { has: end, line: Some((stage.join(key(), end).1, stage.now)) }).collect();
        stage.pass(1);
        tabs.iter().filter_map(|tab| tab.line.as_ref()).for_each(|(tracked, _)| tracked.handles().alive(stage.now));
        tabs.iter_mut().filter_map(|tab| tab.line.as_mut()).for_each(|(_, seen)| *seen = stage.now);
        for act in acts {
            stage.pass(1);
            match act {
                Act::Cut { tab, noticed } => {
                    let Some(line) = tabs[tab].line.take() else { continue };
                    if noticed {
                        line.0.end(false, line.1, stage.now);
                    } else {
                        unnoticed.push(line);
                    }
                }
                Act::Return { tab } if tabs[tab].line.is_none() => {
                    let (start, tracked) = stage.join(key(), end);
                    let start = start.unwrap_or(end);
                    prop_assert!(start <= tabs[tab].has, "begins at {} and has {}", start, tabs[tab].has);
                    tabs[tab].line = Some((tracked, stage.now));
                    stage.pass(1);
                    // They are asked whether they are there.
                    tabs.iter_mut().filter_map(|tab| tab.line.as_mut()).for_each(|(tracked, seen)| {
                        *seen = stage.now;
                        tracked.handles().alive(stage.now);
                    });
                }
                Act::Return { .. } => {}
                Act::Go { receipts } => {
                    end += 10;
                    for (tab, receipt) in tabs.iter_mut().zip(receipts) {
                        let Some((tracked, seen)) = &mut tab.line else { continue };
                        tab.has = end;
                        *seen = stage.now;
                        if receipt {
                            tracked.handles().advance(at(end), true);
                        }
                    }
                }
                Act::Notice => {
                    unnoticed.drain(..).for_each(|(tracked, seen)| tracked.end(false, seen, stage.now));
                    let (live, orphans) = stage.frontiers.count_all();
                    prop_assert!(live + orphans <= 3, "they pile up: {} and {}", live, orphans);
                }
            }
        }
    }

    #[test]
    fn a_single_client_repeats_only_what_was_not_receipted(acts in prop::collection::vec(act(1), 1..60)) {
        let mut stage = Stage::new(FrontierConfig::default());
        let (mut end, mut receipted) = (10, 10);
        let mut unnoticed: Vec<(Arc<Tracked>, Instant)> = Vec::new();
        let mut line = Some((stage.join(key(), end).1, stage.now));
        for act in acts {
            stage.pass(1);
            match act {
                Act::Cut { noticed, .. } => {
                    let Some(line) = line.take() else { continue };
                    // Of a series of dead sockets, each begins where the one before it may have been.
                    if noticed || !unnoticed.is_empty() {
                        line.0.end(false, line.1, stage.now);
                    } else {
                        unnoticed.push(line);
                    }
                }
                Act::Return { .. } if line.is_none() => {
                    let (start, tracked) = stage.join(key(), end);
                    // While dead sockets are taken for living tabs, they count.
                    if unnoticed.is_empty() {
                        prop_assert_eq!(start, Some(receipted));
                    }
                    prop_assert!(start.is_some_and(|start| start <= receipted));
                    line = Some((tracked, stage.now));
                }
                Act::Return { .. } => {}
                Act::Go { receipts } => {
                    end += 10;
                    let Some((tracked, seen)) = &mut line else { continue };
                    *seen = stage.now;
                    if receipts[0] {
                        tracked.handles().advance(at(end), true);
                        receipted = end;
                    }
                }
                Act::Notice => unnoticed.drain(..).for_each(|(tracked, seen)| tracked.end(false, seen, stage.now)),
            }
        }
    }
}

impl Stage {
    /// What is to be saved is; the rows.
    fn save(&self) -> Vec<Row> {
        self.frontiers.with(|access| {
            let unsaved = access.take_unsaved(1000);
            access.saved(&unsaved, self.now);
            unsaved.rows
        })
    }

    fn load(&self, rows: Vec<Row>, stale: bool) {
        let rows = rows.into_iter().map(|row| (row, Duration::ZERO)).collect();
        self.frontiers.with(|access| access.load(rows, stale, self.now));
    }
}

/// It counted as saved although nobody had written it, and was lost with the process.
#[test]
fn what_was_on_its_way_when_another_relay_took_over_is_saved_again_afterwards() {
    let stage = Stage::new(FrontierConfig::default());
    let (_, tracked) = stage.join(key(), 10);
    // Taken, and refused: another relay owns the table.
    assert_eq!(stage.frontiers.with(|access| access.take_unsaved(1000)).rows.len(), 1);
    stage.load(Vec::new(), true);
    assert_eq!(stage.save().len(), 1);
    assert!(tracked.is_safe());
}

/// Two rows with one number in one statement, which fails for good.
#[test]
fn numbers_of_tabs_stay_apart_whatever_another_relay_has_saved() {
    let stage = Stage::new(FrontierConfig::default());
    let tabs: Vec<_> = (0..4).map(|_| stage.join(key(), 10).1).collect();
    // The second is gone for good: 0, 2 and 3 are left.
    tabs[1].end(true, stage.now, stage.now);
    let row = |tab| Row { key: key(), tab, at: at(5), since: None, left: false };
    stage.load(vec![row(2)], true);
    let mut numbers: Vec<i32> = stage.save().iter().map(|row| row.tab).collect();
    numbers.sort_unstable();
    assert!(numbers.len() >= 3 && numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
}

/// It was written once and then was right for days, until a restart found it too old; what came meanwhile was lost.
#[test]
fn the_place_of_a_device_that_is_there_does_not_grow_old_in_the_table() {
    let mut stage = Stage::new(FrontierConfig::default());
    let (_, tracked) = stage.join(key(), 10);
    assert_eq!(stage.save().len(), 1);
    let behind = |stage: &Stage| stage.frontiers.with(|access| access.save_behind(EPOCH, at(0).position, stage.now));
    stage.pass(23 * 3600);
    behind(&stage);
    assert_eq!(stage.save().len(), 0);
    stage.pass(2 * 3600);
    behind(&stage);
    assert_eq!(stage.save().len(), 1);
    // Gone, it is forgotten in time.
    stage.end(&tracked);
    stage.pass(25 * 3600);
    behind(&stage);
    assert_eq!(stage.save().len(), 0);
}

#[test]
fn while_nothing_can_be_saved_what_waits_for_it_does_not_grow_with_time() {
    let stage = Stage::new(FrontierConfig { most: 10, ..FrontierConfig::default() });
    for n in 0..1000 {
        let (_, tracked) = stage.join(key_of(&format!("user {n}"), "phone", "{}"), 10);
        stage.end(&tracked);
    }
    let unsaved = stage.frontiers.with(|access| access.unsaved());
    assert!(unsaved <= 10, "{unsaved}");
}

#[test]
fn a_join_is_safe_when_its_first_place_is_saved_or_a_known_one_was() {
    let stage = Stage::new(FrontierConfig::default());
    stage.frontiers.saving(true);
    let (_, tracked) = stage.join(key(), 10);
    assert!(!tracked.is_safe());
    // On its way is not there.
    let unsaved = stage.frontiers.with(|access| access.take_unsaved(1000));
    assert!(!tracked.is_safe());
    stage.frontiers.with(|access| access.saved(&unsaved, stage.now));
    assert!(tracked.is_safe());
    let (_, more) = stage.join(key(), 90);
    assert!(more.is_safe(), "a tab more");
    stage.save();
    stage.end(&tracked);
    stage.end(&more);
    assert!(stage.join(key(), 90).1.is_safe(), "it is back");
    let (_, other) = stage.join(key_of("bob", "phone", "{}"), 90);
    assert!(!other.is_safe());
    // Nobody waits for what can't be.
    stage.frontiers.saving(false);
    assert!(other.is_safe());
}

#[test]
fn what_is_gone_leaves_the_table_when_what_took_its_place_is_there() {
    let stage = Stage::new(FrontierConfig::default());
    let (_, one) = stage.join(key(), 10);
    stage.save();
    // Another socket of the same client: the first had died.
    let mut others: Vec<_> = (0..5).map(|n| stage.join(key_of("bob", "phone", &n.to_string()), 10).1).collect();
    others.push(stage.join(key(), 10).1);
    stage.end(&one);
    let first = stage.frontiers.with(|access| access.take_unsaved(3));
    assert_eq!((first.gone.len(), first.rows.len()), (0, 3));
    let second = stage.frontiers.with(|access| access.take_unsaved(3));
    assert_eq!((second.gone.len(), second.rows.len()), (1, 3));
    assert!(second.rows.iter().any(|row| row.key == key()));
}

/// The table had a later place under its number, and what vouched for the earlier one went.
#[test]
fn a_tab_that_goes_back_to_the_lowest_place_is_saved_there() {
    let mut stage = Stage::new(FrontierConfig::default());
    let (_, one) = stage.join(key(), 10);
    stage.pass(1);
    let (_, two) = stage.join(key(), 10);
    stage.pass(1);
    one.handles().alive(stage.now);
    two.handles().advance(at(20), true);
    stage.save();
    stage.end(&one);
    stage.end(&two);
    let (start, _three) = stage.join(key(), 90);
    assert_eq!(start, Some(10));
    assert_eq!(stage.save().iter().map(|row| row.at).collect::<Vec<_>>(), [at(10)]);
}

#[test]
fn the_last_key_can_move_alone() {
    let stage = Stage::new(FrontierConfig::default());
    let wanted = ["rows", "messages"].map(|entry| {
        let key = key_of("alice", "phone", entry);
        Wanted { key, since: None, otherwise: Some(at(5)) }
    });
    let (_, tracked) = stage.frontiers.join(&wanted, Some(EPOCH), &Arc::default(), stage.now);
    tracked.handles().advance_last(at(9), true);
    let places = wanted.map(|wanted| stage.frontiers.peek(&wanted.key));
    assert_eq!(places, [Some(at(5)), Some(at(9))]);
}
