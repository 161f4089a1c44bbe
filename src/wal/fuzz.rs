//! pgoutput as any bytes, message by message, into the assembler.

use bytes::Bytes;
use futures_util::FutureExt as _;

use super::assemble::Assembler;
use super::pgoutput::{Message, decode};
use super::spill::SpillPlace;
use crate::change::{Item, Lsn, ReplicaIdentity, Transaction, Tuple};

/// Messages, each behind its length (16 bits, big endian).
pub(crate) fn messages(bytes: &[u8]) {
    let mut assembler = assembler();
    let mut last = Lsn::ZERO;
    for message in split(bytes) {
        let Ok(decoded) = decode(&message) else { continue };
        check(&decoded, message.len());
        // After an error the stream would be given up; going on only makes the input stranger.
        let _ = assembler.accept(decoded);
        let Some(transaction) = settled(&mut assembler) else { continue };
        assert!(transaction.end_lsn > last, "positions grow");
        last = transaction.end_lsn;
        assert!(transaction.body.len() <= 2 * bytes.len() as u64 + 64);
        let read = || -> Vec<Item> { transaction.iter().collect::<Result<_, _>>().expect("it was checked") };
        let items = read();
        assert_eq!(items.len(), transaction.items as usize);
        assert_eq!(items, read(), "a second reading is the same");
        for item in &items {
            if let Item::Row(row) = item
                && let crate::change::Change::Insert { new } = &row.change
            {
                let values: Vec<_> = new.values().collect();
                let again = Tuple::from_values(values.iter().copied());
                assert!(again.values().eq(new.values()));
            }
        }
    }
}

/// The whole transactions in messages as they came.
#[cfg(test)]
pub(crate) fn transactions(messages: &[Bytes]) -> Vec<Transaction> {
    let mut assembler = assembler();
    let mut done = Vec::new();
    for message in messages {
        assembler.accept(decode(message).expect("decoded")).expect("accepted");
        done.extend(settled(&mut assembler));
    }
    done
}

fn assembler() -> Assembler {
    // Nothing is large enough to need the place.
    Assembler::new(SpillPlace::new(std::path::Path::new("/nonexistent")), usize::MAX)
}

fn settled(assembler: &mut Assembler) -> Option<Transaction> {
    let settled = assembler.settle().now_or_never().expect("nothing to wait for");
    settled.expect("nothing was spilled").map(|completed| completed.transaction)
}

fn split(mut bytes: &[u8]) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let (message, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
        bytes = rest;
        Some(Bytes::copy_from_slice(message))
    })
}

/// A message comes back from its encoding, and holds no more than it was made of.
fn check(message: &Message, length: usize) {
    match message {
        Message::Relation(relation) => assert!(relation.columns.len() * 10 <= length),
        Message::Truncate { oids, .. } => assert!(oids.len() * 4 <= length),
        _ => {}
    }
    let Some(bytes) = encode(message) else { return };
    assert_eq!(decode(&bytes).as_ref(), Ok(message));
}

/// `None` for the messages of which nothing is kept, and for names that can't stand in a message.
fn encode(message: &Message) -> Option<Bytes> {
    let mut out = Vec::new();
    match message {
        Message::Begin { commit_lsn, commit_time, xid } => {
            out.push(b'B');
            out.extend(commit_lsn.0.to_be_bytes());
            out.extend(commit_time.0.to_be_bytes());
            out.extend(xid.to_be_bytes());
        }
        Message::Commit { commit_lsn, end_lsn, commit_time } => {
            out.extend([b'C', 0]);
            out.extend(commit_lsn.0.to_be_bytes());
            out.extend(end_lsn.0.to_be_bytes());
            out.extend(commit_time.0.to_be_bytes());
        }
        Message::Relation(relation) => {
            out.push(b'R');
            out.extend(relation.oid.to_be_bytes());
            for name in [&relation.schema, &relation.table] {
                out.extend(name.as_bytes());
                out.push(0);
            }
            out.push(match relation.identity {
                ReplicaIdentity::Default => b'd',
                ReplicaIdentity::Nothing => b'n',
                ReplicaIdentity::Full => b'f',
                ReplicaIdentity::Index => b'i',
            });
            out.extend((relation.columns.len() as u16).to_be_bytes());
            for column in &relation.columns {
                out.push(u8::from(column.key));
                out.extend(column.name.as_bytes());
                out.push(0);
                out.extend(column.type_oid.to_be_bytes());
                out.extend(column.type_modifier.to_be_bytes());
            }
        }
        Message::Row { tag, oid, raw } => {
            out.push(*tag);
            out.extend(oid.to_be_bytes());
            out.extend(raw);
        }
        Message::Truncate { flags, oids } => {
            out.push(b'T');
            out.extend((oids.len() as u32).to_be_bytes());
            out.push(*flags);
            out.extend(oids.iter().flat_map(|oid| oid.to_be_bytes()));
        }
        Message::Logical { transactional, lsn, prefix, content } => {
            out.extend([b'M', u8::from(*transactional)]);
            out.extend(lsn.0.to_be_bytes());
            out.extend(prefix);
            out.push(0);
            out.extend((content.len() as u32).to_be_bytes());
            out.extend(content);
        }
        // Not all of its bytes are kept.
        Message::Type | Message::Origin { .. } => return None,
    }
    Some(Bytes::from(out))
}
