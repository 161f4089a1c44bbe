//! Private channels: what is asked, when, and what the answers do (items 114–134).

use tokio::time::Instant as TokioInstant;

use super::*;
use crate::authority::{AuthorityError, Basis, Reads, Writes};
use crate::policy::{Right, Rights, Way};

type Told<T> = Result<T, AuthorityError>;

fn reads(broadcast: bool, presence: Option<bool>) -> Told<Reads> {
    Ok(Reads { broadcast, presence, basis: Basis::Followed })
}

fn until(client: &Client, seconds: u64) -> Basis {
    Basis::Until(TokioInstant::from_std(client.now.at + Duration::from_secs(seconds)))
}

fn writes(broadcast: bool, presence: bool) -> Told<Writes> {
    Ok(Writes { broadcast, presence, basis: Basis::Followed })
}

fn private(more: Value) -> Value {
    let mut config = json!({"private": true});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "config": config })
}

impl Client {
    /// The question about reading that was just asked: its number and whether presence is among it.
    fn question(&mut self) -> (u64, bool) {
        match self.asks.drain(..).collect::<Vec<_>>().pop() {
            Some(Effect::Read { number, presence, asking }) => {
                assert_eq!(&*asking.topic, "t");
                (number, presence)
            }
            other => panic!("{other:?}"),
        }
    }

    fn write_question(&mut self) -> u64 {
        match self.asks.drain(..).collect::<Vec<_>>().pop() {
            Some(Effect::Write { number, .. }) => number,
            other => panic!("{other:?}"),
        }
    }

    fn reading(&mut self, number: u64, answer: Told<Reads>) -> Vec<Value> {
        let effects = self.session.read_answered(number, answer, self.now);
        self.sort(effects)
    }

    fn writing(&mut self, number: u64, answer: Told<Writes>) -> Vec<Value> {
        let effects = self.session.write_answered(number, answer, self.now);
        self.sort(effects)
    }

    fn rights_changed(&mut self) -> Vec<Value> {
        let effects = self.session.rights_changed(self.now);
        self.sort(effects)
    }

    fn push(&mut self, reference: &str, event: &str, payload: Value) -> Vec<Value> {
        self.send(json!(["1", reference, "realtime:t", event, payload]))
    }
}

/// A client in a private channel with these rights to read, and those rights.
fn member(more: Value, told: Told<Reads>) -> (Client, Arc<Rights>) {
    let mut client = client();
    assert!(client.join("realtime:t", private(more)).is_empty());
    let (number, _) = client.question();
    assert_eq!(client.reading(number, told)[0][4]["status"], "ok");
    let rights = client.asks.drain(..).find_map(|ask| match ask {
        Effect::Watch { rights, .. } => Some(rights),
        _ => None,
    });
    (client, rights.unwrap())
}

const NONE: &str = "You do not have permissions to read from this Channel topic: t";
const LOST: &str = "You no longer have permission to read from this Channel topic: t";

#[test]
fn a_join_waits_for_its_right_and_its_topic_keeps_order_meanwhile() {
    let mut client = client();
    assert!(client.join("realtime:t", private(json!({"broadcast": {"ack": true}}))).is_empty());
    assert!(client.push("2", "whatever", json!({})).is_empty());
    assert!(client.push("3", "phx_leave", json!({})).is_empty());
    assert_eq!(client.send(json!([null, "4", "phoenix", "heartbeat", {}])).len(), 1);
    assert_eq!(client.join("realtime:u", json!({})).len(), 1, "others don't wait");
    let Some(Effect::Read { number, presence: false, .. }) = client.asks.drain(..).next() else { panic!() };
    let frames = client.reading(number, reads(true, None));
    let refs: Vec<&Value> = frames.iter().map(|frame| &frame[1]).collect();
    assert_eq!(refs, ["1", "3", "1"]);
    assert_eq!((&frames[0][4]["status"], &frames[2][3]), (&json!("ok"), &json!("phx_close")));
    assert!(client.reading(number, reads(true, None)).is_empty(), "once");
}

