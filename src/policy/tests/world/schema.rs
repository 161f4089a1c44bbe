//! The tables of the world, their rows, and the transactions that change them. Values come from small domains, so that rows
//! meet each other.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Chance that repeats.
pub(super) struct Dice(StdRng);

impl Dice {
    pub(super) fn new(seed: u64) -> Dice {
        Dice(StdRng::seed_from_u64(seed))
    }

    pub(super) fn below(&mut self, count: usize) -> usize {
        self.0.random_range(0..count)
    }

    pub(super) fn percent(&mut self, chance: u32) -> bool {
        self.0.random_ratio(chance, 100)
    }

    pub(super) fn one<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }

    /// One of them, or NULL now and then.
    fn some(&mut self, of: &[&str]) -> String {
        if self.percent(12) { "null".into() } else { self.one(of).to_owned() }
    }
}

pub(super) const USERS: [&str; 4] = [
    "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    "b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a22",
    "c0eebc99-9c0b-4ef8-bb6d-6bb9bd380a33",
    "d0eebc99-9c0b-4ef8-bb6d-6bb9bd380a44",
];
const QUOTED: [&str; 4] = [
    "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
    "'b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a22'",
    "'c0eebc99-9c0b-4ef8-bb6d-6bb9bd380a33'",
    "'d0eebc99-9c0b-4ef8-bb6d-6bb9bd380a44'",
];
const NUMBERS: [&str; 4] = ["1", "2", "3", "4"];
const WORDS: [&str; 4] = ["'a'", "'b'", "'A'", "''"];
const TRUTHS: [&str; 2] = ["true", "false"];
const GRADES: [&str; 3] = ["'member'", "'admin'", "'owner'"];
const INSTANTS: [&str; 3] = ["'2026-01-01 00:00:00+00'", "'2026-01-01 00:00:00.5+00'", "'2026-06-01 12:00:00+02'"];
const DAYS: [&str; 3] = ["'2026-01-01'", "'2025-12-31'", "'infinity'"];
const AMOUNTS: [&str; 4] = ["1.5", "1.50", "-2", "100"];

/// Tables that policies look into, each only into later ones.
pub(super) const FACTS: [&str; 5] = ["orgs", "teams", "members", "profiles", "blocks"];

pub(super) const SCHEMA: &str = "create publication rowcast_facts;
    create type grade as enum ('member', 'admin', 'owner');
    create table orgs (id int primary key, owner_id uuid, open boolean, name text);
    create table teams (id int primary key, org_id int, name text, private boolean);
    create table members (team_id int, user_id uuid, role text, grade grade, until date, primary key (team_id, user_id));
    create table profiles (id uuid primary key, org_id int, role text, level int8, active boolean);
    create table blocks (user_id uuid, blocked uuid);
    alter table blocks replica identity full;
    create table docs (id int primary key, user_id uuid, team_id int, org_id int, kind text, flag boolean, n int2,
        amount numeric, at timestamptz, day date, grade grade, tenant varchar);
    alter table docs enable row level security;
    alter publication supabase_realtime add table docs;
    create policy p on docs using (false);
    grant select on orgs, teams, members, profiles, blocks, docs to anon, authenticated;
    create function is_member(team int) returns boolean language sql stable security definer set search_path = ''
        as 'select exists (select 1 from public.members m where m.team_id = team and m.user_id = auth.uid())';
    create function my_teams() returns setof int language sql stable security definer set search_path = public
        as 'select team_id from members where user_id = auth.uid()';
    create function has_role(wanted text) returns boolean language sql stable
        begin atomic select exists (select from profiles where id = auth.uid() and role = wanted); end;
    create function level_of(who uuid) returns int8 language sql stable strict security definer set search_path = ''
        as 'select p.level from public.profiles p where p.id = who';
    create function lower_kind(kind text) returns text language plpgsql immutable as 'begin return lower(kind); end'";

/// As many rows of `docs` as there are, and of the others what chance gives.
pub(super) fn rows(dice: &mut Dice) -> Vec<String> {
    let mut all = vec!["truncate docs, orgs, teams, members, profiles, blocks".to_owned()];
    for id in 1..=14 {
        all.push(insert_doc(dice, id));
    }
    for id in NUMBERS {
        if dice.percent(80) {
            all.push(insert_org(dice, id));
        }
        if dice.percent(85) {
            all.push(insert_team(dice, id));
        }
    }
    for user in QUOTED {
        if dice.percent(75) {
            all.push(insert_profile(dice, user));
        }
        for team in NUMBERS {
            if dice.percent(40) {
                all.push(insert_member(dice, team, user));
            }
        }
    }
    for _ in 0..dice.below(5) {
        all.push(insert_block(dice));
    }
    all
}

