//! `GET /api/snapshot` and `GET /api/history`: what a WebSocket would bring, as pages.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use rowcast::clock::Clock;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Scene, caught_up, database, notify, watching};
use crate::support::Relay;
use crate::support::phone::PATIENCE;
use crate::support::token::{self, ALICE, BOB};

/// An answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    /// In lower case.
    headers: BTreeMap<String, String>,
    body: String,
}

impl Answer {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The page, which it must be.
    #[track_caller]
    fn page(&self) -> Page {
        assert_eq!(self.status, 200, "{self:?}");
        let json = self.json();
        let rows = json["rows"].as_array().expect("rows").clone();
        Page { rows, cursor: json["cursor"].as_str().expect("a cursor").to_owned(), more: json["more"] == true }
    }
}

#[derive(Debug)]
struct Page {
    rows: Vec<Value>,
    cursor: String,
    more: bool,
}

impl Page {
    fn kinds(&self) -> Vec<String> {
        let of = |row: &Value| {
            let record = if row["type"] == "DELETE" { &row["old_record"] } else { &row["record"] };
            format!("{} {}", row["type"].as_str().expect("a type"), record["kind"].as_str().unwrap_or_default())
        };
        self.rows.iter().map(of).collect()
    }
}

async fn request(addr: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let asking = async {
        let mut stream = TcpStream::connect(addr).await.expect("a connection");
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n");
        headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
        stream.write_all(format!("{text}\r\n").as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    };
    let answer = tokio::time::timeout(PATIENCE, asking).await.expect("in time");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status").parse().expect("a number");
    let header =
        |line: &str| line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
    Answer { status, headers: lines.filter_map(header).collect(), body: body.to_owned() }
}

async fn get(relay: &Relay, user: &str, path: &str) -> Answer {
    let bearer = format!("Bearer {}", token::user(user));
    request(relay.addr(), "GET", path, &[("authorization", &bearer)]).await
}

/// The cursor of now.
async fn now(relay: &Relay) -> String {
    let time = get(relay, ALICE, "/api/snapshot?table=notifications&limit=1").await;
    time.page().cursor
}

/// Waits until the relay has everything that is committed by now: a page ends where the log does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_a_page_and_its_cursor_a_place_to_go_on_from() {
    let scene = Scene::start().await;
    for (user, kind) in [(ALICE, "one"), (BOB, "his"), (ALICE, "two"), (ALICE, "three")] {
        scene.exec(&notify(user, kind)).await;
    }
    let answer = get(&scene.relay, ALICE, "/api/snapshot?table=notifications").await;
    let page = answer.page();
    assert_eq!(
        (page.kinds(), page.more),
        (["INSERT one", "INSERT two", "INSERT three"].map(String::from).into(), false)
    );
    assert!(page.rows.iter().all(|row| row["snapshot"] == true && row.get("cursor").is_none()));
    assert_eq!(answer.headers["cache-control"], "no-store");
    assert_eq!(answer.headers["content-type"], "application/json; charset=utf-8");
    let path = "/realtime/v1/api/snapshot?schema=public&table=notifications&limit=1&order=id.desc&filter=kind%3Dneq.two&select=kind";
    let narrow = get(&scene.relay, ALICE, path).await.page();
    let records: Vec<&Value> = narrow.rows.iter().map(|row| &row["record"]).collect();
    assert_eq!((records[0]["kind"].as_str(), records.len(), narrow.more), (Some("three"), 1, true));
    scene.exec(&notify(ALICE, "four")).await;
    scene.exec("update notifications set kind = 'new' where kind = 'one'").await;
    scene.exec("delete from notifications where kind = 'two'").await;
    let expected: Vec<String> = ["INSERT four", "UPDATE new", "DELETE two"].map(String::from).into();
    caught_up(&scene).await;
    let after = get(&scene.relay, ALICE, &format!("/api/history?table=notifications&after={}", page.cursor)).await;
    assert_eq!((after.page().kinds(), after.page().more), (expected.clone(), false));
    // And over a WebSocket.
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    let entries = json!([{ "event": "*", "schema": "public", "table": "notifications", "since": page.cursor }]);
    phone.join("room", &entries).await;
    for expected in expected {
        let change = phone.next_change().await;
        assert!(expected.starts_with(change.kind()), "{expected}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paged_to_its_end_history_is_what_the_live_stream_brought() {
    let scene = Scene::start().await;
    let start = now(&scene.relay).await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.join("room", &watching(&["notifications"])).await;
    for n in 0..25 {
        let other = notify(BOB, "his");
        scene.exec(&format!("begin; {} {other} {} commit", notify(ALICE, &format!("a{n}")), notify(ALICE, "b"))).await;
        scene.exec(&format!("update notifications set read_at = now() where kind = 'a{n}'")).await;
    }
    scene.exec("delete from notifications where kind like 'a%'").await;
    scene.mark("end").await;
    let mut live = phone.changes_before("end").await;
    let path = |after: &str| format!("/api/history?table=notifications&limit=7&after={after}");
    let (mut after, mut paged, mut pages) = (start, Vec::new(), 0);
    loop {
        let answer = get(&scene.relay, ALICE, &path(&after)).await;
        let page = answer.page();
        assert!(page.rows.len() == 7 || !page.more, "{page:?}");
        if page.more {
            // Bounded on both sides: it will not grow, and may be kept.
            assert_eq!(page.rows.last().expect("a row")["cursor"], page.cursor.as_str());
            assert_eq!(answer.headers["cache-control"], "private, max-age=300");
            let bearer = format!("Bearer {}", token::user(ALICE));
            let known = [("authorization", &*bearer), ("if-none-match", &*answer.headers["etag"])];
            let again = request(scene.relay.addr(), "GET", &path(&after), &known).await;
            assert_eq!((again.status, again.body.as_str()), (304, ""));
        } else {
            assert_eq!(answer.headers["cache-control"], "no-store");
        }
        (after, pages) = (page.cursor, pages + 1);
        paged.extend(page.rows);
        if !page.more {
            break;
        }
    }
    assert!(pages > 10, "{pages}");
    let live: Vec<Value> = live.drain(..).map(|change| change.data).collect();
    assert_eq!(paged, live);
    let empty = get(&scene.relay, ALICE, &path(&after)).await.page();
    assert!(empty.rows.is_empty() && !empty.more);
    scene.exec(&notify(ALICE, "next")).await;
    caught_up(&scene).await;
    assert_eq!(get(&scene.relay, ALICE, &path(&empty.cursor)).await.page().kinds(), ["INSERT next"]);
    // By time, at least once.
    let first = paged[0]["commit_timestamp"].as_str().expect("a time");
    let timed = get(&scene.relay, ALICE, &path(first)).await.page();
    assert_eq!((&timed.rows[..], timed.more), (&paged[..7], true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_is_judged_with_the_rights_of_now() {
    let scene = Scene::start().await;
    let start = now(&scene.relay).await;
    scene.exec(&super::event(super::ALICES_SESSION, "while hers")).await;
    scene.exec(&format!("update coding_sessions set user_id = '{BOB}' where id = '{}'", super::ALICES_SESSION)).await;
    caught_up(&scene).await;
    let path = format!("/api/history?table=session_events&after={start}");
    let of = async |user: &str| get(&scene.relay, user, &path).await.page().rows.len();
    assert_eq!((of(ALICE).await, of(BOB).await), (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_wrongly_is_told_how() {
    let scene = Scene::with(
        "create table public.closed (id int primary key); alter publication supabase_realtime add table public.closed;",
    )
    .await;
    let addr = scene.relay.addr();
    let cursor = now(&scene.relay).await;
    for (path, status, says) in [
        ("/api/snapshot", 400, "`table` is missing"),
        ("/api/snapshot?table=notifications&limit=0", 400, "1 to 1000"),
        ("/api/snapshot?table=notifications&order=nothing", 400, "invalid column for order nothing"),
        ("/api/snapshot?table=notifications&filter=kind%3Dlike", 400, "filter"),
        ("/api/snapshot?table=closed", 403, "the role may not read the table"),
        ("/api/snapshot?table=unknown", 404, "Please check Realtime is enabled"),
        ("/api/history?table=notifications", 400, "`after` is missing"),
        ("/api/history?table=notifications&after=x", 400, "Error parsing `after`"),
        (&format!("/api/history?table=closed&after={cursor}"), 403, "Unauthorized"),
        (&format!("/api/history?table=unknown&after={cursor}"), 404, "Please check Realtime is enabled"),
    ] {
        let answer = get(&scene.relay, ALICE, path).await;
        let error = answer.json()["error"].as_str().unwrap_or_default().to_owned();
        assert!(answer.status == status && error.contains(says), "{path}: {answer:?}");
    }
    let path = "/api/snapshot?table=notifications";
    let expired = format!("Bearer {}", token::expired(ALICE));
    for (headers, says) in [
        (vec![], "API key is missing"),
        (vec![("authorization", "Bearer nonsense")], "not a valid JWT"),
        (vec![("authorization", &*expired)], "Token has expired"),
    ] {
        let answer = request(addr, "GET", path, &headers).await;
        assert!(answer.status == 401 && answer.body.contains(says), "{answer:?}");
    }
    let token = token::user(ALICE);
    for (path, headers) in [
        (path.to_owned(), vec![("apikey", &*token)]),
        (path.to_owned(), vec![("x-api-key", &*token)]),
        (format!("{path}&apikey={token}"), vec![]),
    ] {
        assert_eq!(request(addr, "GET", &path, &headers).await.status, 200);
    }
    let asked = request(addr, "OPTIONS", path, &[("origin", "https://app.example")]).await;
    assert_eq!((asked.status, &*asked.headers["access-control-allow-origin"]), (204, "*"));
    assert_eq!(request(addr, "POST", path, &[("content-length", "0")]).await.status, 405);
    assert_eq!(scene.relay.metric("rowcast_pages_total", "status=\"404\"").await, 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_as_may_be_are_read_and_more_are_told_to_wait() {
    let pg = database("").await;
    let relay = Relay::with(&pg, Clock::system(), |config| config.gateway.max_user_pages = 0).await;
    let answer = get(&relay, ALICE, "/api/snapshot?table=notifications").await;
    assert_eq!(answer.status, 429, "{answer:?}");
    assert!(answer.headers["retry-after"].parse::<u32>().is_ok_and(|seconds| (1..=4).contains(&seconds)));
    let relay = Relay::with(&pg, Clock::system(), |config| {
        config.gateway.max_page_bytes = 2000;
        config.ingest.wal.slot = "another".into();
    })
    .await;
    let start = now(&relay).await;
    pg.exec(&format!(
        "insert into notifications (user_id, kind) select '{ALICE}', 'n' || n from generate_series(1, 30) n"
    ))
    .await;
    let answer = get(&relay, ALICE, "/api/snapshot?table=notifications").await;
    assert!(answer.status == 413 && answer.body.contains("more than 2000 bytes"), "{answer:?}");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let page = loop {
        let page = get(&relay, ALICE, &format!("/api/history?table=notifications&after={start}")).await.page();
        if !page.rows.is_empty() {
            break page;
        }
        assert!(tokio::time::Instant::now() < deadline);
        crate::support::relay::pause().await;
    };
    assert!(page.more && (1..10).contains(&page.rows.len()), "{page:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_no_longer_be_given_is_gone_and_says_where_to_go_on() {
    let scene = Scene::start().await;
    let other = {
        let pg = database("").await;
        let relay = Relay::start(&pg).await;
        now(&relay).await
    };
    let answer = get(&scene.relay, ALICE, &format!("/api/history?table=notifications&after={other}")).await;
    assert_eq!(answer.status, 410, "{answer:?}");
    let gap = &answer.json()["gap"];
    assert_eq!((gap["reason"].as_str(), &gap["from"]), (Some("unknown"), &Value::Null));
    let to = gap["to"].as_str().expect("a cursor").to_owned();
    scene.exec(&notify(ALICE, "after")).await;
    caught_up(&scene).await;
    let page = get(&scene.relay, ALICE, &format!("/api/history?table=notifications&after={to}")).await.page();
    assert_eq!(page.kinds(), ["INSERT after"]);
}
