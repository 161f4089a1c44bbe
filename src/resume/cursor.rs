//! Cursors: a place in the stream as clients keep it, opaque and encrypted.
//!
//! A position tells how much a database writes, and when; so it is sealed with a random key that stays on this machine. Sealing
//! is deterministic (AES-SIV): the same place is the same text for everybody, so that a change is encoded once for all.
//!
//! ```text
//!  base64url( 1 version │ 4 key id │ 16 tag │ 20 sealed: 8 epoch, 8 LSN, 4 ordinal )      55 characters
//! ```
//!
//! The key id is in the clear, so that a cursor of a lost key is told from a forged one: the former is a gap, the latter a
//! mistake. Rejected: a signature over readable positions, which tells volumes; a random nonce, which ends sharing.

use std::io::{self, Write as _};
use std::path::Path;

use aes_siv::KeyInit as _;
use aes_siv::siv::Aes128Siv;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::change::{Lsn, Position};
use crate::error::{Fault, Remedy};

const VERSION: u8 = 1;
const HEAD: usize = 5;
const TAG: usize = 16;
const PLAIN: usize = 20;
const SEALED: usize = HEAD + TAG + PLAIN;
/// Characters of a cursor's text.
const TEXT: usize = SEALED.div_ceil(3) * 4 - 1;

/// A place in one history: everything at or before `position` lies behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// [`crate::log::Epoch::tag`] of the history.
    pub epoch: u64,
    /// Where in it.
    pub position: Position,
}

/// Why a text is no cursor that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// It was never one, or not all of it is there, or it was changed.
    #[error("the cursor is malformed: pass it exactly as it was received")]
    Malformed,
    /// It was sealed with a key that this relay does not have: by another relay, or before the key was lost.
    #[error("the cursor was given by another relay, or before its key was replaced")]
    OtherKey,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file can't be read or made.
    #[error("cannot {action} the key of cursors, {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{0} is not a key of cursors")]
    Malformed(String),
}

impl Fault for KeyError {
    fn remedy(&self) -> Remedy {
        Remedy::Operator
    }

    fn advice(&self) -> String {
        match self {
            KeyError::Io { .. } => "make the data directory writable for the relay".into(),
            KeyError::Malformed(path) => {
                format!(
                    "remove {path}: a new key is made, and clients that come back with an old cursor are told of a gap"
                )
            }
        }
    }
}

/// The key that seals cursors. Made once, kept beside the log's folder.
pub struct CursorKey {
    key: [u8; 32],
    id: [u8; 4],
}

impl CursorKey {
    /// From its 32 bytes.
    pub fn new(key: [u8; 32]) -> CursorKey {
        // A name of the key that tells nothing of it: its tag over nothing.
        let tag = Aes128Siv::new(&key.into()).encrypt::<[&[u8]; 1], &[u8]>([b"id"], b"").unwrap_or_default();
        let mut id = [0; 4];
        id.iter_mut().zip(&tag).for_each(|(to, from)| *to = *from);
        CursorKey { key, id }
    }

    /// Reads the key, or makes one that is durable when this returns. Blocking.
    pub fn load_or_create(path: &Path) -> Result<CursorKey, KeyError> {
        let failed = |action| {
            let path = path.display().to_string();
            move |source| KeyError::Io { action, path, source }
        };
        match std::fs::read(path) {
            Ok(bytes) => {
                let key = bytes.try_into().map_err(|_| KeyError::Malformed(path.display().to_string()))?;
                Ok(CursorKey::new(key))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key: [u8; 32] = rand::random();
                write_private(path, &key).map_err(failed("write"))?;
                Ok(CursorKey::new(key))
            }
            Err(error) => Err(failed("read")(error)),
        }
    }