#[test]
fn a_join_is_refused_with_the_reason() {
    let unauthorized = format!("Unauthorized: {NONE}");
    for (told, reason) in [
        (reads(false, None), unauthorized.as_str()),
        (reads(false, Some(false)), unauthorized.as_str()),
        (Err(AuthorityError::Policy), unauthorized.as_str()),
        (Err(AuthorityError::NotInstalled), unauthorized.as_str()),
        (Err(AuthorityError::Timeout("canceling statement".into())), "QueryCanceled: canceling statement"),
        (
            Err(AuthorityError::MissingPartition),
            "MissingPartition: Realtime was unable to find the expected messages partition",
        ),
        (Err(AuthorityError::PoolExhausted), "IncreaseConnectionPool: Please increase your connection pool size"),
        (
            Err(AuthorityError::Unavailable),
            "UnableToConnectToProject: Realtime was unable to connect to the project database",
        ),
    ] {
        let mut client = client();
        client.join("realtime:t", private(json!({})));
        client.push("2", "broadcast", json!({}));
        let (number, _) = client.question();
        let frames = client.reading(number, told);
        assert_eq!(frames[0], no(json!("1"), json!("1"), "realtime:t", reason));
        assert_eq!(frames[1], no(json!(null), json!("2"), "realtime:t", "unmatched topic"));
        assert!(client.quiet.is_empty() && client.asks.is_empty());
    }
}

#[test]
fn presence_is_asked_for_with_the_join_if_it_is_enabled() {
    let enabled = json!({"presence": {"enabled": true}});
    let mut client = client();
    client.join("realtime:t", private(enabled));
    let (number, presence) = client.question();
    assert!(presence);
    assert_eq!(client.reading(number, reads(false, Some(true)))[0][4]["status"], "ok");
    let Effect::Enter { seat, .. } = &client.asks[0] else { panic!() };
    let rights = seat.rights.clone().unwrap();
    assert!(!rights.allows(Right::ReadBroadcast) && rights.allows(Right::ReadPresence));
    assert!(client.asks.iter().any(|ask| matches!(ask, Effect::PresenceState(_))));
    let mut client = self::client();
    client.join("realtime:t", private(json!({"presence": {"enabled": true}})));
    let (number, _) = client.question();
    assert_eq!(client.reading(number, reads(true, Some(false)))[0][4]["status"], "ok");
    assert!(client.asks.iter().any(|ask| matches!(ask, Effect::Enter { .. })));
    assert!(!client.asks.iter().any(|ask| matches!(ask, Effect::PresenceState(_))));
}

#[test]
fn the_reply_tells_a_place_and_messages_are_asked_for_with_the_rights() {
    let (mut client, rights) = member(json!({}), reads(true, None));
    let Some(Effect::Subscribe { entries, .. }) = client.quiet.pop() else { panic!() };
    let messages = entries[0].messages.as_ref().unwrap();
    assert!(entries.len() == 1 && entries[0].id == 0 && &*messages.topic == "t");
    assert!(Arc::ptr_eq(messages.member.as_ref().unwrap(), &rights));
}

#[test]
fn the_right_to_write_is_asked_for_once_and_the_topic_waits_for_it() {
    let (mut client, _) = member(json!({"broadcast": {"ack": true}}), reads(true, None));
    assert!(client.push("2", "broadcast", json!({"n": 1})).is_empty());
    assert!(client.push("3", "broadcast", json!({"n": 2})).is_empty());
    let number = client.write_question();
    assert!(client.writing(number, writes(true, false)).is_empty());
    assert!(matches!(client.asks.as_slice(), [Effect::Broadcast { ack: Some(_), .. }, Effect::Broadcast { .. }]));
    client.asks.clear();
    client.push("4", "broadcast", json!({}));
    assert!(matches!(client.asks.as_slice(), [Effect::Broadcast { .. }]));
}

#[test]
fn who_may_not_write_hears_nothing_and_presence_is_refused() {
    for told in [writes(false, false), Err(AuthorityError::Unavailable)] {
        let (mut client, _) = member(json!({"broadcast": {"ack": true}}), reads(true, None));
        client.push("2", "broadcast", json!({}));
        let number = client.write_question();
        assert!(client.writing(number, told.clone()).is_empty());
        assert!(client.asks.is_empty());
        // Nor as a binary frame, of JSON or of bytes.
        for encoding in [0, 1] {
            let head = [3, 1, 1, 10, 3, 0, encoding];
            let frame = Bytes::from([&head[..], b"17", b"realtime:t", b"cur", b"{}"].concat());
            assert!(client.binary(&frame).is_empty());
            if told.is_err() {
                let number = client.write_question();
                assert!(client.writing(number, told.clone()).is_empty());
            }
            assert!(client.asks.is_empty());
        }
        // Of presence also the right to read is asked for.
        assert!(client.push("3", "presence", json!({"event": "track"})).is_empty());
        let (number, presence) = client.question();
        assert!(presence);
        let mut frames = client.reading(number, reads(true, Some(true)));
        if told.is_err() {
            let number = client.write_question();
            frames = client.writing(number, told);
        }
        let expected = json!(["1", "3", "realtime:t", "phx_reply", {"status": "error", "response": {}}]);
        assert_eq!(frames, [expected]);
    }
}

