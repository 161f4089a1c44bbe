//! The topics door: the same rows, rights and cursors as through the SDKs' door, for who speaks plain JSON.

use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::{Scene, notify, watching};
use crate::support::phone::PATIENCE;
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Version, Wire};

/// A client of the door.
struct Visitor {
    socket: WebSocketStream<TcpStream>,
}

impl Visitor {
    async fn to(addr: SocketAddr, token: &str) -> Visitor {
        let mut request = format!("ws://{addr}/api/ws").into_client_request().expect("a request");
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse().expect("a header"));
        let line = TcpStream::connect(addr).await.expect("a connection");
        let connected = timeout(PATIENCE, client_async(request, line)).await.expect("in time");
        Visitor { socket: connected.expect("a handshake").0 }
    }

    async fn send(&mut self, frame: Value) {
        self.socket.send(Message::text(frame.to_string())).await.expect("it is taken");
    }

    /// The next frame; `None` at the connection's end.
    async fn read(&mut self) -> Option<Value> {
        loop {
            match timeout(PATIENCE, self.socket.next()).await.expect("a frame in time") {
                Some(Ok(Message::Text(text))) => return Some(serde_json::from_str(&text).expect("JSON")),
                Some(Ok(Message::Close(_)) | Err(Error::Io(_) | Error::Protocol(_) | Error::ConnectionClosed))
                | None => {
                    return None;
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => panic!("{error}"),
            }
        }
    }

    /// The next frame of this type; others are passed over.
    async fn next(&mut self, kind: &str) -> Value {
        loop {
            let frame = self.read().await.unwrap_or_else(|| panic!("the connection ended before {kind}"));
            assert!(kind == "error" || frame["type"] != "error", "{frame}");
            if frame["type"] == kind {
                return frame;
            }
        }
    }

    /// The kinds of the notifications that come on a topic before this mark, which is there too.
    async fn kinds_before(&mut self, topic: &str, mark: &str) -> Vec<String> {
        let mut kinds = Vec::new();
        loop {
            let frame = self.next("change").await;
            if frame["topic"] != topic {
                continue;
            }
            assert_eq!(frame["cursor"], frame["data"]["cursor"], "{frame}");
            let record = &frame["data"]["record"];
            if record["note"] == mark {
                return kinds;
            }
            kinds.push(record["kind"].as_str().expect("a notification").to_owned());
        }
    }

    async fn subscribe(&mut self, frame: Value) -> Vec<Value> {
        let topics = frame["topics"].as_array().expect("topics").len();
        self.send(frame).await;
        let mut answers = Vec::new();
        for _ in 0..topics {
            answers.push(self.next("subscribed").await);
        }
        answers
    }
}

