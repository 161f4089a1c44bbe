//! Private channels whose rights change while something is under way.

use super::*;

#[test]
fn who_tracks_without_having_asked_for_presence_is_told_no_state() {
    let (mut client, rights) = member(json!({}), reads(true, None));
    client.push("2", "presence", json!({"event": "track"}));
    let (number, _) = client.question();
    // Any other right of his changes meanwhile.
    rights.set(Right::WriteBroadcast, Some(true));
    assert!(client.rights_changed().is_empty());
    client.reading(number, reads(true, Some(true)));
    assert!(!client.asks.iter().any(|ask| matches!(ask, Effect::PresenceState(_))), "{:?}", client.asks);
    let number = client.write_question();
    client.writing(number, writes(true, true));
    assert!(client.rights_changed().is_empty());
    assert!(matches!(client.asks.as_slice(), [Effect::Track { payload: Some(_), .. }]), "{:?}", client.asks);
}

#[test]
fn an_older_answer_gives_no_right_that_has_ended_meanwhile() {
    let presence = json!({"presence": {"enabled": true}});
    let (mut client, rights) = member(presence, reads(true, Some(true)));
    rights.set(Right::ReadBroadcast, None);
    assert!(client.rights_changed().is_empty());
    let (number, _) = client.question();
    // The hub says so, by a commit that the answer does not know of.
    rights.set(Right::ReadBroadcast, Some(false));
    let frames = client.reading(number, reads(true, Some(true)));
    assert_eq!(rights.get(Right::ReadBroadcast), Some(false));
    assert_eq!(frames[0], system("system", "error", LOST));
}

#[test]
fn a_right_that_was_asked_for_and_not_answered_has_ended() {
    let (mut client, rights) = member(json!({"presence": {"enabled": true}}), reads(true, Some(true)));
    client.push("3", "access_token", json!({"access_token": anon(60)}));
    let (number, presence) = client.question();
    assert!(presence);
    let frames = client.reading(number, reads(true, None));
    assert_eq!(rights.get(Right::ReadPresence), Some(false));
    assert_eq!(frames[0], system("system", "error", LOST));
}

#[test]
fn under_a_new_token_the_right_to_be_present_is_asked_for_anew() {
    let (mut client, _) = member(json!({"presence": {"enabled": true}}), reads(true, Some(true)));
    client.push("2", "presence", json!({"event": "track"}));
    let number = client.write_question();
    client.writing(number, writes(true, true));
    client.push("3", "access_token", json!({"access_token": anon(60)}));
    let (number, _) = client.question();
    client.reading(number, reads(true, Some(true)));
    client.push("4", "presence", json!({"event": "track"}));
    let number = client.write_question();
    let refused = client.writing(number, writes(true, false));
    assert_eq!(refused, [json!(["1", "4", "realtime:t", "phx_reply", {"status": "error", "response": {}}])]);
}

#[test]
fn messages_that_wait_for_a_right_are_bounded_and_make_room_when_their_channel_ends() {
    let mut client = client_of(Version::V2, GatewayConfig { max_pending_bytes: 1000, ..GatewayConfig::default() });
    let mut rights = Vec::new();
    for topic in ["realtime:t", "realtime:u"] {
        client.join(topic, private(json!({})));
        let Some(Effect::Read { number, .. }) = client.asks.pop() else { panic!() };
        client.reading(number, reads(true, None));
        rights.extend(client.asks.drain(..).find_map(|ask| match ask {
            Effect::Watch { rights, .. } => Some(rights),
            _ => None,
        }));
    }
    let ask = |client: &mut Client, topic: &str| {
        client.send(json!(["1", "2", topic, "broadcast", {"x": "y".repeat(700)}]));
        client.asks.drain(..).any(|ask| matches!(ask, Effect::Write { .. }))
    };
    assert!(ask(&mut client, "realtime:t"));
    assert!(!ask(&mut client, "realtime:u"), "there is no room for it to wait");
    rights[0].set(Right::ReadBroadcast, Some(false));
    assert_eq!(client.rights_changed()[0], system("system", "error", NONE));
    assert!(ask(&mut client, "realtime:u"));
}