#[test]
fn presence_that_was_not_asked_for_is_asked_for_at_the_first_track() {
    let (mut client, rights) = member(json!({}), reads(true, None));
    client.push("2", "presence", json!({"event": "untrack"}));
    assert!(matches!(client.asks.pop(), Some(Effect::Track { payload: None, .. })), "needs no right");
    client.push("3", "presence", json!({"event": "track"}));
    let (number, _) = client.question();
    client.reading(number, reads(true, Some(false)));
    let number = client.write_question();
    client.writing(number, writes(false, true));
    assert!(matches!(client.asks.as_slice(), [Effect::Track { payload: Some(_), .. }]));
    assert_eq!(rights.get(Right::ReadPresence), Some(false));
}

#[test]
fn an_answer_that_is_too_old_is_not_used_for_writing() {
    let (mut client, _) = member(json!({}), reads(true, None));
    client.push("2", "broadcast", json!({}));
    let (number, basis) = (client.write_question(), until(&client, 10));
    client.writing(number, Ok(Writes { broadcast: true, presence: true, basis }));
    client.pass(9);
    client.asks.clear();
    client.push("3", "broadcast", json!({}));
    assert!(matches!(client.asks.pop(), Some(Effect::Broadcast { .. })));
    client.pass(1);
    client.push("4", "broadcast", json!({}));
    let number = client.write_question();
    client.writing(number, writes(false, false));
    assert!(client.asks.is_empty());
}

#[test]
fn rights_that_end_end_the_channel_with_the_reason() {
    let closed = json!(["1", "1", "realtime:t", "phx_close", {}]);
    let (mut client, rights) = member(json!({}), reads(true, None));
    assert!(client.rights_changed().is_empty());
    rights.set(Right::ReadBroadcast, Some(false));
    assert_eq!(client.rights_changed(), [system("system", "error", NONE), closed.clone()]);
    assert!(matches!(client.quiet.last(), Some(Effect::Leave(_))));
    assert!(client.rights_changed().is_empty());
    let (mut client, rights) = member(json!({"presence": {"enabled": true}}), reads(true, Some(true)));
    rights.set(Right::ReadPresence, Some(false));
    assert_eq!(client.rights_changed(), [system("system", "error", LOST), closed]);
    // A right that is gained is no end.
    let (mut client, rights) = member(json!({"presence": {"enabled": true}}), reads(true, Some(false)));
    rights.set(Right::ReadPresence, Some(true));
    assert!(client.rights_changed().is_empty());
    rights.set(Right::ReadPresence, Some(false));
    assert_eq!(client.rights_changed()[0], system("system", "error", LOST));
}

#[test]
fn rights_that_nobody_follows_any_more_are_asked_for_again() {
    let (mut client, rights) = member(json!({}), reads(true, None));
    rights.set(Right::ReadBroadcast, None);
    assert!(client.rights_changed().is_empty());
    let (number, _) = client.question();
    assert!(client.rights_changed().is_empty() && client.asks.is_empty(), "once");
    let basis = until(&client, 10);
    assert!(client.reading(number, Ok(Reads { broadcast: true, presence: None, basis })).is_empty());
    assert!(rights.allows(Right::ReadBroadcast));
    client.asks.clear();
    assert!(client.session.next_tick(client.now).unwrap() <= Duration::from_secs(8));
    client.pass(8);
    let (number, _) = client.question();
    assert_eq!(client.reading(number, reads(false, None))[0], system("system", "error", NONE));
}

