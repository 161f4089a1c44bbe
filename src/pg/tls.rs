//! TLS to Postgres: libpq's parameters `sslmode`, `sslrootcert`, `sslcert` and `sslkey`, for queries and for the stream alike.
//!
//! They are taken out of the connection string, since tokio-postgres knows three of the modes and none of the files.
//!
//! Where we differ from libpq, on the strict side: `verify-ca` and `verify-full` without `sslrootcert` trust Mozilla's
//! authorities (libpq's `sslrootcert=system`) and not `~/.postgresql/root.crt`; `allow` is not offered. `require` with an
//! `sslrootcert` verifies the chain, as in libpq.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::PgError;

/// Why no TLS came about, for the advice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TlsFault {
    /// The server has none.
    NotOffered,
    /// The certificate is not made out to the host.
    Name,
    /// The certificate's authority is not trusted, or it is out of date, and the like.
    Certificate,
}

impl TlsFault {
    /// From what tokio-postgres says.
    pub(super) fn of(error: &tokio_postgres::Error) -> Option<TlsFault> {
        use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            // The only form in which tokio-postgres tells it.
            if cause.to_string() == "server does not support TLS" {
                return Some(TlsFault::NotOffered);
            }
            let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            let tls = cause.downcast_ref().or_else(|| inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()));
            match tls {
                Some(rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => {
                    return Some(TlsFault::Name);
                }
                Some(rustls::Error::InvalidCertificate(_)) => return Some(TlsFault::Certificate),
                _ => source = cause.source(),
            }
        }
        None
    }

    pub(super) fn advice(self) -> &'static str {
        match self {
            TlsFault::NotOffered => {
                "Set `ssl = on` on the server, or sslmode=disable in DATABASE_URL if the line to it is private."
            }
            TlsFault::Name => {
                "Connect by the name on the server's certificate, or write sslmode=verify-ca, which doesn't compare names."
            }
            TlsFault::Certificate => {
                "Name the file of the authority that signed the server's certificate: \
                 sslrootcert=/path/root.crt in DATABASE_URL."
            }
        }
    }
}

/// A name on the server's certificate, once a connection of ours has verified it. The replication library compares names also
/// under `verify-ca`; it is given one that fits.
#[derive(Debug, Clone, Default)]
pub struct VerifiedName(Arc<Mutex<Option<String>>>);

impl VerifiedName {
    /// The latest.
    pub fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From rustls's list of what the certificate is made out to, such as `DnsName("*.example.com")`.
    fn learn(&self, presented: &[String]) {
        let name = |text: &String| Some(text.strip_prefix("DnsName(\"")?.strip_suffix("\")")?.replace('*', "any"));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = presented.iter().find_map(name);
    }
}

/// How much the connection is protected; libpq's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS if the server offers it; no certificate is looked at.
    #[default]
    Prefer,
    /// TLS or no connection; no certificate is looked at.
    Require,
    /// The server's certificate must come from a trusted authority.
    VerifyCa,
    /// It must also be made out to the host that we connect to.
    VerifyFull,
}

/// TLS parameters of a connection string.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsParameters {
    /// `sslmode`.
    pub mode: SslMode,
    /// `sslrootcert`: trusted authorities, PEM. `None`: Mozilla's.
    pub root_file: Option<PathBuf>,
    /// `sslcert` and `sslkey`: our own certificate and its key, PEM.
    pub client_files: Option<(PathBuf, PathBuf)>,
}

const NAMES: [&str; 4] = ["sslmode", "sslrootcert", "sslcert", "sslkey"];

fn unsupported(text: String) -> PgError {
    PgError::Unsupported(text)
}

impl TlsParameters {
    /// Takes the TLS parameters out of a connection string of either form; what is left is for tokio-postgres.
    pub(super) fn take(text: &str) -> Result<(String, TlsParameters), PgError> {
        let (rest, pairs) = if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            take_from_url(text)?
        } else {
            take_from_words(text)
        };
        let get = |name: &str| pairs.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let mut mode = match get("sslmode") {
            None | Some("prefer") => SslMode::Prefer,
            Some("disable") => SslMode::Disable,
            Some("require") => SslMode::Require,
            Some("verify-ca") => SslMode::VerifyCa,
            Some("verify-full") => SslMode::VerifyFull,
            Some(other) => {
                let words = "disable, prefer, require, verify-ca and verify-full";
                return Err(unsupported(format!("sslmode={other} is none of {words}")));
            }
        };
        let root_file = get("sslrootcert").filter(|file| *file != "system").map(PathBuf::from);
        if mode == SslMode::Require && get("sslrootcert").is_some() {
            mode = SslMode::VerifyCa;
        }
        let client_files = match (get("sslcert"), get("sslkey")) {
            (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
            (None, None) => None,
            _ => return Err(unsupported("sslcert and sslkey belong together; one of them is missing".into())),
        };
        Ok((rest, TlsParameters { mode, root_file, client_files }))
    }

