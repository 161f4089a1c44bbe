//! Casts of texts, as Postgres does them.

use std::borrow::Cow;

use super::Conversion;
use crate::policy::term::Fault;
use crate::policy::term::read::{boolean, integer, uuid};

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
        Conversion::TextToBool => {
            boolean(utf8()?).map(|value| Cow::Borrowed(if value { &b"t"[..] } else { b"f" })).ok_or(Fault::Raises)
        }
    }
}

/// Whether the cast gives a value.
pub(in crate::policy) fn convertible(conversion: Conversion, text: &[u8]) -> bool {
    convert(conversion, text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

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