#[test]
fn what_can_not_be_asked_again_ends_the_channel_after_a_while() {
    for (error, text) in [
        (AuthorityError::Timeout("x".into()), "Query was cancelled, please try again"),
        (AuthorityError::Unavailable, "Realtime was unable to connect to the project database"),
    ] {
        let (mut client, rights) = member(json!({}), reads(true, None));
        rights.set(Right::ReadBroadcast, None);
        client.rights_changed();
        for _ in 0..30 {
            let (number, _) = client.question();
            assert!(client.reading(number, Err(error.clone())).is_empty());
            assert!(!rights.allows(Right::ReadBroadcast));
            client.pass(1);
        }
        let (number, _) = client.question();
        assert_eq!(client.reading(number, Err(error))[0], system("system", "error", text));
    }
}

#[test]
fn a_new_token_is_asked_for_and_its_topic_waits() {
    let (mut client, rights) = member(json!({"presence": {"enabled": true}}), reads(true, Some(true)));
    client.push("2", "broadcast", json!({}));
    let number = client.write_question();
    client.writing(number, writes(true, true));
    client.asks.clear();
    let Some(Effect::Subscribe { id, .. }) = client.quiet.pop() else { panic!() };
    assert!(client.answer(id, Ok(Activated::default())).is_empty());
    assert!(client.push("3", "access_token", json!({"access_token": anon(60)})).is_empty());
    assert!(matches!(client.wants.pop(), Some(Effect::Reclaim { id: of, .. }) if of == id));
    let (number, presence) = client.question();
    assert!(presence && rights.allows(Right::ReadBroadcast), "until it is known");
    assert!(client.push("4", "broadcast", json!({})).is_empty());
    assert!(client.reading(number, reads(true, Some(true))).is_empty());
    // The watch is the new token's, and so is the right to write.
    assert!(matches!(client.asks.as_slice(), [Effect::Watch { .. }, Effect::Write { .. }]));
}

#[test]
fn a_new_token_that_may_less_ends_the_channel_and_one_that_may_more_does_not() {
    let token = |client: &mut Client| {
        client.push("3", "access_token", json!({"access_token": anon(60)}));
        client.question().0
    };
    let presence = json!({"presence": {"enabled": true}});
    for (told, text) in [
        (reads(false, Some(false)), NONE),
        (reads(true, Some(false)), LOST),
        (reads(false, Some(true)), LOST),
        (Err(AuthorityError::Policy), NONE),
        (Err(AuthorityError::Unavailable), "Realtime was unable to connect to the project database"),
        (Err(AuthorityError::Timeout("x".into())), "Query was cancelled, please try again"),
    ] {
        let (mut client, _) = member(presence.clone(), reads(true, Some(true)));
        let number = token(&mut client);
        client.push("4", "phx_leave", json!({}));
        let frames = client.reading(number, told);
        assert_eq!(frames[0], system("system", "error", text));
        assert_eq!((&frames[1][3], &frames[2][1]), (&json!("phx_close"), &json!("4")));
    }
    let (mut client, rights) = member(presence, reads(false, Some(true)));
    let number = token(&mut client);
    assert!(client.reading(number, reads(true, Some(true))).is_empty());
    assert!(rights.allows(Right::ReadBroadcast));
}

#[test]
fn private_only_takes_private_channels() {
    let mut client = client_of(Version::V2, GatewayConfig { private_only: true, ..GatewayConfig::default() });
    client.join("realtime:t", private(json!({})));
    let (number, _) = client.question();
    assert_eq!(client.reading(number, reads(true, None))[0][4]["status"], "ok");
}

#[test]
fn a_channel_that_ends_while_something_waits_releases_it() {
    let (mut client, rights) = member(json!({"broadcast": {"ack": true}}), reads(true, None));
    client.push("2", "broadcast", json!({"x": "y".repeat(1000)}));
    client.push("3", "phx_leave", json!({}));
    let number = client.write_question();
    rights.set(Right::ReadBroadcast, Some(false));
    let frames = client.rights_changed();
    let events: Vec<&Value> = frames.iter().map(|frame| &frame[3]).collect();
    assert_eq!(events, ["system", "phx_close", "phx_reply"]);
    assert!(client.writing(number, writes(true, true)).is_empty() && client.asks.is_empty());
}

#[test]
fn a_held_private_join_ends_with_its_right() {
    let mut client = client();
    let mut payload = todos();
    payload["config"]["postgres_changes_options"] = json!({"wait": true});
    payload["config"]["private"] = json!(true);
    client.join("realtime:t", payload);
    let (number, _) = client.question();
    assert!(client.reading(number, reads(true, None)).is_empty());
    let Some(Effect::Enter { seat, .. }) = client.asks.first() else { panic!() };
    seat.rights.as_ref().unwrap().set(Right::ReadBroadcast, Some(false));
    let frames = client.rights_changed();
    assert_eq!(frames, [no(json!("1"), json!("1"), "realtime:t", &format!("Unauthorized: {NONE}"))]);
    assert!(matches!(client.wants.as_slice(), [Effect::Subscribe { .. }, Effect::Leave(_)]));
}

