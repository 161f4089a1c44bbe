//! Which transactions a query could see (`pg_current_snapshot()`).
//!
//! A commit is in the stream before other sessions can see it, so whoever reads the catalog or asks Postgres about a row has
//! to know, by transaction id, whether that query saw the change. Never decided by LSN: commit order and visibility order differ.

use std::fmt;

/// A parsed `xmin:xmax:xip,…`. Ids are 64 bits wide, with the epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    xmin: u64,
    xmax: u64,
    /// In progress among `xmin..xmax`, ascending.
    in_progress: Vec<u64>,
}

/// A text that is not a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a snapshot; expected xmin:xmax:xip,xip")]
pub struct ParseSnapshotError(String);

impl Snapshot {
    /// Parses the text form of `pg_snapshot`.
    pub fn parse(text: &str) -> Result<Snapshot, ParseSnapshotError> {
        let parse = || {
            let mut parts = text.split(':');
            let (xmin, xmax, list) = (parts.next()?, parts.next()?, parts.next()?);
            if parts.next().is_some() {
                return None;
            }
            let (xmin, xmax): (u64, u64) = (xmin.parse().ok()?, xmax.parse().ok()?);
            let ids = list.split(',').filter(|id| !id.is_empty()).map(str::parse);
            let mut in_progress: Vec<u64> = ids.collect::<Result<_, _>>().ok()?;
            in_progress.sort_unstable();
            (xmin <= xmax).then_some(Snapshot { xmin, xmax, in_progress })
        };
        parse().ok_or_else(|| ParseSnapshotError(text.chars().take(80).collect()))
    }

    /// Whether the transaction had finished and is visible to this snapshot. The stream's 32-bit id is widened to the id
    /// nearest to `xmax`; an id that cannot be placed counts as not seen.
    pub fn sees(&self, xid: u32) -> bool {
        let Some(xid) = self.widen(xid) else { return false };
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }

    /// Whether the transaction began after the snapshot. Then whatever the snapshot sees committed before it.
    pub fn is_before(&self, xid: u32) -> bool {
        self.widen(xid).is_some_and(|xid| xid >= self.xmax)
    }

    fn widen(&self, xid: u32) -> Option<u64> {
        let distance = i64::from(xid.wrapping_sub(self.xmax as u32) as i32);
        self.xmax.checked_add_signed(distance)
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (i, xid) in self.in_progress.iter().enumerate() {
            write!(f, "{}{xid}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_sees_what_finished_before_it_and_nothing_else() {
        let snapshot = Snapshot::parse("100:110:100,105").expect("parses");
        for (xid, seen) in [
            (3, true),
            (99, true),
            (100, false),
            (101, true),
            (104, true),
            (105, false),
            (109, true),
            (110, false),
            (111, false),
        ] {
            assert_eq!(snapshot.sees(xid), seen, "{xid}");
            assert_eq!(snapshot.is_before(xid), xid >= 110, "{xid}");
        }
        assert_eq!(snapshot.to_string(), "100:110:100,105");
    }

    #[test]
    fn ids_of_the_stream_are_widened_across_a_wraparound() {
        let epoch = 7u64 << 32;
        let text = format!("{}:{}:{}", epoch - 5, epoch + 10, epoch - 5);
        let snapshot = Snapshot::parse(&text).expect("parses");
        // Before the wrap.
        assert!(snapshot.sees(u32::MAX - 100));
        assert!(!snapshot.sees(u32::MAX - 4), "it is in progress");
        assert!(snapshot.sees(u32::MAX - 3));
        // After it.
        assert!(snapshot.sees(9));
        assert!(!snapshot.sees(10));
        assert!(!snapshot.sees(5000), "from the future");
    }

    #[test]
    fn an_id_from_before_the_first_epoch_is_not_seen() {
        assert!(!Snapshot::parse("700:700:").expect("parses").sees(u32::MAX));
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in ["", "1", "1:2", "1:2:3:4", "a:2:", "2:1:", "1:2:x", "-1:2:"] {
            assert!(Snapshot::parse(bad).is_err(), "{bad}");
        }
    }
}
