//! A stock client that names its device. Its process is started again when it has given up for good, as a user would.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::time::{Duration, Instant, timeout};

use super::phone::{Board, Record, Seen, key, key_of_message};
use crate::support::Stock;
use crate::support::sdk::SdkPhone;

/// Without a channel for so long, the application is started again.
const GIVEN_UP: Duration = Duration::from_secs(25);

pub(super) struct Client {
    pub(super) number: usize,
    pub(super) stock: Stock,
    /// `ws://host:port/realtime/v1`.
    pub(super) base: String,
    pub(super) token: String,
    pub(super) board: Arc<Board>,
    pub(super) record: Record,
}

impl Client {
    /// Until the board says that it is over.
    pub(super) async fn run(mut self) -> Record {
        let board = self.board.clone();
        while !board.is_over() {
            let mut client = self.start().await;
            tokio::select! {
                () = self.live(&mut client) => self.record.note(Seen::Ended(None)),
                () = board.over() => {}
            }
        }
        self.record
    }

    async fn start(&mut self) -> SdkPhone {
        let device = &self.record.name;
        let connect = match self.stock {
            Stock::Python => json!({ "do": "connect", "token": self.token,
                "url": format!("{}/device/{device}", self.base) }),
            _ => json!({ "do": "connect", "url": self.base, "token": self.token, "params": { "device": device } }),
        };
        let mut client = SdkPhone::connect_as(self.stock, &connect).await;
        self.record.note(Seen::Joining);
        let entry = |table: &&str| json!({ "event": "*", "schema": "public", "table": table });
        let entries: Value = self.record.tables.iter().map(entry).collect();
        let options = json!({ "private": self.record.room.is_some() });
        client.ask_to_subscribe_with(self.record.topic(), &entries, &options);
        client
    }

    /// Until it has been without a channel for too long.
    async fn live(&mut self, client: &mut SdkPhone) {
        let mut without = Some(Instant::now());
        loop {
            let event = match timeout(Duration::from_secs(1), client.next_event()).await {
                Ok(Some(event)) => event,
                Ok(None) => return,
                Err(_) if without.is_some_and(|since| since.elapsed() > GIVEN_UP) => return,
                Err(_) => continue,
            };
            match event["event"].as_str() {
                Some("change") => self.change(&event["change"]),
                Some("broadcast") => self.record.note(Seen::Row(key_of_message(&event["message"]), None)),
                Some("status") if event["status"] == "SUBSCRIBED" => {
                    without = None;
                    self.record.note(Seen::Joined(None));
                }
                Some("status") => {
                    without.get_or_insert_with(Instant::now);
                    let error = event["error"].as_str().unwrap_or_default();
                    self.record.note(Seen::Told(format!(
                        "{} {}",
                        event["status"],
                        error.chars().take(80).collect::<String>()
                    )));
                    if error.contains("Gap: ") {
                        self.record.note(Seen::Gap(None, None, error.to_owned()));
                    }
                    // It does not come back by itself from where it was put out, and its application asks anew.
                    if event["status"] == "CLOSED" {
                        return;
                    }
                    // Python's client takes a notice for the end of its channel, and joins again.
                    self.record.note(Seen::Ended(None));
                    self.record.note(Seen::Joining);
                }
                Some("system") => self.system(&event["payload"]),
                // It complains of what happens to its connection.
                _ => self.record.note(Seen::Told(event.to_string())),
            }
        }
    }

    fn change(&mut self, data: &Value) {
        if data["table"] == "marks" {
            let note = data["record"]["note"].as_str().unwrap_or_default();
            self.board.mark(self.number, note);
            let note: String = note.chars().take(40).collect();
            self.record.note(Seen::Mark(note));
        } else {
            self.record.note(Seen::Row(key(data), None));
        }
    }

    fn system(&mut self, payload: &Value) {
        let gap = &payload["gap"];
        let cursor = |value: &Value| value.as_str().map(str::to_owned);
        if gap.is_object() {
            let message = payload["message"].as_str().unwrap_or_default();
            let reason = format!("{}: {message}", gap["reason"].as_str().unwrap_or_default());
            self.record.note(Seen::Gap(cursor(&gap["from"]), cursor(&gap["to"]), reason));
        } else if payload["status"] == "ok" {
            if payload["message"] == "Subscribed to PostgreSQL" {
                self.record.note(Seen::Subscribed);
            }
        } else {
            self.record.note(Seen::Told(payload.to_string()));
        }
    }
}
