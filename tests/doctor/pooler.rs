//! A pooler in the way, imitated: what pgbouncer does to the settings in the startup packet.

use std::net::SocketAddr;

use rowcast::clock::Clock;
use rowcast::doctor::{Finding, Severity, examine};
use rowcast::task;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use super::{Clinic, config, shown};

/// What is done with a connection's settings.
#[derive(Clone, Copy)]
enum Settings {
    /// `FATAL: unsupported startup parameter`, as pgbouncer does by default.
    Refused,
    /// Dropped, as with `ignore_startup_parameters = options`.
    Dropped,
}

/// Stands before the server at this port.
async fn pooler(port: u16, settings: Settings) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(task::spawn("pooler", async move {
        while let Ok((client, _)) = listener.accept().await {
            drop(task::spawn("pooled", serve(client, port, settings)));
        }
    }));
    address
}

async fn serve(mut client: TcpStream, port: u16, settings: Settings) -> Option<()> {
    let parameters = loop {
        let length = client.read_u32().await.ok()?;
        let mut packet = vec![0; usize::try_from(length).ok()?.checked_sub(4)?];
        client.read_exact(&mut packet).await.ok()?;
        // A wish for TLS is declined.
        if packet == 80_877_103_u32.to_be_bytes() {
            client.write_all(b"N").await.ok()?;
            continue;
        }
        break packet;
    };
    let texts: Vec<&[u8]> = parameters[4..].split(|byte| *byte == 0).collect();
    let has_options = texts.chunks(2).any(|pair| pair[0] == b"options");
    if has_options && matches!(settings, Settings::Refused) {
        let body = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: options\0\0";
        client.write_all(b"E").await.ok()?;
        client.write_u32(u32::try_from(body.len()).ok()? + 4).await.ok()?;
        client.write_all(body).await.ok()?;
        return Some(());
    }
    let mut packet = parameters[..4].to_vec();
    for pair in texts.chunks(2).filter(|pair| pair.len() == 2 && !pair[0].is_empty() && pair[0] != b"options") {
        for text in pair {
            packet.extend_from_slice(text);
            packet.push(0);
        }
    }
    packet.push(0);
    let mut server = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    server.write_u32(u32::try_from(packet.len()).ok()? + 4).await.ok()?;
    server.write_all(&packet).await.ok()?;
    copy_bidirectional(&mut client, &mut server).await.ok()?;
    Some(())
}

async fn behind(clinic: &Clinic, settings: Settings) -> Vec<Finding> {
    let address = pooler(clinic.pg.port(), settings).await;
    let url = format!("postgres://relay:test@{address}/postgres");
    examine(&config(&url, clinic.data.path()), &[], &Clock::system()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_refuses_settings_is_named() {
    let clinic = Clinic::healthy().await;
    let found = behind(&clinic, Settings::Refused).await;
    let bad: Vec<&str> = found.iter().filter(|f| f.severity > Severity::Ok).map(|finding| finding.check).collect();
    assert_eq!(bad, ["pooler"], "{}", shown(&found));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_drops_settings_is_named_once() {
    let clinic = Clinic::healthy().await;
    clinic.pg.exec("alter role relay set datestyle = 'German'").await;
    let found = behind(&clinic, Settings::Dropped).await;
    let bad: Vec<&str> = found.iter().filter(|f| f.severity == Severity::Error).map(|finding| finding.check).collect();
    assert_eq!(bad, ["pooler"], "{}", shown(&found));
    // The same role's settings harm nobody who reaches the server itself.
    let found = clinic.findings().await;
    assert!(found.iter().all(|finding| finding.check != "pooler"), "{}", shown(&found));
}
