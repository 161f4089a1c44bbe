//! One segment: its name, its header, and a range of it as a transaction's body.
//!
//! A segment is one file, `<sequence, 16 hex digits>.rowlog`: a header, then records. It holds every transaction with
//! base < end LSN ≤ the base of the next segment. The header is durable before the first record is written, and a segment
//! is durable before the next one is created: only the last can end in a torn record.
//!
//! Header, little endian: magic (8 bytes), format version `u16`, 2 zero bytes, marker `u32`, system identifier `u64`,
//! incarnation `u128`, sequence `u64`, base LSN `u64`, creation time `i64` (ms since 1970, our clock), crc32c `u32`.

use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::codec::Fields;
use super::files::{Files, LogFile};
use super::{Epoch, LogError};
use crate::change::{Lsn, SpilledBody};

const MAGIC: &[u8; 8] = b"ROWCLOG\n";
const SUFFIX: &str = ".rowlog";
/// The format we write, and the only one there is.
pub(super) const VERSION: u16 = 1;
/// Bytes of the header, and the offset of the first record.
pub(super) const HEADER: u64 = 68;

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) marker: u32,
    pub(super) epoch: Epoch,
    pub(super) sequence: u64,
    pub(super) base: Lsn,
    pub(super) created_millis: i64,
}

/// Why a header can't be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    /// Not a header of any version: torn, damaged, or not ours.
    Invalid(&'static str),
    /// Another format.
    Version(u16),
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER as usize);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.marker.to_le_bytes());
        out.extend_from_slice(&self.epoch.system_identifier.to_le_bytes());
        out.extend_from_slice(&self.epoch.incarnation.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.base.0.to_le_bytes());
        out.extend_from_slice(&self.created_millis.to_le_bytes());
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Header, BadHeader> {
        let mut fields = Fields(bytes);
        let short = |_| BadHeader::Invalid("the header ends early");
        if fields.array::<8>().map_err(short)? != *MAGIC {
            return Err(BadHeader::Invalid("it does not begin like a segment"));
        }
        // Before the CRC, which another version may keep elsewhere.
        let version = fields.u16().map_err(short)?;
        if version != VERSION && bytes.len() >= HEADER as usize && version != 0 {
            return Err(BadHeader::Version(version));
        }
        fields.u16().map_err(short)?;
        let header = Header {
            marker: fields.u32().map_err(short)?,
            epoch: Epoch {
                system_identifier: fields.u64().map_err(short)?,
                incarnation: u128::from_le_bytes(fields.array().map_err(short)?),
            },
            sequence: fields.u64().map_err(short)?,
            base: Lsn(fields.u64().map_err(short)?),
            created_millis: fields.u64().map_err(short)?.cast_signed(),
        };
        let crc = fields.u32().map_err(short)?;
        match crc32c::crc32c(&bytes[..HEADER as usize - 4]) == crc {
            true => Ok(header),
            false => Err(BadHeader::Invalid("the header's checksum is wrong")),
        }
    }
}

/// The file name of a segment.
pub(super) fn file_name(sequence: u64) -> String {
    format!("{sequence:016x}{SUFFIX}")
}

/// The sequence number in a segment's file name; `None` for a file that isn't ours.
pub(super) fn parse_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    let sequence = u64::from_str_radix(digits, 16).ok()?;
    (file_name(sequence) == name).then_some(sequence)
}

/// Creates the segment, durable with its name. If this fails, whatever is left of it has been removed, or the error is
/// [`Leftover`](NotCreated::leftover).
pub(super) fn create(files: &dyn Files, dir: &Path, header: &Header) -> Result<Arc<dyn LogFile>, NotCreated> {
    let path = dir.join(file_name(header.sequence));
    let attempt = || {
        let file = files.create(&path).map_err(LogError::io("create", &path))?;
        file.write_at(&header.encode(), 0).map_err(LogError::io("write", &path))?;
        file.sync_data().map_err(LogError::io("sync", &path))?;
        files.sync_dir(dir).map_err(LogError::io("sync", dir))?;
        Ok(file)
    };
    attempt().map_err(|error| {
        let removed = match files.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => files.sync_dir(dir),
        };
        NotCreated { error, leftover: removed.is_err() }
    })
}

/// A segment that could not be created.
pub(super) struct NotCreated {
    pub(super) error: LogError,
    /// The file may still be there, and would count as the last segment after a restart: nothing may be appended to the
    /// one before it until the creation succeeded.
    pub(super) leftover: bool,
}

/// Reads until the buffer is full or the file ends; says how much.
pub(super) fn read_full(file: &dyn LogFile, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// A transaction's body where it stands in a segment. Holds the file open, so it outlives the segment's removal.
pub(super) struct SegmentRange {
    pub(super) file: Arc<dyn LogFile>,
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl SpilledBody for SegmentRange {
    fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        let reader = RangeReader { file: self.file.clone(), offset: self.offset, left: self.length };
        Ok(Box::new(BufReader::with_capacity(64 * 1024, reader)))
    }

    fn len(&self) -> u64 {
        self.length
    }
}

struct RangeReader {
    file: Arc<dyn LogFile>,
    offset: u64,
    left: u64,
}

impl Read for RangeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..want], self.offset)?;
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// Where segment files are.
pub(super) fn path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(file_name(sequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let epoch = Epoch { system_identifier: 7, incarnation: 1 << 100 };
        Header { marker: 0xDEAD_BEEF, epoch, sequence: 12, base: Lsn(34), created_millis: -5 }
    }

    #[test]
    fn a_header_comes_back_and_no_damaged_or_foreign_one_passes() {
        let bytes = header().encode();
        assert_eq!(bytes.len() as u64, HEADER);
        assert_eq!(Header::decode(&bytes), Ok(header()));
        for at in 0..bytes.len() {
            assert!(Header::decode(&bytes[..at]).is_err());
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            assert!(Header::decode(&flipped).is_err(), "byte {at}");
        }
        let mut newer = bytes;
        newer[8] = 2;
        assert_eq!(Header::decode(&newer), Err(BadHeader::Version(2)));
    }

    #[test]
    fn only_our_own_names_are_segments() {
        assert_eq!(parse_name(&file_name(0xABC)), Some(0xABC));
        for other in ["lock", "1.rowlog", "000000000000000G.rowlog", "0000000000000001.rowlog.bak", ".rowlog"] {
            assert_eq!(parse_name(other), None, "{other}");
        }
        assert_eq!(parse_name("0000000000000ABC.rowlog"), None);
    }
}
