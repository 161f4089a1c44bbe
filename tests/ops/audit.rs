//! The audit log of one session's life, as the program writes it.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::startup::process::Rowcast;
use crate::support::relay::get;
use crate::support::token::{self, ALICE, SECRET};
use crate::support::{Phone, TestPg, Version, pg};

const NOTES: &str = "create table public.notes (id int primary key, body text); \
     grant select on public.notes to authenticated; \
     alter publication supabase_realtime add table public.notes";

/// What must not be in any line.
const SECRETS: [&str; 3] = ["the-row-itself", "the-filter-value", "the-claim"];

fn claims(seconds: i64, jti: u32) -> String {
    let now = rowcast::clock::Clock::system().unix_seconds();
    let claims =
        json!({ "role": "authenticated", "sub": ALICE, "exp": now + seconds, "jti": jti, "private": "the-claim" });
    token::raw(&json!({ "alg": "HS256", "typ": "JWT" }), &claims)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sessions_life_is_in_the_audit_log_and_nothing_that_it_said() {
    let pg = TestPg::start().await;
    pg.exec(NOTES).await;
    let (port, admin) = (pg::free_port(), pg::free_port());
    let mut process = Rowcast::serve(&pg.url())
        .env("JWT_SECRET", SECRET)
        .env("PORT", &port.to_string())
        .env("ROWCAST_ADMIN_ADDR", &format!("127.0.0.1:{admin}"))
        .env("ROWCAST_LOG_FORMAT", "json")
        .spawn();
    process.line_with("streaming changes").await;
    let mut tokens = vec![claims(600, 1), claims(600, 2), claims(3, 3)];
    let refused = get(([127, 0, 0, 1], port).into(), "/realtime/v1/websocket?apikey=whatever").await;
    assert_eq!(refused.expect("an answer").0, 400);

    let base = format!("ws://127.0.0.1:{port}/realtime/v1");
    let mut phone = Phone::connect(&base, &tokens[0], Version::V2).await;
    let entries =
        json!([{ "event": "*", "schema": "public", "table": "notes", "filter": "body=neq.the-filter-value" }]);
    phone.subscribe("room", &entries).await;
    pg.exec("insert into notes values (1, 'the-row-itself')").await;
    assert_eq!(phone.next_change().await.record()["body"], "the-row-itself");
    phone.push_token("room", &tokens[1]).await;
    phone.subscribed("room").await;
    // The same topic again, and away.
    phone.speak_as(&tokens[1]);
    phone.subscribe("room", &entries).await;
    // The goodbye of the first instance, which is not the one that is left.
    assert_eq!(phone.frames_of("room").iter().filter(|frame| frame.event == "phx_close").count(), 1);
    phone.leave("room").await;
    // A join with no token, one whose changes can't be had, and one that is thrown out.
    let bad = format!("{}x", tokens[0]);
    let refused = phone.join_with("bad", json!({ "config": {}, "access_token": bad })).await;
    assert_eq!(refused["status"], "error");
    // To a topic that is none.
    phone.send_as((json!("90"), json!("90")), "elsewhere:x", "phx_join", json!({})).await;
    assert_eq!(phone.reply_to(&json!("90")).await.payload["status"], "error");
    let unknown =
        json!([{ "event": "*", "schema": "public", "table": "notes", "filter": "no_such=eq.the-filter-value" }]);
    assert_eq!(phone.join("odd", &unknown).await["status"], "ok");
    assert_eq!(phone.system("odd").await["status"], "error");
    phone.subscribe("thrown", &entries).await;
    phone.push_token("thrown", &bad).await;
    phone.channel_closed("thrown").await;
    // And one whose time runs out.
    phone.speak_as(&tokens[2]);
    phone.subscribe("brief", &entries).await;
    phone.channel_closed("brief").await;
    assert_eq!(get(([127, 0, 0, 1], admin).into(), "/state").await.expect("an answer").0, 200);
    process.signal(Signal::SIGTERM);
    assert_eq!(phone.close_code().await, Some(1012));
    let ended = process.ended().await;

    let lines: Vec<Value> = ended.stderr.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let audit: Vec<&Value> =
        lines.iter().filter(|line| line["target"] == "audit").map(|line| &line["fields"]).collect();
    let of_session = |line: &&&Value| line["message"] != "stop asked for" && line["message"] != "state read";
    let told: Vec<(&str, &str, &str)> = audit
        .iter()
        .filter(of_session)
        .map(|line| {
            let field = |name: &str| line[name].as_str().unwrap_or_default();
            (field("message"), field("topic").trim_start_matches("realtime:"), field("reason"))
        })
        .collect();
    assert_eq!(
        told,
        [
            ("handshake refused", "", "NotAnUpgrade"),
            ("connected", "", ""),
            ("joined", "room", ""),
            ("token refreshed", "room", ""),
            ("left", "room", "rejoined"),
            ("joined", "room", ""),
            ("left", "room", ""),
            ("join refused", "bad", "JwtSignatureError"),
            ("join refused", "elsewhere:x", "UnmatchedTopic"),
            ("joined", "odd", ""),
            ("changes refused", "odd", "ChangesRefused"),
            ("joined", "thrown", ""),
            ("token refused", "thrown", "JwtSignatureError"),
            ("joined", "brief", ""),
            ("expired", "brief", ""),
            ("disconnected", "", "drain"),
        ],
        "{audit:#?}"
    );
    // Who and which connection, everywhere.
    let session = &audit.iter().find(|line| line["message"] == "connected").expect("a line")["connection"];
    for line in audit.iter().filter(of_session).filter(|line| line["message"] != "handshake refused") {
        assert_eq!((&line["user"], &line["role"]), (&json!(ALICE), &json!("authenticated")), "{line}");
        assert_eq!(&line["connection"], session, "{line}");
    }
    let of = |message: &str| *audit.iter().find(|line| line["message"] == message).expect("a line");
    assert_eq!((&of("disconnected")["channels"], &of("connected")["version"]), (&json!(1), &json!("2.0.0")));
    assert!(of("connected")["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")));
    assert_eq!(of("stop asked for")["signal"], "SIGTERM");
    assert_eq!(of("state read")["message"], "state read");

    // Not in these lines nor in any other.
    tokens.push(bad);
    for secret in SECRETS.iter().copied().chain(tokens.iter().map(String::as_str)).chain([SECRET]) {
        assert!(!ended.stderr.contains(secret), "{secret} was logged:\n{}", ended.stderr);
    }
    // Each kind of line is explained.
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("README.md");
    for line in &audit {
        let row = format!("| `{}` |", line["message"].as_str().expect("a text"));
        assert!(readme.contains(&row), "README.md does not explain {row}");
    }
}
