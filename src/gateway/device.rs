//! Which device a connection is, if it says so: what it received is kept under that name ([`crate::resume::Frontiers`]).
//!
//! Stock SDKs can name one in different places, so any of these will do, the first of them first: the path
//! `/realtime/v1/device/<id>/websocket`, the query parameter `device`, the header `x-device-id`; and, if the operator says so, a
//! claim of the token that a channel joins with. The name is chosen by the client and no secret, but never logged: together
//! with a token it would tell who somebody is.

use std::sync::Arc;
use std::time::Duration;

use warp::http::HeaderMap;

use super::handshake::parameter;
use crate::claims::Principal;

/// The longest name.
const MAX_ID: usize = 128;

/// What proves that a client has received something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Receipt {
    /// The Pong to a WebSocket Ping.
    #[default]
    Pong,
    /// The client's next Phoenix heartbeat: for proxies that answer Pings themselves.
    Heartbeat,
}

/// How devices are told apart, and their receipts taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceConfig {
    /// A claim that names the device of whoever names none.
    pub claim: Option<Box<str>>,
    /// What is a receipt.
    pub receipt: Receipt,
    /// How long a handshake waits for what was saved of devices, before it is told to come again.
    pub patience: Duration,
    /// Without anything to ask for, the peer is asked this often, or somewhat more often, whether it is there.
    pub quiet: Duration,
    /// While rows flow, a device is asked this often what it has.
    pub busy: Duration,
    /// The first such question waits this long, for more rows and for the hub to say how far it is.
    pub behind: Duration,
    /// An unanswered Ping is repeated after this; after as long again the peer counts as gone.
    pub unanswered: Duration,
}

impl Default for DeviceConfig {
    fn default() -> DeviceConfig {
        DeviceConfig {
            claim: None,
            receipt: Receipt::Pong,
            patience: Duration::from_secs(10),
            quiet: Duration::from_secs(25),
            busy: Duration::from_secs(1),
            behind: Duration::from_millis(100),
            // Longer together than any SDK is silent between two heartbeats.
            unanswered: Duration::from_secs(15),
        }
    }
}

/// What the request says, `path` being the path's part as it came; the text says why it is no name.
pub(super) fn named(path: Option<&str>, query: &str, headers: &HeaderMap) -> Result<Option<Arc<str>>, &'static str> {
    let given = match (path, parameter(query, "device")) {
        (Some(part), _) => Some(unescaped(part).ok_or(WRONG)?),
        (None, Some(value)) => Some(value),
        (None, None) => match headers.get("x-device-id") {
            Some(value) => Some(value.to_str().map_err(|_| WRONG)?.to_owned()),
            None => None,
        },
    };
    given.map(|id| if is_good(&id) { Ok(id.into()) } else { Err(WRONG) }).transpose()
}

/// What the operator's claim says.
pub(super) fn claimed(claim: Option<&str>, principal: &Principal) -> Option<Arc<str>> {
    let id = principal.claims.get(claim?)?.as_str()?;
    is_good(id).then(|| id.into())
}

const WRONG: &str = "a device id has 1 to 128 visible ASCII characters";

fn is_good(id: &str) -> bool {
    (1..=MAX_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

fn unescaped(part: &str) -> Option<String> {
    let mut plain = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        if *byte != b'%' {
            plain.push(*byte);
            continue;
        }
        let (hex, after) = tail.split_at_checked(2)?;
        plain.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(plain).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn headers(id: Option<&[u8]>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(id) = id {
            headers.insert("x-device-id", warp::http::HeaderValue::from_bytes(id).unwrap());
        }
        headers
    }

    #[test]
    fn a_device_is_named_by_path_query_or_header_in_this_order() {
        let name = |path, query, header| named(path, query, &headers(header)).map(|id| id.map(|id| id.to_string()));
        let is = |id: &str| Ok(Some(id.to_owned()));
        assert_eq!(name(None, "vsn=2.0.0", None), Ok(None));
        assert_eq!(name(None, "", Some(b"h")), is("h"));
        assert_eq!(name(None, "device=q&vsn=1.0.0", Some(b"h")), is("q"));
        assert_eq!(name(Some("p"), "device=q", Some(b"h")), is("p"));
        assert_eq!(name(Some("a%2Fb+c%3a"), "", None), is("a/b+c:"));
        assert_eq!(name(None, "device=a%2Fb", None), is("a/b"));
        assert_eq!(name(Some(&"x".repeat(128)), "", None), is(&"x".repeat(128)));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in ["", "a b", "%", "%4", "%zz", "%00", "ä", "%c3%a4", "%20", &"x".repeat(129)] {
            assert_eq!(named(Some(bad), "", &headers(None)), Err(WRONG), "{bad:?}");
        }
        for bad in ["device=", "device", "device=a%20b", "device=a+b", "device=%C3%A4"] {
            assert_eq!(named(None, bad, &headers(None)), Err(WRONG), "{bad:?}");
        }
        assert_eq!(named(None, "", &headers(Some(b"\xff"))), Err(WRONG));
        assert_eq!(named(None, "", &headers(Some(b"a b"))), Err(WRONG));
    }

    #[test]
    fn a_claim_names_it_if_the_operator_says_so() {
        let claims = json!({ "role": "authenticated", "session_id": "s1", "n": 5, "long": "x".repeat(129) });
        let principal = Principal::new(claims.as_object().unwrap().clone(), 0).unwrap();
        assert_eq!(claimed(None, &principal), None);
        assert_eq!(claimed(Some("session_id"), &principal).as_deref(), Some("s1"));
        for none in ["n", "long", "other"] {
            assert_eq!(claimed(Some(none), &principal), None);
        }
    }
}