    /// What tokio-postgres is told: whether a line without TLS will do.
    pub(super) fn plain_mode(&self) -> tokio_postgres::config::SslMode {
        match self.mode {
            SslMode::Disable => tokio_postgres::config::SslMode::Disable,
            SslMode::Prefer => tokio_postgres::config::SslMode::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => tokio_postgres::config::SslMode::Require,
        }
    }

    /// For queries. Reads the files. `name` learns what `verify-ca` lets pass.
    pub(super) fn connector(&self, name: &VerifiedName) -> Result<MakeRustlsConnect, PgError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| unsupported(format!("TLS can't be used: {error}")))?;
        let builder = match self.mode {
            SslMode::Disable | SslMode::Prefer | SslMode::Require => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider)))
            }
            SslMode::VerifyFull => builder.with_root_certificates(self.roots()?),
            SslMode::VerifyCa => {
                let roots = Arc::new(self.roots()?);
                let inner = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
                let inner = inner.map_err(|error| unsupported(format!("sslrootcert can't be used: {error}")))?;
                builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyName(inner, name.clone())))
            }
        };
        let config = match &self.client_files {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
                let chain = chain.map_err(|error| unreadable("sslcert", certificate, &error))?;
                let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable("sslkey", key, &error))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| unsupported(format!("sslcert and sslkey can't be used together: {error}")))?
            }
        };
        Ok(MakeRustlsConnect::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, PgError> {
        let mut roots = RootCertStore::empty();
        let Some(file) = &self.root_file else {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
            return Ok(roots);
        };
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
        let certificates = certificates.map_err(|error| unreadable("sslrootcert", file, &error))?;
        if roots.add_parsable_certificates(certificates).0 == 0 {
            return Err(unsupported(format!("sslrootcert={} holds no certificate", file.display())));
        }
        Ok(roots)
    }
}

fn unreadable(name: &str, file: &std::path::Path, error: &rustls::pki_types::pem::Error) -> PgError {
    unsupported(format!("{name}={} can't be read as PEM: {error}", file.display()))
}

type Pairs = Vec<(String, String)>;

/// `postgres://…?a=b&sslmode=…`, percent-encoded.
fn take_from_url(url: &str) -> Result<(String, Pairs), PgError> {
    let Some((base, query)) = url.split_once('?') else { return Ok((url.to_owned(), Vec::new())) };
    let mut pairs = Vec::new();
    let mut kept = Vec::new();
    for part in query.split('&') {
        match part.split_once('=') {
            Some((name, value)) if NAMES.contains(&name) => {
                let bad = || unsupported(format!("the value of {name} is not percent-encoded UTF-8"));
                pairs.push((name.to_owned(), decoded(value).ok_or_else(bad)?));
            }
            _ => kept.push(part),
        }
    }
    let rest = if kept.is_empty() { base.to_owned() } else { format!("{base}?{}", kept.join("&")) };
    Ok((rest, pairs))
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| byte.and_then(|b| char::from(b).to_digit(16));
            plain.push(u8::try_from(digit(bytes.next())? * 16 + digit(bytes.next())?).ok()?);
        } else {
            plain.push(byte);
        }
    }
    String::from_utf8(plain).ok()
}

/// `host=h sslmode = 'verify-full'`: libpq's words, with quotes and backslashes.
fn take_from_words(text: &str) -> (String, Pairs) {
    let mut pairs = Vec::new();
    let mut rest = String::new();
    let mut left = text.trim_start();
    while !left.is_empty() {
        let Some((name, value, length)) = word(left) else {
            // Not of the form: tokio-postgres says what it thinks of it.
            rest.push_str(left);
            break;
        };
        if NAMES.contains(&name) {
            pairs.push((name.to_owned(), value));
        } else {
            rest.push_str(&left[..length]);
            rest.push(' ');
        }
        left = left[length..].trim_start();
    }
    (rest.trim_end().to_owned(), pairs)
}

