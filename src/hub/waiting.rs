//! What waits in the lane: a row, the questions about it, and each channel's part in it.

use std::sync::Arc;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::event::{Event, Ids};
use super::filters::{Conditional, Owner, RowFilters};
use super::{ChannelId, Port};
use crate::claims::Principal;
use crate::filter::FilterAskConfig;
use crate::policy::{Bound, ColumnMask, Permit, Verdict};

/// A channel's part in a row: its matching entries of one selection.
pub(super) struct Share {
    pub(super) channel: ChannelId,
    /// The number of its connection.
    pub(super) connection: u64,
    pub(super) ids: Ids,
    /// Entries that match if Postgres says so.
    pub(super) open: Conditional,
    pub(super) keep: Option<ColumnMask>,
    pub(super) cursor_as: Option<Arc<str>>,
}

/// A share that nobody has judged yet.
pub(super) struct Waiting {
    pub(super) share: Share,
    /// Index in the question's principals.
    pub(super) principal: usize,
}

/// A share that was permitted in memory, with entries whose filters are open.
pub(super) struct Filtered {
    pub(super) share: Share,
    pub(super) principal: Arc<Principal>,
    pub(super) permit: Permit,
}

/// One question to Postgres and those who wait for it.
pub(super) struct Asked {
    pub(super) bound: Arc<Bound>,
    /// A no is no answer: the row is gone, and Postgres may know only what is left without it.
    pub(super) doubted: bool,
    pub(super) principals: Vec<Arc<Principal>>,
    pub(super) waiting: Vec<Waiting>,
    pub(super) verdicts: Option<Vec<Verdict>>,
}

/// A channel that gets the row.
pub(super) struct Ready {
    pub(super) port: Arc<Port>,
    pub(super) ids: Ids,
    pub(super) cursor_as: Option<Arc<str>>,
}

/// Those who may see the same columns of a row.
pub(super) type Permits = SmallVec<[(Permit, Vec<Ready>); 1]>;

/// A row that comes.
pub(super) struct LaneRow {
    pub(super) event: Arc<Event>,
    pub(super) permits: Permits,
    pub(super) asked: SmallVec<[Asked; 1]>,
    pub(super) filtered: Vec<Filtered>,
    /// Channels for which there will be no answer.
    pub(super) undecided: Vec<Arc<Port>>,
    /// Transactions up to this row that others may not see yet.
    pub(super) xids: Arc<[u32]>,
    pub(super) bytes: usize,
    /// What each of its parts adds to its channel's pace; 0 for a row that is not of the past.
    pub(super) cost: u32,
    /// Some channel may get it in several frames.
    pub(super) several: bool,
}

/// A row on its way, as long as a part of it waits.
pub(super) struct Kept {
    pub(super) event: Arc<Event>,
    pub(super) asked: SmallVec<[Asked; 1]>,
    pub(super) filtered: Vec<Filtered>,
    /// Filled when all of `asked` is answered.
    pub(super) filters: RowFilters,
    pub(super) xids: Arc<[u32]>,
    pub(super) bytes: usize,
    pub(super) cost: u32,
    pub(super) several: bool,
    /// Since when.
    pub(super) since: Instant,
    pub(super) sequence: u64,
    /// That have not left.
    pub(super) parts: usize,
}

impl Kept {
    pub(super) fn is_judged(&self) -> bool {
        self.asked.iter().all(|asked| asked.verdicts.is_some())
    }

    /// The number of a question's first part. Those that wait for filters alone come after all others.
    pub(super) fn first_part(&self, index: usize) -> u32 {
        self.asked.iter().take(index).map(|asked| asked.waiting.len() as u32).sum()
    }

    /// The open conditions of those who were permitted the row.
    pub(super) fn collect_filters(&mut self, limits: &FilterAskConfig) {
        let Kept { asked, filtered, filters, .. } = self;
        let mut collect = |share: &Share, principal: &Principal| {
            if share.open.is_empty() {
                return;
            }
            let owner = Owner::of(principal, share.connection);
            share.open.iter().for_each(|(_, open)| filters.add(open, &owner, limits));
        };
        filtered.iter().for_each(|filtered| collect(&filtered.share, &filtered.principal));
        for Asked { principals, waiting, verdicts, .. } in asked {
            let verdicts = verdicts.as_deref().unwrap_or_default();
            let permitted = |w: &&Waiting| matches!(verdicts.get(w.principal), Some(Verdict::Permit(_)));
            waiting.iter().filter(permitted).for_each(|w| collect(&w.share, &principals[w.principal]));
        }
    }
}
