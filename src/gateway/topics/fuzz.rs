//! Frames of the topics door as any bytes.

use std::sync::Arc;

use serde_json::Value;

use super::Door;
use crate::gateway::GatewayConfig;
use crate::gateway::encode::topics;

/// The bytes are a frame's text.
pub(crate) fn frames(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut door = Door::default();
    let config = GatewayConfig::default();
    match door.read(text, &config) {
        Ok(frame) => {
            let joined: Vec<Arc<str>> = vec!["realtime:a".into()];
            for message in door.messages(&frame, &joined) {
                assert!(message.topic.starts_with("realtime:") || message.event == "heartbeat");
                let payload: Result<Value, _> = serde_json::from_str(&message.payload);
                // Deeper than a tree may be, or with a number that it can't hold, it is JSON all the same.
                assert!(
                    payload.is_ok_and(|value| value.is_object()) || crate::gateway::json::is_value(&message.payload)
                );
                for answer in [r#"{"status":"ok","response":{}}"#, r#"{"status":"error","response":{"reason":"A: b"}}"#]
                {
                    let frame = topics::event(message.reference.as_json(), &message.topic, "phx_reply", answer);
                    assert!(frame.is_empty() || is_object(&frame), "{frame:?}");
                }
                if message.event == "broadcast" {
                    assert!(is_object(&topics::broadcast(&message.topic, &message.payload)));
                }
            }
        }
        Err(answer) => assert!(is_object(&answer), "{answer:?}"),
    }
}

fn is_object(frame: &[u8]) -> bool {
    let head = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    let text = std::str::from_utf8(&frame[head..]).unwrap_or_default();
    text.starts_with('{') && crate::gateway::json::is_value(text)
}
