//! Expressions with a type, the casts between them, and the kind under which two of them are compared.

use super::collation::Collated;
use super::select::Select;
use super::{Compiler, NotPure, Result, literal, not_pure};
use crate::catalog::Column;
use crate::pgtype::{self, Equality, Order, oid};
use crate::policy::rule::{ClaimTerm, ColumnRef, Conversion, Kind, RuleColumn, Scalar, TopicValue};
use crate::policy::term::{Term, TermType};

/// `unknown`: a literal whose type is decided by what it meets.
pub(super) const UNKNOWN: u32 = 705;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ty {
    /// The base type.
    pub(super) oid: u32,
    pub(super) collated: Collated,
}

impl Ty {
    pub(super) fn plain(oid: u32) -> Ty {
        Ty { oid, collated: Collated::DEFAULT }
    }
}

/// A value and its type.
#[derive(Debug, Clone)]
pub(super) struct Typed {
    pub(super) ty: Ty,
    pub(super) val: Val,
}

#[derive(Debug, Clone)]
pub(super) enum Val {
    /// As the type prints it, or as it was written if the type is unknown; `None` is NULL.
    Constant(Option<String>),
    /// Over the token only. Not a list.
    Term(Term),
    Scalar(Scalar),
    /// A scalar sub-select: of at most one row, and NULL if there is none.
    Select(Box<Select>),
    /// Each element of a list in turn.
    Element(Term),
    /// `prefix || … || suffix`, which only a comparison with the topic can take apart.
    Framed(Box<Framed>),
}

/// Text with constants around it.
#[derive(Debug, Clone)]
pub(super) struct Framed {
    pub(super) prefix: String,
    /// Of type text.
    pub(super) inner: Typed,
    pub(super) suffix: String,
}

impl Typed {
    pub(super) fn constant(oid: u32, text: impl Into<String>) -> Typed {
        Typed { ty: Ty::plain(oid), val: Val::Constant(Some(text.into())) }
    }

    pub(super) fn null(oid: u32) -> Typed {
        Typed { ty: Ty::plain(oid), val: Val::Constant(None) }
    }

    pub(super) fn scalar(oid: u32, scalar: Scalar) -> Typed {
        Typed { ty: Ty::plain(oid), val: Val::Scalar(scalar) }
    }

    pub(super) fn term(term: Term) -> Typed {
        Typed { ty: Ty::plain(term.term_type().oid()), val: Val::Term(term) }
    }

    pub(super) fn is_boolean(&self) -> bool {
        self.ty.oid == oid::BOOL
    }
}

pub(super) fn is_integer(oid: u32) -> bool {
    matches!(oid, oid::INT2 | oid::INT4 | oid::INT8)
}

pub(super) fn is_text(oid: u32) -> bool {
    matches!(oid, oid::TEXT | oid::VARCHAR | oid::NAME)
}

const COMPARISONS: [&str; 6] = ["=", "<>", "<", "<=", ">", ">="];

pub(super) const BOOLEAN: Kind = Kind { oid: oid::BOOL, equality: Equality::Bytes, order: Some(Order::Bytes) };
const INTEGER: Kind = Kind { oid: oid::INT8, equality: Equality::Bytes, order: Some(Order::Integer) };
const NUMERIC: Kind = Kind { oid: oid::NUMERIC, equality: Equality::Numeric, order: Some(Order::Numeric) };

