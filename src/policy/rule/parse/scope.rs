//! Which names mean what, where the text stands: levels of sub-selects from the inside out, then a function's arguments.

use sqlparser::ast::Ident;

use super::typed::{Typed, Val};
use super::{Compiler, Names, NotPure, Result, not_pure};
use crate::catalog::Table;
use crate::pgtype::oid;
use crate::policy::rule::Scalar;

/// Where a text stands: the names it sees and the role it runs as.
#[derive(Clone)]
pub(super) struct Env<'a> {
    /// Sub-selects, innermost last.
    pub(super) levels: Vec<Vec<Item<'a>>>,
    /// Who runs it.
    pub(super) role: &'a str,
    /// Functions that a policy really refers to: a name in its text may have been taken by another one since. `None` in the
    /// body of a function, where a name means what it means now.
    pub(super) functions: Names<'a>,
    /// The text is the source of a function: its literals have no types yet, its names are looked up when it runs.
    pub(super) source: bool,
    /// The schemas of the function's own search_path.
    pub(super) search_path: Option<&'a [String]>,
}

/// Something in FROM, or the arguments of a function.
#[derive(Clone)]
pub(super) struct Item<'a> {
    /// The alias, or the table's own name.
    pub(super) name: String,
    pub(super) columns: Columns<'a>,
}

#[derive(Clone)]
pub(super) enum Columns<'a> {
    /// Of a table; `names` are other names for its first columns. `checked`: the reader needs the privilege to read them.
    Table { slot: u16, table: &'a Table, names: Vec<String>, checked: bool },
    /// With values from elsewhere.
    Values(Vec<(String, Typed)>),
}

impl<'a> Env<'a> {
    pub(super) fn nothing(role: &'a str) -> Env<'a> {
        Env { levels: Vec::new(), role, functions: None, source: false, search_path: None }
    }

    /// A policy's text sees its own table and nothing else; it needs no privilege for it.
    pub(super) fn of_policy(
        role: &'a str,
        functions: &'a std::collections::BTreeSet<u32>,
        slot: u16,
        table: &'a Table,
    ) -> Env<'a> {
        let columns = Columns::Table { slot, table, names: Vec::new(), checked: false };
        let item = Item { name: table.name.clone(), columns };
        Env { levels: vec![vec![item]], functions: Some(functions), ..Env::nothing(role) }
    }
}

/// A column that was found, before it is noted that it is read.
enum Found<'a> {
    Column { slot: u16, table: &'a Table, place: usize, checked: bool },
    Value(Typed),
}

impl<'a> Compiler<'a> {
    /// `name` or `item.name`.
    pub(super) fn column(&mut self, parts: &[Ident]) -> Result<Typed> {
        let shown = || parts.iter().map(Ident::to_string).collect::<Vec<_>>().join(".");
        let names: Option<Vec<&str>> = parts.iter().map(identifier).collect();
        let found = match names.as_deref() {
            Some([name]) => self.find(None, name)?,
            Some([item, name]) => self.find(Some(item), name)?,
            _ => None,
        };
        if let [only] = parts
            && only.quote_style.is_none()
            && only.value.eq_ignore_ascii_case("current_role")
        {
            return Ok(Typed::constant(oid::NAME, self.env.role));
        }
        match found {
            Some(Found::Column { slot, table, place, checked }) => self.read_column(slot, table, place, checked),
            Some(Found::Value(typed)) => {
                self.element_reads += usize::from(matches!(typed.val, Val::Element(_)));
                Ok(typed)
            }
            None => not_pure("a name that is not a column", shown()),
        }
    }

    fn read_column(&mut self, slot: u16, table: &'a Table, place: usize, checked: bool) -> Result<Typed> {
        let column = &table.columns[place];
        if slot > 0 && column.generated {
            return Err(NotPure(format!(
                "{}.{} is a generated column, which the stream does not carry",
                table.name, column.name
            )));
        }
        if checked {
            self.privileges.entry(slot).or_default().insert(column.number);
        }
        let ty = self.column_type(column);
        let reference = self.column_ref(slot, column)?;
        Ok(Typed { ty, val: Val::Scalar(Scalar::Column(reference)) })
    }

    fn find(&self, item: Option<&str>, name: &str) -> Result<Option<Found<'a>>> {
        for level in self.env.levels.iter().rev() {
            let mut found = level.iter().filter(|i| item.is_none_or(|item| i.name == item)).filter_map(|i| i.get(name));
            match (found.next(), found.next()) {
                (Some(found), None) => return Ok(Some(found)),
                (Some(_), Some(_)) => return Err(NotPure(format!("`{name}` may mean several columns"))),
                (None, _) => {}
            }
        }
        Ok(None)
    }
}

impl<'a> Item<'a> {
    fn get(&self, name: &str) -> Option<Found<'a>> {
        match &self.columns {
            Columns::Table { slot, table, names, checked } => {
                let called = |(place, column): (usize, &crate::catalog::Column)| {
                    names.get(place).map_or(column.name == name, |own| own == name)
                };
                let place = table.columns.iter().enumerate().position(called)?;
                Some(Found::Column { slot: *slot, table, place, checked: *checked })
            }
            Columns::Values(values) => {
                values.iter().find(|(own, _)| own == name).map(|(_, typed)| Found::Value(typed.clone()))
            }
        }
    }
}

/// The name that Postgres means: an unquoted one is folded to lower case, and must be a plain one.
pub(super) fn identifier(ident: &Ident) -> Option<&str> {
    let plain = |text: &str| {
        text.bytes().enumerate().all(|(i, b)| matches!(b, b'a'..=b'z' | b'_') || (i > 0 && b.is_ascii_digit()))
    };
    match ident.quote_style {
        Some('"') => Some(&ident.value),
        None if plain(&ident.value) => Some(&ident.value),
        _ => None,
    }
}
