//! What the session answers, without a socket: the rules of `protocol.md` §13.2–13.4 and 13.9 that need no database.

mod begin;
mod broadcast;
mod held;
mod keys;
mod limits;
mod presence;
mod private;
mod replay;
mod tokens;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use bytes::Bytes;

use super::codec::{self, Decoded};
use super::session::{Effect, Now, Session, Visitor};
use crate::authority::Authority;
use crate::channel::Answer;
use crate::claims;
use crate::claims::tests::{token, verifier};
use crate::clock::Clock;
use crate::gateway::limits::Joins;
use crate::gateway::tests::no_pool;
use crate::gateway::{GatewayConfig, Shared, Tokens};
use crate::hub::{Activated, ChannelId, HubHandle, Stage, SubscribeError, Version};
use crate::log::{self, LogWriter};
use crate::metrics::Metrics;
use crate::resume::{CursorKey, History};
use crate::room::{RoomConfig, Rooms};
use crate::task::Drain;

const NOW: i64 = 1_800_000_000;

struct Client {
    session: Session,
    shared: Arc<Shared>,
    version: Version,
    now: Now,
    /// What the session wants besides frames: of the hub for entries that its client wrote, and of its connection.
    wants: Vec<Effect>,
    /// What it wants of the hub for channels without such entries.
    quiet: Vec<Effect>,
    /// What it wants of rooms, and to know of others.
    asks: Vec<Effect>,
    /// Of the relay's log.
    writer: Mutex<LogWriter>,
}

fn anon(lifetime: i64) -> String {
    token(json!({"role": "anon", "exp": NOW + lifetime}))
}

fn client_of(version: Version, config: GatewayConfig) -> Client {
    client_with(version, config, Arc::new(verifier()))
}

fn client_with(version: Version, config: GatewayConfig, verifier: Arc<dyn Tokens>) -> Client {
    let opened = log::testing::in_memory().unwrap();
    let writer = Mutex::new(opened.writer);
    let joins = Joins::new(&config);
    let unfinished = crate::gateway::unfinished::Unfinished::new(config.max_unfinished_bytes);
    let shared = Arc::new(Shared {
        config,
        hub: HubHandle::new(mpsc::channel(1).0),
        verifier,
        clock: Clock::system(),
        metrics: Arc::new(Metrics::new()),
        journal: crate::journal::Journal::off(),
        log: History::new(opened.log),
        cursor_key: Arc::new(CursorKey::new([1; 32])),
        frontiers: crate::resume::Frontiers::in_memory(Default::default(), Arc::new(Metrics::new())),
        drain: Drain::new(),
        gate: crate::task::Gate::always(),
        turns: crate::gateway::storm::Turns::new(&GatewayConfig::default()),
        joins,
        unfinished,
        rooms: Rooms::new(RoomConfig::default(), Vec::new(), Arc::default()),
        authority: Authority::new(no_pool(), HubHandle::new(mpsc::channel(1).0), Default::default(), Arc::default()),
        pool: no_pool(),
        ready: tokio::sync::watch::channel(true).1,
    });
    let token = anon(3600);
    let principal = Arc::new(claims::tests::verifier().verify(&token, NOW).unwrap());
    let visitor = Visitor {
        connection: 1,
        version,
        token: token.into(),
        principal,
        headers: "{}".into(),
        device: None,
        probe: Arc::default(),
    };
    let now = Now { unix_millis: NOW * 1000, at: Instant::now() };
    Client {
        session: Session::new(shared.clone(), visitor),
        shared,
        version,
        now,
        wants: Vec::new(),
        quiet: Vec::new(),
        asks: Vec::new(),
        writer,
    }
}

fn client() -> Client {
    client_of(Version::V2, GatewayConfig::default())
}

impl Client {
    /// Sends a text frame; the frames that come back, read as JSON.
    fn raw(&mut self, text: &str) -> Vec<Value> {
        let frame = Bytes::copy_from_slice(text.as_bytes());
        let effects = match codec::decode_text(self.version, text) {
            Decoded::Message(message) => self.session.handle(message, &frame, self.now),
            _ => Vec::new(),
        };
        self.sort(effects)
    }

