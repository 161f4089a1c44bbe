//! Joins that are answered when their changes are active (`protocol.md` §5.6).

use super::*;
use crate::hub::{Activated, Warning};

const NO_TABLE: &str = "Unable to subscribe to changes with given parameters. Please check Realtime is enabled";

fn waiting(timeout: Value) -> Value {
    let mut payload = todos();
    payload["config"]["postgres_changes_options"] = json!({"wait": true, "timeout": timeout});
    payload
}

fn refused(text: &str, retry: bool) -> Answer {
    Err(SubscribeError { message: text.into(), retry })
}

/// A client whose join on `realtime:t` is held, and what it asked of the hub.
fn holding(timeout: Value) -> (Client, ChannelId, Arc<Stage>) {
    let mut client = client();
    assert!(client.join("realtime:t", waiting(timeout)).is_empty());
    let stage = client.stage().unwrap();
    let id = client.subscribed();
    (client, id, stage)
}

fn reason(frame: &Value) -> &str {
    assert_eq!((&frame[3], &frame[4]["status"]), (&json!("phx_reply"), &json!("error")), "{frame}");
    frame[4]["response"]["reason"].as_str().unwrap()
}

fn is_ok(frame: &Value, reference: &str) {
    assert_eq!((&frame[1], &frame[3], &frame[4]["status"]), (&json!(reference), &json!("phx_reply"), &json!("ok")));
}

#[test]
fn the_reply_comes_when_the_changes_are_active_and_the_notices_after_it() {
    let (mut client, id, _) = holding(json!(null));
    assert_eq!(client.shared.metrics.channels.get(), 1);
    let warning = |ok, message: &str| Warning { ok, message: message.into() };
    let answer = Ok(Activated {
        warnings: vec![warning(false, "Error 401: Unauthorized"), warning(true, "slow")],
        ..Activated::default()
    });
    let frames = client.answer(id, answer);
    assert_eq!(frames.len(), 4);
    is_ok(&frames[0], "1");
    assert_eq!(frames[0][4]["response"]["postgres_changes"][0]["table"], "todos");
    assert_eq!(frames[1], system("postgres_changes", "ok", "Subscribed to PostgreSQL"));
    assert_eq!(frames[2], system("postgres_changes", "error", "Error 401: Unauthorized"));
    assert_eq!(frames[3], system("postgres_changes", "ok", "slow"));
    // A channel like any other from now on.
    assert!(client.pass(60).is_empty());
    assert_eq!(client.send(json!(["1", "2", "realtime:t", "phx_leave", {}])).len(), 2);
}

#[test]
fn the_greeting_is_what_the_session_would_have_said() {
    let mut client = client();
    client.send(json!(["0", "0", "realtime:t", "phx_join", {}]));
    let mut payload = waiting(json!(500));
    payload["config"]["presence"] = json!({"enabled": true});
    assert!(client.join("realtime:t", payload).is_empty());
    let Some(Effect::Subscribe { stage, greeting: Some(greeting), .. }) = client.wants.pop() else { panic!() };
    let events: Vec<Value> = texts(&greeting).iter().map(|frame| json!([frame[0], frame[1], frame[3]])).collect();
    let expected = json!([["1", "1", "phx_reply"], ["0", "0", "phx_close"]]);
    assert_eq!(Value::from(events), expected);
    assert!(!stage.is_greeted());
    // Whoever greets it greets also its seat, and then it is sent who is present.
    let Some(Effect::Enter { id, stage: seat, .. }) = client.asks.pop() else { panic!() };
    assert!(!seat.is_greeted() && stage.greet() && seat.is_greeted());
    client.answer(id, Ok(Activated::default()));
    assert!(matches!(client.asks.as_slice(), [Effect::Enter { .. }, Effect::PresenceState(of)] if *of == id));
}

