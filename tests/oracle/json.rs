//! JSON in one form, without a trip through `double`: `1e+2` and `100` are one number, the order of keys means nothing.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// The same value always gives the same text. Unless `floating`, a number's digits are kept as they are: `1.50` is not `1.5`.
pub(super) fn normal(json: &str, floating: bool) -> String {
    let json = json.trim();
    match json.as_bytes().first() {
        Some(b'{') => {
            let members: BTreeMap<String, Box<RawValue>> = parse(json);
            let members = members.iter().map(|(key, value)| format!("{key:?}:{}", normal(value.get(), floating)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
        Some(b'[') => {
            let elements: Vec<Box<RawValue>> = parse(json);
            let elements = elements.iter().map(|value| normal(value.get(), floating));
            format!("[{}]", elements.collect::<Vec<_>>().join(","))
        }
        Some(b'"') => format!("{:?}", parse::<String>(json)),
        Some(b'-' | b'0'..=b'9') if floating => decimal(json),
        _ => json.to_owned(),
    }
}

/// The members of an object, each in its own text.
pub(super) fn members(json: &str) -> BTreeMap<String, Box<RawValue>> {
    parse(json)
}

fn parse<'a, T: serde::Deserialize<'a>>(json: &'a str) -> T {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"))
}

fn decimal(number: &str) -> String {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_end_matches('0');
    let exponent = exponent.parse::<i64>().expect("an exponent") - fraction.len() as i64;
    let exponent = exponent + (digits.len() - significant.len()) as i64;
    match significant.trim_start_matches('0') {
        "" => "0".into(),
        significant => format!("{sign}{significant}e{exponent}"),
    }
}
