//! Generated policies: owner equality in its spellings, constants, and what only Postgres can judge.

use super::column::Column;
use super::dice::Dice;

/// A USING text. `{t}` is the table.
#[derive(Debug)]
struct Template {
    sql: &'static str,
    columns: &'static [&'static str],
    /// One equality: if its claim makes a cast raise, a SELECT raises.
    single: bool,
}

const fn single(sql: &'static str, columns: &'static [&'static str]) -> Template {
    Template { sql, columns, single: true }
}

const fn mixed(sql: &'static str, columns: &'static [&'static str]) -> Template {
    Template { sql, columns, single: false }
}

const OWNER: &[&str] = &["owner"];
const TEXT: &[&str] = &["owner_text"];
const OTHER: &[&str] = &["owner_other"];
const ORG: &[&str] = &["org"];
const FLAG: &[&str] = &["flag"];

/// Those that are judged in memory.
const PURE: &[Template] = &[
    single("true", &[]),
    single("false", &[]),
    single("owner = auth.uid()", OWNER),
    single("auth.uid() = owner", OWNER),
    single("owner = (select auth.uid())", OWNER),
    single("owner::text = auth.uid()::text", OWNER),
    single("owner::text = auth.jwt() ->> 'sub'", OWNER),
    single("owner = (auth.jwt() ->> 'sub')::uuid", OWNER),
    single("owner = (current_setting('request.jwt.claims', true)::json ->> 'sub')::uuid", OWNER),
    single("owner_text = auth.uid()::text", TEXT),
    single("owner_text = auth.jwt() ->> 'sub'", TEXT),
    single("owner_text = (select auth.jwt() ->> 'email')", TEXT),
    single("owner_text = current_setting('request.jwt.claim.sub', true)", TEXT),
    single("owner_text = auth.role()", TEXT),
    single("org = (auth.jwt() ->> 'org')::int", ORG),
    single("org = (auth.jwt() ->> 'org')::bigint", ORG),
    single("(current_setting('request.jwt.claims', true)::json ->> 'org')::smallint = org", ORG),
    single("org::text = auth.jwt() -> 'app_metadata' ->> 'org'", ORG),
    mixed("owner = auth.uid() or org = (auth.jwt() ->> 'org')::int", &["owner", "org"]),
    mixed("owner = auth.uid() and org = (auth.jwt() ->> 'org')::int", &["owner", "org"]),
    mixed(
        "owner = auth.uid() and (owner_text = auth.jwt() ->> 'email' or org = (auth.jwt() ->> 'org')::bigint)",
        &["owner", "owner_text", "org"],
    ),
];

/// Those that Postgres is asked about.
const ASKED: &[Template] = &[
    mixed("not (owner = auth.uid())", OWNER),
    mixed("owner is not distinct from auth.uid()", OWNER),
    mixed("owner is null", OWNER),
    mixed("owner is not null and flag", &["owner", "flag"]),
    mixed("flag", FLAG),
    mixed("not flag", FLAG),
    mixed("flag is not true", FLAG),
    mixed("auth.role() = 'authenticated'", &[]),
    mixed("lower(owner_text) = lower(auth.jwt() ->> 'email')", TEXT),
    mixed("owner_text like 'A%'", TEXT),
    mixed("owner_text < 'b'", TEXT),
    mixed("owner_other = auth.jwt() ->> 'sub'", OTHER),
    mixed("owner_other = auth.jwt() ->> 'email'", OTHER),
    mixed("owner_other is null or owner_text is null", &["owner_other", "owner_text"]),
    mixed("org > 5", ORG),
    mixed("org in (1, 7, null)", ORG),
    mixed("org not in (1, 7)", ORG),
    mixed("coalesce(org, 7) = 7", ORG),
    mixed("auth.jwt() -> 'app_metadata' -> 'org' = to_jsonb(org)", ORG),
    mixed("exists (select from public.acl where acl.org = {t}.org and acl.owner = {t}.owner)", &["org", "owner"]),
    mixed("org in (select acl.org from public.acl where acl.owner = auth.uid())", ORG),
    mixed("owner = auth.uid() or flag", &["owner", "flag"]),
];

#[derive(Debug, Clone)]
pub(super) struct Policy {
    using: String,
    columns: Vec<&'static str>,
    single: bool,
    permissive: bool,
    command: &'static str,
    roles: &'static str,
}

impl Policy {
    /// Permissive and restrictive ones, for several roles and commands.
    pub(super) fn generate_all(dice: &mut Dice, columns: &[Column]) -> Vec<Policy> {
        let count = if dice.percent(6) { 0 } else { 1 + dice.below(3) };
        // One that must be asked makes the whole table asked.
        let asked = dice.percent(35);
        let mut policies: Vec<Policy> = (0..count).map(|_| Policy::generate(dice, asked, true)).collect();
        if dice.percent(25) {
            policies.push(Policy::generate(dice, asked, false));
        }
        if dice.percent(10) {
            // Says nothing about reading.
            policies.push(Policy { command: "update", ..Policy::generate(dice, asked, true) });
        }
        policies.retain(|policy| policy.columns.iter().all(|name| columns.iter().any(|c| c.name == *name)));
        policies
    }

    fn generate(dice: &mut Dice, asked: bool, permissive: bool) -> Policy {
        let template = |dice: &mut Dice| {
            let asked = asked && dice.percent(70);
            dice.one(if asked { ASKED } else { PURE })
        };
        let first = template(dice);
        let (mut using, mut columns, mut single) = (first.sql.to_owned(), first.columns.to_vec(), first.single);
        // Several under one roof, nested to the left.
        while dice.percent(22) {
            let next = template(dice);
            using = format!("({using}) {} ({})", dice.one(&["and", "or"]), next.sql);
            columns.extend(next.columns);
            single = false;
        }
        let command = if dice.percent(70) { "select" } else { "all" };
        let roles = *dice.one(&["public", "public", "authenticated", "authenticated, clerk", "anon, authenticated"]);
        Policy { using, columns, single, permissive, command, roles }
    }

    pub(super) fn create(&self, name: &str, table: &str) -> String {
        let kind = if self.permissive { "permissive" } else { "restrictive" };
        let (command, roles, using) = (self.command, self.roles, self.using.replace("{t}", table));
        format!("create policy {name} on public.{table} as {kind} for {command} to {roles} using ({using});\n")
    }

    pub(super) fn reads(&self, column: &str) -> bool {
        self.columns.contains(&column)
    }

    pub(super) fn columns(&self) -> &[&'static str] {
        &self.columns
    }

    /// Whether it governs what this role reads.
    pub(super) fn applies_to(&self, role: &str) -> bool {
        self.command != "update" && (self.roles == "public" || self.roles.split(", ").any(|named| named == role))
    }

    /// Whether it casts this claim to a type that not every text fits.
    pub(super) fn casts(&self, claim: &str) -> bool {
        let using = &self.using;
        using.contains(&format!("'{claim}')::")) || (claim == "sub" && using.contains("auth.uid()"))
    }

    /// Alone, it raises whenever its claim can't be cast; among others that is the planner's affair.
    pub(super) fn is_single(&self) -> bool {
        self.single
    }
}

/// What policies look into.
pub(super) const ACL: &str = "create table public.acl (owner uuid, org int);
    grant select on public.acl to anon, authenticated, clerk;
    insert into public.acl values ('a11ce000-0000-4000-8000-00000000000a', 7), ('b0b00000-0000-4000-8000-00000000000b', 1), (null, 10);";
