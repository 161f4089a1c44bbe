//! Reading a page: a channel of the hub's for as long as it takes, so that the rows are those that a WebSocket would get.
//!
//! A page of history ends at its limit or where the log ended when it was asked for; a snapshot ends with the notice that its
//! seam is behind it, so what happened meanwhile is in it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::request::{Asked, Kind};
use super::response::{Failure, Page};
use super::sink::Lines;

use crate::channel;
use crate::claims::Principal;
use crate::filter::NOT_ENABLED;
use crate::gateway::Shared;
use crate::hub::{Activated, COMPLETE, HubHandle, Outbox, Place, Port, REFUSED, Stage, SubscribeError, Version};
use crate::policy::BARRED;
use crate::resume::Cursor;

/// How often it is looked whether the log's end is reached.
const LOOK: Duration = Duration::from_millis(10);
/// Lines that are no rows.
const NOTICES: usize = 16;

/// A channel that ends with the page.
struct Visit {
    hub: HubHandle,
    port: Arc<Port>,
    lines: Lines,
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.port.stage.close();
        let (hub, id) = (self.hub.clone(), self.port.id);
        drop(crate::task::spawn("page-end", async move { hub.leave(id).await }));
    }
}

/// What has been read.
struct Reading<'a> {
    shared: &'a Shared,
    asked: &'a Asked,
    /// Where the log ended.
    end: Option<Cursor>,
    rows: Vec<Bytes>,
    bytes: usize,
    /// Of the last row.
    cursor: Option<String>,
}

/// Reads the page. Ends within the time that a page may take.
pub(super) async fn read(
    shared: &Shared,
    asked: &Asked,
    principal: Arc<Principal>,
    shard: usize,
) -> Result<Page, Failure> {
    let deadline = Instant::now() + shared.config.page_timeout;
    let end = shared.log.here();
    let visit = Visit::new(shared, asked, shard);
    let late = || Failure::Later("The page could not be read in time".into());
    let entries = vec![asked.entry.clone()];
    let subscribing = shared.hub.subscribe(visit.port.clone(), entries, principal);
    let active = timeout_at(deadline, subscribing).await.map_err(|_| late())?;
    let Activated { warnings, .. } = active.map_err(refused)?;
    if let Some(warning) = warnings.into_iter().find(|warning| !warning.ok) {
        return Err(Failure::Forbidden(warning.message));
    }
    let mut reading = Reading { shared, asked, end, rows: Vec::new(), bytes: 0, cursor: None };
    loop {
        // In this order: what is owed up to there is among the lines then.
        let reached = visit.port.reached();
        let (lines, open) = visit.lines.take();
        for line in lines {
            if let Some(page) = reading.line(line)? {
                return Ok(page);
            }
        }
        if let Some(page) = reading.at_end(reached, open)? {
            return Ok(page);
        }
        let now = Instant::now();
        if now >= deadline {
            return reading.late().ok_or_else(late);
        }
        let _ = timeout_at(deadline.min(now + LOOK), visit.lines.came()).await;
    }
}

impl Visit {
    fn new(shared: &Shared, asked: &Asked, shard: usize) -> Visit {
        // One row more tells that there is more.
        let rows = match asked.kind {
            Kind::History => asked.limit as usize + 1,
            // The seam's changes come behind its rows.
            Kind::Snapshot => usize::MAX / 2,
        };
        let lines = Lines::new(rows + NOTICES, shared.config.max_page_bytes * 2);
        let outbox = Outbox::new(Box::new(lines.clone()), shared.config.max_outbox_bytes, Bytes::new());
        let port = Port {
            id: channel::next_id(),
            outbox: Arc::new(outbox),
            shard,
            topic: "realtime:page".into(),
            version: Version::Plain,
            join_ref: "null".into(),
            stage: Arc::new(Stage::greeted()),
            place: Place::default(),
        };
        Visit { hub: shared.hub.clone(), port: Arc::new(port), lines }
    }
}

fn refused(error: SubscribeError) -> Failure {
    let SubscribeError { message, retry } = error;
    match () {
        () if retry => Failure::Later(message),
        () if message.starts_with(NOT_ENABLED) => Failure::Unknown(message),
        () if message.starts_with(REFUSED) && message.ends_with(BARRED) => Failure::Forbidden(message),
        () => Failure::Bad(message),
    }
}

