//! `JWKS_URL`: a file or a web address, checked when it is read.
//!
//! What it prints has no query: some issuers want a key in it. A user name or password is refused, since nothing would send it.
//! Plain http is for this machine only: whoever can answer in the key server's place signs tokens for everybody.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hyper::Uri;

use super::verify::percent_decoded;

/// Where a key set is.
#[derive(Clone, PartialEq, Eq)]
pub enum KeySetLocation {
    /// An absolute path.
    File(PathBuf),
    /// A web address.
    Web(WebAddress),
}

/// An `https` address, or an `http` one on the loopback interface.
#[derive(Clone, PartialEq, Eq)]
pub struct WebAddress {
    uri: Uri,
    host: String,
    port: u16,
    tls: bool,
}

impl WebAddress {
    /// A name or an IP address, the latter without brackets.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is `https`. If not, only loopback addresses may be connected to.
    pub(super) fn tls(&self) -> bool {
        self.tls
    }

    /// Host and port as they were written.
    pub(super) fn authority(&self) -> &str {
        self.uri.authority().map_or("", |authority| authority.as_str())
    }

    /// Path and query.
    pub(super) fn target(&self) -> &str {
        self.uri.path_and_query().map_or("/", |target| target.as_str())
    }
}

impl FromStr for KeySetLocation {
    type Err = String;

    /// The error is the rest of a sentence that begins with the setting's name, and repeats nothing of the text.
    fn from_str(text: &str) -> Result<KeySetLocation, String> {
        let text = text.trim();
        if text.starts_with('/') {
            return Ok(KeySetLocation::File(text.into()));
        }
        if let Some((scheme, rest)) = text.split_once("://")
            && scheme.eq_ignore_ascii_case("file")
        {
            let path = rest.strip_prefix("localhost").unwrap_or(rest);
            let path =
                Some(path).filter(|path| path.starts_with('/')).ok_or("is a file: address without an absolute path")?;
            let path = String::from_utf8(percent_decoded(path)).map_err(|_| "has a path that is not UTF-8")?;
            return Ok(KeySetLocation::File(Path::new(&path).to_owned()));
        }
        web(text).map(KeySetLocation::Web)
    }
}

fn web(text: &str) -> Result<WebAddress, String> {
    let uri: Uri = text.parse().map_err(|_| "is not an address")?;
    let tls = match uri.scheme_str().map(str::to_ascii_lowercase).as_deref() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err("is neither an https address nor a file".into()),
    };
    let authority = uri.authority().ok_or("names no host")?;
    if authority.as_str().contains('@') {
        return Err("has a user name or password in it, which would not be sent".into());
    }
    let written = authority.host();
    if written.is_empty() {
        return Err("names no host".into());
    }
    let port = match authority.port_u16() {
        Some(port) => port,
        None if authority.as_str().len() > written.len() => return Err("has a port that is none".into()),
        None if tls => 443,
        None => 80,
    };
    let host = written.trim_start_matches('[').trim_end_matches(']').to_owned();
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if !tls && !loopback {
        return Err("is a plain http address of another machine; whoever stands between could sign every token".into());
    }
    Ok(WebAddress { host, port, tls, uri })
}

impl fmt::Display for KeySetLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeySetLocation::File(path) => path.display().fmt(f),
            KeySetLocation::Web(at) => {
                let scheme = if at.tls { "https" } else { "http" };
                write!(f, "{scheme}://{}{}", at.authority(), at.uri.path())
            }
        }
    }
}

impl fmt::Debug for KeySetLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for WebAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_web_addresses_are_told_apart() {
        for text in ["/etc/keys.json", "file:///etc/keys.json", "FILE://localhost/etc/keys.json", " /etc/keys.json\n"] {
            assert_eq!(text.parse(), Ok(KeySetLocation::File("/etc/keys.json".into())), "{text}");
        }
        assert_eq!("file:///a%20b".parse(), Ok(KeySetLocation::File("/a b".into())));
        let parts = |text: &str| match text.parse() {
            Ok(KeySetLocation::Web(at)) => (at.host().to_owned(), at.port(), at.tls(), at.target().to_owned()),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(parts("https://idp.example/k?x=1#f"), ("idp.example".into(), 443, true, "/k?x=1".into()));
        assert_eq!(parts("HTTPS://idp.example:8443"), ("idp.example".into(), 8443, true, "/".into()));
        assert_eq!(parts("https://[2001:db8::1]:1/k"), ("2001:db8::1".into(), 1, true, "/k".into()));
        for host in ["localhost", "127.0.0.1", "127.9.9.9", "[::1]"] {
            assert!(!parts(&format!("http://{host}:9/k")).2);
        }
    }

    #[test]
    fn what_would_not_be_safe_or_not_work_is_refused_without_repeating_it() {
        let refused = [
            "",
            "keys.json",
            "ftp://idp.example/k",
            "file://other/k",
            "file:keys",
            "https://",
            "https:///k",
            "https://user:hunter2@idp.example/k",
            "https://idp.example:99999/k",
            "https://idp.example:/k",
            "http://idp.example/hunter2",
            "http://127.0.0.1.idp.example/k",
            "http://localhost.idp.example/k",
            "https://idp example/k",
        ];
        for text in refused {
            let problem = text.parse::<KeySetLocation>().expect_err(text);
            assert!(!problem.contains("hunter2") && !problem.is_empty(), "{problem}");
        }
    }

    #[test]
    fn a_query_is_not_printed() {
        let location: KeySetLocation = "https://idp.example:8443/keys?token=hunter2".parse().expect("an address");
        assert_eq!(format!("{location} {location:?}"), "https://idp.example:8443/keys https://idp.example:8443/keys");
    }
}
