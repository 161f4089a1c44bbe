//! Operators on JSON, as jsonb has them. A number that is not a 64-bit integer is left to Postgres: its digits may be lost here.

use serde_json::Value as Json;

use super::{Elements, Fault, TermType, Value};

/// `->` with a text.
pub(super) fn member<'a>(from: Value<'a>, key: &str) -> Result<Option<&'a Json>, Fault> {
    match from {
        Value::Object(map) | Value::Json(Json::Object(map)) => Ok(map.get(key)),
        // A member of a scalar, an array or NULL is NULL.
        Value::Json(_) | Value::Null => Ok(None),
        _ => Err(Fault::Unsure),
    }
}

/// `->` with an integer. A scalar counts as an array of one for jsonb, but not for json.
pub(super) fn element(from: Value<'_>, index: i32) -> Result<Option<&Json>, Fault> {
    match from {
        Value::Object(_) | Value::Json(Json::Object(_)) | Value::Null => Ok(None),
        Value::Json(Json::Array(items)) => {
            let from_end = index.unsigned_abs() as usize;
            let place = if index < 0 { items.len().checked_sub(from_end) } else { Some(from_end) };
            Ok(place.and_then(|place| items.get(place)))
        }
        _ => Err(Fault::Unsure),
    }
}

pub(super) fn found(json: Option<&Json>, as_text: bool) -> Result<Value<'_>, Fault> {
    if as_text { self::as_text(json) } else { Ok(json.map_or(Value::Null, Value::Json)) }
}

/// `#>` and `#>>`: each step is a key of an object; steps into an array are left to Postgres.
pub(super) fn path<'a>(from: Value<'a>, path: &[String], as_text: bool) -> Result<Value<'a>, Fault> {
    let (first, rest) = match path.split_first() {
        Some(split) => split,
        None => return Err(Fault::Unsure),
    };
    let mut at = match from {
        Value::Json(Json::Array(_)) => return Err(Fault::Unsure),
        from => member(from, first)?,
    };
    for key in rest {
        at = match at {
            Some(Json::Object(map)) => map.get(key),
            Some(Json::Array(_)) => return Err(Fault::Unsure),
            _ => None,
        };
    }
    found(at, as_text)
}

/// As `->>` shows it.
pub(super) fn as_text(json: Option<&Json>) -> Result<Value<'_>, Fault> {
    match json {
        None | Some(Json::Null) => Ok(Value::Null),
        Some(Json::Bool(value)) => Ok(Value::Text(if *value { "true" } else { "false" }.into())),
        Some(Json::String(text)) => Ok(Value::Text(text.as_str().into())),
        Some(Json::Number(number)) if number.is_i64() => Ok(Value::Text(number.to_string().into())),
        Some(Json::Number(_) | Json::Array(_) | Json::Object(_)) => Err(Fault::Unsure),
    }
}

/// `jsonb::type`. JSON's null raises before Postgres 18 and is NULL since.
pub(super) fn cast(json: &Json, to: TermType) -> Result<Value<'_>, Fault> {
    match (json, to) {
        (Json::Null | Json::Array(_) | Json::Object(_), _) => Err(Fault::Unsure),
        (Json::Bool(value), TermType::Bool) => Ok(Value::Bool(*value)),
        (Json::Bool(value), TermType::Text) => Ok(Value::Text(if *value { "true" } else { "false" }.into())),
        (Json::Number(number), TermType::Int(_) | TermType::Numeric | TermType::Text) => {
            let number = number.as_i64().ok_or(Fault::Unsure)?;
            Ok(match to {
                TermType::Int(_) => Value::Int(number),
                TermType::Numeric => Value::Numeric(number.to_string()),
                _ => Value::Text(number.to_string().into()),
            })
        }
        // With its quotes. What has to be escaped is left to Postgres.
        (Json::String(text), TermType::Text) => {
            let plain = text.chars().all(|c| !c.is_control() && !matches!(c, '"' | '\\'));
            if plain { Ok(Value::Text(format!("\"{text}\"").into())) } else { Err(Fault::Unsure) }
        }
        (Json::Bool(_) | Json::Number(_) | Json::String(_), TermType::Bool | TermType::Int(_) | TermType::Numeric) => {
            Err(Fault::Raises)
        }
        _ => Err(Fault::Unsure),
    }
}

/// A list of what the operator in question can find.
pub(super) fn elements(from: Value<'_>, which: Elements) -> Result<Value<'_>, Fault> {
    let json = match from {
        Value::Null if which == Elements::Texts => return Ok(Value::List(Vec::new())),
        Value::Null => return Ok(Value::Null),
        Value::Object(map) => {
            return match which {
                Elements::Texts => Err(Fault::Raises),
                Elements::Keys => Ok(Value::List(map.keys().map(|key| Value::Text(key.as_str().into())).collect())),
                _ => Ok(Value::List(Vec::new())),
            };
        }
        Value::Json(Json::Object(map)) => return elements(Value::Object(map), which),
        Value::Json(json) => json,
        _ => return Err(Fault::Unsure),
    };
    let of_array = matches!(which, Elements::StringsOfArray | Elements::NumbersOfArray);
    let items = match json {
        Json::Array(items) => &items[..],
        _ if which == Elements::Texts => return Err(Fault::Raises),
        _ if of_array => &[],
        scalar => std::slice::from_ref(scalar),
    };
    let mut list = Vec::new();
    for item in items {
        match (which, item) {
            (Elements::Texts, item) => list.push(as_text(Some(item))?),
            (Elements::Numbers | Elements::NumbersOfArray, Json::Number(number)) => {
                let number = number.as_i64().ok_or(Fault::Unsure)?;
                list.push(Value::Numeric(number.to_string()));
            }
            (Elements::Keys | Elements::Strings | Elements::StringsOfArray, Json::String(text)) => {
                list.push(Value::Text(text.as_str().into()));
            }
            _ => {}
        }
    }
    Ok(Value::List(list))
}

/// `@>`.
pub(super) fn contains<'a>(from: Value<'a>, constant: &Json) -> Result<Value<'a>, Fault> {
    match from {
        Value::Null => Ok(Value::Null),
        Value::Object(map) => match constant {
            Json::Object(wanted) => object_contains(map, wanted).map(Value::Bool),
            _ => Ok(Value::Bool(false)),
        },
        // At the top, an array contains a scalar that it has as an element.
        Value::Json(Json::Array(items)) if !matches!(constant, Json::Array(_) | Json::Object(_)) => {
            any(items, |item| same(item, constant)).map(Value::Bool)
        }
        Value::Json(json) => deep_contains(json, constant).map(Value::Bool),
        _ => Err(Fault::Unsure),
    }
}

