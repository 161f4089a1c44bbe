//! The index against a look at everybody, and what it keeps and forgets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};
use serde_json::{Value as Json, json};

use super::ChannelId;
use super::crowd::Crowd;
use crate::catalog::{Catalog, Wanted, read};
use crate::change::{
    Change, OldRow, Position, Relation, RelationColumn, RowChange, Timestamp, Transaction, TransactionBuilder, Tuple,
    Value,
};
use crate::claims::Principal;
use crate::filter::{ColumnSpec, Predicate, Validator, parse};
use crate::policy::facts::{FactState, FactTable, Layout};
use crate::policy::{Judged, Options, Plan, Verdict, compile};
use crate::testing::TestDatabase;

const TABLE: &str = "create table t (id int primary key, user_id uuid, org text, n numeric, kind text);
    alter table t replica identity full; alter table t enable row level security;
    create table members (org text, user_id uuid, primary key (org, user_id));
    grant select on members to authenticated;
    create policy p on t using (exists (select 1 from members where members.org = t.org and members.user_id = t.user_id));
    alter publication supabase_realtime add table t;
    create publication rowcast_facts for table members";

/// What a policy may be; those that memory can't judge are asked about, and so found as well.
const POLICIES: &[&str] = &[
    "user_id = auth.uid()",
    "(select auth.uid()) = user_id and kind <> 'x'",
    "user_id = auth.uid() or org = (auth.jwt() ->> 'org')",
    "user_id = auth.uid() and org = (auth.jwt() ->> 'org')",
    "n = ((auth.jwt() ->> 'n')::numeric) or user_id = auth.uid()",
    "org = any (array(select jsonb_array_elements_text(auth.jwt() -> 'orgs')))",
    "kind = 'x' or user_id = auth.uid()",
    "user_id is null or user_id = auth.uid()",
    "org in (select org from members where user_id = auth.uid())",
    "user_id = auth.uid() or exists (select 1 from members m where m.org = t.org and m.user_id = auth.uid())",
    "not exists (select 1 from members m where m.org = t.org and m.user_id = auth.uid())",
    "length(kind) > 1",
    "true",
    "false",
];

fn uuid(user: u32) -> String {
    format!("{user:08x}-0000-4000-8000-000000000000")
}

pub(super) async fn catalog(database: &mut TestDatabase) -> Catalog {
    let roles = ["authenticated", "anon"].map(String::from).into();
    let wanted = Wanted { publications: vec!["supabase_realtime".into()], others: vec!["rowcast_facts".into()], roles };
    read(&mut database.client, &wanted).await.expect("the catalog")
}

fn relation(catalog: &Catalog, name: &str) -> Arc<Relation> {
    let table = catalog.named("public", name).expect("the table");
    let column = |c: &crate::catalog::Column| RelationColumn {
        name: c.name.clone(),
        type_oid: c.type_oid,
        type_modifier: c.type_modifier,
        key: table.identity_columns.contains(&c.name) || table.identity == crate::change::ReplicaIdentity::Full,
    };
    let columns = table.columns.iter().map(column).collect();
    Arc::new(Relation {
        oid: table.oid,
        schema: "public".into(),
        table: name.into(),
        identity: table.identity,
        columns,
    })
}

async fn predicate(database: &TestDatabase, catalog: &Catalog, text: &str) -> Predicate {
    let conditions = parse(text).expect("a filter");
    let table = catalog.find("public", "t").expect("the table");
    let spec = |column: &'static str| {
        let known = table.column(column).expect("a column");
        ColumnSpec {
            name: column,
            type_oid: known.type_oid,
            type_name: "",
            collation_deterministic: true,
            collation: None,
            collation_bytewise: false,
            utf8: true,
            readable: true,
        }
    };
    let specs: Vec<ColumnSpec<'_>> = ["id", "user_id", "org", "n", "kind"].into_iter().map(spec).collect();
    let validator = Validator::new(database.pool("relay"), Duration::from_secs(20));
    validator.validate("test", &conditions, &specs, catalog.types()).await.expect("valid")
}

/// Numbers from a seed, so that a failure can be seen again.
struct Dice(StdRng);

impl Dice {
    fn new(seed: usize) -> Dice {
        Dice(StdRng::seed_from_u64(seed as u64))
    }

