//! Policies that look into other tables, judged in memory: who is in a team sees its posts, from the commit that lets him in
//! to the one that puts him out.

use super::{Scene, watching};
use crate::support::phone::PATIENCE;
use crate::support::relay::pause;
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Change, Phone, summary};
use tokio::time::Instant;

const TEAMS: &str = "
    create table public.teams (id int primary key, name text);
    create table public.members (team_id int references public.teams on delete cascade, user_id uuid, primary key (team_id, user_id));
    create table public.posts (id int generated always as identity primary key,
        team_id int references public.teams on delete cascade, note text not null);
    alter table public.posts replica identity full;
    alter table public.posts enable row level security;
    alter table public.members enable row level security;
    create policy theirs on public.members for select to authenticated using (user_id = auth.uid());
    create policy team on public.posts for select to authenticated
        using (exists (select 1 from public.members m where m.team_id = posts.team_id and m.user_id = auth.uid()));
    grant select on public.posts, public.members to authenticated;
    insert into public.teams values (1, 'red'), (2, 'blue');
    alter publication supabase_realtime add table public.posts;";

fn post(team: i32, note: &str) -> String {
    format!("insert into posts (team_id, note) values ({team}, '{note}');")
}

fn join(team: i32, user: &str) -> String {
    format!("insert into members values ({team}, '{user}');")
}

async fn watch(scene: &Scene, user: &str) -> Phone {
    let mut phone = scene.relay.phone(&token::user(user)).await;
    phone.subscribe("room", &watching(&["posts"])).await;
    phone
}

