//! Begin, rows, Commit: one transaction.
//!
//! [`Assembler::accept`] takes messages and never waits; [`Assembler::settle`] waits for the spill file where it must,
//! and hands out the finished transaction. `settle` is called before every message. Both keep all state in the
//! assembler, so the future of `settle` may be dropped at any time.
//!
//! Invariants:
//! * A transaction is handed out whole, after its Commit, and its end LSN is above that of the one before.
//! * No more than twice the threshold of a transaction is in memory: one block being written, one being filled.
//! * A transaction in which the stream described a relation, known or not, is marked as one that may have changed rules:
//!   Postgres describes a table again after everything that invalidates what it has cached of it, such as a GRANT or a
//!   policy, and always before the next row. The first row of a table in a session is marked as well, since nobody
//!   knows what happened to it before the session.
//! * A keepalive gives a position only while no transaction is open or waiting to be handed out.

use std::sync::Arc;

use bytes::Bytes;

use crate::change::{Lsn, Timestamp, Transaction, TransactionBuilder};

use super::WalError;
use super::pgoutput::{Malformed, Message};
use super::relations::Relations;
use super::spill::{Spill, SpillPlace};

/// Builds transactions from messages.
#[derive(Debug)]
pub(super) struct Assembler {
    relations: Relations,
    open: Option<Open>,
    /// A relation was described since the last transaction with items was handed out.
    described: bool,
    /// End of the last transaction or idle position handed out.
    last: Lsn,
    place: SpillPlace,
    threshold: usize,
}

#[derive(Debug)]
struct Open {
    xid: u32,
    commit_lsn: Lsn,
    commit_time: Timestamp,
    /// Set by Commit.
    end_lsn: Option<Lsn>,
    origin: Option<Arc<str>>,
    builder: TransactionBuilder,
    items: u32,
    rows: u64,
    spill: Option<Spill>,
}

/// What came of a Commit.
#[derive(Debug)]
pub(super) struct Completed {
    /// The transaction; it may have no items.
    pub(super) transaction: Transaction,
    /// How many of its items are rows.
    pub(super) rows: u64,
    /// Whether it went through a file.
    pub(super) spilled: bool,
}

impl Assembler {
    /// Spills to `place` what passes `threshold` bytes.
    pub(super) fn new(place: SpillPlace, threshold: usize) -> Assembler {
        Assembler { relations: Relations::default(), open: None, described: false, last: Lsn::ZERO, place, threshold }
    }

    /// Takes a message in.
    pub(super) fn accept(&mut self, message: Message) -> Result<(), Malformed> {
        match message {
            Message::Begin { commit_lsn, commit_time, xid } => self.begin(commit_lsn, commit_time, xid),
            Message::Commit { commit_lsn, end_lsn, .. } => self.commit(commit_lsn, end_lsn),
            Message::Relation(relation) => {
                self.described = true;
                self.relations.describe(relation)
            }
            Message::Row { tag, oid, raw } => self.row(tag, oid, &raw),
            Message::Truncate { flags, oids } => {
                let relations =
                    oids.iter().map(|oid| self.relations.get(*oid).cloned()).collect::<Result<Vec<_>, _>>()?;
                let open = counted(&mut self.open, "Truncate")?;
                open.builder.truncate(flags, &relations).map_err(Malformed::Row)
            }
            Message::Logical { transactional: true, lsn, prefix, content } => {
                let open = counted(&mut self.open, "transactional Message")?;
                open.builder.message(lsn, &prefix, &content).map_err(Malformed::Row)
            }
            // It may precede its transaction, survives its rollback, and has no place in the order of commits.
            Message::Logical { transactional: false, lsn, .. } => {
                tracing::trace!(%lsn, "a non-transactional logical message is passed over");
                Ok(())
            }
            Message::Origin { name } => {
                let open = self.open.as_mut().filter(|o| o.end_lsn.is_none()).ok_or(Malformed::Outside("Origin"))?;
                open.origin = Some(name.into());
                Ok(())
            }
            Message::Type => Ok(()),
        }
    }

    fn begin(&mut self, commit_lsn: Lsn, commit_time: Timestamp, xid: u32) -> Result<(), Malformed> {
        if let Some(open) = &self.open {
            return Err(Malformed::Nested { outer: open.xid, inner: xid });
        }
        let builder = TransactionBuilder::default();
        let (end_lsn, origin, spill) = (None, None, None);
        self.open = Some(Open { xid, commit_lsn, commit_time, end_lsn, origin, builder, items: 0, rows: 0, spill });
        Ok(())
    }

    fn row(&mut self, tag: u8, oid: u32, raw: &Bytes) -> Result<(), Malformed> {
        let relation = self.relations.get(oid)?;
        let open = counted(&mut self.open, "row")?;
        open.rows += 1;
        open.builder.row(tag, relation, raw).map_err(Malformed::Row)
    }

