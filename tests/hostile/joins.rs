//! Joins without number, refs that are not theirs, and topics that nobody would name so.

use std::net::SocketAddr;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::intruder::{DOORS, Door, Intruder};
use super::{MIB, Siege};

/// `max_channels`.
const CHANNELS: usize = 1000;
const JOINS: usize = 10_000;
/// Joins before their answers are read.
const AT_A_TIME: usize = 100;

/// A thousand channels, then refusals, and at last the connection.
async fn from_one(addr: SocketAddr) {
    let mut intruder = Intruder::connect(addr, Door::V2).await;
    let (mut joined, mut refused) = (0, 0);
    // A minute's joins at the allowed rate.
    for number in 0..6000 {
        let reference = format!("\"{number}\"");
        intruder.push((&reference, &reference), &format!("realtime:one:{number}"), "phx_join", "{}").await;
        if number % AT_A_TIME == AT_A_TIME - 1 {
            for answer in intruder.answers().await.iter().filter(|answer| answer[3] == "phx_reply") {
                match answer[4]["response"]["reason"].as_str() {
                    None => joined += 1,
                    Some(reason) => {
                        assert_eq!(reason, "ChannelRateLimitReached: Too many channels");
                        refused += 1;
                    }
                }
            }
        }
    }
    assert_eq!((joined, refused), (CHANNELS, 6000 - CHANNELS));
    for number in 6000..JOINS {
        let reference = format!("\"{number}\"");
        intruder.push((&reference, &reference), &format!("realtime:one:{number}"), "phx_join", "{}").await;
    }
    assert_eq!(intruder.end().await.0, Some(1012));
}

async fn from_many(addr: SocketAddr) {
    let some = |connection: usize| async move {
        let mut intruder = Intruder::connect(addr, Door::V2).await;
        for number in 0..JOINS / 100 {
            let entries = r#"{"config":{"postgres_changes":[{"event":"*","schema":"public","table":"marks"}]}}"#;
            // Some rooms are everybody's.
            let topic = format!("realtime:many:{}", if number % 2 == 0 { number } else { connection * 1000 + number });
            intruder.push((r#""1""#, r#""1""#), &topic, "phx_join", entries).await;
        }
        let answers = intruder.answers().await;
        let replies = answers.iter().filter(|answer| answer[3] == "phx_reply" && answer[4]["status"] == "ok").count();
        assert!(replies > 0, "{answers:?}");
        intruder
    };
    let held = join_all((0..100).map(some)).await;
    drop(held);
}

/// Of another's channel, or of nobody's.
async fn forged_refs(addr: SocketAddr) {
    for door in [Door::V1, Door::V2] {
        let mut victim = Intruder::connect(addr, door).await;
        victim.push((r#""7""#, r#""7""#), "realtime:hers", "phx_join", "{}").await;
        victim.alive().await;
        let mut intruder = Intruder::connect(addr, door).await;
        // Not joined: the same refs and topic are somebody else's.
        for event in ["broadcast", "presence", "access_token", "phx_leave", "phx_close", "phx_error", "phx_reply"] {
            let payload = r#"{"type":"broadcast","event":"forged","payload":{}}"#;
            intruder.push((r#""7""#, r#""7""#), "realtime:hers", event, payload).await;
        }
        intruder.push((r#""7""#, r#""8""#), "realtime:mine", "phx_join", "{}").await;
        let (long, number) = (format!("\"{}\"", "r".repeat(100_000)), format!("1{}", "0".repeat(400)));
        let refs = [
            "{}",
            "[]",
            "true",
            "-1",
            "1e999",
            "0.1",
            "\"\"",
            "\"\\u0000\"",
            "\"\\\"],[\\\"\"",
            "\"phx_join\"",
            &long,
            &number,
            "\"😀\"",
            "null",
        ];
        for one in refs {
            for other in refs {
                intruder.push((one, other), "realtime:mine", "broadcast", r#"{"type":"broadcast","event":"e"}"#).await;
                intruder.push((one, other), "realtime:hers", "phx_leave", "{}").await;
            }
            intruder.push((one, one), "realtime:again", "phx_join", "{}").await;
        }
        // What is repeated is JSON, whatever it says.
        let answers = intruder.answers().await;
        assert!(!answers.is_empty());
        // Server events are no client's to send; the victim has heard nothing of it, and is still in its channel.
        let heard: Vec<Value> = victim.answers().await;
        assert!(heard.is_empty(), "{heard:?}");
        victim.push((r#""7""#, r#""9""#), "realtime:hers", "broadcast", r#"{"type":"broadcast","event":"e"}"#).await;
        let heard = victim.answers().await;
        assert!(heard.iter().all(|answer| !answer.to_string().contains("unmatched")), "{heard:?}");
    }
}

async fn topics(addr: SocketAddr) {
    let long = "x".repeat(1 << 20);
    let names = [
        "",
        " ",
        "\0",
        "a\0b",
        ":",
        "realtime",
        "realtime:",
        "realtime::",
        "realtime:realtime:",
        "private:x",
        "phoenix",
        "*",
        "%",
        "../../etc/passwd",
        "'; drop table marks; --",
        "\"",
        "\\",
        "\"],[\"",
        "{\"a\":1}",
        "\r\n",
        "\u{2028}",
        "\u{202e}txet",
        "ä",
        "a\u{308}",
        "😀",
        "\u{fffd}",
        "\u{10ffff}",
        "\u{7f}\u{80}",
        "witness ",
        "WITNESS",
        &long,
        &long[..1015],
        &long[..1016],
        &long[..255],
        &long[..246],
    ];
    for door in DOORS {
        let mut intruder = Intruder::connect(addr, door).await;
        for name in names {
            for topic in [name.to_owned(), format!("realtime:{name}"), format!("private:{name}")] {
                for private in [false, true] {
                    if door == Door::Topics {
                        let frame = json!({ "type": "subscribe", "topics": [topic], "private": private });
                        intruder.text(frame.to_string()).await;
                        let publish = json!({ "type": "publish", "topic": topic, "event": name, "payload": {} });
                        intruder.text(publish.to_string()).await;
                    } else {
                        let payload = format!(r#"{{"config":{{"private":{private}}}}}"#);
                        intruder.push((r#""1""#, r#""1""#), &topic, "phx_join", &payload).await;
                        let sent = json!({ "type": "broadcast", "event": name, "payload": {} }).to_string();
                        intruder.push((r#""1""#, r#""2""#), &topic, "broadcast", &sent).await;
                    }
                }
                // A private one is asked for elsewhere, and joins of a topic wait for each other.
                if intruder.answers().await.is_empty() {
                    intruder.next().await;
                }
            }
        }
        intruder.alive().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_joins_are_no_more_than_the_limits_allow() {
    let mut siege = Siege::begin(&[]).await;
    // A thousand channels, and ten thousand: about 10 KiB each.
    siege.withstands("joins of one connection", 32 * MIB, from_one).await;
    siege.withstands("joins of many connections", 128 * MIB, from_many).await;
    siege.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_a_client_makes_up_are_its_own_business() {
    let mut siege = Siege::begin(&[]).await;
    siege.withstands("forged refs", 32 * MIB, forged_refs).await;
    siege.withstands("topics of every kind", 64 * MIB, topics).await;
    siege.end().await;
}
