//! One round: the world as Postgres has it, the same facts folded from the stream, and the verdicts of both.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value as Json, json};
use tokio_postgres::SimpleQueryMessage;

use super::grammar;
use super::schema::{self, Dice, FACTS, USERS};
use crate::catalog::{Catalog, Snapshot};
use crate::change::{Change, Relation, Transaction, Tuple, Value};
use crate::claims::Principal;
use crate::policy::facts::{FactState, FactTable, Facts, Layout, Side};
use crate::policy::rule::{RowKeys, Rule, Truth, ViewerKey};
use crate::policy::tests::support;
use crate::policy::{Asker, DenyReason, Engine, Options, Plan, Verdict, compile};
use crate::testing::TestDatabase;

/// A mistake that somebody might make, planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The facts before a transaction are taken for those after it.
    WrongSide,
    /// A transaction's changes of facts are not folded.
    Forgotten,
    /// NULL counts as true.
    NullIsTrue,
    /// A principal is judged with the claims of the one before him.
    NeighboursClaims,
    /// The first inner table's policies are not looked at.
    OpenInside,
    /// Keys of which the last is lost.
    LostKey,
}

impl Fault {
    pub(super) const ALL: [Fault; 6] = [
        Fault::WrongSide,
        Fault::Forgotten,
        Fault::NullIsTrue,
        Fault::NeighboursClaims,
        Fault::OpenInside,
        Fault::LostKey,
    ];
}

/// What was compared. Each pair of a row and a principal, on one side of a transaction, is in one of the numbers of its kind.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Memory said yes or no, and so did a SELECT, the same.
    pub(super) verdicts: u64,
    /// Of these, yes.
    pub(super) permits: u64,
    /// Memory said no; the SELECT raised.
    pub(super) no_for_raise: u64,
    /// Memory said that Postgres raises; it did.
    pub(super) raises: u64,
    /// Memory said so; the SELECT showed nothing without raising. Nothing is sent in either case.
    pub(super) raise_for_no: u64,
    /// Memory said so; the SELECT showed the row: its planner did not come to what raises. The row is withheld.
    pub(super) withheld: u64,
    /// Memory left it to Postgres.
    pub(super) unsure: u64,
    /// By policies that deny everybody, which a SELECT did as well.
    pub(super) denied_to_all: u64,
    /// Asking said yes or no, and so did a SELECT, the same.
    pub(super) asked: u64,
    /// Asked for this row alone Postgres said yes, where the SELECT raised.
    pub(super) asked_yes_for_raise: u64,
    /// The same numbers of asking.
    pub(super) asked_raises: u64,
    pub(super) asked_no_for_raise: u64,
    pub(super) asked_raise_for_no: u64,
    pub(super) asked_withheld: u64,
    /// Policies judged in memory, asked, denied.
    pub(super) pure: u64,
    pub(super) ask: u64,
    pub(super) deny: u64,
    pub(super) transactions: u64,
}

/// What a SELECT says of the rows: visible ids, and those whose SELECT raises.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Shown {
    visible: BTreeSet<i32>,
    raises: BTreeSet<i32>,
}

/// What a SELECT says of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    Shows,
    Hides,
    Raises,
}

impl Shown {
    fn says(&self, id: i32) -> Says {
        match (self.visible.contains(&id), self.raises.contains(&id)) {
            (true, _) => Says::Shows,
            (_, true) => Says::Raises,
            _ => Says::Hides,
        }
    }
}

/// A database, a role, and a slot that reads its stream.
pub(super) struct World {
    database: TestDatabase,
    client: tokio_postgres::Client,
    asker: Asker,
    slot: String,
    principals: Vec<Arc<Principal>>,
}

/// Rows of `docs` by id.
type Docs = BTreeMap<i32, Tuple>;

