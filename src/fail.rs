//! Failpoints: places in a row's journey at which a test may end the process, as a crash would.
//!
//! `FAILPOINT=appended:3` in the environment aborts the process the third time that the place is passed. Compiled only with
//! debug assertions; a release build has nothing of it, not even the look at the variable. Being a way to end a relay, it is
//! no setting, and `--help` does not name it.
//!
//! Rejected: the crate `fail`, which also delays and panics, and needs a registry behind a lock at every place.

/// A place in the journey. A crash there must lose nothing, and send nobody anything twice that was receipted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Point {
    /// A transaction has come from the stream.
    Received,
    /// It is in the log, readable.
    Appended,
    /// What is in the log is durable.
    Fsynced,
    /// Postgres was told so.
    Confirmed,
    /// The hub has judged rows, and knows who gets them.
    Matched,
    /// A shard has them.
    Queued,
    /// They are in the outboxes, or already in the sockets.
    Written,
    /// A device's receipt has been counted.
    Receipted,
    /// The frontiers of devices were saved.
    FrontierSaved,
}

impl Point {
    /// In the order of the journey.
    pub const ALL: [Point; 9] = [
        Point::Received,
        Point::Appended,
        Point::Fsynced,
        Point::Confirmed,
        Point::Matched,
        Point::Queued,
        Point::Written,
        Point::Receipted,
        Point::FrontierSaved,
    ];

    /// As the variable names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Point::Received => "received",
            Point::Appended => "appended",
            Point::Fsynced => "fsynced",
            Point::Confirmed => "confirmed",
            Point::Matched => "matched",
            Point::Queued => "queued",
            Point::Written => "written",
            Point::Receipted => "receipted",
            Point::FrontierSaved => "frontier_saved",
        }
    }
}

/// The journey has come here.
#[inline]
pub fn point(at: Point) {
    #[cfg(debug_assertions)]
    armed::pass(at);
    #[cfg(not(debug_assertions))]
    let _ = at;
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::Point;

    const VARIABLE: &str = "FAILPOINT";

    pub(super) struct Armed {
        pub(super) at: Point,
        /// Passes until then.
        pub(super) left: AtomicU64,
    }

    /// `name:n`, where `n` is 1 if it is left out.
    pub(super) fn parse(text: &str) -> Option<Armed> {
        let (name, passes) = text.split_once(':').unwrap_or((text, "1"));
        let at = Point::ALL.into_iter().find(|point| point.as_str() == name)?;
        let passes: u64 = passes.parse().ok().filter(|passes| *passes > 0)?;
        Some(Armed { at, left: AtomicU64::new(passes) })
    }

    impl Armed {
        /// Whether this is the pass that was meant.
        pub(super) fn is_met(&self, at: Point) -> bool {
            self.at == at && self.left.fetch_sub(1, Ordering::Relaxed) == 1
        }
    }

    pub(super) fn pass(at: Point) {
        static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
        let armed = ARMED.get_or_init(|| {
            let text = std::env::var_os(VARIABLE)?;
            let armed = text.to_str().and_then(parse);
            if armed.is_none() {
                tracing::error!("{VARIABLE} names no place, or no number of passes");
            }
            armed
        });
        if armed.as_ref().is_some_and(|armed| armed.is_met(at)) {
            tracing::error!(at = at.as_str(), "ending here, as {VARIABLE} demands");
            std::process::abort();
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn the_pass_that_was_meant_is_met_once() {
        let armed = armed::parse("appended:3").unwrap();
        let met: Vec<bool> = (0..5).map(|_| armed.is_met(Point::Appended)).collect();
        assert_eq!(met, [false, false, true, false, false]);
        assert!(!armed::parse("appended").unwrap().is_met(Point::Received));
    }

    #[test]
    fn what_names_no_place_arms_nothing() {
        for text in ["", "appended:0", "appended:", "nowhere", "appended:x"] {
            assert!(armed::parse(text).is_none(), "{text}");
        }
        for point in Point::ALL {
            assert_eq!(armed::parse(point.as_str()).map(|armed| armed.at), Some(point));
        }
    }
}