    fn commit(&mut self, commit_lsn: Lsn, end_lsn: Lsn) -> Result<(), Malformed> {
        let open = self.open.as_mut().filter(|o| o.end_lsn.is_none()).ok_or(Malformed::Outside("Commit"))?;
        if commit_lsn != open.commit_lsn {
            return Err(Malformed::CommitMismatch { xid: open.xid, announced: open.commit_lsn, found: commit_lsn });
        }
        if end_lsn <= self.last || end_lsn < commit_lsn {
            return Err(Malformed::NotIncreasing { before: self.last, found: end_lsn });
        }
        open.end_lsn = Some(end_lsn);
        Ok(())
    }

    /// Waits for the disk if it must, and gives the transaction whose Commit was accepted. Cancel-safe.
    pub(super) async fn settle(&mut self) -> Result<Option<Completed>, WalError> {
        let Some(open) = &mut self.open else { return Ok(None) };
        loop {
            let committed = open.end_lsn.is_some();
            let must_write = match &open.spill {
                Some(_) if committed => open.builder.buffered() > 0,
                _ => open.builder.buffered() >= self.threshold,
            };
            let writing = open.spill.as_ref().is_some_and(Spill::is_writing);
            if writing && (must_write || committed) {
                if let Some(spill) = &mut open.spill {
                    spill.written().await?;
                }
            } else if must_write {
                let spill = open.spill.get_or_insert_with(|| Spill::new(self.place.clone()));
                spill.append(open.builder.drain());
            } else {
                break;
            }
        }
        let Some(end_lsn) = open.end_lsn else { return Ok(None) };
        let Some(open) = self.open.take() else { return Ok(None) };
        self.last = end_lsn;
        let Open { xid, commit_lsn, commit_time, origin, builder, rows, spill, .. } = open;
        let body = spill.and_then(Spill::into_body);
        let spilled = body.is_some();
        let mut transaction = Transaction { origin, ..builder.finish(xid, commit_lsn, end_lsn, commit_time, body) };
        if transaction.items > 0 {
            // One without items goes no further, so what it said is left for the next.
            transaction.rules_changed |= std::mem::take(&mut self.described);
        }
        Ok(Some(Completed { transaction, rows, spilled }))
    }

    /// A keepalive: the position up to which every commit was handed out, unless a transaction is open or it is an old
    /// one.
    pub(super) fn keepalive(&mut self, sent_to: Lsn) -> Option<Lsn> {
        if self.open.is_some() || sent_to < self.last {
            return None;
        }
        self.last = sent_to;
        Some(sent_to)
    }
}

