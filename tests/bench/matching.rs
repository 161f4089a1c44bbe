//! What a change costs the hub, from the row to the batches for the shards, by the number of subscriptions.
//!
//! Three policies: the owner's column, a membership with a hundred members to a team, and two levels (organization, team,
//! member). Most subscribers are users of their own, each with one subscription, in teams that are all subscribed; the rows
//! that are measured go to 1, 10 and 100 recipients, a different team each time, as memory is slow where it was not just read.

use crate::catalog::{Catalog, Wanted};
use crate::filter::Predicate;
use crate::hub::crowd::Crowd;
use crate::policy::facts::{FactTable, Layout};

use super::*;

/// Unoptimized builds show that the work can be done.
const SIZES: &[u64] = if cfg!(debug_assertions) { &[1_000] } else { &[1_000, 100_000, 1_000_000] };
const RECIPIENTS: [u64; 3] = [1, 10, 100];
const TEAM: u64 = 100;
/// Different rows that are measured in turn: with all their recipients about as many as there are others in a small crowd.
fn rows_of(size: u64) -> u64 {
    (size / 100).clamp(8, 512)
}
/// Numbers of users and teams that are there for the measured rows only begin here.
const MEASURED: u64 = 1 << 40;

const SCHEMA: &str = "create table own (id bigint primary key, user_id uuid, body text);
    create table team_doc (id bigint primary key, team_id bigint, body text);
    create table org_doc (id bigint primary key, team_id bigint, body text);
    create table members (team_id bigint, user_id uuid, primary key (team_id, user_id));
    create table teams (id bigint primary key, org_id bigint);
    grant select on own, team_doc, org_doc, members, teams to authenticated;
    alter table own enable row level security; alter table team_doc enable row level security;
    alter table org_doc enable row level security;
    create policy p on own using (user_id = (select auth.uid()));
    create policy p on team_doc using (team_id in (select team_id from members where user_id = (select auth.uid())));
    create policy p on org_doc using (exists (select 1 from teams t join members m on m.team_id = t.org_id
        where t.id = org_doc.team_id and m.user_id = (select auth.uid())));
    alter publication supabase_realtime add table own, team_doc, org_doc;
    create publication rowcast_facts for table members, teams";

/// A policy, and by what its rows name those who get them.
#[derive(Clone, Copy, PartialEq)]
enum Policy {
    Owner,
    Team,
    Org,
}

impl Policy {
    const ALL: [Policy; 3] = [Policy::Owner, Policy::Team, Policy::Org];

    fn table(self) -> &'static str {
        match self {
            Policy::Owner => "own",
            Policy::Team => "team_doc",
            Policy::Org => "org_doc",
        }
    }
}

fn uuid(user: u64) -> String {
    format!("{:08x}-0000-4000-8000-{user:012x}", user.wrapping_mul(2_654_435_761) as u32)
}

/// A principal without what nobody reads here, so that a million fit.
fn user(model: &Principal, user: u64) -> Arc<Principal> {
    Arc::new(Principal { subject: uuid(user).into(), ..model.clone() })
}

async fn catalog() -> (Catalog, TestDatabase) {
    let mut database = TestDatabase::new().await;
    database.run(SCHEMA).await;
    let publications = vec!["supabase_realtime".to_owned()];
    let wanted = Wanted { publications, others: vec!["rowcast_facts".into()], roles: ["authenticated".into()].into() };
    let catalog = crate::catalog::read(&mut database.client, &wanted).await.expect("the catalog");
    (catalog, database)
}

/// Who is in the measured team (or user) of this number with so many recipients.
fn measured_team(recipients: u64, row: u64) -> u64 {
    MEASURED + recipients * 1_000_000 + row
}

/// Gives each row of a fact table to what it is called with.
type Rows<'a> = &'a mut dyn FnMut(&mut dyn FnMut([String; 2]));

/// Users are members of team `user / TEAM`; the team's number is also that of its organization, which has ten teams.
fn load(crowd: &mut Crowd, catalog: &Catalog, size: u64) -> (u64, usize) {
    let teams = (0..size / TEAM)
        .chain(RECIPIENTS.iter().flat_map(|r| (0..rows_of(size)).map(move |row| measured_team(*r, row))));
    let teams: Vec<u64> = teams.collect();
    let mut rows = 0;
    let mut fill = |table: &str, each: Rows<'_>| {
        let table = catalog.named("public", table).expect("the table");
        let wanted = table.columns.iter().map(|column| column.number).collect();
        let layout = Arc::new(Layout::of(table, catalog.types(), &wanted).expect("a fact table"));
        crowd.facts.record(layout.clone());
        let mut loaded = FactTable::new(layout);
        each(&mut |values| {
            rows += 1;
            loaded.insert(values.iter().map(|value| Some(value.as_bytes()))).expect("it fits");
        });
        crowd.facts.install(loaded, &catalog.snapshot).expect("it is recorded");
    };
    fill("members", &mut |insert| {
        for team in &teams {
            (0..TEAM).for_each(|member| insert([team.to_string(), uuid(team * TEAM + member)]));
        }
    });
    fill("teams", &mut |insert| {
        for org in &teams {
            (0..10).for_each(|team| insert([(org * 10 + team).to_string(), org.to_string()]));
        }
    });
    // The stream has passed what they were loaded from, as it does a moment later.
    crowd.facts.pass(1 << 30);
    assert!(!crowd.facts.is_ahead());
    (rows, crowd.facts.bytes())
}