fn insert_doc(dice: &mut Dice, id: usize) -> String {
    format!(
        "insert into docs values ({id}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {})",
        dice.some(&QUOTED),
        dice.some(&NUMBERS),
        dice.some(&NUMBERS),
        dice.some(&WORDS),
        dice.some(&TRUTHS),
        dice.some(&NUMBERS),
        dice.some(&AMOUNTS),
        dice.some(&INSTANTS),
        dice.some(&DAYS),
        dice.some(&GRADES),
        dice.some(&WORDS),
    )
}

fn insert_org(dice: &mut Dice, id: &str) -> String {
    let (owner, open, name) = (dice.some(&QUOTED), dice.some(&TRUTHS), dice.some(&WORDS));
    format!(
        "insert into orgs values ({id}, {owner}, {open}, {name}) on conflict (id) do update set owner_id = {owner}, open = {open}"
    )
}

fn insert_team(dice: &mut Dice, id: &str) -> String {
    let (org, name, private) = (dice.some(&NUMBERS), dice.some(&WORDS), dice.some(&TRUTHS));
    format!(
        "insert into teams values ({id}, {org}, {name}, {private}) on conflict (id) do update set org_id = {org}, name = {name}"
    )
}

fn insert_member(dice: &mut Dice, team: &str, user: &str) -> String {
    let (role, grade, until) = (dice.some(&["'admin'", "'member'", "'a'"]), dice.some(&GRADES), dice.some(&DAYS));
    format!(
        "insert into members values ({team}, {user}, {role}, {grade}, {until}) \
         on conflict (team_id, user_id) do update set role = {role}, grade = {grade}"
    )
}

fn insert_profile(dice: &mut Dice, user: &str) -> String {
    let (org, role) = (dice.some(&NUMBERS), dice.some(&["'admin'", "'member'", "'a'"]));
    let (level, active) = (dice.some(&NUMBERS), dice.some(&TRUTHS));
    format!(
        "insert into profiles values ({user}, {org}, {role}, {level}, {active}) \
         on conflict (id) do update set org_id = {org}, role = {role}, level = {level}, active = {active}"
    )
}

fn insert_block(dice: &mut Dice) -> String {
    format!("insert into blocks values ({}, {})", dice.some(&QUOTED), dice.some(&QUOTED))
}

/// The statements of one transaction on facts, and now and then on `docs`.
pub(super) fn transaction(dice: &mut Dice) -> Vec<String> {
    (0..1 + dice.below(4)).map(|_| statement(dice)).collect()
}

fn statement(dice: &mut Dice) -> String {
    let (user, other, number) = (dice.one(&QUOTED), dice.one(&QUOTED), dice.one(&NUMBERS));
    match dice.below(20) {
        0..=2 => insert_member(dice, number, user),
        3..=4 => format!("delete from members where user_id = {user} and team_id = {number}"),
        5 => format!("delete from members where team_id = {number}"),
        6 => format!("update members set role = {} where user_id = {user}", dice.some(&["'admin'", "'member'", "'a'"])),
        // A key changes.
        7 => format!(
            "update members m set user_id = {other} where user_id = {user} and team_id = {number} \
             and not exists (select from members x where x.team_id = m.team_id and x.user_id = {other})"
        ),
        8 => format!(
            "update members m set team_id = {number} where user_id = {user} and team_id = {} \
             and not exists (select from members x where x.team_id = {number} and x.user_id = m.user_id)",
            dice.one(&NUMBERS)
        ),
        9 => insert_org(dice, number),
        10 => insert_team(dice, number),
        11 => insert_profile(dice, user),
        12..=13 => insert_block(dice),
        // One of two equal rows.
        14 => format!("delete from blocks where ctid = (select min(ctid) from blocks where user_id = {user})"),
        15 => format!("update blocks set blocked = {} where user_id = {user}", dice.some(&QUOTED)),
        16 => format!("delete from {} where id = {number}", dice.one(&["orgs", "teams"])),
        17 => format!("delete from profiles where id = {user}"),
        18 if dice.percent(30) => format!("truncate {}", dice.one(&FACTS)),
        _ => format!(
            "update docs set n = {}, team_id = {} where id = {}",
            dice.some(&NUMBERS),
            number,
            1 + dice.below(14)
        ),
    }
}
