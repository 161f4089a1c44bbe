//! `rowcast health`: asks a relay on this machine whether changes are streaming; for containers, which have no curl.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Environment;
use super::Failure;
use super::args::HealthArgs;

const DEADLINE: Duration = Duration::from_secs(2);
/// More than any answer of `/readyz` has.
const MAX_ANSWER: u64 = 4096;

pub(super) async fn health(args: &HealthArgs, environment: &Environment) -> Result<(), Failure> {
    let settings = environment.settings(args.config.as_deref(), &args.flags())?;
    let port = settings.get("port").unwrap_or("4000").to_owned();
    // A relay that listens on all addresses is asked on the loopback one.
    let host = match settings.get("host").unwrap_or("0.0.0.0") {
        "0.0.0.0" => "127.0.0.1".to_owned(),
        "::" | "[::]" => "::1".to_owned(),
        host => host.trim_matches(['[', ']']).to_owned(),
    };
    let failed = |text: String| Failure { text, advice: String::new(), exit: 1 };
    let address = format!("{host} port {port}");
    let number: u16 = port.parse().map_err(|_| failed(format!("PORT is {port:?}")))?;
    let tls = settings.get("tls_cert").is_some();
    match tokio::time::timeout(DEADLINE, ask(&host, number, tls)).await {
        Ok(Ok(status)) if status.split(' ').nth(1) == Some("200") => {
            println!("ready");
            Ok(())
        }
        Ok(Ok(status)) => Err(failed(format!("the relay on {address} is not ready: {status}"))),
        Ok(Err(error)) => Err(failed(format!("no relay answers on {address}: {error}"))),
        Err(_) => Err(failed(format!("the relay on {address} does not answer within {DEADLINE:?}"))),
    }
}

/// The status line of `/readyz`.
async fn ask(host: &str, port: u16, tls: bool) -> std::io::Result<String> {
    let stream = TcpStream::connect((host, port)).await?;
    if !tls {
        return status(stream).await;
    }
    // Whether the certificate is good is for clients to say, who know the name that it is made out to.
    let config = crate::pg::unverified_tls().map_err(std::io::Error::other)?;
    let name = ServerName::try_from("localhost").map_err(std::io::Error::other)?;
    status(TlsConnector::from(Arc::new(config)).connect(name, stream).await?).await
}

async fn status(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<String> {
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned())
}
