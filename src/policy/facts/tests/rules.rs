//! Random rules, rows and viewers.

use super::Dice;
use super::world::{CLASSES, Cell, Class, columns};
use crate::policy::rule::{
    ClaimTerm, Claimed, ColumnRef, CompareOp, Conversion, Expr, FactSource, Members, Rule, Scalar, Subquery, Viewer,
};
use crate::policy::{Setting, Term};

/// Claims 0 and 1 are texts, 2 is a number, 3 an array of texts.
const CLAIMS: [Class; 4] = [Class::Text, Class::Text, Class::Number, Class::Text];
pub(in crate::policy) const READS: &[Class] = &[Class::Text, Class::Text, Class::Number];

pub(in crate::policy) struct Rules<'d> {
    pub(in crate::policy) dice: &'d mut Dice,
    /// Table of each slot from 1.
    sources: Vec<usize>,
}

impl Rules<'_> {
    pub(in crate::policy) fn rule(dice: &mut Dice) -> Rule {
        let mut rules = Rules { dice, sources: Vec::new() };
        let condition = rules.expr(&[0], 3);
        let source = |table: &usize| FactSource {
            table_oid: 1001 + *table as u32,
            table: format!("public.t{table}").into(),
            columns: columns(CLASSES[*table]),
        };
        let term = Term::Setting(Setting::Subject);
        Rule {
            condition,
            reads: columns(READS),
            claims: CLAIMS.iter().map(|class| ClaimTerm { term: term.clone(), kind: class.kind() }).collect(),
            sources: rules.sources.iter().map(source).collect(),
        }
    }

    fn class(&mut self) -> Class {
        *self.dice.pick(&[Class::Text, Class::Text, Class::Number])
    }

    fn classes(&self, slot: u16) -> &'static [Class] {
        match slot {
            0 => READS,
            slot => CLASSES[self.sources[usize::from(slot) - 1]],
        }
    }

    /// A column of one of these slots.
    fn column(&mut self, class: Class, slots: &[u16]) -> Option<Scalar> {
        let mut found = Vec::new();
        for slot in slots {
            for (at, other) in self.classes(*slot).iter().enumerate() {
                if *other == class {
                    found.push(ColumnRef { slot: *slot, column: at as u16 });
                }
            }
        }
        (!found.is_empty()).then(|| Scalar::Column(*self.dice.pick(&found)))
    }

    fn claim(&mut self, class: Class) -> Scalar {
        Scalar::Claim(if class == Class::Number { 2 } else { self.dice.roll(2) as u16 })
    }

    fn constant(&mut self, class: Class) -> Scalar {
        // Canonical: no "1.0".
        let text = class.any(self.dice).map(|text| if text == "1.0" { "1" } else { text });
        Scalar::Constant(text.map(|text| text.as_bytes().into()))
    }

    fn scalar(&mut self, class: Class, slots: &[u16], depth: usize) -> Scalar {
        let simple = |own: &mut Self| match own.dice.roll(8) {
            0..5 => own.column(class, slots).unwrap_or_else(|| own.claim(class)),
            5 | 6 => own.claim(class),
            _ => own.constant(class),
        };
        if depth == 0 || !self.dice.one_in(4) {
            return simple(self);
        }
        let inner = depth - 1;
        match self.dice.roll(4) {
            0 => Scalar::Coalesce(vec![self.scalar(class, slots, inner), self.scalar(class, slots, inner)]),
            1 => {
                let pair = (self.scalar(class, slots, inner), self.scalar(class, slots, inner));
                Scalar::NullIf(class.kind(), Box::new(pair))
            }
            2 => {
                let arm = (self.expr(slots, inner), self.scalar(class, slots, inner));
                let otherwise = self.dice.one_in(2).then(|| Box::new(self.scalar(class, slots, inner)));
                Scalar::Case(vec![arm], otherwise)
            }
            _ if class == Class::Number => {
                Scalar::Convert(Conversion::TextToInt(4), Box::new(self.scalar(Class::Text, slots, inner)))
            }
            _ => simple(self),
        }
    }

    fn op(&mut self) -> CompareOp {
        use CompareOp::{Eq, Ge, Gt, Le, Lt, Ne};
        *self.dice.pick(&[Eq, Eq, Eq, Eq, Ne, Lt, Le, Gt, Ge])
    }

    fn expr(&mut self, slots: &[u16], depth: usize) -> Expr {
        let class = self.class();
        let kind = class.kind();
        let inner = depth.saturating_sub(1);
        let roll = if depth == 0 { self.dice.roll(8) } else { self.dice.roll(20) };
        match roll {
            0..4 => {
                let pair = (self.scalar(class, slots, inner), self.scalar(class, slots, inner));
                Expr::Compare(self.op(), kind, Box::new(pair))
            }
            4 => {
                let pair = (self.scalar(class, slots, inner), self.scalar(class, slots, inner));
                Expr::Same(kind, Box::new(pair))
            }
            5 | 6 => {
                let (class, members) = match self.dice.one_in(2) {
                    true => (Class::Text, Members::Claim(3)),
                    false => {
                        let length = self.dice.roll(3);
                        (class, Members::List((0..length).map(|_| self.scalar(class, slots, 0)).collect()))
                    }
                };
                let left = Box::new(self.scalar(class, slots, inner));
                let op = self.op();
                match self.dice.one_in(3) {
                    true => Expr::All(op, class.kind(), left, members),
                    false => Expr::Any(op, class.kind(), left, members),
                }
            }
            7 => match self.dice.roll(3) {
                0 => Expr::IsNull(Box::new(self.scalar(class, slots, inner))),
                1 => Expr::Constant(*self.dice.pick(&[Some(true), Some(false), None])),
                _ => Expr::Is(Box::new(self.expr(slots, inner)), *self.dice.pick(&[Some(true), Some(false), None])),
            },
            8 => Expr::Not(Box::new(self.expr(slots, inner))),
            9 | 10 => Expr::And(vec![self.expr(slots, inner), self.expr(slots, inner)]),
            11 | 12 => Expr::Or(vec![self.expr(slots, inner), self.expr(slots, inner)]),
            13 => {
                let truth = Scalar::Truth(Box::new(self.expr(slots, inner)));
                let otherwise = Scalar::Constant(self.dice.pick(&[Some(&b"t"[..]), Some(b"f"), None]).map(Into::into));
                Expr::Value(Scalar::Coalesce(vec![truth, otherwise]))
            }
            14..17 => Expr::Exists(Box::new(self.sub(slots, inner, &[]).1)),
            _ => {
                let outputs: Vec<Class> = (0..1 + self.dice.roll(2)).map(|_| self.class()).collect();
                let lefts = outputs.iter().map(|class| (class.kind(), self.scalar(*class, slots, inner))).collect();
                let sub = self.sub(slots, inner, &outputs).1;
                let found = Expr::In(lefts, Box::new(sub));
                if self.dice.one_in(3) { Expr::Not(Box::new(found)) } else { found }
            }
        }
    }

    fn sub(&mut self, slots: &[u16], depth: usize, outputs: &[Class]) -> (Vec<u16>, Subquery) {
        let count = if self.sources.len() >= 4 { 1 } else { 1 + self.dice.roll(2) };
        let mut own = Vec::new();
        for _ in 0..count {
            let table = self.dice.roll(3);
            self.sources.push(table);
            own.push(self.sources.len() as u16);
        }
        let all: Vec<u16> = slots.iter().chain(&own).copied().collect();
        // Mostly what people write: equalities of own columns with the row, with claims, with each other.
        let mut parts = Vec::new();
        for slot in own.clone() {
            for _ in 0..self.dice.roll(3) {
                let class = self.class();
                let Some(left) = self.column(class, &[slot]) else { continue };
                let right = match self.dice.one_in(2) {
                    true => self.scalar(class, &all, 0),
                    false => self.column(class, slots).unwrap_or_else(|| self.claim(class)),
                };
                let pair = if self.dice.one_in(2) { (left, right) } else { (right, left) };
                parts.push(Expr::Compare(CompareOp::Eq, class.kind(), Box::new(pair)));
            }
        }
        if self.sources.len() < 5 && (parts.is_empty() || self.dice.one_in(3)) {
            parts.push(self.expr(&all, depth));
        }
        let outputs = outputs.iter().map(|class| match self.dice.one_in(5) {
            true => self.scalar(*class, &all, depth.min(1)),
            false => self.column(*class, &own).unwrap_or_else(|| self.constant(*class)),
        });
        let outputs = outputs.collect();
        let condition = match parts.len() {
            0 => Expr::Constant(Some(true)),
            1 => parts.remove(0),
            _ => Expr::And(parts),
        };
        (own.clone(), Subquery { slots: own, condition, outputs })
    }
}

/// A row to be judged.
pub(in crate::policy) fn judged(dice: &mut Dice) -> Vec<Cell> {
    READS.iter().map(|class| class.any(dice)).collect()
}

/// A principal's claims; sometimes in doubt.
pub(in crate::policy) fn viewer(dice: &mut Dice) -> Viewer {
    let value = |class: Class, dice: &mut Dice| match dice.roll(24) {
        0 => Claimed::Raises,
        1 => Claimed::Unsure,
        _ => match class.any(dice) {
            None => Claimed::Null,
            Some("1.0") => Claimed::Value(b"1"[..].into()),
            Some(text) => Claimed::Value(text.as_bytes().into()),
        },
    };
    let list = |dice: &mut Dice| -> Claimed {
        match dice.roll(12) {
            0 => Claimed::Null,
            1 => Claimed::Raises,
            _ => {
                let length = dice.roll(3);
                Claimed::List((0..length).map(|_| Class::Text.any(dice).map(|text| text.as_bytes().into())).collect())
            }
        }
    };
    let values = [value(Class::Text, dice), value(Class::Text, dice), value(Class::Number, dice)];
    let list = list(dice);
    Viewer::new(values.into_iter().chain([list]))
}
