//! Which publication says what: clients get what theirs sends, whatever else comes through the same stream.

use serde_json::json;

use super::{Scene, watching};
use crate::support::summary;
use crate::support::token::{self, ALICE};

/// Publications in one stream are united by the server: one undoes what the other holds back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_facts_need_is_not_sent_to_clients() {
    let tables = "
        create table public.drafts (id int primary key, note text not null, ready boolean not null default false);
        alter table public.drafts replica identity full;
        create table public.inserts (id int primary key, note text not null);
        create table public.inner_facts (id int primary key, note text not null);
        grant select on public.drafts, public.inserts, public.inner_facts to authenticated;
        alter publication supabase_realtime add table public.drafts where (ready);
        create publication only_inserts for table public.inserts with (publish = 'insert');";
    let pg = super::database(tables).await;
    let relay = crate::support::Relay::with(&pg, rowcast::clock::Clock::system(), |config| {
        config.publications.push("only_inserts".into());
    })
    .await;
    let scene = Scene { relay, pg };
    // As it will be for tables that policies look into.
    scene.exec("alter publication rowcast_facts add table drafts, inserts, inner_facts").await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.subscribe("room", &watching(&["drafts", "inserts"])).await;
    phone.subscribe("all", &json!([{ "event": "*", "schema": "*" }])).await;
    // The reading that the first row of each table waits for is made with the publications as they are now.
    for table in ["drafts", "inserts", "inner_facts"] {
        let ready = if table == "drafts" { ", true" } else { "" };
        scene.exec(&format!("insert into {table} values (1, 'first'{ready}), (2, 'second'{ready})")).await;
    }
    scene
        .exec(
            "insert into drafts values (3, 'hidden'); update drafts set note = 'still hidden' where id = 3;
             update drafts set note = 'changed' where id = 1; delete from drafts where id = 3;
             delete from drafts where id = 2;
             update inserts set note = 'changed'; delete from inserts; update inner_facts set note = 'changed'",
        )
        .await;
    scene.mark("end").await;
    let changes = phone.changes_before("end").await;
    let of = |topic: &str| {
        let changes: Vec<_> = changes.iter().filter(|change| *change.topic == *topic).cloned().collect();
        let mut lines = summary(&changes, "note");
        lines.retain(|line| !line.contains("end"));
        lines
    };
    let expected =
        ["INSERT first", "INSERT second", "INSERT first", "INSERT second", "UPDATE changed", "DELETE second"];
    assert_eq!(of("room"), expected);
    assert_eq!(of("all"), expected);
}
