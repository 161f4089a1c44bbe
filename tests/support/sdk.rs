//! `SdkPhone`: the stock JavaScript and Python clients, each in a process of its own that is told what to do over its standard
//! streams (`tests/sdk/js/driver.mjs` describes the language). Nothing of the protocol is known here.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::Change;
use super::phone::PATIENCE;

/// Which client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stock {
    /// `@supabase/realtime-js`.
    JavaScript,
    /// The same, told to speak version 1.0.0 of the protocol.
    JavaScriptV1,
    /// `realtime` of PyPI.
    Python,
}

impl Stock {
    fn command(self) -> Command {
        let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk");
        match self {
            Stock::JavaScript | Stock::JavaScriptV1 => {
                let installed = sdk.join("node_modules/@supabase/realtime-js");
                assert!(installed.exists(), "the JavaScript client is not installed: run scripts/test");
                let mut command = Command::new("node");
                command.arg(sdk.join("js/driver.mjs"));
                command
            }
            Stock::Python => {
                let venv = || Path::new(env!("CARGO_TARGET_TMPDIR")).join("../sdk-venv/bin/python");
                let python = std::env::var_os("ROWCAST_TEST_PYTHON").map_or_else(venv, PathBuf::from);
                assert!(python.exists(), "the Python client is not installed: run scripts/test");
                let mut command = Command::new(python);
                command.arg("-B").arg(sdk.join("py/driver.py"));
                command
            }
        }
    }
}

/// A stock client with one connection.
pub(crate) struct SdkPhone {
    stock: Stock,
    child: Child,
    input: ChildStdin,
    output: mpsc::Receiver<Value>,
    /// Received, and not asked for yet.
    inbox: VecDeque<Value>,
}

impl SdkPhone {
    /// Starts the client and lets it connect. `base` is such as `ws://127.0.0.1:4000/realtime/v1`.
    #[track_caller]
    pub(crate) fn connect(stock: Stock, base: &str, token: &str) -> impl Future<Output = SdkPhone> + use<> {
        SdkPhone::connect_trusting(stock, base, token, None)
    }

    /// The same; the application names its device as its client lets it.
    #[track_caller]
    pub(crate) fn connect_device(
        stock: Stock,
        base: &str,
        token: &str,
        device: &str,
    ) -> impl Future<Output = SdkPhone> + use<> {
        let at = Location::caller();
        let command = match stock {
            // It makes its URL of the base alone.
            Stock::Python => json!({ "do": "connect", "url": format!("{base}/device/{device}"), "token": token }),
            Stock::JavaScript | Stock::JavaScriptV1 => {
                json!({ "do": "connect", "url": base, "token": token, "params": { "device": device } })
            }
        };
        async move {
            let mut phone = SdkPhone::start(stock, None);
            phone.wait("the client's start", at, |event| event["event"] == "ready").await;
            phone.tell(&command);
            phone
        }
    }

    /// The same; this authority, a PEM file, is trusted with `wss://`.
    #[track_caller]
    pub(crate) fn connect_trusting(
        stock: Stock,
        base: &str,
        token: &str,
        authority: Option<&Path>,
    ) -> impl Future<Output = SdkPhone> + use<> {
        let at = Location::caller();
        let authority = authority.map(Path::to_owned);
        let mut command = json!({ "do": "connect", "url": base, "token": token });
        if stock == Stock::JavaScriptV1 {
            command["vsn"] = json!("1.0.0");
        }
        async move {
            let mut phone = SdkPhone::start(stock, authority.as_deref());
            phone.wait("the client's start", at, |event| event["event"] == "ready").await;
            phone.tell(&command);
            phone
        }
    }

