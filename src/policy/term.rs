//! What a policy takes from the token: a small expression over the claims settings, evaluated exactly as Postgres would.
//!
//! Exactness has three outcomes, not two: a value, an error that Postgres would raise ([`Fault::Raises`]), and *unsure*
//! ([`Fault::Unsure`]) where reproducing Postgres is not worth the risk (a float's digits, the text of a JSON object, the
//! integer spellings that Postgres 16 added). Unsure is never guessed: Postgres is asked for that principal.

use std::borrow::Cow;
use std::fmt;

use serde_json::{Map, Value as Json};

use crate::claims::Principal;

/// Types that a term can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TermType {
    /// `text`.
    Text,
    /// `uuid`.
    Uuid,
    /// `int2`, `int4`, `int8` by their size in bytes.
    Int(u8),
    /// `json`.
    Json,
    /// `jsonb`.
    Jsonb,
}

/// A setting that [`crate::pg::assume`] makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// `request.jwt.claims`: all claims as JSON.
    Claims,
    /// `request.jwt.claim.sub`: the subject; empty if it is no string.
    Subject,
    /// `request.jwt.claim.role`.
    Role,
}

impl Setting {
    /// Its name in the database.
    pub fn name(self) -> &'static str {
        match self {
            Setting::Claims => "request.jwt.claims",
            Setting::Subject => "request.jwt.claim.sub",
            Setting::Role => "request.jwt.claim.role",
        }
    }
}

/// An expression over the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Term {
    /// `current_setting(…, true)`, type text.
    Setting(Setting),
    /// `nullif(…, '')`, type text.
    NullIfEmpty(Box<Term>),
    /// `coalesce(…)` of texts.
    Coalesce(Vec<Term>),
    /// `->`: a member of a JSON object.
    Member(Box<Term>, String),
    /// `->>`: a member as text.
    MemberText(Box<Term>, String),
    /// `::`; only the pairs that [`Term::cast`] lets through.
    Cast(Box<Term>, TermType),
}

/// Why there is no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Postgres would raise an error.
    Raises,
    /// Only Postgres knows.
    Unsure,
}

#[derive(Debug, Clone)]
enum Value<'a> {
    Null,
    /// The text of all claims: the only text that may be cast to JSON.
    Claims,
    Text(Cow<'a, str>),
    Uuid(String),
    Int(i64),
    Object(&'a Map<String, Json>),
    Json(&'a Json),
}

impl Term {
    /// Its type; every constructor keeps it right.
    pub fn term_type(&self) -> TermType {
        match self {
            Term::Setting(_) | Term::NullIfEmpty(_) | Term::Coalesce(_) | Term::MemberText(..) => TermType::Text,
            Term::Member(from, _) => from.term_type(),
            Term::Cast(_, to) => *to,
        }
    }

    /// `self::to`, or `None` if that cast is not one we reproduce.
    pub fn cast(self, to: TermType) -> Option<Term> {
        let allowed = match (self.term_type(), to) {
            (from, to) if from == to => return Some(self),
            (TermType::Text, TermType::Json | TermType::Jsonb) => self.is_claims(),
            (TermType::Text, TermType::Uuid | TermType::Int(_))
            | (TermType::Uuid | TermType::Int(_), TermType::Text)
            | (TermType::Int(_), TermType::Int(_)) => true,
            _ => false,
        };
        allowed.then(|| Term::Cast(Box::new(self), to))
    }

    /// `self -> key` or, as text, `self ->> key`.
    pub fn member(self, key: &str, as_text: bool) -> Option<Term> {
        if !matches!(self.term_type(), TermType::Json | TermType::Jsonb) {
            return None;
        }
        let (from, key) = (Box::new(self), key.to_owned());
        Some(if as_text { Term::MemberText(from, key) } else { Term::Member(from, key) })
    }

    /// The text is that of all claims, whatever they are.
    fn is_claims(&self) -> bool {
        match self {
            Term::Setting(setting) => *setting == Setting::Claims,
            Term::NullIfEmpty(inner) => inner.is_claims(),
            _ => false,
        }
    }

    /// The value as the text that Postgres would print for it: for a uuid or an integer, the one canonical form. `None` is NULL.
    /// Terms of type JSON have no such text here and are unsure.
    pub fn text(&self, principal: &Principal) -> Result<Option<String>, Fault> {
        match self.value(principal)? {
            Value::Null => Ok(None),
            Value::Claims => Ok(Some(principal.claims_json.to_string())),
            Value::Text(text) => Ok(Some(text.into_owned())),
            Value::Uuid(text) => Ok(Some(text)),
            Value::Int(number) => Ok(Some(number.to_string())),
            Value::Object(_) | Value::Json(_) => Err(Fault::Unsure),
        }
    }

    fn value<'a>(&self, principal: &'a Principal) -> Result<Value<'a>, Fault> {
        match self {
            Term::Setting(Setting::Claims) => Ok(Value::Claims),
            Term::Setting(Setting::Subject) => setting(&principal.subject),
            Term::Setting(Setting::Role) => setting(&principal.role),
            Term::NullIfEmpty(inner) => Ok(match inner.value(principal)? {
                Value::Text(text) if text.is_empty() => Value::Null,
                other => other,
            }),
            Term::Coalesce(terms) => {
                for term in terms {
                    match term.value(principal)? {
                        Value::Null => {}
                        value => return Ok(value),
                    }
                }
                Ok(Value::Null)
            }
            Term::Member(from, key) => Ok(member(from.value(principal)?, key)?.map_or(Value::Null, Value::Json)),
            Term::MemberText(from, key) => match member(from.value(principal)?, key)? {
                None | Some(Json::Null) => Ok(Value::Null),
                Some(Json::Bool(value)) => Ok(Value::Text(if *value { "true" } else { "false" }.into())),
                Some(Json::String(text)) => Ok(Value::Text(text.as_str().into())),
                Some(Json::Number(number)) if number.is_i64() => Ok(Value::Text(number.to_string().into())),
                Some(Json::Number(_) | Json::Array(_) | Json::Object(_)) => Err(Fault::Unsure),
            },
            Term::Cast(inner, to) => cast(inner.value(principal)?, *to, principal),
        }
    }
}

