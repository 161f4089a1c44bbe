//! Arrays in the row: memory says what a SELECT says, and whom it permits is found by the elements.

use serde_json::json;

use super::support::*;
use crate::policy::{Engine, Judged, Verdict};
use crate::testing::TestDatabase;

const TABLE: &str = "create type mood as enum ('ok', 'sad');
    create domain small as int check (value < 100);
    create table t (id int primary key, uids uuid[], tags text[], names varchar(40)[], codes char(4)[], ns int[], ds numeric[],
        moods mood[], loose text[] collate \"en-x-icu\", docs jsonb[], smalls small[], user_id uuid, team int);
    create table members (team int primary key, user_id uuid); grant select on members to authenticated;
    insert into members values (1, 'ALICE'), (2, 'BOB');
    insert into t (id, user_id, team) select n, case when n % 2 = 0 then 'ALICE'::uuid end, n % 3 from generate_series(1, 12) n;
    update t set uids = case id % 6 when 0 then '{}' when 1 then '{ALICE}' when 2 then '{BOB,NULL}' when 3 then array[null::uuid]
        when 4 then '{{ALICE,BOB},{BOB,BOB}}' end;
    update t set tags = case id % 6 when 0 then '{}' when 1 then '{a,\"NULL\",null}' when 2 then array['a b', 'x\"y', 'c\\d', '{}', '', ',']
        when 3 then '[3:4]={a,ALICE}' when 4 then array[E'\\n', 'null', 'a'] end;
    update t set names = tags, loose = tags, codes = case when id % 2 = 0 then '{a,\"b \"}'::char(4)[] end,
        ns = case id % 4 when 0 then '{1,2,null}'::int[] when 1 then '{}' when 2 then '{-7,2147483647}' end,
        ds = case id % 4 when 0 then '{1.50,2}'::numeric[] when 1 then '{NaN,7}' when 2 then '{}' end,
        moods = case id % 3 when 0 then '{ok,sad}'::mood[] when 1 then '{}' end, docs = array['1'::jsonb], smalls = '{7}';
    alter table t enable row level security; grant select on t to authenticated;
    alter publication supabase_realtime add table t";

const IN_MEMORY: [&str; 19] = [
    "auth.uid() = any (uids)",
    "not (auth.uid() = any (uids))",
    "auth.uid() <> all (uids)",
    "(select auth.uid()) = any (uids) and team = 1",
    "auth.uid() = any (uids) or user_id = auth.uid()",
    "(auth.uid() = any (uids)) is null",
    "user_id = any (uids)",
    "null::uuid = any (uids)",
    "auth.uid()::text = any (tags)",
    "'a' = any (tags)",
    "'a' <> all (tags)",
    "auth.jwt() ->> 'tag' = any (tags)",
    "auth.jwt() ->> 'tag' = any (names)",
    "'b' = any (codes)",
    "(auth.jwt() ->> 'n')::int = any (ns) or (auth.jwt() ->> 'n')::numeric = any (ds)",
    "team > all (ns)",
    "2.0 = any (ds)",
    "'sad' = any (moods)",
    "case when team = 1 then auth.uid() = any (uids) else 'a' = any (tags) end",
];

/// Whether a SELECT shows each row; `None` where it raises.
async fn shown(client: &mut tokio_postgres::Client, principal: &crate::claims::Principal) -> Vec<Option<bool>> {
    let mut all = Vec::new();
    for id in 1..=12 {
        let transaction = client.transaction().await.expect("begins");
        crate::pg::assume(&transaction, &principal.role, &principal.subject, &principal.claims_json)
            .await
            .expect("assumes");
        let row = transaction.query_one(&format!("select exists (select 1 from public.t where id = {id})"), &[]).await;
        all.push(row.ok().map(|row| row.get(0)));
    }
    all
}

#[tokio::test]
async fn who_is_in_an_array_of_the_row_is_known_without_asking() {
    let mut database = TestDatabase::new().await;
    database.run(&TABLE.replace("ALICE", ALICE).replace("BOB", BOB)).await;
    let mut client = database.config("plain_relay").connect().await.expect("connects");
    let who = |sub: &str, tag: &str, n: i32| principal("authenticated", json!({ "sub": sub, "tag": tag, "n": n }));
    let principals = [
        who(ALICE, "a", 1),
        who(BOB, "x\"y", 2),
        who(&ALICE.to_uppercase(), "{}", 7),
        who(BOB, "", -7),
        principal("authenticated", json!({ "tag": "NULL", "n": null })),
        principal("authenticated", json!({ "tag": "c\\d", "sub": "00000000-0000-4000-8000-000000000000" })),
    ];
    let sub_select = "exists (select 1 from members m where m.user_id = auth.uid() and m.team = any (ns))";
    let (mut permits, mut denials) = (0, 0);
    for policy in IN_MEMORY.into_iter().chain([sub_select]) {
        database.run(&format!("drop policy if exists p on t; create policy p on t using ({policy})")).await;
        let plan = plan(&mut database, "t", "authenticated").await;
        assert!(matches!(plan.engine, Engine::Pure(_)), "{policy}: {plan}");
        let bound = bind(&plan);
        let facts = facts_of(&database, &plan).await;
        let binding = facts.bind(plan.rule().expect("pure")).expect("bound");
        for principal in &principals {
            let viewer = plan.viewer(principal);
            let selected = shown(&mut client, principal).await;
            for (id, selected) in (1..).zip(selected) {
                let change = insert(tuple(&database, bound.relation(), id).await);
                let judged = bound.judge(&change, &viewer, principal, Some((&binding, &facts)), 0);
                let permitted = match judged {
                    Judged::Decided(Verdict::Permit(_)) => true,
                    Judged::Decided(Verdict::Deny(_)) => false,
                    other => panic!("{policy}, row {id}, {}: {other:?}", principal.claims_json),
                };
                assert_eq!(Some(permitted), selected, "{policy}, row {id}, {}: {plan}", principal.claims_json);
                assert!(!permitted || bound.finds(&change, &viewer, Some((&binding, &facts))), "{policy}, row {id}");
                *(if permitted { &mut permits } else { &mut denials }) += 1;
            }
        }
    }
    assert!(permits > 100 && denials > 100, "{permits} permits, {denials} denials");
}

/// Members, if the plan looks into them.
async fn facts_of(database: &TestDatabase, plan: &crate::policy::Plan) -> crate::policy::Facts {
    let mut facts = crate::policy::Facts::new(1 << 20);
    let Some(source) = plan.sources().first() else { return facts };
    let catalog = plan.table.as_ref().map(|_| source.columns.iter().map(|column| column.number).collect());
    let mut database = database.config("relay").connect().await.expect("connects");
    let wanted = crate::catalog::Wanted {
        publications: vec!["supabase_realtime".into()],
        others: vec![],
        roles: [String::from("authenticated")].into(),
    };
    let read = crate::catalog::read(&mut database, &wanted).await.expect("read");
    let table = read.table(source.table_oid).expect("known");
    let layout = std::sync::Arc::new(
        crate::policy::Layout::of(table, read.types(), &catalog.unwrap_or_default()).expect("fits"),
    );
    facts.record(layout.clone());
    let mut loaded = crate::policy::FactTable::new(layout.clone());
    let names: Vec<String> = layout.columns.iter().map(|column| column.name.clone()).collect();
    let messages = database.simple_query(&format!("select {} from members", names.join(", "))).await.expect("rows");
    for message in messages {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
            loaded.insert((0..names.len()).map(|i| row.get(i).map(str::as_bytes))).expect("fits");
        }
    }
    facts.install(loaded, &crate::catalog::Snapshot::parse("1:1:").expect("a snapshot")).expect("installed");
    facts
}

#[tokio::test]
async fn arrays_whose_elements_only_postgres_compares_are_asked_about() {
    let mut database = TestDatabase::new().await;
    database.run(&TABLE.replace("ALICE", ALICE).replace("BOB", BOB)).await;
    for (policy, why) in [
        ("'a' = any (loose collate \"en-x-icu\")", "array"),
        ("7 = any (smalls)", "plain values"),
        ("'ok' < any (moods)", "order"),
        ("auth.uid()::text = any (uids::text[])", "cast of an array"),
        ("auth.uid() = any (array_remove(uids, null))", "function"),
        ("exists (select 1 from (select uids from t x) y where auth.uid() = any (y.uids))", ""),
    ] {
        database.run(&format!("drop policy if exists p on t; create policy p on t using ({policy})")).await;
        let plan = plan(&mut database, "t", "authenticated").await;
        match &plan.engine {
            Engine::Ask { reason, .. } => assert!(reason.contains(why), "{policy}: {reason}"),
            Engine::Deny(_) if why.is_empty() => {}
            other => panic!("{policy}: {other:?}"),
        }
    }
}
