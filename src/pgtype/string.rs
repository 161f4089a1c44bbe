//! JSON strings, written from bytes that are nearly always plain ASCII.

const HIGH: u64 = splat(0x80);

const fn splat(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// High bits at the bytes that JSON wants escaped. The lowest is exact; above it a borrow may add false ones.
fn escapes(word: u64) -> u64 {
    let quote = word ^ splat(b'"');
    let backslash = word ^ splat(b'\\');
    let control = word.wrapping_sub(splat(0x20)) & !word;
    let quote = quote.wrapping_sub(splat(1)) & !quote;
    let backslash = backslash.wrapping_sub(splat(1)) & !backslash;
    (control | quote | backslash) & HIGH
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// ASCII without anything to escape: may be copied as it is.
pub(super) fn is_plain(text: &[u8]) -> bool {
    let dirty = |chunk: &[u8]| {
        let word = word(chunk);
        (escapes(word) | word) & HIGH
    };
    let Some(last) = text.len().checked_sub(8) else {
        return text.iter().all(|b| *b < 0x80 && !needs_escape(*b));
    };
    // The last word overlaps the one before it, which spares a loop over single bytes.
    let whole = text.chunks_exact(8).fold(0, |seen, chunk| seen | dirty(chunk));
    whole | dirty(&text[last..]) == 0
}

/// Index of the first byte at or after `from` that must be escaped.
fn next_escape(text: &[u8], from: usize) -> usize {
    let mut at = from;
    while let Some(chunk) = text.get(at..at + 8) {
        let found = escapes(word(chunk));
        if found != 0 {
            return at + (found.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    text[at..].iter().position(|b| needs_escape(*b)).map_or(text.len(), |i| at + i)
}

fn escape(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0C => b'f',
        _ => {
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

/// Appends the inside of a JSON string; the text must be UTF-8.
fn escape_all(text: &[u8], out: &mut Vec<u8>) {
    let mut start = 0;
    loop {
        let at = next_escape(text, start);
        out.extend_from_slice(&text[start..at]);
        let Some(byte) = text.get(at) else { return };
        escape(*byte, out);
        start = at + 1;
    }
}

/// Appends a JSON string with its quotes. What is not UTF-8 becomes U+FFFD (only an SQL_ASCII database can send that).
pub fn write_json_string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    if is_plain(text) {
        out.extend_from_slice(text);
    } else if std::str::from_utf8(text).is_ok() {
        escape_all(text, out);
    } else {
        for chunk in text.utf8_chunks() {
            escape_all(chunk.valid().as_bytes(), out);
            if !chunk.invalid().is_empty() {
                out.extend_from_slice("\u{FFFD}".as_bytes());
            }
        }
    }
    out.push(b'"');
}

/// How many bytes [`write_json_string`] appends for this text.
pub fn json_string_len(text: &str) -> usize {
    let extra = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0C => 1,
        0..0x20 => 5,
        _ => 0,
    };
    if is_plain(text.as_bytes()) {
        return text.len() + 2;
    }
    text.len() + 2 + text.bytes().map(extra).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write_json_string(text, &mut out);
        out
    }

    #[test]
    fn each_byte_at_each_place_of_a_word_is_escaped_or_kept() {
        for byte in 0..0x80u8 {
            for place in 0..17 {
                let mut text = vec![b'a'; 17];
                text[place] = byte;
                let parsed: String = serde_json::from_slice(&written(&text)).unwrap();
                assert_eq!(parsed.as_bytes(), text);
            }
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_become_the_replacement_character() {
        assert_eq!(written(b"a\xFFb\"\xC3"), "\"a\u{FFFD}b\\\"\u{FFFD}\"".as_bytes());
    }

    proptest! {
        #[test]
        fn strings_come_back(text in any::<String>()) {
            let out = written(text.as_bytes());
            prop_assert_eq!(&serde_json::from_slice::<String>(&out).unwrap(), &text);
            prop_assert_eq!(out.len(), json_string_len(&text));
        }

        #[test]
        fn text_full_of_escapes_comes_back(text in "[a\"\\\\\n\r\t\u{1}\u{1f}ö€😀]{0,40}") {
            let out = written(text.as_bytes());
            prop_assert_eq!(&serde_json::from_slice::<String>(&out).unwrap(), &text);
            prop_assert_eq!(out.len(), json_string_len(&text));
        }

        #[test]
        fn any_bytes_give_what_a_lossy_conversion_gives(raw in proptest::collection::vec(any::<u8>(), 0..60)) {
            let parsed: String = serde_json::from_slice(&written(&raw)).unwrap();
            prop_assert_eq!(parsed, String::from_utf8_lossy(&raw).into_owned());
        }
    }
}
