//! Casts of texts, as Postgres does them.

use std::borrow::Cow;

use super::Conversion;
use crate::policy::term::Fault;
use crate::policy::term::read::{integer, uuid};

/// The text after a cast.
pub(in crate::policy) fn convert(conversion: Conversion, text: &[u8]) -> Result<Cow<'_, [u8]>, Fault> {
    let utf8 = || std::str::from_utf8(text).map_err(|_| Fault::Unsure);
    match conversion {
        Conversion::BoolToText => match text {
            b"t" => Ok(Cow::Borrowed(b"true")),
            b"f" => Ok(Cow::Borrowed(b"false")),
            _ => Err(Fault::Unsure),
        },
        Conversion::TextToUuid => uuid(utf8()?).map(|text| Cow::Owned(text.into_bytes())).ok_or(Fault::Raises),
        Conversion::TextToInt(size) | Conversion::IntToInt(size) => {
            let number = integer(utf8()?)?;
            let fits = match size {
                2 => i16::try_from(number).is_ok(),
                4 => i32::try_from(number).is_ok(),
                _ => true,
            };
            if fits { Ok(Cow::Owned(number.to_string().into_bytes())) } else { Err(Fault::Raises) }
        }
        Conversion::TextToBool => boolean(text).map(|value| Cow::Borrowed(if value { &b"t"[..] } else { b"f" })),
    }
}

/// Whether the cast gives a value.
pub(in crate::policy) fn convertible(conversion: Conversion, text: &[u8]) -> bool {
    convert(conversion, text).is_ok()
}

/// `boolin`: blanks around, either case, any beginning of `true`, `false`, `yes`, `no` that is not ambiguous, `on`, `off`
/// or `of`, `1`, `0`.
fn boolean(text: &[u8]) -> Result<bool, Fault> {
    let text = text.to_ascii_lowercase();
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r');
    let start = text.iter().position(|byte| !blank(byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    let word = &text[start..end];
    let begins = |whole: &[u8]| !word.is_empty() && whole.starts_with(word);
    if begins(b"true") || begins(b"yes") || word == b"on" || word == b"1" {
        Ok(true)
    } else if begins(b"false") || begins(b"no") || (word.len() > 1 && begins(b"off")) || word == b"0" {
        Ok(false)
    } else {
        Err(Fault::Raises)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_read_as_postgres_reads_them() {
        for (text, value) in [("t", true), (" TRUE\n", true), ("y", true), ("on", true), ("1", true), ("of", false)] {
            assert_eq!(boolean(text.as_bytes()), Ok(value), "{text}");
        }
        for raises in ["", " ", "o", "truee", "2", "-1"] {
            assert_eq!(boolean(raises.as_bytes()), Err(Fault::Raises), "{raises}");
        }
    }

    #[test]
    fn casts_change_the_text_or_raise() {
        for (conversion, from, to) in [
            (Conversion::BoolToText, "t", Some("true")),
            (Conversion::TextToInt(4), " 007", Some("7")),
            (Conversion::TextToInt(2), "40000", None),
            (Conversion::IntToInt(4), "2147483648", None),
            (Conversion::TextToUuid, "A0EEBC999C0B4EF8BB6D6BB9BD380A11", Some("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
            (Conversion::TextToBool, "no", Some("f")),
        ] {
            let found = convert(conversion, from.as_bytes());
            assert_eq!(found.ok().as_deref(), to.map(str::as_bytes), "{conversion:?} {from}");
        }
    }
}
