//! Items 192 to 199: row-level security (`protocol.md` §13.13). Deletes are judged, as is the default; the compatible mode is in
//! `deletes_mode`.

use serde_json::{Value, json};

use crate::support::stage::{all_of, with_marks};
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Change, Pair, Stage, summary};

/// The same rule twice: judged in memory, and by Postgres, which alone knows what `owns` does.
const OWNED: &str = "
    create function public.owns(owner uuid) returns boolean stable language plpgsql as
        $$ begin return owner = auth.uid(); end $$;
    create table public.notes (id int primary key, user_id uuid, note text);
    create table public.asked (like public.notes including all);
    alter table public.notes replica identity full;
    alter table public.asked replica identity full;
    alter table public.notes enable row level security;
    alter table public.asked enable row level security;
    create policy own on public.notes for select to authenticated using (user_id = auth.uid());
    create policy own on public.asked for select to authenticated using (public.owns(user_id));
    grant select on public.notes, public.asked to authenticated;
    alter publication supabase_realtime add table public.notes, public.asked;";

fn both() -> Value {
    json!([{ "event": "*", "schema": "public", "table": "notes" }, { "event": "*", "schema": "public", "table": "asked" }])
}

async fn users(stage: &Stage, entries: &Value) -> [Pair; 2] {
    let (alice, bob) = (token::user(ALICE), token::user(BOB));
    let (alice, bob) = tokio::join!(Box::pin(stage.watch(&alice, entries)), Box::pin(stage.watch(&bob, entries)));
    [alice, bob]
}

