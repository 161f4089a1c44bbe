//! Policies by chance: conditions over the columns of a scope, the claims, and the tables that come after it.

use super::schema::{Dice, FACTS};

/// Columns by what they hold, of each table.
struct Columns {
    users: &'static [&'static str],
    teams: &'static [&'static str],
    orgs: &'static [&'static str],
    texts: &'static [&'static str],
    truths: &'static [&'static str],
    numbers: &'static [&'static str],
}

fn columns(table: &str) -> Columns {
    let none = &[];
    match table {
        "docs" => Columns {
            users: &["user_id"],
            teams: &["team_id"],
            orgs: &["org_id"],
            texts: &["kind", "tenant"],
            truths: &["flag"],
            numbers: &["n", "amount", "team_id"],
        },
        "orgs" => Columns {
            users: &["owner_id"],
            teams: none,
            orgs: &["id"],
            texts: &["name"],
            truths: &["open"],
            numbers: &["id"],
        },
        "teams" => Columns {
            users: none,
            teams: &["id"],
            orgs: &["org_id"],
            texts: &["name"],
            truths: &["private"],
            numbers: &["id", "org_id"],
        },
        "members" => Columns {
            users: &["user_id"],
            teams: &["team_id"],
            orgs: none,
            texts: &["role"],
            truths: none,
            numbers: &["team_id"],
        },
        "profiles" => Columns {
            users: &["id"],
            teams: none,
            orgs: &["org_id"],
            texts: &["role"],
            truths: &["active"],
            numbers: &["level"],
        },
        _ => Columns {
            users: &["user_id", "blocked"],
            teams: none,
            orgs: none,
            texts: none,
            truths: none,
            numbers: none,
        },
    }
}

/// A place in a query: the tables around it, the innermost last, each with the name it goes by.
type Scope = Vec<(&'static str, String)>;

/// A policy for `docs`.
pub(super) fn policy(dice: &mut Dice) -> String {
    condition(dice, &vec![("docs", "docs".into())], 3)
}

/// What protects a table that policies look into: nothing, or policies that look further on. Now and then one looks back, which
/// Postgres refuses to follow.
pub(super) fn inner_policy(dice: &mut Dice, table: &'static str) -> Option<String> {
    if dice.percent(45) {
        return None;
    }
    if dice.percent(25) {
        return Some("true".into());
    }
    Some(condition(dice, &vec![(table, table.into())], 1))
}

fn condition(dice: &mut Dice, scope: &Scope, depth: usize) -> String {
    if depth > 0 && dice.percent(45) {
        let (a, b) = (condition(dice, scope, depth - 1), condition(dice, scope, depth - 1));
        return match dice.below(5) {
            0 | 1 => format!("({a} or {b})"),
            2 | 3 => format!("({a} and {b})"),
            _ => format!("(not ({a}))"),
        };
    }
    if depth > 0
        && dice.percent(55)
        && let Some(looked_up) = membership(dice, scope, depth - 1)
    {
        return looked_up;
    }
    simple(dice, scope)
}

/// A column of the innermost table, or sometimes of one around it.
fn column(dice: &mut Dice, scope: &Scope, of: fn(&Columns) -> &'static [&'static str]) -> Option<String> {
    let at = if scope.len() > 1 && dice.percent(25) { dice.below(scope.len()) } else { scope.len() - 1 };
    let (table, alias) = &scope[at];
    let names = of(&columns(table));
    (!names.is_empty()).then(|| format!("{alias}.{}", dice.one(names)))
}

fn simple(dice: &mut Dice, scope: &Scope) -> String {
    for _ in 0..8 {
        let found = match dice.below(8) {
            0..=2 => column(dice, scope, |c| c.users).map(|c| owner(dice, &c)),
            3 => Some(claims(dice)),
            4 => column(dice, scope, |c| c.texts).map(|c| text(dice, &c)),
            5 => column(dice, scope, |c| c.truths).map(|c| truth(dice, &c)),
            6 => column(dice, scope, |c| c.numbers).map(|c| number(dice, &c)),
            _ if scope.len() == 1 && scope[0].0 == "docs" => Some(special(dice)),
            _ => None,
        };
        if let Some(found) = found {
            return found;
        }
    }
    claims(dice)
}

