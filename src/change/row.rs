//! One row image: cells over one shared buffer.

use bytes::Bytes;

/// One column of a row image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// SQL NULL. In a key-only old row a non-key column also reads as this: ask [`OldRow`] first.
    Null,
    /// Stored out of line and not touched by this UPDATE: the value was not sent. Not NULL.
    Unchanged,
    /// The value's text output under the pinned session settings; UTF-8 unless the database is SQL_ASCII.
    Text(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The text if there is one and it is UTF-8.
    pub fn as_str(self) -> Option<&'a str> {
        match self {
            Value::Text(bytes) => std::str::from_utf8(bytes).ok(),
            Value::Null | Value::Unchanged => None,
        }
    }
}

/// Bytes that are not a pgoutput TupleData.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MalformedTuple {
    /// The message ends inside the tuple.
    #[error("the tuple ends after {0} bytes, inside a column")]
    Truncated(usize),
    /// A column kind other than `n`, `u`, `t`. (`b` is sent only with `binary 'true'`, which is never asked for.)
    #[error("column {column} has the unknown kind byte {kind:#04x}")]
    UnknownKind {
        /// Zero-based.
        column: usize,
        /// The byte found.
        kind: u8,
    },
    /// A negative or impossible length.
    #[error("column {column} announces {length} bytes")]
    BadLength {
        /// Zero-based.
        column: usize,
        /// As sent.
        length: i32,
    },
}

const NULL: u32 = u32::MAX;
const UNCHANGED: u32 = u32::MAX - 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cell {
    offset: u32,
    /// A length, or one of the two marks above.
    length: u32,
}

/// A row image: one shared buffer, and for each column where in it the text stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuple {
    data: Bytes,
    cells: Box<[Cell]>,
}

impl Tuple {
    /// Splits a pgoutput TupleData which begins at `*at` in `data`, and moves `*at` behind it. `data` is shared, not copied.
    /// Allocates at most in proportion to the bytes that are really there.
    pub fn parse(data: &Bytes, at: &mut usize) -> Result<Tuple, MalformedTuple> {
        let bytes = &data[..];
        let truncated = || MalformedTuple::Truncated(bytes.len());
        let count = bytes.get(*at..*at + 2).ok_or_else(truncated)?;
        let count = usize::from(u16::from_be_bytes([count[0], count[1]]));
        let mut pos = *at + 2;
        // A column takes one byte at least, so a lying count can't reserve more than the message is long.
        if count > bytes.len() - pos {
            return Err(truncated());
        }
        let mut cells = Vec::with_capacity(count);
        for column in 0..count {
            let kind = *bytes.get(pos).ok_or_else(truncated)?;
            pos += 1;
            let cell = match kind {
                b'n' => Cell { offset: 0, length: NULL },
                b'u' => Cell { offset: 0, length: UNCHANGED },
                b't' => {
                    let length = bytes.get(pos..pos + 4).ok_or_else(truncated)?;
                    let length = i32::from_be_bytes([length[0], length[1], length[2], length[3]]);
                    pos += 4;
                    let size = usize::try_from(length).map_err(|_| MalformedTuple::BadLength { column, length })?;
                    if size > bytes.len() - pos {
                        return Err(truncated());
                    }
                    let offset = u32::try_from(pos).map_err(|_| MalformedTuple::BadLength { column, length })?;
                    pos += size;
                    Cell { offset, length: size as u32 }
                }
                kind => return Err(MalformedTuple::UnknownKind { column, kind }),
            };
            cells.push(cell);
        }
        *at = pos;
        Ok(Tuple { data: data.clone(), cells: cells.into_boxed_slice() })
    }

    /// Number of columns.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether there are no columns.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The column's value; a column that the tuple does not have reads as not sent.
    pub fn get(&self, column: usize) -> Value<'_> {
        match self.cells.get(column) {
            None => Value::Unchanged,
            Some(cell) => match cell.length {
                NULL => Value::Null,
                UNCHANGED => Value::Unchanged,
                length => {
                    let start = cell.offset as usize;
                    Value::Text(&self.data[start..start + length as usize])
                }
            },
        }
    }

    /// All values in column order.
    pub fn values(&self) -> impl Iterator<Item = Value<'_>> {
        (0..self.len()).map(|i| self.get(i))
    }

    /// The TupleData bytes that [`Tuple::parse`] reads, for values that did not come from the stream.
    pub fn encode<'a>(values: impl ExactSizeIterator<Item = Value<'a>>, out: &mut Vec<u8>) {
        out.extend_from_slice(&(values.len() as u16).to_be_bytes());
        for value in values {
            match value {
                Value::Null => out.push(b'n'),
                Value::Unchanged => out.push(b'u'),
                Value::Text(text) => {
                    out.push(b't');
                    out.extend_from_slice(&(text.len() as u32).to_be_bytes());
                    out.extend_from_slice(text);
                }
            }
        }
    }

    /// A tuple of these values.
    pub fn from_values<'a>(values: impl ExactSizeIterator<Item = Value<'a>>) -> Tuple {
        let mut raw = Vec::new();
        let count = values.len();
        Tuple::encode(values, &mut raw);
        Tuple::parse(&Bytes::from(raw), &mut 0)
            .unwrap_or_else(|e| unreachable!("{count} encoded values did not parse back: {e}"))
    }
}

/// What the stream sent of the row before the change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OldRow {
    /// Every column (REPLICA IDENTITY FULL). On a partitioned root this does not prove that the values are real:
    /// a leaf without FULL logs only its key, and the rest reads as NULL.
    Full(Tuple),
    /// Only the identity columns are real; all others were sent as NULL and mean nothing.
    KeyOnly(Tuple),
}

impl OldRow {
    /// The image, whichever kind it is.
    pub fn tuple(&self) -> &Tuple {
        match self {
            OldRow::Full(tuple) | OldRow::KeyOnly(tuple) => tuple,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn arb_cell() -> impl Strategy<Value = Option<Option<Vec<u8>>>> {
        prop_oneof![
            Just(None),
            Just(Some(None)),
            proptest::collection::vec(any::<u8>(), 0..40).prop_map(|v| Some(Some(v))),
        ]
    }

    fn as_value(cell: &Option<Option<Vec<u8>>>) -> Value<'_> {
        match cell {
            None => Value::Unchanged,
            Some(None) => Value::Null,
            Some(Some(text)) => Value::Text(text),
        }
    }

    proptest! {
        #[test]
        fn values_come_back(cells in proptest::collection::vec(arb_cell(), 0..20)) {
            let tuple = Tuple::from_values(cells.iter().map(as_value).collect::<Vec<_>>().into_iter());
            prop_assert_eq!(tuple.len(), cells.len());
            for (i, cell) in cells.iter().enumerate() {
                prop_assert_eq!(tuple.get(i), as_value(cell));
            }
        }

        #[test]
        fn any_bytes_parse_or_fail_without_panic(raw in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..220) {
            let data = Bytes::from(raw);
            let mut pos = at.min(data.len());
            if let Ok(tuple) = Tuple::parse(&data, &mut pos) {
                prop_assert!(pos <= data.len());
                for i in 0..tuple.len() {
                    let _ = tuple.get(i);
                }
            }
        }
    }

    #[test]
    fn a_column_beyond_the_tuple_is_absent_not_null() {
        let tuple = Tuple::from_values([Value::Null].into_iter());
        assert_eq!(tuple.get(0), Value::Null);
        assert_eq!(tuple.get(1), Value::Unchanged);
    }
}
