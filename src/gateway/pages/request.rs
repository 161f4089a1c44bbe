//! What a page is asked for with: the query of a request as an entry of `postgres_changes`, so that both mean the same.

use serde_json::{Map, Value, json};
use warp::http::HeaderMap;

use crate::channel::{Since, Wanted};
use crate::gateway::handshake::parameter;
use crate::hub::{Entry, Start};
use crate::resume::{CursorError, CursorKey};

/// Rows of a page that does not say how many.
const ROWS: u32 = 100;

/// Which page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `/api/snapshot`: the rows that are there.
    Snapshot,
    /// `/api/history`: the changes after a cursor.
    History,
}

/// A page to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) kind: Kind,
    pub(super) entry: Entry,
    /// Most rows.
    pub(super) limit: u32,
}

/// The token of a request: the user's own if there is one, else the key that applications send with everything.
pub(in crate::gateway) fn token(headers: &HeaderMap, query: &str) -> Option<String> {
    let text = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let bearer = text("authorization").and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
    });
    bearer.or_else(|| text("x-api-key")).or_else(|| text("apikey")).or_else(|| parameter(query, "apikey"))
}

/// Reads the query, or says what is wrong with it.
pub(super) fn parse(kind: Kind, query: &str, most: u32, key: &CursorKey) -> Result<Asked, String> {
    let given = |name| parameter(query, name).filter(|value| !value.is_empty());
    let table = given("table").ok_or("`table` is missing: name the table, e.g. ?table=todos")?;
    let schema = given("schema").unwrap_or_else(|| "public".into());
    if table == "*" || schema == "*" {
        return Err("a page is of one table: name it instead of *".into());
    }
    let limit = match given("limit") {
        None => ROWS.min(most),
        Some(text) => text
            .parse()
            .ok()
            .filter(|limit| (1..=most).contains(limit))
            .ok_or_else(|| format!("`limit` must be a number from 1 to {most}"))?,
    };
    let mut entry = Map::new();
    for (name, value) in [("schema", schema), ("table", table)] {
        entry.insert(name.into(), value.into());
    }
    if let Some(filter) = given("filter") {
        entry.insert("filter".into(), filter.into());
    }
    if let Some(select) = given("select").filter(|select| select.trim() != "*") {
        let names: Vec<&str> = select.split(',').map(str::trim).collect();
        entry.insert("select".into(), json!(names));
    }
    match kind {
        Kind::Snapshot => {
            let mut wish = json!({ "limit": limit });
            if let Some(order) = given("order") {
                wish["order"] = order.into();
            }
            entry.insert("snapshot".into(), wish);
        }
        Kind::History => {
            let after = given("after").ok_or(
                "`after` is missing: pass the cursor of a page, of a snapshot or of a change, or a commit time",
            )?;
            entry.insert("event".into(), given("event").unwrap_or_else(|| "*".into()).into());
            // Milliseconds are a number there.
            let number = after.parse::<i64>().map_or_else(|_| Value::from(after), Value::from);
            entry.insert("since".into(), number);
        }
    }
    let wanted = Wanted::parse_all(&json!([entry]).to_string()).and_then(|mut all| all.pop());
    let wanted = wanted.ok_or("the parameters can't be read")?;
    let renamed = |text: String| text.replace("`since`", "`after`");
    let start = match wanted.since().map_err(renamed)? {
        None => Start::Now,
        Some(Since::Time(time)) => Start::Time(time),
        Some(Since::Cursor(text)) => match key.open(&text) {
            Ok(cursor) => Start::After(cursor),
            Err(CursorError::OtherKey) => Start::Lost,
            Err(error @ CursorError::Malformed) => return Err(format!("Error parsing `after`: {error}")),
        },
    };
    Ok(Asked { kind, entry: Entry { start, ..wanted.entry()? }, limit })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Lsn, Position};
    use crate::hub::{Action, Name};
    use crate::resume::Cursor;

    fn key() -> CursorKey {
        CursorKey::new([1; 32])
    }

    #[test]
    fn a_query_is_an_entry() {
        let snapshot = "schema=app&table=todos&filter=id%3Dgt.3&select=id,%20title&order=due.desc,id&limit=7&apikey=x";
        let asked = parse(Kind::Snapshot, snapshot, 1000, &key()).unwrap();
        let is = |text: &str| Name::Is(text.into());
        assert_eq!((&asked.entry.schema, &asked.entry.table, asked.limit), (&is("app"), &is("todos"), 7));
        assert_eq!(asked.entry.filter.as_deref(), Some("id=gt.3"));
        assert_eq!(asked.entry.select, Some(vec!["id".into(), "title".into()]));
        let wish = asked.entry.snapshot.expect("a snapshot");
        assert_eq!((wish.limit, wish.order), (7, vec![("due".into(), true), ("id".into(), false)]));
        let cursor = Cursor { epoch: 1, position: Position { lsn: Lsn(5), ordinal: 2 } };
        let history = format!("table=t&event=DELETE&after={}", key().seal(cursor));
        let asked = parse(Kind::History, &history, 50, &key()).unwrap();
        assert_eq!((asked.entry.start, asked.entry.action), (Start::After(cursor), Action::Delete));
        assert_eq!((asked.entry.schema, asked.limit, asked.entry.snapshot), (is("public"), 50, None));
        for time in ["1795000000000", "2026-11-21T10:15:30Z"] {
            let asked = parse(Kind::History, &format!("table=t&after={time}"), 50, &key()).unwrap();
            assert!(matches!(asked.entry.start, Start::Time(_)), "{time}");
        }
        let lost = CursorKey::new([2; 32]).seal(cursor);
        assert_eq!(
            parse(Kind::History, &format!("table=t&after={lost}"), 50, &key()).unwrap().entry.start,
            Start::Lost
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (kind, query, says) in [
            (Kind::Snapshot, "", "`table` is missing"),
            (Kind::Snapshot, "table=", "`table` is missing"),
            (Kind::Snapshot, "table=*", "one table"),
            (Kind::Snapshot, "table=t&schema=*", "one table"),
            (Kind::Snapshot, "table=t&limit=0", "1 to 1000"),
            (Kind::Snapshot, "table=t&limit=1001", "1 to 1000"),
            (Kind::Snapshot, "table=t&limit=many", "1 to 1000"),
            (Kind::Snapshot, "table=t&order=,", "Error parsing `snapshot`"),
            (Kind::History, "table=t", "`after` is missing"),
            (Kind::History, "table=t&after=nonsense", "Error parsing `after`"),
        ] {
            let error = parse(kind, query, 1000, &key()).unwrap_err();
            assert!(error.contains(says), "{query}: {error}");
        }
    }

    #[test]
    fn the_users_own_token_goes_before_the_key() {
        let mut headers = HeaderMap::new();
        assert_eq!(token(&headers, ""), None);
        assert_eq!(token(&headers, "apikey=a").as_deref(), Some("a"));
        headers.insert("apikey", "b".parse().unwrap());
        assert_eq!(token(&headers, "apikey=a").as_deref(), Some("b"));
        headers.insert("x-api-key", "c".parse().unwrap());
        assert_eq!(token(&headers, "apikey=a").as_deref(), Some("c"));
        headers.insert("authorization", "Basic abc".parse().unwrap());
        assert_eq!(token(&headers, "").as_deref(), Some("c"));
        headers.insert("authorization", "bearer  d ".parse().unwrap());
        assert_eq!(token(&headers, "").as_deref(), Some("d"));
    }

    proptest::proptest! {
        #[test]
        fn any_query_is_answered(query: String) {
            for kind in [Kind::Snapshot, Kind::History] {
                let _ = parse(kind, &query, 1000, &key());
                let _ = parse(kind, &format!("table=t&after={query}&order={query}"), 1000, &key());
            }
        }
    }
}
