//! Where the relay is, and the way to its first byte: name lookup, TCP, TLS.
//!
//! Only Mozilla's roots vouch for a server, or only the given authorities. Rejected: user names and queries in the address,
//! which would be printed with it.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::ClientError;

/// For one of several IP addresses, so that a dead one doesn't use up the time of the next.
const CONNECT: Duration = Duration::from_secs(5);
/// Where a path is not given.
const USUAL_PATH: &str = "/realtime/v1";

/// A relay's address.
#[derive(Clone)]
pub struct Address {
    host: String,
    port: u16,
    authority: String,
    path: String,
    tls: Option<Arc<ClientConfig>>,
}

/// What a WebSocket runs on.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Address {
    /// `ws`, `wss`, `http` or `https`; without a path the usual one. `ca` is a PEM file of the only authorities that may vouch
    /// for the server.
    pub fn parse(text: &str, ca: Option<&Path>) -> Result<Address, ClientError> {
        let uri: Uri = text.trim().parse().map_err(|_| ClientError::Address("is none"))?;
        let tls = match uri.scheme_str().map(str::to_ascii_lowercase).as_deref() {
            Some("ws" | "http") => false,
            Some("wss" | "https") => true,
            _ => return Err(ClientError::Address("does not begin with ws:// or wss://")),
        };
        let authority = uri.authority().ok_or(ClientError::Address("names no host"))?;
        if authority.as_str().contains('@') {
            return Err(ClientError::Address("has a user name or password in it"));
        }
        if uri.query().is_some() {
            return Err(ClientError::Address("has a query; a key is given apart from it"));
        }
        let written = authority.host();
        let port = match authority.port_u16() {
            Some(port) => port,
            None if authority.as_str().len() > written.len() => {
                return Err(ClientError::Address("has a port that is none"));
            }
            None => {
                if tls {
                    443
                } else {
                    80
                }
            }
        };
        let path = match uri.path().trim_end_matches('/') {
            "" => format!("{USUAL_PATH}/websocket"),
            path if path.ends_with("/websocket") => path.to_owned(),
            path => format!("{path}/websocket"),
        };
        let host = written.trim_matches(['[', ']']).to_owned();
        if host.is_empty() {
            return Err(ClientError::Address("names no host"));
        }
        let tls = tls.then(|| config(ca)).transpose()?;
        Ok(Address { host, port, authority: authority.to_string(), path, tls })
    }

    /// Whether what is sent can be read on the way: no TLS, to another machine.
    pub fn is_in_the_clear(&self) -> bool {
        let own = self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        self.tls.is_none() && !own
    }

    /// With a key, for the handshake. It is a secret.
    pub(super) fn request(&self, key: &str) -> String {
        format!("{self}?apikey={}&vsn=2.0.0", percent_encoded(key))
    }

    pub(super) async fn connect(&self) -> Result<Box<dyn Stream>, ClientError> {
        let stream = self.tcp().await.map_err(ClientError::Connect)?;
        // Frames are small and somebody waits for each.
        stream.set_nodelay(true).map_err(ClientError::Connect)?;
        let Some(config) = &self.tls else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from(self.host.clone())
            .map_err(|_| ClientError::Address("has a host that no certificate can be for"))?;
        let connecting = tokio_rustls::TlsConnector::from(config.clone()).connect(name, stream);
        match connecting.await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::InvalidCertificate(_)) => ClientError::Certificate(error),
                Some(_) => ClientError::NoTls(error),
                None => ClientError::Tls(error),
            }),
        }
    }

    async fn tcp(&self) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for at in tokio::net::lookup_host((&*self.host, self.port)).await? {
            match tokio::time::timeout(CONNECT, TcpStream::connect(at)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "wss" } else { "ws" };
        write!(f, "{scheme}://{}{}", self.authority, self.path)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn config(ca: Option<&Path>) -> Result<Arc<ClientConfig>, ClientError> {
    let mut roots = RootCertStore::empty();
    match ca {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            let unusable = |reason: String| ClientError::Authorities { path: path.to_owned(), reason };
            let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
            let certificates = read.map_err(|error| unusable(error.to_string()))?;
            // A system's bundle may hold some that this library doesn't take; one that is needed and missing shows itself.
            if roots.add_parsable_certificates(certificates).0 == 0 {
                return Err(unusable("no certificate in it".into()));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let versions = versions.map_err(|error| ClientError::NoTls(io::Error::other(error)))?;
    let mut config = versions.with_root_certificates(roots).with_no_client_auth();
    // Without it a proxy might choose HTTP/2, which has no such upgrade.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn percent_encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_an_address_leads_to_the_same_socket() {
        for text in ["ws://h:4000", "http://h:4000/", "WS://h:4000/realtime/v1", " ws://h:4000/realtime/v1/websocket/ "]
        {
            let address = Address::parse(text, None).expect(text);
            assert_eq!(address.to_string(), "ws://h:4000/realtime/v1/websocket", "{text}");
        }
        let address = Address::parse("wss://[::1]/socket", None).expect("an address");
        assert_eq!((address.port, &*address.host, &*address.to_string()), (443, "::1", "wss://[::1]/socket/websocket"));
        assert_eq!(address.request("a+b/ä"), "wss://[::1]/socket/websocket?apikey=a%2Bb%2F%C3%A4&vsn=2.0.0");
    }

    #[test]
    fn what_is_no_address_is_refused_without_repeating_it() {
        for text in [
            "",
            "h:4000",
            "postgres://h/x",
            "ws://",
            "ws://u:hunter2@h/",
            "ws://h/?apikey=hunter2",
            "ws://h:99999/",
            "ws://h h/",
        ] {
            let error = Address::parse(text, None).expect_err(text).to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        let missing = Address::parse("wss://h", Some(Path::new("/no/such/file"))).expect_err("no file").to_string();
        assert!(missing.contains("/no/such/file"), "{missing}");
    }

    #[test]
    fn only_this_machine_and_tls_are_not_in_the_clear() {
        let clear = |text| Address::parse(text, None).expect(text).is_in_the_clear();
        assert!(clear("ws://relay.example.com") && clear("ws://10.0.0.1:4000"));
        assert!(!clear("wss://relay.example.com") && !clear("ws://localhost:4000") && !clear("ws://[::1]"));
    }
}
