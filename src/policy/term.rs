//! What a policy takes from the token: a small expression over the claims settings, evaluated exactly as Postgres would.
//!
//! Exactness has three outcomes, not two: a value, an error that Postgres would raise ([`Fault::Raises`]), and *unsure*
//! ([`Fault::Unsure`]) where reproducing Postgres is not worth the risk (a float's digits, the text of a JSON object, the
//! integer spellings that Postgres 16 added). Unsure is never guessed: Postgres is asked for that principal.
//!
//! A term is one value or a list of values ([`Term::is_list`]), such as the elements of a JSON array.

mod display;
mod json;
pub(super) mod read;

use std::borrow::Cow;

use serde_json::{Map, Value as Json};

use crate::claims::Principal;
use crate::pgtype::{self, oid};
use crate::policy::rule::{Claimed, Kind};

/// Types that a term, or the elements of a list, can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TermType {
    /// `text`.
    Text,
    /// `uuid`.
    Uuid,
    /// `int2`, `int4`, `int8` by their size in bytes.
    Int(u8),
    /// `bool`.
    Bool,
    /// `numeric`.
    Numeric,
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
    /// `current_setting(…)`, type text.
    Setting(Setting),
    /// A constant, type text.
    Text(String),
    /// `nullif(…, '')`, type text.
    NullIfEmpty(Box<Term>),
    /// `coalesce(…)` of texts.
    Coalesce(Vec<Term>),
    /// `->`: a member of a JSON object.
    Member(Box<Term>, String),
    /// `->>`: a member as text.
    MemberText(Box<Term>, String),
    /// `-> n`, and `->> n` as text: an element of a JSON array.
    Index(Box<Term>, i32, bool),
    /// `#>`, and `#>>` as text.
    Path(Box<Term>, Vec<String>, bool),
    /// `@> constant`: type bool.
    Contains(Box<Term>, Json),
    /// `= constant` of type jsonb: type bool.
    Equals(Box<Term>, Json),
    /// A list of what is in a JSON array.
    Elements(Box<Term>, Elements),
    /// `string_to_array(…, separator)`: a list of texts.
    Split(Box<Term>, String),
    /// `::`; only the pairs that [`Term::cast`] lets through. Of a list, each element is cast.
    Cast(Box<Term>, TermType),
}