#[test]
fn without_entries_or_without_the_wish_nothing_is_held() {
    let mut options = json!({"config": {"postgres_changes_options": {"wait": true}, "postgres_changes": []}});
    assert_eq!(client().join("realtime:t", options.clone()).len(), 1);
    options = waiting(json!(5));
    options["config"]["postgres_changes_options"]["wait"] = json!(false);
    let mut client = client();
    assert_eq!(client.join("realtime:t", options).len(), 1);
    assert!(client.stage().unwrap().is_greeted());
}

#[test]
fn every_refusal_of_the_hub_refuses_the_join() {
    for text in [NO_TABLE, "Error parsing `filter` params: [\"wrong\"]"] {
        let (mut client, id, stage) = holding(json!(null));
        let frames = client.answer(id, refused(text, false));
        assert_eq!(frames.len(), 1);
        assert_eq!((&frames[0][0], &frames[0][1]), (&json!("1"), &json!("1")));
        assert_eq!(reason(&frames[0]), format!("RealtimeDisabledForConfiguration: {text}"));
        assert!(!stage.greet(), "a shard that comes late");
        assert!(matches!(client.wants.as_slice(), [Effect::Leave(left)] if *left == id));
        assert_eq!(client.shared.metrics.channels.get(), 0);
        let reply = client.send(json!(["1", "2", "realtime:t", "broadcast", {}]));
        assert_eq!(reason(&reply[0]), "unmatched topic");
    }
}

#[test]
fn an_entry_of_no_shape_refuses_the_join_at_once() {
    let mut payload = waiting(json!(null));
    payload["config"]["postgres_changes"] = json!([{"schema": "public"}, {"filter": "id=eq.1"}]);
    let mut client = client();
    let frames = client.join("realtime:t", payload);
    let start = "RealtimeDisabledForConfiguration: No subscription params provided.";
    assert!(reason(&frames[0]).starts_with(start), "{frames:?}");
    assert!(client.wants.is_empty());
}

#[test]
fn what_may_work_later_is_tried_until_the_time_is_over() {
    let (mut client, id, first) = holding(json!(3000));
    assert!(client.answer(id, refused("down", true)).is_empty());
    assert!(first.is_closed(), "that try can't greet any more");
    client.pass(2);
    let Some(Effect::Subscribe { again: true, greeting: Some(_), stage, .. }) = client.wants.pop() else { panic!() };
    assert!(stage.greet());
    let frames = client.answer(id, Ok(Activated::default()));
    // Written by the shard already.
    assert_eq!(frames, [system("postgres_changes", "ok", "Subscribed to PostgreSQL")]);
}

#[test]
fn when_the_time_is_over_the_join_is_refused_with_what_stood_in_the_way() {
    let (mut client, id, stage) = holding(json!(2000));
    assert_eq!(client.session.next_tick(client.now), Some(Duration::from_secs(2)));
    let frames = client.pass(2);
    let text = "PostgresChangesSubscribeTimeout: Changes were not active within 2000 ms";
    assert_eq!((frames.len(), reason(&frames[0])), (1, text));
    assert!(!stage.greet());
    assert!(matches!(client.wants.as_slice(), [Effect::Leave(left)] if *left == id));
    assert!(client.answer(id, Ok(Activated::default())).is_empty(), "it comes too late");

    let (mut client, id, _) = holding(json!(2000));
    client.answer(id, refused("down", true));
    assert_eq!(reason(&client.pass(2)[0]), format!("{text} (down)"));
}

#[test]
fn the_relay_has_a_longest_wait_of_its_own() {
    let (client, ..) = holding(json!(1e15));
    assert_eq!(client.session.next_tick(client.now), Some(Duration::from_secs(20)));
    let (client, ..) = holding(json!(null));
    assert_eq!(client.session.next_tick(client.now), Some(Duration::from_secs(15)));
}

