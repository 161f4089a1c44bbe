//! Handshakes and bodies that come a byte at a time, heads that are none, floods of requests, and bodies that no server wants.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, interval, timeout};

use super::intruder::{Door, Intruder, deep, say};
use super::{MIB, Siege};
use crate::support::phone::PATIENCE;
use crate::support::token::{self, ALICE, BOB};

/// More than `max_unauthenticated`.
const SLOW: usize = 1300;
/// For how long they are slow.
const LASTS: Duration = Duration::from_secs(3);

/// `ROWCAST_MAX_USER_POSTS`.
const AT_A_TIME: usize = 128;
/// Less than the relay gives a request to broadcast.
const SLOWEST: Duration = Duration::from_secs(10);

const BATCH: &str = "/realtime/v1/api/broadcast";

fn head(method: &str, path: &str, token: Option<&str>, length: usize) -> String {
    let authorization = token.map_or(String::new(), |token| format!("authorization: Bearer {token}\r\n"));
    format!(
        "{method} {path} HTTP/1.1\r\nhost: relay\r\ncontent-type: application/json\r\n{authorization}content-length: {length}\r\n"
    )
}

/// An answer on a connection of its own; the status.
async fn post(addr: SocketAddr, path: &str, token: Option<&str>, body: &[u8]) -> u16 {
    let head = head("POST", path, token, body.len()) + "connection: close\r\n\r\n";
    let answer = say(addr, &[head.as_bytes(), body].concat()).await;
    status(&answer).unwrap_or_else(|| panic!("{answer:?}"))
}

