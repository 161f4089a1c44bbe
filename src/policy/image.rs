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

/// The fields of a row as `record_out` writes it, `None` being NULL; the opposite of [`record`]. `None` if it is no such text.
pub(super) fn fields(text: &[u8]) -> Option<Vec<Option<Vec<u8>>>> {
    let mut rest = text.strip_prefix(b"(")?.strip_suffix(b")")?.iter().copied().peekable();
    let mut fields = Vec::new();
    loop {
        let mut field = None;
        let mut quoted = false;
        while let Some(byte) = rest.next_if(|byte| quoted || *byte != b',') {
            let field = field.get_or_insert_with(Vec::new);
            match byte {
                b'\\' => field.push(rest.next()?),
                b'"' if quoted && rest.next_if_eq(&b'"').is_some() => field.push(b'"'),
                b'"' => quoted = !quoted,
                other => field.push(other),
            }
        }
        fields.push(field);
        if quoted {
            return None;
        }
        if rest.next().is_none() {
            return Some(fields);
        }
    }
}

/// `"name"`, as a quoted identifier.
pub(super) fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_text_survives(fields in proptest::collection::vec(proptest::option::of("[\"\\\\(),a '\n{}é]{0,8}|\\PC{0,8}"), 1..6)) {
            let values = fields.iter().map(|f| f.as_ref().map_or(Value::Null, |t| Value::Text(t.as_bytes())));
            let literal = record(values).expect("UTF-8");
            let fields: Vec<_> = fields.iter().map(|f| f.as_ref().map(|f| f.as_bytes().to_vec())).collect();
            prop_assert_eq!(super::fields(literal.as_bytes()), Some(fields));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..40)) {
            let _ = super::fields(&bytes);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        assert_eq!(record([Value::Text(b"\xff")].into_iter()), None);
        assert_eq!(record([Value::Null, Value::Unchanged].into_iter()).as_deref(), Some("(,)"));
    }
}
