//! Reading a page: a channel of the hub's for as long as it takes, so that the rows are those that a WebSocket would get.
//!
//! A page of history ends at its limit or where the log ended when it was asked for; a snapshot ends with the notice that its
//! seam is behind it, so what happened meanwhile is in it.
//!
//! Invariant: a page's cursor is never behind a row that was lost. Some losses are told a while after later rows have come
//! (`hub::owing`): a page with such rows waits until it is told, and ends before the loss. So the next page begins with the gap.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::request::{Asked, Kind};
use super::response::{Failure, Page};
use super::sink::{Lines, NOTICE};

use crate::channel;
use crate::claims::Principal;
use crate::filter::NOT_ENABLED;
use crate::gateway::Shared;
use crate::hub::{Activated, COMPLETE, HubHandle, Outbox, Place, Port, REFUSED, Stage, Start, SubscribeError, Version};
use crate::policy::BARRED;
use crate::resume::{Cursor, CursorKey};

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
    key: &'a CursorKey,
    most_bytes: usize,
    asked: &'a Asked,
    /// Where the log ended, or the page begins if that is behind it.
    end: Option<Cursor>,
    rows: Vec<Line>,
    bytes: usize,
    /// No row is added any more.
    full: Option<Full>,
}

/// Why a page of history takes no more rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    /// The next row is beyond the log's end.
    AtEnd,
    /// There are more.
    Before,
}

/// A row.
struct Line {
    text: Bytes,
    /// `None` in a snapshot.
    place: Option<Cursor>,
}

/// Up to where the page's channel is complete.
#[derive(Clone, Copy)]
struct Complete {
    reached: Option<Cursor>,
    /// So is what is before a row that it has.
    in_order: bool,
    /// Of the present history.
    epoch: Option<u64>,
}

