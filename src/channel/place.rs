//! Where an entry begins, and how it is told where it is: the keys `since`, `cursor_as` and `snapshot`.
//!
//! What can't be read is refused and never passed over: a client that meant to go on somewhere must not silently begin anew.

use serde_json::value::RawValue;

use super::object::{Object, string};
use crate::change::Timestamp;
use crate::hub::SnapshotWish;

/// Characters of `cursor_as`.
const MAX_NAME: usize = 63;
/// Columns of a snapshot's order.
const MAX_ORDER: usize = 16;
const MILLI: i64 = 1000;

/// The value of `since`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Since {
    /// The text of a cursor, not opened yet.
    Cursor(String),
    /// A commit time.
    Time(Timestamp),
}

/// `since`: absent or null, a string, or milliseconds since 1970.
pub(super) fn since(json: Option<&str>) -> Result<Option<Since>, String> {
    let Some(json) = json else { return Ok(None) };
    if let Some(text) = string(json) {
        return Ok(Some(rfc3339(&text).map_or(Since::Cursor(text), Since::Time)));
    }
    let millis: i64 = json.parse().map_err(|_| {
        "Error parsing `since`: expected a cursor, or a commit time as milliseconds since 1970 or as text like \
         \"2026-11-21T10:15:30Z\""
    })?;
    Ok(Some(Since::Time(at(millis.saturating_mul(MILLI)))))
}

/// `cursor_as`: absent or null, or a name.
pub(super) fn cursor_as(json: Option<&str>) -> Result<Option<String>, String> {
    let Some(json) = json else { return Ok(None) };
    match string(json) {
        Some(name) if (1..=MAX_NAME).contains(&name.chars().count()) => Ok(Some(name)),
        _ => Err(format!(
            "Error parsing `cursor_as`: expected a name of 1 to {MAX_NAME} characters, e.g. cursor_as: \"_cursor\""
        )),
    }
}

