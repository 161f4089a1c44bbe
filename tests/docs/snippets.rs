//! The JavaScript and Python of README, run as they stand there, with the stock clients, against a relay.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{root, section, text};
use crate::support::phone::PATIENCE;
use crate::support::{Relay, TestPg, token};

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
struct Application {
    child: Child,
    output: mpsc::Receiver<String>,
}

impl Application {
    fn start(mut command: Command, code: &str) -> Application {
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        child.stdin.take().expect("piped").write_all(code.as_bytes()).expect("it reads");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (sender, output) = mpsc::channel(100);
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.blocking_send(line)));
        Application { child, output }
    }

    async fn next(&mut self) -> Value {
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