#[test]
fn a_shard_that_greets_at_the_last_moment_has_decided() {
    let (mut client, id, stage) = holding(json!(2000));
    // The hub has activated it and a shard has written the reply; the hub's answer is not here yet.
    assert!(stage.greet());
    assert!(client.pass(2).is_empty());
    assert_eq!(
        client.answer(id, Ok(Activated::default())),
        [system("postgres_changes", "ok", "Subscribed to PostgreSQL")]
    );
    assert_eq!(client.send(json!(["1", "2", "realtime:t", "phx_leave", {}])).len(), 2);
}

#[test]
fn an_answer_that_was_lost_after_the_greeting_is_asked_for_again() {
    let (mut client, id, stage) = holding(json!(null));
    assert!(stage.greet());
    assert_eq!(client.answer(id, refused("late", true)), [system("postgres_changes", "error", "late")]);
    client.pass(7);
    let Some(Effect::Subscribe { again: true, greeting: None, stage, .. }) = client.wants.pop() else { panic!() };
    assert!(stage.is_greeted());
}

#[test]
fn frames_on_its_topic_wait_in_order_and_others_do_not() {
    let (mut client, id, _) = holding(json!(null));
    assert!(client.send(json!(["1", "2", "realtime:t", "presence", {"event": "dance"}])).is_empty());
    let other = token(json!({"role": "authenticated", "exp": NOW + 60}));
    assert!(client.send(json!([null, "3", "realtime:t", "access_token", {"access_token": other}])).is_empty());
    assert_eq!(client.send(json!([null, "4", "phoenix", "heartbeat", {}])).len(), 1);
    assert_eq!(client.join("realtime:u", json!({})).len(), 1);
    let frames = client.answer(id, Ok(Activated::default()));
    let refs: Vec<&Value> = frames.iter().map(|frame| &frame[1]).collect();
    assert_eq!(refs, [&json!("1"), &json!(null), &json!("2")]);
    assert!(matches!(client.wants.as_slice(), [Effect::Reclaim { id: reclaimed, .. }] if *reclaimed == id));
}

#[test]
fn frames_that_waited_for_a_refused_join_have_no_channel() {
    let (mut client, id, _) = holding(json!(null));
    client.send(json!(["1", "2", "realtime:t", "presence", {}]));
    let frames = client.answer(id, refused(NO_TABLE, false));
    assert_eq!((&frames[0][1], &frames[1][1], reason(&frames[1])), (&json!("1"), &json!("2"), "unmatched topic"));
}

#[test]
fn a_second_join_supersedes_the_held_one() {
    let (mut client, id, first) = holding(json!(null));
    client.send(json!(["1", "5", "realtime:t", "presence", {}]));
    let frames = client.send(json!(["8", "9", "realtime:t", "phx_join", waiting(json!(null))]));
    assert_eq!((frames.len(), &frames[0][1]), (1, &json!("5")), "of the old one: only what could not be done");
    assert!(!first.greet());
    let [Effect::Leave(left), Effect::Subscribe { id: new, .. }] = client.wants.as_slice() else { panic!() };
    let (left, new) = (*left, *new);
    assert_eq!(left, id);
    assert!(client.answer(id, Ok(Activated::default())).is_empty());
    let frames = client.answer(new, Ok(Activated::default()));
    assert_eq!((frames.len(), &frames[0][0], &frames[0][1]), (2, &json!("8"), &json!("9")));

    // Joined before both: its close follows whichever reply there is.
    let mut client = super::client();
    client.send(json!(["0", "0", "realtime:t", "phx_join", {}]));
    client.join("realtime:t", waiting(json!(null)));
    let frames = client.send(json!(["2", "2", "realtime:t", "phx_join", {}]));
    assert_eq!(frames.len(), 2);
    is_ok(&frames[0], "2");
    assert_eq!(frames[1], json!(["0", "0", "realtime:t", "phx_close", {}]));
}

#[test]
fn a_second_join_after_the_greeting_closes_the_first_as_ever() {
    let (mut client, id, first) = holding(json!(null));
    assert!(first.greet());
    let frames = client.send(json!(["8", "9", "realtime:t", "phx_join", {}]));
    is_ok(&frames[0], "9");
    assert_eq!(frames[1], json!(["1", "1", "realtime:t", "phx_close", {}]));
    assert!(matches!(client.wants.as_slice(), [Effect::Leave(left)] if *left == id));
}