    /// Sends a binary frame.
    fn binary(&mut self, frame: &Bytes) -> Vec<Value> {
        let effects = match codec::decode_binary(self.version, frame) {
            Decoded::Message(message) => self.session.handle(message, frame, self.now),
            _ => Vec::new(),
        };
        self.sort(effects)
    }

    fn sort(&mut self, effects: Vec<Effect>) -> Vec<Value> {
        let mut frames = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send(frame) | Effect::Reached { frame, .. } => frames.extend(texts(&frame)),
                // As the connection's task does it.
                Effect::Greet { stage, greeting } => {
                    if stage.greet() {
                        frames.extend(texts(&greeting));
                    }
                }
                Effect::Subscribe { ref entries, .. } if entries.iter().all(|entry| entry.messages.is_some()) => {
                    self.quiet.push(effect);
                }
                Effect::Reclaim { id, .. } | Effect::Leave(id) if self.is_quiet(id) => self.quiet.push(effect),
                Effect::Subscribe { .. }
                | Effect::Reclaim { .. }
                | Effect::Leave(_)
                | Effect::Learn
                | Effect::Close(_) => self.wants.push(effect),
                other => self.asks.push(other),
            }
        }
        frames
    }

    /// Nothing that its client wrote was ever asked for this channel.
    fn is_quiet(&self, id: ChannelId) -> bool {
        let subscribes = |effect: &Effect| matches!(effect, Effect::Subscribe { id: of, .. } if *of == id);
        self.quiet.iter().any(subscribes) && !self.wants.iter().any(subscribes)
    }

    fn send(&mut self, message: Value) -> Vec<Value> {
        self.raw(&message.to_string())
    }

    fn join(&mut self, topic: &str, payload: Value) -> Vec<Value> {
        self.send(json!(["1", "1", topic, "phx_join", payload]))
    }

    fn reason(&mut self, payload: Value) -> String {
        let frames = self.join("realtime:t", payload);
        assert_eq!(frames.len(), 1, "{frames:?}");
        assert_eq!(frames[0][4]["status"], "error");
        frames[0][4]["response"]["reason"].as_str().unwrap().to_owned()
    }

    fn pass(&mut self, seconds: u64) -> Vec<Value> {
        self.now.unix_millis += i64::try_from(seconds * 1000).unwrap();
        self.now.at += Duration::from_secs(seconds);
        let effects = self.session.tick(self.now);
        self.sort(effects)
    }

    fn answer(&mut self, id: ChannelId, answer: Answer) -> Vec<Value> {
        let effects = self.session.answered(id, answer, self.now);
        self.sort(effects)
    }

    /// Of the latest subscription that was asked for.
    fn stage(&self) -> Option<Arc<Stage>> {
        self.wants.iter().rev().find_map(|want| match want {
            Effect::Subscribe { stage, .. } => Some(stage.clone()),
            _ => None,
        })
    }

    /// The one subscription that the session has just asked for.
    fn subscribed(&mut self) -> ChannelId {
        match self.wants.drain(..).collect::<Vec<_>>().as_slice() {
            [Effect::Subscribe { id, .. }] => *id,
            other => panic!("{other:?}"),
        }
    }
}

/// The JSON of complete text frames.
fn texts(mut frames: &[u8]) -> Vec<Value> {
    let mut found = Vec::new();
    while let [0x81, length, ..] = frames {
        let (head, size) = match length {
            126 => (4, usize::from(u16::from_be_bytes([frames[2], frames[3]]))),
            127 => (10, usize::try_from(u64::from_be_bytes(frames[2..10].try_into().unwrap())).unwrap()),
            size => (2, usize::from(*size)),
        };
        found.push(serde_json::from_slice(&frames[head..head + size]).unwrap());
        frames = &frames[head + size..];
    }
    assert!(frames.is_empty());
    found
}

fn ok(join_ref: Value, reference: Value, topic: &str, response: Value) -> Value {
    json!([join_ref, reference, topic, "phx_reply", {"status": "ok", "response": response}])
}

fn no(join_ref: Value, reference: Value, topic: &str, reason: &str) -> Value {
    json!([join_ref, reference, topic, "phx_reply", {"status": "error", "response": {"reason": reason}}])
}

fn system(extension: &str, status: &str, message: &str) -> Value {
    let payload = json!({"extension": extension, "status": status, "message": message, "channel": "t"});
    json!(["1", null, "realtime:t", "system", payload])
}