fn watch(topics: &[&str]) -> Value {
    json!({ "type": "subscribe", "topics": topics, "private": false, "changes": watching(&["notifications"]) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_topics_over_one_socket_bring_their_users_rows_and_nobody_elses() {
    let scene = Scene::start().await;
    let mut visitor = Visitor::to(scene.relay.addr(), &token::user(ALICE)).await;
    let answers = visitor.subscribe(watch(&["thread:45", "inbox"])).await;
    assert_eq!(answers.iter().map(|answer| &answer["topic"]).collect::<Vec<_>>(), ["thread:45", "inbox"]);
    assert!(answers.iter().all(|answer| answer["cursor"].is_string() && answer["changes"][0]["id"].is_number()));
    scene.exec(&notify(BOB, "his")).await;
    scene.exec(&notify(ALICE, "hers")).await;
    scene.mark("seen").await;
    // Each row comes on both, in one order.
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let frame = visitor.next("change").await;
        let record = &frame["data"]["record"];
        let what = record["kind"].as_str().or(record["note"].as_str()).expect("a row").to_owned();
        seen.push((what, frame["topic"].as_str().expect("a topic").to_owned()));
    }
    let of = |topic: &str| seen.iter().filter(|(_, of)| of == topic).map(|(what, _)| &**what).collect::<Vec<_>>();
    assert_eq!((of("thread:45"), of("inbox")), (vec!["hers", "seen"], vec!["hers", "seen"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_cut_off_goes_on_at_its_cursors() {
    let scene = Scene::start().await;
    let wire = Wire::to(scene.relay.addr()).await;
    let mut visitor = Visitor::to(wire.addr(), &token::user(ALICE)).await;
    let answers = visitor.subscribe(watch(&["a", "b"])).await;
    scene.exec(&notify(ALICE, "one")).await;
    let place = loop {
        let frame = visitor.next("change").await;
        if frame["topic"] == "a" {
            break frame["cursor"].clone();
        }
    };
    wire.cut();
    while visitor.read().await.is_some() {}
    scene.exec(&notify(ALICE, "two")).await;
    scene.exec(&notify(BOB, "his")).await;
    let mut visitor = Visitor::to(wire.addr(), &token::user(ALICE)).await;
    let mut back = watch(&["a", "b"]);
    back["since"] = json!({ "a": place, "b": answers[1]["cursor"] });
    visitor.subscribe(back).await;
    scene.exec(&notify(ALICE, "three")).await;
    scene.mark("back").await;
    assert_eq!(visitor.kinds_before("a", "back").await, ["two", "three"]);
    let mut again = Visitor::to(wire.addr(), &token::user(ALICE)).await;
    let mut back = watch(&["b"]);
    back["since"] = json!({ "b": answers[1]["cursor"] });
    again.subscribe(back).await;
    assert_eq!(again.kinds_before("b", "back").await, ["one", "two", "three"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_left_is_silent_and_others_go_on() {
    let scene = Scene::start().await;
    let mut visitor = Visitor::to(scene.relay.addr(), &token::user(ALICE)).await;
    visitor.subscribe(watch(&["a", "b"])).await;
    visitor.send(json!({ "type": "unsubscribe", "topics": ["a"], "ref": 7 })).await;
    assert_eq!(visitor.next("unsubscribed").await, json!({ "type": "unsubscribed", "topic": "a", "ref": 7 }));
    scene.exec(&notify(ALICE, "hers")).await;
    scene.mark("later").await;
    for _ in 0..2 {
        assert_eq!(visitor.next("change").await["topic"], "b");
    }
    // It may be had again.
    visitor.subscribe(watch(&["a"])).await;
    scene.mark("again").await;
    assert!(visitor.kinds_before("a", "again").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_renewed_in_time_keeps_its_topics_and_one_that_is_not_ends_them() {
    let scene = Scene::start().await;
    let mut renewing = Visitor::to(scene.relay.addr(), &token::short(ALICE, 4)).await;
    let mut lazy = Visitor::to(scene.relay.addr(), &token::short(ALICE, 4)).await;
    renewing.subscribe(watch(&["a", "b"])).await;
    lazy.subscribe(watch(&["a"])).await;
    renewing.send(json!({ "type": "token", "token": token::user(ALICE) })).await;
    let told = loop {
        let frame = lazy.next("system").await;
        if frame["status"] == "error" {
            break frame;
        }
    };
    assert!(told["message"].as_str().expect("a text").starts_with("Token has expired"), "{told}");
    assert_eq!(lazy.next("unsubscribed").await, json!({ "type": "unsubscribed", "topic": "a" }));
    scene.exec(&notify(ALICE, "after")).await;
    scene.mark("done").await;
    assert_eq!(renewing.kinds_before("b", "done").await, ["after"]);
    // The renewed one is that of later topics too.
    renewing.subscribe(watch(&["c"])).await;
    lazy.send(watch(&["a"])).await;
    assert_eq!(lazy.next("error").await["code"], "InvalidJWTToken");
}

/// The rooms of a user bear his id; who may read one may write to it.
const RIGHTS: &str = "create policy rooms on realtime.messages for all to authenticated \
     using (realtime.topic() = 'of:' || auth.uid()::text) with check (realtime.topic() = 'of:' || auth.uid()::text);";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_is_private_unless_it_says_otherwise_and_those_of_others_are_refused() {
    let scene = Scene::start().await;
    scene.exec(RIGHTS).await;
    let (own, other) = (format!("of:{ALICE}"), format!("of:{BOB}"));
    let mut visitor = Visitor::to(scene.relay.addr(), &token::user(ALICE)).await;
    visitor.send(json!({ "type": "subscribe", "topics": [other, own], "ref": 1 })).await;
    // Each is answered when it is decided.
    let mut answers = Vec::new();
    while answers.len() < 2 {
        let frame = visitor.read().await.expect("a frame");
        answers.extend((frame["type"] != "system").then_some(frame));
    }
    answers.sort_by_key(|answer| answer["type"].as_str().expect("a type").to_owned());
    let subscribed = answers.pop().expect("two answers");
    let refused = answers.pop().expect("two answers");
    let expected = (&json!("Unauthorized"), &json!("subscribe"), &json!(other), &json!(1));
    assert_eq!((&refused["code"], &refused["request"], &refused["topic"], &refused["ref"]), expected, "{refused}");
    assert_eq!((&subscribed["type"], &subscribed["topic"]), (&json!("subscribed"), &json!(own)));
    let place = subscribed["cursor"].clone();
    assert!(place.is_string(), "{subscribed}");
    for (topic, words) in [(&other, "his"), (&own, "hers"), (&own, "too")] {
        scene.exec(&format!("select realtime.send('{{\"words\": \"{words}\"}}', 'said', '{topic}')")).await;
    }
    let heard = visitor.next("broadcast").await;
    assert_eq!(
        (&heard["topic"], &heard["event"], &heard["payload"]["words"]),
        (&json!(own), &json!("said"), &json!("hers"))
    );
    assert_eq!((&heard["cursor"], heard["meta"]["id"].is_string()), (&heard["meta"]["cursor"], true));
    assert_eq!(visitor.next("broadcast").await["payload"]["words"], "too");
    // Who comes back with a cursor hears what was said since.
    for (place, words) in [(&place, vec!["hers", "too"]), (&heard["cursor"], vec!["too"])] {
        let mut again = Visitor::to(scene.relay.addr(), &token::user(ALICE)).await;
        again.subscribe(json!({ "type": "subscribe", "topics": [own], "since": { own.as_str(): place } })).await;
        for words in words {
            assert_eq!(again.next("broadcast").await["payload"]["words"], words);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_doors_hear_each_other_and_see_who_is_there() {
    let scene = Scene::start().await;
    let mut visitor = Visitor::to(scene.relay.addr(), &token::user(ALICE)).await;
    let frame = json!({ "type": "subscribe", "topics": ["room"], "private": false, "presence": { "key": "ada" } });
    visitor.subscribe(frame).await;
    assert_eq!(
        visitor.next("presence_state").await,
        json!({ "type": "presence_state", "topic": "room", "presences": {} })
    );
    let mut phone = scene.relay.phone(&token::user(BOB)).await;
    let payload = json!({ "config": { "broadcast": {}, "presence": { "enabled": true, "key": "bob" } } });
    assert_eq!(phone.join_with("room", payload).await["status"], "ok");
    visitor
        .send(json!({ "type": "publish", "topic": "room", "event": "hi", "payload": { "n": 1.5 }, "ref": "p" }))
        .await;
    assert_eq!(visitor.next("published").await, json!({ "type": "published", "topic": "room", "ref": "p" }));
    let heard = loop {
        let frame = phone.next_frame().await;
        if frame.event == "broadcast" {
            break frame.payload;
        }
    };
    assert_eq!(heard, json!({ "type": "broadcast", "event": "hi", "payload": { "n": 1.5 } }));
    phone.push("room", "broadcast", json!({ "type": "broadcast", "event": "ho", "payload": { "m": 2 } })).await;
    let heard = visitor.next("broadcast").await;
    assert_eq!(heard, json!({ "type": "broadcast", "topic": "room", "event": "ho", "payload": { "m": 2 } }));
    visitor.send(json!({ "type": "track", "topic": "room", "payload": { "mood": "good" }, "ref": 9 })).await;
    let (mut joins, mut tracked) = (Value::Null, false);
    while joins.is_null() || !tracked {
        let frame = visitor.read().await.expect("a frame");
        match frame["type"].as_str() {
            Some("presence_diff") => joins = frame["joins"].clone(),
            Some("tracked") => tracked = frame["ref"] == 9,
            _ => panic!("{frame}"),
        }
    }
    assert_eq!(joins["ada"]["metas"][0]["mood"], "good");
    visitor.send(json!({ "type": "untrack", "topic": "room" })).await;
    assert_eq!(visitor.next("presence_diff").await["leaves"]["ada"]["metas"][0]["mood"], "good");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_frames_are_answered_and_harm_nothing() {
    let scene = Scene::start().await;
    let mut visitor = Visitor::to(scene.relay.addr(), &token::user(ALICE)).await;
    visitor.subscribe(watch(&["a"])).await;
    let deep = format!("{}{}", "{\"type\":".repeat(100_000), "}".repeat(100_000));
    for text in ["", "{}", "[]", "null", &deep, r#"{"type":"phx_join","topic":"realtime:a"}"#] {
        visitor.socket.send(Message::text(text)).await.expect("it is taken");
        let answer = visitor.next("error").await;
        assert!(answer["code"].is_string() && answer["message"].is_string(), "{answer}");
    }
    scene.exec(&notify(ALICE, "hers")).await;
    scene.mark("all is well").await;
    assert_eq!(visitor.kinds_before("a", "all is well").await, ["hers"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_phoenix_client_and_a_visitor_of_one_topic_get_the_same_row() {
    let scene = Scene::start().await;
    let mut visitor = Visitor::to(scene.relay.addr(), &token::user(ALICE)).await;
    visitor.subscribe(watch(&["same"])).await;
    let mut phone = crate::support::Phone::connect(&scene.relay.base(), &token::user(ALICE), Version::V1).await;
    phone.subscribe("same", &watching(&["notifications"])).await;
    scene.exec(&notify(ALICE, "hers")).await;
    let (mine, theirs) = (visitor.next("change").await, phone.next_change().await);
    assert_eq!(mine["data"], theirs.data);
}