/// Which elements, and as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elements {
    /// `jsonb_array_elements_text`: all, as text. None of NULL; raises for what is not an array.
    Texts,
    /// What `jsonb ? text` finds: strings of an array, keys of an object, a string itself.
    Keys,
    /// What `jsonb @> to_jsonb(text)` finds: strings of an array, a string itself.
    Strings,
    /// What `jsonb @> jsonb_build_array(text)` finds: strings of an array.
    StringsOfArray,
    /// What `jsonb @> to_jsonb(number)` finds: numbers of an array, a number itself.
    Numbers,
    /// What `jsonb @> jsonb_build_array(number)` finds: numbers of an array.
    NumbersOfArray,
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
    Bool(bool),
    /// Canonical.
    Numeric(String),
    Object(&'a Map<String, Json>),
    Json(&'a Json),
    List(Vec<Value<'a>>),
}

impl Term {
    /// Its type, or that of its elements; every constructor keeps it right.
    pub fn term_type(&self) -> TermType {
        match self {
            Term::Setting(_) | Term::Text(_) | Term::NullIfEmpty(_) | Term::Coalesce(_) | Term::MemberText(..) => {
                TermType::Text
            }
            Term::Member(from, _) | Term::Index(from, _, false) | Term::Path(from, _, false) => from.term_type(),
            Term::Index(_, _, true) | Term::Path(_, _, true) | Term::Split(..) => TermType::Text,
            Term::Contains(..) | Term::Equals(..) => TermType::Bool,
            Term::Elements(_, Elements::Numbers | Elements::NumbersOfArray) => TermType::Numeric,
            Term::Elements(..) => TermType::Text,
            Term::Cast(_, to) => *to,
        }
    }

    /// Whether it is a list.
    pub fn is_list(&self) -> bool {
        match self {
            Term::Elements(..) | Term::Split(..) => true,
            Term::Cast(inner, _) => inner.is_list(),
            _ => false,
        }
    }

    /// `self::to`, or `None` if that cast is not one we reproduce.
    pub fn cast(self, to: TermType) -> Option<Term> {
        use TermType::{Bool, Int, Json, Jsonb, Numeric, Text, Uuid};
        let allowed = match (self.term_type(), to) {
            (from, to) if from == to => return Some(self),
            (Text, Json | Jsonb) => self.is_claims(),
            (Text, Uuid | Int(_) | Bool | Numeric) => true,
            (Uuid | Int(_) | Bool, Text) => true,
            (Int(_), Int(_) | Numeric) => true,
            (Jsonb, Int(_) | Bool | Numeric | Text) => !self.is_list(),
            _ => false,
        };
        allowed.then(|| Term::Cast(Box::new(self), to))
    }

    /// Of type JSON, and so fit for the operators on it.
    pub fn is_json(&self) -> bool {
        matches!(self.term_type(), TermType::Json | TermType::Jsonb)
    }

    /// `self -> key` or, as text, `self ->> key`.
    pub fn member(self, key: &str, as_text: bool) -> Option<Term> {
        if !self.is_json() {
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
            // Claims are never NULL and never empty, so what follows them is never looked at.
            Term::Coalesce(terms) => matches!(&terms[..], [Term::Setting(Setting::Claims), ..]),
            _ => false,
        }
    }

    /// Evaluation can raise or be unsure.
    pub fn may_fail(&self) -> bool {
        match self {
            Term::Text(_) => false,
            Term::Coalesce(terms) => terms.iter().any(Term::may_fail),
            Term::Setting(setting) => *setting != Setting::Claims,
            _ => true,
        }
    }

    /// The value as the text that Postgres would print for it: for a uuid or an integer, the one canonical form. `None` is NULL.
    /// Lists and terms of type JSON have no such text here and are unsure.
    pub fn text(&self, principal: &Principal) -> Result<Option<String>, Fault> {
        self.value(principal)?.text(principal)
    }

    /// The value in canonical text for the kind; a list's elements likewise. A term of type JSON shows only whether it is NULL:
    /// its value is empty.
    pub fn claimed(&self, kind: Kind, principal: &Principal) -> Claimed {
        self.canonical(kind, principal).unwrap_or_else(|fault| match fault {
            Fault::Raises => Claimed::Raises,
            Fault::Unsure => Claimed::Unsure,
        })
    }

    fn canonical(&self, kind: Kind, principal: &Principal) -> Result<Claimed, Fault> {
        let one = |value: Value<'_>| match value.text(principal)? {
            None => Ok(None),
            Some(text) => match pgtype::canonical(kind.equality, text.as_bytes()) {
                Some(bytes) => Ok(Some(Box::from(&*bytes))),
                None => Err(Fault::Unsure),
            },
        };
        match self.value(principal)? {
            Value::Object(_) | Value::Json(_) => Ok(Claimed::Value(Box::default())),
            Value::List(values) => Ok(Claimed::List(values.into_iter().map(one).collect::<Result<_, _>>()?)),
            value => Ok(one(value)?.map_or(Claimed::Null, Claimed::Value)),
        }
    }

    fn value<'a>(&self, principal: &'a Principal) -> Result<Value<'a>, Fault> {
        match self {
            Term::Setting(Setting::Claims) => Ok(Value::Claims),
            Term::Setting(Setting::Subject) => setting(&principal.subject),
            Term::Setting(Setting::Role) => setting(&principal.role),
            Term::Text(text) => Ok(Value::Text(text.clone().into())),
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
            Term::Member(from, key) => Ok(json::member(from.value(principal)?, key)?.map_or(Value::Null, Value::Json)),
            Term::MemberText(from, key) => json::as_text(json::member(from.value(principal)?, key)?),
            Term::Index(from, index, as_text) => json::found(json::element(from.value(principal)?, *index)?, *as_text),
            Term::Path(from, path, as_text) => json::path(from.value(principal)?, path, *as_text),
            Term::Contains(from, constant) => json::contains(from.value(principal)?, constant),
            Term::Equals(from, constant) => json::equals(from.value(principal)?, constant),
            Term::Elements(from, which) => json::elements(from.value(principal)?, *which),
            Term::Split(from, separator) => split(from.value(principal)?, separator, principal),
            Term::Cast(inner, to) => match inner.value(principal)? {
                Value::List(values) => {
                    let cast = |value| cast(value, *to, principal);
                    Ok(Value::List(values.into_iter().map(cast).collect::<Result<_, _>>()?))
                }
                value => cast(value, *to, principal),
            },
        }
    }
}

