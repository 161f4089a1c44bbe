//! Order of two values by their text: exactly as Postgres's `<` for the type, or not at all.
//!
//! Text is in reach where its collation is C or POSIX; any other order lives in the server's C library or ICU. Enums are left
//! out (order of creation), and so is everything whose equality is out of reach.

use std::cmp::Ordering;

use super::Types;
use super::builtin::oid;
use super::json::is_number;

/// How texts of a type are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    /// Of the bytes: uuid, bytea (hexadecimal keeps the order), bool, time, text under a bytewise collation.
    Bytes,
    /// Of the bytes without the blanks at the end: `character(n)` under a bytewise collation.
    Blanks,
    /// 64-bit integers and oid.
    Integer,
    /// Of any length; infinities, and NaN above all.
    Numeric,
    /// Likewise for floats; minus zero is zero.
    Float,
    /// Date and timestamps with infinities, BC, and an offset if there is one.
    Timestamp,
}

/// The order of a type, domains followed; `None` where text can't tell. `bytewise`: the collation orders by bytes, and the
/// database's encoding is that of the stream.
pub fn order(types: &Types, oid: u32, bytewise: bool) -> Option<Order> {
    match types.base_of(oid) {
        oid::TEXT | oid::VARCHAR | oid::NAME => bytewise.then_some(Order::Bytes),
        oid::BPCHAR => bytewise.then_some(Order::Blanks),
        oid::BOOL | oid::BYTEA | oid::UUID | oid::TIME => Some(Order::Bytes),
        oid::INT2 | oid::INT4 | oid::INT8 | oid::OID => Some(Order::Integer),
        oid::NUMERIC => Some(Order::Numeric),
        oid::FLOAT4 | oid::FLOAT8 => Some(Order::Float),
        oid::DATE | oid::TIMESTAMP | oid::TIMESTAMPTZ => Some(Order::Timestamp),
        _ => None,
    }
}

/// Compares two values by what the type prints. `None` if one of the texts isn't that.
pub fn compare(order: Order, a: &[u8], b: &[u8]) -> Option<Ordering> {
    match order {
        Order::Bytes => Some(a.cmp(b)),
        Order::Blanks => Some(without_blanks(a).cmp(without_blanks(b))),
        Order::Integer => Some(integer(a)?.cmp(&integer(b)?)),
        Order::Float => Some(compare_floats(parse(a)?, parse(b)?)),
        Order::Numeric => Some(Numeric::parse(a)?.cmp(&Numeric::parse(b)?)),
        Order::Timestamp => Some(instant(a)?.cmp(&instant(b)?)),
    }
}

fn without_blanks(text: &[u8]) -> &[u8] {
    let end = text.iter().rposition(|b| *b != b' ').map_or(0, |i| i + 1);
    &text[..end]
}

fn parse<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// As Postgres prints one: without a plus, leading zeros or a negative zero.
fn integer(text: &[u8]) -> Option<i64> {
    if text == b"-0" || !is_number(text) { None } else { parse(text) }
}

fn compare_floats(a: f64, b: f64) -> Ordering {
    // Incomparable means that one is NaN, which Postgres puts above all and equal to itself.
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// Without leading zeros, zeros at the end of the fraction, or a negative zero.
enum Numeric<'a> {
    NegativeInfinity,
    Finite { negative: bool, whole: &'a [u8], fraction: &'a [u8] },
    Infinity,
    NaN,
}