    fn below(&mut self, bound: u32) -> u32 {
        self.0.next_u32() % bound
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u32) as usize]
    }

    fn principal(&mut self) -> Arc<Principal> {
        let org = |dice: &mut Dice| format!("o{}", dice.below(5));
        let subject: Json = match self.below(12) {
            0 => Json::Null,
            1 => "no uuid".into(),
            2 => json!(["odd"]),
            _ => uuid(self.below(6)).into(),
        };
        let orgs = (0..self.below(4)).map(|_| org(self)).collect::<Vec<_>>();
        let n: Json = [json!(1), json!("1.50"), json!("NaN"), json!("x"), Json::Null][self.below(5) as usize].clone();
        let claims = json!({"role": self.one(&["authenticated", "authenticated", "anon"]), "sub": subject,
            "org": org(self), "orgs": orgs, "n": n, "iat": self.below(1000)});
        let Json::Object(claims) = claims else { unreachable!("it is an object") };
        let expires_at = if self.below(10) == 0 { 0 } else { i64::MAX };
        Arc::new(Principal::new(claims, expires_at).expect("a role"))
    }

    fn tuple(&mut self, holes: bool) -> Tuple {
        let mut text = |values: &[Option<String>]| self.one(values).clone();
        let users: Vec<Option<String>> = (0..6).map(|user| Some(uuid(user))).chain([None]).collect();
        let orgs: Vec<Option<String>> = (0..5).map(|org| Some(format!("o{org}"))).chain([None]).collect();
        let numbers = ["1", "1.0", "1.5", "1.50", "NaN"].map(|n| Some(n.to_owned()));
        let kinds = ["x", "y", "long"].map(|kind| Some(kind.to_owned()));
        let texts = [Some("7".to_owned()), text(&users), text(&orgs), text(&numbers), text(&kinds)];
        let hole = if holes && self.below(8) == 0 { 1 + self.below(4) as usize } else { usize::MAX };
        let values: Vec<Value<'_>> = texts
            .iter()
            .enumerate()
            .map(|(i, text)| match text {
                _ if i == hole => Value::Unchanged,
                Some(text) => Value::Text(text.as_bytes()),
                None => Value::Null,
            })
            .collect();
        Tuple::from_values(values.into_iter())
    }

    fn change(&mut self) -> Change {
        match self.below(4) {
            0 => Change::Delete { old: OldRow::Full(self.tuple(false)) },
            1 => Change::Update { old: Some(OldRow::Full(self.tuple(false))), new: self.tuple(true) },
            2 => Change::Update { old: None, new: self.tuple(true) },
            _ => Change::Insert { new: self.tuple(false) },
        }
    }
}

fn row(relation: &Arc<Relation>, change: Change) -> RowChange {
    let position = Position { lsn: crate::change::Lsn(9), ordinal: 1 };
    RowChange { relation: relation.clone(), position, change }
}

/// Channels by what becomes of a row for them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Fates {
    permitted: BTreeSet<u64>,
    asked: BTreeSet<u64>,
    undecided: BTreeSet<u64>,
}

/// By the index.
fn found(crowd: &mut Crowd, row: &RowChange) -> Fates {
    let judgement = crowd.judge(row);
    let mut fates = Fates::default();
    for ready in judgement.permits.iter().flat_map(|(_, ready)| ready) {
        assert!(fates.permitted.insert(ready.port.id.0), "once each");
    }
    for waiting in judgement.asked.iter().flat_map(|asked| &asked.waiting) {
        assert!(fates.asked.insert(waiting.share.channel.0), "once each");
    }
    fates.undecided.extend(judgement.undecided.iter().map(|port| port.id.0));
    fates
}

type Member = (ChannelId, Arc<Principal>, Predicate);