fn held(client: &mut Client) -> Vec<Value> {
    let mut payload = todos();
    payload["config"]["postgres_changes_options"] = json!({"wait": true});
    payload["config"]["private"] = json!(true);
    client.join("realtime:t", payload);
    let (number, _) = client.question();
    client.reading(number, reads(true, None))
}

#[test]
fn the_rights_of_a_held_join_are_watched_while_it_is_held() {
    let mut client = client();
    assert!(held(&mut client).is_empty());
    let watches = |client: &Client| client.asks.iter().filter(|ask| matches!(ask, Effect::Watch { .. })).count();
    let [Effect::Enter { seat, .. }, Effect::Watch { rights, .. }] = &*client.asks else { panic!("{:?}", client.asks) };
    assert!(Arc::ptr_eq(seat.rights.as_ref().unwrap(), rights));
    let id = client.subscribed();
    client.answer(id, Ok(Activated::default()));
    assert_eq!(watches(&client), 1, "not anew when it is greeted");
}

#[test]
fn an_answer_for_the_same_user_does_not_begin_his_watch_anew() {
    let (mut client, rights) = member(json!({}), reads(true, None));
    rights.set(Right::ReadBroadcast, None);
    client.rights_changed();
    let (number, _) = client.question();
    assert!(client.reading(number, reads(true, None)).is_empty());
    assert!(rights.allows(Right::ReadBroadcast));
    assert!(client.asks.is_empty(), "{:?}", client.asks);
    client.push("3", "access_token", json!({"access_token": anon(60)}));
    let (number, _) = client.question();
    client.reading(number, reads(true, None));
    assert!(matches!(client.asks.as_slice(), [Effect::Watch { .. }]), "another token's are watched");
}

#[test]
fn a_channel_whose_message_waits_ends_when_its_token_expires() {
    let (mut client, _) = member(json!({"broadcast": {"ack": true}}), reads(true, None));
    client.pass(3590);
    client.push("2", "broadcast", json!({}));
    let number = client.write_question();
    client.push("3", "phx_leave", json!({}));
    assert_eq!(client.session.next_tick(client.now), Some(Duration::from_secs(10)));
    let frames = client.pass(10);
    assert_eq!(frames[0], system("system", "error", "Token has expired 0 seconds ago"));
    assert_eq!((&frames[1][3], &frames[2][1]), (&json!("phx_close"), &json!("3")));
    assert!(matches!(client.quiet.last(), Some(Effect::Leave(_))));
    assert!(client.writing(number, writes(true, true)).is_empty() && client.asks.is_empty());
}

#[test]
fn presence_that_can_be_read_again_is_told_as_a_whole() {
    let states = |client: &mut Client| {
        let asks: Vec<Effect> = client.asks.drain(..).collect();
        asks.iter().filter(|ask| matches!(ask, Effect::PresenceState(_))).count()
    };
    let presence = json!({"presence": {"enabled": true}});
    let (mut client, rights) = member(presence.clone(), reads(true, Some(true)));
    rights.set(Right::ReadPresence, None);
    assert!(client.rights_changed().is_empty());
    let (number, _) = client.question();
    assert!(client.reading(number, reads(true, Some(true))).is_empty());
    assert_eq!(states(&mut client), 1);
    assert!(client.rights_changed().is_empty());
    assert_eq!(states(&mut client), 0, "once");
    // A new token may see what the one before could not.
    let (mut client, _) = member(presence, reads(true, Some(false)));
    client.push("3", "access_token", json!({"access_token": anon(60)}));
    let (number, _) = client.question();
    client.reading(number, reads(true, Some(true)));
    assert_eq!(states(&mut client), 1);
}

