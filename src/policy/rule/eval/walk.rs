//! The facts at the end of a path, one after the other: nothing is evaluated for each, so that a room of many is soon read.

use smallvec::SmallVec;

use super::Eval;
use crate::policy::facts::{Access, Level, NULL, Store, Symbol};
use crate::policy::rule::{ColumnRef, Truth};

impl<'e> Eval<'e> {
    /// Runs the loops of a path and calls `found` with the table and the number of each value of the target column that is not
    /// NULL. Says whether it gave up because there are too many rows.
    pub(in crate::policy::rule) fn walk(
        &mut self,
        levels: &'e [Level],
        target: ColumnRef,
        doubt: &mut Truth,
        found: &mut dyn FnMut(&Store, Symbol),
    ) -> bool {
        match levels.split_last() {
            Some((last, before)) if last.slot == target.slot && last.filters.is_empty() => {
                self.descend(before, doubt, &mut |eval, doubt| eval.all_of(last, target, doubt, found))
            }
            _ => self.descend(levels, doubt, &mut |eval, _| {
                eval.with_fact(target, found);
                false
            }),
        }
    }

    fn all_of(
        &mut self,
        level: &'e Level,
        target: ColumnRef,
        doubt: &mut Truth,
        found: &mut dyn FnMut(&Store, Symbol),
    ) -> bool {
        let store = self.stores[usize::from(level.slot) - 1];
        let column = self.binding.column(target);
        let side = self.side;
        let mut key: SmallVec<[Symbol; 4]> = SmallVec::new();
        if let Access::Index { key: parts, .. } = &level.access {
            for part in parts {
                match self.symbol(store, part, doubt) {
                    Some(symbol) => key.push(symbol),
                    None => return false,
                }
            }
        }
        let each = |row| {
            if self.budget == 0 {
                return true;
            }
            self.budget -= 1;
            let symbol = if store.sees(side, row) { store.cell(row, column) } else { NULL };
            if symbol != NULL {
                found(store, symbol);
            }
            false
        };
        match &level.access {
            Access::Scan => (0..store.versions()).any(each),
            Access::Index { index, .. } => store.rows(*index, &key).any(each),
        }
    }
}