    /// The same; `command` is the whole of what it is told, such as a device to name.
    #[track_caller]
    pub(crate) fn connect_as<'a>(stock: Stock, command: &'a Value) -> impl Future<Output = SdkPhone> + use<'a> {
        let at = Location::caller();
        async move {
            let mut phone = SdkPhone::start(stock, None);
            phone.wait("the client's start", at, |event| event["event"] == "ready").await;
            phone.tell(command);
            phone
        }
    }

    /// Whatever it says next, complaints too, without a deadline; `None` if it has ended. Dropping the future loses nothing.
    pub(crate) async fn next_event(&mut self) -> Option<Value> {
        match self.inbox.pop_front() {
            Some(event) => Some(event),
            None => self.output.recv().await,
        }
    }

    fn start(stock: Stock, authority: Option<&Path>) -> SdkPhone {
        let mut command = stock.command();
        if let Some(authority) = authority {
            command.env("NODE_EXTRA_CA_CERTS", authority).env("SSL_CERT_FILE", authority);
        }
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let input = child.stdin.take().expect("piped");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (sender, output) = mpsc::channel(1000);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event =
                    serde_json::from_str(&line).unwrap_or_else(|_| json!({ "event": "error", "message": line }));
                if sender.blocking_send(event).is_err() {
                    return;
                }
            }
        });
        SdkPhone { stock, child, input, output, inbox: VecDeque::new() }
    }

    /// Opens a channel and waits until changes flow.
    #[track_caller]
    pub(crate) fn subscribe<'a>(&'a mut self, topic: &'a str, entries: &'a Value) -> impl Future<Output = ()> + 'a {
        let at = Location::caller();
        async move {
            self.ask_to_subscribe(topic, entries);
            assert_eq!(self.status_at(topic, at).await.0, "SUBSCRIBED", "at {at}");
            self.subscribed_at(topic, at).await;
        }
    }

    /// Opens a channel and waits for nothing.
    pub(crate) fn ask_to_subscribe(&mut self, topic: &str, entries: &Value) {
        self.tell(&json!({ "do": "subscribe", "topic": topic, "entries": entries }));
    }

    /// The same, with more of the channel's config.
    pub(crate) fn ask_to_subscribe_with(&mut self, topic: &str, entries: &Value, options: &Value) {
        self.tell(&json!({ "do": "subscribe", "topic": topic, "entries": entries, "options": options }));
    }

    /// The next status that the application is told of: its name, and the error's text.
    #[track_caller]
    pub(crate) fn status<'a>(&'a mut self, topic: &'a str) -> impl Future<Output = (String, String)> + 'a {
        self.status_at(topic, Location::caller())
    }

    async fn status_at(&mut self, topic: &str, at: &Location<'_>) -> (String, String) {
        let event = self.wait("a status", at, |event| event["event"] == "status" && event["topic"] == topic).await;
        name_and_error(&event)
    }

    /// The statuses of this topic that are here already and that nobody has asked for.
    pub(crate) fn more_statuses(&mut self, topic: &str) -> Vec<(String, String)> {
        let (found, others): (VecDeque<Value>, VecDeque<Value>) =
            self.inbox.drain(..).partition(|event| event["event"] == "status" && event["topic"] == topic);
        self.inbox = others;
        found.iter().map(name_and_error).collect()
    }

    /// Waits for `Subscribed to PostgreSQL`.
    #[track_caller]
    pub(crate) fn subscribed<'a>(&'a mut self, topic: &'a str) -> impl Future<Output = ()> + 'a {
        self.subscribed_at(topic, Location::caller())
    }

    async fn subscribed_at(&mut self, topic: &str, at: &Location<'_>) {
        let system = self.system_at(topic, at).await;
        assert_eq!(
            (&system["status"], &system["message"]),
            (&json!("ok"), &json!("Subscribed to PostgreSQL")),
            "at {at}"
        );
    }

    /// The payload of the next `system` frame that the application is shown. (The Python client hides those of status "error".)
    #[track_caller]
    pub(crate) fn system<'a>(&'a mut self, topic: &'a str) -> impl Future<Output = Value> + 'a {
        self.system_at(topic, Location::caller())
    }

    async fn system_at(&mut self, topic: &str, at: &Location<'_>) -> Value {
        let wanted = |event: &Value| event["event"] == "system" && event["topic"] == topic;
        self.wait("a system frame", at, wanted).await["payload"].take()
    }

    /// Gives the client another token.
    #[track_caller]
    pub(crate) fn set_auth<'a>(&'a mut self, token: &'a str) -> impl Future<Output = ()> + 'a {
        let at = Location::caller();
        async move {
            self.tell(&json!({ "do": "setAuth", "token": token }));
            self.wait("setAuth", at, |event| event["did"] == "setAuth").await;
        }
    }

    /// Closes a channel.
    #[track_caller]
    pub(crate) fn unsubscribe<'a>(&'a mut self, topic: &'a str) -> impl Future<Output = ()> + 'a {
        let at = Location::caller();
        async move {
            self.tell(&json!({ "do": "unsubscribe", "topic": topic }));
            self.wait("unsubscribe", at, |event| event["did"] == "unsubscribe").await;
            assert_eq!(self.status_at(topic, at).await.0, "CLOSED", "at {at}");
        }
    }

    /// Opens a channel with more of its config, `{"private": true}` for one, and waits for the answer.
    #[track_caller]
    pub(crate) fn open<'a>(&'a mut self, topic: &'a str, options: &'a Value) -> impl Future<Output = ()> + 'a {
        self.ask_to_subscribe_with(topic, &json!([]), options);
        let opened = self.status(topic);
        async move { assert_eq!(opened.await, ("SUBSCRIBED".to_owned(), String::new())) }
    }

    /// The same, listening for presence too.
    #[track_caller]
    pub(crate) fn open_with_presence<'a>(
        &'a mut self,
        topic: &'a str,
        options: &'a Value,
    ) -> impl Future<Output = ()> + 'a {
        let subscribe =
            json!({ "do": "subscribe", "topic": topic, "entries": [], "options": options, "presence": true });
        self.tell(&subscribe);
        let opened = self.status(topic);
        async move { assert_eq!(opened.await, ("SUBSCRIBED".to_owned(), String::new())) }
    }

    /// Lets the client do one thing (`tests/sdk/js/driver.mjs` has the list) with a channel, and waits for what came of it.
    #[track_caller]
    pub(crate) fn act<'a>(
        &'a mut self,
        what: &'a str,
        topic: &'a str,
        more: &'a Value,
    ) -> impl Future<Output = Value> + 'a {
        let at = Location::caller();
        async move {
            let mut command = json!({ "do": what, "topic": topic });
            command.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            self.tell(&command);
            self.wait(what, at, |event| event["did"] == what).await["answer"].take()
        }
    }

    /// Sends a broadcast and waits for what the client says came of it; Python's says nothing.
    #[track_caller]
    pub(crate) fn send<'a>(
        &'a mut self,
        topic: &'a str,
        event: &'a str,
        payload: &'a Value,
    ) -> impl Future<Output = ()> + 'a {
        let at = Location::caller();
        async move {
            let answer = self.act("send", topic, &json!({ "event": event, "payload": payload })).await;
            let expected = if self.stock == Stock::Python { Value::Null } else { json!("ok") };
            assert_eq!(answer, expected, "at {at}: {:?}", self.stock);
        }
    }

    /// The next broadcast that the application is given, on any topic.
    #[track_caller]
    pub(crate) fn broadcast(&mut self) -> impl Future<Output = Value> + '_ {
        let at = Location::caller();
        async move { self.wait("a broadcast", at, |event| event["event"] == "broadcast").await["message"].take() }
    }

    /// The next call of the application's presence callback of this kind; its key and presences.
    #[track_caller]
    pub(crate) fn presence<'a>(&'a mut self, kind: &'a str) -> impl Future<Output = (String, Value)> + 'a {
        let at = Location::caller();
        async move {
            let fits = |event: &Value| event["event"] == "presence" && event["kind"] == kind;
            let mut event = self.wait(kind, at, fits).await;
            (event["key"].as_str().unwrap_or_default().to_owned(), event["changed"].take())
        }
    }

    /// What `presenceState()` is now.
    #[track_caller]
    pub(crate) fn presence_state<'a>(&'a mut self, topic: &'a str) -> impl Future<Output = Value> + 'a {
        let at = Location::caller();
        async move {
            self.tell(&json!({ "do": "presenceState", "topic": topic }));
            let fits = |event: &Value| event["event"] == "state" && event["topic"] == topic;
            self.wait("the presence state", at, fits).await["state"].take()
        }
    }

    /// Waits until `presenceState()` is as wanted.
    #[track_caller]
    pub(crate) fn presence_state_until<'a>(
        &'a mut self,
        topic: &'a str,
        wanted: impl Fn(&Value) -> bool + 'a,
    ) -> impl Future<Output = Value> + 'a {
        let at = Location::caller();
        async move {
            loop {
                let state = self.presence_state(topic).await;
                if wanted(&state) {
                    return state;
                }
                // Each change is followed by a call of this callback.
                let fits = |event: &Value| event["event"] == "presence" && event["kind"] == "sync";
                self.wait("another presence state", at, fits).await;
            }
        }
    }

    /// The next change that the application is given, on any topic.
    #[track_caller]
    pub(crate) fn next_change(&mut self) -> impl Future<Output = Change> + '_ {
        self.next_change_at(Location::caller())
    }

    async fn next_change_at(&mut self, at: &Location<'_>) -> Change {
        let mut event = self.wait("a change", at, |event| event["event"] == "change").await;
        let topic = event["topic"].as_str().expect("a topic").to_owned();
        Change {
            topic,
            ids: vec![event["entry"].as_i64().expect("an index")],
            data: event["change"].take(),
            text: String::new(),
        }
    }

    /// Everything received before the mark, which is taken too. The subscription has an entry for table `marks`.
    #[track_caller]
    pub(crate) fn changes_before<'a>(&'a mut self, mark: &'a str) -> impl Future<Output = Vec<Change>> + 'a {
        let at = Location::caller();
        async move {
            let mut changes = Vec::new();
            loop {
                let change = self.next_change_at(at).await;
                if change.is_mark(mark) {
                    return changes;
                }
                changes.push(change);
            }
        }
    }

    /// Ends the client as an application would, and checks that it had nothing to complain about.
    #[track_caller]
    pub(crate) fn exit(mut self) -> impl Future<Output = ()> {
        let at = Location::caller();
        async move {
            self.tell(&json!({ "do": "exit" }));
            let deadline = Instant::now() + PATIENCE;
            loop {
                match timeout_at(deadline, self.output.recv()).await {
                    Ok(Some(event)) => self.check(&event, at),
                    Ok(None) => break,
                    Err(_) => panic!("at {at}: {:?} is still there after {PATIENCE:?}", self.stock),
                }
            }
            let status = self.child.wait().expect("it has ended");
            assert!(status.success(), "at {at}: {:?} ended with {status}", self.stock);
        }
    }

    fn tell(&mut self, command: &Value) {
        writeln!(self.input, "{command}").expect("the client listens");
    }

    fn check(&self, event: &Value, at: &Location<'_>) {
        assert!(event["event"] != "error", "at {at}: {:?} complains: {}", self.stock, event["message"]);
    }

    /// The first event that fits, of those received or still to come.
    async fn wait(&mut self, what: &str, at: &Location<'_>, fits: impl Fn(&Value) -> bool) -> Value {
        if let Some(place) = self.inbox.iter().position(&fits) {
            return self.inbox.remove(place).expect("it is there");
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            match timeout_at(deadline, self.output.recv()).await {
                Ok(Some(event)) => {
                    self.check(&event, at);
                    if fits(&event) {
                        return event;
                    }
                    self.inbox.push_back(event);
                }
                Ok(None) => panic!("at {at}: {:?} ended before {what}: {:#?}", self.stock, self.inbox),
                Err(_) => panic!("at {at}: no {what} within {PATIENCE:?}, only {:#?}", self.inbox),
            }
        }
    }
}

/// Of a status: its name, and the error's text.
fn name_and_error(event: &Value) -> (String, String) {
    let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
    (text("status"), text("error"))
}

impl Drop for SdkPhone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