impl Complete {
    fn covers(self, place: Cursor) -> bool {
        self.in_order
            || self.reached.is_some_and(|reached| match reached.epoch == place.epoch {
                true => reached.position >= place.position,
                // A history that is over is behind who is in the present one.
                false => Some(reached.epoch) == self.epoch,
            })
    }
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
    let mut reading = Reading::new(asked, end, &shared.cursor_key, shared.config.max_page_bytes);
    loop {
        // In this order: what is owed up to there is among the lines then; and what was lost before the last of them is known.
        let (reached, epoch) = (visit.port.reached(), shared.log.here().map(|here| here.epoch));
        let (lines, open) = visit.lines.take();
        let complete = Complete { reached, in_order: !visit.port.has_lost(), epoch };
        for line in lines {
            if let Some(page) = reading.line(line)? {
                return Ok(page);
            }
        }
        if let Some(page) = reading.at_end(complete, open)? {
            return Ok(page);
        }
        let now = Instant::now();
        if now >= deadline {
            return reading.late(complete).ok_or_else(late);
        }
        if reading.full.is_some() {
            visit.lines.only_notices();
            // This is the connection's task.
            visit.port.outbox.flush();
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

impl<'a> Reading<'a> {
    fn new(asked: &'a Asked, end: Option<Cursor>, key: &'a CursorKey, most_bytes: usize) -> Reading<'a> {
        // The log may end before a place that it gave out, until what a failed sync has taken back comes again.
        let end = match asked.entry.start {
            Start::After(after) => {
                end.map(|end| if after.epoch == end.epoch && after.position > end.position { after } else { end })
            }
            _ => end,
        };
        Reading { key, most_bytes, asked, end, rows: Vec::new(), bytes: 0, full: None }
    }

    /// Takes a line in; a page if it is the last.
    fn line(&mut self, text: Bytes) -> Result<Option<Page>, Failure> {
        if text.starts_with(NOTICE) {
            let notice: Value = serde_json::from_slice(&text).unwrap_or_default();
            return self.notice(&notice["notice"]);
        }
        if text.starts_with(br#"{"live":"#) || self.full.is_some() {
            return Ok(None);
        }
        let place = self.open(cursor_of(&text));
        let fits = self.rows.is_empty() || self.bytes + text.len() <= self.most_bytes;
        match self.asked.kind {
            Kind::Snapshot if fits => {}
            Kind::Snapshot => {
                let most = self.most_bytes;
                return Err(Failure::TooLarge(format!(
                    "The snapshot has more than {most} bytes; ask for fewer rows, or select columns"
                )));
            }
            Kind::History => {
                let Some(place) = place else { return Err(Failure::Later("A change has no place".into())) };
                if self.end.is_some_and(|end| place.epoch == end.epoch && place.position > end.position) {
                    self.full = Some(Full::AtEnd);
                } else if !fits || self.rows.len() >= self.asked.limit as usize {
                    self.full = Some(Full::Before);
                }
            }
        }
        if self.full.is_none() {
            self.bytes += text.len() + 1;
            self.rows.push(Line { text, place });
        }
        Ok(None)
    }

    fn open(&self, cursor: Option<&str>) -> Option<Cursor> {
        self.key.open(cursor?).ok()
    }

    fn notice(&mut self, notice: &Value) -> Result<Option<Page>, Failure> {
        let message = notice["message"].as_str().unwrap_or_default();
        if notice["status"] == "ok" {
            let is_last = self.asked.kind == Kind::Snapshot && message == COMPLETE;
            return Ok(is_last.then(|| Page {
                rows: self.texts(),
                cursor: notice["cursor"].as_str().map(str::to_owned),
                more: notice["snapshot"]["more"] == true,
                closed: false,
            }));
        }
        match notice.get("gap") {
            Some(gap) if self.asked.kind == Kind::History => {
                // It may be told behind rows that came after it.
                let from = self.open(gap["from"].as_str());
                self.cut(|place| from.is_some_and(|from| from.epoch == place.epoch && place.position <= from.position));
                if self.rows.is_empty() {
                    return Err(Failure::Gap(message.into(), gap.clone()));
                }
                // Who asks for what comes after these rows is told.
                self.full = Some(Full::Before);
                Ok(None)
            }
            _ => Err(Failure::Later(message.into())),
        }
    }

    /// Keeps the rows before the first that may not be kept.
    fn cut(&mut self, may: impl Fn(Cursor) -> bool) {
        let keep = self.rows.iter().take_while(|row| row.place.is_some_and(&may)).count();
        self.rows.truncate(keep);
    }

    /// Whether all is read, and nothing will be told of it any more.
    fn at_end(&mut self, complete: Complete, open: bool) -> Result<Option<Page>, Failure> {
        if self.asked.kind == Kind::Snapshot {
            let too_large = || Failure::TooLarge("The snapshot has too many bytes".into());
            return if open { Ok(None) } else { Err(too_large()) };
        }
        // What came after a cursor of before can't be said, nor that it was nothing.
        let Some(end) = self.end else {
            return Err(Failure::Later("No changes have come in yet; try again in a moment".into()));
        };
        if !open {
            self.full.get_or_insert(Full::Before);
        }
        Ok(match self.full {
            Some(Full::Before) => {
                let last = self.rows.last().and_then(|row| row.place);
                last.is_some_and(|last| complete.covers(last)).then(|| self.page(true))
            }
            Some(Full::AtEnd) => complete.covers(end).then(|| self.page(false)),
            // Who catches up may still be in an earlier history.
            None => {
                let at = complete.reached.filter(|reached| reached.epoch == end.epoch);
                at.is_some_and(|reached| reached.position >= end.position).then(|| self.page(false))
            }
        })
    }

    /// The time is over: what is certain.
    fn late(&mut self, complete: Complete) -> Option<Page> {
        self.cut(|place| complete.covers(place));
        (self.asked.kind == Kind::History && !self.rows.is_empty()).then(|| self.page(true))
    }

    /// A page of history.
    fn page(&mut self, more: bool) -> Page {
        let last = self.rows.last().and_then(|row| row.place);
        let cursor = if more { last } else { self.end };
        Page { rows: self.texts(), cursor: cursor.map(|at| self.key.seal(at)), more, closed: more }
    }

    fn texts(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.rows).into_iter().map(|row| row.text).collect()
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
    use serde_json::json;

    use super::*;
    use crate::change::{Lsn, Position};
    use crate::gateway::pages::request;

    fn key() -> CursorKey {
        CursorKey::new([1; 32])
    }

    fn at(epoch: u64, lsn: u64) -> Cursor {
        Cursor { epoch, position: Position { lsn: Lsn(lsn), ordinal: 0 } }
    }

    fn asked(limit: u32) -> Asked {
        let query = format!("table=t&limit={limit}&after={}", key().seal(at(1, 1)));
        request::parse(Kind::History, &query, 100, &key()).expect("a query")
    }

    fn row(at: Cursor) -> Bytes {
        format!(r#"{{"record":{{}},"cursor":"{}"}}"#, key().seal(at)).into()
    }

    fn gap(from: Cursor, to: Cursor) -> Bytes {
        let gap = json!({ "from": key().seal(from), "to": key().seal(to), "reason": "undecided" });
        json!({ "notice": { "status": "error", "message": "Gap", "gap": gap } }).to_string().into()
    }

    fn complete(reached: Cursor, in_order: bool) -> Complete {
        Complete { reached: Some(reached), in_order, epoch: Some(2) }
    }

    /// The places of a page's rows, its own, and whether it is kept.
    fn seen(page: &Page) -> (Vec<u64>, u64, bool) {
        let lsn = |text: &str| key().open(text).expect("a cursor").position.lsn.0;
        let rows = page.rows.iter().map(|row| lsn(cursor_of(row).expect("a cursor"))).collect();
        (rows, lsn(page.cursor.as_deref().expect("a cursor")), page.closed)
    }

    /// The page that these lines make while the channel is complete up to there; `None`: it is still read.
    fn page(reading: &mut Reading<'_>, lines: &[Bytes], complete: Complete) -> Option<Page> {
        let early = lines.iter().find_map(|line| reading.line(line.clone()).expect("no failure"));
        early.or_else(|| reading.at_end(complete, true).expect("no failure"))
    }

    /// It was kept as complete, and the next one began behind the loss.
    #[test]
    fn a_page_does_not_end_behind_a_loss_that_is_not_told_yet() {
        let key = key();
        // At its limit; with rows beyond the log's end; at the log's end.
        for (limit, came) in [(2, &[3, 6, 7][..]), (9, &[3, 6, 12]), (9, &[3, 6])] {
            let asked = asked(limit);
            let mut reading = Reading::new(&asked, Some(at(2, 10)), &key, 1000);
            let rows: Vec<Bytes> = came.iter().map(|lsn| row(at(2, *lsn))).collect();
            assert_eq!(page(&mut reading, &rows, complete(at(2, 4), false)), None, "{came:?}");
            // It is told behind what has come since.
            let told = [row(at(2, 13)), gap(at(2, 4), at(2, 13))];
            assert_eq!(page(&mut reading, &told, complete(at(2, 2), false)), None, "another may be lost before that");
            let page = page(&mut reading, &[], complete(at(2, 13), false)).expect("a page");
            assert_eq!(seen(&page), (vec![3], 3, true), "the next page begins with the gap");
        }
    }

    #[test]
    fn a_loss_before_every_row_is_told_instead_of_the_page() {
        let (key, asked) = (key(), asked(1));
        let mut reading = Reading::new(&asked, Some(at(2, 10)), &key, 1000);
        let rows = [row(at(2, 6)), row(at(2, 7))];
        assert_eq!(page(&mut reading, &rows, complete(at(2, 4), false)), None);
        let failure = reading.line(gap(at(2, 4), at(2, 9))).expect_err("a gap");
        assert!(matches!(failure, Failure::Gap(..)), "{failure:?}");
    }

    #[test]
    fn when_the_time_is_over_a_page_has_what_is_certain() {
        let (key, asked) = (key(), asked(9));
        let mut reading = Reading::new(&asked, Some(at(2, 10)), &key, 1000);
        assert_eq!(page(&mut reading, &[row(at(2, 3)), row(at(2, 6))], complete(at(2, 4), false)), None);
        assert_eq!(seen(&reading.late(complete(at(2, 4), false)).expect("a page")), (vec![3], 3, true));
        reading.line(row(at(2, 6))).expect("a row");
        assert_eq!(reading.late(complete(at(2, 4), false)), None);
    }

    #[test]
    fn a_page_is_ready_at_once_when_nothing_was_lost() {
        let key = key();
        for (next, page_is) in [(9, (vec![3, 6], 6, true)), (12, (vec![3, 6], 10, false))] {
            let asked = asked(2);
            let mut reading = Reading::new(&asked, Some(at(2, 10)), &key, 1000);
            let rows = [3, 6, next].map(|lsn| row(at(2, lsn)));
            let page = page(&mut reading, &rows, complete(at(2, 1), true)).expect("a page");
            assert_eq!(seen(&page), page_is);
        }
    }

    /// It was refused while its channel was still in the history before.
    #[test]
    fn a_page_over_a_fork_ends_before_it() {
        let (key, asked) = (key(), asked(9));
        let mut reading = Reading::new(&asked, Some(at(2, 10)), &key, 1000);
        assert_eq!(page(&mut reading, &[row(at(1, 30))], complete(at(1, 20), true)), None);
        // A loss before the fork is told behind it.
        let fork = gap(at(1, 40), at(2, 5));
        assert_eq!(page(&mut reading, &[fork], complete(at(1, 20), false)), None);
        let page = page(&mut reading, &[], complete(at(2, 6), false)).expect("a page");
        assert_eq!(seen(&page), (vec![30], 30, true));
    }

    /// After a failed sync the log may end before places that it gave out.
    #[test]
    fn a_page_does_not_lead_back_behind_where_it_began() {
        let key = key();
        let query = format!("table=t&after={}", key.seal(at(2, 12)));
        let asked = request::parse(Kind::History, &query, 100, &key).expect("a query");
        let mut reading = Reading::new(&asked, Some(at(2, 10)), &key, 1000);
        assert_eq!(page(&mut reading, &[], complete(at(2, 11), true)), None);
        assert_eq!(seen(&page(&mut reading, &[], complete(at(2, 12), true)).expect("a page")), (vec![], 12, false));
    }

    /// It was said that nothing came after an old cursor, and the client kept that.
    #[test]
    fn before_the_first_history_nothing_is_said_of_what_came_after_a_cursor() {
        let (key, asked) = (key(), asked(9));
        let mut reading = Reading::new(&asked, None, &key, 1000);
        let nowhere = Complete { reached: None, in_order: true, epoch: None };
        assert!(matches!(reading.at_end(nowhere, true), Err(Failure::Later(_))));
    }

    #[test]
    fn the_cursor_is_the_last_member_or_there_is_none() {
        assert_eq!(cursor_of(br#"{"record":{"cursor":"x"},"errors":null,"cursor":"aB-_9"}"#), Some("aB-_9"));
        assert_eq!(cursor_of(br#"{"record":{},"errors":null,"snapshot":true}"#), None);
        assert_eq!(cursor_of(br#"{"record":{"a":"x"}}"#), None);
        assert_eq!(cursor_of(b""), None);
    }
}
