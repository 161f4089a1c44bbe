//! Where the stream starts, and whether the log's history goes on.
//!
//! The log, the slot and `rowcast.lineage` must agree. If they don't, positions between what the log has and what the slot
//! still gives may be missing, and the only honest answer is another epoch: every reader is told of a gap.

use std::collections::BTreeMap;

use super::error::Holder;
use super::notes::Notes;
use crate::change::Lsn;
use crate::log::Epoch;
use crate::wal::SlotState;

/// What the database remembers of the slot's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lineage {
    pub(super) system_identifier: String,
    /// 32 hexadecimal digits.
    pub(super) incarnation: String,
    /// Changes each minute while a relay runs, so that an old copy of the database is known by it.
    pub(super) token: String,
}

impl Lineage {
    pub(super) fn of(epoch: Epoch, token: &str) -> Lineage {
        Lineage {
            system_identifier: epoch.system_identifier.to_string(),
            incarnation: format!("{:032x}", epoch.incarnation),
            token: token.to_owned(),
        }
    }

    fn is_of(&self, epoch: Epoch) -> bool {
        *self == Lineage::of(epoch, &self.token)
    }
}

/// Where the server's timeline left the one on which the log was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parted {
    At(Lsn),
    /// The server does not descend from it.
    Unknown,
}

/// What was found on the server.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    pub(super) system_identifier: u64,
    /// Such as 150018.
    pub(super) version: i32,
    pub(super) timeline: u32,
    /// `None` if the log was written on the same timeline.
    pub(super) parted: Option<Parted>,
    /// Up to where WAL was flushed.
    pub(super) written: Lsn,
    /// Whether the server sends nothing to us that its standbys do not have (17 and up).
    pub(super) waits_for_standbys: bool,
    pub(super) slot: SlotState,
    /// Who reads the slot.
    pub(super) holder: Option<Holder>,
    /// The publications of the database by name, with their oids.
    pub(super) publications: BTreeMap<String, u32>,
    pub(super) lineage: Option<Lineage>,
}

/// Why another history begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The slot was made just now, or nobody has used it.
    NewSlot,
    /// The log has a history, but its slot was gone and had to be made anew: what was committed between is in neither.
    SlotLost,
    /// The server gave up the slot's WAL.
    SlotInvalidated,
    /// The slot stands before a row that the server can't decode.
    SlotUnreadable,
    /// A publication was another for a while, in which the server left its rows out.
    PublicationReplaced,
    /// The slot was used before, and our log is empty.
    LogLost,
    /// The log is of another cluster.
    OtherCluster,
    /// The log is of another history of this slot: another data folder was used meanwhile.
    OtherHistory,
    /// The database is an older copy of the one that the log was read from.
    Copy,
    /// The server is on a timeline that does not go on from the log's.
    OtherTimeline,
    /// A standby was promoted; what it did not have is taken back.
    Promoted,
    /// The log ends before the slot does: it is an older copy, or part of it was lost.
    LogBehind,
    /// The log goes beyond what the server has written: the server is a copy that lags behind.
    ServerBehind,
}