impl World {
    pub(super) async fn new() -> World {
        let database = TestDatabase::alone().await;
        database.run(schema::SCHEMA).await;
        // Functions and policies that look into each other in a circle go round until it is full, which takes minutes otherwise.
        database.run("alter database template1 set max_stack_depth = '200kB'").await;
        database.run(&format!("alter publication rowcast_facts add table {}", FACTS.join(", "))).await;
        let client = database.config("plain_relay").connect().await.expect("connects");
        let (asker, _) = support::asker(&database, "plain_relay");
        let slot = format!("world_{}", rand::random::<u32>());
        let made = format!("select pg_create_logical_replication_slot('{slot}', 'pgoutput')");
        database.client.simple_query(&made).await.expect("a slot");
        World { database, client, asker, slot, principals: principals() }
    }

    /// Plays a round; what differs, as texts.
    pub(super) async fn round(&mut self, seed: u64, fault: Option<Fault>, counts: &mut Counts) -> Vec<String> {
        let mut dice = Dice::new(seed);
        let rules = self.rules(&mut dice).await;
        self.run(&schema::rows(&mut dice)).await;
        let catalog = support::catalog(&mut self.database, &["authenticated", "anon"]).await;
        let docs = catalog.find("public", "docs").expect("docs").clone();
        let plan = Arc::new(compile(&catalog, docs.oid, "authenticated", Options::default()));
        let rule = match &plan.engine {
            Engine::Pure(rule) => {
                counts.pure += 1;
                Some(if fault == Some(Fault::OpenInside) { opened(rule) } else { rule.clone() })
            }
            Engine::Ask { .. } => {
                counts.ask += 1;
                None
            }
            _ => {
                counts.deny += 1;
                None
            }
        };
        let relation = Arc::new(support::relation(&docs));
        let mut facts = Facts::new(64 << 20);
        if let Some(rule) = &rule {
            self.load(&mut facts, rule, &catalog).await;
        }
        // Its old transactions are in the snapshot.
        self.stream().await;
        let mut round = Round { plan, rule, relation, fault, differences: Vec::new(), unsure: false, rules };
        let (mut before, mut rows) = (self.shown(&round.relation).await, self.docs(&round.relation).await);
        round.compare(&facts, Side::After, &rows, &before, &self.principals, counts);
        // Also what memory leaves to it.
        if seed.is_multiple_of(4) || round.rule.is_none() || round.unsure {
            self.ask(&mut round, &rows, &before, counts).await;
        }
        for _ in 0..3 {
            self.run(&schema::transaction(&mut dice)).await;
            let after = self.shown(&round.relation).await;
            let old_rows = std::mem::replace(&mut rows, self.docs(&round.relation).await);
            for transaction in self.stream().await {
                counts.transactions += 1;
                if fault != Some(Fault::Forgotten) {
                    facts.begin(&transaction).expect("folds");
                }
            }
            if let Some(rule) = &round.rule {
                for source in &rule.sources {
                    let state = facts.state(source.table_oid);
                    assert!(matches!(state, FactState::Ready { .. }), "seed {seed}: {} is {state:?}", source.table);
                }
            }
            let (now, then) = match fault {
                Some(Fault::WrongSide) => (Side::Before, Side::After),
                _ => (Side::After, Side::Before),
            };
            round.compare(&facts, now, &rows, &after, &self.principals, counts);
            round.compare(&facts, then, &old_rows, &before, &self.principals, counts);
            facts.end();
            before = after;
        }
        round.differences
    }

    /// Puts a generated policy on `docs`, and others on the tables it may look into; returns them for people.
    async fn rules(&self, dice: &mut Dice) -> String {
        let mut statements = vec![
            "grant select on orgs, teams, members, profiles, blocks to authenticated".to_owned(),
            "drop policy if exists q on docs".into(),
        ];
        for table in FACTS {
            statements
                .push(format!("drop policy if exists p on {table}; alter table {table} disable row level security"));
            if let Some(policy) = grammar::inner_policy(dice, table) {
                statements.push(format!("alter table {table} enable row level security"));
                statements.push(format!("create policy p on {table} using ({policy})"));
            } else if dice.percent(6) {
                statements.push(format!("revoke select on {table} from authenticated"));
            }
        }
        let policy = grammar::policy(dice);
        statements.push(format!("drop policy if exists p on docs; create policy p on docs using ({policy})"));
        if dice.percent(30) {
            let kind = if dice.percent(50) { "restrictive" } else { "permissive" };
            let second = grammar::policy(dice);
            statements.push(format!("create policy q on docs as {kind} for select to authenticated using ({second})"));
        }
        let all = statements.join(";\n");
        self.database.run(&all).await;
        all
    }