/// By a look at everybody; `plans` are those of the roles.
fn owed(crowd: &Crowd, plans: &BTreeMap<String, Arc<Plan>>, members: &[Member], row: &RowChange) -> Fates {
    let bind = |(role, plan): (&String, &Arc<Plan>)| {
        let binding = plan.rule().and_then(|rule| crowd.facts.bind(rule).ok());
        (role.clone(), (plan.bind(&row.relation), binding))
    };
    let bounds: BTreeMap<String, _> = plans.iter().map(bind).collect();
    let mut fates = Fates::default();
    for (id, principal, predicate) in members {
        let (bound, binding) = &bounds[&*principal.role];
        let facts = binding.as_ref().map(|binding| (binding, &crowd.facts));
        if !predicate.bind(&row.relation).is_some_and(|bound| bound.matches(&row.change)) {
            continue;
        }
        let viewer = bound.plan().viewer(principal);
        // Whom the keys exclude can't be permitted, so nobody is bothered for him.
        let finds = bound.finds(&row.change, &viewer, facts);
        match bound.judge(&row.change, &viewer, principal, facts, 0) {
            Judged::Decided(Verdict::Permit(_)) => fates.permitted.insert(id.0),
            Judged::Ask => finds && fates.asked.insert(id.0),
            Judged::Decided(Verdict::Undecided(_)) => finds && fates.undecided.insert(id.0),
            Judged::Decided(Verdict::Deny(_)) => false,
        };
    }
    fates
}

/// Loads the memberships of these (org, user).
fn load(crowd: &mut Crowd, catalog: &Catalog, members: &BTreeSet<(u32, u32)>) {
    let table = catalog.named("public", "members").expect("the table");
    let wanted = table.columns.iter().map(|column| column.number).collect();
    let layout = Arc::new(Layout::of(table, catalog.types(), &wanted).expect("a fact table"));
    crowd.facts.record(layout.clone());
    let mut loaded = FactTable::new(layout);
    for (org, user) in members {
        let values = [format!("o{org}"), uuid(*user)];
        loaded.insert(values.iter().map(|value| Some(value.as_bytes()))).expect("it fits");
    }
    crowd.facts.install(loaded, &catalog.snapshot).expect("it is being recorded");
}

/// A transaction that ends or begins a membership.
fn change_of(relation: &Arc<Relation>, tag: u8, (org, user): (u32, u32)) -> Transaction {
    let mut builder = TransactionBuilder::default();
    let mut raw = vec![if tag == b'I' { b'N' } else { b'K' }];
    let values = [format!("o{org}"), uuid(user)];
    Tuple::encode(values.iter().map(|value| Value::Text(value.as_bytes())), &mut raw);
    builder.row(tag, relation, &raw.into()).expect("a row");
    let lsn = crate::change::Lsn(9);
    builder.finish(4_000_000_000, lsn, lsn, Timestamp(0), None)
}

/// Another shape of the table than the catalog knows: one of the two is older.
fn reshaped(relation: &Relation, column: usize) -> Arc<Relation> {
    let mut relation = relation.clone();
    relation.columns[column].type_oid = 3802;
    Arc::new(relation)
}

