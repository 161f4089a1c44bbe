//! Two phones on real sockets: what is inserted for alice reaches alice, and bob hears nothing of it.
//!
//! Absence is proved, not waited for: after alice's events bob gets one of his own, and since a subscription sees changes in
//! commit order, whatever of alice's had been sent to him would have come before it. Then alice gets a last one, which proves
//! the same of bob's.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_postgres::Client;

use super::phone::{Phone, Received};
use super::screen::{Screen, Style};
use super::{DemoUser, DevEnvironment, DevError};
use crate::pg::{PgConfig, PgError};

/// Within which a phone must be subscribed.
const SUBSCRIBE_LIMIT: Duration = Duration::from_secs(20);
/// Within which a committed row must be on its owner's phone.
const DELIVERY_LIMIT: Duration = Duration::from_secs(10);

const STORY: [(&str, &str); 3] = [
    ("message", "reading the failing test"),
    ("tool_call", "cargo test --test main"),
    ("message", "found it: the slot was made before the publication"),
];
const BOBS: (&str, &str) = ("message", "bob's own work");
const LAST: (&str, &str) = ("done", "all tests pass");

/// What was observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoOutcome {
    /// Events inserted for alice that reached alice's phone.
    pub alice_received: usize,
    /// Events inserted for bob that reached bob's phone.
    pub bob_received: usize,
    /// From sending COMMIT to having the frame on the phone, for each event, in the order of the inserts.
    pub delays: Vec<Duration>,
}

/// Runs the demonstration against a relay at `base_url`, such as `http://127.0.0.1:4000`, and prints what happens.
pub async fn demo(environment: &DevEnvironment, base_url: &str) -> Result<DemoOutcome, DevError> {
    show(environment, base_url, &mut Screen::stdout()).await
}

/// Prints what to try next, for a relay that keeps running.
pub fn what_next(environment: &DevEnvironment, base_url: &str) -> Result<(), DevError> {
    invite(environment, base_url, &mut Screen::stdout()).map_err(DevError::Screen)
}

/// One insert, in a transaction of its own; returns the moment at which COMMIT was sent.
pub(super) async fn insert_event(client: &Client, user: &DemoUser, kind: &str, text: &str) -> Result<Instant, PgError> {
    let failed = PgError::query("cannot insert an event");
    let inserting = async {
        client.batch_execute("begin").await?;
        let sql = "insert into public.session_events (session_id, event_type, event_data) \
                   values ($1::text::uuid, $2, jsonb_build_object('text', $3::text))";
        client.execute(sql, &[&user.session_id, &kind, &text]).await?;
        let committed = Instant::now();
        client.batch_execute("commit").await?;
        Ok(committed)
    };
    inserting.await.map_err(failed)
}

async fn show<W: Write>(
    environment: &DevEnvironment,
    base_url: &str,
    screen: &mut Screen<W>,
) -> Result<DemoOutcome, DevError> {
    let (alice, bob) = (&environment.alice, &environment.bob);
    let (mut alices, mut bobs) = tokio::try_join!(
        Phone::subscribe(base_url, alice, SUBSCRIBE_LIMIT),
        Phone::subscribe(base_url, bob, SUBSCRIBE_LIMIT)
    )?;
    let client = PgConfig::from_url(&environment.database_url)?.connect().await?;
    let mut outcome = DemoOutcome { alice_received: 0, bob_received: 0, delays: Vec::new() };

    let print = |screen: &mut Screen<W>, text: &str| screen.line(text).map_err(DevError::Screen);
    screen.heading("Two phones, one table, plain SQL").map_err(DevError::Screen)?;
    print(screen, "alice and bob are both subscribed to every change of session_events. A backend inserts:")?;
    print(screen, "")?;
    for event in STORY {
        outcome.delays.push(send_and_show(screen, &client, alice, event, &mut alices).await?);
        outcome.alice_received += 1;
    }
    outcome.delays.push(send_and_show(screen, &client, bob, BOBS, &mut bobs).await?);
    outcome.bob_received += 1;
    outcome.delays.push(send_and_show(screen, &client, alice, LAST, &mut alices).await?);
    outcome.alice_received += 1;
    print(screen, "")?;
    let bob_line = format!(
        "bob's phone received none of alice's {}: the first thing it got is bob's own, and order is kept.",
        STORY.len()
    );
    print(screen, &bob_line)?;
    print(screen, "alice's phone went from her third event straight to her last: nothing of bob's in between.")?;
    print(screen, &screen.paint(Style::Dim, "(Times are from sending COMMIT to having the row on the phone.)"))?;
    alices.close().await;
    bobs.close().await;
    Ok(outcome)
}