/// `table kind id` of each.
fn told(changes: &[Change]) -> Vec<String> {
    changes.iter().zip(summary(changes, "id")).map(|(change, text)| format!("{} {text}", change.table())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_192_without_a_policy_only_who_bypasses_row_level_security_gets_rows() {
    let stage = Stage::with(
        "create table public.locked (id int primary key);
         alter table public.locked enable row level security;
         grant select on public.locked to anon, service_role;
         alter publication supabase_realtime add table public.locked;",
    )
    .await;
    let mut anon = stage.watch(&token::role("anon"), &all_of("locked")).await;
    let mut service = stage.watch(&token::role("service_role"), &all_of("locked")).await;
    stage.exec("insert into locked values (1); update locked set id = 2; delete from locked").await;
    stage.mark("end").await;
    assert_eq!(anon.changes_before("end").await, []);
    assert_eq!(summary(&service.changes_before("end").await, "id"), ["INSERT 1", "UPDATE 2", "DELETE 2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_193_of_two_users_each_sees_only_his_own_rows() {
    let stage = Stage::with(OWNED).await;
    let [mut alice, mut bob] = users(&stage, &both()).await;
    for table in ["notes", "asked"] {
        stage.exec(&format!("insert into {table} values (1, '{ALICE}', 'a'), (2, '{BOB}', 'b'), (3, null, 'c')")).await;
        stage.exec(&format!("update {table} set note = note || '!'")).await;
    }
    stage.mark("end").await;
    let own = |id: i32| {
        ["notes", "asked"].map(|table| ["INSERT", "UPDATE"].map(|kind| format!("{table} {kind} {id}"))).concat()
    };
    assert_eq!(told(&alice.changes_before("end").await), own(1));
    assert_eq!(told(&bob.changes_before("end").await), own(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_194_a_row_given_to_another_user_is_seen_by_the_new_owner_only() {
    let stage = Stage::with(OWNED).await;
    for table in ["notes", "asked"] {
        stage.exec(&format!("insert into {table} values (1, '{ALICE}', 'secret')")).await;
    }
    let [mut alice, mut bob] = users(&stage, &both()).await;
    // A subscription may begin a little before it was asked for.
    stage.mark("begin").await;
    alice.changes_before("begin").await;
    bob.changes_before("begin").await;
    for table in ["notes", "asked"] {
        stage.exec(&format!("update {table} set user_id = '{BOB}', note = 'given'")).await;
    }
    stage.mark("end").await;
    assert_eq!(alice.changes_before("end").await, []);
    let changes = bob.changes_before("end").await;
    assert_eq!(told(&changes), ["notes UPDATE 1", "asked UPDATE 1"]);
    for change in &changes {
        assert_eq!(change.record(), &json!({ "id": 1, "user_id": BOB, "note": "given" }));
        // Of a row that was not his he sees the key.
        assert_eq!(change.old_record(), &json!({ "id": 1 }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_195_a_delete_reaches_those_whose_right_to_the_old_row_is_shown() {
    let stage = Stage::with(OWNED).await;
    for table in ["notes", "asked"] {
        stage.exec(&format!("insert into {table} values (1, '{ALICE}', 'a'), (2, '{BOB}', 'b')")).await;
    }
    // The same rule where the old row has nothing but the key: nobody's right to it can be shown.
    stage
        .exec(&format!(
            "create table public.thin (id int primary key, user_id uuid);
             alter table public.thin enable row level security;
             create policy own on public.thin for select to authenticated using (user_id = auth.uid());
             grant select on public.thin to authenticated;
             alter publication supabase_realtime add table public.thin;
             insert into public.thin values (1, '{ALICE}')"
        ))
        .await;
    let mut entries = both();
    entries.as_array_mut().expect("a list").push(json!({ "event": "*", "schema": "*" }));
    let [mut alice, mut bob] = users(&stage, &entries).await;
    stage.mark("begin").await;
    alice.changes_before("begin").await;
    bob.changes_before("begin").await;
    stage.exec("delete from notes; delete from asked; delete from thin").await;
    stage.mark("end").await;
    for (pair, id, owner, note) in [(&mut alice, 1, ALICE, "a"), (&mut bob, 2, BOB, "b")] {
        let changes = pair.changes_before("end").await;
        assert_eq!(told(&changes), [format!("notes DELETE {id}"), format!("asked DELETE {id}")]);
        for change in &changes {
            assert_eq!(change.old_record(), &json!({ "id": id, "user_id": owner, "note": note }));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_196_a_row_inserted_and_deleted_in_one_transaction_is_told_as_deleted() {
    let stage = Stage::with(OWNED).await;
    let [mut alice, mut bob] = users(&stage, &both()).await;
    for table in ["notes", "asked"] {
        stage
            .exec(&format!("begin; insert into {table} values (1, '{ALICE}', 'a'); delete from {table}; commit"))
            .await;
    }
    stage.mark("end").await;
    let mut seen = told(&alice.changes_before("end").await);
    seen.retain(|change| !change.contains("INSERT"));
    assert_eq!(seen, ["notes DELETE 1", "asked DELETE 1"]);
    assert_eq!(bob.changes_before("end").await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_197_with_another_users_token_that_users_rows_arrive_and_the_former_ones_do_not() {
    let stage = Stage::with(OWNED).await;
    let mut pair = stage.watch(&token::user(ALICE), &both()).await;
    for (round, (subject, own)) in [(ALICE, 1), (BOB, 2), (ALICE, 1)].into_iter().enumerate() {
        if round > 0 {
            let another = token::user(subject);
            for phone in &mut pair.phones {
                phone.push_token("room", &another).await;
                phone.subscribed("room").await;
            }
        }
        for table in ["notes", "asked"] {
            stage.exec(&format!("insert into {table} values (1, '{ALICE}'), (2, '{BOB}'); delete from {table}")).await;
        }
        let mark = format!("round {round}");
        stage.mark(&mark).await;
        let mut expected = Vec::new();
        for table in ["notes", "asked"] {
            expected.extend(["INSERT", "DELETE"].map(|kind| format!("{table} {kind} {own}")));
        }
        let mut received = told(&pair.changes_before(&mark).await);
        // An INSERT whose row is gone again need not be told.
        received.retain(|change| !change.starts_with("asked INSERT"));
        expected.retain(|change| !change.starts_with("asked INSERT"));
        assert_eq!(received, expected, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_198_of_twenty_subscribers_of_one_role_each_gets_exactly_his_rows() {
    let stage = Stage::with(&format!(
        "{OWNED} create table public.shared (id int primary key, level int);
         alter table public.shared enable row level security;
         create policy levels on public.shared for select to authenticated
             using (level <= (auth.jwt() ->> 'sub')::uuid::text::varchar(8)::int);
         grant select on public.shared to authenticated;
         alter publication supabase_realtime add table public.shared;"
    ))
    .await;
    let users: Vec<String> = (0..20).map(|n| format!("{n:08}-0000-4000-8000-000000000000")).collect();
    let mut entries = both();
    entries.as_array_mut().expect("a list").push(json!({ "event": "*", "schema": "public", "table": "shared" }));
    let tokens: Vec<String> = users.iter().map(|user| token::user(user)).collect();
    let watching = tokens.iter().map(|token| stage.watch(token, &entries));
    let mut pairs = futures_util::future::join_all(watching).await;
    // Backwards, and all at once: who is judged after whom must not matter.
    for (id, user) in users.iter().enumerate().rev() {
        for table in ["notes", "asked"] {
            stage.exec(&format!("insert into {table} values ({id}, '{user}')")).await;
        }
    }
    stage.exec("insert into shared select n, n from generate_series(0, 19) n").await;
    stage.mark("end").await;
    for (id, pair) in pairs.iter_mut().enumerate() {
        let mut expected = vec![format!("notes INSERT {id}"), format!("asked INSERT {id}")];
        expected.extend((0..=id).map(|level| format!("shared INSERT {level}")));
        assert_eq!(told(&pair.changes_before("end").await), expected, "user {id}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_199_role_names_with_hyphens_capitals_and_quotes_work() {
    let roles = ["night-guest", "Clerk", "two words", "it's \"quoted\"", "naïve", "select"];
    let mut sql = OWNED.to_owned();
    for role in roles {
        let quoted = format!("\"{}\"", role.replace('"', "\"\""));
        sql.push_str(&format!(
            "create role {quoted} nologin; grant usage on schema public, auth to {quoted};
             grant select on public.notes, public.asked to {quoted};
             create policy {quoted} on public.notes for select to {quoted} using (user_id = auth.uid());
             create policy {quoted} on public.asked for select to {quoted} using (public.owns(user_id));"
        ));
    }
    let stage = Stage::with(&sql).await;
    let entries = with_marks(&both());
    let mut pairs = Vec::new();
    for role in roles {
        let mut pair = stage.pair(&token::user_as(role, ALICE)).await;
        pair.subscribe("room", &entries).await;
        pairs.push(pair);
    }
    for table in ["notes", "asked"] {
        stage.exec(&format!("insert into {table} values (1, '{ALICE}'), (2, '{BOB}')")).await;
    }
    stage.mark("end").await;
    for (role, pair) in roles.iter().zip(&mut pairs) {
        assert_eq!(told(&pair.changes_before("end").await), ["notes INSERT 1", "asked INSERT 1"], "{role}");
    }
}
