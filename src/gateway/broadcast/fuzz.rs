//! Bodies of batches as any bytes.

use serde_json::Value;

use super::batch::parse;
use super::response::Answer;
use crate::gateway::json::is_value;
use crate::room::Message;

/// The bytes are a body.
pub(crate) fn bodies(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match parse(text, 1000) {
        Ok(messages) => {
            assert!(!messages.is_empty());
            for message in messages {
                let Message::Text { payload } = message.encode() else { panic!("a batch is text") };
                assert!(payload.len() <= bytes.len() + 64);
                assert!(std::str::from_utf8(&payload).is_ok_and(is_value), "{payload:?}");
            }
        }
        Err(Answer::Invalid(errors)) => assert!(errors.as_array().is_some_and(|all| !all.is_empty())),
        Err(Answer::BadRequest) => assert!(serde_json::from_str::<Value>(text).is_err()),
        Err(answer) => assert_eq!(answer, Answer::BatchTooLarge),
    }
}
