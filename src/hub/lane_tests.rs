//! Rows that wait for Postgres, and rows that don't wait for them.

use super::*;
use crate::change::Position;
use crate::policy::AskConfig;
use crate::resume::Cursor;

#[path = "frames_tests.rs"]
mod frames_tests;

/// Rows of kind `held` are judged as long as the test holds lock 7, those of kind `slow` take a moment, and while `trouble` has
/// a row, all take longer than Postgres may.
pub(super) const WAITING: &str = "create table waiting (id text primary key, user_id uuid, kind text);
    alter table waiting replica identity full; alter table waiting enable row level security;
    create table trouble (id int); grant select on trouble to authenticated;
    create function judge(kind text) returns bool language plpgsql as $$ begin
        if kind = 'held' then perform pg_advisory_xact_lock_shared(7); end if;
        if kind = 'slow' then perform pg_sleep(random() * 0.02); end if;
        if kind <> 'ends' and exists (select from public.trouble) then perform pg_sleep(60); end if;
        return true;
    end $$;
    create policy own on waiting for select to authenticated using (judge(kind) and user_id = auth.uid());
    alter publication supabase_realtime add table waiting;";

/// One thing that came for a channel: a row's id, or a notice.
type Came = (ChannelId, String);

/// In the order in which it came, up to where this says yes.
async fn came_until(bench: &mut Bench, mut enough: impl FnMut(&[Came]) -> bool) -> Vec<Came> {
    let mut came: Vec<Came> = Vec::new();
    while !enough(&came) {
        let batch = tokio::time::timeout(DEADLINE, bench.batches.recv()).await;
        for outgoing in batch.unwrap_or_else(|_| panic!("only {came:?} came")).expect("runs").items {
            match outgoing {
                Outgoing::Change(fanout) => {
                    let crate::change::Change::Insert { new } = &fanout.event.value().row.change else { continue };
                    let row = new.get(0).as_str().unwrap().to_owned();
                    came.extend(fanout.members.iter().map(|member| (member.port.id, row.clone())));
                }
                Outgoing::Notice(notice) => came.push((notice.port.id, notice.message.to_string())),
                _ => {}
            }
        }
    }
    came
}

fn has(came: &[Came], port: &Arc<Port>, row: &str) -> bool {
    came.iter().any(|(channel, what)| *channel == port.id && what == row)
}

fn of<'a>(came: &'a [Came], port: &Arc<Port>) -> Vec<&'a str> {
    came.iter().filter(|(channel, _)| *channel == port.id).map(|(_, what)| what.as_str()).collect()
}

pub(super) fn patient(adjust: impl FnOnce(&mut AskConfig)) -> HubConfig {
    let mut config = HubConfig::default();
    config.ask.statement_timeout = DEADLINE;
    config.ask.deadline = DEADLINE;
    adjust(&mut config.ask);
    config
}

#[tokio::test]
async fn a_question_without_an_answer_delays_its_own_channels_only_and_there_everything_is_in_order() {
    let mut bench = Bench::with(&format!("{OWNED}{WAITING}"), patient(|_| {})).await;
    let (slow, both, quick, other) = (port(), port(), port(), port());
    bench.subscribe(&slow, vec![entry(1, "waiting", None)], ALICE).await;
    bench.subscribe(&both, vec![entry(2, "waiting", None), entry(3, "owned", None)], ALICE).await;
    bench.subscribe(&quick, vec![entry(4, "owned", None)], ALICE).await;
    bench.subscribe(&other, vec![entry(5, "waiting", None)], BOB).await;
    let (owned, waiting) = (bench.relation("owned").await, bench.relation("waiting").await);
    bench.database.run("select pg_advisory_lock(7)").await;
    bench.insert(&waiting, &[vec!["1", ALICE, "held"]]);
    bench.insert(&owned, &[vec!["2", ALICE, "x"], vec!["3", BOB, "x"], vec!["4", ALICE, "x"]]);
    let came = came_until(&mut bench, |came| has(came, &quick, "4")).await;
    assert_eq!((of(&came, &quick), came.len()), (vec!["2", "4"], 2), "{came:?}");
    assert!(bench.metrics.lane_passed.get() >= 2);
    // A new history: who waits is told of the gap behind what he waits for.
    bench.writer.begin_epoch(Epoch { system_identifier: 1, incarnation: 2 }, Lsn(bench.lsn + 100)).unwrap();
    bench.lsn += 100;
    bench.insert(&waiting, &[vec!["5", BOB, "q"], vec!["6", ALICE, "q"]]);
    bench.insert(&owned, &[vec!["7", ALICE, "x"]]);
    let came = came_until(&mut bench, |came| has(came, &quick, "7")).await;
    assert_eq!(of(&came, &both).len() + of(&came, &slow).len(), 0, "{came:?}");
    bench.database.run("select pg_advisory_unlock(7)").await;
    let came = came_until(&mut bench, |came| has(came, &both, "7") && has(came, &slow, "6")).await;
    let gap = |what: &&str| !what.starts_with("Gap:");
    assert_eq!(of(&came, &both).into_iter().filter(gap).collect::<Vec<_>>(), ["1", "2", "4", "6", "7"]);
    assert!(of(&came, &both)[3].starts_with("Gap:"), "{came:?}");
    assert!(of(&came, &slow)[1].starts_with("Gap:") && of(&came, &slow).len() == 3, "{came:?}");
    bench.stop().await;
}

