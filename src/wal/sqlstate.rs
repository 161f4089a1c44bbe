//! SQLSTATEs of the replication session: out of the library's strings, and what they mean for us.
//!
//! The replication library gives server errors as `message (SQLSTATE 55006)`. The message may be in any language and
//! may itself contain parentheses, so only the very end counts, and decisions are made by code wherever there is one.

use crate::error::Remedy;

/// Splits the library's text of a server error into message and code.
pub(super) fn split(text: &str) -> (&str, Option<&str>) {
    let parts = text.strip_suffix(')').and_then(|rest| rest.rsplit_once(" (SQLSTATE "));
    match parts {
        Some((message, code)) if is_code(code) => (message, Some(code)),
        _ => (text, None),
    }
}

fn is_code(text: &str) -> bool {
    text.len() == 5 && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
}

/// Whether waiting can help. A code we don't know is worth another attempt, with backoff: to stop needs a reason.
pub(super) fn remedy(code: Option<&str>) -> Remedy {
    let Some(code) = code else { return Remedy::Retry };
    match code {
        // The slot is read by another session; a lock was not had in time.
        "55006" | "55P03" => Remedy::Retry,
        // No free slot entry (max_replication_slots); database dropped; WAL file gone; data corrupted.
        "53400" | "57P04" | "58P01" | "XX001" | "XX002" => Remedy::Operator,
        _ => match &code[..2] {
            // Feature, data and parameter errors, authorization, catalog, object state, configuration file.
            "0A" | "22" | "28" | "3D" | "3F" | "42" | "55" | "F0" => Remedy::Operator,
            _ => Remedy::Retry,
        },
    }
}

/// The metric label of a server error.
pub(super) fn label(code: Option<&str>) -> &'static str {
    let Some(code) = code else { return "server" };
    match code {
        "55006" => "slot_active",
        "57P01" | "57P02" | "57P03" | "57P05" => "server_shutdown",
        "53300" => "too_many_connections",
        "53400" => "too_many_slots",
        "42501" => "permission",
        "42704" => "missing_object",
        "3D000" | "57P04" => "missing_database",
        "55000" => "object_state",
        "0A000" => "not_supported",
        _ => match &code[..2] {
            "08" => "connection",
            "28" => "authentication",
            "53" | "58" => "server_resources",
            _ => "server",
        },
    }
}

/// What a person should do about it; empty if the server's message says all. `slot` is valid, so it needs no quoting.
pub(super) fn advice(code: Option<&str>, message: &str, slot: &str) -> String {
    match code.unwrap_or_default() {
        "55006" => format!(
            "Another session reads slot `{slot}`: `SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{slot}'`. If it \
             is a second relay, give it a slot of its own."
        ),
        "28P01" | "28000" => "Check user and password in DATABASE_URL, and pg_hba.conf on the server: the entry must match the \
                              database itself (not only `replication`), and a `hostssl` entry can't be used without TLS."
            .into(),
        "3D000" | "57P04" => "Check the database name at the end of DATABASE_URL.".into(),
        "42501" => "The relay's role needs the replication right: `ALTER ROLE <role> REPLICATION`.".into(),
        "53300" => "Raise max_wal_senders or max_connections on the server, or close other sessions.".into(),
        "53400" => "Raise max_replication_slots on the server, or drop a slot that nobody uses: `SELECT slot_name FROM \
                    pg_replication_slots WHERE NOT active`."
            .into(),
        "42704" if quoted(message) == Some(slot) => {
            format!("Slot `{slot}` was dropped. The relay makes a new one and tells its clients of the gap; find out who dropped it.")
        }
        "42704" => missing_publication(message, slot),
        "55000" => format!(
            "Slot `{slot}` can't be read; it may belong to another database, or it was invalidated since it held back more than \
             max_slot_wal_keep_size. Look: `SELECT database, wal_status FROM pg_replication_slots WHERE slot_name = '{slot}'`. \
             If it is lost, the relay makes a new one (or: `SELECT pg_drop_replication_slot('{slot}')`), and clients are told of the gap."
        ),
        "0A000" => "Two of the publications have different column lists for one table, or the server can't decode logically. Give \
                    the table the same columns in both (`ALTER PUBLICATION … SET TABLE …`)."
            .to_owned()
            + &skip(slot),
        "58P01" => {
            format!("WAL that slot `{slot}` needs is gone: `SELECT pg_drop_replication_slot('{slot}')`; the relay makes a new one.")
        }
        _ => String::new(),
    }
}

fn missing_publication(message: &str, slot: &str) -> String {
    let name = quoted(message).unwrap_or("<name>").replace('"', "\"\"");
    format!("Make it again: `CREATE PUBLICATION \"{name}\" …`.") + &skip(slot)
}

/// Decoding uses the catalog as of each row, so a repair does not reach the rows before it.
fn skip(slot: &str) -> String {
    format!(
        " What was written before that stays unreadable for the slot, so the relay then makes a new one by itself, and clients are \
         told of the gap. (By hand, with the relay stopped: `SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())`.)"
    )
}

/// The first name in double quotes. Translations quote differently; then there is none.
fn quoted(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once('"')?;
    rest.split_once('"').map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_code_at_the_very_end_counts() {
        assert_eq!(split("slot is active (SQLSTATE 55006)"), ("slot is active", Some("55006")));
        assert_eq!(split("a (SQLSTATE 08006) b (SQLSTATE 42P01)"), ("a (SQLSTATE 08006) b", Some("42P01")));
        for without in
            ["", "no code", "(SQLSTATE 55006) then text", "x (SQLSTATE 5500)", "x (SQLSTATE 55é6)", "x (SQLSTATE 55006"]
        {
            assert_eq!(split(without), (without, None));
        }
    }

    #[test]
    fn what_passes_by_itself_is_retried_and_the_rest_is_the_operators() {
        for code in ["08006", "55006", "57P01", "57P02", "57P03", "57014", "53300", "40001", "XX000", "P0001"] {
            assert_eq!(remedy(Some(code)), Remedy::Retry, "{code}");
        }
        assert_eq!(remedy(None), Remedy::Retry);
        for code in ["28P01", "28000", "3D000", "42501", "42704", "55000", "0A000", "53400", "22023", "58P01"] {
            assert_eq!(remedy(Some(code)), Remedy::Operator, "{code}");
        }
    }

    #[test]
    fn advice_names_the_object_and_gives_the_sql() {
        let text = advice(Some("42704"), "publication \"it\" does not exist", "s1");
        assert!(
            text.contains("CREATE PUBLICATION \"it\"") && text.contains("pg_replication_slot_advance('s1'"),
            "{text}"
        );
        let text = advice(Some("42704"), "replication slot \"s1\" does not exist", "s1");
        assert!(text.contains("Slot `s1` was dropped"), "{text}");
        let text = advice(Some("55000"), "cannot read from logical replication slot \"s1\"", "s1");
        assert!(text.contains("pg_drop_replication_slot('s1')"), "{text}");
    }

    proptest! {
        #[test]
        fn any_text_is_split_without_panic(text in ".{0,80}", code in "[0-9A-Z]{5}") {
            let _ = split(&text);
            let with = format!("{text} (SQLSTATE {code})");
            prop_assert_eq!(split(&with), (&text[..], Some(&code[..])));
            let _ = (remedy(Some(&code)), label(Some(&code)), advice(Some(&code), &text, "s"));
        }
    }
}
