//! What a program reads of a `system` notice: where it stands, or what is missing.

use crate::hub::Details;
use crate::resume::{Cursor, CursorKey};

/// The members that a notice with these details has in addition, each with a comma before it: `,"cursor":"…"`,
/// with `,"snapshot":{"id":1,"rows":2,"more":false}` after it at the end of a snapshot, or `,"gap":{"from":"…"|null,"to":"…","reason":"…"}`.
pub fn details(details: Details, key: &CursorKey) -> String {
    let text = |cursor: Cursor| format!("\"{}\"", key.seal(cursor));
    match details {
        Details::Reached(cursor) => format!(r#","cursor":{}"#, text(cursor)),
        Details::Snapshot { id, rows, more, cursor } => {
            format!(r#","cursor":{},"snapshot":{{"id":{id},"rows":{rows},"more":{more}}}"#, text(cursor))
        }
        Details::Gap { from, to, reason } => {
            let from = from.map_or_else(|| "null".to_owned(), text);
            format!(r#","gap":{{"from":{from},"to":{},"reason":"{}"}}"#, text(to), reason.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::change::{Lsn, Position};
    use crate::hub::GapReason;

    #[test]
    fn a_place_and_a_gap_are_members_of_the_notice() {
        let key = CursorKey::new([1; 32]);
        let at = |lsn| Cursor { epoch: 1, position: Position { lsn: Lsn(lsn), ordinal: 0 } };
        let read = |of| serde_json::from_str::<Value>(&format!("{{\"status\":\"ok\"{}}}", details(of, &key))).unwrap();
        assert_eq!(read(Details::Reached(at(1))), json!({"status": "ok", "cursor": key.seal(at(1))}));
        let gap = |from| Details::Gap { from, to: at(2), reason: GapReason::Expired };
        let (from, to) = (key.seal(at(1)), key.seal(at(2)));
        assert_eq!(read(gap(Some(at(1))))["gap"], json!({"from": from, "to": to, "reason": "expired"}));
        let end = read(Details::Snapshot { id: 7, rows: 2, more: true, cursor: at(2) });
        let snapshot = json!({"id": 7, "rows": 2, "more": true});
        assert_eq!(end, json!({"status": "ok", "cursor": key.seal(at(2)), "snapshot": snapshot}));
        assert_eq!(read(gap(None))["gap"], json!({"from": null, "to": to, "reason": "expired"}));
    }
}