    async fn run(&self, statements: &[String]) {
        self.database.run(&format!("begin; {}; commit", statements.join("; "))).await;
    }

    /// Loads what the rule looks into, as it stands now.
    async fn load(&self, facts: &mut Facts, rule: &Rule, catalog: &Catalog) {
        for (oid, columns) in rule.fact_columns() {
            let table = catalog.table(oid).expect("a table that a rule reads is known");
            let layout = Arc::new(Layout::of(table, catalog.types(), &columns).expect("it fits"));
            facts.record(layout.clone());
            let names: Vec<String> = layout.columns.iter().map(|c| format!("\"{}\"", c.name)).collect();
            let sql = format!("select {} from \"{}\"", names.join(", "), table.name);
            let snapshot = self.database.client.simple_query("select pg_current_snapshot()").await.expect("a snapshot");
            let snapshot = rows_of(&snapshot).next().and_then(|row| row.get(0)).expect("a value").to_owned();
            let mut loaded = FactTable::new(layout);
            for row in rows_of(&self.database.client.simple_query(&sql).await.expect("rows")) {
                loaded.insert((0..names.len()).map(|i| row.get(i).map(str::as_bytes))).expect("it fits");
            }
            let snapshot = Snapshot::parse(&snapshot).expect("a snapshot");
            facts.install(loaded, &snapshot).expect("installed");
        }
    }

    /// The transactions since the last call.
    async fn stream(&self) -> Vec<Transaction> {
        let sql = "select data from pg_logical_slot_get_binary_changes($1, null, null, 'proto_version', '1', \
                   'publication_names', 'supabase_realtime,rowcast_facts')";
        let rows = self.database.client.query(sql, &[&self.slot]).await.expect("changes");
        let messages: Vec<Bytes> = rows.iter().map(|row| Bytes::copy_from_slice(row.get::<_, &[u8]>(0))).collect();
        crate::wal::fuzz::transactions(&messages)
    }

    async fn docs(&self, relation: &Relation) -> Docs {
        let columns: Vec<String> = relation.columns.iter().map(|c| format!("\"{}\"", c.name)).collect();
        let sql = format!("select {} from docs order by id", columns.join(", "));
        let messages = self.database.client.simple_query(&sql).await.expect("docs");
        let row = |row: &tokio_postgres::SimpleQueryRow| {
            let value = |i| row.get(i).map_or(Value::Null, |text| Value::Text(text.as_bytes()));
            let id = row.get(0).and_then(|id| id.parse().ok()).expect("an id");
            (id, Tuple::from_values((0..columns.len()).map(value)))
        };
        rows_of(&messages).map(row).collect()
    }

    /// For each principal what a SELECT shows him.
    async fn shown(&mut self, _relation: &Relation) -> Vec<Shown> {
        let mut all = Vec::new();
        for principal in self.principals.clone() {
            all.push(match self.select(&principal, "").await {
                Ok(visible) => Shown { visible, raises: BTreeSet::new() },
                Err(()) => {
                    let mut shown = Shown::default();
                    for id in 1..=14 {
                        match self.select(&principal, &format!(" where id = {id}")).await {
                            Ok(visible) => shown.visible.extend(visible),
                            Err(()) => drop(shown.raises.insert(id)),
                        }
                    }
                    shown
                }
            });
        }
        all
    }

    async fn select(&mut self, principal: &Principal, which: &str) -> Result<BTreeSet<i32>, ()> {
        let transaction = self.client.transaction().await.expect("begins");
        crate::pg::assume(&transaction, &principal.role, &principal.subject, &principal.claims_json)
            .await
            .expect("assumes");
        let ids = transaction.query(&format!("select id from public.docs{which}"), &[]).await;
        ids.map(|rows| rows.iter().map(|row| row.get(0)).collect()).map_err(|_| ())
    }