#[test]
fn leaving_a_held_join_ends_it_without_its_reply() {
    let (mut client, id, stage) = holding(json!(null));
    assert!(client.send(json!(["0", "2", "realtime:t", "phx_leave", {}])).is_empty(), "stale");
    let frames = client.send(json!([null, "3", "realtime:t", "phx_leave", {}]));
    assert_eq!(frames, [ok(json!(null), json!("3"), "realtime:t", json!({}))]);
    assert!(!stage.greet());
    assert!(matches!(client.wants.as_slice(), [Effect::Leave(left)] if *left == id));
    assert!(client.pass(60).is_empty());
    // The reply was out: the client has joined, and leaves.
    let (mut client, _, stage) = holding(json!(null));
    assert!(stage.greet());
    let frames = client.send(json!(["1", "3", "realtime:t", "phx_leave", {}]));
    assert_eq!(frames[1], json!(["1", "1", "realtime:t", "phx_close", {}]));
}

#[test]
fn a_token_that_expires_refuses_the_held_join() {
    let mut client = client();
    let mut payload = waiting(json!(10_000));
    payload["access_token"] = json!(anon(3));
    client.join("realtime:t", payload.clone());
    assert_eq!(client.session.next_tick(client.now), Some(Duration::from_secs(3)));
    assert_eq!(reason(&client.pass(3)[0]), "InvalidJWTToken: Token has expired 0 seconds ago");
    // The reply was out: it is a channel that ends.
    payload["access_token"] = json!(anon(6));
    client.join("realtime:t", payload);
    assert!(client.stage().unwrap().greet());
    let mut frames = client.pass(3);
    frames.extend(client.pass(0));
    let end = json!(["1", "1", "realtime:t", "phx_close", {}]);
    assert_eq!(frames, [system("system", "error", "Token has expired 0 seconds ago"), end]);
}

#[test]
fn the_end_of_the_connection_names_the_held_join() {
    let (client, id, _) = holding(json!(null));
    let metrics = client.shared.metrics.clone();
    assert_eq!(client.session.end(Instant::now()), [id]);
    assert_eq!(metrics.channels.get(), 0);
}

#[test]
fn a_refused_held_join_keeps_the_delay_of_refusals() {
    let config = GatewayConfig { join_failure_delay: Duration::from_secs(1), ..GatewayConfig::default() };
    let mut client = client_of(Version::V2, config);
    client.join("realtime:t", waiting(json!(null)));
    let id = client.subscribed();
    client.send(json!(["1", "2", "realtime:t", "phx_leave", {}]));
    client.wants.clear();
    assert!(client.answer(id, refused("no", false)).is_empty());
    client.join("realtime:u", waiting(json!(null)));
    let id = client.subscribed();
    assert!(client.send(json!(["1", "2", "realtime:u", "presence", {}])).is_empty());
    assert!(client.answer(id, refused("no", false)).is_empty());
    let frames = client.pass(1);
    assert_eq!((frames.len(), &frames[0][1], &frames[1][1]), (2, &json!("1"), &json!("2")));
}

#[test]
fn version_one_is_held_as_well() {
    let mut client = client_of(Version::V1, GatewayConfig::default());
    let join = json!({"topic": "realtime:t", "event": "phx_join", "payload": waiting(json!(null)), "ref": "1"});
    assert!(client.send(join).is_empty());
    let id = client.subscribed();
    let frames = client.answer(id, Ok(Activated::default()));
    assert_eq!((&frames[0]["ref"], &frames[0]["payload"]["status"]), (&json!("1"), &json!("ok")));
    assert_eq!((&frames[1]["event"], &frames[1]["ref"]), (&json!("system"), &json!(null)));
}