/// The rows that are measured, with this many recipients each.
fn events(crowd: &Crowd, catalog: &Catalog, policy: Policy, size: u64, recipients: u64) -> Vec<Arc<Event>> {
    let table = catalog.find("public", policy.table()).expect("the table");
    let column = |c: &crate::catalog::Column| RelationColumn {
        name: c.name.clone(),
        type_oid: c.type_oid,
        type_modifier: c.type_modifier,
        key: table.identity_columns.contains(&c.name),
    };
    let columns = table.columns.iter().map(column).collect();
    let (schema, name, identity) = ("public".into(), policy.table().into(), ReplicaIdentity::Default);
    let relation = Arc::new(Relation { oid: table.oid, schema, table: name, identity, columns });
    let row = |row: u64| {
        let team = measured_team(recipients, row);
        let whose = match policy {
            Policy::Owner => uuid(team * TEAM),
            Policy::Team => team.to_string(),
            Policy::Org => (team * 10 + row % 10).to_string(),
        };
        let id = row.to_string();
        let values = [&id, &whose, "a few words"].map(|text| Value::Text(text.as_bytes()));
        let new = crate::change::Tuple::from_values(values.into_iter());
        let position = crate::change::Position { lsn: crate::change::Lsn(9), ordinal: row as u32 };
        crowd.event(RowChange { relation: relation.clone(), position, change: Change::Insert { new } })
    };
    (0..rows_of(size)).map(row).collect()
}

/// Who subscribes: everybody in teams of their own, and of each measured team as many as get its rows.
fn subscribers(model: &Principal, policy: Policy, size: u64) -> Vec<Arc<Principal>> {
    let mut all: Vec<Arc<Principal>> = (0..size).map(|number| user(model, number)).collect();
    for recipients in RECIPIENTS {
        for row in 0..rows_of(size) {
            let first = measured_team(recipients, row) * TEAM;
            for member in 0..recipients {
                // An owner has as many channels as there are recipients; of a team, as many members are there.
                let number = if policy == Policy::Owner { first } else { first + member };
                all.push(user(model, number));
            }
        }
    }
    all
}

/// Nanoseconds per call in the quickest of many runs: what others do at the same time only adds to it.
fn quickest(mut work: impl FnMut()) -> f64 {
    let (least, runs) = if cfg!(debug_assertions) { (1, 1) } else { (rows_of(u64::MAX), 25) };
    let mut run = |_| {
        let start = Instant::now();
        (0..least).for_each(|_| work());
        start.elapsed().as_nanos() as f64 / least as f64
    };
    (0..runs).map(&mut run).fold(f64::INFINITY, f64::min)
}

/// Bytes that are taken, by the allocator where it counts, else by what the process has.
fn taken<T>(work: impl FnOnce() -> T) -> (T, i64) {
    #[cfg(debug_assertions)]
    {
        let mut result = None;
        let info = allocation_counter::measure(|| result = Some(work()));
        (result.expect("it ran"), info.bytes_current)
    }
    #[cfg(not(debug_assertions))]
    {
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
            text.split(' ').nth(1).and_then(|pages| pages.parse::<i64>().ok()).unwrap_or(0) * 4096
        };
        let before = resident();
        let result = work();
        (result, resident() - before)
    }
}

#[tokio::test]
async fn a_change_costs_its_recipients_however_many_subscribe() {
    let (catalog, _database) = catalog().await;
    let model = Principal { claims: Arc::default(), ..(*principal("nobody")).clone() };
    println!(
        "\nns per change by recipients, the quickest of many runs; each: a further recipient; times: the smallest crowd's;"
    );
    println!("1st: the first row of a room after any change of the facts");
    println!("policy     others       1      10     100    each   times     1st      10     100 bytes/sub  b/fact");
    for policy in Policy::ALL {
        let mut first = None;
        for size in SIZES {
            let mut crowd = Crowd::new(catalog.clone(), Options::default());
            let (facts, bytes) = if policy == Policy::Owner { (1, 0) } else { load(&mut crowd, &catalog, *size) };
            let table = catalog.find("public", policy.table()).expect("the table").oid;
            // Bound before they come, as in life.
            let events = RECIPIENTS.map(|recipients| events(&crowd, &catalog, policy, *size, recipients));
            crowd.join(&user(&model, u64::MAX >> 16), table, Predicate::everything());
            assert_eq!(crowd.deliver(&events[0][0]), 0, "a stranger");
            let subscribers = subscribers(&model, policy, *size);
            let mut join = |principal| crowd.join(principal, table, Predicate::everything());
            let (_, memory) = taken(|| subscribers.iter().map(&mut join).fold(None, |_, id| Some(id)));
            let memory = memory / crowd.subscriptions() as i64;
            // First as if each row were the first of its room, then as it is in a room that is used.
            let mut timed = |at: usize, remember: bool| {
                let mut next = events[at].iter().cycle();
                quickest(|| {
                    if !remember {
                        crowd.forget_rooms(table);
                    }
                    let event = next.next().expect("a cycle");
                    assert_eq!(crowd.deliver(event), RECIPIENTS[at], "{}", policy.table());
                })
            };
            let cold = [0, 1, 2].map(|at| timed(at, false));
            let times = [0, 1, 2].map(|at| timed(at, true));
            let each = (times[2] - times[0]) / 99.0;
            let first = *first.get_or_insert(times[0]);
            println!(
                "{:<9}{size:>8}{:>8.0}{:>8.0}{:>8.0}{each:>8.0}{:>8.1}{:>8.0}{:>8.0}{:>8.0}{memory:>10}{:>8}",
                policy.table(),
                times[0],
                times[1],
                times[2],
                times[0] / first,
                cold[0],
                cold[1],
                cold[2],
                bytes as u64 / facts,
            );
        }
    }
}
