//! `rowcast why` against a relay at work: each reason for silence is found, and what is not known is said to be unknown.

use std::time::Duration;

use rowcast::change::{Lsn, Position};
use rowcast::clock::Clock;
use rowcast::config::Config;
use rowcast::resume::{Cursor, CursorKey};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::startup::process::{Ended, Rowcast};
use crate::support::stage::{all_of, with_marks};
use crate::support::token::{ALICE, BOB};
use crate::support::{Phone, Relay, Stage, TestPg, Version, token};

/// Rows of `owned` are judged in memory, those of `asked` by Postgres, and those of `slow` by nobody in time.
const TABLES: &str = "
    create table public.owned (id int primary key, user_id uuid not null, secret text);
    alter table public.owned enable row level security;
    create policy own on public.owned for select to authenticated using (user_id = auth.uid());
    create table public.asked (id int, part text, kind text, primary key (part, id));
    alter table public.asked enable row level security;
    create policy brief on public.asked for select to authenticated using (length(kind) < 10);
    create table public.slow (id int primary key);
    alter table public.slow enable row level security;
    create policy slow on public.slow for select to authenticated using (pg_sleep(3) is not null);
    create table public.orgs (id int primary key, org text);
    alter table public.orgs enable row level security;
    create policy org on public.orgs for select to authenticated using (org = (auth.jwt() ->> 'org'));
    create table public.private (id int primary key);
    grant select on public.owned, public.asked, public.slow, public.orgs to authenticated;
    alter publication supabase_realtime add table public.owned, public.asked, public.slow, public.orgs;";

async fn ask(relay: &Relay, arguments: &[&str]) -> Ended {
    let admin = relay.admin().to_string();
    let all = [&["why", "--admin-addr", &admin][..], arguments].concat();
    Rowcast::new(&all).output().await
}

/// The answer, and whether the program said that it is one.
async fn asked(relay: &Relay, arguments: &[&str]) -> (Value, bool) {
    let ended = ask(relay, &[arguments, &["--json"]].concat()).await;
    let answer: Value = serde_json::from_str(&ended.stdout)
        .unwrap_or_else(|error| panic!("{error}: {} {}", ended.stdout, ended.stderr));
    assert_eq!(answer["answered"] == true, ended.code == Some(0), "{}", ended.stderr);
    (answer, ended.code == Some(0))
}

/// The only change of the answer.
#[track_caller]
fn only(answer: &Value) -> &Value {
    let changes = answer["changes"].as_array().expect("changes");
    assert_eq!(changes.len(), 1, "{answer:#}");
    &changes[0]
}

/// Outcome and reason of the only change for a user.
async fn outcome(relay: &Relay, table: &str, pk: &str, user: &str) -> (String, String) {
    let (answer, _) = asked(relay, &["--table", table, "--pk", pk, "--user", user]).await;
    let change = only(&answer);
    let text = |name: &str| change[name].as_str().expect("a text").to_owned();
    (text("outcome"), text("because"))
}

#[track_caller]
fn is(found: &(String, String), outcome: &str, phrase: &str) {
    assert!(found.0 == outcome && found.1.contains(phrase), "not {outcome}, {phrase:?}: {found:?}");
}

fn step<'a>(change: &'a Value, question: &str) -> &'a Value {
    let steps = change["steps"].as_array().expect("steps");
    steps.iter().find(|step| step["question"] == question).unwrap_or_else(|| panic!("no {question} in {change:#}"))
}

async fn subscribed(stage: &Stage, token: &str, entries: &Value) -> Phone {
    let mut phone = stage.relay.phone(token).await;
    phone.subscribe("room", &with_marks(entries)).await;
    phone
}

async fn insert(stage: &Stage, id: u32, user: &str) {
    stage.exec(&format!("insert into owned values ({id}, '{user}', 'hushhush')")).await;
}

