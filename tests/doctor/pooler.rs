//! A pooler in the way, imitated: what pgbouncer does to the settings in the startup packet.

use std::net::SocketAddr;
use std::sync::Arc;

use rowcast::clock::Clock;
use rowcast::doctor::{Finding, Severity, examine};
use rowcast::task;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};

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

/// The client's first packet, without its length.
async fn startup(client: &mut TcpStream) -> Option<Vec<u8>> {
    loop {
        let length = client.read_u32().await.ok()?;
        let mut packet = vec![0; usize::try_from(length).ok()?.checked_sub(4)?];
        client.read_exact(&mut packet).await.ok()?;
        if packet != 80_877_103_u32.to_be_bytes() {
            return Some(packet);
        }
        // A wish for TLS is declined.
        client.write_all(b"N").await.ok()?;
    }
}

/// A connection to the server that begins with this packet.
async fn begun(port: u16, packet: &[u8]) -> Option<TcpStream> {
    let mut server = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    server.write_u32(u32::try_from(packet.len()).ok()? + 4).await.ok()?;
    server.write_all(packet).await.ok()?;
    Some(server)
}

async fn serve(mut client: TcpStream, port: u16, settings: Settings) -> Option<()> {
    let parameters = startup(&mut client).await?;
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
    let mut server = begun(port, &packet).await?;
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

/// One server session for all ordinary clients, as in transaction pooling; the replication connection has one of its own.
/// Clients take turns, as those of `doctor` do.
struct Shared {
    to_server: OwnedWriteHalf,
    /// What the server said to the first client until it was ready; every other one hears the same.
    greeting: Vec<u8>,
    turn: Arc<Mutex<Turn>>,
    /// Hears of each time the server is ready.
    ready: mpsc::Receiver<()>,
}

/// Answers go to whoever spoke last.
#[derive(Default)]
struct Turn {
    clients: Vec<OwnedWriteHalf>,
    speaker: usize,
}

/// A message of the protocol: its letter, and all of it.
async fn message(stream: &mut OwnedReadHalf) -> Option<(u8, Vec<u8>)> {
    let letter = stream.read_u8().await.ok()?;
    let length = stream.read_u32().await.ok()?;
    let mut whole = vec![0; usize::try_from(length).ok()? + 1];
    whole[0] = letter;
    whole[1..5].copy_from_slice(&length.to_be_bytes());
    stream.read_exact(&mut whole[5..]).await.ok()?;
    Some((letter, whole))
}

async fn sharing_pooler(port: u16) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let shared: Arc<Mutex<Option<Shared>>> = Arc::default();
    drop(task::spawn("pooler", async move {
        while let Ok((client, _)) = listener.accept().await {
            drop(task::spawn("pooled", share(client, port, shared.clone())));
        }
    }));
    address
}

async fn share(mut client: TcpStream, port: u16, shared: Arc<Mutex<Option<Shared>>>) -> Option<()> {
    let packet = startup(&mut client).await?;
    if packet.windows(11).any(|part| part == b"replication") {
        let mut server = begun(port, &packet).await?;
        copy_bidirectional(&mut client, &mut server).await.ok()?;
        return Some(());
    }
    let (mut from_client, mut to_client) = client.into_split();
    let own = {
        let mut pool = shared.lock().await;
        if pool.is_none() {
            *pool = Some(session(port, &packet).await?);
        }
        let pool = pool.as_ref()?;
        to_client.write_all(&pool.greeting).await.ok()?;
        let mut turn = pool.turn.lock().await;
        turn.clients.push(to_client);
        turn.clients.len() - 1
    };
    while let Some((mut letter, mut whole)) = message(&mut from_client).await {
        let mut pool = shared.lock().await;
        let pool = pool.as_mut()?;
        pool.turn.lock().await.speaker = own;
        // The turn lasts until the server is ready for the next.
        loop {
            if letter == b'X' {
                return Some(());
            }
            pool.to_server.write_all(&whole).await.ok()?;
            if matches!(letter, b'S' | b'Q') {
                pool.ready.recv().await?;
                break;
            }
            (letter, whole) = message(&mut from_client).await?;
        }
    }
    Some(())
}

async fn session(port: u16, packet: &[u8]) -> Option<Shared> {
    let (mut from_server, to_server) = begun(port, packet).await?.into_split();
    let mut greeting = Vec::new();
    loop {
        let (letter, whole) = message(&mut from_server).await?;
        greeting.extend(whole);
        if letter == b'Z' {
            break;
        }
    }
    let turn: Arc<Mutex<Turn>> = Arc::default();
    let answers = turn.clone();
    let (tell, ready) = mpsc::channel(16);
    drop(task::spawn("answers", async move {
        while let Some((letter, whole)) = message(&mut from_server).await {
            let mut turn = answers.lock().await;
            let speaker = turn.speaker;
            if let Some(client) = turn.clients.get_mut(speaker) {
                // One that has gone needs no answer.
                let _ = client.write_all(&whole).await;
            }
            if letter == b'Z' && tell.send(()).await.is_err() {
                return;
            }
        }
    }));
    Some(Shared { to_server, greeting, turn, ready })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_shares_sessions_is_named() {
    let clinic = Clinic::healthy().await;
    let address = sharing_pooler(clinic.pg.port()).await;
    let url = format!("postgres://relay:test@{address}/postgres");
    let found = examine(&config(&url, clinic.data.path()), &[], &Clock::system()).await;
    let named = found.iter().find(|finding| finding.check == "pooler");
    let named = named.unwrap_or_else(|| panic!("no pooler in\n{}", shown(&found)));
    assert!(named.what.contains("one server process"), "{named:?}");
}
