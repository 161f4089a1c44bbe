//! The input functions of types, as far as every version of Postgres reads alike.

use super::Fault;

/// `isspace` in the C locale.
const BLANKS: [char; 6] = [' ', '\t', '\n', '\x0b', '\x0c', '\r'];

/// `uuid_in`: 32 hexadecimal digits of either case, a hyphen allowed after every fourth, all in braces or not; no spaces.
/// Gives the canonical form.
pub(in crate::policy) fn uuid(text: &str) -> Option<String> {
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
pub(in crate::policy) fn integer(text: &str) -> Result<i64, Fault> {
    let trimmed = text.trim_matches(BLANKS);
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

/// `boolin`: a prefix of a word that no other word has, blanks around it, in any case.
pub(in crate::policy) fn boolean(text: &str) -> Option<bool> {
    let word = text.trim_matches(BLANKS).to_ascii_lowercase();
    let begins = |full: &str, least: usize| word.len() >= least && full.starts_with(&word);
    if begins("true", 1) || begins("yes", 1) || word == "on" || word == "1" {
        return Some(true);
    }
    (begins("false", 1) || begins("no", 1) || begins("off", 2) || word == "0").then_some(false)
}

/// `numeric_in` for plain decimals, in canonical form. Exponents, infinities and what newer versions read are left to Postgres.
pub(in crate::policy) fn numeric(text: &str) -> Result<String, Fault> {
    let trimmed = text.trim_matches(BLANKS);
    let (negative, digits) = match trimmed.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, trimmed.strip_prefix('+').unwrap_or(trimmed)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if !plain(whole) || !plain(fraction) || whole.len() + fraction.len() > 200 {
        return Err(Fault::Unsure);
    }
    if whole.is_empty() && fraction.is_empty() {
        return Err(Fault::Raises);
    }
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    let whole = if whole.is_empty() { "0" } else { whole };
    let sign = if negative && (whole != "0" || !fraction.is_empty()) { "-" } else { "" };
    let point = if fraction.is_empty() { "" } else { "." };
    Ok(format!("{sign}{whole}{point}{fraction}"))
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

    #[test]
    fn booleans_and_decimals_are_exact_or_unsure() {
        for (text, value) in
            [("t", true), (" TRUE ", true), ("y", true), ("on", true), ("1", true), ("of", false), ("n", false)]
        {
            assert_eq!(boolean(text), Some(value), "{text}");
        }
        for bad in ["", " ", "o", "truee", "10", "ja"] {
            assert_eq!(boolean(bad), None, "{bad}");
        }
        for (text, value) in [
            ("1.50", "1.5"),
            ("-0.0", "0"),
            ("007", "7"),
            (".5", "0.5"),
            ("5.", "5"),
            (" -12.30 ", "-12.3"),
            ("+1", "1"),
        ] {
            assert_eq!(numeric(text).as_deref(), Ok(value), "{text}");
        }
        for (text, fault) in [
            ("", Fault::Raises),
            (".", Fault::Raises),
            ("-", Fault::Raises),
            ("1e3", Fault::Unsure),
            ("NaN", Fault::Unsure),
        ] {
            assert_eq!(numeric(text), Err(fault), "{text}");
        }
    }
}
