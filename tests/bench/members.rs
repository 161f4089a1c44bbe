//! What it costs to keep the rights of many members of private channels true.
//!
//! ```text
//! cargo test --release --lib hub::members::tests::bench -- --nocapture --test-threads=1
//! ```
//!
//! A module of the hub's own tests, since a sweep is the hub's own affair. Everything runs on one core, as the hub does. A sweep
//! begins at once, or 100 ms after the one of its kind before; between two slices of it the hub does what else there is to do. So a
//! right is what it should be 100 ms and a whole sweep after the commit at the latest, on an idle hub: one of those whom the
//! commit can concern, or of everybody, where that is not known. The times that were seen are in the README.

use std::time::Instant as Clock;

use super::*;

const ROOMS: usize = 1000;
/// All are in it, and a row says that it is open.
const HALL: &str = "hall";

/// What a policy for reading asks of a member's row.
const FORMS: [(&str, &str); 3] = [
    ("the topic is a column", "m.name = realtime.topic()"),
    ("a part of the topic, cast", "m.room = split_part(topic, ':', 2)::bigint"),
    ("the column with a prefix", "'room:' || m.room::text = (select realtime.topic())"),
];

fn topic(n: usize) -> String {
    format!("room:{}", n % ROOMS)
}

fn user(n: usize) -> String {
    format!("00000000-0000-4000-8000-{n:012x}")
}

/// The whole of a sweep, and the longest of its slices.
fn swept(desk: &mut Desk) -> (Duration, Duration) {
    (desk.members.swept_at, desk.members.looked_at) = (None, None);
    let (start, mut longest) = (Clock::now(), Duration::ZERO);
    loop {
        let slice = Clock::now();
        let more = desk.members.sweep(&desk.facts, &desk.metrics);
        longest = longest.max(slice.elapsed());
        if !more {
            return (start.elapsed(), longest);
        }
    }
}