/// What was inserted before has been judged.
async fn settle(stage: &Stage, phone: &mut Phone, mark: &str) {
    stage.mark(mark).await;
    phone.changes_before(mark).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_is_told_from_what_was_not_and_why() {
    let stage = Stage::with(TABLES).await;
    // The relay has come past the first row before she joins.
    let mut first = subscribed(&stage, &token::role("anon"), &json!([])).await;
    insert(&stage, 1, ALICE).await;
    settle(&stage, &mut first, "first").await;
    first.leave("room").await;
    let mut alice = subscribed(&stage, &token::user(ALICE), &all_of("owned")).await;
    let filtered = json!([{ "event": "*", "schema": "public", "table": "owned", "filter": "secret=eq.other" },
                          { "event": "DELETE", "schema": "public", "table": "asked" }]);
    let mut bob = subscribed(&stage, &token::user(BOB), &filtered).await;
    insert(&stage, 2, ALICE).await;
    insert(&stage, 3, BOB).await;
    stage.exec("insert into asked values (1, 'a', 'short')").await;
    stage.mark("end").await;
    let hers = alice.changes_before("end").await;
    let cursor = hers.last().and_then(|change| change.data["cursor"].as_str()).expect("a cursor").to_owned();
    settle(&stage, &mut bob, "end").await;
    let why =
        async |table: &'static str, pk: &'static str, user: &'static str| outcome(&stage.relay, table, pk, user).await;

    let sent = why("owned", "2", ALICE).await;
    is(&sent, "sent", "it was sent on \"room\" unless the connection broke: the connection is still open");
    is(&why("owned", "3", ALICE).await, "not_sent", "authenticated may not see it, the policies say no");
    is(&why("owned", "1", ALICE).await, "not_sent", "\"room\" was joined later");
    is(&why("owned", "3", BOB).await, "not_sent", "filter secret=eq.… does not match");
    is(&why("asked", "a,1", BOB).await, "not_sent", "had no entry for INSERT of public.asked");
    let nobody = "c0ffee00-0000-4000-8000-000000000001";
    is(&why("owned", "2", nobody).await, "not_sent", "no channel of this user was active");

    // To read the rules for a role that nobody has had is no change of them.
    let (answer, _) = asked(&stage.relay, &["--table", "owned", "--pk", "2", "--user", ALICE, "--role", "clerk"]).await;
    assert!(only(&answer)["steps"].to_string().contains("there is no such role"), "{answer:#}");
    is(&why("owned", "2", ALICE).await, "sent", "still open");

    // He is gone, and the journal still knows.
    alice.leave("room").await;
    insert(&stage, 4, ALICE).await;
    bob.push_token("room", &token::user(BOB)).await;
    settle(&stage, &mut bob, "later").await;
    is(&why("owned", "2", ALICE).await, "sent", "the channel was left at ");
    is(&why("owned", "4", ALICE).await, "not_sent", "\"room\" had ended at ");

    // The change by its position, for whoever the token is of, expired or not.
    let (answer, _) = asked(&stage.relay, &["--table", "public.owned", "--pk", "id=2", "--user", ALICE]).await;
    let position = only(&answer)["position"].as_str().expect("a position").to_owned();
    for token in [token::user(ALICE), token::expired(ALICE)] {
        let (answer, _) = asked(&stage.relay, &["--cursor", &cursor, "--token", &token]).await;
        assert_eq!(only(&answer)["position"], position.as_str());
        let (answer, _) = asked(&stage.relay, &["--cursor", &position, "--token", &token]).await;
        assert_eq!((&only(&answer)["outcome"], &answer["user"]), (&json!("sent"), &json!(ALICE)));
        let remarks = answer["remarks"].to_string();
        assert_eq!(
            remarks.contains("has expired"),
            token == token::expired(ALICE) || remarks.contains("expired"),
            "{remarks}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_shown_only_if_asked_for_and_the_text_reads_step_by_step() {
    let stage = Stage::with(TABLES).await;
    let filtered = json!([{ "event": "*", "schema": "public", "table": "owned", "filter": "secret=neq.whisper" }]);
    let mut alice = subscribed(&stage, &token::user(ALICE), &filtered).await;
    insert(&stage, 2, ALICE).await;
    settle(&stage, &mut alice, "end").await;
    let question = ["--table", "owned", "--pk", "2", "--user", ALICE, "--since", "1h"];
    let hidden = ask(&stage.relay, &question).await;
    assert_eq!(hidden.code, Some(0), "{}", hidden.stderr);
    assert!(!hidden.stdout.contains("hushhush") && !hidden.stdout.contains("whisper"), "{}", hidden.stdout);
    let mut rest = hidden.stdout.as_str();
    for phrase in [
        &format!("Changes of public.owned, and what became of them for user {ALICE}\n"),
        "searched: the log from",
        "evidence: the journal, which begins at 20",
        "INSERT at ",
        "published    yes",
        "subscribed   yes  \"room\" was active since 20",
        "filter       yes  filter secret=neq.… matches",
        "rights now   yes  authenticated may see it: policies \"own\"; judged in memory, now",
        "rights then  yes",
        "delivery     yes",
        "→ SENT: ",
    ] {
        let at = rest.find(phrase).unwrap_or_else(|| panic!("no {phrase:?} in order in\n{}", hidden.stdout));
        rest = &rest[at + phrase.len()..];
    }
    let shown = ask(&stage.relay, &[&question[..], &["--show-row"]].concat()).await;
    assert!(
        shown.stdout.contains("\"secret\":\"hushhush\"") && shown.stdout.contains("neq.whisper"),
        "{}",
        shown.stdout
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_published_or_not_there_is_said() {
    let stage = Stage::with(TABLES).await;
    stage.exec("insert into private values (1)").await;
    let (answer, known) = asked(&stage.relay, &["--table", "private", "--pk", "id=1", "--user", ALICE]).await;
    assert!(known && answer["remarks"].to_string().contains("public.private is not published"), "{answer:#}");
    let (answer, known) = asked(&stage.relay, &["--table", "owned", "--pk", "99", "--user", ALICE]).await;
    assert!(!known && answer["remarks"].to_string().contains("no change of this row of public.owned"), "{answer:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_was_not_decided_in_time_is_found_as_a_gap() {
    let quick = |config: &mut Config| {
        config.hub.ask.statement_timeout = Duration::from_millis(200);
        config.hub.ask.deadline = Duration::from_millis(500);
    };
    let stage = Stage::configured(TABLES, quick).await;
    let mut alice = subscribed(&stage, &token::user(ALICE), &all_of("slow")).await;
    stage.exec("insert into slow values (1)").await;
    let system = alice.system("room").await;
    assert!(system["message"].as_str().is_some_and(|text| text.contains("undecided")), "{system}");
    is(&outcome(&stage.relay, "slow", "1", ALICE).await, "told_of_gap", "could not be decided in time (timeout)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_postgres_answered_then_is_not_known_and_neither_are_claims_of_who_is_gone() {
    let stage = Stage::with(TABLES).await;
    let entries = json!([{ "event": "*", "schema": "public", "table": "asked" },
                         { "event": "*", "schema": "public", "table": "orgs" }]);
    let mut alice = subscribed(&stage, &token::user(ALICE), &entries).await;
    stage.exec("insert into asked values (1, 'a', 'short'); insert into orgs values (1, 'acme')").await;
    settle(&stage, &mut alice, "end").await;
    let (answer, known) = asked(&stage.relay, &["--table", "asked", "--pk", "a", "--pk", "1", "--user", ALICE]).await;
    let change = only(&answer);
    assert!(!known && change["outcome"] == "unknown", "{answer:#}");
    let now = step(change, "rights_now");
    assert!(now["says"] == "yes" && now["text"].as_str().is_some_and(|text| text.contains("asked of Postgres, now")));
    assert!(step(change, "rights_then")["text"].as_str().is_some_and(|text| text.contains("its answer is not kept")));

    // While she is connected her claims are known; afterwards only sub and role are.
    is(&outcome(&stage.relay, "orgs", "1", ALICE).await, "not_sent", "the policies say no");
    alice.leave("room").await;
    let (answer, _) = asked(&stage.relay, &["--table", "orgs", "--pk", "1", "--user", ALICE]).await;
    let now = step(only(&answer), "rights_now");
    assert!(
        now["says"] == "unknown" && now["text"].as_str().is_some_and(|text| text.contains("--token")),
        "{answer:#}"
    );
    is(&(only(&answer)["outcome"].as_str().expect("text").into(), String::new()), "unknown", "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_that_changed_since_make_the_past_unknown() {
    let stage = Stage::with(TABLES).await;
    let mut alice = subscribed(&stage, &token::user(ALICE), &all_of("owned")).await;
    insert(&stage, 1, BOB).await;
    settle(&stage, &mut alice, "end").await;
    is(&outcome(&stage.relay, "owned", "1", ALICE).await, "not_sent", "the policies say no");
    stage.exec("alter policy own on public.owned using (true)").await;
    // The rules are read from time to time.
    let mut id = 1;
    while alice.changes_so_far().is_empty() {
        id += 1;
        assert!(id < 10_000, "the new policy is not seen");
        insert(&stage, id, BOB).await;
    }
    let (answer, known) = asked(&stage.relay, &["--table", "owned", "--pk", "1", "--user", ALICE]).await;
    let change = only(&answer);
    assert_eq!(step(change, "rights_now")["says"], "yes");
    assert!(
        !known && change["because"].as_str().is_some_and(|text| text.contains("the rules (policies")),
        "{answer:#}"
    );
}

/// Rows of `posts` are for members of their team.
const TEAMS: &str = "
    create table public.members (team int, user_id uuid, primary key (team, user_id));
    grant select on public.members to authenticated;
    create table public.posts (id int primary key, team int);
    alter table public.posts enable row level security;
    create policy team on public.posts for select to authenticated
        using (team in (select m.team from public.members m where m.user_id = auth.uid()));
    grant select on public.posts to authenticated;
    alter publication supabase_realtime add table public.posts;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_membership_that_changed_since_makes_the_past_unknown_and_one_that_did_not_makes_it_known() {
    let stage = Stage::with(TEAMS).await;
    stage.exec(&format!("insert into members values (1, '{ALICE}')")).await;
    let mut alice = subscribed(&stage, &token::user(ALICE), &all_of("posts")).await;
    // Memory judges once it has read the members.
    let deadline = tokio::time::Instant::now() + crate::support::phone::PATIENCE;
    loop {
        let (_, text) = crate::support::relay::get(stage.relay.admin(), "/state").await.expect("an answer");
        let state: Value = serde_json::from_str(&text).expect("JSON");
        if state["hub"]["facts"][0]["state"] == "ready" {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{text}");
        crate::support::relay::pause().await;
    }
    stage.mark("ready").await;
    alice.changes_before("ready").await;
    stage.exec("insert into posts values (1, 1), (2, 2)").await;
    settle(&stage, &mut alice, "end").await;
    is(&outcome(&stage.relay, "posts", "1", ALICE).await, "sent", "still open");
    is(&outcome(&stage.relay, "posts", "2", ALICE).await, "not_sent", "the policies say no");

    stage.exec("delete from members").await;
    settle(&stage, &mut alice, "later").await;
    let (answer, known) = asked(&stage.relay, &["--table", "posts", "--pk", "1", "--user", ALICE]).await;
    let change = only(&answer);
    assert_eq!(step(change, "rights_now")["says"], "no", "{answer:#}");
    let because = change["because"].as_str().expect("a text");
    assert!(!known && because.contains("a table that the policies look into was changed at 20"), "{answer:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_token_is_the_reason_of_what_came_after_it() {
    let stage = Stage::with(TABLES).await;
    let mut alice = subscribed(&stage, &token::short(ALICE, 3), &all_of("owned")).await;
    alice.channel_closed("room").await;
    let mut bob = subscribed(&stage, &token::user(BOB), &all_of("owned")).await;
    insert(&stage, 1, ALICE).await;
    settle(&stage, &mut bob, "end").await;
    is(&outcome(&stage.relay, "owned", "1", ALICE).await, "not_sent", "(its token expired at 20");
}

/// Over one log, with a journal of the test's choice.
async fn relay(pg: &TestPg, log: &std::path::Path, journal: &std::path::Path, bytes: u64) -> Relay {
    Relay::with(pg, Clock::system(), |config| {
        log.join("log").clone_into(&mut config.log.dir);
        journal.clone_into(&mut config.journal.dir);
        config.journal.bytes = bytes;
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_journal_does_not_reach_nothing_is_known() {
    let pg = TestPg::start().await;
    pg.exec(TABLES).await;
    let (log, first, second) = (tempdir(), tempdir(), tempdir());
    let mut one = relay(&pg, log.path(), first.path(), 1 << 20).await;
    let mut alice = one.phone(&token::user(ALICE)).await;
    alice.subscribe("room", &all_of("owned")).await;
    pg.exec(&format!("insert into owned values (1, '{ALICE}')")).await;
    assert_eq!(alice.next_change().await.record()["id"], 1);
    is(&outcome(&one, "owned", "1", ALICE).await, "sent", "still open");
    one.drain().await;

    // The same journal: what the last run noted counts.
    one = relay(&pg, log.path(), first.path(), 1 << 20).await;
    is(&outcome(&one, "owned", "1", ALICE).await, "sent", "its connection closed at ");
    is(&outcome(&one, "owned", "1", ALICE).await, "sent", "the relay stopped, code 1012");
    one.drain().await;

    // Another one begins after the change.
    one = relay(&pg, log.path(), second.path(), 1 << 20).await;
    is(&outcome(&one, "owned", "1", ALICE).await, "unknown", "not known before 20");
    one.drain().await;

    // None at all: who is connected is known from the hub, and nothing else.
    one = relay(&pg, log.path(), second.path(), 0).await;
    let (answer, _) = asked(&one, &["--table", "owned", "--pk", "1", "--user", ALICE]).await;
    assert_eq!(only(&answer)["outcome"], "unknown");
    assert!(answer["evidence"].as_str().is_some_and(|text| text.contains("ROWCAST_JOURNAL_BYTES is 0")), "{answer:#}");
}

fn tempdir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_that_can_not_be_answered_names_what_is_wrong_with_it() {
    let stage = Stage::with(TABLES).await;
    let forged = format!("{}x", token::user(ALICE));
    let place = Cursor { epoch: 1, position: Position { lsn: Lsn(1), ordinal: 0 } };
    let foreign = CursorKey::new([9; 32]).seal(place);
    for (arguments, code, phrases) in [
        (&["--table", "owned", "--user", ALICE][..], 2, &["--pk"][..]),
        (&["--pk", "1", "--user", ALICE], 2, &["--table"]),
        (&["--table", "owned", "--pk", "1"], 2, &["names nobody", "--user"]),
        (&["--table", "owned", "--pk", "1", "--user", ALICE, "--token", "x"], 2, &["--token"]),
        (&["--table", "owned", "--pk", "1", "--user", ALICE, "--since", "soon"], 2, &["--since", "1h"]),
        (&["--table", "asked", "--pk", "1", "--user", ALICE], 1, &["1 values", "has 2: part, id"]),
        (&["--cursor", &foreign, "--user", ALICE], 1, &["given by another relay", "position"]),
        (&["--cursor", "here", "--user", ALICE], 1, &["--cursor is \"here\"", "16/B374D848/0"]),
        (&["--table", "owned", "--pk", "1", "--token", &forged], 1, &["--token is refused"]),
    ] {
        let ended = ask(&stage.relay, arguments).await;
        assert_eq!((ended.code, &*ended.stdout), (Some(code), ""), "{arguments:?}: {}", ended.stderr);
        for phrase in phrases {
            assert!(ended.stderr.contains(phrase), "{arguments:?}, no {phrase:?}: {}", ended.stderr);
        }
        assert!(!ended.stderr.contains(&forged), "a token is printed");
    }
    let nobody = ["why", "--admin-addr", "127.0.0.1:1", "--cursor", "0/1", "--user", ALICE];
    let ended = Rowcast::new(&nobody).output().await;
    assert!(ended.code == Some(1) && ended.stderr.contains("no relay answers on 127.0.0.1:1"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_can_not_ask() {
    let stage = Stage::with("").await;
    let body = json!({ "cursor": "0/1", "user": ALICE }).to_string();
    for (headers, status) in [
        ("content-type: application/json\r\norigin: http://evil.example\r\n", "403"),
        ("content-type: text/plain\r\n", "415"),
        ("content-type: application/json\r\n", "200"),
    ] {
        let mut stream = tokio::net::TcpStream::connect(stage.relay.admin()).await.expect("a connection");
        let text = format!(
            "POST /why HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(text.as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_broadcast_is_explained_by_the_topics_that_were_joined() {
    let stage = Stage::with("").await;
    let mut phones = Vec::new();
    for (user, topic) in [(ALICE, "room, of \"all\""), (BOB, "hall")] {
        let mut phone = Phone::connect(&stage.relay.base(), &token::user(user), Version::V1).await;
        let marks = json!([{ "event": "*", "schema": "public", "table": "marks" }]);
        phone.subscribe(topic, &marks).await;
        phones.push(phone);
    }
    stage.exec("select realtime.send('{\"a\": 1}', 'ping', 'room, of \"all\"', false)").await;
    stage.mark("end").await;
    let cursor = loop {
        let frame = phones[0].next_frame().await;
        if frame.event == "broadcast" {
            break frame.payload["meta"]["cursor"].as_str().expect("a cursor").to_owned();
        }
    };
    phones[1].changes_before("end").await;
    let why = async |user: &'static str| {
        let (answer, _) = asked(&stage.relay, &["--cursor", &cursor, "--user", user]).await;
        let change = only(&answer);
        assert_eq!(change["table"], "realtime.messages");
        assert_eq!(step(change, "published")["says"], "yes", "{change:#}");
        (change["outcome"].as_str().expect("a text").to_owned(), change["because"].as_str().expect("a text").to_owned())
    };
    is(&why(ALICE).await, "sent", "it was sent");
    is(&why(BOB).await, "not_sent", "filter topic=eq.");
}
