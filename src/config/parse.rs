//! Texts to values. Each error is the rest of a sentence that begins with the setting's name.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// `4GiB`, `512 MB`, `1048576`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let scale: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return Err("is not a size".into()),
    };
    let number: u64 = text[..digits].parse().map_err(|_| "is not a size".to_owned())?;
    number.checked_mul(scale).ok_or_else(|| "is too large".into())
}

/// `20s`, `500ms`, `24h`, `7d`; without a unit, seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| "is not a duration".to_owned())?;
    let seconds =
        |scale: u64| number.checked_mul(scale).map(Duration::from_secs).ok_or_else(|| "is too long".to_owned());
    match text[digits..].trim() {
        "" | "s" => seconds(1),
        "ms" => Ok(Duration::from_millis(number)),
        "m" | "min" => seconds(60),
        "h" => seconds(3600),
        "d" => seconds(86_400),
        _ => Err("is not a duration".into()),
    }
}

pub(crate) fn switch(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" | "" => Ok(false),
        _ => Err("is neither true nor false".into()),
    }
}

pub(super) fn host(text: &str) -> Result<IpAddr, String> {
    match text.trim() {
        "localhost" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        address => address.parse().map_err(|_| format!("is {address:?}, which is not an IP address")),
    }
}

/// `127.0.0.1:4001`, a bare port for loopback, or `off`.
pub(super) fn admin(text: &str) -> Result<Option<SocketAddr>, String> {
    let text = text.trim();
    if matches!(text, "off" | "none" | "") {
        return Ok(None);
    }
    if let Ok(port) = text.parse::<u16>() {
        return Ok(Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
    }
    let address = text.replacen("localhost:", "127.0.0.1:", 1);
    address.parse().map(Some).map_err(|_| format!("is {text:?}, which is not an address and port"))
}

/// Comma-separated, without empty parts.
pub(super) fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// A time from one second to one hour.
pub(super) fn seconds_to_an_hour(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if (1..=3600).contains(&time.as_secs()) { Ok(time) } else { Err(format!("is {text:?}")) }
}

/// A time from one millisecond to one minute.
pub(super) fn up_to_a_minute(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if (1..=60_000).contains(&time.as_millis()) { Ok(time) } else { Err(format!("is {text:?}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_take_the_usual_units() {
        for (text, value) in [("0", 0), ("4GiB", 4 << 30), ("512 mb", 512_000_000), ("64k", 65_536)] {
            assert_eq!(bytes(text), Ok(value), "{text}");
        }
        for bad in ["", "x", "-1", "1.5G", "4 pounds", "99999999999999TB"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        for (text, value) in [("20", 20_000), ("500ms", 500), ("24h", 86_400_000), ("2m", 120_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(value)), "{text}");
        }
        assert!(duration("soon").is_err() && duration("").is_err());
    }

    #[test]
    fn the_admin_address_is_an_address_a_port_or_off() {
        assert_eq!(admin("off"), Ok(None));
        assert_eq!(admin("4001"), admin("localhost:4001"));
        assert_eq!(admin("[::1]:9"), Ok(Some("[::1]:9".parse().expect("address"))));
        assert!(admin("somewhere").is_err());
    }
}
