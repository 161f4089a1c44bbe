//! The text of arrays, vectors, composites and hstore, written as JSON in one pass.
//!
//! The readers accept what `array_out`, `record_out` and `hstore_out` print, and answer `None` for anything else; what they
//! have appended by then is the caller's to remove. None of them recurses over its input: only over the type, which is finite.

use super::json::{JsonKind, is_number, write_json};
use super::string::write_json_string;

/// Postgres's MAXDIM.
const MAX_DIMENSIONS: usize = 6;

/// Reads a run in double quotes that begins after the opening one; backslash escapes, and a doubled quote too if `doubled`.
/// Returns the content and the index behind the closing quote.
fn quoted<'a>(text: &'a [u8], start: usize, scratch: &'a mut Vec<u8>) -> Option<(&'a [u8], usize)> {
    let plain = text[start..].iter().position(|b| matches!(b, b'"' | b'\\'))? + start;
    if text[plain] == b'"' {
        return Some((&text[start..plain], plain + 1));
    }
    scratch.clear();
    scratch.extend_from_slice(&text[start..plain]);
    let mut at = plain;
    loop {
        match *text.get(at)? {
            b'"' => return Some((scratch, at + 1)),
            b'\\' => {
                scratch.push(*text.get(at + 1)?);
                at += 2;
            }
            byte => {
                scratch.push(byte);
                at += 1;
            }
        }
    }
}

/// The index behind a prefix such as `[0:1][1:3]=`, if there is one.
fn skip_bounds(text: &[u8]) -> Option<usize> {
    if text.first() != Some(&b'[') {
        return Some(0);
    }
    let end = text.iter().position(|b| *b == b'=')?;
    let legal = |b: &u8| matches!(b, b'[' | b']' | b':' | b'+' | b'-' | b'0'..=b'9');
    (text[..end].iter().all(legal) && text[end - 1] == b']').then_some(end + 1)
}

/// Appends a JSON array, nested as the text is.
pub(super) fn write_array(element: &JsonKind, delimiter: u8, text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut at = skip_bounds(text)?;
    if &text[at..] == b"{}" {
        out.extend_from_slice(b"[]");
        return Some(());
    }
    let mut scratch = Vec::new();
    let mut depth = 0;
    loop {
        // A value begins here.
        match *text.get(at)? {
            b'{' if depth < MAX_DIMENSIONS => {
                depth += 1;
                out.push(b'[');
                at += 1;
                continue;
            }
            _ if depth == 0 => return None,
            b'"' => {
                let (content, end) = quoted(text, at + 1, &mut scratch)?;
                write_json(element, content, out);
                at = end;
            }
            _ => {
                let length = text[at..].iter().position(|b| *b == delimiter || *b == b'}')?;
                let content = &text[at..at + length];
                if content.is_empty() || content.iter().any(|b| matches!(b, b'{' | b'"' | b'\\')) {
                    return None;
                }
                if content.eq_ignore_ascii_case(b"null") {
                    out.extend_from_slice(b"null");
                } else {
                    write_json(element, content, out);
                }
                at += length;
            }
        }
        // A value has ended here.
        while text.get(at) == Some(&b'}') {
            out.push(b']');
            at += 1;
            depth -= 1;
            if depth == 0 {
                return (at == text.len()).then_some(());
            }
        }
        if *text.get(at)? != delimiter {
            return None;
        }
        out.push(b',');
        at += 1;
    }
}