fn show(what: &str, count: usize, (whole, longest): (Duration, Duration)) {
    let each = whole.as_nanos() / count as u128;
    println!("{what:<66} {whole:>10.1?}  {each:>6} ns a member  longest slice {longest:.1?}");
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Commits of a second, and how long they go on.
const RATE: u32 = 1000;
const LASTS: Duration = Duration::from_secs(if cfg!(debug_assertions) { 1 } else { 5 });

/// Each commit puts one member out or lets him in again, however long the sweeps take. `joins`: others come all the time, so that
/// everybody is looked at again and again for the sake of answers that are under way.
fn continuous(desk: &mut Desk, members: &[(Arc<Rights>, Arc<Notify>)], joins: bool) {
    let (start, mut commits, mut busy) = (Clock::now(), 0u32, Duration::ZERO);
    let mut waiting: Vec<(usize, Option<bool>, Clock)> = Vec::new();
    let mut times = Vec::new();
    while start.elapsed() < LASTS || !waiting.is_empty() {
        let turn = Clock::now();
        if start.elapsed() < LASTS && Duration::from_secs(1) * commits / RATE <= start.elapsed() {
            let n = commits as usize * 37 % members.len();
            let (room, name, user) = ((n % ROOMS).to_string(), topic(n), user(n));
            let is_in = members[n].0.allows(Right::ReadBroadcast);
            if !waiting.iter().any(|(other, ..)| *other == n) {
                desk.play(if is_in { '-' } else { '+' }, "room_members", &[&room, &name, &user]);
                waiting.push((n, Some(!is_in), turn));
            }
            commits += 1;
        }
        if joins {
            desk.members.dirty = true;
            desk.members.settling_until = Some(Instant::now() + Duration::from_secs(2));
        }
        let more = desk.members.sweep(&desk.facts, &desk.metrics);
        busy += turn.elapsed();
        waiting.retain(|(n, wanted, since)| {
            let waits = members[*n].0.get(Right::ReadBroadcast) != *wanted;
            if !waits {
                times.push(since.elapsed());
            }
            waits
        });
        if !more {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    desk.members.settling_until = None;
    let (most, share) =
        (times.iter().max().copied().unwrap_or_default(), busy.as_secs_f64() / start.elapsed().as_secs_f64());
    let what = if joins { "while others join" } else { "nobody joins" };
    let typical = median(times);
    println!(
        "  {RATE} commits/s, {what}: a right ends after {typical:.1?}, {most:.1?} at most; {:.0} % of a core",
        share * 100.0
    );
}

#[tokio::test]
async fn a_sweep_of_many_members() {
    println!();
    for (form, count) in FORMS.into_iter().zip([100_000; 3]).chain([(FORMS[0], 200_000)]) {
        measure(form, if cfg!(debug_assertions) { count / 50 } else { count }).await;
    }
}

async fn measure((form, condition): (&str, &str), count: usize) {
    let mut desk = Desk::new(&format!(
        "create table room_members (room bigint, name text, user_id uuid, primary key (room, user_id));
         create table open_halls (name text primary key);
         grant select on room_members, open_halls to authenticated;
         insert into room_members select n % {ROOMS}, 'room:' || n % {ROOMS},
             ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid from generate_series(0, {count} - 1) n;
         insert into open_halls values ('{HALL}');
         create policy r on realtime.messages for select to authenticated using (exists (
             select 1 from room_members m where m.user_id = auth.uid() and {condition}));
         create policy w on realtime.messages for insert to authenticated with check (exists (
             select 1 from open_halls h where '{HALL}' = h.name and realtime.topic() is not null));"
    ))
    .await;
    desk.load("room_members").await;
    desk.load("open_halls").await;
    let start = Clock::now();
    let members: Vec<_> = (0..count).map(|_| rights([YES, YES, YES, YES])).collect();
    let watches: Vec<Watch> =
        members.iter().enumerate().map(|(n, (rights, _))| desk.watch(&asking(&topic(n), &user(n)), rights)).collect();
    println!("{form}: {count} members watched in {:.1?}", start.elapsed());
    assert!(members.iter().all(|(rights, _)| all(rights) == [YES; 4]));

    // A row of one member, a commit each.
    let (mut sweeps, mut commits, mut longest, mut messages) = (Vec::new(), Vec::new(), Duration::ZERO, Vec::new());
    for n in (0..count).step_by(count / 10) {
        let (room, name, user) = ((n % ROOMS).to_string(), topic(n), user(n));
        let start = Clock::now();
        desk.play('-', "room_members", &[&room, &name, &user]);
        commits.push(start.elapsed());
        let start = Clock::now();
        assert!(!desk.may_read(&members[n].0));
        messages.push(start.elapsed());
        let (whole, slice) = swept(&mut desk);
        sweeps.push(whole);
        longest = longest.max(slice);
        assert_eq!(all(&members[n].0), [NO, NO, YES, YES]);
    }
    show("  one member's row goes: until his rights are gone", count, (median(sweeps), longest));
    println!("  the commit itself {:.1?}, a message to this member {:.1?}", median(commits), median(messages));
    for joins in [false, true] {
        continuous(&mut desk, &members, joins);
    }

    desk.members.dirty = true;
    let times = swept(&mut desk);
    show("  somebody has joined: until all were looked at", count, times);
    desk.members.plans.values_mut().for_each(Used::is_new_to_all);
    desk.members.dirty = true;
    let times = swept(&mut desk);
    show("  it is not known whom a change concerns: until all were judged", count, times);
    // A row that everybody's right to write rests on.
    desk.play('-', "open_halls", &[HALL]);
    let times = swept(&mut desk);
    show("  the row that all rest on goes: until all were told", count, times);
    assert!(members.iter().all(|(rights, _)| rights.get(Right::WriteBroadcast) == NO));

    // A commit that has nothing to do with them.
    let start = Clock::now();
    desk.members.note_facts(&desk.facts);
    println!("  a commit without facts {:.1?}", start.elapsed());
    drop(watches);
}
