//! Published tables: keys, replica identity, row-level security, grants, and which deletes nobody will get.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use super::facts::Facts;
use super::finding::{ident, qualified};
use super::publications::replaced;
use super::{Finding, Subject, Unreadable};
use crate::catalog::{Catalog, OldImage, Table};
use crate::change::ReplicaIdentity;
use crate::config::{Config, FACTS_PUBLICATION};
use crate::policy::{self, Deletes, DenyReason, Engine, Plan};

/// The partitions that hold rows, by the root's oid: schema, name, replica identity's letter.
pub(super) type Leaves = BTreeMap<u32, Vec<(String, String, String)>>;

const LEAVES: &str = "select root.oid, n.nspname::text, c.relname::text, c.relreplident::text \
    from unnest($1::oid[]) as root(oid) cross join lateral pg_catalog.pg_partition_tree(root.oid) as t \
    join pg_catalog.pg_class c on c.oid = t.relid join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
    where t.isleaf and t.relid <> root.oid order by 2, 3";

async fn leaves(client: &Client, catalog: &Catalog) -> Result<Leaves, Unreadable> {
    let roots: Vec<u32> = catalog.tables().filter(|table| table.is_partitioned).map(|table| table.oid).collect();
    let mut leaves = Leaves::new();
    for row in client.query(LEAVES, &[&roots]).await? {
        leaves.entry(row.try_get(0)?).or_default().push((row.try_get(1)?, row.try_get(2)?, row.try_get(3)?));
    }
    Ok(leaves)
}

/// The tables from which deletes cascade into a published one, by its oid: schema, name.
pub(super) type Parents = BTreeMap<u32, Vec<(String, String)>>;

const PARENTS: &str = "select k.conrelid, n.nspname::text, c.relname::text from pg_catalog.pg_constraint k \
    join pg_catalog.pg_class c on c.oid = k.confrelid join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
    where k.conrelid = any($1::oid[]) and k.contype = 'f' and k.confdeltype = 'c' and k.confrelid <> k.conrelid order by 2, 3";

/// Tables with a row filter in some publication; the column is not there before version 15.
pub(super) type Filtered = BTreeSet<u32>;

const FILTERED: &str = "select r.prrelid from pg_catalog.pg_publication_rel r \
    where r.prrelid = any($1::oid[]) and to_jsonb(r) ->> 'prqual' is not null";

/// What the catalog does not tell of the published tables.
pub(super) type Relatives = (Leaves, Parents, Filtered);

/// Reads them.
pub(super) async fn relatives(client: &Client, catalog: &Catalog) -> Result<Relatives, Unreadable> {
    let tables: Vec<u32> = catalog.tables().map(|table| table.oid).collect();
    let mut parents = Parents::new();
    for row in client.query(PARENTS, &[&tables]).await? {
        parents.entry(row.try_get(0)?).or_default().push((row.try_get(1)?, row.try_get(2)?));
    }
    let filtered = client.query(FILTERED, &[&tables]).await?;
    let filtered = filtered.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    Ok((leaves(client, catalog).await?, parents, filtered))
}

/// One table with all that is known of it.
struct Look<'a> {
    table: &'a Table,
    catalog: &'a Catalog,
    config: &'a Config,
    facts: &'a Facts,
    plans: Vec<&'a Plan>,
    leaves: &'a [(String, String, String)],
    parents: &'a [(String, String)],
    /// It has a row filter, which must not get lost.
    filtered: bool,
}

pub(super) fn check(
    catalog: &Catalog,
    config: &Config,
    facts: &Facts,
    plans: &[Plan],
    (leaves, parents, filtered): &Relatives,
) -> Vec<Finding> {
    let mut tables: Vec<_> = catalog.tables().collect();
    tables.sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
    let mut findings = Vec::new();
    for table in tables {
        let plans = plans.iter().filter(|plan| plan.table_oid == table.oid).collect();
        let leaves = leaves.get(&table.oid).map_or(&[][..], Vec::as_slice);
        let parents = parents.get(&table.oid).map_or(&[][..], Vec::as_slice);
        let filtered = filtered.contains(&table.oid);
        let look = Look { table, catalog, config, facts, plans, leaves, parents, filtered };
        findings.extend(look.identity());
        findings.extend(look.primary_key());
        findings.extend(look.protection());
        findings.extend(look.grants());
        findings.extend(look.policies());
        findings.extend(look.evidence());
        findings.extend(look.deletes());
        findings.extend(look.cascades());
        findings.extend(look.row_filter());
    }
    if catalog.has_foreign_claims() {
        findings.push(
            Finding::warning(
                "foreign_claims",
                Subject::server(),
                "a setting request.jwt.claim… has a value of its own in the database",
            )
            .why("auth.jwt() and its like look there first and don't see the token; Postgres is asked about every row.")
            .todo("Remove it: `alter database … reset`, `alter role … reset`, or from postgresql.conf."),
        );
    }
    findings
}