#[test]
fn presence_that_was_away_between_two_looks_is_told_as_a_whole_too() {
    let (mut client, rights) = member(json!({"presence": {"enabled": true}}), reads(true, Some(true)));
    let states = |client: &mut Client| {
        client.rights_changed();
        let asks: Vec<Effect> = client.asks.drain(..).collect();
        asks.iter().filter(|ask| matches!(ask, Effect::PresenceState(_))).count()
    };
    rights.set(Right::ReadPresence, None);
    rights.set(Right::ReadPresence, Some(true));
    assert_eq!((states(&mut client), states(&mut client)), (1, 0), "once");
    rights.set(Right::ReadBroadcast, None);
    rights.set(Right::ReadBroadcast, Some(true));
    assert_eq!(states(&mut client), 0, "no diff was left out");
}

#[test]
fn rights_that_are_old_are_asked_for_in_time_and_hold_until_the_answer() {
    let (mut client, rights) = member(json!({}), reads(true, None));
    assert!(client.session.next_tick(client.now).unwrap() > Duration::from_secs(60));
    rights.set_old(Way::Read, true);
    assert!(client.rights_changed().is_empty() && client.asks.is_empty());
    assert!(client.session.next_tick(client.now).unwrap() <= Duration::from_secs(8));
    assert!(rights.allows(Right::ReadBroadcast));
    client.pass(8);
    let (number, _) = client.question();
    assert!(client.rights_changed().is_empty() && client.asks.is_empty(), "once");
    let basis = until(&client, 10);
    assert!(client.reading(number, Ok(Reads { broadcast: true, presence: None, basis })).is_empty());
    // Again, and now Postgres says no.
    client.pass(8);
    let (number, _) = client.question();
    let frames = client.reading(number, Ok(Reads { broadcast: false, presence: None, basis: until(&client, 10) }));
    assert_eq!(frames[0], system("system", "error", NONE));
}

#[test]
fn rights_are_believed_again_when_they_are_not_old_any_more() {
    let (mut client, rights) = member(json!({}), reads(true, None));
    client.push("2", "broadcast", json!({}));
    let number = client.write_question();
    client.writing(number, writes(true, true));
    for way in [Way::Read, Way::Write] {
        rights.set_old(way, true);
    }
    client.rights_changed();
    client.asks.clear();
    for way in [Way::Read, Way::Write] {
        rights.set_old(way, false);
    }
    client.rights_changed();
    assert!(client.session.next_tick(client.now).unwrap() > Duration::from_secs(60));
    client.pass(100);
    assert!(client.asks.is_empty());
    client.push("3", "broadcast", json!({}));
    assert!(matches!(client.asks.as_slice(), [Effect::Broadcast { .. }]));
}

#[test]
fn an_old_right_to_write_is_asked_for_at_the_next_push_after_a_while() {
    let (mut client, rights) = member(json!({}), reads(true, None));
    rights.set_old(Way::Write, true);
    client.push("2", "broadcast", json!({}));
    let number = client.write_question();
    // Given from memory a moment before it was said to be old.
    client.writing(number, writes(true, true));
    assert!(matches!(client.asks.pop(), Some(Effect::Broadcast { .. })));
    client.pass(8);
    client.push("3", "broadcast", json!({}));
    let (number, basis) = (client.write_question(), until(&client, 10));
    client.writing(number, Ok(Writes { broadcast: false, presence: false, basis }));
    assert!(client.asks.is_empty());
    // The stream is there: what it says counts, at once.
    rights.set(Right::WriteBroadcast, Some(true));
    rights.set_old(Way::Write, false);
    client.rights_changed();
    client.push("4", "broadcast", json!({}));
    assert!(matches!(client.asks.as_slice(), [Effect::Broadcast { .. }]));
}

#[test]
fn a_channel_whose_old_rights_can_not_be_asked_for_ends_after_a_bounded_time() {
    let (mut client, rights) = member(json!({}), reads(true, None));
    rights.set_old(Way::Read, true);
    client.rights_changed();
    let mut asked = 0;
    for second in 1..=41 {
        client.pass(1);
        if client.asks.is_empty() {
            assert!(second < 9, "asked within the time, and then each second");
            continue;
        }
        asked += 1;
        let (number, _) = client.question();
        let frames = client.reading(number, Err(AuthorityError::PoolExhausted));
        if !frames.is_empty() {
            assert_eq!(frames[0], system("system", "error", "Please increase your connection pool size"));
            assert!((40..=41).contains(&second) && asked > 30, "{second} {asked}");
            return;
        }
        assert!(rights.allows(Right::ReadBroadcast), "others are asked about, too");
    }
    panic!("it never ends");
}

#[path = "private_rights.rs"]
mod rights;