impl Value<'_> {
    fn text(self, principal: &Principal) -> Result<Option<String>, Fault> {
        match self {
            Value::Null => Ok(None),
            Value::Claims => Ok(Some(principal.claims_json.to_string())),
            Value::Text(text) => Ok(Some(text.into_owned())),
            Value::Uuid(text) | Value::Numeric(text) => Ok(Some(text)),
            Value::Int(number) => Ok(Some(number.to_string())),
            Value::Bool(value) => Ok(Some(if value { "t" } else { "f" }.into())),
            Value::Object(_) | Value::Json(_) | Value::List(_) => Err(Fault::Unsure),
        }
    }
}

fn setting(text: &str) -> Result<Value<'_>, Fault> {
    // A NUL cannot even be sent as a setting.
    if text.contains('\0') { Err(Fault::Unsure) } else { Ok(Value::Text(text.into())) }
}

/// `string_to_array` with a separator that is not empty.
fn split<'a>(value: Value<'a>, separator: &str, principal: &'a Principal) -> Result<Value<'a>, Fault> {
    let text = match value {
        Value::Null => return Ok(Value::Null),
        Value::Text(text) => text,
        Value::Claims => Cow::Borrowed(&*principal.claims_json),
        _ => return Err(Fault::Unsure),
    };
    if text.is_empty() {
        return Ok(Value::List(Vec::new()));
    }
    Ok(Value::List(text.split(separator).map(|part| Value::Text(part.to_owned().into())).collect()))
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
        (Value::Text(text), TermType::Uuid) => read::uuid(&text).map(Value::Uuid).ok_or(Fault::Raises),
        (Value::Text(text), TermType::Int(size)) => in_range(read::integer(&text)?, size),
        (Value::Text(text), TermType::Bool) => read::boolean(&text).map(Value::Bool).ok_or(Fault::Raises),
        (Value::Text(text), TermType::Numeric) => read::numeric(&text).map(Value::Numeric),
        (Value::Int(number), TermType::Int(size)) => in_range(number, size),
        (Value::Int(number), TermType::Numeric) => Ok(Value::Numeric(number.to_string())),
        (Value::Uuid(text), TermType::Text) => Ok(Value::Text(text.into())),
        (Value::Int(number), TermType::Text) => Ok(Value::Text(number.to_string().into())),
        (Value::Bool(value), TermType::Text) => Ok(Value::Text(if value { "true" } else { "false" }.into())),
        (Value::Json(json), to) => match json::cast(json, to)? {
            Value::Int(number) => match to {
                TermType::Int(size) => in_range(number, size),
                _ => Ok(Value::Int(number)),
            },
            value => Ok(value),
        },
        _ => Err(Fault::Unsure),
    }
}

fn in_range<'a>(number: i64, size: u8) -> Result<Value<'a>, Fault> {
    let fits = match size {
        2 => i16::try_from(number).is_ok(),
        4 => i32::try_from(number).is_ok(),
        _ => true,
    };
    if fits { Ok(Value::Int(number)) } else { Err(Fault::Raises) }
}

impl TermType {
    /// `pg_type.oid`.
    pub fn oid(self) -> u32 {
        match self {
            TermType::Text => oid::TEXT,
            TermType::Uuid => oid::UUID,
            TermType::Int(2) => oid::INT2,
            TermType::Int(4) => oid::INT4,
            TermType::Int(_) => oid::INT8,
            TermType::Bool => oid::BOOL,
            TermType::Numeric => oid::NUMERIC,
            TermType::Json => oid::JSON,
            TermType::Jsonb => oid::JSONB,
        }
    }

    /// The type of this oid, if terms can have it.
    pub fn of(oid: u32) -> Option<TermType> {
        match oid {
            oid::TEXT | oid::VARCHAR => Some(TermType::Text),
            oid::UUID => Some(TermType::Uuid),
            oid::INT2 => Some(TermType::Int(2)),
            oid::INT4 => Some(TermType::Int(4)),
            oid::INT8 => Some(TermType::Int(8)),
            oid::BOOL => Some(TermType::Bool),
            oid::NUMERIC => Some(TermType::Numeric),
            oid::JSON => Some(TermType::Json),
            oid::JSONB => Some(TermType::Jsonb),
            _ => None,
        }
    }
}