fn status(answer: &str) -> Option<u16> {
    answer.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

/// Who sends one byte of these at a time, and begins again when the relay has had enough. Never done.
async fn drip(addr: SocketAddr, bytes: &[u8]) {
    let mut pace = interval(Duration::from_millis(500));
    loop {
        let Ok(mut line) = TcpStream::connect(addr).await else { continue };
        for byte in bytes.iter().cycle() {
            pace.tick().await;
            if line.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
    }
}

async fn slow_handshakes(addr: SocketAddr) {
    let bytes = b"GET /realtime/v1/websocket?vsn=2.0.0 HTTP/1.1\r\nhost: relay\r\nx-slow: yes";
    let dripping = join_all((0..SLOW).map(|_| drip(addr, bytes)));
    let _ = timeout(LASTS, dripping).await;
}

async fn slow_bodies(addr: SocketAddr) {
    let token = token::user(BOB);
    let slow = async |length: usize| {
        let mut line = TcpStream::connect(addr).await.expect("a connection");
        let head = head("POST", BATCH, Some(&token), length) + "\r\n{";
        line.write_all(head.as_bytes()).await.expect("taken");
        line
    };
    // He gets a quarter of what all may send at a time, and is told when that is used up.
    let mut held = join_all((0..40).map(|_| slow(7_000_000))).await;
    let begun = Instant::now();
    let mut refused = 0;
    for line in &mut held {
        let mut answer = [0; 12];
        if timeout(Duration::from_millis(100), line.read_exact(&mut answer)).await.is_ok() {
            assert_eq!(&answer, b"HTTP/1.1 429");
            refused += 1;
        }
    }
    assert!(refused >= 36, "only {refused} after {:?}", begun.elapsed());
    let body = br#"{"messages":[{"topic":"elsewhere","event":"e","payload":{}}]}"#;
    assert_eq!(post(addr, BATCH, Some(&token::user(ALICE)), body).await, 202);
    // Without a token nothing of it is read.
    let mut line = TcpStream::connect(addr).await.expect("a connection");
    let chunked = format!("POST {BATCH} HTTP/1.1\r\nhost: relay\r\ntransfer-encoding: chunked\r\n\r\n");
    line.write_all(chunked.as_bytes()).await.expect("taken");
    let mut answer = String::new();
    let _ = timeout(PATIENCE, line.read_to_string(&mut answer)).await.expect("it hangs up");
    assert_eq!(status(&answer), Some(401));
}

/// Small bodies that one user begins and does not end, as many as could hold all places of those who have no WebSocket.
async fn many_slow_bodies(addr: SocketAddr) {
    let token = token::user(BOB);
    let slow = async || {
        let mut line = TcpStream::connect(addr).await.expect("a connection");
        let head = head("POST", BATCH, Some(&token), 100) + "\r\n{";
        line.write_all(head.as_bytes()).await.expect("taken");
        line
    };
    let mut held = join_all((0..SLOW).map(|_| slow())).await;
    let begun = Instant::now();
    let body = br#"{"messages":[{"topic":"elsewhere","event":"e","payload":{}}]}"#;
    assert_eq!(post(addr, BATCH, Some(&token::user(ALICE)), body).await, 202);
    let waited = begun.elapsed();
    assert!(waited < SLOWEST, "another user waited for {waited:?}");
    let refused = join_all(held.iter_mut().map(async |line| {
        let mut answer = [0; 12];
        let answered = timeout(SLOWEST, line.read_exact(&mut answer)).await.is_ok_and(|read| read.is_ok());
        answered && answer == *b"HTTP/1.1 429"
    }));
    let refused = refused.await.into_iter().filter(|refused| *refused).count();
    assert!(refused >= SLOW - AT_A_TIME, "{refused} of {SLOW} were refused");
}

/// What is no request, and what would be two for others.
async fn no_requests(addr: SocketAddr) {
    let many: String = (0..200).map(|number| format!("x-{number}: 1\r\n")).collect();
    let long = "x".repeat(1 << 20);
    let heads: [(&str, String); 12] = [
        ("noise", "\0\0\0\0\r\n\r\n".into()),
        ("TLS", "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03\r\n\r\n".into()),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into()),
        ("a long path", format!("GET /{long} HTTP/1.1\r\nhost: r\r\n\r\n")),
        ("a long header", format!("GET / HTTP/1.1\r\nhost: r\r\nx-long: {long}\r\n\r\n")),
        ("many headers", format!("GET / HTTP/1.1\r\nhost: r\r\n{many}\r\n")),
        ("a negative length", format!("POST {BATCH} HTTP/1.1\r\nhost: r\r\ncontent-length: -1\r\n\r\n")),
        ("two lengths", format!("POST {BATCH} HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{{}}")),
        ("a huge length", format!("POST {BATCH} HTTP/1.1\r\nhost: r\r\ncontent-length: {}\r\n\r\n", u64::MAX)),
        (
            "a key that is none",
            "GET /realtime/v1/websocket HTTP/1.1\r\nhost: r\r\nupgrade: websocket\r\nconnection: \
            upgrade, close\r\nsec-websocket-version: 13\r\nsec-websocket-key: x\r\n\r\n"
                .into(),
        ),
        ("a space in a name", "GET / HTTP/1.1\r\nhost : r\r\nconnection: close\r\n\r\n".into()),
        ("a byte that is none", "GET /\u{ff} HTTP/1.1\r\nhost: r\r\nconnection: close\r\n\r\n".into()),
    ];
    for (what, bytes) in heads {
        let answer = say(addr, bytes.as_bytes()).await;
        let found = status(&answer);
        assert!(found.is_none_or(|status| (400..500).contains(&status)), "{what}: {answer:.200}");
    }
}

/// One connection after the other, as fast as it goes; the statuses.
async fn flood(addr: SocketAddr, token: Option<&str>, requests: usize) -> Vec<u16> {
    let body = br#"{"messages":[{"topic":"flooded","event":"e","payload":{}}]}"#;
    let request = [head("POST", BATCH, token, body.len()).as_bytes(), b"\r\n", &body[..]].concat();
    let one = async || {
        let mut statuses = Vec::new();
        let mut line = TcpStream::connect(addr).await.expect("a connection");
        while statuses.len() < requests {
            // Whoever is not let in may be hung up on.
            let _ = line.write_all(&request).await;
            let mut answer = vec![0; 4096];
            match timeout(PATIENCE, line.read(&mut answer)).await.expect("an answer in time") {
                Ok(size) if size > 0 => {
                    statuses.push(status(&String::from_utf8_lossy(&answer[..size])).expect("a status"));
                }
                _ => line = TcpStream::connect(addr).await.expect("a connection"),
            }
        }
        statuses
    };
    join_all((0..10).map(|_| one())).await.concat()
}

async fn floods(addr: SocketAddr) {
    assert!(flood(addr, None, 50).await.iter().all(|status| *status == 401));
    assert!(flood(addr, Some("no.such.token"), 50).await.iter().all(|status| *status == 401));
    let statuses = flood(addr, Some(&token::user(BOB)), 100).await;
    assert!(statuses.iter().all(|status| matches!(status, 202 | 429)), "{statuses:?}");
    // 600 in a minute, whatever was used up before.
    let taken = statuses.iter().filter(|status| **status == 202).count();
    assert!(taken <= 600, "{taken} were taken");
    let body = br#"{"messages":[{"topic":"elsewhere","event":"e","payload":{}}]}"#;
    assert_eq!(post(addr, BATCH, Some(&token::user(ALICE)), body).await, 202);
}

async fn bodies(addr: SocketAddr) {
    let token = token::user(ALICE);
    let mut member = Intruder::connect(addr, Door::V2).await;
    member.push((r#""1""#, r#""1""#), "realtime:well", "phx_join", "{}").await;
    member.alive().await;
    for (object, closed) in [(true, true), (false, true), (true, false), (false, false)] {
        let json = deep(100_000, object, closed);
        let expected = if closed { 202 } else { 400 };
        let single = format!("{BATCH}/well/events/deep");
        assert_eq!(post(addr, &single, Some(&token), json.as_bytes()).await, expected);
        if closed {
            assert!(member.next().await.into_data().ends_with(json.as_bytes()));
        }
        let batches = [
            json.clone(),
            format!(r#"{{"messages":{json}}}"#),
            format!(r#"{{"messages":[{json}]}}"#),
            format!(r#"{{"messages":[{{"topic":{json},"event":{json},"payload":{json},"private":{json}}}]}}"#),
        ];
        for batch in batches {
            let status = post(addr, BATCH, Some(&token), batch.as_bytes()).await;
            assert!(matches!(status, 400 | 422), "{status}");
        }
        let batch = format!(r#"{{"messages":[{{"topic":"well","event":"e","payload":{{"a":{json}}}}}]}}"#);
        assert_eq!(post(addr, BATCH, Some(&token), batch.as_bytes()).await, expected);
        if closed {
            assert!(member.next().await.is_text());
        }
        assert!(member.alive().await.is_empty());
    }
    for body in [&b"\xff\xfe"[..], b"", b"\0", b"{\"messages\":[{\"topic\":\"\xed\xa0\x80\"}]}", b"nan", b"[[]]"] {
        let status = post(addr, BATCH, Some(&token), body).await;
        assert!(matches!(status, 400 | 422), "{status} for {body:?}");
    }
    for path in ["%00", "%ff", "%", "..", "a%2Fb", "%F0%9F%98%80", "'%22", &"x".repeat(2000)] {
        for path in [format!("{BATCH}/{path}/events/e"), format!("{BATCH}/t/events/{path}?private=true")] {
            let status = post(addr, &path, Some(&token), b"{}").await;
            assert!((202..500).contains(&status), "{status} for {path}");
        }
    }
    member.alive().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_slow_keeps_nobody_else_out() {
    let mut siege = Siege::begin(&[]).await;
    // Of each a task and a buffer of 8 KiB.
    siege.withstands("slow handshakes", 96 * MIB, slow_handshakes).await;
    siege.withstands("slow bodies", 32 * MIB, slow_bodies).await;
    siege.withstands("many slow bodies", 96 * MIB, many_slow_bodies).await;
    siege.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_every_kind_and_number_are_answered() {
    let mut siege = Siege::begin(&[("ROWCAST_MAX_POSTS_PER_SECOND", "10")]).await;
    siege.withstands("what is no request", 32 * MIB, no_requests).await;
    siege.withstands("floods of requests", 32 * MIB, floods).await;
    siege.end().await;
    let mut siege = Siege::begin(&[]).await;
    siege.withstands("bodies", 32 * MIB, bodies).await;
    siege.end().await;
}
