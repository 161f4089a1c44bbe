//! Constants and the names of types. Postgres prints a constant as its type does, with the type behind it.

use sqlparser::ast::{
    ArrayElemTypeDef, CastKind, CharacterLength, DataType, ExactNumberInfo, Expr as Ast, TimezoneInfo, Value as Literal,
};

use super::scope::identifier;
use super::typed::{Typed, UNKNOWN, is_integer, is_text};
use super::{Compiler, NotPure, Result, not_pure};
use crate::pgtype::{self, TypeKind, Types, oid};
use crate::policy::term::read;

/// The type that a cast names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    /// The base type.
    pub(super) oid: u32,
    /// It has a length or a precision.
    pub(super) sized: bool,
    /// It is a domain, whose checks may raise.
    pub(super) domain: bool,
}

impl Compiler<'_> {
    /// The type of this name; `None` for one that we don't know, and for arrays.
    pub(super) fn target(&self, data_type: &DataType) -> Option<Target> {
        let number = |info: &ExactNumberInfo| *info != ExactNumberInfo::None;
        let length = |length: &Option<CharacterLength>| length.is_some();
        let (oid, sized) = match data_type {
            DataType::Text => (oid::TEXT, false),
            DataType::Uuid => (oid::UUID, false),
            DataType::SmallInt(None) | DataType::Int2(None) => (oid::INT2, false),
            DataType::Int(None) | DataType::Integer(None) | DataType::Int4(None) => (oid::INT4, false),
            DataType::BigInt(None) | DataType::Int8(None) => (oid::INT8, false),
            DataType::Bool | DataType::Boolean => (oid::BOOL, false),
            DataType::Numeric(info) | DataType::Decimal(info) => (oid::NUMERIC, number(info)),
            DataType::JSON => (oid::JSON, false),
            DataType::JSONB => (oid::JSONB, false),
            DataType::CharacterVarying(size) | DataType::Varchar(size) => (oid::VARCHAR, length(size)),
            DataType::Date => (oid::DATE, false),
            DataType::Timestamp(size, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => {
                (oid::TIMESTAMP, size.is_some())
            }
            DataType::Timestamp(size, TimezoneInfo::WithTimeZone | TimezoneInfo::Tz) => {
                (oid::TIMESTAMPTZ, size.is_some())
            }
            DataType::DoublePrecision | DataType::Float8 => (oid::FLOAT8, false),
            DataType::Real | DataType::Float4 => (oid::FLOAT4, false),
            DataType::Custom(name, modifiers) if modifiers.is_empty() => {
                let parts: Option<Vec<&str>> = name.0.iter().map(|p| p.as_ident().and_then(identifier)).collect();
                return self.named_type(&parts?);
            }
            _ => return None,
        };
        Some(Target { oid, sized, domain: false })
    }

    fn named_type(&self, parts: &[&str]) -> Option<Target> {
        let found = match parts {
            ["name"] => oid::NAME,
            ["bpchar"] => oid::BPCHAR,
            ["char"] => oid::CHAR,
            ["timestamptz"] => oid::TIMESTAMPTZ,
            ["pg_catalog", _] => return None,
            [schema, name] => self.catalog.types().find(schema, name)?.oid,
            _ => return None,
        };
        let info = self.catalog.types().get(found);
        let domain = info.is_some_and(|info| matches!(info.kind, TypeKind::Domain { .. }));
        Some(Target { oid: self.catalog.types().base_of(found), sized: false, domain })
    }

    /// The element type of `type[]`.
    pub(super) fn array_target(&self, data_type: &DataType) -> Option<Target> {
        match data_type {
            DataType::Array(ArrayElemTypeDef::SquareBracket(element, None)) => self.target(element),
            _ => None,
        }
    }

    /// A constant without a cast.
    pub(super) fn bare_literal(&self, ast: &Ast) -> Option<Typed> {
        let Ast::Value(value) = ast else { return None };
        match &value.value {
            Literal::Boolean(true) => Some(Typed::constant(oid::BOOL, "t")),
            Literal::Boolean(false) => Some(Typed::constant(oid::BOOL, "f")),
            Literal::Null => Some(Typed::null(UNKNOWN)),
            Literal::Number(digits, false) => number(digits, false),
            // How a parser treats a backslash is a matter of settings.
            Literal::SingleQuotedString(text) if !text.contains('\\') => Some(Typed::constant(UNKNOWN, text)),
            _ => None,
        }
    }
}

/// `5`, `5000000000`, `1.50`: of the first type that holds it.
pub(super) fn number(digits: &str, negative: bool) -> Option<Typed> {
    if !digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    let digits = read::numeric(digits).ok()?;
    let text = if negative && digits != "0" { format!("-{digits}") } else { digits };
    Some(match text.parse::<i64>() {
        Ok(number) if i32::try_from(number).is_ok() => Typed::constant(oid::INT4, text),
        Ok(_) => Typed::constant(oid::INT8, text),
        Err(_) => Typed::constant(oid::NUMERIC, text),
    })
}

