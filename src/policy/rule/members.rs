//! ANY and ALL: over lists, arrays in claims, and arrays of the judged row, as the stream prints them and whatever their dimensions.

use std::borrow::Cow;

use super::eval::{Eval, connect};
use super::value::{Val, compared};
use super::{Claimed, ColumnRef, CompareOp, Kind, Members, Scalar, Truth};
use crate::pgtype::elements;

impl<'e> Eval<'e> {
    /// ANY, with `decisive` true, or ALL, with `decisive` false.
    pub(super) fn members(
        &mut self,
        decisive: Truth,
        op: CompareOp,
        kind: &Kind,
        left: &'e Scalar,
        members: &'e Members,
    ) -> Truth {
        let left = self.scalar(left);
        let neutral = if decisive == Truth::True { Truth::False } else { Truth::True };
        let left_doubt = left.doubt().unwrap_or(neutral);
        match members {
            Members::List(list) => list.iter().fold(left_doubt, |truth, member| {
                let member = self.scalar(member);
                connect(decisive, truth, compared(op, kind, &left, &member))
            }),
            Members::Array(column) => {
                self.array(*column, decisive, left_doubt, &|member| compared(op, kind, &left, member))
            }
            Members::Claim(claim) => {
                let claimed = match self.claimed(*claim) {
                    Claimed::List(list) => Ok(list),
                    Claimed::Null => Err(Truth::Null),
                    Claimed::Raises => Err(Truth::Raises),
                    Claimed::Value(_) | Claimed::Unsure => Err(Truth::Unsure),
                };
                match claimed {
                    Err(truth) => connect(decisive, left_doubt, truth),
                    Ok(list) => list.iter().fold(left_doubt, |truth, member| {
                        let member = member.as_ref().map_or(Val::Null, |text| Val::Text(Cow::Borrowed(text)));
                        connect(decisive, truth, compared(op, kind, &left, &member))
                    }),
                }
            }
        }
    }

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