impl Why {
    /// The value of the label `reason` of the metric.
    pub(super) fn label(self) -> &'static str {
        match self {
            Why::NewSlot => "new_slot",
            Why::SlotLost => "slot_lost",
            Why::SlotInvalidated => "slot_invalidated",
            Why::SlotUnreadable => "slot_unreadable",
            Why::PublicationReplaced => "publication_replaced",
            Why::LogLost => "log_lost",
            Why::OtherCluster => "other_cluster",
            Why::OtherHistory => "other_history",
            Why::Copy => "copy",
            Why::OtherTimeline => "other_timeline",
            Why::Promoted => "promoted",
            Why::LogBehind => "log_behind",
            Why::ServerBehind => "server_behind",
        }
    }

    /// For the log line.
    pub(super) fn text(self) -> &'static str {
        match self {
            Why::NewSlot => "the replication slot is new",
            Why::SlotLost => "the replication slot was gone and was made anew",
            Why::SlotInvalidated => "the server has given up WAL that the replication slot needed",
            Why::SlotUnreadable => "the replication slot stands before rows that the server can't decode",
            Why::PublicationReplaced => {
                "a publication was dropped and made again, and rows between are not in the stream"
            }
            Why::LogLost => "the slot was used before, but the log folder is empty",
            Why::OtherCluster => "the log folder belongs to another database cluster",
            Why::OtherHistory => "the log folder and the slot do not belong together",
            Why::Copy => "the database is an older copy of the one that the log was read from",
            Why::OtherTimeline => "the server's timeline does not go on from the one that the log was read from",
            Why::Promoted => "another server was promoted",
            Why::LogBehind => "the log ends before the slot's position, so changes in between are lost",
            Why::ServerBehind => "the server has written less than the log holds: it was restored or replaced",
        }
    }

    /// How it does not happen again.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Why::NewSlot => "",
            Why::SlotLost => {
                "Find out who dropped the slot. A server that takes over has it only from PostgreSQL 17 on, with ROWCAST_SLOT_FAILOVER."
            }
            Why::SlotInvalidated => {
                "Raise max_slot_wal_keep_size and idle_replication_slot_timeout on the server, or stop the relay for shorter."
            }
            Why::SlotUnreadable => "Change a publication with ALTER PUBLICATION; never drop one that a slot reads.",
            Why::PublicationReplaced => {
                "Change a publication with ALTER PUBLICATION; never drop one that a slot reads."
            }
            Why::LogLost => "Keep ROWCAST_DATA_DIR over restarts, on a volume of its own.",
            Why::OtherCluster | Why::OtherHistory => {
                "Give each slot a data folder of its own, and each folder one slot."
            }
            Why::Copy | Why::ServerBehind | Why::OtherTimeline => {
                "If this is not the database that the relay is meant for, correct DATABASE_URL."
            }
            Why::Promoted => {
                "Name the standby in synchronized_standby_slots (PostgreSQL 17), so that the relay never gets ahead of it."
            }
            Why::LogBehind => "Restore no old copy of ROWCAST_DATA_DIR.",
        }
    }
}

/// How to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// From the log's end.
    Continue(Lsn),
    /// In another epoch that shares the log up to here.
    Fork(Lsn),
    /// Another epoch, from here.
    Begin(Lsn, Why),
}