/// `snapshot`: absent or null, or `{limit, order?}`.
pub(super) fn snapshot(json: Option<&str>) -> Result<Option<SnapshotWish>, String> {
    let Some(json) = json else { return Ok(None) };
    let wrong = || {
        "Error parsing `snapshot`: expected an object with the number of rows and the columns to order by, e.g. \
         snapshot: {limit: 100, order: \"created_at.desc\"}"
            .to_owned()
    };
    let object = Object::parse(json).ok_or_else(wrong)?;
    let limit = object.get("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
    let order = match object.get_some("order") {
        None => Vec::new(),
        Some(json) => columns(json).ok_or_else(wrong)?,
    };
    Ok(Some(SnapshotWish { limit: limit.ok_or_else(wrong)?, order }))
}

/// `"a.desc,b"`, or a list of such names.
fn columns(json: &str) -> Option<Vec<(String, bool)>> {
    let names: Vec<String> = match string(json) {
        Some(text) => text.split(',').map(|name| name.trim().to_owned()).collect(),
        None => {
            let elements: Vec<&RawValue> = serde_json::from_str(json).ok()?;
            elements.iter().map(|element| string(element.get())).collect::<Option<_>>()?
        }
    };
    let column = |name: String| match name.strip_suffix(".desc") {
        Some(column) => (column.to_owned(), true),
        None => (name.strip_suffix(".asc").unwrap_or(&name).to_owned(), false),
    };
    let columns: Vec<_> = names.into_iter().map(column).collect();
    (columns.len() <= MAX_ORDER && columns.iter().all(|(name, _)| !name.is_empty())).then_some(columns)
}

fn at(unix_micros: i64) -> Timestamp {
    Timestamp(unix_micros.saturating_sub(Timestamp::UNIX_OFFSET_MICROS))
}

/// `2026-11-21T10:15:30.5+01:00`; a blank may stand for the `T`.
fn rfc3339(text: &str) -> Option<Timestamp> {
    let (date, rest) = (text.get(..10)?, text.get(11..)?);
    if !matches!(text.as_bytes()[10], b'T' | b't' | b' ') {
        return None;
    }
    let zone = rest.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = rest.split_at(zone);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    let offset = match zone.split_at(1) {
        ("Z" | "z", "") => 0,
        (sign @ ("+" | "-"), offset) => {
            let [hours, minutes] = numbers(offset, ':', [2, 2])?;
            let offset = hours * 60 + minutes;
            if hours > 23 || minutes > 59 {
                return None;
            }
            if sign == "-" { -offset } else { offset }
        }
        _ => return None,
    };
    if hour > 23 || minute > 59 || second > 60 || fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // Cut to microseconds: earlier, never later.
    let micros: i64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    let seconds = days(year, month, day)? * 86_400 + hour * 3600 + (minute - offset) * 60 + second;
    Some(at(seconds * 1_000_000 + micros))
}

/// Parts of just these lengths, digits only.
fn numbers<const N: usize>(text: &str, separator: char, lengths: [usize; N]) -> Option<[i64; N]> {
    let mut found = [0; N];
    let mut parts = text.split(separator);
    for (number, length) in found.iter_mut().zip(lengths) {
        let part = parts.next().filter(|part| part.len() == length && part.bytes().all(|b| b.is_ascii_digit()))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(found)
}

/// Days since 1970-01-01 in the Gregorian calendar (Howard Hinnant's algorithm); `None` for a day that there is not.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=last).contains(&day) {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    Some(era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_commit_time_is_read_in_each_of_its_forms() {
        for (json, micros) in [
            ("0", 0),
            ("1795256130123", 1_795_256_130_123_000),
            ("-1", -1000),
            (r#""1970-01-01T00:00:00Z""#, 0),
            (r#""2026-11-21T10:15:30.123456789Z""#, 1_795_256_130_123_456),
            (r#""2026-11-21t11:15:30.1+01:00""#, 1_795_256_130_100_000),
            (r#""2026-11-21 04:45:30-05:30""#, 1_795_256_130_000_000),
            (r#""2000-02-29T23:59:60z""#, 951_868_800_000_000),
        ] {
            let Ok(Some(Since::Time(at))) = since(Some(json)) else { panic!("{json}") };
            assert_eq!(at.unix_micros(), micros, "{json}");
        }
        assert_eq!(since(Some(&i64::MAX.to_string())), Ok(Some(Since::Time(at(i64::MAX)))));
    }

    #[test]
    fn what_is_no_time_may_be_a_cursor_and_other_values_are_refused() {
        assert_eq!(since(None), Ok(None));
        for text in [
            "",
            "AbC-_0",
            "2026-11-21",
            "2026-11-21T10:15:30",
            "2026-02-29T10:15:30Z",
            "2026-13-01T10:15:30Z",
            "2026-11-21T24:15:30Z",
            "2026-11-21T10:15:30.Z",
            "2026-11-21T10:15:30+1:00",
            "2026-11-21T10:15:30Zx",
        ] {
            let json = serde_json::Value::from(text).to_string();
            assert_eq!(since(Some(&json)), Ok(Some(Since::Cursor(text.into()))), "{text}");
        }
        for json in ["true", "{}", "[]", "1.5", "1e3", "99999999999999999999"] {
            assert!(since(Some(json)).is_err_and(|text| text.starts_with("Error parsing `since`: ")), "{json}");
        }
    }

    #[test]
    fn the_name_of_the_cursor_is_short_and_a_string() {
        assert_eq!(cursor_as(None), Ok(None));
        assert_eq!(cursor_as(Some(r#""_cursor""#)), Ok(Some("_cursor".into())));
        let longest = "ä".repeat(MAX_NAME);
        assert_eq!(cursor_as(Some(&format!("\"{longest}\""))), Ok(Some(longest.clone())));
        for bad in [r#""""#, "5", "true", "{}", &format!("\"{longest}ä\"")] {
            assert!(cursor_as(Some(bad)).is_err_and(|text| text.starts_with("Error parsing `cursor_as`: ")), "{bad}");
        }
    }

    #[test]
    fn a_snapshot_has_a_limit_and_perhaps_an_order() {
        let wish = |limit, order: &[(&str, bool)]| {
            let order = order.iter().map(|(name, desc)| ((*name).to_owned(), *desc)).collect();
            Ok(Some(SnapshotWish { limit, order }))
        };
        assert_eq!(snapshot(None), Ok(None));
        assert_eq!(snapshot(Some(r#"{"limit":5}"#)), wish(5, &[]));
        assert_eq!(snapshot(Some(r#"{"limit":5,"order":null}"#)), wish(5, &[]));
        let both = wish(1, &[("a", true), ("b.c", false), ("d", false)]);
        assert_eq!(snapshot(Some(r#"{"limit":1,"order":"a.desc, b.c,d.asc"}"#)), both);
        assert_eq!(snapshot(Some(r#"{"limit":1,"order":["a.desc","b.c","d.asc"]}"#)), both);
        assert_eq!(snapshot(Some(r#"{"limit":1,"order":["a,b"]}"#)), wish(1, &[("a,b", false)]));
        for bad in [
            "5",
            "true",
            "{}",
            r#"{"limit":0}"#,
            r#"{"limit":-1}"#,
            r#"{"limit":1.5}"#,
            r#"{"limit":"5"}"#,
            r#"{"limit":5000000000}"#,
            r#"{"limit":5,"order":""}"#,
            r#"{"limit":5,"order":"a,,b"}"#,
            r#"{"limit":5,"order":[1]}"#,
            r#"{"limit":5,"order":{}}"#,
        ] {
            assert!(snapshot(Some(bad)).is_err_and(|text| text.starts_with("Error parsing `snapshot`: ")), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text: String) {
            let _ = (since(Some(&text)), cursor_as(Some(&text)), snapshot(Some(&text)), rfc3339(&text));
        }

        #[test]
        fn days_follow_each_other_and_none_is_missing(year in 1i64..9999, month in 1i64..=12) {
            let last = (28..=31).rev().find(|day| super::days(year, month, *day).is_some()).unwrap_or_default();
            let next = if month == 12 { super::days(year + 1, 1, 1) } else { super::days(year, month + 1, 1) };
            prop_assert_eq!(super::days(year, month, last).map(|day| day + 1), next);
            let first = super::days(year, month, 1).unwrap_or_default();
            for day in 1..=last {
                prop_assert_eq!(super::days(year, month, day), Some(first + day - 1));
            }
        }
    }
}
