//! What a rule means, in nested loops over plain rows.

use super::world::{Cell, Row};
use crate::pgtype::{canonical, compare};
use crate::policy::rule::{
    Claimed, ColumnRef, CompareOp, Conversion, Expr, Kind, Members, Rule, Scalar, Subquery, Truth, Viewer,
};

/// An error on purpose, to see that the comparison notices it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::policy) enum Mistake {
    None,
    /// `x NOT IN (…, NULL)` is true.
    NullsInNotIn,
    /// A NULL scalar is not in an array.
    NullIsNotAny,
    /// What raises is false.
    RaisesIsFalse,
    /// Numbers are equal only if their texts are.
    TextOfNumbers,
}

pub(in crate::policy) struct Reference<'a> {
    pub(in crate::policy) rule: &'a Rule,
    /// By table oid minus 1001.
    pub(in crate::policy) state: &'a [Vec<Row>],
    pub(in crate::policy) row: &'a [Cell],
    pub(in crate::policy) viewer: &'a Viewer,
    pub(in crate::policy) mistake: Mistake,
}

type Rows<'a> = Vec<Option<&'a Row>>;
type Val = Result<Option<String>, Truth>;

fn rank(truth: Truth) -> u8 {
    match truth {
        Truth::Unsure => 4,
        Truth::Raises => 3,
        _ => 0,
    }
}

fn any(list: impl IntoIterator<Item = Truth>) -> Truth {
    let list: Vec<Truth> = list.into_iter().collect();
    [Truth::Unsure, Truth::Raises, Truth::True, Truth::Null]
        .into_iter()
        .find(|t| list.contains(t))
        .unwrap_or(Truth::False)
}

fn all(list: impl IntoIterator<Item = Truth>) -> Truth {
    not(any(list.into_iter().map(not)))
}

fn not(truth: Truth) -> Truth {
    match truth {
        Truth::True => Truth::False,
        Truth::False => Truth::True,
        other => other,
    }
}

fn bool(value: bool) -> Truth {
    if value { Truth::True } else { Truth::False }
}

impl<'a> Reference<'a> {
    pub(in crate::policy) fn truth(&self) -> Truth {
        self.expr(&self.rule.condition, &vec![None; self.rule.sources.len() + 1])
    }

    fn expr(&self, expr: &Expr, rows: &Rows<'a>) -> Truth {
        match expr {
            Expr::Constant(value) => value.map_or(Truth::Null, bool),
            Expr::Value(scalar) => match self.scalar(scalar, rows) {
                Err(doubt) => doubt,
                Ok(None) => Truth::Null,
                Ok(Some(text)) if text == "t" => Truth::True,
                Ok(Some(text)) if text == "f" => Truth::False,
                Ok(Some(_)) => Truth::Unsure,
            },
            Expr::Compare(op, kind, pair) => {
                self.compare(*op, kind, &self.scalar(&pair.0, rows), &self.scalar(&pair.1, rows))
            }
            Expr::Same(kind, pair) => match (self.scalar(&pair.0, rows), self.scalar(&pair.1, rows)) {
                (Ok(None), Ok(None)) => Truth::True,
                (Ok(None), Ok(Some(_))) | (Ok(Some(_)), Ok(None)) => Truth::False,
                (a, b) => self.compare(CompareOp::Eq, kind, &a, &b),
            },
            Expr::Any(op, kind, left, members) => self.members(*op, kind, left, members, rows, true),
            Expr::All(op, kind, left, members) => self.members(*op, kind, left, members, rows, false),
            Expr::IsNull(scalar) => self.scalar(scalar, rows).map_or_else(|doubt| doubt, |v| bool(v.is_none())),
            Expr::Is(inner, wanted) => match self.expr(inner, rows) {
                doubt if rank(doubt) > 0 => doubt,
                truth => bool(truth == wanted.map_or(Truth::Null, bool)),
            },
            Expr::Not(inner) => not(self.expr(inner, rows)),
            Expr::And(parts) => all(parts.iter().map(|part| self.expr(part, rows))),
            Expr::Or(parts) => any(parts.iter().map(|part| self.expr(part, rows))),
            Expr::Exists(sub) => self.sub(&[], sub, rows),
            Expr::In(lefts, sub) => self.sub(lefts, sub, rows),
        }
    }