impl Reading<'_> {
    /// Takes a line in; a page if it is the last.
    fn line(&mut self, line: Bytes) -> Result<Option<Page>, Failure> {
        if line.starts_with(br#"{"notice":"#) {
            let notice: Value = serde_json::from_slice(&line).unwrap_or_default();
            return self.notice(&notice["notice"]);
        }
        if line.starts_with(br#"{"live":"#) {
            return Ok(None);
        }
        let text = cursor_of(&line);
        if self.asked.kind == Kind::History {
            let place = text.and_then(|text| self.shared.cursor_key.open(text).ok());
            let beyond =
                |place: Cursor| self.end.is_some_and(|end| place.epoch == end.epoch && place.position > end.position);
            if place.is_some_and(beyond) {
                return Ok(Some(self.page(false)));
            }
            if self.rows.len() >= self.asked.limit as usize {
                return Ok(Some(self.page(true)));
            }
        }
        let most = self.shared.config.max_page_bytes;
        if !self.rows.is_empty() && self.bytes + line.len() > most {
            return match self.asked.kind {
                Kind::History => Ok(Some(self.page(true))),
                Kind::Snapshot => Err(Failure::TooLarge(format!(
                    "The snapshot has more than {most} bytes; ask for fewer rows, or select columns"
                ))),
            };
        }
        self.cursor = text.map(str::to_owned);
        self.bytes += line.len() + 1;
        self.rows.push(line);
        Ok(None)
    }

    fn notice(&mut self, notice: &Value) -> Result<Option<Page>, Failure> {
        let message = notice["message"].as_str().unwrap_or_default();
        if notice["status"] == "ok" {
            let is_last = self.asked.kind == Kind::Snapshot && message == COMPLETE;
            return Ok(is_last.then(|| Page {
                rows: std::mem::take(&mut self.rows),
                cursor: notice["cursor"].as_str().map(str::to_owned),
                more: notice["snapshot"]["more"] == true,
                closed: false,
            }));
        }
        match notice.get("gap") {
            // Who asks for what comes after these rows is told.
            Some(_) if self.asked.kind == Kind::History && !self.rows.is_empty() => Ok(Some(self.page(true))),
            Some(gap) if self.asked.kind == Kind::History => Err(Failure::Gap(message.into(), gap.clone())),
            _ => Err(Failure::Later(message.into())),
        }
    }

    /// Whether the log's end is reached.
    fn at_end(&mut self, reached: Option<Cursor>, open: bool) -> Result<Option<Page>, Failure> {
        let diverged = || Failure::Later("The database's history has changed meanwhile".into());
        match (self.asked.kind, self.end, reached) {
            (Kind::Snapshot, ..) if !open => Err(Failure::TooLarge("The snapshot has too many bytes".into())),
            (Kind::Snapshot, ..) => Ok(None),
            // Nothing was ever recorded.
            (Kind::History, None, _) => Ok(Some(self.page(false))),
            (Kind::History, ..) if !open => Ok(Some(self.page(true))),
            (Kind::History, Some(end), Some(reached)) if reached.epoch != end.epoch => Err(diverged()),
            (Kind::History, Some(end), Some(reached)) => {
                Ok((reached.position >= end.position).then(|| self.page(false)))
            }
            (Kind::History, Some(_), None) => Ok(None),
        }
    }

    /// The time is over.
    fn late(&mut self) -> Option<Page> {
        (self.asked.kind == Kind::History && !self.rows.is_empty()).then(|| self.page(true))
    }

    /// A page of history.
    fn page(&mut self, more: bool) -> Page {
        let end = self.end.filter(|_| !more).map(|end| self.shared.cursor_key.seal(end));
        let (rows, cursor) = (std::mem::take(&mut self.rows), end.or_else(|| self.cursor.take()));
        Page { rows, cursor, more, closed: more }
    }
}

/// The cursor at the end of a `data` object.
fn cursor_of(line: &[u8]) -> Option<&str> {
    const KEY: &[u8] = br#","cursor":""#;
    let rest = line.strip_suffix(b"\"}")?;
    let start =
        rest.len() - rest.iter().rev().take_while(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte)).count();
    rest[..start].ends_with(KEY).then(|| std::str::from_utf8(&rest[start..]).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cursor_is_the_last_member_or_there_is_none() {
        assert_eq!(cursor_of(br#"{"record":{"cursor":"x"},"errors":null,"cursor":"aB-_9"}"#), Some("aB-_9"));
        assert_eq!(cursor_of(br#"{"record":{},"errors":null,"snapshot":true}"#), None);
        assert_eq!(cursor_of(br#"{"record":{"a":"x"}}"#), None);
        assert_eq!(cursor_of(b""), None);
    }
}