impl<'a> Numeric<'a> {
    fn parse(text: &'a [u8]) -> Option<Numeric<'a>> {
        match text {
            b"NaN" => return Some(Numeric::NaN),
            b"Infinity" => return Some(Numeric::Infinity),
            b"-Infinity" => return Some(Numeric::NegativeInfinity),
            // An exponent would be JSON's, never numeric's.
            _ if !is_number(text) || text.iter().any(|b| matches!(b, b'e' | b'E')) => return None,
            _ => {}
        }
        let (negative, digits) = match text.strip_prefix(b"-") {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let point = digits.iter().position(|b| *b == b'.').unwrap_or(digits.len());
        let fraction = digits.get(point + 1..).unwrap_or_default();
        let used = fraction.iter().rposition(|b| *b != b'0').map_or(0, |i| i + 1);
        let (whole, fraction) = (&digits[..point], &fraction[..used]);
        // Numeric has no negative zero.
        if negative && whole == b"0" && fraction.is_empty() {
            return None;
        }
        Some(Numeric::Finite { negative, whole, fraction })
    }

    fn rank(&self) -> u8 {
        match self {
            Numeric::NegativeInfinity => 0,
            Numeric::Finite { .. } => 1,
            Numeric::Infinity => 2,
            Numeric::NaN => 3,
        }
    }

    fn cmp(&self, other: &Numeric<'_>) -> Ordering {
        let (Numeric::Finite { negative, whole, fraction }, Numeric::Finite { negative: n, whole: w, fraction: f }) =
            (self, other)
        else {
            return self.rank().cmp(&other.rank());
        };
        // No leading zeros, so the longer whole part is the larger one.
        let magnitude = whole.len().cmp(&w.len()).then_with(|| whole.cmp(w)).then_with(|| fraction.cmp(f));
        match (negative, n) {
            (false, false) => magnitude,
            (true, true) => magnitude.reverse(),
            (negative, n) => n.cmp(negative),
        }
    }
}

/// Microseconds since 1970 (UTC, or local if there is no offset), the infinities at the ends.
fn instant(text: &[u8]) -> Option<i128> {
    match text {
        b"infinity" => return Some(i128::MAX),
        b"-infinity" => return Some(i128::MIN),
        _ => {}
    }
    let text = std::str::from_utf8(text).ok()?;
    let (text, before_christ) = match text.strip_suffix(" BC") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let (date, time) = text.split_once(' ').unwrap_or((text, "00:00:00"));
    let mut parts = date.splitn(3, '-');
    let (year, month, day) = (number(parts.next()?)?, number(parts.next()?)?, number(parts.next()?)?);
    let year = if before_christ { 1 - year } else { year };
    let sign = time.find(['+', '-']).unwrap_or(time.len());
    let micros = clock(&time[..sign])?;
    let offset = match time[sign..].split_at_checked(1) {
        None => 0,
        Some(("-", offset)) => -clock(offset)?,
        Some((_, offset)) => clock(offset)?,
    };
    Some(i128::from(days_from_civil(year, month, day)?) * 86_400_000_000 + i128::from(micros - offset))
}

/// Up to nine digits.
fn number(text: &str) -> Option<i64> {
    (text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

/// `10`, `10:15`, `10:15:30`, `10:15:30.5` as microseconds.
fn clock(text: &str) -> Option<i64> {
    let (text, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut seconds = 0;
    let mut unit = 3600;
    for part in text.split(':') {
        if unit == 0 {
            return None;
        }
        seconds += number(part)? * unit;
        unit /= 60;
    }
    let micros = match fraction.len() {
        0 => 0,
        length @ 1..=6 => number(fraction)? * 10i64.pow(6 - length as u32),
        _ => return None,
    };
    Some(seconds * 1_000_000 + micros)
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar (Howard Hinnant's algorithm).
fn days_from_civil(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(era * 146_097 + day_of_era - 719_468)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ascending(order: Order, texts: &[&str]) {
        for (i, a) in texts.iter().enumerate() {
            for (j, b) in texts.iter().enumerate() {
                assert_eq!(compare(order, a.as_bytes(), b.as_bytes()), Some(i.cmp(&j)), "{a} {b}");
            }
        }
    }

    #[test]
    fn values_are_ordered_as_their_type_orders_them() {
        ascending(Order::Bytes, &["f", "t"]);
        ascending(Order::Blanks, &["", "B  ", "B!", "a "]);
        ascending(Order::Integer, &["-9223372036854775808", "-1", "0", "9", "10", "4294967295"]);
        ascending(
            Order::Numeric,
            &[
                "-Infinity",
                "-10",
                "-1.5",
                "-1.05",
                "0",
                "0.001",
                "0.01",
                "1",
                "1.05",
                "1.5",
                "9",
                "10",
                "Infinity",
                "NaN",
            ],
        );
        ascending(Order::Float, &["-Infinity", "-1e+20", "-1", "0", "1e-07", "1", "1e+20", "Infinity", "NaN"]);
        ascending(
            Order::Timestamp,
            &[
                "-infinity",
                "4713-01-01 BC",
                "0044-03-15 BC",
                "0001-12-31 23:59:59 BC",
                "0001-01-01",
                "2000-01-01 01:00:00+02",
                "1999-12-31 23:59:59.999999",
                "2000-01-01",
                "2000-01-01 00:00:00.1",
                "2000-01-01 00:00:00-00:30",
                "12026-01-01",
                "infinity",
            ],
        );
        assert_eq!(compare(Order::Numeric, b"1.50", b"1.5"), Some(Ordering::Equal));
        assert_eq!(compare(Order::Float, b"-0", b"0"), Some(Ordering::Equal));
        assert_eq!(compare(Order::Integer, b"x", b"0"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_compare_or_not_without_panic(
            a in prop_oneof!["[-0-9.:+ BC]{0,30}", any::<String>()], b in "[-0-9.:+ eE]{0,30}",
        ) {
            for order in [Order::Bytes, Order::Integer, Order::Numeric, Order::Float, Order::Timestamp] {
                let there = compare(order, a.as_bytes(), b.as_bytes());
                let back = compare(order, b.as_bytes(), a.as_bytes());
                prop_assert_eq!(there.map(Ordering::reverse), back);
            }
        }
    }
}
