//! From a channel's wishes to the rows that it may see, beside the hub.

use std::sync::Arc;

use smallvec::smallvec;

use super::seam::{Ground, Seam};
use crate::catalog::Catalog;
use crate::change::{Position, Timestamp};
use crate::claims::Principal;
use crate::filter::{self, SubscribeParameters, Validator};
use crate::hub::event::Ids;
use crate::hub::filters::Owner;
use crate::hub::resolve::{self, Target};
use crate::hub::{Action, Entry, Name, SnapshotWish, SubscribeError};
use crate::pgtype::Types;
use crate::policy::{Asked, Options, Selection, Shown, SnapshotError, Taker};

/// One entry's rows.
pub(in crate::hub) struct Part {
    pub(in crate::hub) ids: Ids,
    pub(in crate::hub) shown: Shown,
}

/// What a channel gets before the stream, and where the stream begins for it.
pub(in crate::hub) struct Snapped {
    pub(in crate::hub) parts: Vec<Part>,
    /// By the database's clock.
    pub(in crate::hub) at: Timestamp,
    pub(in crate::hub) types: Arc<Types>,
    /// Everything up to here is in it.
    pub(in crate::hub) start: Position,
    pub(in crate::hub) seam: Arc<Seam>,
    /// Of the history that all this is of.
    pub(in crate::hub) epoch: Option<u64>,
    /// Whose rows they are.
    pub(in crate::hub) sharing_key: Arc<str>,
    pub(super) held: tokio::sync::OwnedSemaphorePermit,
}

/// What it takes.
pub(in crate::hub) struct Taking {
    pub(in crate::hub) taker: Arc<Taker>,
    pub(in crate::hub) validator: Arc<Validator>,
    pub(in crate::hub) options: Options,
    pub(in crate::hub) ground: Ground,
    pub(in crate::hub) epoch: Option<u64>,
}

/// Whether the channel asks for any.
pub(in crate::hub) fn is_wanted(entries: &[Entry]) -> bool {
    entries.iter().any(|entry| entry.snapshot.is_some())
}

impl Taking {
    /// The snapshots of all entries that ask for one, of one moment; or why there are none.
    pub(in crate::hub) async fn take(
        self,
        catalog: &Catalog,
        entries: &[Entry],
        targets: &[Target],
        (principal, connection): (&Principal, u64),
    ) -> Result<Snapped, SubscribeError> {
        let owner = Owner::of(principal, connection).key();
        let mut selections = Vec::new();
        let mut ids: Vec<Ids> = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let Some(wish) = &entry.snapshot else { continue };
            // Equal entries share an id, and would get everything twice.
            if ids.iter().any(|known| known.contains(&entry.id)) {
                continue;
            }
            let target = targets.iter().find(|target| target.entry as usize == index);
            selections.push(self.selection(catalog, entry, wish, target, &principal.role, &owner).await?);
            ids.push(smallvec![entry.id]);
        }
        let taken = self.taker.take(&owner, principal, &selections).await;
        let taken = taken.map_err(|error| {
            let tables = selections.iter().map(|selection| {
                let relation = selection.relation();
                format!("{}.{}", relation.schema, relation.table)
            });
            refused(&tables.collect::<Vec<_>>().join(", "), &error)
        })?;
        let start = self.ground.start(&taken.sees);
        Ok(Snapped {
            parts: ids.into_iter().zip(taken.shown).map(|(ids, shown)| Part { ids, shown }).collect(),
            at: taken.at,
            types: catalog.types().clone(),
            start,
            seam: Arc::new(Seam::new(taken.sees, taken.until, self.epoch)),
            epoch: self.epoch,
            sharing_key: principal.sharing_key.clone(),
            held: taken.held,
        })
    }

    async fn selection(
        &self,
        catalog: &Catalog,
        entry: &Entry,
        wish: &SnapshotWish,
        target: Option<&Target>,
        role: &str,
        owner: &str,
    ) -> Result<Selection, SubscribeError> {
        let final_error = |message: String| SubscribeError { message, retry: false };
        let (Name::Is(schema), Name::Is(name), Some(target)) = (&entry.schema, &entry.table, target) else {
            let message = "Unable to take a snapshot: name its schema and its table";
            return Err(final_error(message.into()));
        };
        let of = format!("{schema}.{name}");
        if !matches!(entry.action, Action::All | Action::Insert) {
            let message =
                format!("Unable to take a snapshot of {of}: its rows come as INSERT; ask for event * or INSERT");
            return Err(final_error(message));
        }
        let most = self.taker.config().max_rows;
        if wish.limit == 0 || wish.limit > most {
            return Err(refused(&of, &SnapshotError::Limit(most)));
        }
        let gone = || refused(&of, &SnapshotError::Unavailable);
        let table = catalog.table(target.table_oid).ok_or_else(gone)?;
        let conditions = match &entry.filter {
            Some(text) => filter::parse(text).map_err(|error| final_error(error.client_detail()))?,
            None => Vec::new(),
        };
        let columns = resolve::columns(catalog, table, role);
        let terms = self.validator.conditions(owner, &conditions, &columns, catalog.types()).await;
        let terms = terms.map_err(|error| {
            let parameters = SubscribeParameters {
                event: entry.action.as_str(),
                schema,
                table: name,
                conditions: &conditions,
                select: entry.select.as_deref(),
            };
            SubscribeError { message: parameters.message(&error), retry: error.is_retryable() }
        })?;
        let asked = Asked { filter: &terms, select: target.select.as_deref(), limit: wish.limit, order: &wish.order };
        Selection::new(catalog, table, role, self.options, asked).map_err(|error| refused(&of, &error))
    }
}

fn refused(table: &str, error: &SnapshotError) -> SubscribeError {
    SubscribeError { message: format!("{REFUSED} {table}: {error}"), retry: error.may_pass() }
}

/// How a refusal for the sake of a snapshot begins.
pub const REFUSED: &str = "Unable to take a snapshot of";