    /// The same questions to Postgres.
    async fn ask(&self, round: &mut Round, rows: &Docs, shown: &[Shown], counts: &mut Counts) {
        if round.plan.form.is_none() {
            return;
        }
        let bound = round.plan.bind(&round.relation);
        for (id, row) in rows {
            let question = support::question(&bound, Change::Insert { new: row.clone() }, &self.principals);
            for (i, verdict) in self.asker.judge(&question).await.iter().enumerate() {
                let count = match (verdict, shown[i].says(*id)) {
                    (Verdict::Permit(_), Says::Shows) | (Verdict::Deny(DenyReason::Policy), Says::Hides) => {
                        &mut counts.asked
                    }
                    (Verdict::Deny(DenyReason::Policy), Says::Raises) => &mut counts.asked_no_for_raise,
                    (Verdict::Permit(_), Says::Raises) => &mut counts.asked_yes_for_raise,
                    // Whether it is reached is the planner's affair, and it plans the question otherwise than a SELECT.
                    (Verdict::Deny(DenyReason::PolicyError), Says::Raises) => &mut counts.asked_raises,
                    (Verdict::Deny(DenyReason::PolicyError), Says::Hides) => &mut counts.asked_raise_for_no,
                    (Verdict::Deny(DenyReason::PolicyError), Says::Shows) => &mut counts.asked_withheld,
                    _ => {
                        round.differ(*id, &self.principals[i], &format!("asked {verdict:?}"), &shown[i]);
                        continue;
                    }
                };
                *count += 1;
            }
        }
    }
}

/// A policy under test.
struct Round {
    plan: Arc<Plan>,
    rule: Option<Arc<Rule>>,
    relation: Arc<Relation>,
    fault: Option<Fault>,
    differences: Vec<String>,
    /// Memory left something to Postgres.
    unsure: bool,
    rules: String,
}

impl Round {
    fn compare(
        &mut self,
        facts: &Facts,
        side: Side,
        rows: &Docs,
        shown: &[Shown],
        principals: &[Arc<Principal>],
        counts: &mut Counts,
    ) {
        let Some(rule) = self.rule.clone() else { return self.closed(rows, shown, principals, counts) };
        let binding =
            facts.bind(&rule).unwrap_or_else(|missing| panic!("{} is not ready: {}", missing.table, missing.why));
        let keys = rule.keys();
        let places: Vec<usize> =
            rule.reads.iter().map(|read| self.relation.column(&read.name).expect("a column of docs")).collect();
        for (i, principal) in principals.iter().enumerate() {
            let judged_as = match self.fault {
                Some(Fault::NeighboursClaims) => &principals[i.saturating_sub(1)],
                _ => principal,
            };
            let viewer = rule.viewer(judged_as);
            for (id, row) in rows {
                let column = |read: usize| row.get(places[read]);
                let mut truth = rule.truth(&binding, facts, side, &column, &viewer);
                if self.fault == Some(Fault::NullIsTrue) && truth == Truth::Null {
                    truth = Truth::True;
                }
                let count = match (truth, shown[i].says(*id)) {
                    (Truth::True, Says::Shows) => {
                        counts.permits += 1;
                        &mut counts.verdicts
                    }
                    (Truth::False | Truth::Null, Says::Hides) => &mut counts.verdicts,
                    (Truth::False | Truth::Null, Says::Raises) => &mut counts.no_for_raise,
                    // Whether it is reached is the planner's affair.
                    (Truth::Raises, Says::Raises) => &mut counts.raises,
                    (Truth::Raises, Says::Hides) => &mut counts.raise_for_no,
                    (Truth::Raises, Says::Shows) => &mut counts.withheld,
                    (Truth::Unsure, _) => {
                        self.unsure = true;
                        &mut counts.unsure
                    }
                    (Truth::True, Says::Hides | Says::Raises) | (Truth::False | Truth::Null, Says::Shows) => {
                        self.differ(*id, principal, &format!("memory ({side:?}) {truth:?}"), &shown[i]);
                        continue;
                    }
                };
                *count += 1;
                if truth != Truth::True {
                    continue;
                }
                let Some(keys) = &keys else { continue };
                let mut values: Vec<(u16, Vec<u8>)> = Vec::new();
                let of_row = keys.of_row(&binding, facts, side, &column, 1000, &mut |claim, value: &[u8]| {
                    values.push((claim, value.to_vec()));
                });
                if self.fault == Some(Fault::LostKey) {
                    values.pop();
                }
                let found = keys.claims().iter().any(|claim| match keys.of_viewer(*claim, &viewer) {
                    ViewerKey::MustJudge => true,
                    ViewerKey::Values(own) => {
                        let crowded = matches!(&of_row, RowKeys::TooMany(claims) if claims.contains(claim));
                        let has = |own: &[u8]| values.iter().any(|(c, value)| c == claim && **value == *own);
                        own.iter().any(|own| crowded || has(own))
                    }
                });
                if !found {
                    self.differ(*id, principal, &format!("permitted ({side:?}), but not found by {keys}"), &shown[i]);
                }
            }
        }
    }

