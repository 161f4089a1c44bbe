//! A row image as the text of a composite value (`record_in`), to hand it to Postgres as one parameter.

use crate::change::Value;

/// The literal of a row with these fields, in `attnum` order, dropped columns left out. Absent values become NULL: who calls
/// must have made sure that nothing reads them. `None` if a value is not UTF-8 and so can't be a text parameter.
pub(super) fn record<'a>(fields: impl Iterator<Item = Value<'a>>) -> Option<String> {
    let mut literal = String::from("(");
    for (i, field) in fields.enumerate() {
        if i > 0 {
            literal.push(',');
        }
        let Value::Text(bytes) = field else { continue };
        // Always quoted: then only the quote and the backslash are special, and an empty string is not NULL.
        literal.push('"');
        for char in std::str::from_utf8(bytes).ok()?.chars() {
            if matches!(char, '"' | '\\') {
                literal.push(char);
            }
            literal.push(char);
        }
        literal.push('"');
    }
    literal.push(')');
    Some(literal)
}

/// `"name"`, as a quoted identifier.
pub(super) fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `record_in` of Postgres, for quoted and empty fields.
    fn record_in(text: &str) -> Vec<Option<String>> {
        let mut chars =
            text.strip_prefix('(').and_then(|t| t.strip_suffix(')')).expect("parentheses").chars().peekable();
        let mut fields = Vec::new();
        loop {
            let mut field = None;
            let mut quoted = false;
            while let Some(c) = chars.next_if(|c| quoted || *c != ',') {
                let field = field.get_or_insert_with(String::new);
                match c {
                    '\\' => field.extend(chars.next()),
                    '"' if quoted && chars.peek() == Some(&'"') => field.extend(chars.next()),
                    '"' => quoted = !quoted,
                    other => field.push(other),
                }
            }
            fields.push(field);
            if chars.next().is_none() {
                return fields;
            }
        }
    }

    proptest! {
        #[test]
        fn every_text_survives(fields in proptest::collection::vec(proptest::option::of("[\"\\\\(),a '\n{}é]{0,8}|\\PC{0,8}"), 1..6)) {
            let values = fields.iter().map(|f| f.as_ref().map_or(Value::Null, |t| Value::Text(t.as_bytes())));
            let literal = record(values).expect("UTF-8");
            prop_assert_eq!(record_in(&literal), fields);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        assert_eq!(record([Value::Text(b"\xff")].into_iter()), None);
        assert_eq!(record([Value::Null, Value::Unchanged].into_iter()).as_deref(), Some("(,)"));
    }
}
