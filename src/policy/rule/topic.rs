//! Values that a policy makes of a channel's topic alone, exactly as Postgres makes them.
//!
//! They are made once for a topic and stand in the rule as columns of the judged row: whatever is looked up by them is looked up by
//! an index, as if they were. Rejected: functions in the rule's expressions, which would be called for each row of facts.
//!
//! Everything here is about characters of valid UTF-8 and about bytes; a database of another encoding, and collations under
//! which different texts are equal, have no rule at all.

use std::borrow::Cow;
use std::fmt;

use super::Conversion;
use super::convert::convert;
use crate::policy::term::Fault;

/// A value made of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicValue {
    /// The topic.
    Topic,
    /// A constant, as a part of others.
    Text(Box<str>),
    /// `nullif(…, text)`.
    NullIf(Box<TopicValue>, Box<str>),
    /// `split_part(…, delimiter, n)`; n is not 0.
    Part(Box<TopicValue>, Box<str>, i32),
    /// `(string_to_array(…, delimiter))[n]`.
    Element(Box<TopicValue>, Box<str>, i32),
    /// `substring(… from n)`, `substring(… from n for length)`; the length is not negative.
    Substring(Box<TopicValue>, i32, Option<i32>),
    /// `left(…, n)`.
    Left(Box<TopicValue>, i32),
    /// `right(…, n)`.
    Right(Box<TopicValue>, i32),
    /// `replace(…, from, to)`.
    Replace(Box<TopicValue>, Box<str>, Box<str>),
    /// `… || …`.
    Joined(Vec<TopicValue>),
    /// What `prefix || x || suffix = …` says x is; what equals no text if it says that there is no such x. Not a part of others.
    Inside(Box<TopicValue>, Box<str>, Box<str>),
    /// `… LIKE pattern`.
    Like(Box<TopicValue>, Pattern),
    /// `starts_with(…, text)`.
    StartsWith(Box<TopicValue>, Box<str>),
    /// `…::type`, which may raise.
    Cast(Conversion, Box<TopicValue>),
}

/// Not UTF-8, which every text of the database and of a token is.
const NO_TEXT: &[u8] = b"\xff";

impl TopicValue {
    /// The value as its type prints it; `None` is NULL. An error where Postgres would raise one, or is to be asked.
    pub fn of<'t>(&'t self, topic: &'t str) -> Result<Option<Cow<'t, [u8]>>, Fault> {
        if let TopicValue::Inside(of, prefix, suffix) = self {
            let inside = |text: &str| Some(text.strip_prefix(&**prefix)?.strip_suffix(&**suffix)?.to_owned());
            let Some(text) = of.text(topic)? else { return Ok(None) };
            return Ok(Some(inside(&text).map_or(Cow::Borrowed(NO_TEXT), |text| Cow::Owned(text.into_bytes()))));
        }
        Ok(self.text(topic)?.map(|text| match text {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        }))
    }

    /// Whether Postgres raises an error for some topics.
    pub fn may_raise(&self) -> bool {
        match self {
            TopicValue::Cast(Conversion::BoolToText, of) => of.may_raise(),
            TopicValue::Cast(..) => true,
            TopicValue::Topic | TopicValue::Text(_) => false,
            TopicValue::Joined(parts) => parts.iter().any(TopicValue::may_raise),
            TopicValue::NullIf(of, _)
            | TopicValue::Part(of, ..)
            | TopicValue::Element(of, ..)
            | TopicValue::Substring(of, ..)
            | TopicValue::Left(of, _)
            | TopicValue::Right(of, _)
            | TopicValue::Replace(of, ..)
            | TopicValue::Inside(of, ..)
            | TopicValue::Like(of, _)
            | TopicValue::StartsWith(of, _) => of.may_raise(),
        }
    }