    /// A plan that denies everybody, or shows everything.
    fn closed(&mut self, rows: &Docs, shown: &[Shown], principals: &[Arc<Principal>], counts: &mut Counts) {
        if !matches!(self.plan.engine, Engine::Deny(_)) {
            return;
        }
        for (i, principal) in principals.iter().enumerate() {
            for id in rows.keys() {
                if shown[i].visible.contains(id) {
                    self.differ(*id, principal, &format!("{}", self.plan), &shown[i]);
                } else {
                    counts.denied_to_all += 1;
                }
            }
        }
    }

    fn differ(&mut self, id: i32, principal: &Principal, ours: &str, shown: &Shown) {
        let theirs = match shown.says(id) {
            Says::Shows => "shows it",
            Says::Raises => "raises",
            Says::Hides => "does not show it",
        };
        self.differences.push(format!(
            "doc {id} for {}: {ours}, a SELECT {theirs}\n{}\n{}",
            principal.claims_json, self.plan, self.rules
        ));
    }
}

/// The rule without the last operand of each conjunction inside a sub-select: where inner policies stand.
fn opened(rule: &Arc<Rule>) -> Arc<Rule> {
    use crate::policy::rule::Expr;
    fn walk(expr: &mut Expr, inside: bool) {
        match expr {
            Expr::And(parts) => {
                parts.iter_mut().for_each(|part| walk(part, inside));
                if inside && parts.len() > 1 {
                    parts.pop();
                }
            }
            Expr::Or(parts) => parts.iter_mut().for_each(|part| walk(part, inside)),
            Expr::Not(inner) | Expr::Is(inner, _) => walk(inner, inside),
            Expr::Exists(subquery) | Expr::In(_, subquery) => walk(&mut subquery.condition, true),
            _ => {}
        }
    }
    let mut opened = (**rule).clone();
    walk(&mut opened.condition, false);
    Arc::new(opened)
}

fn rows_of(messages: &[SimpleQueryMessage]) -> impl Iterator<Item = &tokio_postgres::SimpleQueryRow> {
    messages.iter().filter_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None })
}

fn principals() -> Vec<Arc<Principal>> {
    let mut all: Vec<Json> = USERS.iter().map(|user| json!({ "sub": user })).collect();
    all[0]["app_metadata"] = json!({ "level": 3, "kinds": ["a", "b"], "admin": true });
    all[0]["tenant"] = "a".into();
    all[1]["app_metadata"] = json!({ "level": "1", "kinds": [], "admin": false });
    all[1]["tenant"] = "b".into();
    all[1]["is_staff"] = true.into();
    all[2]["app_metadata"] = json!({ "level": 4, "kinds": ["A", null, "", 3] });
    all[2]["is_staff"] = "f".into();
    all.push(json!({ "sub": USERS[0].to_uppercase(), "tenant": "", "is_staff": false }));
    all.push(json!({ "tenant": "A", "app_metadata": { "kinds": "a", "level": null } }));
    all.push(json!({ "sub": "nobody", "app_metadata": [], "is_staff": null }));
    all.into_iter().map(|claims| support::principal("authenticated", claims)).collect()
}
