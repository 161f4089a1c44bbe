//! A sub-select by its definition: all rows of all its tables, looked at together.

use super::{Eval, Lefts, connect};
use crate::policy::rule::{Subquery, Truth};

impl<'e> Eval<'e> {
    /// By definition: every combination of rows, in no order that matters.
    pub(super) fn read_all(&mut self, sub: &'e Subquery, values: Option<&Lefts<'e>>) -> Truth {
        let mut truth = Truth::False;
        self.product(&sub.slots, &mut |eval| {
            let found = match eval.truth(&sub.condition) {
                Truth::True => values.map_or(Truth::True, |values| eval.row_equal(values, sub)),
                doubt @ (Truth::Raises | Truth::Unsure) => doubt,
                Truth::False | Truth::Null => Truth::False,
            };
            truth = connect(Truth::True, truth, found);
            truth == Truth::Unsure
        });
        truth
    }

    fn product(&mut self, slots: &[u16], each: &mut dyn FnMut(&mut Self) -> bool) -> bool {
        let Some((slot, rest)) = slots.split_first() else { return each(self) };
        let store = self.stores[usize::from(*slot) - 1];
        let side = self.side;
        for row in 0..store.versions() {
            if self.budget == 0 {
                return true;
            }
            self.budget -= 1;
            if !store.sees(side, row) {
                continue;
            }
            self.rows[usize::from(*slot)] = row;
            if self.product(rest, each) {
                return true;
            }
        }
        false
    }
}