/// The open transaction, with one more item counted.
fn counted<'a>(open: &'a mut Option<Open>, what: &'static str) -> Result<&'a mut Open, Malformed> {
    let open = open.as_mut().filter(|o| o.end_lsn.is_none()).ok_or(Malformed::Outside(what))?;
    open.items = open.items.checked_add(1).ok_or(Malformed::TooManyItems)?;
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::super::pgoutput::{decode, write};
    use super::super::spill::broken::full_disk;
    use super::*;
    use crate::change::{Body, Item, Relation, RelationColumn, ReplicaIdentity, Value};
    use proptest::prelude::*;

    fn table(oid: u32, columns: usize) -> Relation {
        let column = |i| RelationColumn { name: format!("c{i}"), type_oid: 25, type_modifier: -1, key: i == 0 };
        let (schema, table) = ("public".into(), "t".into());
        Relation { oid, schema, table, identity: ReplicaIdentity::Default, columns: (0..columns).map(column).collect() }
    }

    fn insert(oid: u32, text: &[u8]) -> Bytes {
        write::row(b'I', oid, &[(b'N', &[Value::Text(text)])])
    }

    fn feed(assembler: &mut Assembler, message: &Bytes) -> Result<(), Malformed> {
        assembler.accept(decode(message)?)
    }

    async fn run(assembler: &mut Assembler, messages: &[Bytes]) -> Vec<Completed> {
        let mut out = Vec::new();
        for message in messages {
            feed(assembler, message).expect("accepted");
            out.extend(assembler.settle().await.expect("settled"));
        }
        out
    }

    fn in_memory() -> Assembler {
        // A full disk proves that nothing spills.
        Assembler::new(full_disk(), usize::MAX)
    }

    #[tokio::test]
    async fn a_transaction_comes_out_whole_at_its_commit() {
        let mut assembler = in_memory();
        let messages = [
            write::begin(100, 7),
            write::named(b'O', &9u64.to_be_bytes(), &["elsewhere"]),
            write::relation(&table(1, 1)),
            insert(1, b"a"),
            write::logical(true, 90, "p", b"c"),
            write::logical(false, 91, "lost", b"c"),
            write::truncate(1, &[1]),
            write::commit(100, 148),
        ];
        let done = run(&mut assembler, &messages).await;
        let [Completed { transaction, rows: 1, spilled: false }] = &done[..] else { panic!("{done:?}") };
        assert_eq!((transaction.xid, transaction.commit_lsn, transaction.end_lsn), (7, Lsn(100), Lsn(148)));
        let items: Vec<Item> = transaction.iter().collect::<Result<_, _>>().expect("items");
        assert!(matches!(&items[..], [Item::Row(_), Item::Message(_), Item::Truncate(_)]), "{items:?}");
        assert_eq!(transaction.last_position().ordinal, 2);
        assert_eq!(transaction.origin.as_deref(), Some("elsewhere"));
    }

    #[tokio::test]
    async fn a_description_marks_the_transaction_of_the_next_row_however_it_is_kept() {
        let dir = tempfile::tempdir().expect("dir");
        for (place, threshold) in [(full_disk(), usize::MAX), (SpillPlace::new(dir.path()), 10)] {
            let mut assembler = Assembler::new(place, threshold);
            let (described, again) = (write::relation(&table(1, 1)), write::relation(&table(1, 1)));
            let messages = [
                write::begin(100, 7),
                insert(9, b"before"),
                described,
                insert(1, b"after"),
                write::commit(100, 148),
                write::begin(200, 8),
                insert(1, b"no news"),
                write::commit(200, 248),
                // Without a row nobody hears of it, so it is kept for the next.
                write::begin(300, 9),
                again,
                write::commit(300, 348),
                write::begin(400, 10),
                insert(1, b"news"),
                write::commit(400, 448),
                write::begin(500, 11),
                write::logical(true, 490, crate::change::RULES_PREFIX, b""),
                write::commit(500, 548),
            ];
            feed(&mut assembler, &write::relation(&table(9, 1))).expect("outside of any transaction");
            feed(&mut assembler, &write::begin(1, 1)).expect("begin");
            feed(&mut assembler, &insert(9, b"x")).expect("row");
            feed(&mut assembler, &write::commit(1, 2)).expect("commit");
            let first = assembler.settle().await.expect("settled").expect("committed");
            assert!(first.transaction.rules_changed);
            let done = run(&mut assembler, &messages).await;
            let marked: Vec<_> =
                done.iter().map(|d| (d.transaction.xid, d.transaction.items, d.transaction.rules_changed)).collect();
            assert_eq!(marked, [(7, 2, true), (8, 1, false), (9, 0, false), (10, 1, true), (11, 1, true)]);
        }
    }

    #[tokio::test]
    async fn a_keepalive_gives_a_position_only_between_transactions_and_never_an_older_one() {
        let mut assembler = in_memory();
        assert_eq!(assembler.keepalive(Lsn(50)), Some(Lsn(50)));
        feed(&mut assembler, &write::begin(100, 7)).expect("begin");
        assert_eq!(assembler.keepalive(Lsn(99)), None);
        feed(&mut assembler, &write::commit(100, 148)).expect("commit");
        assert_eq!(assembler.keepalive(Lsn(148)), None, "the transaction was not handed out yet");
        assert!(assembler.settle().await.expect("settled").is_some());
        assert_eq!(assembler.keepalive(Lsn(120)), None);
        assert_eq!(assembler.keepalive(Lsn(148)), Some(Lsn(148)));
    }

    #[tokio::test]
    async fn messages_out_of_place_are_errors() {
        let mut assembler = in_memory();
        assert_eq!(feed(&mut assembler, &insert(1, b"a")), Err(Malformed::UnknownRelation(1)));
        feed(&mut assembler, &write::relation(&table(1, 1))).expect("relation");
        assert_eq!(feed(&mut assembler, &insert(1, b"a")), Err(Malformed::Outside("row")));
        assert_eq!(feed(&mut assembler, &write::commit(1, 2)), Err(Malformed::Outside("Commit")));
        assert_eq!(feed(&mut assembler, &write::truncate(0, &[1])), Err(Malformed::Outside("Truncate")));
        let message = write::logical(true, 1, "p", b"");
        assert_eq!(feed(&mut assembler, &message), Err(Malformed::Outside("transactional Message")));
        feed(&mut assembler, &write::begin(100, 7)).expect("begin");
        assert_eq!(feed(&mut assembler, &write::begin(101, 8)), Err(Malformed::Nested { outer: 7, inner: 8 }));
        let mismatch = Malformed::CommitMismatch { xid: 7, announced: Lsn(100), found: Lsn(99) };
        assert_eq!(feed(&mut assembler, &write::commit(99, 148)), Err(mismatch));
        assert_eq!(feed(&mut assembler, &write::truncate(0, &[1, 5])), Err(Malformed::UnknownRelation(5)));
    }

    #[tokio::test]
    async fn positions_never_go_back() {
        let mut assembler = in_memory();
        run(&mut assembler, &[write::begin(100, 7), write::commit(100, 148)]).await;
        feed(&mut assembler, &write::begin(100, 8)).expect("begin");
        let back = Malformed::NotIncreasing { before: Lsn(148), found: Lsn(148) };
        assert_eq!(feed(&mut assembler, &write::commit(100, 148)), Err(back));
    }

    #[tokio::test]
    async fn a_new_shape_in_the_middle_holds_for_the_rows_after_it() {
        let mut assembler = in_memory();
        let two = write::row(b'I', 1, &[(b'N', &[Value::Text(b"b"), Value::Null])]);
        let messages = [
            write::begin(100, 7),
            write::relation(&table(1, 1)),
            insert(1, b"a"),
            write::relation(&table(1, 2)),
            two,
            write::commit(100, 148),
        ];
        let done = run(&mut assembler, &messages).await;
        let widths: Vec<usize> = done[0]
            .transaction
            .iter()
            .map(|item| match item.expect("item") {
                Item::Row(row) => row.relation.columns.len(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(widths, [1, 2]);
    }

    #[tokio::test]
    async fn a_large_transaction_spills_and_reads_as_it_would_from_memory() {
        let dir = tempfile::tempdir().expect("dir");
        let mut spilling = Assembler::new(SpillPlace::new(dir.path()), 1000);
        let mut messages = vec![write::relation(&table(1, 1)), write::begin(100, 7)];
        messages.extend((0..2000u32).map(|i| insert(1, format!("row {i}").as_bytes())));
        messages.push(write::commit(100, 148));
        let spilled = run(&mut spilling, &messages).await.remove(0);
        let kept = run(&mut in_memory(), &messages).await.remove(0);
        assert!(spilled.spilled && matches!(spilled.transaction.body, Body::Spilled(_)));
        assert_eq!(spilled.transaction.body.len(), kept.transaction.body.len());
        let read = |c: &Completed| c.transaction.iter().collect::<Result<Vec<Item>, _>>().expect("items");
        assert_eq!(read(&spilled), read(&kept));
        assert_eq!(read(&spilled), read(&kept), "and a second time");
        // The next one is small again.
        let next = [write::begin(200, 8), insert(1, b"x"), write::commit(200, 248)];
        assert!(!run(&mut spilling, &next).await.remove(0).spilled);
    }

    #[tokio::test]
    async fn a_full_disk_fails_the_transaction() {
        let mut assembler = Assembler::new(full_disk(), 10);
        for message in [write::relation(&table(1, 1)), write::begin(100, 7), insert(1, b"some text")] {
            feed(&mut assembler, &message).expect("accepted");
        }
        assert!(assembler.settle().await.expect("the block is being written").is_none());
        feed(&mut assembler, &write::commit(100, 148)).expect("accepted");
        assert!(matches!(assembler.settle().await, Err(WalError::Spill { .. })));
    }

    fn arb_message() -> impl Strategy<Value = Bytes> {
        let text = proptest::collection::vec(any::<u8>(), 0..20);
        prop_oneof![
            (1u64..50, 1u32..5).prop_map(|(lsn, xid)| write::begin(lsn, xid)),
            (1u64..50, 1u64..60).prop_map(|(lsn, end)| write::commit(lsn, end)),
            (1u32..4, 0usize..3).prop_map(|(oid, columns)| write::relation(&table(oid, columns))),
            (1u32..5, text.clone()).prop_map(|(oid, text)| insert(oid, &text)),
            (any::<u8>(), 1u32..5).prop_map(|(flags, oid)| write::truncate(flags, &[oid])),
            (any::<bool>(), text.clone()).prop_map(|(transactional, text)| write::logical(
                transactional,
                1,
                "p",
                &text
            )),
            text.prop_map(Bytes::from),
        ]
    }

    proptest! {
        #[test]
        fn any_sequence_gives_whole_increasing_transactions_or_errors(
            messages in proptest::collection::vec(arb_message(), 0..60),
        ) {
            let dir = tempfile::tempdir().expect("dir");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
            runtime.block_on(async {
                let mut assembler = Assembler::new(SpillPlace::new(dir.path()), 60);
                let mut last = Lsn::ZERO;
                for message in &messages {
                    // After an error the stream would be given up; going on only makes the input stranger.
                    let _ = feed(&mut assembler, message);
                    if let Some(done) = assembler.settle().await.expect("the disk is fine") {
                        assert!(done.transaction.end_lsn > last);
                        last = done.transaction.end_lsn;
                        let items: Vec<Item> = done.transaction.iter().collect::<Result<_, _>>().expect("items");
                        assert_eq!(items.len(), done.transaction.items as usize);
                    }
                }
            });
        }
    }
}