fn setting(text: &str) -> Result<Value<'_>, Fault> {
    // A NUL cannot even be sent as a setting.
    if text.contains('\0') { Err(Fault::Unsure) } else { Ok(Value::Text(text.into())) }
}

fn member<'a>(from: Value<'a>, key: &str) -> Result<Option<&'a Json>, Fault> {
    match from {
        Value::Object(map) | Value::Json(Json::Object(map)) => Ok(map.get(key)),
        // A member of a scalar, an array or NULL is NULL.
        Value::Json(_) | Value::Null => Ok(None),
        Value::Claims | Value::Text(_) | Value::Uuid(_) | Value::Int(_) => Err(Fault::Unsure),
    }
}

fn cast<'a>(value: Value<'a>, to: TermType, principal: &'a Principal) -> Result<Value<'a>, Fault> {
    match (value, to) {
        (Value::Null, _) => Ok(Value::Null),
        (Value::Claims, TermType::Json | TermType::Jsonb) => {
            // `\u0000` is an error for jsonb, and for json as soon as a member is read.
            let json = &*principal.claims_json;
            let has_nul = json.as_bytes().contains(&b'\\') && json.contains("\\u0000");
            if has_nul { Err(Fault::Unsure) } else { Ok(Value::Object(&principal.claims)) }
        }
        (Value::Text(text), TermType::Uuid) => uuid(&text).map(Value::Uuid).ok_or(Fault::Raises),
        (Value::Text(text), TermType::Int(size)) => in_range(integer(&text)?, size),
        (Value::Int(number), TermType::Int(size)) => in_range(number, size),
        (Value::Uuid(text), TermType::Text) => Ok(Value::Text(text.into())),
        (Value::Int(number), TermType::Text) => Ok(Value::Text(number.to_string().into())),
        _ => Err(Fault::Unsure),
    }
}

