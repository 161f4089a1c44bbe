//! Single cases by name: the seam's edges, what breaks a table, what a rule over memberships says and whom it finds.

use std::sync::Arc;

use bytes::Bytes;

use super::memory::{filled, memberships, uuid};
use crate::catalog::Snapshot;
use crate::change::{
    Lsn, Relation, RelationColumn, ReplicaIdentity, Timestamp, Transaction, TransactionBuilder, Tuple, Value,
};
use crate::pgtype::{Equality, Order};
use crate::policy::facts::{FactBinding, FactState, FactTable, Facts, Lookups, Side};
use crate::policy::rule::{
    ClaimTerm, Claimed, ColumnRef, CompareOp, Expr, FactSource, Kind, KnownViewer, Members, RowKeys, Rule, RuleColumn,
    Scalar, Subquery, Truth, Viewer, ViewerKey,
};
use crate::policy::{Setting, Term};

type Image<'a> = (u8, &'a [Option<&'a str>]);

/// The relation of [`memberships`].
pub(super) fn membership() -> Arc<Relation> {
    relation(&["team_id", "user_id", "role"], 2)
}

fn relation(names: &[&str], key: usize) -> Arc<Relation> {
    let column = |(at, name): (usize, &&str)| RelationColumn {
        name: (*name).to_owned(),
        type_oid: if *name == "role" { 25 } else { 2950 },
        type_modifier: -1,
        key: at < key,
    };
    Arc::new(Relation {
        oid: 1001,
        schema: "public".into(),
        table: "members".into(),
        identity: ReplicaIdentity::Default,
        columns: names.iter().enumerate().map(column).collect(),
    })
}

/// Changes as the server sends them: a tag, the relation, the images. A cell `"u"` is not sent.
pub(super) fn transaction(xid: u32, changes: &[(u8, &Arc<Relation>, &[Image<'_>])]) -> Transaction {
    let mut builder = TransactionBuilder::default();
    for (tag, relation, images) in changes {
        let mut raw = Vec::new();
        for (kind, cells) in *images {
            raw.push(*kind);
            let values: Vec<Value<'_>> = cells
                .iter()
                .map(|cell| match cell {
                    None => Value::Null,
                    Some("u") => Value::Unchanged,
                    Some(text) => Value::Text(text.as_bytes()),
                })
                .collect();
            Tuple::encode(values.into_iter(), &mut raw);
        }
        match tag {
            b'T' => builder.truncate(0, &[(*relation).clone()]).expect("a truncate"),
            tag => builder.row(*tag, relation, &Bytes::from(raw)).expect("a row"),
        }
    }
    builder.finish(xid, Lsn(u64::from(xid)), Lsn(u64::from(xid)), Timestamp(0), None)
}

pub(super) fn ready(rows: u64) -> Facts {
    let mut facts = Facts::new(usize::MAX);
    facts.record(memberships());
    facts.install(filled(rows), &Snapshot::parse("100:100:").expect("a snapshot")).expect("installed");
    facts
}

fn fold(facts: &mut Facts, tx: &Transaction) {
    facts.begin(tx).expect("it can be read");
    facts.end();
}

fn why(facts: &Facts) -> String {
    match facts.state(1001) {
        FactState::Broken(why) => why,
        other => format!("{other:?}"),
    }
}

fn rows(facts: &Facts) -> u64 {
    match facts.state(1001) {
        FactState::Ready { rows, .. } => rows,
        other => panic!("{other:?}"),
    }
}

const UUID: Kind = Kind { oid: 2950, equality: Equality::Bytes, order: Some(Order::Bytes) };
const TEXT: Kind = Kind { oid: 25, equality: Equality::Bytes, order: Some(Order::Bytes) };

pub(super) fn col(slot: u16, column: u16) -> Scalar {
    Scalar::Column(ColumnRef { slot, column })
}

pub(super) fn eq(a: Scalar, b: Scalar) -> Expr {
    Expr::Compare(CompareOp::Eq, UUID, Box::new((a, b)))
}

pub(super) fn rule(condition: Expr, sources: usize) -> Rule {
    let column = |(at, name): (usize, &&str)| RuleColumn {
        name: (*name).into(),
        number: at as i16 + 1,
        kind: if *name == "role" { TEXT } else { UUID },
    };
    let source = FactSource {
        table_oid: 1001,
        table: "public.members".into(),
        columns: ["team_id", "user_id", "role"].iter().enumerate().map(column).collect(),
    };
    Rule {
        condition,
        reads: ["team_id", "owner_id", "other_id"].iter().enumerate().map(column).collect(),
        claims: vec![ClaimTerm { term: Term::Setting(Setting::Subject), kind: UUID }; 2],
        sources: vec![source; sources],
    }
}

/// `EXISTS (SELECT FROM members WHERE team_id = row.team_id AND user_id = uid AND …)`.
pub(super) fn member(slot: u16, more: Option<Expr>) -> Expr {
    let parts = [eq(col(slot, 0), col(0, 0)), eq(Scalar::Claim(0), col(slot, 1))];
    let condition = Expr::And(parts.into_iter().chain(more).collect());
    Expr::Exists(Box::new(Subquery { slots: vec![slot], condition, outputs: Vec::new() }))
}

pub(super) fn viewer(user: u64) -> Viewer {
    Viewer::new([Claimed::Value(uuid(user).into_bytes().into()), Claimed::Null])
}

fn truth(rule: &Rule, facts: &Facts, side: Side, team: &str, user: u64) -> Truth {
    let binding = facts.bind(rule).expect("ready");
    rule.truth(&binding, facts, side, &|_| Value::Text(team.as_bytes()), &viewer(user))
}

pub(super) const FIRST: u64 = 1 << 40;

#[test]
fn a_member_is_one_until_the_commit_that_ends_it_and_the_old_row_is_judged_before_it() {
    let (mut facts, rule) = (ready(1000), rule(member(1, None), 1));
    let (team, user) = (uuid(0), uuid(FIRST + 7));
    assert_eq!(truth(&rule, &facts, Side::After, &team, FIRST + 7), Truth::True);
    assert_eq!(truth(&rule, &facts, Side::After, &uuid(1), FIRST + 7), Truth::False);
    let gone = transaction(200, &[(b'D', &membership(), &[(b'K', &[Some(&team), Some(&user), None])])]);
    facts.begin(&gone).expect("it can be read");
    assert_eq!(truth(&rule, &facts, Side::Before, &team, FIRST + 7), Truth::True);
    assert_eq!(truth(&rule, &facts, Side::After, &team, FIRST + 7), Truth::False);
    facts.end();
    assert_eq!(truth(&rule, &facts, Side::Before, &team, FIRST + 7), Truth::False);
}

#[test]
fn a_truncate_empties_the_table_for_new_rows_and_not_for_old_ones() {
    let (mut facts, rule) = (ready(3000), rule(member(1, None), 1));
    let team = uuid(0);
    facts.begin(&transaction(200, &[(b'T', &membership(), &[])])).expect("it can be read");
    assert_eq!(truth(&rule, &facts, Side::Before, &team, FIRST), Truth::True);
    assert_eq!(truth(&rule, &facts, Side::After, &team, FIRST), Truth::False);
    assert_eq!(rows(&facts), 0);
    facts.end();
    assert_eq!(truth(&rule, &facts, Side::Before, &team, FIRST), Truth::False);
    // The indexes that the rule was bound to are still kept.
    let user = uuid(FIRST);
    fold(&mut facts, &transaction(201, &[(b'I', &membership(), &[(b'N', &[Some(&team), Some(&user), None])])]));
    assert_eq!(truth(&rule, &facts, Side::After, &team, FIRST), Truth::True);
}

#[test]
fn values_that_were_not_sent_again_are_those_of_the_row() {
    let (mut facts, team, user) = (ready(10), uuid(0), uuid(FIRST));
    let admin = Expr::Compare(CompareOp::Eq, TEXT, Box::new((col(1, 2), Scalar::Constant(Some(b"admin"[..].into())))));
    let rule = rule(member(1, Some(admin)), 1);
    assert_eq!(truth(&rule, &facts, Side::After, &team, FIRST), Truth::True);
    let other = uuid(5);
    // The key moves, the role is out of line.
    let moved: &[Image<'_>] =
        &[(b'K', &[Some(&team), Some(&user), None]), (b'N', &[Some(&other), Some("u"), Some("u")])];
    fold(&mut facts, &transaction(200, &[(b'U', &membership(), moved)]));
    assert_eq!(truth(&rule, &facts, Side::After, &team, FIRST), Truth::False);
    assert_eq!(truth(&rule, &facts, Side::After, &other, FIRST), Truth::True);
}

#[test]
fn a_row_that_changes_often_in_one_transaction_has_two_sides() {
    let (mut facts, rule, team, user) = (ready(10), rule(member(1, None), 1), uuid(0), uuid(FIRST));
    let relation = membership();
    let gone: &[Image<'_>] = &[(b'K', &[Some(&team), Some(&user), None])];
    let back: &[Image<'_>] = &[(b'N', &[Some(&team), Some(&user), Some("guest")])];
    let mut changes: Vec<(u8, &Arc<Relation>, &[Image<'_>])> = Vec::new();
    for _ in 0..50 {
        changes.extend([(b'D', &relation, gone), (b'I', &relation, back), (b'U', &relation, back)]);
    }
    changes.push((b'D', &relation, gone));
    facts.begin(&transaction(200, &changes)).expect("it can be read");
    assert_eq!(truth(&rule, &facts, Side::Before, &team, FIRST), Truth::True);
    assert_eq!(truth(&rule, &facts, Side::After, &team, FIRST), Truth::False);
    facts.end();
    assert_eq!(rows(&facts), 9);
}

#[test]
fn what_contradicts_the_rows_breaks_the_table() {
    let (team, user, stranger) = (uuid(0), uuid(FIRST), uuid(77));
    let own: &[Option<&str>] = &[Some(&team), Some(&user), None];
    let other: &[Option<&str>] = &[Some(&team), Some(&stranger), None];
    let lost: &[Option<&str>] = &[Some(&team), Some(&stranger), Some("u")];
    let renamed = relation(&["team_id", "user_id", "rank"], 2);
    let unkeyed = relation(&["team_id", "user_id", "role"], 1);
    let of_type = {
        let mut relation = (*membership()).clone();
        relation.columns[2].type_oid = 1043;
        Arc::new(relation)
    };
    let relation = membership();
    for (tag, relation, images, expected) in [
        (b'I', &relation, &[(b'N', own)][..], "there already"),
        (b'D', &relation, &[(b'K', other)], "is not there"),
        (b'U', &relation, &[(b'N', other)], "is not there"),
        (b'I', &relation, &[(b'N', lost)], "was not sent"),
        (b'I', &renamed, &[(b'N', other)], "column role is not in the stream"),
        (b'I', &of_type, &[(b'N', other)], "another type"),
        (b'U', &unkeyed, &[(b'N', own)], "no longer in the replica identity"),
    ] {
        let mut facts = ready(10);
        let generation = facts.generation();
        fold(&mut facts, &transaction(200, &[(tag, relation, images)]));
        assert!(why(&facts).contains(expected), "{}", why(&facts));
        assert_ne!(facts.generation(), generation);
        let error = facts.bind(&rule(member(1, None), 1)).expect_err("it is broken");
        assert!(error.to_string().starts_with("facts of public.members: to be loaded again"), "{error}");
        assert!(!facts.concerns(std::slice::from_ref(relation)));
    }
}

#[test]
fn a_binding_that_is_no_longer_valid_is_unsure() {
    let (mut facts, rule) = (ready(10), rule(member(1, None), 1));
    let binding = facts.bind(&rule).expect("ready");
    facts.forget(9);
    let team = uuid(0);
    let column = |_: usize| Value::Text(team.as_bytes());
    assert_eq!(rule.truth(&binding, &facts, Side::After, &column, &viewer(FIRST)), Truth::Unsure);
    let keys = rule.keys().expect("keys");
    let outcome = keys.of_row(&binding, &facts, Side::After, &column, 1000, &mut |_, _| ());
    assert_eq!(outcome, RowKeys::TooMany(smallvec::smallvec![0]));
}

#[test]
fn transactions_that_the_snapshot_has_are_skipped_also_when_the_stream_comes_to_them_later() {
    let (team, user) = (uuid(0), uuid(FIRST));
    let insert = |xid| transaction(xid, &[(b'I', &membership(), &[(b'N', &[Some(&team), Some(&user), None])])]);
    let mut facts = Facts::new(usize::MAX);
    facts.record(memberships());
    // 150 committed, is in the stream, and the snapshot does not see it yet; 140 it sees before the stream has it.
    fold(&mut facts, &transaction(150, &[(b'I', &membership(), &[(b'N', &[Some(&team), Some(&uuid(9)), None])])]));
    assert_eq!(facts.state(1001), FactState::Recording { since_rows: 1 });
    facts.install(filled(10), &Snapshot::parse("150:160:150,155").expect("a snapshot")).expect("installed");
    assert_eq!(rows(&facts), 11);
    fold(&mut facts, &insert(140));
    assert_eq!(rows(&facts), 11);
    fold(&mut facts, &transaction(155, &[(b'D', &membership(), &[(b'K', &[Some(&team), Some(&user), None])])]));
    assert_eq!(rows(&facts), 10);
    // From here on nothing that it saw can follow, whatever the number.
    fold(&mut facts, &transaction(160, &[]));
    fold(&mut facts, &insert(161));
    assert_eq!(rows(&facts), 11);
}

#[test]
fn a_table_that_rests_while_ids_wrap_around_still_follows_the_stream() {
    let (team, user) = (uuid(0), uuid(FIRST));
    let mut facts = ready(10);
    // Transactions of other tables only, until the ids of new ones look older than the snapshot's.
    facts.pass(100);
    facts.pass(2_000_000_000);
    let gone = (1 << 31) + 200;
    fold(&mut facts, &transaction(gone, &[(b'D', &membership(), &[(b'K', &[Some(&team), Some(&user), None])])]));
    assert_eq!(rows(&facts), 9);
}

#[test]
fn a_shape_that_does_not_fit_matters_only_if_the_snapshot_does_not_have_the_transaction() {
    let renamed = relation(&["team_id", "user_id", "rank"], 2);
    let (team, user) = (uuid(0), uuid(99));
    let tx = transaction(150, &[(b'I', &renamed, &[(b'N', &[Some(&team), Some(&user), None])])]);
    for (snapshot, fits) in [("151:151:", true), ("150:151:150", false)] {
        let mut facts = Facts::new(usize::MAX);
        facts.record(memberships());
        fold(&mut facts, &tx);
        let outcome = facts.install(filled(10), &Snapshot::parse(snapshot).expect("a snapshot"));
        assert_eq!(outcome.is_ok(), fits, "{outcome:?}");
        assert_eq!(matches!(facts.state(1001), FactState::Ready { .. }), fits);
    }
}

#[test]
fn a_table_is_installed_only_if_it_is_being_recorded() {
    let mut facts = ready(10);
    assert!(facts.install(FactTable::new(memberships()), &Snapshot::parse("1:1:").expect("a snapshot")).is_err());
    assert_eq!(rows(&facts), 10);
}

/// Whom the rule finds for a row of this team: (claim, value), sorted.
fn found(rule: &Rule, facts: &Facts, row: [&str; 3], limit: usize) -> (RowKeys, Vec<(u16, String)>) {
    let binding = facts.bind(rule).expect("ready");
    let mut found = Vec::new();
    let column = |at: usize| Value::Text(row[at].as_bytes());
    let keys = rule.keys().expect("keys");
    let outcome = keys.of_row(&binding, facts, Side::After, &column, limit, &mut |claim, value| {
        found.push((claim, String::from_utf8_lossy(value).into_owned()));
    });
    found.sort();
    found.dedup();
    (outcome, found)
}

#[test]
fn members_of_the_row_s_team_are_found_and_no_others() {
    let facts = ready(1000);
    let rule = rule(Expr::Or(vec![member(1, None), eq(col(0, 1), Scalar::Claim(0))]), 1);
    let (team, owner) = (uuid(3), uuid(55));
    let (outcome, users) = found(&rule, &facts, [&team, &owner, &owner], 1000);
    assert_eq!((outcome, users.len()), (RowKeys::Complete, 101));
    assert!(users.contains(&(0, owner.clone())) && users.contains(&(0, uuid(FIRST + 300))));
    let keys = rule.keys().expect("keys");
    assert_eq!(keys.to_string(), "public.members by team_id or owner_id");
    assert_eq!(keys.claims(), [0]);
    assert_eq!(keys.of_viewer(0, &viewer(5)), ViewerKey::Values([uuid(5).into_bytes().into()].into_iter().collect()));
    let (outcome, _) = found(&rule, &facts, [&team, &owner, &owner], 99);
    assert_eq!(outcome, RowKeys::TooMany(smallvec::smallvec![0]));
}

#[test]
fn two_tables_and_nested_sub_selects_are_walked_from_the_row() {
    let facts = ready(1000);
    // Who shares a team with a member of the row's team: members m1, m2 on the same team, m1's user is the row's owner.
    let inner = Expr::And(vec![eq(col(2, 0), col(1, 0)), eq(col(2, 1), Scalar::Claim(0))]);
    let inner = Expr::Exists(Box::new(Subquery { slots: vec![2], condition: inner, outputs: Vec::new() }));
    let outer = Subquery { slots: vec![1], condition: inner, outputs: vec![col(1, 1)] };
    let rule = rule(Expr::In(vec![(UUID, col(0, 1))], Box::new(outer)), 2);
    let (nobody, owner) = (uuid(77), uuid(FIRST + 250));
    let (outcome, users) = found(&rule, &facts, [&nobody, &owner, &nobody], 1000);
    assert_eq!((outcome, users.len()), (RowKeys::Complete, 100));
    assert_eq!(rule.keys().expect("keys").to_string(), "public.members by user_id, then public.members by team_id");
    let binding = facts.bind(&rule).expect("ready");
    let column = |at: usize| Value::Text(if at == 1 { owner.as_bytes() } else { nobody.as_bytes() });
    for (user, expected) in [(FIRST + 299, Truth::True), (FIRST + 300, Truth::False)] {
        assert_eq!(rule.truth(&binding, &facts, Side::After, &column, &viewer(user)), expected, "{user}");
    }
}

#[test]
fn branches_of_the_row_or_the_claims_alone_are_decided_for_the_row_or_the_viewer() {
    let (facts, team, open) = (ready(10), uuid(0), uuid(8));
    let constant = |text: &str| Scalar::Constant(Some(text.as_bytes().into()));
    let public = eq(col(0, 2), constant(&open));
    let service = eq(Scalar::Claim(1), constant(&open));
    let rule = rule(Expr::Or(vec![member(1, None), public, service]), 1);
    let keys = rule.keys().expect("keys");
    assert_eq!(keys.claims(), [0, u16::MAX]);
    assert_eq!(
        keys.to_string(),
        "public.members by team_id or everybody, for some rows or whoever's claims alone decide"
    );
    let nobody = Viewer::new([Claimed::Null, Claimed::Null]);
    assert_eq!(keys.of_viewer(0, &nobody), ViewerKey::Values(Default::default()));
    assert_eq!(keys.of_viewer(u16::MAX, &nobody), ViewerKey::Values([Box::default()].into_iter().collect()));
    let service = Viewer::new([Claimed::Null, Claimed::Value(open.clone().into_bytes().into())]);
    assert_eq!(keys.of_viewer(0, &service), ViewerKey::MustJudge);
    let (_, users) = found(&rule, &facts, [&team, &team, &open], 1000);
    assert!(users.contains(&(u16::MAX, String::new())));
    let (_, users) = found(&rule, &facts, [&team, &team, &team], 1000);
    assert_eq!(users.len(), 10);
}

#[test]
fn what_is_not_necessary_yields_no_key() {
    let keys = |condition: Expr| rule(condition, 1).keys().is_some();
    let own = || eq(col(0, 1), Scalar::Claim(0));
    assert!(keys(own()));
    assert!(keys(Expr::And(vec![own(), Expr::Not(Box::new(member(1, None)))])));
    for without in [
        Expr::Constant(Some(true)),
        Expr::Not(Box::new(own())),
        Expr::Not(Box::new(member(1, None))),
        Expr::Same(UUID, Box::new((col(0, 1), Scalar::Claim(0)))),
        Expr::Or(vec![own(), Expr::Not(Box::new(member(1, None)))]),
        Expr::Is(Box::new(own()), Some(false)),
        Expr::Value(Scalar::Coalesce(vec![Scalar::Truth(Box::new(own())), Scalar::Constant(Some(b"t"[..].into()))])),
    ] {
        assert!(!keys(without.clone()), "{without:?}");
    }
    // An array of teams in the token.
    let teams = Expr::Any(CompareOp::Eq, UUID, Box::new(col(0, 0)), Members::Claim(1));
    let rule = rule(teams, 0);
    let list = Viewer::new([Claimed::Null, Claimed::List([Some(b"a"[..].into()), None].into())]);
    let keys = rule.keys().expect("keys");
    assert_eq!(keys.of_viewer(1, &list), ViewerKey::Values([b"a"[..].into()].into_iter().collect()));
    assert_eq!(
        keys.of_row(&FactBinding::default(), Facts::none(), Side::After, &|_| Value::Unchanged, 9, &mut |_, _| ()),
        RowKeys::Absent
    );
}

#[test]
fn a_verdict_that_needs_too_many_rows_is_left_to_postgres() {
    let other = Expr::Compare(CompareOp::Gt, UUID, Box::new((col(1, 0), col(0, 0))));
    let condition = Expr::And(vec![other, Expr::Compare(CompareOp::Lt, UUID, Box::new((col(1, 0), col(0, 0))))]);
    let sub = Subquery { slots: vec![1], condition, outputs: Vec::new() };
    let rule = rule(Expr::Not(Box::new(Expr::Exists(Box::new(sub)))), 1);
    for (rows, expected) in [(1000, Truth::True), (60_000, Truth::Unsure)] {
        assert_eq!(truth(&rule, &ready(rows), Side::After, &uuid(0), FIRST), expected);
    }
}

#[test]
fn many_verdicts_of_one_row_look_at_no_more_rows_than_one_may_but_for_what_indexes_find() {
    // Of 30,000 rows, none of which any index finds.
    let other = Expr::Compare(CompareOp::Gt, UUID, Box::new((col(1, 0), Scalar::Claim(0))));
    let condition = Expr::And(vec![other, Expr::Compare(CompareOp::Lt, UUID, Box::new((col(1, 0), Scalar::Claim(0))))]);
    let sub = Subquery { slots: vec![1], condition, outputs: Vec::new() };
    let (slow, quick) = (rule(Expr::Not(Box::new(Expr::Exists(Box::new(sub)))), 1), rule(member(1, None), 1));
    let (facts, team) = (ready(30_000), uuid(0));
    let viewers: Vec<KnownViewer> = (0..2000).map(|user| KnownViewer::new(viewer(FIRST + user))).collect();
    for (rule, expected) in [(&slow, [1, 1999]), (&quick, [2000, 0])] {
        let binding = facts.bind(rule).expect("ready");
        let column = |_: usize| Value::Text(team.as_bytes());
        let mut row = rule.judge_row(&binding, &facts, Side::After, &column);
        let unsure = viewers.iter().filter(|viewer| row.truth(viewer) == Truth::Unsure).count();
        assert_eq!([viewers.len() - unsure, unsure], expected);
    }
}

#[test]
fn what_rules_look_up_is_made_before_they_are_bound() {
    let rule = Arc::new(rule(member(1, None), 1));
    let mut table = filled(1000);
    table.prepare(&Lookups::of(&[memberships()], std::slice::from_ref(&rule)));
    let made = table.bytes();
    let mut facts = Facts::new(usize::MAX);
    facts.record(memberships());
    facts.install(table, &Snapshot::parse("100:100:").expect("a snapshot")).expect("installed");
    facts.bind(&rule).expect("ready");
    assert_eq!(facts.bytes(), made, "the binding had something left to make");
    assert!(filled(1000).bytes() < made, "the rule takes no index");
    assert_eq!(truth(&rule, &facts, Side::After, &uuid(0), FIRST), Truth::True);
}