/// The first `name = value` of a text: name, unquoted value, and its length.
fn word(text: &str) -> Option<(&str, String, usize)> {
    let equals = text.find('=')?;
    let name = text[..equals].trim_end();
    let after = &text[equals + 1..];
    let start = equals + 1 + (after.len() - after.trim_start().len());
    let quoted = text[start..].starts_with('\'');
    let mut value = String::new();
    let mut chars = text[start..].char_indices().skip(usize::from(quoted));
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.push(chars.next()?.1),
            '\'' if quoted => return Some((name, value, start + at + 1)),
            c if !quoted && c.is_whitespace() => return Some((name, value, start + at)),
            c => value.push(c),
        }
    }
    (!quoted).then_some((name, value, text.len()))
}

/// Accepts any certificate, but none that doesn't sign: `prefer` and `require`.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, schemes)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// TLS to a server of this machine whose certificate, made out to another name, proves nothing there.
pub(crate) fn unverified() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider)));
    Ok(builder.with_no_client_auth())
}

/// The usual checks, but for the name: `verify-ca`.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>, VerifiedName);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
        match self.0.verify_server_cert(certificate, chain, name, ocsp, now) {
            // The name is looked at last, after chain and dates.
            Err(rustls::Error::InvalidCertificate(NotValidForName)) => Ok(ServerCertVerified::assertion()),
            Err(rustls::Error::InvalidCertificate(NotValidForNameContext { presented, .. })) => {
                self.1.learn(&presented);
                Ok(ServerCertVerified::assertion())
            }
            other => {
                // The host's own name fits again: another host's must not be asked for.
                self.1.learn(&[]);
                other
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(text: &str) -> (String, TlsParameters) {
        TlsParameters::take(text).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn the_parameters_are_taken_out_of_both_forms() {
        let files = |mode| TlsParameters {
            mode,
            root_file: Some("/a b/root.crt".into()),
            client_files: Some(("c.crt".into(), "c.key".into())),
        };
        let url = "postgres://u:p%20w@h:1/d?sslmode=verify-full&application_name=x&sslrootcert=%2Fa%20b/root.crt&sslcert=c.crt&sslkey=c.key";
        assert_eq!(taken(url), ("postgres://u:p%20w@h:1/d?application_name=x".into(), files(SslMode::VerifyFull)));
        let words = r"host=h sslmode = verify-ca password='a\' sslmode=disable' sslrootcert='/a b/root.crt' sslcert=c.crt sslkey=c.key user=u";
        assert_eq!(taken(words), (r"host=h password='a\' sslmode=disable' user=u".into(), files(SslMode::VerifyCa)));
        assert_eq!(taken("postgres://h/d?sslmode=disable").0, "postgres://h/d");
        for text in ["postgres://h/d", "host=h", "", "nonsense", "host='open"] {
            assert_eq!(taken(text), (text.to_owned(), TlsParameters::default()), "{text}");
        }
    }

    #[test]
    fn require_with_an_authority_verifies_it_and_system_is_mozillas() {
        assert_eq!(taken("postgres://h/d?sslmode=require").1.mode, SslMode::Require);
        assert_eq!(taken("postgres://h/d?sslmode=require&sslrootcert=r").1.mode, SslMode::VerifyCa);
        let system = taken("postgres://h/d?sslmode=verify-full&sslrootcert=system").1;
        assert_eq!((system.mode, system.root_file.as_ref()), (SslMode::VerifyFull, None));
        assert!(system.connector(&VerifiedName::default()).is_ok());
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (text, says) in [
            ("postgres://h/d?sslmode=allow", "sslmode=allow"),
            ("postgres://h/d?sslcert=x", "sslkey"),
            ("postgres://h/d?sslmode=verify-full&sslrootcert=%zz", "sslrootcert"),
        ] {
            let error = TlsParameters::take(text).expect_err(text).to_string();
            assert!(error.contains(says), "{error}");
        }
        for text in
            ["sslmode=verify-ca sslrootcert=/no/such/file", "sslmode=require sslcert=/no/such/file sslkey=/none"]
        {
            let error = taken(text).1.connector(&VerifiedName::default()).err().expect(text).to_string();
            assert!(error.contains("/no/such/file"), "{error}");
        }
    }
}