/// `end` is the log's durable end.
pub(super) fn decide(epoch: Option<Epoch>, end: Lsn, notes: &Notes, found: &Found) -> Start {
    let begin = |why| Start::Begin(found.slot.confirmed_flush, why);
    let recorded = found.lineage.as_ref().filter(|l| l.system_identifier == found.system_identifier.to_string());
    let Some(epoch) = epoch else {
        return begin(if found.slot.created || recorded.is_none() { Why::NewSlot } else { Why::LogLost });
    };
    if epoch.system_identifier != found.system_identifier {
        return begin(Why::OtherCluster);
    }
    if found.slot.created {
        return begin(Why::SlotLost);
    }
    let Some(recorded) = recorded.filter(|recorded| recorded.is_of(epoch)) else {
        return begin(Why::OtherHistory);
    };
    let parted = match found.parted {
        Some(Parted::Unknown) => return begin(Why::OtherTimeline),
        Some(Parted::At(limit)) => Some(limit),
        None => None,
    };
    if let Some(limit) = parted.filter(|limit| *limit < end) {
        // The token may be one that never came through to this server.
        return Start::Fork(limit);
    }
    if !notes.expects(&recorded.token) {
        return begin(Why::Copy);
    }
    if end < found.slot.confirmed_flush {
        return begin(Why::LogBehind);
    }
    // Of what came behind, clients may have got something that a crash took from the log; so it has another name, also where
    // nothing is taken back.
    parted.map_or(Start::Continue(end), Start::Fork)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch { system_identifier: 7, incarnation: 0xABC };

    fn found(created: bool, confirmed: u64, lineage: Option<Lineage>) -> Found {
        let slot = SlotState { created, confirmed_flush: Lsn(confirmed), ..SlotState::default() };
        Found { system_identifier: 7, timeline: 1, slot, lineage, ..Found::default() }
    }

    fn ours() -> Option<Lineage> {
        Some(Lineage::of(EPOCH, "t2"))
    }

    #[test]
    fn a_history_goes_on_only_if_log_slot_and_database_agree() {
        let other = Some(Lineage::of(Epoch { incarnation: 1, ..EPOCH }, ""));
        let restored = Some(Lineage::of(Epoch { system_identifier: 8, ..EPOCH }, ""));
        let moved = Some(Epoch { system_identifier: 8, ..EPOCH });
        let begin = |at, why| Start::Begin(Lsn(at), why);
        for (epoch, end, found, expected) in [
            (Some(EPOCH), 20, found(false, 10, ours()), Start::Continue(Lsn(20))),
            (Some(EPOCH), 10, found(false, 10, ours()), Start::Continue(Lsn(10))),
            (Some(EPOCH), 9, found(false, 10, ours()), begin(10, Why::LogBehind)),
            (Some(EPOCH), 20, found(true, 30, ours()), begin(30, Why::SlotLost)),
            (Some(EPOCH), 20, found(false, 10, other.clone()), begin(10, Why::OtherHistory)),
            (Some(EPOCH), 20, found(false, 10, None), begin(10, Why::OtherHistory)),
            (Some(EPOCH), 20, found(false, 10, restored.clone()), begin(10, Why::OtherHistory)),
            (moved, 20, found(false, 10, ours()), begin(10, Why::OtherCluster)),
            (None, 0, found(true, 10, None), begin(10, Why::NewSlot)),
            (None, 0, found(false, 10, None), begin(10, Why::NewSlot)),
            (None, 0, found(false, 10, ours()), begin(10, Why::LogLost)),
            (None, 0, found(false, 10, restored), begin(10, Why::NewSlot)),
        ] {
            assert_eq!(decide(epoch, Lsn(end), &Notes::default(), &found), expected, "{epoch:?} {end} {found:?}");
        }
    }

    #[test]
    fn a_copy_is_known_by_its_token_and_a_promoted_server_by_its_timeline() {
        let notes =
            |tokens: &[&str]| Notes { tokens: tokens.iter().map(|t| (*t).into()).collect(), ..Notes::default() };
        let on = |parted| Found { timeline: 2, parted, ..found(false, 10, ours()) };
        let begin = |why| Start::Begin(Lsn(10), why);
        for (tokens, parted, expected) in [
            (&["t2"][..], None, Start::Continue(Lsn(20))),
            (&["t1", "t2"], None, Start::Continue(Lsn(20))),
            (&["t3"], None, begin(Why::Copy)),
            (&["t3", "t4"], None, begin(Why::Copy)),
            (&["t2"], Some(Parted::At(Lsn(20))), Start::Fork(Lsn(20))),
            (&["t2"], Some(Parted::At(Lsn(99))), Start::Fork(Lsn(99))),
            (&["t2"], Some(Parted::At(Lsn(19))), Start::Fork(Lsn(19))),
            (&["t3"], Some(Parted::At(Lsn(19))), Start::Fork(Lsn(19))),
            (&["t3"], Some(Parted::At(Lsn(20))), begin(Why::Copy)),
            (&["t2"], Some(Parted::Unknown), begin(Why::OtherTimeline)),
        ] {
            assert_eq!(decide(Some(EPOCH), Lsn(20), &notes(tokens), &on(parted)), expected, "{tokens:?} {parted:?}");
        }
    }
}