/// Postgres was not asked about a single row.
async fn in_memory(scene: &Scene) {
    assert_eq!(scene.relay.metric("rowcast_ask_seconds_count", "").await, 0.0, "Postgres was asked");
    assert_eq!(scene.relay.metric("rowcast_rules_without_facts", "").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_membership_starts_deliveries_at_its_commit_and_ends_them_at_its_end() {
    let scene = Scene::with(TEAMS).await;
    let (mut alice, mut bob) = (watch(&scene, ALICE).await, watch(&scene, BOB).await);
    for sql in [
        post(1, "before"),
        // In whatever order: it is the state after the transaction that counts.
        format!("begin; {} {} commit", post(1, "with the grant"), join(1, ALICE)),
        post(1, "granted"),
        post(2, "not hers"),
        format!("update members set user_id = '{BOB}'; {}", post(1, "handed over")),
        format!("begin; {} delete from members; commit", post(1, "with the end")),
        post(1, "ended"),
        format!("begin; {} {} truncate members; commit", join(1, ALICE), join(2, ALICE)),
        post(2, "truncated"),
        format!("begin; {} savepoint s; {} rollback to s; commit", join(2, BOB), join(2, ALICE)),
        post(2, "bob got in"),
    ] {
        scene.exec(&sql).await;
    }
    scene.mark("end").await;
    let notes =
        |changes: &[_]| summary(changes, "note").into_iter().filter(|line| !line.contains("end")).collect::<Vec<_>>();
    assert_eq!(notes(&alice.changes_before("end").await), ["INSERT with the grant", "INSERT granted"]);
    assert_eq!(notes(&bob.changes_before("end").await), ["INSERT handed over", "INSERT bob got in"]);
    in_memory(&scene).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletes_that_cascade_reach_those_who_saw_the_rows() {
    let scene = Scene::with(TEAMS).await;
    scene.exec(&format!("{} {} {} {}", join(1, ALICE), join(2, BOB), post(1, "one"), post(2, "two"))).await;
    super::caught_up(&scene).await;
    let (mut alice, mut bob) = (watch(&scene, ALICE).await, watch(&scene, BOB).await);
    // Team, members and posts go in one transaction, the members before the posts or after them.
    scene.exec("delete from teams where id = 1").await;
    scene.exec(&post(2, "still there")).await;
    scene.mark("end").await;
    assert_eq!(summary(&alice.changes_before("end").await, "note"), ["DELETE one"]);
    assert_eq!(summary(&bob.changes_before("end").await, "note"), ["INSERT still there"]);
    in_memory(&scene).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletes_that_cascade_while_the_memberships_are_loaded_are_told_as_one_gap() {
    let scene = Scene::with(TEAMS).await;
    scene.exec(&format!("{} {} {}", join(1, ALICE), join(2, BOB), join(2, ALICE))).await;
    for note in ["one", "two", "three"] {
        scene.exec(&post(1, note)).await;
    }
    scene.exec(&post(2, "four")).await;
    // The load waits for who began to write before it.
    let writer = scene.pg.client().await;
    writer
        .batch_execute(&format!("insert into teams values (3, 'grey'); begin; {}", join(3, BOB)))
        .await
        .expect("done");
    let (mut alice, mut bob) = (watch(&scene, ALICE).await, watch(&scene, BOB).await);
    assert_eq!(scene.relay.metric("rowcast_fact_tables", "state=\"loading\"").await, 1.0);
    scene.exec("delete from posts where note = 'four'").await;
    // Members and posts go with the team; by the time Postgres can be asked, nobody is a member.
    scene.exec("delete from teams where id = 1").await;
    scene.mark("gone").await;
    let mut before = summary(&alice.changes_before("gone").await, "note");
    before.retain(|line| line.starts_with("DELETE"));
    assert_eq!(before, ["DELETE four"], "still permitted, by Postgres");
    writer.batch_execute("commit").await.expect("committed");
    for phone in [&mut alice, &mut bob] {
        let notice = phone.system("room").await;
        let message = notice["message"].as_str().expect("a text");
        assert!(message.starts_with("Gap: rows were deleted"), "{notice}");
        assert!(message.ends_with("(reason: undecided)") && notice["status"] == "error", "{notice}");
    }
    assert_eq!(scene.relay.metric("rowcast_undecided_gaps_total", "").await, 6.0, "three rows, two phones");
    // From here on memory knows.
    scene.exec(&post(2, "five")).await;
    scene.exec("delete from teams where id = 2").await;
    scene.mark("end").await;
    for phone in [&mut alice, &mut bob] {
        let changes = phone.changes_before("end").await;
        assert!(summary(&changes, "note").ends_with(&["INSERT five".into(), "DELETE five".into()]), "{changes:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memberships_in_partitions_come_and_go_with_them() {
    let partitioned = TEAMS
        .replace("create table public.members (team_id int references public.teams on delete cascade, user_id uuid, primary key (team_id, user_id));",
            "create table public.members (team_id int, user_id uuid, primary key (team_id, user_id)) partition by list (team_id);
             create table public.members_1 partition of public.members for values in (1);
             create table public.members_2 (team_id int not null, user_id uuid not null, primary key (team_id, user_id));");
    let scene = Scene::with(&partitioned).await;
    scene.exec(&format!("{} insert into members_2 values (2, '{ALICE}')", join(1, ALICE))).await;
    let mut alice = watch(&scene, ALICE).await;
    // No row of the stream tells of the change; it is followed within the time for changes of rules.
    let attach = "alter table members attach partition members_2 for values in (2)";
    let detach = "alter table members detach partition members_1";
    for (sql, team, wanted) in [(attach, 2, true), (detach, 1, false)] {
        scene.exec(sql).await;
        let deadline = Instant::now() + PATIENCE;
        for n in 0.. {
            let mark = format!("{team} {n}");
            scene.exec(&post(team, "seen?")).await;
            scene.mark(&mark).await;
            if alice.changes_before(&mark).await.is_empty() != wanted {
                break;
            }
            assert!(Instant::now() < deadline, "{sql} went by unseen");
            pause().await;
        }
    }
    in_memory(&scene).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_cannot_be_published_is_asked_about_until_it_can_be() {
    let bare = TEAMS.replace("primary key (team_id, user_id)", "unique (team_id, user_id)");
    let scene = Scene::with(&bare).await;
    let mut alice = watch(&scene, ALICE).await;
    scene.exec(&post(1, "before")).await;
    // Postgres judges by what is when it is asked, so nothing is changed before it has answered.
    scene.mark("asked").await;
    alice.expect_nothing_before("asked").await;
    scene.exec(&join(1, ALICE)).await;
    scene.exec(&post(1, "granted")).await;
    scene.mark("answered").await;
    assert_eq!(summary(&alice.changes_before("answered").await, "note"), ["INSERT granted"]);
    // Its writers must not suffer.
    scene.exec(&format!("update members set user_id = '{BOB}'")).await;
    scene.exec(&post(1, "handed over")).await;
    scene.mark("end").await;
    alice.expect_nothing_before("end").await;
    assert!(scene.relay.metric("rowcast_ask_seconds_count", "").await > 0.0);
    // As soon as it can be, it is followed.
    scene.exec("alter table members replica identity full").await;
    let deadline = Instant::now() + PATIENCE;
    while scene.relay.metric("rowcast_fact_tables", "ready").await < 1.0 {
        assert!(Instant::now() < deadline, "never loaded");
        pause().await;
    }
    let asked = scene.relay.metric("rowcast_ask_seconds_count", "").await;
    scene.exec(&join(1, ALICE)).await;
    scene.exec(&post(1, "back")).await;
    scene.mark("then").await;
    assert_eq!(summary(&alice.changes_before("then").await, "note"), ["INSERT back"]);
    assert_eq!(scene.relay.metric("rowcast_ask_seconds_count", "").await, asked);
}

/// Whoever never had a right, under the rules and the rows of any one moment, has none while both change together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_of_today_do_not_judge_by_the_memberships_of_yesterday() {
    let levels = TEAMS
        .replace("user_id uuid, primary key", "user_id uuid, level int not null, primary key")
        .replace("m.user_id = auth.uid()", "m.user_id = auth.uid() and m.level > 0");
    let scene = Scene::with(&levels).await;
    scene.exec(&format!("insert into members values (1, '{ALICE}', -1)")).await;
    let mut alice = watch(&scene, ALICE).await;
    scene.exec(&post(1, "before")).await;
    scene.mark("start").await;
    alice.expect_nothing_before("start").await;
    // The rules are read again while its rows are being judged.
    scene.exec("insert into posts (team_id, note) select 1, 'many' from generate_series(1, 12000)").await;
    scene
        .exec(
            "begin; update members set level = -level;
             alter policy team on posts using (exists (select 1 from public.members m
                 where m.team_id = posts.team_id and m.user_id = auth.uid() and m.level < 0)); commit",
        )
        .await;
    scene.mark("end").await;
    // Postgres is asked about each row that the new rules have overtaken: on a busy machine that takes longer than anything else.
    let deadline = Instant::now() + 9 * PATIENCE;
    let mut changes = Vec::new();
    while !changes.iter().any(|change: &Change| change.is_mark("end")) {
        assert!(Instant::now() < deadline, "the rows are not done with");
        alice.heartbeat().await;
        changes.extend(alice.changes_so_far());
        pause().await;
    }
    assert_eq!(changes.len(), 1, "{changes:#?}");
}