fn owner(dice: &mut Dice, column: &str) -> String {
    match dice.below(8) {
        0..=1 => format!("{column} = auth.uid()"),
        2 => format!("(select auth.uid()) = {column}"),
        3 => format!("{column}::text = (auth.jwt() ->> 'sub')"),
        4 => format!("{column} = (current_setting('request.jwt.claims', true)::json ->> 'sub')::uuid"),
        5 => format!("{column} is not distinct from auth.uid()"),
        6 => format!("{column} <> auth.uid()"),
        _ => format!("{column} is null"),
    }
}

fn claims(dice: &mut Dice) -> String {
    let all = [
        "auth.role() = 'authenticated'",
        "auth.uid() is not null",
        "(auth.jwt() ->> 'tenant') = 'a'",
        "coalesce(auth.jwt() ->> 'tenant', 'b') in ('b', 'A')",
        "(auth.jwt() -> 'app_metadata' ->> 'level')::int > 2",
        "(auth.jwt() ->> 'is_staff')::boolean",
        "((auth.jwt() -> 'app_metadata') @> '{\"admin\": true}')",
        "((auth.jwt() -> 'app_metadata' -> 'kinds') ? 'a')",
        "((auth.jwt() #>> '{app_metadata,level}')::numeric = 3.0)",
        "has_role('admin')",
        "true",
        "false",
    ];
    dice.one(&all).to_owned()
}

fn text(dice: &mut Dice, column: &str) -> String {
    match dice.below(10) {
        0 => format!("{column} = 'a'"),
        1 => format!("{column} in ('a', 'b')"),
        2 => format!("{column} not in ('a', 'A')"),
        3 => format!("{column} = any (array['b', ''])"),
        4 => format!("coalesce({column}, 'a') = 'a'"),
        5 => format!("nullif({column}, 'a') is null"),
        6 => format!("{column} is distinct from 'a'"),
        7 => format!("{column} = (auth.jwt() ->> 'tenant')"),
        8 => format!("(auth.jwt() -> 'app_metadata' -> 'kinds') ? {column}"),
        _ => {
            format!("{column} = any (array(select jsonb_array_elements_text(auth.jwt() -> 'app_metadata' -> 'kinds')))")
        }
    }
}

fn truth(dice: &mut Dice, column: &str) -> String {
    let all =
        ["C", "not C", "C is true", "C is not true", "C is false", "C is unknown", "C is not unknown", "C = true"];
    dice.one(&all).replace('C', column)
}

fn number(dice: &mut Dice, column: &str) -> String {
    match dice.below(9) {
        0 => format!("{column} > 2"),
        1 => format!("{column} between 1 and 2.5"),
        2 => format!("{column} <> 3"),
        3 => format!("{column} = (auth.jwt() -> 'app_metadata' ->> 'level')::int"),
        4 => format!("{column} in (1, 3)"),
        5 => format!("case when {column} = 1 then true when {column} = 2 then null else {column} >= 4 end"),
        6 => format!("case {column} when 1 then 'x' when 3 then 'a' end = 'a'"),
        7 => format!("{column} <= 1.5"),
        _ => format!("{column} is not null"),
    }
}

