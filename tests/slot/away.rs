//! Who was here and went away: one client that keeps the cursor of its join, and one that has named a device. Both come back,
//! and must be told the same; but of a device, a database that is put back to what it was may know nothing.

use super::*;

/// They have left.
pub(super) struct Away {
    cursor: Value,
    device: Option<String>,
}

/// Connected, in no channel.
async fn connected(base: &str, device: Option<&String>) -> Phone {
    let base = device.map_or_else(|| base.to_owned(), |device| format!("{base}/device/{device}"));
    Phone::connect(&base, &token::user(token::ALICE), Version::V2).await
}

/// The words and the details of the next gap notice.
async fn details(phone: &mut Phone) -> Value {
    loop {
        let system = phone.system("room").await;
        if system["message"].as_str().expect("a text").starts_with("Gap: ") {
            assert_eq!(system["status"], "error");
            return system["gap"].clone();
        }
    }
}

impl Away {
    pub(super) async fn from(base: &str) -> Away {
        let device = Some(format!("away-{}", rand::random::<u64>()));
        let (mut phone, mut named) = (connected(base, None).await, connected(base, device.as_ref()).await);
        let reply = phone.join("room", &marks()).await;
        let cursor = reply["response"]["cursor"].clone();
        assert!(cursor.is_string(), "{reply}");
        named.subscribe("room", &marks()).await;
        Away { cursor, device }
    }

    /// Without the device.
    pub(super) fn only_with_cursor(mut self) -> Away {
        self.device = None;
        self
    }

    /// Who keeps a cursor, after that place, and who has named the device.
    async fn back(&self, base: &str) -> Vec<Phone> {
        let mut entries = marks();
        entries[0]["since"] = self.cursor.clone();
        let mut back = vec![(connected(base, None).await, entries)];
        if self.device.is_some() {
            back.push((connected(base, self.device.as_ref()).await, marks()));
        }
        let mut phones = Vec::new();
        for (mut phone, entries) in back {
            let reply = phone.join("room", &entries).await;
            assert_eq!(reply["status"], "ok", "{reply}");
            phones.push(phone);
        }
        phones
    }

    /// They come back: both are told of one gap, for this reason, and hear what follows.
    pub(super) async fn told(&self, base: &str, pg: &TestPg, reason: &str) {
        let mut phones = self.back(base).await;
        for phone in &mut phones {
            let gap = details(phone).await;
            assert_eq!(gap["reason"], reason, "{gap}");
            assert!(gap["to"].is_string(), "{gap}");
        }
        let note = format!("after {reason}");
        mark(pg, &note).await;
        for mut phone in phones {
            // Rows of the new history may come before it, and what they have missed of the old one never comes.
            phone.changes_before(&note).await;
            phone.heartbeat().await;
            let left = phone.frames_of("room");
            assert!(left.iter().all(|frame| frame.payload["status"] == "ok"), "told once: {left:?}");
        }
    }

    /// They come back, and have missed just these marks.
    pub(super) async fn missed(&self, base: &str, pg: &TestPg, notes: &[&str]) {
        let phones = self.back(base).await;
        mark(pg, "after what was missed").await;
        for mut phone in phones {
            let changes = phone.changes_before("after what was missed").await;
            assert!(changes.iter().map(|change| &change.record()["note"]).eq(notes), "{changes:?}");
            phone.heartbeat().await;
            let left = phone.frames_of("room");
            assert!(left.iter().all(|frame| frame.payload["status"] == "ok"), "{left:?}");
        }
    }
}