/// `=` of two jsonb.
pub(super) fn equals<'a>(from: Value<'a>, constant: &Json) -> Result<Value<'a>, Fault> {
    match from {
        Value::Null => Ok(Value::Null),
        Value::Object(map) => match constant {
            Json::Object(other) => same_members(map, other).map(Value::Bool),
            _ => Ok(Value::Bool(false)),
        },
        Value::Json(json) => same(json, constant).map(Value::Bool),
        _ => Err(Fault::Unsure),
    }
}

type Members = serde_json::Map<String, Json>;

fn deep_contains(json: &Json, wanted: &Json) -> Result<bool, Fault> {
    match (json, wanted) {
        (Json::Object(map), Json::Object(wanted)) => object_contains(map, wanted),
        (Json::Array(items), Json::Array(wanted)) => {
            for wanted in wanted {
                if !any(items, |item| deep_contains(item, wanted))? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        (Json::Object(_) | Json::Array(_), _) | (_, Json::Object(_) | Json::Array(_)) => Ok(false),
        (json, wanted) => same(json, wanted),
    }
}

fn object_contains(map: &Members, wanted: &Members) -> Result<bool, Fault> {
    for (key, wanted) in wanted {
        match map.get(key) {
            Some(json) if deep_contains(json, wanted)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

fn any(items: &[Json], mut test: impl FnMut(&Json) -> Result<bool, Fault>) -> Result<bool, Fault> {
    for item in items {
        if test(item)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn same(a: &Json, b: &Json) -> Result<bool, Fault> {
    match (a, b) {
        (Json::Number(a), Json::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Ok(a == b),
            _ => Err(Fault::Unsure),
        },
        (Json::Array(a), Json::Array(b)) => {
            let mut all = a.len() == b.len();
            for (a, b) in a.iter().zip(b) {
                all &= same(a, b)?;
            }
            Ok(all)
        }
        (Json::Object(a), Json::Object(b)) => same_members(a, b),
        (a, b) => Ok(a == b),
    }
}

fn same_members(a: &Members, b: &Members) -> Result<bool, Fault> {
    let mut all = a.len() == b.len();
    for (key, a) in a {
        match b.get(key) {
            Some(b) => all &= same(a, b)?,
            None => all = false,
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn holds(value: &Json, constant: Json) -> Option<bool> {
        match contains(Value::Json(value), &constant) {
            Ok(Value::Bool(answer)) => Some(answer),
            _ => None,
        }
    }

    #[test]
    fn containment_is_that_of_jsonb() {
        let array = json!(["a", 1, {"x": 1, "y": [1, 2]}, null]);
        for yes in [
            json!("a"),
            json!(1),
            json!(null),
            json!(["a"]),
            json!([1, "a"]),
            json!([{"x": 1}]),
            json!([]),
            json!([{"y": [2]}]),
        ] {
            assert_eq!(holds(&array, yes.clone()), Some(true), "{yes}");
        }
        for no in [json!("b"), json!({"x": 1}), json!(["a", "b"]), json!([["a"]]), json!({})] {
            assert_eq!(holds(&array, no.clone()), Some(false), "{no}");
        }
        assert_eq!(holds(&json!("a"), json!("a")), Some(true));
        assert_eq!(holds(&json!("a"), json!(["a"])), Some(false), "a scalar contains no array");
        assert_eq!(holds(&json!({"a": {"b": 1}}), json!({"a": {}})), Some(true));
        assert_eq!(holds(&json!([1.5]), json!(1)), None, "left to Postgres");
    }

    #[test]
    fn a_list_has_what_its_operator_can_find() {
        let texts = |json: &Json, which| match elements(Value::Json(json), which) {
            Ok(Value::List(values)) => values.len(),
            Ok(_) => 99,
            Err(Fault::Raises) => 98,
            Err(Fault::Unsure) => 97,
        };
        let mixed = json!(["a", 1, null, true]);
        assert_eq!(texts(&mixed, Elements::Texts), 4);
        assert_eq!(texts(&mixed, Elements::Keys), 1);
        assert_eq!(texts(&mixed, Elements::Numbers), 1);
        assert_eq!(texts(&json!({"a": 1, "b": 2}), Elements::Keys), 2);
        assert_eq!(texts(&json!({"a": 1}), Elements::Strings), 0);
        assert_eq!(texts(&json!("a"), Elements::Strings), 1);
        assert_eq!(texts(&json!("a"), Elements::StringsOfArray), 0);
        assert_eq!(texts(&json!("a"), Elements::Texts), 98);
        assert_eq!(texts(&json!([[1]]), Elements::Texts), 97);
    }
}
