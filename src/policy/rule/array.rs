//! Arrays of the judged row: as the stream prints them, whatever their dimensions.

use std::borrow::Cow;

use super::eval::{Eval, connect};
use super::value::Val;
use super::{ColumnRef, Truth};
use crate::pgtype::elements;

impl Eval<'_> {
    /// The outcomes for all elements of an array, connected.
    pub(super) fn array(
        &mut self,
        column: ColumnRef,
        decisive: Truth,
        first: Truth,
        outcome: &dyn Fn(&Val<'_>) -> Truth,
    ) -> Truth {
        let value = self.column(column);
        let mut truth = first;
        let read = value.with_text(|text| {
            elements(text, &mut |element| {
                let element = element.map_or(Val::Null, |text| Val::Text(Cow::Borrowed(text)));
                truth = connect(decisive, truth, outcome(&element));
            })
        });
        match (read, &value) {
            (Some(Some(())), _) => truth,
            (Some(None), _) => Truth::Unsure,
            (None, Val::Null) => connect(decisive, first, Truth::Null),
            (None, value) => connect(decisive, first, value.doubt().unwrap_or(Truth::Unsure)),
        }
    }
}
