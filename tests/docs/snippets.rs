//! The JavaScript and Python of README, run as they stand there, with the stock clients, against a relay.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{root, section, text};
use crate::support::phone::PATIENCE;
use crate::support::{Relay, RelayProcess, TestPg, token};

/// What a newcomer's relay is reached at; the snippets say so.
const ADDRESS: &str = "ws://127.0.0.1:4000/realtime/v1";

/// The one block of this language in the part for application developers.
fn snippet(language: &str) -> String {
    let readme = text("README.md");
    let part = section(&readme, "## For the app");
    let fence = format!("\n```{language}\n");
    assert_eq!(part.matches(&fence).count(), 1, "README.md has not one block of {language}");
    let (_, rest) = part.split_once(&fence).expect("a block");
    let (code, _) = rest.split_once("\n```").expect("the block's end");
    code.to_owned()
}

/// A program that runs a snippet and says on its output, one JSON value a line, what the snippet calls.
pub(super) struct Application {
    child: Child,
    output: mpsc::Receiver<String>,
}

impl Application {
    pub(super) fn start(mut command: Command, code: &str) -> Application {
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        child.stdin.take().expect("piped").write_all(code.as_bytes()).expect("it reads");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (sender, output) = mpsc::channel(100);
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.blocking_send(line)));
        Application { child, output }
    }

    /// What is shown next, if something is by then.
    pub(super) async fn shown_within(&mut self, time: Duration) -> Option<Value> {
        let line = timeout(time, self.output.recv()).await.ok()?.expect("the program goes on");
        Some(serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}")))
    }

    pub(super) async fn next(&mut self) -> Value {
        let line = timeout(PATIENCE, self.output.recv()).await.expect("something is shown in time");
        let line = line.expect("the snippet goes on");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"))
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Alice's application shows her event, and not the one of Bob that was written before it.
async fn shows_its_users_rows(start: impl FnOnce(&str, &str) -> Application) {
    let pg = TestPg::start().await;
    pg.exec(&text("sql/examples/session_events.sql")).await;
    let (alice, bob) = (token::ALICE, token::BOB);
    pg.exec(&format!("insert into coding_sessions (id, user_id) values ('{alice}', '{alice}'), ('{bob}', '{bob}')"))
        .await;
    let relay = Relay::start(&pg).await;
    let mut application = start(&relay.base(), &token::user(alice));
    assert_eq!(application.next().await, json!("load"));
    for session in [bob, alice] {
        let sql = "insert into session_events (session_id, event_type, event_data)";
        pg.exec(&format!("{sql} values ('{session}', 'message', '{{\"text\": \"hello\"}}')")).await;
    }
    let row = application.next().await;
    assert_eq!((&row["session_id"], &row["event_data"]), (&json!(alice), &json!({ "text": "hello" })), "{row}");
}

/// The code as it stands, of a relay of its own.
fn at(base: &str, code: &str) -> String {
    assert_eq!(code.matches(ADDRESS).count(), 1, "the snippet names {ADDRESS}:\n{code}");
    code.replace(ADDRESS, base)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_javascript_of_the_readme_shows_its_user_his_rows() {
    let code = snippet("js");
    shows_its_users_rows(|base, token| {
        let sdk = root().join("tests/sdk");
        assert!(sdk.join("node_modules").exists(), "the JavaScript client is not installed: run scripts/test");
        let mut command = Command::new("node");
        command.arg("--input-type=module").current_dir(sdk);
        let ours = format!(
            "import ws from 'ws';\nglobalThis.WebSocket ??= ws;\nconst token = '{token}';\n\
             const show = (row) => console.log(JSON.stringify(row));\nconst load = () => console.log('\"load\"');\n"
        );
        Application::start(command, &(ours + &at(base, &code)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_room_of_the_readme_hears_what_is_said_in_it_and_sees_who_is_there() {
    let (readme, app) = (text("README.md"), snippet("js"));
    let part = section(&readme, "## Broadcast, presence, private channels");
    let (_, rest) = part.split_once("\n```js\n").expect("a block");
    let (code, _) = rest.split_once("\n```").expect("the block's end");
    let pg = TestPg::start().await;
    pg.exec(&text("sql/examples/session_events.sql")).await;
    for action in ["select using", "insert with check"] {
        let sql = format!(
            "create policy own_{} on realtime.messages for {action} (realtime.topic() = 'room:7')",
            &action[..6]
        );
        pg.exec(&sql).await;
    }
    let relay = Relay::start(&pg).await;
    let mut command = Command::new("node");
    command.arg("--input-type=module").current_dir(root().join("tests/sdk"));
    let ours = format!(
        "import ws from 'ws';\nglobalThis.WebSocket ??= ws;\nconst token = '{}';\nconst show = () => {{}};\n\
         const load = () => {{}};\nconst say = (...all) => console.log(JSON.stringify(all));\n\
         const hear = (event, payload) => say('heard', event, payload);\n\
         const draw = (state) => say('there', Object.values(state).flat().map((who) => who.name));\n",
        token::user(token::ALICE)
    );
    let mut application = Application::start(command, &(ours + &at(&relay.base(), &app) + "\n" + code));
    let (mut heard, mut there) = (false, false);
    while !(heard && there) {
        let said = application.next().await;
        heard |= said == json!(["heard", "cursor", { "x": 3 }]);
        there |= said == json!(["there", ["Ann"]]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_of_the_readme_shows_its_user_his_rows() {
    let code = snippet("python");
    shows_its_users_rows(|base, token| {
        let venv = || Path::new(env!("CARGO_TARGET_TMPDIR")).join("../sdk-venv/bin/python");
        let python = std::env::var_os("ROWCAST_TEST_PYTHON").map_or_else(venv, PathBuf::from);
        assert!(python.exists(), "the Python client is not installed: run scripts/test");
        let mut command = Command::new(python);
        command.args(["-B", "-u", "-"]);
        let ours = format!(
            "import json\ntoken = '{token}'\ndef show(row): print(json.dumps(row))\ndef load(): print('\"load\"')\n"
        );
        Application::start(command, &(ours + &at(base, &code)))
    })
    .await;
}

/// The client without an SDK shows each row once, also those that were committed while its relay was away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_of_the_readme_that_keeps_its_cursor_misses_nothing_and_shows_nothing_twice() {
    let readme = text("README.md");
    let part = section(&readme, "## Nothing missed: cursors");
    let (_, rest) = part.split_once("\n```js\n").expect("a block");
    let (code, _) = rest.split_once("\n```").expect("the block's end");
    let pg = TestPg::start().await;
    pg.exec(&text("sql/examples/session_events.sql")).await;
    let alice = token::ALICE;
    pg.exec(&format!("insert into coding_sessions (id, user_id) values ('{alice}', '{alice}')")).await;
    let mut relay = RelayProcess::start(&pg).await;
    let sdk = root().join("tests/sdk");
    let mut command = Command::new("node");
    command.arg("--input-type=module").current_dir(sdk);
    let ours = format!(
        "import ws from 'ws';\nglobalThis.WebSocket ??= ws;\nconst token = '{}';\n\
         const kept = new Map();\nglobalThis.localStorage = {{ getItem: (key) => kept.get(key) ?? null,\n\
         setItem: (key, value) => {{ if (!kept.has(key)) console.log('\"begun\"'); kept.set(key, value) }} }};\n\
         const show = (row) => console.log(JSON.stringify(row));\nconst load = () => console.log('\"load\"');\n",
        token::user(alice)
    );
    let mut application = Application::start(command, &(ours + &at(&relay.base(), code)));
    assert_eq!(application.next().await, json!("begun"));
    let (mut shown, mut count) = (Vec::new(), 0);
    for round in 0..4 {
        for _ in 0..5 {
            let sql = "insert into session_events (session_id, event_type) values";
            pg.exec(&format!("{sql} ('{alice}', 'number {count}')")).await;
            count += 1;
            // Some are shown before the relay goes, some are on their way, some are committed without it.
            if round % 2 == 0 && count % 5 == 2 {
                relay.kill().await;
            }
        }
        if round % 2 == 0 {
            relay.start_again().await;
        }
        while shown.len() < count {
            shown.push(application.next().await["event_type"].as_str().expect("a row").to_owned());
        }
    }
    let expected: Vec<String> = (0..count).map(|number| format!("number {number}")).collect();
    assert_eq!(shown, expected);
}