    /// The text of a place.
    pub fn seal(&self, cursor: Cursor) -> String {
        let mut bytes = [0; SEALED];
        let (head, sealed) = bytes.split_at_mut(HEAD);
        let (tag, plain) = sealed.split_at_mut(TAG);
        head.copy_from_slice(&self.head());
        plain[..8].copy_from_slice(&cursor.epoch.to_be_bytes());
        plain[8..16].copy_from_slice(&cursor.position.lsn.0.to_be_bytes());
        plain[16..].copy_from_slice(&cursor.position.ordinal.to_be_bytes());
        // Fails for more than 126 headers only.
        let made = Aes128Siv::new(&self.key.into()).encrypt_inout_detached([head], plain.into());
        tag.copy_from_slice(&made.unwrap_or_default());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The place of a text.
    pub fn open(&self, text: &str) -> Result<Cursor, CursorError> {
        if text.len() != TEXT {
            return Err(CursorError::Malformed);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| CursorError::Malformed)?;
        let (head, sealed) = bytes.split_at_checked(HEAD).ok_or(CursorError::Malformed)?;
        if head[0] != VERSION {
            return Err(CursorError::Malformed);
        }
        if head[1..] != self.id {
            return Err(CursorError::OtherKey);
        }
        let plain = Aes128Siv::new(&self.key.into())
            .decrypt::<[&[u8]; 1], &[u8]>([&self.head()], sealed)
            .map_err(|_| CursorError::Malformed)?;
        let number = |range: std::ops::Range<usize>| {
            plain.get(range).map_or(0, |bytes| bytes.iter().fold(0, |all, byte| (all << 8) | u64::from(*byte)))
        };
        // Four bytes fit.
        let position = Position { lsn: Lsn(number(8..16)), ordinal: number(16..20) as u32 };
        Ok(Cursor { epoch: number(0..8), position })
    }

    fn head(&self) -> [u8; HEAD] {
        let [a, b, c, d] = self.id;
        [VERSION, a, b, c, d]
    }
}

impl std::fmt::Debug for CursorKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CursorKey(..)")
    }
}

/// Whole or not at all, readable for its owner only.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let new = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), |dir| std::fs::File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cursor(epoch: u64, lsn: u64, ordinal: u32) -> Cursor {
        Cursor { epoch, position: Position { lsn: Lsn(lsn), ordinal } }
    }

    proptest! {
        #[test]
        fn a_place_survives_its_text(epoch: u64, lsn: u64, ordinal: u32, key: [u8; 32]) {
            let (key, cursor) = (CursorKey::new(key), cursor(epoch, lsn, ordinal));
            let text = key.seal(cursor);
            prop_assert_eq!(text.len(), TEXT);
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(key.open(&text), Ok(cursor));
            prop_assert_eq!(key.seal(cursor), text);
        }

        #[test]
        fn a_changed_text_is_refused(at in 0..TEXT, with in "[A-Za-z0-9_-]") {
            let key = CursorKey::new([7; 32]);
            let text = key.seal(cursor(1, 2, 3));
            let changed = [&text[..at], &with, &text[at + 1..]].concat();
            prop_assume!(changed != text);
            prop_assert!(key.open(&changed).is_err());
        }

        #[test]
        fn any_text_is_answered(text: String) {
            prop_assert!(CursorKey::new([7; 32]).open(&text).is_err());
        }
    }

    #[test]
    fn a_lost_key_is_told_from_a_forgery() {
        let text = CursorKey::new([1; 32]).seal(cursor(1, 2, 3));
        assert_eq!(CursorKey::new([2; 32]).open(&text), Err(CursorError::OtherKey));
        assert_eq!(CursorKey::new([1; 32]).open(&text[1..]), Err(CursorError::Malformed));
    }

    #[test]
    fn the_key_is_made_once_and_only_its_owner_reads_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cursor.key");
        let text = CursorKey::load_or_create(&path).unwrap().seal(cursor(1, 2, 3));
        assert_eq!(CursorKey::load_or_create(&path).unwrap().open(&text), Ok(cursor(1, 2, 3)));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "short").unwrap();
        assert!(matches!(CursorKey::load_or_create(&path), Err(KeyError::Malformed(_))));
    }
}