/// Calls `each` for the elements of an array whose elements are divided by commas, whatever its dimensions; `None` for NULL. What
/// it has been called for when this answers `None` is nothing.
pub fn elements(text: &[u8], each: &mut dyn FnMut(Option<&[u8]>)) -> Option<()> {
    let mut at = skip_bounds(text)?;
    if &text[at..] == b"{}" {
        return Some(());
    }
    let mut scratch = Vec::new();
    let mut depth = 0;
    loop {
        match *text.get(at)? {
            b'{' if depth < MAX_DIMENSIONS => {
                depth += 1;
                at += 1;
                continue;
            }
            _ if depth == 0 => return None,
            b'"' => {
                let (content, end) = quoted(text, at + 1, &mut scratch)?;
                each(Some(content));
                at = end;
            }
            _ => {
                let length = text[at..].iter().position(|b| matches!(b, b',' | b'}'))?;
                let content = &text[at..at + length];
                if content.is_empty() || content.iter().any(|b| matches!(b, b'{' | b'"' | b'\\')) {
                    return None;
                }
                each((!content.eq_ignore_ascii_case(b"null")).then_some(content));
                at += length;
            }
        }
        while text.get(at) == Some(&b'}') {
            at += 1;
            depth -= 1;
            if depth == 0 {
                return (at == text.len()).then_some(());
            }
        }
        if *text.get(at)? != b',' {
            return None;
        }
        at += 1;
    }
}

/// Appends a JSON array of the words between single blanks.
pub(super) fn write_vector(element: &JsonKind, text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    out.push(b'[');
    let words = text.split(|b| *b == b' ').filter(|_| !text.is_empty());
    for (i, word) in words.enumerate() {
        if !is_number(word) {
            return None;
        }
        if i > 0 {
            out.push(b',');
        }
        write_json(element, word, out);
    }
    out.push(b']');
    Some(())
}

/// Reads one field of a record up to its `,` or `)`. `None` inside stands for NULL.
fn field<'a>(text: &'a [u8], start: usize, scratch: &'a mut Vec<u8>) -> Option<(Option<&'a [u8]>, usize)> {
    let end = text[start..].iter().position(|b| matches!(b, b',' | b')' | b'"' | b'\\'))? + start;
    if matches!(text[end], b',' | b')') {
        return Some(((end > start).then(|| &text[start..end]), end));
    }
    scratch.clear();
    let mut inside = false;
    let mut at = start;
    loop {
        match *text.get(at)? {
            b',' | b')' if !inside => return Some((Some(scratch), at)),
            b'\\' => {
                at += 1;
                scratch.push(*text.get(at)?);
            }
            b'"' if !inside => inside = true,
            b'"' if text.get(at + 1) == Some(&b'"') => {
                at += 1;
                scratch.push(b'"');
            }
            b'"' => inside = false,
            byte => scratch.push(byte),
        }
        at += 1;
    }
}

/// Appends a JSON object with these keys.
pub(super) fn write_record(fields: &[(Box<[u8]>, JsonKind)], text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    if text.first() != Some(&b'(') {
        return None;
    }
    if fields.is_empty() {
        out.extend_from_slice(b"{}");
        return (text == b"()").then_some(());
    }
    let mut scratch = Vec::new();
    let mut at = 1;
    for (i, (key, kind)) in fields.iter().enumerate() {
        out.push(if i == 0 { b'{' } else { b',' });
        out.extend_from_slice(key);
        let (content, end) = field(text, at, &mut scratch)?;
        match content {
            None => out.extend_from_slice(b"null"),
            Some(content) => write_json(kind, content, out),
        }
        let last = i + 1 == fields.len();
        if text[end] != if last { b')' } else { b',' } {
            return None;
        }
        at = end + 1;
    }
    out.push(b'}');
    (at == text.len()).then_some(())
}

/// Appends a JSON object of strings and nulls.
pub(super) fn write_hstore(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    out.push(b'{');
    let mut scratch = Vec::new();
    let mut at = 0;
    while at < text.len() {
        if at > 0 {
            at += text[at..].starts_with(b", ").then_some(2)?;
            out.push(b',');
        }
        at += text[at..].starts_with(b"\"").then_some(1)?;
        let (key, end) = quoted(text, at, &mut scratch)?;
        write_json_string(key, out);
        out.push(b':');
        at = end + text[end..].starts_with(b"=>").then_some(2)?;
        if text[at..].starts_with(b"NULL") {
            out.extend_from_slice(b"null");
            at += 4;
        } else {
            at += text[at..].starts_with(b"\"").then_some(1)?;
            let (value, end) = quoted(text, at, &mut scratch)?;
            write_json_string(value, out);
            at = end;
        }
    }
    out.push(b'}');
    Some(())
}
