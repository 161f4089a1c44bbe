//! Asking a running relay at its admin address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Failure;
use crate::config::Settings;

/// More than any answer has.
const MAX_ANSWER: u64 = 64 << 20;

/// Where the admin port of these settings is, as seen from this machine.
pub(super) fn address(settings: &Settings) -> Result<SocketAddr, Failure> {
    let text = settings.get("admin_addr").unwrap_or("127.0.0.1:4001");
    let advice =
        "Give --admin-addr or ROWCAST_ADMIN_ADDR with the relay's admin address, such as 127.0.0.1:4001.".to_owned();
    if text == "off" {
        let text = "the relay's admin address is off, so it can't be asked".to_owned();
        return Err(Failure { text, advice, exit: 1 });
    }
    let mut address: SocketAddr = text.trim().parse().map_err(|_| Failure {
        text: format!("the admin address is {text:?}"),
        advice: advice.clone(),
        exit: 2,
    })?;
    if address.ip().is_unspecified() {
        let loopback: IpAddr = if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        address.set_ip(loopback);
    }
    Ok(address)
}

/// Status and body, or why there is none.
pub(super) async fn ask(
    address: SocketAddr,
    (method, path): (&str, &str),
    body: &str,
    deadline: Duration,
) -> Result<(u16, String), String> {
    let asking = async {
        let mut stream = TcpStream::connect(address).await?;
        let kind = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\n{kind}content-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = match tokio::time::timeout(deadline, asking).await {
        Ok(Ok(answer)) => String::from_utf8_lossy(&answer).into_owned(),
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(format!("no answer within {deadline:?}")),
    };
    let parsed = answer.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    });
    parsed.ok_or_else(|| "what answers there is no relay".into())
}