#[tokio::test]
async fn who_is_found_is_who_a_look_at_everybody_permits() {
    let mut database = TestDatabase::new().await;
    database.run(TABLE).await;
    let first = catalog(&mut database).await;
    let mut predicates = vec![Predicate::everything()];
    for text in ["kind=eq.x", "org=eq.o1", "n=eq.1.5", "user_id=eq.00000001-0000-4000-8000-000000000000,kind=neq.y"] {
        predicates.push(predicate(&database, &first, text).await);
    }
    let (memberships, relation) = (relation(&first, "members"), relation(&first, "t"));
    let mut crowd = Crowd::new(first.clone(), Options::default());
    // The facts come when all else has been seen once without them.
    let mut loaded: Option<BTreeSet<(u32, u32)>> = None;
    let (mut dice, mut members, mut reached) = (Dice::new(7), Vec::<Member>::new(), Fates::default());
    for policy in POLICIES.iter().chain(POLICIES) {
        database.run(&format!("alter policy p on t using ({policy})")).await;
        // Whoever is there is found by the new rules from now on.
        crowd.apply_rules(catalog(&mut database).await);
        let plan = |role: &str| Arc::new(compile(&crowd.catalog, relation.oid, role, Options::default()));
        let plans = ["authenticated", "anon"].map(|role| (role.to_owned(), plan(role))).into();
        for step in 0..200 {
            let mut folded = None;
            match dice.below(10) {
                0..=1 if members.len() < 100 => {
                    let (principal, predicate) = (dice.principal(), dice.one(&predicates).clone());
                    let id = crowd.join(&principal, relation.oid, predicate.clone());
                    members.push((id, principal, predicate));
                }
                2 if !members.is_empty() => {
                    let (id, ..) = members.swap_remove(dice.below(members.len() as u32) as usize);
                    crowd.leave(id);
                }
                3 if !members.is_empty() => {
                    let at = dice.below(members.len() as u32) as usize;
                    members[at].1 = dice.principal();
                    let (id, principal, predicate) = &members[at];
                    crowd.activate(*id, principal, relation.oid, predicate.clone());
                }
                what => {
                    if let Some(known) = loaded.as_mut().filter(|_| what == 4) {
                        let one = (dice.below(5), dice.below(6));
                        let tag = if known.remove(&one) { b'D' } else { b'I' };
                        if tag == b'I' {
                            known.insert(one);
                        }
                        folded = Some(change_of(&memberships, tag, one));
                    }
                    if let Some(transaction) = &folded {
                        crowd.facts.begin(transaction).expect("it can be read");
                    }
                    let relation = match dice.below(20) {
                        0 => reshaped(&relation, dice.below(5) as usize),
                        _ => relation.clone(),
                    };
                    let row = row(&relation, dice.change());
                    let owed = owed(&crowd, &plans, &members, &row);
                    assert_eq!(found(&mut crowd, &row), owed, "{policy}, step {step}, {:?}", row.change);
                    reached.permitted.extend(owed.permitted);
                    reached.asked.extend(owed.asked);
                    reached.undecided.extend(owed.undecided);
                }
            }
            if folded.is_some() {
                crowd.facts.end();
            }
            if step == 100 && *policy == "true" && loaded.is_none() {
                load(&mut crowd, &first, loaded.insert([(1, 1), (1, 2), (2, 1), (3, 4)].into()));
            }
        }
        let last = crowd.join(&dice.principal(), relation.oid, Predicate::everything());
        members.drain(..).for_each(|(id, ..)| crowd.leave(id));
        let index = crowd.registry.table(super::registry::At::Live, relation.oid).expect("one is left");
        assert!(index.footprint() <= 4, "{policy}: {} of one", index.footprint());
        members.push((last, dice.principal(), Predicate::everything()));
        crowd.activate(last, &members[0].1, relation.oid, Predicate::everything());
    }
    let members = memberships.oid;
    assert!(matches!(crowd.facts.state(members), FactState::Ready { .. }), "{:?}", crowd.facts.state(members));
    for (what, channels) in
        [("permitted", reached.permitted), ("asked", reached.asked), ("undecided", reached.undecided)]
    {
        assert!(channels.len() > 20, "{} {what}", channels.len());
    }
}

fn user(sub: &str, iat: i64, expires_at: i64) -> Arc<Principal> {
    let Json::Object(claims) = json!({"role": "authenticated", "sub": sub, "iat": iat}) else { unreachable!() };
    Arc::new(Principal::new(claims, expires_at).expect("a role"))
}

#[tokio::test]
async fn a_row_is_judged_once_for_all_channels_and_tokens_of_a_user() {
    let mut database = TestDatabase::new().await;
    database.run(TABLE).await;
    database.run("alter policy p on t using (user_id = auth.uid())").await;
    let catalog = catalog(&mut database).await;
    let relation = relation(&catalog, "t");
    let mut crowd = Crowd::new(catalog, Options::default());
    let mut join = |user: &Arc<Principal>| crowd.join(user, relation.oid, Predicate::everything());
    let ids: Vec<ChannelId> = (0..1000).map(|iat| join(&user(&uuid(1), iat, i64::MAX))).collect();
    join(&user(&uuid(1), 7, 0));
    for number in 2..1000 {
        join(&user(&uuid(number), 7, i64::MAX));
    }
    let values = [Some("7"), Some(&*uuid(1)), None, None, Some("x")];
    let new =
        Tuple::from_values(values.map(|v| v.map_or(Value::Null, |text| Value::Text(text.as_bytes()))).into_iter());
    let row = row(&relation, Change::Insert { new });
    let fates = found(&mut crowd, &row);
    let owed: BTreeSet<u64> = ids.iter().map(|id| id.0).collect();
    assert!(fates.permitted == owed, "all but the one whose token has expired");
    assert_eq!(crowd.judged(), 1);
    let denied = crate::policy::DenyReason::Expired.as_str();
    assert_eq!(crowd.metrics.denials.get_or_create(&[("reason", denied)]).get(), 1, "candidates are counted");
}
