//! Where the stream starts, and whether the log's history goes on.
//!
//! The log, the slot and `rowcast.lineage` must agree. If they don't, positions between what the log has and what the slot
//! still gives may be missing, and the only honest answer is another epoch: every reader is told of a gap.

use crate::change::Lsn;
use crate::log::Epoch;
use crate::wal::SlotState;

/// What the database remembers of the slot's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lineage {
    pub(super) system_identifier: String,
    /// 32 hexadecimal digits.
    pub(super) incarnation: String,
}

impl Lineage {
    pub(super) fn of(epoch: Epoch) -> Lineage {
        Lineage {
            system_identifier: epoch.system_identifier.to_string(),
            incarnation: format!("{:032x}", epoch.incarnation),
        }
    }
}

/// What was found on the server.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) system_identifier: u64,
    pub(super) slot: SlotState,
    pub(super) lineage: Option<Lineage>,
}

/// Why another history begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The slot was made just now, or nobody has used it.
    NewSlot,
    /// The log has a history, but its slot was gone and had to be made anew: what was committed between is in neither.
    SlotLost,
    /// The slot was used before, and our log is empty.
    LogLost,
    /// The log is of another cluster.
    OtherCluster,
    /// The log is of another history of this slot: another data folder was used meanwhile, or the database is a copy.
    OtherHistory,
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
            Why::LogLost => "log_lost",
            Why::OtherCluster => "other_cluster",
            Why::OtherHistory => "other_history",
            Why::LogBehind => "log_behind",
            Why::ServerBehind => "server_behind",
        }
    }

    /// For the log line.
    pub(super) fn text(self) -> &'static str {
        match self {
            Why::NewSlot => "the replication slot is new",
            Why::SlotLost => "the replication slot was gone and was made anew",
            Why::LogLost => "the slot was used before, but the log folder is empty",
            Why::OtherCluster => "the log folder belongs to another database cluster",
            Why::OtherHistory => "the log folder and the slot do not belong together",
            Why::LogBehind => "the log ends before the slot's position, so changes in between are lost",
            Why::ServerBehind => "the server has written less than the log holds: it was restored or replaced",
        }
    }
}

/// How to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// From the log's end.
    Continue(Lsn),
    /// Another epoch, from here.
    Begin(Lsn, Why),
}

/// `end` is the log's durable end.
pub(super) fn decide(epoch: Option<Epoch>, end: Lsn, found: &Found) -> Start {
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
    if recorded != Some(&Lineage::of(epoch)) {
        return begin(Why::OtherHistory);
    }
    if end < found.slot.confirmed_flush {
        return begin(Why::LogBehind);
    }
    Start::Continue(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch { system_identifier: 7, incarnation: 0xABC };

    fn found(created: bool, confirmed: u64, lineage: Option<Lineage>) -> Found {
        let slot = SlotState {
            created,
            confirmed_flush: Lsn(confirmed),
            restart_lsn: None,
            wal_status: None,
            active_pid: None,
        };
        Found { system_identifier: 7, slot, lineage }
    }

    #[test]
    fn a_history_goes_on_only_if_log_slot_and_database_agree() {
        let ours = || Some(Lineage::of(EPOCH));
        let other = Some(Lineage::of(Epoch { incarnation: 1, ..EPOCH }));
        let restored = Some(Lineage::of(Epoch { system_identifier: 8, ..EPOCH }));
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
            assert_eq!(decide(epoch, Lsn(end), &found), expected, "{epoch:?} {end} {found:?}");
        }
    }
}
