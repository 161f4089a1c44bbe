//! A rule on one line, for people.

use std::fmt;

use super::{ColumnRef, CompareOp, Conversion, Expr, Members, Rule, Scalar, Subquery};

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        Writer { rule: self, out: &mut text }.expr(&self.condition);
        f.write_str(&text)
    }
}

impl fmt::Display for CompareOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CompareOp::Eq => "=",
            CompareOp::Ne => "<>",
            CompareOp::Lt => "<",
            CompareOp::Le => "<=",
            CompareOp::Gt => ">",
            CompareOp::Ge => ">=",
        })
    }
}

impl Conversion {
    /// `::type`.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Conversion::BoolToText => "::text",
            Conversion::TextToUuid => "::uuid",
            Conversion::TextToInt(2) | Conversion::IntToInt(2) => "::int2",
            Conversion::TextToInt(4) | Conversion::IntToInt(4) => "::int4",
            Conversion::TextToInt(_) | Conversion::IntToInt(_) => "::int8",
            Conversion::TextToBool => "::bool",
        }
    }
}

struct Writer<'a> {
    rule: &'a Rule,
    out: &'a mut String,
}

impl Writer<'_> {
    fn push(&mut self, text: &str) {
        self.out.push_str(text);
    }

    fn list<T>(&mut self, items: &[T], between: &str, mut one: impl FnMut(&mut Self, &T)) {
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.push(between);
            }
            one(self, item);
        }
    }

    fn expr(&mut self, expr: &Expr) {
        match expr {
            Expr::Constant(Some(value)) => self.push(if *value { "true" } else { "false" }),
            Expr::Constant(None) => self.push("null"),
            Expr::Value(scalar) => self.scalar(scalar),
            Expr::Compare(op, _, pair) => self.pair(&pair.0, &format!(" {op} "), &pair.1),
            Expr::Same(_, pair) => self.pair(&pair.0, " is not distinct from ", &pair.1),
            Expr::Any(CompareOp::Eq, _, left, members) => self.members(left, " in ", members),
            Expr::Any(op, _, left, members) => self.members(left, &format!(" {op} any "), members),
            Expr::All(CompareOp::Ne, _, left, members) => self.members(left, " not in ", members),
            Expr::All(op, _, left, members) => self.members(left, &format!(" {op} all "), members),
            Expr::IsNull(scalar) => {
                self.scalar(scalar);
                self.push(" is null");
            }
            Expr::Is(inner, value) => {
                self.push("(");
                self.expr(inner);
                self.push(match value {
                    Some(true) => ") is true",
                    Some(false) => ") is false",
                    None => ") is unknown",
                });
            }
            Expr::Not(inner) => {
                self.push("not (");
                self.expr(inner);
                self.push(")");
            }
            Expr::And(parts) => self.connected(parts, " and "),
            Expr::Or(parts) => self.connected(parts, " or "),
            Expr::Exists(query) => {
                self.push("exists (");
                self.query(query);
                self.push(")");
            }
            Expr::In(left, query) => {
                match &left[..] {
                    [(_, left)] => self.scalar(left),
                    many => {
                        self.push("(");
                        self.list(many, ", ", |w, (_, scalar)| w.scalar(scalar));
                        self.push(")");
                    }
                }
                self.push(" in (");
                self.query(query);
                self.push(")");
            }
        }
    }

    fn connected(&mut self, parts: &[Expr], word: &str) {
        self.push("(");
        self.list(parts, word, Self::expr);
        self.push(")");
    }

    fn pair(&mut self, left: &Scalar, word: &str, right: &Scalar) {
        self.scalar(left);
        self.push(word);
        self.scalar(right);
    }

    fn members(&mut self, left: &Scalar, word: &str, members: &Members) {
        self.scalar(left);
        self.push(word);
        match members {
            Members::List(list) => {
                self.push("(");
                self.list(list, ", ", Self::scalar);
                self.push(")");
            }
            Members::Claim(claim) => self.claim(*claim),
            Members::Array(column) => self.scalar(&Scalar::Column(*column)),
        }
    }

    fn query(&mut self, query: &Subquery) {
        self.push("select ");
        if query.outputs.is_empty() {
            self.push("1");
        }
        self.list(&query.outputs, ", ", Self::scalar);
        self.push(" from ");
        self.list(&query.slots, ", ", |w, slot| w.source(*slot));
        if query.condition != Expr::Constant(Some(true)) {
            self.push(" where ");
            self.expr(&query.condition);
        }
    }

    fn claim(&mut self, claim: u16) {
        match self.rule.claims.get(usize::from(claim)) {
            Some(claim) => self.push(&claim.term.to_string()),
            None => self.push("?"),
        }
    }

    fn source(&mut self, slot: u16) {
        let Some(name) = self.table(slot) else { return self.push("?") };
        let (name, alias) = (name.to_owned(), self.alias(slot));
        self.push(&name);
        if name.rsplit('.').next() != Some(&alias) {
            self.push(" ");
            self.push(&alias);
        }
    }

    fn table(&self, slot: u16) -> Option<&str> {
        let place = usize::from(slot).checked_sub(1)?;
        self.rule.sources.get(place).map(|source| &*source.table)
    }

    /// The table's own name, with a number if it stands there several times.
    fn alias(&self, slot: u16) -> String {
        let Some(table) = self.table(slot) else { return String::new() };
        let name = table.rsplit('.').next().unwrap_or(table);
        let before = self.rule.sources.iter().take(usize::from(slot)).filter(|source| *source.table == *table).count();
        if before > 1 { format!("{name}{before}") } else { name.to_owned() }
    }

    fn column(&mut self, column: ColumnRef) {
        let place = usize::from(column.column);
        if column.slot == 0 {
            let name = self.rule.reads.get(place).map_or("?", |column| &column.name).to_owned();
            return self.push(&name);
        }
        let source = self.rule.sources.get(usize::from(column.slot) - 1);
        let name = source.and_then(|source| source.columns.get(place)).map_or("?", |column| &column.name).to_owned();
        let alias = self.alias(column.slot);
        self.push(&format!("{alias}.{name}"));
    }

    fn scalar(&mut self, scalar: &Scalar) {
        match scalar {
            Scalar::Column(column) => self.column(*column),
            Scalar::Claim(claim) => self.claim(*claim),
            Scalar::Constant(None) => self.push("null"),
            Scalar::Constant(Some(bytes)) => {
                let text = String::from_utf8_lossy(bytes);
                self.push(&format!("'{}'", text.replace('\'', "''")));
            }
            Scalar::Coalesce(parts) => {
                self.push("coalesce(");
                self.list(parts, ", ", Self::scalar);
                self.push(")");
            }
            Scalar::NullIf(_, pair) => {
                self.push("nullif(");
                self.pair(&pair.0, ", ", &pair.1);
                self.push(")");
            }
            Scalar::Case(arms, otherwise) => {
                self.push("case");
                for (condition, result) in arms {
                    self.push(" when ");
                    self.expr(condition);
                    self.push(" then ");
                    self.scalar(result);
                }
                if let Some(otherwise) = otherwise {
                    self.push(" else ");
                    self.scalar(otherwise);
                }
                self.push(" end");
            }
            Scalar::Truth(condition) => {
                self.push("(");
                self.expr(condition);
                self.push(")");
            }
            Scalar::Convert(conversion, inner) => {
                self.push("(");
                self.scalar(inner);
                self.push(")");
                self.push(conversion.suffix());
            }
        }
    }
}
