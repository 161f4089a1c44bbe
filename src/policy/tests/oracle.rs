//! Three answers must agree: ours in memory, ours through Postgres, and a real SELECT as the role.

use std::sync::Arc;

use serde_json::json;

use super::support::*;
use crate::claims::Principal;
use crate::policy::{DenyReason, Engine, Judged, Verdict};
use crate::testing::TestDatabase;

const TABLE: &str = "create domain owner_id as uuid;
    create table t (id int primary key, gone int, user_id uuid, u2 text, v varchar, v20 varchar(20), i2 int2, i4 int4, i8 int8,
        d owner_id, \"user\" text, c char(5));
    alter table t drop column gone, enable row level security;
    create table acl (user_id uuid, id int); insert into acl values ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 1);
    insert into t values
      (1, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',
       '7', 7, 7, 7, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'true', 'true'),
      (2, 'b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a22', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', '', '7.0', -7, 70000,
       9223372036854775807, 'b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a22', '', ''),
      (3, null, null, null, null, null, null, null, null, null, null),
      (4, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', E'say \"hi\", \\\\ (ok)', E'7 ', 'authenticated', 0, 0, 0, null, 'Ünï ''x''', ' a');
    alter publication supabase_realtime add table t;
    create function owns(t) returns bool language sql stable as 'select $1.user_id = auth.uid()';
    create policy p on t using (false)";

/// What each policy must be: the whole list counts, so that the compiler can't rot into asking always.
const POLICIES: &[(&str, bool)] = &[
    ("true", true),
    ("false", true),
    ("user_id = auth.uid()", true),
    ("auth.uid() = user_id", true),
    ("user_id = (select auth.uid())", true),
    ("u2 = auth.uid()::text", true),
    ("user_id::text = auth.uid()::text", true),
    ("v = auth.uid()::text", true),
    ("d = auth.uid()", true),
    ("u2 = auth.jwt() ->> 'sub'", true),
    ("v = (select auth.jwt() ->> 'sub')", true),
    ("user_id = (auth.jwt() ->> 'sub')::uuid", true),
    ("user_id = (current_setting('request.jwt.claims', true)::json ->> 'sub')::uuid", true),
    ("u2 = current_setting('request.jwt.claims', true)::jsonb ->> 'sub'", true),
    ("u2 = current_setting('request.jwt.claim.sub', true)", true),
    ("i8 = (auth.jwt() ->> 'org')::int", true),
    ("i4 = (auth.jwt() ->> 'org')::bigint", true),
    ("i2 = (current_setting('request.jwt.claims', true)::json ->> 'org')::smallint", true),
    ("v20 = auth.jwt() ->> 'org'", true),
    ("v20 = current_setting('request.jwt.claims', true)::json ->> 'org'", true),
    ("i4::text = auth.jwt() -> 'app_metadata' ->> 'org'", true),
    ("v20 = auth.role()", true),
    ("\"user\" = auth.jwt() ->> 'org'", true),
    ("user_id = auth.uid() or i4 = (auth.jwt() ->> 'org')::int", true),
    ("user_id = auth.uid() and (i4 = (auth.jwt() ->> 'org')::int or u2 = auth.jwt() ->> 'sub')", true),
    ("user_id = auth.uid() or true", true),
    ("c = auth.jwt() ->> 'org'", true),
    ("not (user_id = auth.uid())", true),
    ("user_id is not distinct from auth.uid()", true),
    ("auth.role() = 'authenticated'", true),
    ("auth.uid() is not null and user_id is null", true),
    ("u2 = current_setting('request.jwt.claim.email', true)", false),
    ("u2 = lower(auth.jwt() ->> 'sub')", false),
    ("user_id = (select auth.uid() limit 0)", false),
    ("id in (select acl.id from acl where acl.user_id = auth.uid())", false),
    ("exists (select from acl where acl.id = t.id and acl.user_id = t.user_id)", false),
    ("t is not null and to_jsonb(t) ->> 'u2' = auth.jwt() ->> 'sub'", false),
    ("owns(t)", false),
    ("tableoid = 't'::regclass", false),
    ("id < 3 and i8 > 5", true),
    ("now() > '2000-01-01' and user_id = auth.uid()", false),
];

fn principals() -> Vec<Arc<Principal>> {
    let mut all: Vec<Arc<Principal>> = Vec::new();
    for sub in [
        json!(ALICE),
        json!(ALICE.to_uppercase()),
        json!(format!("{{{ALICE}}}")),
        json!(ALICE.replace('-', "")),
        json!(format!("{ALICE} ")),
        json!(BOB),
        json!("nobody"),
        json!(""),
        json!(null),
        json!(7),
        json!(true),
        json!([ALICE]),
        json!("say \"hi\", \\ (ok)"),
        json!("nul \u{0}"),
    ] {
        all.push(principal("authenticated", json!({ "sub": sub, "org": 7 })));
    }
    for org in [
        json!("7"),
        json!(" +7\t"),
        json!("7.0"),
        json!(7.0),
        json!(1e100),
        json!(70000),
        json!("0x7"),
        json!("1_0"),
        json!(9_223_372_036_854_775_808_u64),
        json!(""),
        json!(null),
        json!(true),
        json!({ "a": [1, "x"] }),
        json!("Ünï 'x'"),
        json!("-7"),
    ] {
        all.push(principal("authenticated", json!({ "sub": ALICE, "org": org, "app_metadata": { "org": org } })));
    }
    all.push(principal("authenticated", json!({ "app_metadata": 7 })));
    all
}

/// `Ok(visible)`, or `Err` if the SELECT raised.
async fn select(client: &mut tokio_postgres::Client, principal: &Principal, id: i32) -> Result<bool, ()> {
    let transaction = client.transaction().await.expect("begins");
    let subject = if principal.subject.contains('\0') { "" } else { &principal.subject };
    crate::pg::assume(&transaction, &principal.role, subject, &principal.claims_json).await.expect("assumes");
    let visible = transaction.query_one(&format!("select exists(select 1 from public.t where id = {id})"), &[]).await;
    visible.map(|row| row.get(0)).map_err(|_| ())
}

/// With connectives it is the planner's affair whether an operand that raises is reached: then `strict` is false, and a denial
/// may be for either reason. A permit needs a SELECT that shows the row, or, if Postgres gave it, one that raised.
fn agrees(verdict: &Verdict, truth: Result<bool, ()>, strict: bool, asked: bool) -> bool {
    match verdict {
        Verdict::Permit(_) => truth == Ok(true) || (asked && !strict && truth.is_err()),
        Verdict::Deny(DenyReason::Policy) => truth == Ok(false) || (!strict && truth.is_err()),
        Verdict::Deny(DenyReason::PolicyError) => truth.is_err() || !strict,
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_answers_are_those_of_a_select_as_the_role() {
    let mut database = TestDatabase::new().await;
    database.run(TABLE).await;
    let mut client = database.config("plain_relay").connect().await.expect("connects");
    let (asker, _) = asker(&database, "plain_relay");
    let principals = principals();
    let (mut in_memory, mut permits) = (0, 0);
    for (policy, is_pure) in POLICIES {
        database.run(&format!("drop policy p on t; create policy p on t to authenticated using ({policy})")).await;
        let plan = plan(&mut database, "t", "authenticated").await;
        assert_eq!(matches!(plan.engine, Engine::Pure(_)), *is_pure, "{policy}: {plan}");
        let bound = bind(&plan);
        let strict = !policy.contains(" or ") && !policy.contains(" and ");
        for id in 1..=4 {
            let change = insert(tuple(&database, bound.relation(), id).await);
            let asked = asker.judge(&question(&bound, change.clone(), &principals)).await;
            for (principal, asked) in principals.iter().zip(&asked) {
                let truth = select(&mut client, principal, id).await;
                let who = || format!("{policy}, row {id}, {}: a SELECT says {truth:?}", principal.claims_json);
                assert!(agrees(asked, truth, strict, true), "{}, asked {asked:?}", who());
                permits += i32::from(truth == Ok(true));
                if let Judged::Decided(verdict) = judge(&bound, &change, principal, 0) {
                    in_memory += 1;
                    assert!(agrees(&verdict, truth, strict, false), "{}, in memory {verdict:?}", who());
                    let found = bound.finds(&change, &plan.viewer(principal), None);
                    assert!(found || !matches!(verdict, Verdict::Permit(_)), "{}", who());
                } else {
                    assert!(bound.finds(&change, &plan.viewer(principal), None) || !strict, "{}", who());
                }
            }
        }
    }
    assert!(in_memory > 2000 && permits > 500, "{in_memory} in memory, {permits} permits");
}
