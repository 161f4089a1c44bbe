//! The programs of `TOPICS.md`, run as they stand there, against a relay that is killed under them.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::snippets::Application;
use super::{root, text};
use crate::support::{RelayProcess, TestPg, token};

/// What a newcomer's relay is reached at; the programs say so.
const ADDRESS: &str = "ws://127.0.0.1:4000";

fn block(language: &str) -> String {
    let page = text("TOPICS.md");
    let fence = format!("\n```{language}\n");
    assert_eq!(page.matches(&fence).count(), 1, "TOPICS.md has not one block of {language}");
    let (_, rest) = page.split_once(&fence).expect("a block");
    rest.split_once("\n```").expect("the block's end").0.to_owned()
}

/// Says something in a thread, from the database.
async fn say(pg: &TestPg, thread: u32, words: &str) {
    pg.exec(&format!("select realtime.send(jsonb_build_object('text', '{words}'), 'message', 'thread:{thread}')"))
        .await;
}

/// A member of thread 45 is shown all that is said there, once and in order, and nothing of other threads.
async fn shows_its_users_thread(start: impl FnOnce(&str, &str) -> Application) {
    let pg = TestPg::start().await;
    pg.exec("create table thread_members (thread_id int, user_id uuid, primary key (thread_id, user_id)); grant select on thread_members to authenticated")
        .await;
    pg.exec(&format!("insert into thread_members values (45, '{}'), (46, '{}')", token::ALICE, token::BOB)).await;
    let mut relay = RelayProcess::start(&pg).await;
    pg.exec(&block("sql")).await;
    let host = relay.base().split("/realtime").next().expect("a host").to_owned();
    let mut application = start(&host, &token::user(token::ALICE));
    // Whoever has shown the first is subscribed.
    let mut first = json!(null);
    for count in 0.. {
        say(&pg, 45, &format!("hello {count}")).await;
        if let Some(shown) = application.shown_within(std::time::Duration::from_millis(500)).await {
            first = shown;
            break;
        }
        assert!(count < 40, "nothing is shown");
    }
    assert!(first["text"].as_str().expect("a text").starts_with("hello"), "{first}");
    say(&pg, 46, "not for her").await;
    for number in 0..9 {
        if number == 3 {
            relay.kill().await;
        }
        say(&pg, 45, &format!("number {number}")).await;
        if number == 6 {
            relay.start_again().await;
        }
    }
    let mut shown: Vec<Value> = Vec::new();
    while shown.len() < 9 {
        let next = application.next().await;
        if !next["text"].as_str().is_some_and(|text| text.starts_with("hello")) {
            shown.push(next["text"].clone());
        }
    }
    assert_eq!(shown, (0..9).map(|number| json!(format!("number {number}"))).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_javascript_of_the_page_on_topics_shows_a_thread_over_a_restart() {
    let code = block("js");
    shows_its_users_thread(|host, token| {
        let sdk = root().join("tests/sdk");
        assert!(sdk.join("node_modules").exists(), "the JavaScript client is not installed: run scripts/test");
        let mut command = Command::new("node");
        command.arg("--input-type=module").current_dir(sdk);
        let ours = format!(
            "import ws from 'ws';\nglobalThis.WebSocket ??= ws;\nconst token = '{token}';\n\
             const show = (event, payload) => console.log(JSON.stringify(payload));\n\
             const load = () => console.log('\"load\"');\n"
        );
        // `ws` reports what browsers only log.
        let code = code.replace("socket.onclose =", "socket.onerror = () => {};\n  socket.onclose =");
        Application::start(command, &(ours + &code.replace(ADDRESS, host)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_of_the_page_on_topics_shows_a_thread_over_a_restart() {
    let code = block("python");
    shows_its_users_thread(|host, token| {
        let venv = || Path::new(env!("CARGO_TARGET_TMPDIR")).join("../sdk-venv/bin/python");
        let python = std::env::var_os("ROWCAST_TEST_PYTHON").map_or_else(venv, PathBuf::from);
        assert!(python.exists(), "the Python client is not installed: run scripts/test");
        let mut command = Command::new(python);
        command.args(["-B", "-u", "-"]);
        let ours = format!(
            "import json\ntoken = '{token}'\ndef show(event, payload): print(json.dumps(payload))\n\
             def load(): print('\"load\"')\n"
        );
        Application::start(command, &(ours + &code.replace(ADDRESS, host)))
    })
    .await;
}
