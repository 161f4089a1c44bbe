//! A record's parts as any bytes.

use std::sync::Arc;

use bytes::Bytes;

use super::codec::{Frame, Head, RelationRef, decode_advance, decode_head, encode_head};
use crate::change::{
    Body, Change, Item, Lsn, Relation, RelationColumn, ReplicaIdentity, Timestamp, Transaction, Tuple,
};

/// First byte: which part. Rest: its bytes.
pub(crate) fn record(bytes: &[u8]) {
    let Some((part, rest)) = bytes.split_first() else { return };
    match part % 4 {
        0 => frame(rest),
        1 => head(rest),
        2 => {
            if let Ok(lsn) = decode_advance(rest) {
                assert_eq!(rest, lsn.0.to_le_bytes());
            }
        }
        _ => body(rest),
    }
}

fn frame(bytes: &[u8]) {
    if let Ok(frame) = Frame::decode(bytes) {
        let mut out = Vec::new();
        frame.encode(&mut out);
        assert!(bytes.starts_with(&out));
    }
}

/// There is one way to write a head, so its bytes come back.
fn head(bytes: &[u8]) {
    let Ok(head) = decode_head(bytes) else { return };
    assert!(head.relations.len() * 4 <= bytes.len());
    let numbers: Vec<(u32, bool)> = head.relations.iter().map(number).collect();
    let Head { xid, items, commit_lsn, end_lsn, commit_time, relations, origin, rules_changed } = head;
    let relations = relations.into_iter().map(|relation| match relation {
        RelationRef::Known(_) => Arc::new(relation_of(0)),
        RelationRef::New(_, relation) => Arc::new(relation),
    });
    let body = Body::Memory(Bytes::new());
    let (relations, origin) = (relations.collect(), origin.map(Arc::from));
    let transaction =
        Transaction { xid, items, commit_lsn, end_lsn, commit_time, relations, origin, rules_changed, body };
    let mut out = Vec::new();
    encode_head(&transaction, &numbers, &mut out).expect("it was written once");
    assert_eq!(&out[4..], bytes);
}

fn number(relation: &RelationRef) -> (u32, bool) {
    match relation {
        RelationRef::Known(number) => (*number, false),
        RelationRef::New(number, _) => (*number, true),
    }
}

fn relation_of(columns: usize) -> Relation {
    let column = |i| RelationColumn { name: format!("c{i}"), type_oid: 25, type_modifier: -1, key: i == 0 };
    let (schema, table, identity) = ("public".into(), "t".into(), ReplicaIdentity::Default);
    Relation { oid: 1, schema, table, identity, columns: (0..columns).map(column).collect() }
}

/// A transaction's records: read until the first error, which is the last thing read.
fn body(bytes: &[u8]) {
    let transaction = Transaction {
        xid: 1,
        commit_lsn: Lsn(1),
        end_lsn: Lsn(2),
        commit_time: Timestamp(0),
        relations: (1..4).map(|columns| Arc::new(relation_of(columns))).collect(),
        items: 0,
        origin: None,
        rules_changed: false,
        body: Body::Memory(Bytes::copy_from_slice(bytes)),
    };
    let mut items = transaction.iter();
    while let Some(item) = items.next() {
        match item {
            Err(error) => {
                assert!(!error.to_string().is_empty());
                assert!(items.next().is_none(), "an error is the end");
                return;
            }
            Ok(Item::Row(row)) => match &row.change {
                Change::Insert { new } | Change::Update { new, .. } => comes_back(new),
                Change::Delete { old } => comes_back(old.tuple()),
            },
            Ok(Item::Truncate(truncate)) => assert!(truncate.relations.len() * 4 <= bytes.len()),
            Ok(Item::Message(message)) => assert!(message.content.len() <= bytes.len()),
        }
    }
}

fn comes_back(tuple: &Tuple) {
    let values: Vec<_> = tuple.values().collect();
    assert!(Tuple::from_values(values.iter().copied()).values().eq(values.iter().copied()));
}