impl Look<'_> {
    fn subject(&self) -> Subject {
        Subject::table(&self.table.schema, &self.table.name)
    }

    fn name(&self) -> String {
        qualified(&self.table.schema, &self.table.name)
    }

    /// FULL for the table and all partitions in which rows are.
    fn full(&self) -> String {
        let own = [(&self.table.schema, &self.table.name)].into_iter();
        let leaves = self.leaves.iter().map(|(schema, name, _)| (schema, name));
        let lines = own.chain(leaves).map(|(s, n)| format!("alter table {} replica identity full;", qualified(s, n)));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// FULL would make the writers fail: it must not have columns that are not published.
    fn full_breaks_writers(&self) -> bool {
        let listed = self.table.published.as_ref().and_then(|published| published.columns.as_ref());
        let held = |name: &String| listed.is_some_and(|listed| !listed.contains(name));
        // Before version 18 generated columns are simply not sent.
        self.table.columns.iter().any(|c| if c.generated { self.facts.version >= 180_000 } else { held(&c.name) })
    }

    fn sends_changes(&self) -> bool {
        self.table.published.as_ref().is_some_and(|published| published.update || published.delete)
    }

    /// A finding whose cure is FULL, if FULL does no harm.
    fn cured_by_full(&self, finding: Finding) -> Finding {
        if self.full_breaks_writers() {
            finding.todo("Publish all columns of the table, then `alter table … replica identity full`.")
        } else {
            finding.sql(self.full()).todo("With FULL, UPDATE and DELETE write the whole old row into the WAL.")
        }
    }

    /// Without an identity the writers fail.
    fn identity(&self) -> Option<Finding> {
        let none = match self.table.identity {
            ReplicaIdentity::Nothing => true,
            ReplicaIdentity::Default => self.table.primary_key.is_empty(),
            ReplicaIdentity::Full | ReplicaIdentity::Index => false,
        };
        if !none || !self.sends_changes() {
            return None;
        }
        let what = match self.table.identity {
            ReplicaIdentity::Nothing => "has REPLICA IDENTITY NOTHING",
            _ => "has neither a primary key nor a replica identity",
        };
        let finding = Finding::error("replica_identity", self.subject(), what)
            .why("Every UPDATE and DELETE of the table fails at the writer (55000), since it is published.");
        Some(self.cured_by_full(finding))
    }

    fn primary_key(&self) -> Option<Finding> {
        if !self.table.primary_key.is_empty() {
            return None;
        }
        let what = "has no primary key";
        let why = "Clients could not tell which row an INSERT or UPDATE is about, so none of these is sent.";
        let finding = Finding::error("primary_key", self.subject(), what).why(why);
        let free = ["id", "row_id", "rowcast_id"].into_iter().find(|name| self.table.column(name).is_none());
        Some(match (self.table.column("id").filter(|id| id.not_null), free) {
            (Some(_), _) => finding.sql(format!("alter table {} add primary key (id);", self.name())).todo(
                "It locks the table while the index is built; `create unique index concurrently` first avoids that.",
            ),
            (None, Some(column)) => {
                let column = format!("{column} bigint generated always as identity primary key");
                finding
                    .sql(format!("alter table {} add column {column};", self.name()))
                    .todo("It rewrites the table under a lock. If there is a natural key, declare that instead.")
            }
            (None, None) => finding.todo("Declare one: `alter table … add primary key (…)`."),
        })
    }

    /// Row-level security is off where it should be on.
    fn protection(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let exposed: Vec<&str> = self.roles(|plan| plan.engine == Engine::Deny(DenyReason::UnprotectedPartition));
        if !exposed.is_empty() {
            let what = format!(
                "has no row-level security, though the table that it is a partition of has: nothing of it is sent to {}",
                exposed.join(", ")
            );
            findings.push(
                Finding::warning("open_partition", self.subject(), what)
                    .why("Its rows would show what the root hides; who selects from the partition itself sees them.")
                    .sql(format!("alter table {} enable row level security;", self.name()))
                    .todo(
                        "To send the rows under the root's name and rules: alter publication … set (publish_via_partition_root = true). \
                         If they are meant to be open: ROWCAST_OPEN_PARTITIONS=true.",
                    ),
            );
            return findings;
        }
        if self.table.row_security {
            return findings;
        }
        let open = |role: &str| {
            let access = self.table.access.get(role);
            access.is_some_and(|access| access.schema_usage && !access.columns.is_empty())
        };
        let sql = format!("alter table {} enable row level security;", self.name());
        let todo = "Then say who may see which rows: create policy … for select to authenticated using (user_id = auth.uid());";
        if open("anon") {
            findings.push(
                Finding::warning("row_security", self.subject(), "has no row-level security, and anon may select it")
                    .why("Everybody with the public API key receives every row.")
                    .sql(sql)
                    .todo(format!("If that is meant, leave it. {todo}")),
            );
        } else if open("authenticated") {
            findings.push(
                Finding::note("row_security", self.subject(), "has no row-level security; authenticated may select it")
                    .why("Every signed-in user receives every row.")
                    .sql(sql)
                    .todo(todo),
            );
        }
        findings
    }

    fn roles(&self, wanted: impl Fn(&Plan) -> bool) -> Vec<&str> {
        self.plans.iter().filter(|plan| wanted(plan)).map(|plan| plan.role.as_str()).collect()
    }

    /// Somebody must be able to select it at all, with its key.
    fn grants(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let may = |plan: &Plan| !matches!(plan.engine, Engine::Deny(DenyReason::NoGrant));
        if !self.plans.is_empty() && !self.plans.iter().any(|plan| may(plan)) {
            let role = if self.catalog.role("authenticated").is_some() { "authenticated" } else { &self.plans[0].role };
            // What nobody may read yet is not opened to everybody.
            let closed = format!("alter table {} enable row level security;\n", self.name());
            let closed = if self.table.row_security { "" } else { &closed };
            let lines = format!(
                "{closed}grant usage on schema {} to {role};\ngrant select on {} to {role};",
                ident(&self.table.schema),
                self.name(),
                role = ident(role)
            );
            let all = self.roles(|_| true).join(", ");
            findings.push(
                Finding::warning("grants", self.subject(), format!("none of {all} may select it"))
                    .why("Without the right to select, nobody receives a row of it.")
                    .sql(lines),
            );
            return findings;
        }
        for plan in self.plans.iter().filter(|plan| may(plan)) {
            let hidden: Vec<String> =
                self.table.primary_key.iter().filter(|name| !plan.readable.contains(*name)).map(|n| ident(n)).collect();
            let obstacle = policy::obstacle(self.catalog, self.table, &plan.role, self.config.hub.policy);
            if obstacle != Some(DenyReason::NoGrant) || hidden.is_empty() {
                continue;
            }
            let hidden = hidden.join(", ");
            let what = format!("{} may select some columns, but not the primary key ({hidden})", plan.role);
            findings.push(
                Finding::warning("key_grant", self.subject().seen_by(&plan.role), what)
                    .why("INSERT and UPDATE are not sent without the key.")
                    .sql(format!("grant select ({hidden}) on {} to {};", self.name(), ident(&plan.role))),
            );
        }
        findings
    }

    /// Row-level security without a policy lets nobody in.
    fn policies(&self) -> Option<Finding> {
        let judged = |plan: &&&Plan| !matches!(plan.engine, Engine::Everything | Engine::Deny(DenyReason::NoGrant));
        let judged: Vec<_> = self.plans.iter().filter(judged).collect();
        let barred = |plan: &&&Plan| plan.engine == Engine::Deny(DenyReason::NoPolicy);
        if judged.is_empty() || !judged.iter().all(barred) {
            return None;
        }
        let roles: Vec<&str> = judged.iter().map(|plan| plan.role.as_str()).collect();
        let what = format!("has row-level security, and no policy lets {} see a row", roles.join(" or "));
        let finding = Finding::warning("policies", self.subject(), what)
            .why("Nobody but those above the policies receives a row.");
        let owner = ["user_id", "owner_id"].into_iter().find_map(|name| self.table.column(name));
        // uuid: what auth.uid() returns.
        Some(match owner.filter(|column| column.type_oid == 2950) {
            Some(owner) if roles.contains(&"authenticated") => finding.sql(format!(
                "create policy \"users see their own rows\" on {} for select to authenticated using ({} = auth.uid());",
                self.name(),
                owner.name
            )),
            _ => finding.todo("create policy … for select to authenticated using (user_id = auth.uid());"),
        })
    }

    /// Columns that policies read and the stream never carries: a row can't be judged, so nobody gets it.
    fn evidence(&self) -> Option<Finding> {
        let mut absent: BTreeSet<&str> = BTreeSet::new();
        let mut roles = Vec::new();
        for plan in &self.plans {
            let missing: Vec<&str> = reads(plan)
                .into_iter()
                .filter(|name| self.table.column(name).is_some_and(|c| !self.is_sent(c)))
                .collect();
            if !missing.is_empty() {
                roles.push(plan.role.as_str());
                absent.extend(missing);
            }
        }
        if absent.is_empty() {
            return None;
        }
        let generated = absent.iter().any(|name| self.table.column(name).is_some_and(|column| column.generated));
        let names = absent.into_iter().collect::<Vec<_>>().join(", ");
        let what = format!("policies for {} read {names}, which is not sent", roles.join(", "));
        let finding = Finding::error("evidence", self.subject(), what)
            .why("A row that can't be judged is not sent: nobody in these roles receives any.");
        if generated {
            return Some(
                finding.todo(
                    "A generated column is not in the stream: write the policy on the columns that it is made of.",
                ),
            );
        }
        Some(match &self.config.publications[..] {
            [one] if !self.filtered => finding.sql(replaced(one, &self.name(), None)),
            _ => finding.todo("Publish all columns of the table, or those that the policies read too."),
        })
    }

    fn is_sent(&self, column: &crate::catalog::Column) -> bool {
        self.table.is_sent(column)
    }

    /// Deletes that nobody will get, since the old row does not have what the policy reads.
    fn deletes(&self) -> Option<Finding> {
        let published = self.table.published.as_ref()?;
        if !published.delete || self.config.hub.policy.deletes == Deletes::KeyToAll {
            return None;
        }
        let mut missing: BTreeSet<&str> = BTreeSet::new();
        let mut roles = Vec::new();
        for plan in &self.plans {
            let unseen = unseen_in_deletes(self.table, plan);
            if !unseen.is_empty() {
                roles.push(plan.role.as_str());
                missing.extend(unseen);
            }
        }
        if missing.is_empty() {
            return None;
        }
        let names = missing.into_iter().collect::<Vec<_>>().join(", ");
        let what =
            format!("no DELETE of it reaches {}: the old row lacks {names}, which the policy reads", roles.join(", "));
        let finding = Finding::warning("deletes", self.subject(), what)
            .why("The row stays on every screen until it is loaded again.");
        Some(self.cured_by_full(finding))
    }

    /// Postgres is asked when the parent's row is gone already, so the children's deletes are denied.
    fn cascades(&self) -> Option<Finding> {
        if self.config.hub.policy.deletes == Deletes::KeyToAll || !self.table.published.as_ref()?.delete {
            return None;
        }
        let looks_into = |plan: &Plan, name: &str| match &plan.engine {
            Engine::Ask { sql, .. } => sql.contains(name),
            _ => false,
        };
        let (schema, parent) =
            self.parents.iter().find(|(_, name)| self.plans.iter().any(|plan| looks_into(plan, name)))?;
        let roles = self.roles(|plan| looks_into(plan, parent)).join(", ");
        let what =
            format!("a DELETE that cascades from {schema}.{parent} may not reach {roles}: the policy looks into it");
        let finding = Finding::note("deletes_cascade", self.subject(), what)
            .why("When Postgres is asked about the deleted row, its parent is gone too, and the answer is no.")
            .todo(
                "Write the owner into the row itself (user_id = auth.uid()), or delete the children before the parent.",
            );
        Some(finding)
    }

    fn row_filter(&self) -> Option<Finding> {
        self.table.published.as_ref()?.row_filter.as_ref()?;
        let finding = Finding::note(
            "row_filter",
            self.subject(),
            format!("is also in {FACTS_PUBLICATION}, without its row filter"),
        )
        .why("Postgres sends what the filter holds back, and the relay holds it back itself, row by row.")
        .sql(format!("alter publication {} drop table {};", ident(FACTS_PUBLICATION), self.name()));
        Some(finding)
    }
}

/// The columns that decide.
pub(super) fn reads(plan: &Plan) -> Vec<&str> {
    match &plan.engine {
        Engine::Pure(rule) => rule.columns().into_iter().collect(),
        Engine::Ask { .. } => plan.form.iter().flat_map(|form| &form.reads).map(String::as_str).collect(),
        Engine::Everything | Engine::Deny(_) => Vec::new(),
    }
}

/// Of the columns that decide, those which a deleted row does not bring along, though the stream carries them otherwise.
pub(super) fn unseen_in_deletes<'a>(table: &Table, plan: &'a Plan) -> Vec<&'a str> {
    let there = |name: &str| match (table.old_image, table.identity) {
        (OldImage::Nothing, _) => false,
        (OldImage::PrimaryKey, _) => table.primary_key.iter().any(|key| key == name),
        (OldImage::AsSent, ReplicaIdentity::Full) => true,
        (OldImage::AsSent, _) => table.identity_columns.iter().any(|key| key == name),
    };
    let sent = |name: &str| table.column(name).is_some_and(|column| table.is_sent(column));
    reads(plan).into_iter().filter(|name| sent(name) && !there(name)).collect()
}
