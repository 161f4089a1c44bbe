//! Terms for people.

use std::fmt;

use crate::policy::bodies;

use super::{Elements, Setting, Term, TermType};

impl fmt::Display for TermType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TermType::Text => f.write_str("text"),
            TermType::Uuid => f.write_str("uuid"),
            TermType::Int(size) => write!(f, "int{size}"),
            TermType::Bool => f.write_str("bool"),
            TermType::Numeric => f.write_str("numeric"),
            TermType::Json => f.write_str("json"),
            TermType::Jsonb => f.write_str("jsonb"),
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(call) = bodies::call_of(self) {
            return f.write_str(call);
        }
        let arrow = |as_text: &bool| if *as_text { "->>" } else { "->" };
        match self {
            Term::Setting(Setting::Claims) => f.write_str("claims"),
            Term::Setting(Setting::Subject) => f.write_str("claim.sub"),
            Term::Setting(Setting::Role) => f.write_str("claim.role"),
            Term::Text(text) => write!(f, "'{text}'"),
            Term::NullIfEmpty(inner) => write!(f, "nullif({inner}, '')"),
            Term::Coalesce(terms) => {
                f.write_str("coalesce(")?;
                for (i, term) in terms.iter().enumerate() {
                    write!(f, "{}{term}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str(")")
            }
            Term::Member(from, key) => write!(f, "{from}->'{key}'"),
            Term::MemberText(from, key) => write!(f, "{from}->>'{key}'"),
            Term::Index(from, index, as_text) => write!(f, "{from}{}{index}", arrow(as_text)),
            Term::Path(from, path, as_text) => {
                write!(f, "{from}{}'{{{}}}'", if *as_text { "#>>" } else { "#>" }, path.join(","))
            }
            Term::Contains(from, constant) => write!(f, "({from} @> '{constant}')"),
            Term::Equals(from, constant) => write!(f, "({from} = '{constant}')"),
            Term::Elements(from, Elements::Texts) => write!(f, "elements({from})"),
            Term::Elements(from, Elements::Keys) => write!(f, "keys({from})"),
            Term::Elements(from, Elements::Strings | Elements::StringsOfArray) => write!(f, "strings({from})"),
            Term::Elements(from, Elements::Numbers | Elements::NumbersOfArray) => write!(f, "numbers({from})"),
            Term::Split(from, separator) => write!(f, "split({from}, '{separator}')"),
            Term::Cast(inner, to) => write!(f, "({inner})::{to}"),
        }
    }
}