/// Inserts for `user` and waits for it on that user's phone. Anything else that arrives there first is a leak or a repeat.
async fn send_and_show<W: Write>(
    screen: &mut Screen<W>,
    client: &Client,
    user: &DemoUser,
    (kind, text): (&str, &str),
    phone: &mut Phone,
) -> Result<Duration, DevError> {
    let committed = insert_event(client, user, kind, text).await?;
    let Some(received) = phone.next(DELIVERY_LIMIT).await? else {
        let what = format!("{}'s event was not on the phone within {DELIVERY_LIMIT:?}", user.name);
        return Err(DevError::Broken(what));
    };
    check(user, kind, text, &received)?;
    let delay = received.at.saturating_duration_since(committed);
    let arrow = screen.paint(Style::Green, "→");
    let who = screen.paint(Style::Cyan, &format!("{:<5}", user.name));
    let time = screen.paint(Style::Bold, &format!("{:>7.1} ms", delay.as_secs_f64() * 1000.0));
    let line = format!("insert for {who}  {arrow}  {who} has it after {time}   {kind:<9}  {text}");
    screen.line(&line).map_err(DevError::Screen)?;
    Ok(delay)
}

fn check(user: &DemoUser, kind: &str, text: &str, received: &Received) -> Result<(), DevError> {
    let record = &received.data["record"];
    if record["session_id"] != user.session_id {
        return Err(DevError::Broken(format!("a row of somebody else reached {}", user.name)));
    }
    if record["event_type"] != kind || event_text(record) != text {
        return Err(DevError::Broken(format!("{} received another event than the one inserted", user.name)));
    }
    Ok(())
}

fn event_text(record: &Value) -> &str {
    record["event_data"]["text"].as_str().unwrap_or_default()
}

/// Makes each line typed on standard input an event of alice's, until standard input ends; says so first. For a terminal:
/// the caller looks whether there is one, and drops the future when it is time to stop.
pub async fn insert_typed_lines(environment: &DevEnvironment) -> Result<(), DevError> {
    let mut screen = Screen::stdout();
    screen.line("Or type a line here and press Enter: it becomes an event of alice's.").map_err(DevError::Screen)?;
    let (lines, mut typed) = tokio::sync::mpsc::channel::<String>(16);
    // A read of standard input can't be given up, so it has a thread of its own, which ends with the process.
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { return };
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while let Some(line) = typed.recv().await {
        if !line.trim().is_empty() {
            environment.insert_event(&environment.alice, line.trim()).await?;
        }
    }
    Ok(())
}

fn invite<W: Write>(environment: &DevEnvironment, base_url: &str, screen: &mut Screen<W>) -> std::io::Result<()> {
    let url = format!("{}/realtime/v1", base_url.trim_end_matches('/'));
    let (alice, bob) = (&environment.alice, &environment.bob);
    screen.heading("It keeps running")?;
    screen.field("relay", &url)?;
    screen.field("database", &environment.database_url)?;
    screen.field("server", &environment.postgres_version)?;
    screen.heading("Tokens, good for 24 hours")?;
    screen.field(alice.name, &alice.token)?;
    screen.field(bob.name, &bob.token)?;
    screen.heading("Watch as alice, with the stock realtime-js client")?;
    let socket_url = url.replacen("http", "ws", 1);
    let token_file = alice.token_file.display();
    screen.line(&format!("node scripts/phone.mjs --url {socket_url} --token-file {token_file}"))?;
    screen.heading("Or in a terminal")?;
    let program = std::env::current_exe().map_or_else(|_| "rowcast".into(), |path| path.display().to_string());
    screen.line(&format!("{program} tail --url {socket_url} --token-file {token_file}"))?;
    screen.heading("Insert an event of hers")?;
    let sql = format!(
        "insert into session_events (session_id, event_type, event_data) values ('{}', 'note', '{{\"text\": \"hello\"}}')",
        alice.session_id
    );
    match &environment.psql {
        Some(psql) => {
            let program = if psql.starts_with("/usr/bin") { "psql".into() } else { psql.to_string_lossy() };
            screen.line(&format!("{program} '{}' -c \"{}\"", environment.database_url, sql.replace('"', "\\\"")))?;
        }
        None => {
            screen.line(&format!("{sql};"))?;
            let hint = "psql is not installed here: any PostgreSQL client will do, with the database URL above.";
            screen.line(&screen.paint(Style::Dim, hint))?;
        }
    }
    screen.line("")?;
    screen.line(&screen.paint(Style::Dim, "Ctrl-C stops the relay and its private database; the data stays."))
}