/// The value of a quoted literal as the type prints it.
/// `source`: a person wrote it, so it may be spelled otherwise than the type prints it.
pub(super) fn of_type(types: &Types, to: u32, text: &str, source: bool) -> Result<String> {
    let refused = || not_pure(&format!("a constant of type {}", pgtype::type_name(types, to)), text);
    match to {
        oid::TEXT | oid::VARCHAR | oid::BPCHAR | UNKNOWN => Ok(text.to_owned()),
        // Longer ones are cut.
        oid::NAME if text.len() < 64 => Ok(text.to_owned()),
        oid::UUID => read::uuid(text).map_or_else(refused, Ok),
        oid::INT2 | oid::INT4 | oid::INT8 => match read::integer(text) {
            Ok(number) if fits(number, to) => Ok(number.to_string()),
            _ => refused(),
        },
        oid::BOOL => read::boolean(text).map_or_else(refused, |value| Ok(if value { "t" } else { "f" }.to_owned())),
        oid::NUMERIC => match text {
            "NaN" | "Infinity" | "-Infinity" => Ok(text.to_owned()),
            _ => read::numeric(text).or_else(|_| refused()),
        },
        oid::DATE | oid::TIMESTAMP | oid::TIMESTAMPTZ if !source => {
            let order = pgtype::order(types, to, false);
            let printed = order.is_some_and(|order| pgtype::compare(order, text.as_bytes(), text.as_bytes()).is_some());
            let whole = is_whole_instant(to, text);
            if printed && whole { Ok(text.to_owned()) } else { refused() }
        }
        oid::JSONB if !source => Ok(text.to_owned()),
        other => match types.get(other).map(|info| &info.kind) {
            Some(TypeKind::Enum) => Ok(text.to_owned()),
            _ => refused(),
        },
    }
}

/// As the server prints it under our settings, where a date has no time and a timestamp has all of it.
fn is_whole_instant(to: u32, text: &str) -> bool {
    let Some(first) = text.bytes().next() else { return false };
    if matches!(text, "infinity" | "-infinity") {
        return true;
    }
    let time = text.strip_suffix(" BC").unwrap_or(text).split_once(' ').map(|(_, time)| time);
    let complete = time.is_some_and(|time| time.len() >= 8);
    first.is_ascii_digit()
        && match to {
            oid::DATE => time.is_none(),
            oid::TIMESTAMP => complete && !text.contains('+'),
            _ => complete && time.is_some_and(|time| time.ends_with("+00")),
        }
}

fn fits(number: i64, to: u32) -> bool {
    match to {
        oid::INT2 => i16::try_from(number).is_ok(),
        oid::INT4 => i32::try_from(number).is_ok(),
        _ => true,
    }
}

/// A cast of a constant that has a type already.
pub(super) fn cast(from: u32, to: u32, text: &str) -> Option<String> {
    match (from, to) {
        (from, to) if is_integer(from) && is_integer(to) => {
            text.parse().ok().filter(|number| fits(*number, to)).map(|_| text.to_owned())
        }
        (from, oid::NUMERIC | oid::TEXT) if is_integer(from) => Some(text.to_owned()),
        (from, oid::FLOAT4 | oid::FLOAT8) if is_integer(from) || from == oid::NUMERIC => {
            // Few enough digits that a float prints them all, and without an exponent.
            let digits = text.trim_start_matches('-').replace('.', "");
            let plain = text == "0" || !digits.starts_with("0000");
            (plain && digits.len() <= 6).then(|| text.to_owned())
        }
        (from, to) if is_text(from) && is_text(to) && to != oid::NAME => Some(text.to_owned()),
        (oid::TEXT | oid::VARCHAR, oid::BPCHAR) => Some(text.to_owned()),
        (oid::UUID, oid::TEXT) => Some(text.to_owned()),
        _ => None,
    }
}

/// `'{a,b}'` without quotes, escapes, NULLs and nesting.
pub(super) fn array(text: &str) -> Result<Vec<&str>> {
    let plain = |element: &&str| {
        let fine = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '@' | '/' | '+');
        !element.is_empty() && element.chars().all(fine) && !element.eq_ignore_ascii_case("null")
    };
    match text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
        Some("") => Ok(Vec::new()),
        Some(inner) if inner.split(',').collect::<Vec<_>>().iter().all(plain) => Ok(inner.split(',').collect()),
        _ => not_pure("an array constant", text),
    }
}

/// `'…'` with or without `::text`.
pub(super) fn text(ast: &Ast) -> Option<&str> {
    match ast {
        Ast::Nested(inner) => text(inner),
        Ast::Cast { kind: CastKind::DoubleColon, expr, data_type: DataType::Text, format: None } => quoted(expr),
        other => quoted(other),
    }
}

pub(super) fn quoted(ast: &Ast) -> Option<&str> {
    match ast {
        Ast::Value(value) => match &value.value {
            Literal::SingleQuotedString(text) if !text.contains('\\') => Some(text),
            _ => None,
        },
        _ => None,
    }
}

/// The elements of a constant array of texts: `'{a,b}'::text[]`, `ARRAY['a'::text, …]`, or unquoted in a function.
pub(super) fn texts(ast: &Ast) -> Result<Vec<String>> {
    match ast {
        Ast::Nested(inner) => texts(inner),
        Ast::Cast { kind: CastKind::DoubleColon, expr, data_type, format: None } => match data_type {
            DataType::Array(ArrayElemTypeDef::SquareBracket(element, None)) if **element == DataType::Text => {
                texts(expr)
            }
            _ => not_pure("an array", ast),
        },
        Ast::Array(elements) if elements.named => {
            let all: Option<Vec<String>> = elements.elem.iter().map(|e| text(e).map(str::to_owned)).collect();
            all.ok_or_else(|| NotPure(format!("an array that is not constant: {ast}")))
        }
        other => match quoted(other) {
            Some(text) => Ok(array(text)?.into_iter().map(str::to_owned).collect()),
            None => not_pure("an array that is not constant", other),
        },
    }
}