impl Compiler<'_> {
    pub(super) fn column_type(&self, column: &Column) -> Ty {
        Ty { oid: self.catalog.types().base_of(column.type_oid), collated: Collated::of(column) }
    }

    /// Notes that the column is read.
    pub(super) fn column_ref(&mut self, slot: u16, column: &Column) -> Result<ColumnRef> {
        let ty = self.column_type(column);
        // A type without an equality still has NULLs.
        let kind = self.kind(&ty).unwrap_or(Kind { oid: ty.oid, equality: Equality::Bytes, order: None });
        let columns = match slot.checked_sub(1) {
            None => &mut self.reads,
            Some(source) => match self.sources.get_mut(usize::from(source)) {
                Some(source) => &mut source.columns,
                None => return Err(NotPure("a column of nothing".into())),
            },
        };
        let place = columns.iter().position(|c| c.number == column.number).unwrap_or_else(|| {
            columns.push(RuleColumn { name: column.name.clone(), number: column.number, kind });
            columns.len() - 1
        });
        let place = u16::try_from(place).map_err(|_| NotPure("too many columns".into()))?;
        Ok(ColumnRef { slot, column: place })
    }

    pub(super) fn kind(&self, ty: &Ty) -> Option<Kind> {
        let types = self.catalog.types();
        match ty.oid {
            oid if is_integer(oid) => Some(INTEGER),
            oid::NUMERIC => Some(NUMERIC),
            oid => {
                let equality = pgtype::equality(types, oid, ty.collated.is_exact())?;
                let oid = if is_text(oid) { oid::TEXT } else { oid };
                Some(Kind { oid, equality, order: pgtype::order(types, ty.oid, ty.collated.is_bytewise()) })
            }
        }
    }

    /// The type that both have, an unknown one giving way.
    pub(super) fn common(&self, a: &Ty, b: &Ty) -> Result<Ty> {
        let collated = a.collated.with(&b.collated);
        let exact = a.oid == b.oid && a.oid != oid::VARCHAR;
        if let (true, false, Some(path)) = (self.env.source, exact, self.env.search_path) {
            // For operands of just these types, the one of pg_catalog is the first that is found.
            let other = |schema: &String| COMPARISONS.iter().any(|op| self.catalog.has_operator(schema, op));
            if path.iter().any(other) {
                return Err(NotPure("operators in the schemas of a function's search_path".into()));
            }
        }
        let oid = match (a.oid, b.oid) {
            (a, b) if a == b => a,
            (UNKNOWN, other) | (other, UNKNOWN) => other,
            (a, b) if is_integer(a) && is_integer(b) => oid::INT8,
            (a, oid::NUMERIC) | (oid::NUMERIC, a) if is_integer(a) => oid::NUMERIC,
            (a, b) if is_text(a) && is_text(b) => oid::TEXT,
            (a, b) => {
                let name = |oid| pgtype::type_name(self.catalog.types(), oid);
                return Err(NotPure(format!("a comparison of {} with {}", name(a), name(b))));
            }
        };
        Ok(Ty { oid: if oid == UNKNOWN { oid::TEXT } else { oid }, collated })
    }

    /// How values of these types are compared.
    pub(super) fn compared(&self, a: &Ty, b: &Ty) -> Result<Kind> {
        let common = self.common(a, b)?;
        let name = || pgtype::type_name(self.catalog.types(), common.oid);
        self.kind(&common).ok_or_else(|| match common.collated.is_exact() {
            true => NotPure(format!("a comparison of type {}", name())),
            false => NotPure(format!("a comparison of type {} under this collation", name())),
        })
    }

    /// As part of the rule, for a comparison of this kind.
    pub(super) fn lower(&mut self, typed: Typed, kind: Kind) -> Result<Scalar> {
        match typed.val {
            Val::Scalar(scalar) => Ok(scalar),
            Val::Constant(None) => Ok(Scalar::Constant(None)),
            Val::Constant(Some(text)) => {
                let text = match typed.ty.oid {
                    UNKNOWN => literal::of_type(self.catalog.types(), kind.oid, &text, self.env.source)?,
                    _ => text,
                };
                match pgtype::canonical(kind.equality, text.as_bytes()) {
                    Some(bytes) => Ok(Scalar::Constant(Some(Box::from(&*bytes)))),
                    None => not_pure("a constant", text),
                }
            }
            Val::Term(term) if term.is_json() => not_pure("a comparison of JSON from the token", term),
            Val::Term(term) => Ok(Scalar::Claim(self.claim(term)?)),
            Val::Select(_) => Err(NotPure("a sub-select as a part of an expression".into())),
            Val::Element(term) => not_pure("elements of a list", term),
            Val::Framed(_) => Err(NotPure("the operator || but in a comparison with the topic".into())),
        }
    }

    /// The place of a term among the rule's claims.
    pub(super) fn claim(&mut self, term: Term) -> Result<u16> {
        let ty = Ty::plain(term.term_type().oid());
        let kind = self.kind(&ty).unwrap_or(Kind { oid: ty.oid, equality: Equality::Bytes, order: None });
        let place = self.claims.iter().position(|claim| claim.term == term).unwrap_or_else(|| {
            self.claims.push(ClaimTerm { term, kind });
            self.claims.len() - 1
        });
        u16::try_from(place).map_err(|_| NotPure("too many claims".into()))
    }

    /// `typed::to`. `sized`: the target has a length or a precision.
    pub(super) fn cast(&mut self, typed: Typed, to: u32, sized: bool) -> Result<Typed> {
        let Typed { ty, val } = typed;
        let from = ty.oid;
        let name = |oid| pgtype::type_name(self.catalog.types(), oid).to_owned();
        let refused = || Err(NotPure(format!("a cast from {} to {}", name(from), name(to))));
        if sized && !matches!(val, Val::Constant(None)) {
            return Err(NotPure(format!("a cast to {} of a certain size", name(to))));
        }
        if from == to {
            return Ok(Typed { ty, val });
        }
        // Between texts the collation stays.
        let kept = if is_text(from) && is_text(to) { ty.collated.clone() } else { Collated::DEFAULT };
        let new = Ty { oid: to, collated: kept };
        match val {
            Val::Constant(None) => Ok(Typed { ty: new, val: Val::Constant(None) }),
            Val::Constant(Some(text)) if from == UNKNOWN => Ok(Typed {
                ty: new,
                val: Val::Constant(Some(literal::of_type(self.catalog.types(), to, &text, self.env.source)?)),
            }),
            Val::Constant(Some(text)) => match literal::cast(from, to, &text) {
                Some(text) => Ok(Typed { ty: new, val: Val::Constant(Some(text)) }),
                None => refused(),
            },
            Val::Term(term) | Val::Element(term) if is_text(from) && is_text(to) && to != oid::NAME => {
                let val = if term.is_list() { Val::Element(term) } else { Val::Term(term) };
                Ok(Typed { ty: new, val })
            }
            Val::Term(term) => match TermType::of(to).and_then(|to| term.cast(to)) {
                Some(term) => Ok(Typed { ty: new, val: Val::Term(term) }),
                None => refused(),
            },
            Val::Element(term) => match TermType::of(to).and_then(|to| term.cast(to)) {
                Some(term) => Ok(Typed { ty: new, val: Val::Element(term) }),
                None => refused(),
            },
            Val::Select(mut select) => {
                let [output] = &mut select.outputs[..] else { return refused() };
                *output = self.cast(output.clone(), to, sized)?;
                Ok(Typed { ty: output.ty.clone(), val: Val::Select(select) })
            }
            Val::Framed(framed) if is_text(to) && to != oid::NAME => Ok(Typed { ty: new, val: Val::Framed(framed) }),
            Val::Framed(_) => refused(),
            Val::Scalar(scalar) => match self.conversion(from, to) {
                Some(None) => Ok(Typed { ty: new, val: Val::Scalar(scalar) }),
                Some(Some(conversion)) => match self.topic_value(&scalar) {
                    Some(value) => self.topic_column(TopicValue::Cast(conversion, Box::new(value)), new),
                    None => Ok(Typed { ty: new, val: Val::Scalar(Scalar::Convert(conversion, Box::new(scalar))) }),
                },
                None => refused(),
            },
        }
    }

    /// How a value's canonical text changes in a cast: not at all (`Some(None)`), or in one of the ways we know.
    fn conversion(&self, from: u32, to: u32) -> Option<Option<Conversion>> {
        let size = |oid| match oid {
            oid::INT2 => 2,
            oid::INT4 => 4,
            _ => 8,
        };
        let is_enum = self.is_enum(from);
        match (from, to) {
            (from, to) if is_integer(from) && is_integer(to) => {
                Some((size(to) < size(from)).then(|| Conversion::IntToInt(size(to))))
            }
            (from, oid::NUMERIC | oid::TEXT | oid::VARCHAR) if is_integer(from) => Some(None),
            // Enough bits for every value, so no digit is lost.
            (oid::INT2 | oid::INT4, oid::FLOAT8) => None,
            (oid::UUID | oid::BPCHAR, oid::TEXT | oid::VARCHAR) => Some(None),
            (_, oid::TEXT | oid::VARCHAR) if is_enum => Some(None),
            (oid::BOOL, oid::TEXT | oid::VARCHAR) => Some(Some(Conversion::BoolToText)),
            (oid::TEXT | oid::VARCHAR | oid::NAME, oid::TEXT | oid::VARCHAR) => Some(None),
            (oid::TEXT | oid::VARCHAR, oid::UUID) => Some(Some(Conversion::TextToUuid)),
            (oid::TEXT | oid::VARCHAR, to) if is_integer(to) => Some(Some(Conversion::TextToInt(size(to)))),
            (oid::TEXT | oid::VARCHAR, oid::BOOL) => Some(Some(Conversion::TextToBool)),
            _ => None,
        }
    }

    pub(super) fn is_enum(&self, oid: u32) -> bool {
        self.catalog.types().get(oid).is_some_and(|info| info.kind == pgtype::TypeKind::Enum)
    }
}
