//! A transaction in the making: its records, one after the other, as [`super::transaction`] lays them out.

use std::sync::Arc;

use bytes::Bytes;

use super::transaction::{Body, Fields, RULES_PREFIX, SpilledBody, Timestamp, Transaction, TransactionError};
use super::{Lsn, Relation};

/// Collects the records of one transaction. Knows no limit and no file: who builds looks at [`TransactionBuilder::buffered`]
/// and may [`TransactionBuilder::drain`] the bytes to a place of its own before it goes on.
#[derive(Debug, Default)]
pub struct TransactionBuilder {
    relations: Vec<Arc<Relation>>,
    buffer: Vec<u8>,
    items: u32,
    rules_changed: bool,
}

impl TransactionBuilder {
    /// Bytes held in memory now.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Takes the bytes buffered so far.
    pub fn drain(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }

    /// Appends a row record. `tag` is `I`, `U` or `D`; `raw` is the rest of pgoutput's message after the relation oid.
    /// The row is parsed once here, so that a malformed one fails where it came in and never when it is read back.
    pub fn row(&mut self, tag: u8, relation: &Arc<Relation>, raw: &Bytes) -> Result<(), TransactionError> {
        let mut fields = Fields { record: raw, at: 0 };
        fields.change(tag)?;
        let index = self.index_of(relation);
        self.record(&[&[tag], &index.to_le_bytes(), raw])
    }

    /// Appends a TRUNCATE record; `flags` as pgoutput has them.
    pub fn truncate(&mut self, flags: u8, relations: &[Arc<Relation>]) -> Result<(), TransactionError> {
        let mut indexes = Vec::with_capacity(relations.len() * 4);
        for relation in relations {
            indexes.extend_from_slice(&self.index_of(relation).to_le_bytes());
        }
        let count = (relations.len() as u32).to_le_bytes();
        self.record(&[b"T", &[flags], &count, &indexes])
    }

    /// Marks it as [`Transaction::rules_changed`].
    pub fn rules_changed(&mut self) {
        self.rules_changed = true;
    }

    /// Appends a logical message record; one with [`RULES_PREFIX`] marks it as [`Transaction::rules_changed`].
    pub fn message(&mut self, lsn: Lsn, prefix: &[u8], content: &[u8]) -> Result<(), TransactionError> {
        self.rules_changed |= prefix == RULES_PREFIX.as_bytes();
        let length = (prefix.len() as u32).to_le_bytes();
        self.record(&[b"M", &lsn.0.to_le_bytes(), &length, prefix, content])
    }

    /// The transaction with the bytes still buffered as its body, or with `spilled`, which then must hold every drained byte
    /// and the rest.
    pub fn finish(
        mut self,
        xid: u32,
        commit_lsn: Lsn,
        end_lsn: Lsn,
        commit_time: Timestamp,
        spilled: Option<Arc<dyn SpilledBody>>,
    ) -> Transaction {
        let body = match spilled {
            Some(body) => Body::Spilled(body),
            None => {
                // Kept for long, and counted by its length.
                self.buffer.shrink_to_fit();
                Body::Memory(Bytes::from(self.buffer))
            }
        };
        let TransactionBuilder { relations, items, rules_changed, .. } = self;
        Transaction { xid, commit_lsn, end_lsn, commit_time, relations, origin: None, rules_changed, items, body }
    }

    fn index_of(&mut self, relation: &Arc<Relation>) -> u32 {
        // Compared by pointer first: the relation cache hands out the same Arc until the shape changes.
        let known = self.relations.iter().rposition(|r| Arc::ptr_eq(r, relation) || r == relation);
        let index = known.unwrap_or_else(|| {
            self.relations.push(relation.clone());
            self.relations.len() - 1
        });
        index as u32
    }

    fn record(&mut self, parts: &[&[u8]]) -> Result<(), TransactionError> {
        let length: usize = parts.iter().map(|p| p.len()).sum();
        if length > Transaction::MAX_RECORD {
            return Err(TransactionError::TooLong(length));
        }
        self.buffer.extend_from_slice(&(length as u32).to_le_bytes());
        for part in parts {
            self.buffer.extend_from_slice(part);
        }
        self.items += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_message_with_the_prefix_or_the_builders_owner_says_that_rules_changed() {
        let finished =
            |builder: TransactionBuilder| builder.finish(7, Lsn(10), Lsn(20), Timestamp(5), None).rules_changed;
        let with = |prefix: &str| {
            let mut builder = TransactionBuilder::default();
            builder.message(Lsn(1), prefix.as_bytes(), b"").expect("message");
            finished(builder)
        };
        assert!(with(RULES_PREFIX) && !with("rowcast.rules2") && !with("rowcast.") && !with(""));
        let mut told = TransactionBuilder::default();
        told.rules_changed();
        assert!(finished(told) && !finished(TransactionBuilder::default()));
    }

    #[test]
    fn a_body_takes_no_more_memory_than_its_length_says() {
        for (rows, length) in [(1, 10), (5, 300), (1000, 70)] {
            let mut builder = TransactionBuilder::default();
            for _ in 0..rows {
                builder.message(Lsn(1), b"prefix", &vec![b'x'; length]).expect("message");
            }
            let finished = builder.finish(7, Lsn(10), Lsn(20), Timestamp(5), None);
            let Body::Memory(bytes) = finished.body else { panic!("it was spilled") };
            let length = bytes.len();
            assert_eq!(bytes.try_into_mut().expect("nobody else has it").capacity(), length);
        }
    }
}