    fn members(&self, op: CompareOp, kind: &Kind, left: &Scalar, of: &Members, rows: &Rows<'a>, is_any: bool) -> Truth {
        let left = self.scalar(left, rows);
        let list: Vec<Val> = match of {
            Members::List(list) => list.iter().map(|scalar| self.scalar(scalar, rows)).collect(),
            Members::Claim(claim) => match self.viewer.claimed(*claim) {
                Claimed::List(list) => list
                    .iter()
                    .map(|text| Ok(text.as_ref().map(|text| String::from_utf8_lossy(text).into_owned())))
                    .collect(),
                Claimed::Null => return left.err().unwrap_or(Truth::Null),
                Claimed::Raises => return any([left.err().unwrap_or(Truth::False), Truth::Raises]),
                Claimed::Value(_) | Claimed::Unsure => return Truth::Unsure,
            },
            // Compared with a SELECT only.
            Members::Array(_) => return Truth::Unsure,
        };
        if left == Ok(None) && self.mistake == Mistake::NullIsNotAny {
            return bool(!is_any);
        }
        let own = left.clone().err();
        let compared = list.iter().map(|member| self.compare(op, kind, &left, member)).chain(own);
        if is_any { any(compared) } else { all(compared) }
    }

    fn compare(&self, op: CompareOp, kind: &Kind, a: &Val, b: &Val) -> Truth {
        let (a, b) = match (a, b) {
            (Err(a), Err(b)) => return any([*a, *b]),
            (Err(doubt), _) | (_, Err(doubt)) => return *doubt,
            (Ok(None), _) | (_, Ok(None)) => return Truth::Null,
            (Ok(Some(a)), Ok(Some(b))) => (a.as_bytes(), b.as_bytes()),
        };
        let equal = match self.mistake {
            Mistake::TextOfNumbers => a == b,
            _ => canonical(kind.equality, a) == canonical(kind.equality, b),
        };
        let Some(order) = kind.order.and_then(|order| compare(order, a, b)) else { return Truth::Unsure };
        bool(match op {
            CompareOp::Eq => equal,
            CompareOp::Ne => !equal,
            CompareOp::Lt => order.is_lt(),
            CompareOp::Le => order.is_le(),
            CompareOp::Gt => order.is_gt(),
            CompareOp::Ge => order.is_ge(),
        })
    }

    fn sub(&self, lefts: &[(Kind, Scalar)], sub: &Subquery, rows: &Rows<'a>) -> Truth {
        let values: Vec<Val> = lefts.iter().map(|(_, left)| self.scalar(left, rows)).collect();
        // What comes from outside is evaluated whatever the rows.
        let mut outside = Vec::new();
        self.outside(&sub.condition, rows, &mut outside);
        sub.outputs.iter().for_each(|output| self.outside_of(output, rows, &mut outside));
        let doubt = any(outside.into_iter().chain(values.iter().filter_map(|value| value.clone().err())));
        if rank(doubt) > 0 {
            return doubt;
        }
        let mut combinations: Vec<Rows<'a>> = vec![rows.clone()];
        for slot in &sub.slots {
            let oid = self.rule.sources[usize::from(*slot) - 1].table_oid;
            let table = &self.state[(oid - 1001) as usize];
            let with = |rows: &Rows<'a>, row: &'a Row| {
                let mut rows = rows.clone();
                rows[usize::from(*slot)] = Some(row);
                rows
            };
            combinations = combinations.iter().flat_map(|rows| table.iter().map(move |row| with(rows, row))).collect();
        }
        any(combinations.iter().map(|rows| match self.expr(&sub.condition, rows) {
            Truth::True => {
                let equal = lefts.iter().zip(&values).zip(&sub.outputs).map(|(((kind, _), left), output)| {
                    self.compare(CompareOp::Eq, kind, left, &self.scalar(output, rows))
                });
                match all(equal) {
                    Truth::Null if self.mistake == Mistake::NullsInNotIn => Truth::False,
                    truth => truth,
                }
            }
            doubt if rank(doubt) > 0 => doubt,
            _ => Truth::False,
        }))
    }

    /// Doubts about what an expression evaluates whatever the rows that `rows` does not have yet.
    fn outside(&self, expr: &Expr, rows: &Rows<'a>, doubts: &mut Vec<Truth>) {
        match expr {
            Expr::Constant(_) => {}
            Expr::Value(scalar) => self.outside_of(scalar, rows, doubts),
            Expr::IsNull(scalar) => self.outside_of(scalar, rows, doubts),
            Expr::Compare(_, _, pair) | Expr::Same(_, pair) => {
                self.outside_of(&pair.0, rows, doubts);
                self.outside_of(&pair.1, rows, doubts);
            }
            Expr::Any(_, _, left, members) | Expr::All(_, _, left, members) => {
                self.outside_of(left, rows, doubts);
                match members {
                    Members::List(list) => list.iter().for_each(|scalar| self.outside_of(scalar, rows, doubts)),
                    Members::Claim(claim) => doubts.push(match self.viewer.claimed(*claim) {
                        Claimed::List(_) | Claimed::Null => Truth::False,
                        Claimed::Raises => Truth::Raises,
                        Claimed::Value(_) | Claimed::Unsure => Truth::Unsure,
                    }),
                    Members::Array(_) => doubts.push(Truth::Unsure),
                }
            }
            Expr::Is(inner, _) | Expr::Not(inner) => self.outside(inner, rows, doubts),
            Expr::And(parts) | Expr::Or(parts) => parts.iter().for_each(|part| self.outside(part, rows, doubts)),
            Expr::Exists(sub) => {
                self.outside(&sub.condition, rows, doubts);
                sub.outputs.iter().for_each(|output| self.outside_of(output, rows, doubts));
            }
            Expr::In(lefts, sub) => {
                lefts.iter().for_each(|(_, left)| self.outside_of(left, rows, doubts));
                self.outside(&sub.condition, rows, doubts);
                sub.outputs.iter().for_each(|output| self.outside_of(output, rows, doubts));
            }
        }
    }