fn todos() -> Value {
    json!({"config": {"postgres_changes": [{"event": "*", "schema": "public", "table": "todos"}]}})
}

#[test]
fn a_heartbeat_is_answered_with_its_ref_and_no_join_ref() {
    let expected = ok(json!(null), json!("5"), "phoenix", json!({}));
    assert_eq!(client().send(json!(["9", "5", "phoenix", "heartbeat", {}])), [expected]);
    let mut v1 = client_of(Version::V1, GatewayConfig::default());
    let reply = v1.raw(r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":null}"#);
    assert_eq!(
        reply,
        [json!({"topic": "phoenix", "event": "phx_reply", "payload": {"status": "ok", "response": {}}, "ref": null})]
    );
}

#[test]
fn a_topic_without_the_prefix_or_never_joined_is_unmatched() {
    let mut client = client();
    for message in [json!(["1", "2", "foo", "phx_join", {}]), json!(["1", "2", "foo", "broadcast", {}])] {
        assert_eq!(client.send(message), [no(json!(null), json!("2"), "foo", "unmatched topic")]);
    }
    let reply = client.send(json!([null, "3", "phoenix", "other", {}]));
    assert_eq!(reply, [no(json!(null), json!("3"), "phoenix", "unmatched topic")]);
}

#[test]
fn a_topic_needs_a_name() {
    let reply = client().join("realtime:", json!({}));
    assert_eq!(reply[0][4]["response"]["reason"], "TopicNameRequired: You must provide a topic name");
}

#[test]
fn a_plain_join_is_answered_with_an_empty_list() {
    for payload in [
        json!({"config": {}}),
        json!({}),
        json!({"config": {"broadcast": null, "presence": null, "postgres_changes": [null]}}),
    ] {
        let mut client = client();
        let expected = ok(json!("1"), json!("1"), "realtime:t", json!({"postgres_changes": []}));
        assert_eq!(client.join("realtime:t", payload), [expected]);
        assert!(client.wants.is_empty());
    }
}

#[test]
fn join_ref_and_ref_may_differ_and_later_frames_carry_the_join_ref() {
    let mut client = client();
    let reply = client.send(json!(["4", "9", "realtime:t", "phx_join", todos()]));
    assert_eq!((&reply[0][0], &reply[0][1]), (&json!("4"), &json!("9")));
    let id = client.subscribed();
    assert_eq!(client.answer(id, Ok(Activated::default()))[0][0], "4");
}

#[test]
fn a_null_join_ref_stands_for_the_ref() {
    let mut client = client();
    let frames =
        client.send(json!([null, "3", "realtime:t", "phx_join", {"config": {"presence": {"enabled": "True"}}}]));
    assert_eq!((frames.len(), &frames[0][0]), (1, &json!(null)));
    let [Effect::Enter { join_ref, .. }, Effect::PresenceState(_)] = &*client.asks else { panic!("{:?}", client.asks) };
    assert_eq!(join_ref.as_json(), "\"3\"");
}

#[test]
fn names_with_colons_spaces_and_unicode_come_back_unchanged() {
    let topic = format!("realtime:a:b c\"ä\u{1F600}{}", "x".repeat(180));
    assert_eq!(client().join(&topic, json!({}))[0][2], json!(topic));
}

#[test]
fn entries_are_echoed_in_order_with_ids_and_then_asked_for() {
    let mut client = client();
    let entries = [
        json!({"event": "INSERT", "schema": "public", "extra": 1}),
        json!({"schema": "a", "table": "b", "filter": "id=eq.1"}),
    ];
    let frames = client.join("realtime:t", json!({"config": {"postgres_changes": entries}}));
    assert_eq!(frames.len(), 1);
    let echoed = frames[0][4]["response"]["postgres_changes"].as_array().unwrap();
    assert_eq!(echoed.len(), 2);
    let mut ids = Vec::new();
    for (sent, echoed) in entries.iter().zip(echoed) {
        let mut rest = echoed.clone();
        ids.push(rest.as_object_mut().unwrap().remove("id").unwrap().as_i64().unwrap());
        assert_eq!(&rest, sent);
    }
    let Some(Effect::Subscribe { id, entries, again: false, .. }) = client.wants.pop() else { panic!() };
    // The last one is that of the topic's messages.
    ids.push(0);
    assert_eq!(entries.iter().map(|entry| i64::from(entry.id)).collect::<Vec<_>>(), ids);
    assert_eq!(
        client.answer(id, Ok(Activated::default())),
        [system("postgres_changes", "ok", "Subscribed to PostgreSQL")]
    );
    assert_eq!(client.answer(id, Ok(Activated::default())), [] as [Value; 0]);
}

#[test]
fn a_malformed_entry_is_told_by_system_and_the_channel_stays() {
    let mut client = client();
    let good_and_bad = json!([{"schema": "public"}, {"filter": "id=eq.1"}]);
    let frames = client.join("realtime:t", json!({"config": {"postgres_changes": good_and_bad}}));
    assert_eq!(frames[0][4]["status"], "ok");
    assert!(frames[1][4]["message"].as_str().unwrap().starts_with("No subscription params provided."));
    assert!(client.wants.is_empty());
    assert!(client.send(json!(["1", "2", "realtime:t", "whatever", {}])).is_empty());
    assert_eq!(client.send(json!(["1", "3", "realtime:t", "phx_leave", {}])).len(), 2);
}

#[test]
fn a_subscription_that_may_work_later_is_tried_again_and_told_once() {
    let mut client = client();
    client.join("realtime:t", todos());
    let id = client.subscribed();
    let down = || Err(SubscribeError { message: "down".into(), retry: true });
    assert_eq!(client.answer(id, down()), [system("postgres_changes", "error", "down")]);
    client.pass(7);
    assert!(matches!(client.wants.pop(), Some(Effect::Subscribe { again: true, .. })));
    assert!(client.answer(id, down()).is_empty());
    client.pass(7);
    assert!(matches!(client.wants.pop(), Some(Effect::Subscribe { .. })));
    assert_eq!(
        client.answer(id, Ok(Activated::default())),
        [system("postgres_changes", "ok", "Subscribed to PostgreSQL")]
    );
    client.send(json!(["1", "2", "realtime:t", "phx_leave", {}]));
    assert!(matches!(client.wants.pop(), Some(Effect::Leave(left)) if left == id));
    assert!(client.answer(id, down()).is_empty());
    client.pass(60);
    assert!(client.wants.is_empty());
}

#[test]
fn what_is_not_offered_is_refused_clearly() {
    let mut client = client();
    let config = |config: Value| json!({ "config": config });
    assert_eq!(client.reason(config(json!({"private": "yes"}))), "InvalidJoinPayload: private must be a boolean");
    assert_eq!(
        client.reason(config(json!({"broadcast": {"replay": {"since": 1}}}))),
        "UnableToReplayMessages: Replay is not allowed for public channels"
    );
    assert_eq!(client.reason(json!({"x": "y".repeat(300_000)})), "InvalidJoinPayload: The payload is too large");
    let many: Vec<Value> = (0..1001).map(|n| json!({ "n": n })).collect();
    assert_eq!(
        client.reason(config(json!({"postgres_changes": many}))),
        "InvalidJoinPayload: Too many postgres_changes entries"
    );
    client.shared.drain.drain();
    assert_eq!(client.reason(json!({})), "RealtimeRestarting: Realtime is restarting, please standby");
}

#[test]
fn private_only_refuses_public_channels() {
    let mut client = client_of(Version::V2, GatewayConfig { private_only: true, ..GatewayConfig::default() });
    assert_eq!(client.reason(json!({})), "PrivateOnly: This project only allows private channels");
}

#[test]
fn one_channel_too_many_is_refused_until_another_is_left() {
    let mut client = client_of(Version::V2, GatewayConfig { max_channels: 2, ..GatewayConfig::default() });
    client.join("realtime:a", json!({}));
    client.join("realtime:b", json!({}));
    assert_eq!(client.reason(json!({})), "ChannelRateLimitReached: Too many channels");
    // Joining one again is not one more.
    assert_eq!(client.join("realtime:b", json!({}))[0][4]["status"], "ok");
    client.send(json!(["1", "2", "realtime:a", "phx_leave", {}]));
    assert_eq!(client.join("realtime:t", json!({}))[0][4]["status"], "ok");
    assert_eq!(client.shared.metrics.channels.get(), 2);
    let metrics = client.shared.metrics.clone();
    drop(client);
    assert_eq!(metrics.channels.get(), 0);
}

#[test]
fn joining_again_answers_first_and_then_closes_the_old_instance() {
    let mut client = client();
    client.join("realtime:t", todos());
    let old = client.subscribed();
    let frames = client.send(json!(["8", "9", "realtime:t", "phx_join", todos()]));
    assert_eq!((&frames[0][0], &frames[0][1], &frames[0][3]), (&json!("8"), &json!("9"), &json!("phx_reply")));
    assert_eq!(frames[1], json!(["1", "1", "realtime:t", "phx_close", {}]));
    match client.wants.as_slice() {
        [Effect::Leave(left), Effect::Subscribe { id, .. }] => assert!(*left == old && *id != old),
        other => panic!("{other:?}"),
    }
    // The old one's answer comes too late.
    assert!(client.answer(old, Ok(Activated::default())).is_empty());
    assert_eq!(client.session.end(Instant::now()).len(), 1);
}

#[test]
fn a_new_join_that_fails_still_ends_the_old_instance() {
    let mut client = client();
    client.join("realtime:t", json!({}));
    let frames = client.send(json!(["2", "2", "realtime:t", "phx_join", {"access_token": "potato"}]));
    assert_eq!((&frames[0][4]["status"], &frames[1][3]), (&json!("error"), &json!("phx_close")));
    let reply = client.send(json!(["2", "3", "realtime:t", "broadcast", {}]));
    assert_eq!(reply[0][4]["response"]["reason"], "unmatched topic");
}

#[test]
fn the_close_of_an_instance_without_join_ref_is_not_sent() {
    let mut client = client_of(Version::V1, GatewayConfig::default());
    let join = r#"{"topic":"realtime:t","event":"phx_join","payload":{},"ref":"1","join_ref":null}"#;
    client.raw(join);
    assert_eq!(client.raw(join).len(), 1);
}

#[test]
fn leaving_is_answered_and_closed() {
    let mut client = client();
    client.join("realtime:t", todos());
    let id = client.subscribed();
    assert!(client.send(json!(["0", "2", "realtime:t", "phx_leave", {}])).is_empty(), "stale");
    // Null is a match.
    let frames = client.send(json!([null, "3", "realtime:t", "phx_leave", {}]));
    let closed = json!(["1", "1", "realtime:t", "phx_close", {}]);
    assert_eq!(frames, [ok(json!("1"), json!("3"), "realtime:t", json!({})), closed]);
    assert!(matches!(client.wants.as_slice(), [Effect::Leave(left)] if *left == id));
    let frames = client.send(json!(["7", "4", "realtime:t", "phx_leave", {}]));
    assert_eq!(frames, [ok(json!("7"), json!("4"), "realtime:t", json!({}))]);
    assert_eq!(client.join("realtime:t", json!({}))[0][4]["status"], "ok");
}

#[test]
fn a_python_client_leaves_as_in_the_worked_session() {
    let mut client = client_of(Version::V1, GatewayConfig::default());
    client.raw(r#"{"topic":"realtime:room","event":"phx_join","payload":{"config":{}},"ref":"1","join_ref":null}"#);
    let frames = client.raw(r#"{"topic":"realtime:room","event":"phx_leave","payload":{},"ref":"2","join_ref":null}"#);
    assert_eq!(frames[0]["ref"], "2");
    assert_eq!(frames[1], json!({"topic": "realtime:room", "event": "phx_close", "payload": {}, "ref": null}));
}

#[test]
fn unknown_events_are_ignored_on_a_joined_channel() {
    let mut client = client();
    client.join("realtime:t", json!({}));
    for event in ["postgres_changes", "system", "presence_state", "x\"y"] {
        assert!(client.send(json!(["1", "2", "realtime:t", event, {}])).is_empty());
    }
}

#[test]
fn while_a_join_waits_its_topic_keeps_order_and_others_do_not_wait() {
    let config =
        GatewayConfig { join_failure_delay: Duration::from_secs(1), max_pending: 3, ..GatewayConfig::default() };
    let mut client = client_of(Version::V2, config);
    assert!(client.join("realtime:t", json!({"access_token": "potato"})).is_empty());
    assert!(client.send(json!(["1", "2", "realtime:t", "broadcast", {}])).is_empty());
    assert!(client.send(json!(["3", "3", "realtime:t", "phx_join", {}])).is_empty());
    assert!(client.send(json!(["3", "4", "realtime:t", "phx_leave", {}])).is_empty());
    let full = client.send(json!(["3", "5", "realtime:t", "phx_leave", {}]));
    assert_eq!(full, [no(json!(null), json!("5"), "realtime:t", "too many messages while a join is pending")]);
    assert_eq!(client.send(json!([null, "6", "phoenix", "heartbeat", {}])).len(), 1);
    assert_eq!(client.join("realtime:u", json!({})).len(), 1);
    assert_eq!(client.session.next_tick(client.now), Some(Duration::from_secs(1)));
    let frames = client.pass(1);
    let refs: Vec<&Value> = frames.iter().map(|frame| &frame[1]).collect();
    assert_eq!(refs, ["1", "2", "3", "4", "3"]);
    assert_eq!(frames[4][3], "phx_close");
}

#[test]
fn malformed_frames_have_no_answer() {
    let mut v2 = client();
    for text in ["", "{", "{}", "[]", r#"["1","1","realtime:t","phx_join"]"#] {
        assert!(v2.raw(text).is_empty());
    }
    assert_eq!(v2.raw(r#"["1","1","realtime:t","phx_join",{},"sixth"]"#).len(), 1);
    let mut v1 = client_of(Version::V1, GatewayConfig::default());
    for text in [r#"["1","1","realtime:t","phx_join",{}]"#, r#"{"event":"phx_join","payload":{},"ref":"1"}"#] {
        assert!(v1.raw(text).is_empty());
    }
}

proptest! {
    /// Whatever comes in whatever order: what was asked of the hub is given back once, and no more than once.
    #[test]
    fn every_subscription_is_left_exactly_once(steps in prop::collection::vec((0..8u8, 0..3usize, 0..4u8), 1..60)) {
        let config = GatewayConfig { max_channels: 2, join_failure_delay: Duration::from_secs(2), ..GatewayConfig::default() };
        let mut client = client_of(Version::V2, config);
        for (kind, topic, variant) in steps {
            let topic = format!("realtime:{topic}");
            let lifetime = [-1, 1, 30, 900][usize::from(variant)];
            let moment = (client.now.unix_millis / 1000) - NOW + lifetime;
            let frame = |event: &str, payload: Value| json!([variant.to_string(), "9", topic, event, payload]);
            match kind {
                0 | 1 => {
                    let mut payload = todos();
                    payload["config"]["postgres_changes_options"] = json!({"wait": kind == 1, "timeout": 2000});
                    payload["access_token"] = json!(anon(moment));
                    client.send(frame("phx_join", payload));
                }
                2 => drop(client.send(frame("phx_leave", json!({})))),
                3 => drop(client.send(frame("access_token", json!({"access_token": anon(moment)})))),
                4 => drop(client.send(frame("broadcast", json!({})))),
                5 | 6 => drop(client.pass(u64::from(variant))),
                _ => {
                    let id = client.wants.iter().rev().find_map(|want| match want {
                        Effect::Subscribe { id, .. } | Effect::Reclaim { id, .. } => Some(*id),
                        _ => None,
                    });
                    let error = SubscribeError { message: "no".into(), retry: variant == 1 };
                    if let Some(id) = id {
                        // Now and then a shard is faster than the answer.
                        if variant == 3 && let Some(stage) = client.stage() {
                            stage.greet();
                        }
                        client.answer(id, if variant > 1 { Ok(Activated::default()) } else { Err(error) });
                    }
                }
            }
        }
        let mut asked: Vec<ChannelId> = Vec::new();
        let mut left: Vec<ChannelId> = Vec::new();
        for want in &client.wants {
            match want {
                Effect::Subscribe { id, .. } | Effect::Reclaim { id, .. } => {
                    prop_assert!(!left.contains(id), "asked after it was left");
                    asked.push(*id);
                }
                Effect::Leave(id) => left.push(*id),
                _ => {}
            }
        }
        let metrics = client.shared.metrics.clone();
        left.extend(client.session.end(Instant::now()));
        asked.sort();
        asked.dedup();
        left.sort();
        prop_assert_eq!(asked, left);
        prop_assert_eq!(metrics.channels.get(), 0);
    }
}
