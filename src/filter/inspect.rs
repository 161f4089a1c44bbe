//! Values as Elixir's `inspect` prints them: the server that clients know puts them into its error texts.

use std::fmt::Write as _;

/// Of a string with unprintable characters, at most so many bytes are listed.
const BYTE_LIMIT: usize = 50;

/// Elixir's `String.printable?` for one character.
fn printable(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\t' | '\u{7}' | '\u{8}' | '\u{b}' | '\u{c}' | '\u{1b}' | '\u{7f}'
        | '\u{20}'..='\u{7e}' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..='\u{10ffff}')
}

/// `"a\"b"`; a string that isn't printable is listed by its bytes, `<<97, 0>>`.
pub(super) fn string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    if !text.chars().all(printable) {
        out.push_str("<<");
        for (i, byte) in text.bytes().take(BYTE_LIMIT).enumerate() {
            let _ = write!(out, "{}{byte}", if i > 0 { ", " } else { "" });
        }
        out.push_str(if text.len() > BYTE_LIMIT { ", ...>>" } else { ">>" });
        return out;
    }
    out.push('"');
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let escape = match c {
            '"' | '\\' => c,
            '#' if rest.peek() == Some(&'{') => c,
            '\n' => 'n',
            '\r' => 'r',
            '\t' => 't',
            '\u{7}' => 'a',
            '\u{8}' => 'b',
            '\u{b}' => 'v',
            '\u{c}' => 'f',
            '\u{1b}' => 'e',
            '\u{7f}' => 'd',
            _ => {
                out.push(c);
                continue;
            }
        };
        out.push('\\');
        out.push(escape);
    }
    out.push('"');
    out
}

/// `["a", "b"]`
pub(super) fn strings<'a>(items: impl IntoIterator<Item = &'a str>) -> String {
    format!("[{}]", items.into_iter().map(string).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_print_as_elixir_prints_them() {
        for (text, printed) in [
            ("wrong", r#""wrong""#),
            ("a\"b\\c\n\t", r#""a\"b\\c\n\t""#),
            ("#{x} #x", r##""\#{x} #x""##),
            ("öü😀", "\"öü😀\""),
            ("a\u{0}", "<<97, 0>>"),
            ("\u{85}", "<<194, 133>>"),
            ("\u{7f}", r#""\d""#),
        ] {
            assert_eq!(string(text), printed);
        }
        assert_eq!(strings([]), "[]");
        assert_eq!(strings(["foo", "hey"]), r#"["foo", "hey"]"#);
    }
}