#[tokio::test]
async fn whatever_the_order_of_the_answers_each_channel_has_all_its_rows_in_commit_order() {
    let mut bench = Bench::with(&format!("{OWNED}{WAITING}"), patient(|_| {})).await;
    let ports: Vec<_> = (0..4).map(|_| port()).collect();
    let tables = [vec!["waiting"], vec!["owned", "waiting"], vec!["owned"], vec!["waiting", "owned"]];
    let users = [ALICE, ALICE, ALICE, BOB];
    for (n, port) in ports.iter().enumerate() {
        let entries = tables[n].iter().enumerate().map(|(id, table)| entry(id as i32, table, None)).collect();
        bench.subscribe(port, entries, users[n]).await;
    }
    let (owned, waiting) = (bench.relation("owned").await, bench.relation("waiting").await);
    let mut owed: Vec<Vec<String>> = vec![Vec::new(); 4];
    for n in 0..150 {
        let (user, id) = (if n % 3 == 0 { BOB } else { ALICE }, n.to_string());
        let (relation, table) = if n % 5 < 2 { (&owned, "owned") } else { (&waiting, "waiting") };
        bench.insert(relation, &[vec![&id, user, if n % 2 == 0 { "slow" } else { "q" }]]);
        for (at, owed) in owed.iter_mut().enumerate() {
            if users[at] == user && tables[at].contains(&table) {
                owed.push(id.clone());
            }
        }
    }
    let all = |came: &[Came]| owed.iter().zip(&ports).all(|(owed, port)| of(came, port).len() >= owed.len());
    let came = came_until(&mut bench, all).await;
    for (owed, port) in owed.iter().zip(&ports) {
        assert_eq!(&of(&came, port), owed);
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_policy_that_keeps_timing_out_is_left_alone_and_taken_up_again_and_nobody_else_feels_it() {
    let ask = |ask: &mut AskConfig| {
        ask.statement_timeout = Duration::from_millis(100);
        ask.suspension = Duration::from_millis(300);
    };
    let mut bench = Bench::with(&format!("{OWNED}{WAITING}{ASKED}"), patient(ask)).await;
    let (alice, quick, asked) = (port(), port(), port());
    bench.subscribe(&alice, vec![entry(1, "waiting", None)], ALICE).await;
    bench.subscribe(&quick, vec![entry(2, "owned", None)], ALICE).await;
    bench.subscribe(&asked, vec![entry(3, "asked", None)], ALICE).await;
    let relations = [bench.relation("waiting").await, bench.relation("owned").await, bench.relation("asked").await];
    let [waiting, owned, other] = &relations;
    bench.database.run("insert into trouble values (1)").await;
    let ids: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    bench.insert(waiting, &ids.iter().map(|id| vec![id.as_str(), ALICE, "q"]).collect::<Vec<_>>());
    bench.insert(owned, &[vec!["owned", ALICE, "q"]]);
    bench.insert(other, &[vec!["asked", ALICE, "q"]]);
    let metrics = bench.metrics.clone();
    let all = |came: &[Came]| metrics.undecided_gaps.get() == 100 && !of(came, &alice).is_empty();
    let came = came_until(&mut bench, |came| all(came) && has(came, &asked, "asked")).await;
    assert!(of(&came, &alice).iter().all(|what| what.starts_with("Gap:")), "{came:?}");
    assert_eq!((of(&came, &quick), of(&came, &asked)), (vec!["owned"], vec!["asked"]), "others are judged");
    let suspended = [("reason", "timeout")];
    assert!(bench.metrics.ask_suspensions.get_or_create(&suspended).get() >= 1);
    assert!(bench.metrics.ask_rounds.get() < 20, "{} questions", bench.metrics.ask_rounds.get());
    // Nothing tells the relay that it works again; one question now and then does.
    bench.database.run("delete from trouble").await;
    let started = tokio::time::Instant::now();
    for n in 0.. {
        assert!(started.elapsed() < DEADLINE, "it is never asked about again");
        let id = format!("after {n}");
        bench.insert(waiting, &[vec![&id, ALICE, "q"]]);
        let came = came_until(&mut bench, |came| !of(came, &alice).is_empty()).await;
        if of(&came, &alice).iter().any(|what| !what.starts_with("Gap:")) {
            break;
        }
    }
    bench.insert(waiting, &[vec!["still", ALICE, "q"]]);
    came_until(&mut bench, |came| has(came, &alice, "still")).await;
    let undecided = metrics.undecided_gaps.get();
    bench.insert(waiting, &[vec!["end", ALICE, "q"]]);
    came_until(&mut bench, |came| has(came, &alice, "end")).await;
    assert_eq!(metrics.undecided_gaps.get(), undecided);
    bench.stop().await;
}

#[tokio::test]
async fn a_connection_that_ends_while_it_is_asked_costs_no_row() {
    let mut bench = Bench::with(&format!("{OWNED}{WAITING}"), patient(|_| {})).await;
    let (alice, bob) = (port(), port());
    bench.subscribe(&alice, vec![entry(1, "waiting", None)], ALICE).await;
    bench.subscribe(&bob, vec![entry(2, "waiting", None)], BOB).await;
    let waiting = bench.relation("waiting").await;
    bench.database.run("select pg_advisory_lock(7)").await;
    bench.insert(&waiting, &[vec!["1", ALICE, "held"], vec!["2", BOB, "held"]]);
    let holding = "select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity
                   where datname = current_database() and wait_event = 'advisory'";
    let started = tokio::time::Instant::now();
    let mut ended = 0;
    while ended < 2 {
        assert!(started.elapsed() < DEADLINE, "nothing is asked");
        ended += bench.database.client.query_one(holding, &[]).await.unwrap().get::<_, i64>(0);
    }
    bench.database.run("select pg_advisory_unlock(7)").await;
    bench.insert(&waiting, &[vec!["3", ALICE, "q"], vec!["4", BOB, "q"]]);
    let came = came_until(&mut bench, |came| has(came, &alice, "3") && has(came, &bob, "4")).await;
    assert_eq!((of(&came, &alice), of(&came, &bob)), (vec!["1", "3"], vec!["2", "4"]));
    bench.stop().await;
}

#[tokio::test]
async fn a_slow_policy_has_no_more_rows_waiting_than_it_answers_in_a_few_seconds_and_each_other_is_told() {
    let slow = "create table slow (id text primary key, user_id uuid, kind text); alter table slow enable row level security;
        create policy own on slow for select to authenticated using (pg_sleep(0.2) is not null and user_id = auth.uid());
        alter publication supabase_realtime add table slow;";
    let mut bench = Bench::with(&format!("{OWNED}{ASKED}{slow}"), patient(|_| {})).await;
    let (alice, quick, asked) = (port(), port(), port());
    bench.subscribe(&alice, vec![entry(1, "slow", None)], ALICE).await;
    bench.subscribe(&quick, vec![entry(2, "owned", None)], ALICE).await;
    bench.subscribe(&asked, vec![entry(3, "asked", None)], ALICE).await;
    let tables = [bench.relation("slow").await, bench.relation("owned").await, bench.relation("asked").await];
    let [slow, owned, other] = &tables;
    // How slow it is must be known.
    bench.insert(slow, &[vec!["first", ALICE, "q"]]);
    came_until(&mut bench, |came| has(came, &alice, "first")).await;
    let began = tokio::time::Instant::now();
    let ids: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
    bench.insert(slow, &ids.iter().map(|id| vec![id.as_str(), ALICE, "q"]).collect::<Vec<_>>());
    bench.insert(owned, &[vec!["owned", ALICE, "q"]]);
    bench.insert(other, &[vec!["asked", ALICE, "q"]]);
    let came = came_until(&mut bench, |came| has(came, &quick, "owned") && has(came, &asked, "asked")).await;
    let metrics = bench.metrics.clone();
    let rows = |came: &[Came]| -> Vec<String> {
        of(came, &alice).into_iter().filter(|what| !what.starts_with("Gap:")).map(str::to_owned).collect()
    };
    let mut answered = rows(&came);
    assert!(answered.len() as u64 + metrics.undecided_gaps.get() < 1000, "the others' rows did not wait for it");
    while answered.len() as u64 + metrics.undecided_gaps.get() < 1000 {
        let came = came_until(&mut bench, |came| !of(came, &alice).is_empty()).await;
        answered.extend(rows(&came));
    }
    // All of them would take a minute at four places.
    assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
    assert!((20..=200).contains(&answered.len()), "{} of 1000 were answered", answered.len());
    assert!(answered.is_sorted_by_key(|id| id.parse::<u32>().unwrap()), "in order");
    bench.stop().await;
}

/// The same channel on another port.
fn anew(before: &Port) -> Arc<Port> {
    let Port { id, outbox, topic, join_ref, .. } = before;
    let (outbox, topic, join_ref, stage) =
        (outbox.clone(), topic.clone(), join_ref.clone(), Arc::new(Stage::greeted()));
    let (shard, version, place) = (before.shard, before.version, Place::default());
    Arc::new(Port { id: *id, outbox, shard, topic, version, join_ref, stage, place })
}

#[tokio::test]
async fn what_a_channel_waits_for_that_has_ended_is_not_for_the_one_that_begins_in_its_place() {
    let mut bench = Bench::with(WAITING, patient(|_| {})).await;
    let (first, second) = (port(), port());
    bench.subscribe(&first, vec![entry(1, "waiting", None)], ALICE).await;
    bench.subscribe(&second, vec![entry(2, "waiting", None)], ALICE).await;
    let waiting = bench.relation("waiting").await;
    bench.database.run("select pg_advisory_lock(7)").await;
    let position = Position { lsn: Lsn(bench.lsn), ordinal: u32::MAX };
    bench.insert(&waiting, &[vec!["1", ALICE, "held"]]);
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while bench.metrics.lane_channels.get() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "nobody waits for it");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // One goes on from before the row, the other is somebody else by now, and begins behind it.
    let epoch = Epoch { system_identifier: 1, incarnation: 1 }.tag();
    let since = Entry { start: Start::After(Cursor { epoch, position }), ..entry(1, "waiting", None) };
    let (goes_on, begins) = (anew(&first), anew(&second));
    bench.hub.leave(first.id).await;
    bench.subscribe(&goes_on, vec![since], ALICE).await;
    bench.hub.leave(second.id).await;
    bench.subscribe(&begins, vec![entry(2, "waiting", None)], BOB).await;
    bench.database.run("select pg_advisory_unlock(7)").await;
    bench.insert(&waiting, &[vec!["2", ALICE, "q"], vec!["3", BOB, "q"]]);
    let came = came_until(&mut bench, |came| has(came, &goes_on, "2") && has(came, &begins, "3")).await;
    assert_eq!((of(&came, &goes_on), of(&came, &begins)), (vec!["1", "2"], vec!["3"]));
    // Nothing of it is left.
    while bench.metrics.lane_rows.get() + bench.metrics.lane_size.get() + bench.metrics.lane_channels.get() > 0 {
        assert!(tokio::time::Instant::now() < deadline + DEADLINE, "rows are left in the lane");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    bench.stop().await;
}