    fn text<'t>(&'t self, topic: &'t str) -> Result<Option<Cow<'t, str>>, Fault> {
        let of = match self {
            TopicValue::Topic => return Ok(Some(Cow::Borrowed(topic))),
            TopicValue::Text(text) => return Ok(Some(Cow::Borrowed(text))),
            TopicValue::Joined(parts) => {
                let mut joined = String::new();
                for part in parts {
                    let Some(text) = part.text(topic)? else { return Ok(None) };
                    joined.push_str(&text);
                }
                return Ok(Some(Cow::Owned(joined)));
            }
            TopicValue::Inside(..) => return Err(Fault::Unsure),
            TopicValue::NullIf(of, _)
            | TopicValue::Part(of, ..)
            | TopicValue::Element(of, ..)
            | TopicValue::Substring(of, ..)
            | TopicValue::Left(of, _)
            | TopicValue::Right(of, _)
            | TopicValue::Replace(of, ..)
            | TopicValue::Like(of, _)
            | TopicValue::StartsWith(of, _)
            | TopicValue::Cast(_, of) => of,
        };
        // Every one of them is strict.
        let Some(text) = of.text(topic)? else { return Ok(None) };
        Ok(match self {
            TopicValue::NullIf(_, other) => (*text != **other).then_some(text),
            TopicValue::Part(_, delimiter, n) => Some(cut(text, |text| part(text, delimiter, *n))),
            TopicValue::Element(_, delimiter, n) => {
                let n = usize::try_from(*n).ok().and_then(|n| n.checked_sub(1));
                let element = n.and_then(|n| element(&text, delimiter, n));
                element.map(|element| Cow::Owned(element.to_owned()))
            }
            TopicValue::Substring(_, from, length) => Some(cut(text, |text| substring(text, *from, *length))),
            TopicValue::Left(_, n) => Some(cut(text, |text| &text[..clipped(text, length_of(text, *n))])),
            TopicValue::Right(_, n) => Some(cut(text, |text| {
                let left_out = if *n < 0 { -i64::from(*n) } else { length_of(text, -1) + 1 - i64::from(*n) };
                &text[clipped(text, left_out)..]
            })),
            TopicValue::Replace(_, from, to) => {
                let unchanged = from.is_empty() || !text.contains(&**from);
                Some(if unchanged { text } else { Cow::Owned(text.replace(&**from, to)) })
            }
            TopicValue::Like(_, pattern) => Some(boolean(pattern.matches(&text))),
            TopicValue::StartsWith(_, prefix) => Some(boolean(text.starts_with(&**prefix))),
            TopicValue::Cast(conversion, _) => {
                let value = convert(*conversion, text.as_bytes())?.into_owned();
                Some(Cow::Owned(String::from_utf8(value).map_err(|_| Fault::Unsure)?))
            }
            _ => return Err(Fault::Unsure),
        })
    }
}

fn boolean(value: bool) -> Cow<'static, str> {
    Cow::Borrowed(if value { "t" } else { "f" })
}

fn cut<'t>(text: Cow<'t, str>, piece: impl for<'s> FnOnce(&'s str) -> &'s str) -> Cow<'t, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(piece(text)),
        Cow::Owned(text) => Cow::Owned(piece(&text).to_owned()),
    }
}

/// `split_part`: from the left for a positive n, from the right for a negative one.
fn part<'t>(text: &'t str, delimiter: &str, n: i32) -> &'t str {
    let n = i64::from(n);
    if delimiter.is_empty() {
        return if matches!(n, 1 | -1) { text } else { "" };
    }
    let place = match n {
        1.. => n - 1,
        _ => text.split(delimiter).count() as i64 + n,
    };
    usize::try_from(place).ok().and_then(|place| text.split(delimiter).nth(place)).unwrap_or("")
}

/// Of `string_to_array`, counted from 0.
fn element<'t>(text: &'t str, delimiter: &str, n: usize) -> Option<&'t str> {
    match (text, delimiter) {
        ("", _) => None,
        (_, "") => (n == 0).then_some(text),
        _ => text.split(delimiter).nth(n),
    }
}

fn substring(text: &str, from: i32, length: Option<i32>) -> &str {
    let from = i64::from(from);
    let start = from.max(1);
    let end = length.map(|length| from + i64::from(length));
    if end.is_some_and(|end| end < start) {
        return "";
    }
    let text = &text[clipped(text, start - 1)..];
    end.map_or(text, |end| &text[..clipped(text, end - start)])
}

/// So many characters, or all but so many.
fn length_of(text: &str, n: i32) -> i64 {
    if n < 0 { text.chars().count() as i64 + i64::from(n) } else { i64::from(n) }
}

/// The bytes of the first characters.
fn clipped(text: &str, characters: i64) -> usize {
    match usize::try_from(characters) {
        Ok(count) => text.char_indices().nth(count).map_or(text.len(), |(at, _)| at),
        Err(_) => 0,
    }
}

