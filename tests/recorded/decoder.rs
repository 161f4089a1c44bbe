//! What the decoders of the clients insist on. A frame that breaks a rule is dropped by the client, or ends its connection.

use serde_json::Value;

/// Whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decoder {
    Dart,
    Swift,
    Kotlin,
}

impl Decoder {
    /// The parts of a text frame, if the client can read it.
    pub(super) fn check(self, frame: &Value) {
        let (event, payload) = match frame {
            Value::Array(parts) => {
                assert_eq!(parts.len(), 5, "{frame}");
                for reference in &parts[..2] {
                    assert!(reference.is_null() || reference.is_string(), "{frame}");
                }
                assert!(parts[2].is_string() && parts[3].is_string(), "{frame}");
                if parts[3] == "phx_close" || parts[3] == "phx_error" {
                    assert_eq!(parts[0], parts[1], "which join has ended is read in either place: {frame}");
                }
                (&parts[3], &parts[4])
            }
            Value::Object(parts) => {
                assert_eq!(parts.keys().collect::<Vec<_>>(), ["event", "payload", "ref", "topic"], "{frame}");
                (&parts["event"], &parts["payload"])
            }
            _ => panic!("no frame: {frame}"),
        };
        assert!(payload.is_object(), "Swift and Kotlin decode objects only: {frame}");
        match event.as_str().expect("a name") {
            "phx_reply" => self.reply(payload),
            "system" => {
                for key in ["extension", "status", "message", "channel"] {
                    assert!(payload[key].is_string(), "{key}: {frame}");
                }
            }
            "postgres_changes" => self.change(payload),
            "presence_state" => presences(payload),
            "presence_diff" => {
                presences(&payload["joins"]);
                presences(&payload["leaves"]);
            }
            "broadcast" | "phx_close" | "phx_error" => {}
            other => panic!("no client knows {other}: {frame}"),
        }
    }

    fn reply(self, payload: &Value) {
        assert!(payload["response"].is_object(), "{payload}");
        assert!(payload["status"] == "ok" || payload["status"] == "error", "{payload}");
        let Some(entries) = payload["response"].get("postgres_changes") else { return };
        for entry in entries.as_array().expect("a list") {
            let entry = entry.as_object().expect("an object");
            assert!(entry["id"].as_i64().is_some_and(|id| i32::try_from(id).is_ok()), "{payload}");
            assert!(self != Decoder::Swift || entry["schema"].is_string(), "{payload}");
            let known = ["schema", "table", "filter", "event", "id"];
            let unknown = entry.keys().find(|key| !known.contains(&key.as_str()));
            assert!(self != Decoder::Kotlin || unknown.is_none(), "{unknown:?} ends Kotlin's loop: {payload}");
        }
    }

    fn change(self, payload: &Value) {
        let ids = payload["ids"].as_array().expect("a list");
        assert!(ids.iter().all(|id| id.as_i64().is_some_and(|id| i32::try_from(id).is_ok())), "{payload}");
        let data = &payload["data"];
        assert!(data["commit_timestamp"].is_string(), "{payload}");
        for column in data["columns"].as_array().expect("columns") {
            let keys: Vec<&String> = column.as_object().expect("an object").keys().collect();
            assert_eq!(keys, ["name", "type"], "{payload}");
        }
        let has = |key: &str| data[key].is_object();
        let complete = match data["type"].as_str() {
            Some("INSERT") => has("record"),
            Some("UPDATE") => has("record") && has("old_record"),
            Some("DELETE") => has("old_record"),
            _ => false,
        };
        assert!(complete, "{payload}");
    }
}

fn presences(state: &Value) {
    for (key, entry) in state.as_object().expect("an object") {
        let metas = entry["metas"].as_array().expect("metas");
        assert!(metas.iter().all(|meta| meta["phx_ref"].is_string()) && !metas.is_empty(), "{key}: {entry}");
    }
}

#[test]
fn what_a_client_does_not_read_is_refused() {
    use serde_json::json;
    let reads = |decoder: Decoder, frame: &Value| std::panic::catch_unwind(|| decoder.check(frame)).is_ok();
    let reply = |entry: Value| json!(["1", "2", "realtime:r", "phx_reply", { "status": "ok", "response": { "postgres_changes": [entry] } }]);
    let with_more = reply(json!({ "id": 1, "schema": "public", "event": "*", "select": ["a"] }));
    let without_schema = reply(json!({ "id": 1, "event": "*" }));
    let large = reply(json!({ "id": 3_000_000_000_u32, "schema": "public", "event": "*" }));
    let outcome = |frame: &Value| [Decoder::Dart, Decoder::Swift, Decoder::Kotlin].map(|decoder| reads(decoder, frame));
    assert_eq!(outcome(&with_more), [true, true, false]);
    assert_eq!(outcome(&without_schema), [true, false, true]);
    assert_eq!(outcome(&large), [false; 3]);
    assert_eq!(outcome(&json!([null, null, "realtime:r", "broadcast", []])), [false; 3]);
    assert_eq!(outcome(&json!(["1", null, "realtime:r", "phx_close", {}])), [false; 3]);
    let meta = json!({ "k": { "metas": [{ "name": "no ref" }] } });
    assert_eq!(outcome(&json!(["1", null, "realtime:r", "presence_state", meta])), [false; 3]);
}
