//! What was committed, in the order of commits, as a slot of the test's own tells it: through `test_decoding`, another plugin
//! than the relay's, and read by nothing that the relay is made of.

use std::collections::HashMap;

use rowcast::change::Lsn;
use tokio_postgres::Client;

/// A row, by column.
pub(crate) type Row = HashMap<String, String>;

/// A change of one row, or of a whole table.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Insert {
        table: String,
        new: Row,
    },
    /// `old` has the identity, if that changed or is the whole row.
    Update {
        table: String,
        old: Option<Row>,
        new: Row,
    },
    Delete {
        table: String,
        old: Row,
    },
    Truncate {
        table: String,
    },
    /// A transactional message.
    Message {
        prefix: String,
        content: String,
    },
}

/// Makes the slot; what is committed from now on is in [`read`].
pub(crate) async fn begin(client: &Client) {
    let sql = "select pg_create_logical_replication_slot('history', 'test_decoding')";
    client.query(sql, &[]).await.expect("a slot of the test's own");
}

/// Every commit since [`begin`], oldest first. Empty ones too: `test_decoding` would not frame those that only carry messages.
pub(crate) async fn read(client: &Client) -> Vec<Vec<Event>> {
    read_with_ends(client).await.into_iter().map(|(_, events)| events).collect()
}

/// The same, each with the LSN behind its commit record.
pub(crate) async fn read_with_ends(client: &Client) -> Vec<(Lsn, Vec<Event>)> {
    let sql = "select data, lsn::text from pg_logical_slot_get_changes('history', null, null, 'include-xids', '0')";
    let mut commits = Vec::new();
    for row in client.query(sql, &[]).await.expect("the history") {
        match row.get::<_, &str>(0) {
            "BEGIN" => commits.push((Lsn::ZERO, Vec::new())),
            "COMMIT" => {
                let end = row.get::<_, &str>(1).parse().expect("an LSN");
                commits.last_mut().expect("a transaction has begun").0 = end;
            }
            // The relay's own.
            line if line.starts_with("table rowcast.") => {}
            line if line.starts_with("message: transactional: 0") => {}
            line => {
                let (_, events): &mut (_, Vec<Event>) = commits.last_mut().expect("a transaction has begun");
                events.push(parse(line).unwrap_or_else(|| panic!("not understood: {line}")));
            }
        }
    }
    commits
}

fn parse(line: &str) -> Option<Event> {
    if let Some(message) = line.strip_prefix("message: transactional: 1 prefix: ") {
        let (prefix, rest) = message.split_once(", sz: ")?;
        let content = rest.split_once(" content:")?.1.to_owned();
        return Some(Event::Message { prefix: prefix.to_owned(), content });
    }
    let (tables, rest) = line.strip_prefix("table ")?.split_once(": ")?;
    let (kind, tuples) = rest.split_once(": ")?;
    if tables.starts_with("realtime.messages") {
        return (kind == "INSERT").then(|| message(tuples)).flatten();
    }
    let table = tables.strip_prefix("public.")?.to_owned();
    match kind {
        "INSERT" => Some(Event::Insert { table, new: tuple(tuples)? }),
        "DELETE" => Some(Event::Delete { table, old: tuple(tuples)? }),
        "TRUNCATE" => Some(Event::Truncate { table }),
        "UPDATE" => Some(match tuples.strip_prefix("old-key: ") {
            Some(both) => {
                let (old, new) = both.split_once(" new-tuple: ")?;
                Event::Update { table, old: Some(tuple(old)?), new: tuple(new)? }
            }
            None => Event::Update { table, old: None, new: tuple(tuples)? },
        }),
        _ => None,
    }
}

/// A row of `realtime.messages`, whatever partition it is in: its id and topic, and a `rev` that never changes.
fn message(tuple: &str) -> Option<Event> {
    let value = |name: &str| Some(tuple.split_once(name)?.1.split_once('\'')?.0.to_owned());
    let columns = [("id", value(" id[uuid]:'")?), ("topic", value("topic[text]:'")?), ("rev", String::new())];
    let new = columns.map(|(name, value)| (name.to_owned(), value)).into();
    Some(Event::Insert { table: "messages".into(), new })
}

/// `name[type]:value name[type]:'value'`, of types and values without spaces.
fn tuple(text: &str) -> Option<Row> {
    let column = |part: &str| {
        let (name, rest) = part.split_once('[')?;
        let value = rest.split_once("]:")?.1.trim_matches('\'');
        Some((name.to_owned(), value.to_owned()))
    };
    text.split(' ').map(column).collect()
}