/// A pattern of LIKE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: Box<str>,
    tokens: Box<[Token]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    /// `%`.
    Any,
    /// `_`.
    One,
    Is(char),
}

impl Pattern {
    /// `None` for one that ends in a lone backslash, about which Postgres complains, or not, depending on the text.
    pub(super) fn new(text: &str) -> Option<Pattern> {
        let mut tokens = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '%' => Token::Any,
                '_' => Token::One,
                '\\' => Token::Is(chars.next()?),
                c => Token::Is(c),
            });
        }
        Some(Pattern { text: text.into(), tokens: tokens.into() })
    }

    /// `like_escape(text, escape)`: the same with backslashes. `None` for an escape of several characters.
    pub(super) fn escaped(text: &str, escape: &str) -> Option<String> {
        let mut characters = escape.chars();
        let escape = match (characters.next(), characters.next()) {
            (first, None) => first,
            _ => return None,
        };
        if escape == Some('\\') {
            return Some(text.to_owned());
        }
        let (mut escaped, mut after) = (String::new(), false);
        for c in text.chars() {
            match c {
                c if Some(c) == escape && !after => {
                    escaped.push('\\');
                    after = true;
                    continue;
                }
                '\\' if after => escaped.push('\\'),
                '\\' => escaped.push_str("\\\\"),
                c => escaped.push(c),
            }
            after = false;
        }
        Some(escaped)
    }

    fn matches(&self, text: &str) -> bool {
        let (mut rest, mut at) = (text, 0);
        // After the last `%`, and what it has left over.
        let mut again: Option<(usize, &str)> = None;
        loop {
            let mut chars = rest.chars();
            match (self.tokens.get(at), chars.next()) {
                (None, None) => return true,
                (Some(Token::Any), _) => {
                    at += 1;
                    again = Some((at, rest));
                    continue;
                }
                (Some(Token::One), Some(_)) => {
                    (rest, at) = (chars.as_str(), at + 1);
                    continue;
                }
                (Some(Token::Is(wanted)), Some(c)) if *wanted == c => {
                    (rest, at) = (chars.as_str(), at + 1);
                    continue;
                }
                _ => {}
            }
            let Some((after, from)) = &mut again else { return false };
            let mut chars = from.chars();
            if chars.next().is_none() {
                return false;
            }
            *from = chars.as_str();
            (rest, at) = (from, *after);
        }
    }
}

/// As SQL that a person would write.
impl fmt::Display for TopicValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
        match self {
            TopicValue::Topic => f.write_str("topic"),
            TopicValue::Text(text) => f.write_str(&quoted(text)),
            TopicValue::NullIf(of, text) => write!(f, "nullif({of}, {})", quoted(text)),
            TopicValue::Part(of, delimiter, n) => write!(f, "split_part({of}, {}, {n})", quoted(delimiter)),
            TopicValue::Element(of, delimiter, n) => write!(f, "(string_to_array({of}, {}))[{n}]", quoted(delimiter)),
            TopicValue::Substring(of, from, None) => write!(f, "substring({of} from {from})"),
            TopicValue::Substring(of, from, Some(length)) => write!(f, "substring({of} from {from} for {length})"),
            TopicValue::Left(of, n) => write!(f, "left({of}, {n})"),
            TopicValue::Right(of, n) => write!(f, "right({of}, {n})"),
            TopicValue::Replace(of, from, to) => write!(f, "replace({of}, {}, {})", quoted(from), quoted(to)),
            TopicValue::Joined(parts) => {
                let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
                write!(f, "({})", parts.join(" || "))
            }
            TopicValue::Inside(of, prefix, suffix) => match (&**prefix, &**suffix) {
                (prefix, "") => write!(f, "{of} after {}", quoted(prefix)),
                ("", suffix) => write!(f, "{of} before {}", quoted(suffix)),
                (prefix, suffix) => write!(f, "{of} between {} and {}", quoted(prefix), quoted(suffix)),
            },
            TopicValue::Like(of, pattern) => write!(f, "{of} like {}", quoted(&pattern.text)),
            TopicValue::StartsWith(of, prefix) => write!(f, "starts_with({of}, {})", quoted(prefix)),
            TopicValue::Cast(conversion, of) => write!(f, "({of}){}", conversion.suffix()),
        }
    }
}

#[cfg(test)]
#[path = "topic_tests.rs"]
mod tests;