    fn outside_of(&self, scalar: &Scalar, rows: &Rows<'a>, doubts: &mut Vec<Truth>) {
        match scalar {
            Scalar::Constant(_) => {}
            Scalar::Column(column) if column.slot != 0 && rows[usize::from(column.slot)].is_none() => {}
            Scalar::Column(_) | Scalar::Claim(_) => doubts.extend(self.scalar(scalar, rows).err()),
            Scalar::Coalesce(list) => self.outside_of(&list[0], rows, doubts),
            Scalar::NullIf(_, pair) => {
                self.outside_of(&pair.0, rows, doubts);
                self.outside_of(&pair.1, rows, doubts);
            }
            Scalar::Case(arms, _) => self.outside(&arms[0].0, rows, doubts),
            Scalar::Truth(inner) => self.outside(inner, rows, doubts),
            Scalar::Convert(_, inner) => match &**inner {
                Scalar::Column(column) if column.slot != 0 && rows[usize::from(column.slot)].is_none() => {}
                Scalar::Column(_) | Scalar::Claim(_) | Scalar::Constant(_) => {
                    doubts.extend(self.scalar(scalar, rows).err());
                }
                _ => {}
            },
        }
    }

    fn column(&self, column: ColumnRef, rows: &Rows<'a>) -> Val {
        let at = usize::from(column.column);
        let cell = match column.slot {
            0 => self.row[at],
            slot => rows[usize::from(slot)].and_then(|row| row.cells[at]),
        };
        Ok(cell.map(str::to_owned))
    }

    fn scalar(&self, scalar: &Scalar, rows: &Rows<'a>) -> Val {
        match scalar {
            Scalar::Column(column) => self.column(*column, rows),
            Scalar::Claim(claim) => match self.viewer.claimed(*claim) {
                Claimed::Null => Ok(None),
                Claimed::Value(text) => Ok(Some(String::from_utf8_lossy(text).into_owned())),
                Claimed::Raises => Err(Truth::Raises),
                Claimed::List(_) | Claimed::Unsure => Err(Truth::Unsure),
            },
            Scalar::Constant(text) => Ok(text.as_ref().map(|text| String::from_utf8_lossy(text).into_owned())),
            Scalar::Coalesce(list) => {
                list.iter().map(|scalar| self.scalar(scalar, rows)).find(|v| *v != Ok(None)).unwrap_or(Ok(None))
            }
            Scalar::NullIf(kind, pair) => {
                let (a, b) = (self.scalar(&pair.0, rows), self.scalar(&pair.1, rows));
                match self.compare(CompareOp::Eq, kind, &a, &b) {
                    Truth::True => Ok(None),
                    doubt if rank(doubt) > 0 => Err(doubt),
                    _ => a,
                }
            }
            Scalar::Case(arms, otherwise) => {
                for (condition, value) in arms {
                    match self.expr(condition, rows) {
                        Truth::True => return self.scalar(value, rows),
                        doubt if rank(doubt) > 0 => return Err(doubt),
                        _ => {}
                    }
                }
                otherwise.as_ref().map_or(Ok(None), |scalar| self.scalar(scalar, rows))
            }
            Scalar::Truth(inner) => match self.expr(inner, rows) {
                Truth::True => Ok(Some("t".to_owned())),
                Truth::False => Ok(Some("f".to_owned())),
                Truth::Null => Ok(None),
                doubt => Err(doubt),
            },
            Scalar::Convert(conversion, inner) => {
                let Some(text) = self.scalar(inner, rows)? else { return Ok(None) };
                assert_eq!(*conversion, Conversion::TextToInt(4), "the only one in these tests");
                match text.parse::<i32>() {
                    Ok(number) => Ok(Some(number.to_string())),
                    Err(_) if self.mistake == Mistake::RaisesIsFalse => Ok(None),
                    Err(_) => Err(Truth::Raises),
                }
            }
        }
    }
}