/// `uuid_in`: 32 hexadecimal digits of either case, a hyphen allowed after every fourth, all in braces or not; no spaces.
/// Gives the canonical form.
pub(super) fn uuid(text: &str) -> Option<String> {
    let text = match text.strip_prefix('{') {
        Some(inner) => inner.strip_suffix('}')?,
        None => text,
    };
    let mut rest = text.as_bytes();
    let mut canonical = String::with_capacity(36);
    for byte in 0..16 {
        let [high, low, tail @ ..] = rest else { return None };
        for digit in [high, low] {
            if !digit.is_ascii_hexdigit() {
                return None;
            }
            canonical.push(digit.to_ascii_lowercase() as char);
        }
        rest = match tail {
            [b'-', after @ ..] if byte % 2 == 1 && byte < 15 => after,
            tail => tail,
        };
        if matches!(byte, 3 | 5 | 7 | 9) {
            canonical.push('-');
        }
    }
    rest.is_empty().then_some(canonical)
}

/// `int8in` for what every version reads alike: blanks around, a sign, decimal digits. Postgres 16 added hexadecimal, octal,
/// binary and underscores, all of which begin with a digit.
pub(super) fn integer(text: &str) -> Result<i64, Fault> {
    let trimmed = text.trim_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let digits = trimmed.strip_prefix(['-', '+']).unwrap_or(trimmed);
    let mut bytes = digits.bytes();
    match bytes.next() {
        Some(first) if first.is_ascii_digit() => {}
        _ => return Err(Fault::Raises),
    }
    if bytes.clone().all(|b| b.is_ascii_digit()) {
        // What does not parse now is out of range.
        return trimmed.parse().map_err(|_| Fault::Raises);
    }
    let newer = bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_');
    Err(if newer { Fault::Unsure } else { Fault::Raises })
}

fn in_range<'a>(number: i64, size: u8) -> Result<Value<'a>, Fault> {
    let fits = match size {
        2 => i16::try_from(number).is_ok(),
        4 => i32::try_from(number).is_ok(),
        _ => true,
    };
    if fits { Ok(Value::Int(number)) } else { Err(Fault::Raises) }
}

impl fmt::Display for TermType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TermType::Text => f.write_str("text"),
            TermType::Uuid => f.write_str("uuid"),
            TermType::Int(size) => write!(f, "int{size}"),
            TermType::Json => f.write_str("json"),
            TermType::Jsonb => f.write_str("jsonb"),
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Term::Setting(Setting::Claims) => f.write_str("claims"),
            Term::Setting(Setting::Subject) => f.write_str("claim.sub"),
            Term::Setting(Setting::Role) => f.write_str("claim.role"),
            Term::NullIfEmpty(inner) => write!(f, "nullif({inner}, '')"),
            Term::Coalesce(terms) => {
                f.write_str("coalesce(")?;
                for (i, term) in terms.iter().enumerate() {
                    write!(f, "{}{term}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str(")")
            }
            Term::Member(from, key) => write!(f, "{from}->'{key}'"),
            Term::MemberText(from, key) => write!(f, "{from}->>'{key}'"),
            Term::Cast(inner, to) => write!(f, "({inner})::{to}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_read_as_postgres_reads_them() {
        let canonical = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
        for same in [
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
            "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}",
            "a0eebc999c0b4ef8bb6d6bb9bd380a11",
            "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11",
            "{a0eebc99-9c0b4ef8-bb6d6bb9-bd380a11}",
        ] {
            assert_eq!(uuid(same).as_deref(), Some(canonical), "{same}");
        }
        for bad in [
            "",
            "{}",
            " a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11 ",
            "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a111",
            "a0eebc99--9c0b-4ef8-bb6d-6bb9bd380a11",
            "a0-eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11-",
            "g0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        ] {
            assert_eq!(uuid(bad), None, "{bad}");
        }
    }

    #[test]
    fn integers_are_exact_or_unsure() {
        for (text, value) in [("7", 7), (" +7\n", 7), ("-0", 0), ("007", 7), ("9223372036854775807", i64::MAX)] {
            assert_eq!(integer(text), Ok(value), "{text}");
        }
        for raises in ["", " ", "-", "+-1", "1.5", "1 2", "x1", "9223372036854775808", "١"] {
            assert_eq!(integer(raises), Err(Fault::Raises), "{raises}");
        }
        for unsure in ["0x1F", "1_000", "0b1"] {
            assert_eq!(integer(unsure), Err(Fault::Unsure), "{unsure}");
        }
    }
}