/// Only for `docs` itself.
fn special(dice: &mut Dice) -> String {
    let all = [
        "is_member(docs.team_id)",
        "docs.team_id in (select my_teams())",
        "docs.team_id in (select * from my_teams())",
        "level_of(docs.user_id) > 2",
        "docs.at < '2026-02-01 00:00:00+00'",
        "docs.at = '2026-01-01 01:00:00+01'",
        "docs.day >= '2026-01-01'",
        "docs.grade = 'admin'",
        "docs.grade in ('admin', 'owner')",
        "docs.amount = 1.5",
        "lower_kind(docs.kind) = 'a'",
        "(docs.team_id, docs.org_id) in (select t.id, t.org_id from teams t)",
        "(select p.role from profiles p where p.id = auth.uid()) = 'admin'",
        "docs.org_id = (select p.org_id from profiles p where p.id = (select auth.uid()))",
        "(select p.active from profiles p where p.id = docs.user_id)",
        "exists (select 1 from teams t join members m on m.team_id = t.id where t.org_id = docs.org_id and m.user_id = auth.uid())",
        "docs.org_id in (select t.org_id from members m, teams t where t.id = m.team_id and m.user_id = auth.uid() and m.role = any (array['admin', 'a']))",
        "not exists (select from blocks b where b.user_id = docs.user_id and b.blocked = auth.uid())",
        "auth.uid() not in (select b.blocked from blocks b where b.user_id = docs.user_id)",
        "auth.uid() in (select m.user_id from members m where m.team_id = docs.team_id)",
        "docs.user_id in (select m2.user_id from members m2 where m2.team_id in (select m.team_id from members m where m.user_id = auth.uid()))",
        "now() > '2000-01-01'",
    ];
    dice.one(&all).to_owned()
}

/// A look into a table that comes after those in scope.
fn membership(dice: &mut Dice, scope: &Scope, depth: usize) -> Option<String> {
    let innermost = scope.last().map_or("docs", |(table, _)| *table);
    let after = FACTS.iter().position(|table| *table == innermost).map_or(0, |at| at + 1);
    // A table may be looked into again from within, but a policy must not come back to itself.
    let rest = &FACTS[after..];
    if rest.is_empty() {
        return None;
    }
    let table = dice.one(rest);
    let table = *FACTS.iter().find(|name| **name == table)?;
    let alias = if dice.percent(50) { table.to_owned() } else { format!("x{}", scope.len()) };
    if scope.iter().any(|(_, taken)| *taken == alias) {
        return None;
    }
    let mut inner = scope.clone();
    inner.push((table, alias.clone()));
    let from = if alias == table { table.to_owned() } else { format!("{table} {alias}") };
    let there = columns(table);
    let outer = |dice: &mut Dice, of: fn(&Columns) -> &'static [&'static str]| column(dice, scope, of);
    // What ties the inner table to the outer one.
    let mut ties = Vec::new();
    if !there.teams.is_empty()
        && let Some(c) = outer(dice, |c| c.teams)
    {
        ties.push((format!("{alias}.{}", there.teams[0]), c));
    }
    if !there.orgs.is_empty()
        && let Some(c) = outer(dice, |c| c.orgs)
    {
        ties.push((format!("{alias}.{}", there.orgs[0]), c));
    }
    if !there.users.is_empty()
        && let Some(c) = outer(dice, |c| c.users)
    {
        ties.push((format!("{alias}.{}", dice.one(there.users)), c));
    }
    if ties.is_empty() {
        return None;
    }
    let (inside, outside) = ties.swap_remove(dice.below(ties.len()));
    let with = if !there.users.is_empty() && dice.percent(60) {
        let column = format!("{alias}.{}", dice.one(there.users));
        owner(dice, &column)
    } else {
        condition(dice, &inner, depth)
    };
    Some(match dice.below(7) {
        0 | 1 => format!("exists (select 1 from {from} where {inside} = {outside} and {with})"),
        2 => format!("{outside} in (select {inside} from {from} where {with})"),
        3 => format!("{outside} = any (select {inside} from {from} where {with})"),
        4 => format!("not exists (select from {from} where {with} and {outside} = {inside})"),
        5 => format!("{outside} not in (select {inside} from {from} where {with})"),
        _ => format!("exists (select {inside} from {from} where {inside} = {outside})"),
    })
}
