//! Which columns of a table are facts, and how its rows are told apart.

use std::collections::BTreeSet;

use crate::catalog::{OldImage, Table};
use crate::change::ReplicaIdentity;
use crate::pgtype::{Types, equality, order};
use crate::policy::rule::{Kind, RuleColumn};

/// Which columns of a table are kept and how its rows are identified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// `pg_class.oid`; of the root if it is partitioned.
    pub table_oid: u32,
    /// Oids of the tables that hold its rows; itself if it is not partitioned.
    pub leaves: Vec<u32>,
    /// How a row is identified.
    pub key: FactKey,
    /// What is kept: the key's columns first, in key order, then the others by number.
    pub columns: Vec<RuleColumn>,
    /// `pg_type.oid` of each column as the stream describes it: a domain's own.
    pub types: Vec<u32>,
}

/// How a row is identified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FactKey {
    /// By the first n columns, which are unique: the primary key or the identity index.
    Columns(usize),
    /// By all that is kept of it (REPLICA IDENTITY FULL). Equal rows are counted.
    Whole,
}

impl Layout {
    /// The layout for the columns of these numbers; or why the table can't be one of facts.
    pub fn of(table: &Table, types: &Types, wanted: &BTreeSet<i16>) -> Result<Layout, String> {
        if table.is_partitioned && table.published.as_ref().is_some_and(|published| published.via_root) {
            return Err("it is published via its root, which hides a TRUNCATE of one partition".to_owned());
        }
        let names = key_of(table)?;
        let mut columns: Vec<i16> = Vec::with_capacity(names.len() + wanted.len());
        for name in names {
            let column = table.column(name).ok_or_else(|| format!("its key column {name} is not known"))?;
            columns.push(column.number);
        }
        let key = if names.is_empty() { FactKey::Whole } else { FactKey::Columns(columns.len()) };
        let others = wanted.iter().filter(|number| !columns.contains(number)).copied();
        let numbers: Vec<i16> = columns.iter().copied().chain(others).collect();
        let mut layout =
            Layout { table_oid: table.oid, leaves: table.leaves.clone(), key, columns: Vec::new(), types: Vec::new() };
        for number in numbers {
            let column = table.columns.iter().find(|column| column.number == number);
            let column = column.ok_or_else(|| format!("column number {number} does not exist"))?;
            let name = &column.name;
            if column.generated {
                return Err(format!("column {name} is generated, so the stream does not have it"));
            }
            let equality = equality(types, column.type_oid, column.collation_deterministic)
                .ok_or_else(|| format!("values of column {name} can't be compared by their text"))?;
            let bytewise = column.collation.as_ref().is_none_or(|collation| collation.bytewise);
            let order = order(types, column.type_oid, bytewise);
            let kind = Kind { oid: types.base_of(column.type_oid), equality, order };
            layout.columns.push(RuleColumn { name: name.clone(), number, kind });
            layout.types.push(column.type_oid);
        }
        if layout.leaves.len() >= usize::from(u16::MAX) {
            return Err(format!("it has {} partitions", layout.leaves.len()));
        }
        if layout.leaves.is_empty() && !table.is_partitioned {
            layout.leaves.push(table.oid);
        }
        Ok(layout)
    }

    /// How many columns identify a row.
    pub(super) fn key_columns(&self) -> usize {
        match self.key {
            FactKey::Columns(n) => n,
            FactKey::Whole => self.columns.len(),
        }
    }

    /// The place of a partition among the leaves.
    pub(super) fn leaf(&self, oid: u32) -> Option<u16> {
        self.leaves.iter().position(|leaf| *leaf == oid).map(|place| place as u16)
    }

    /// Index of the column with this number.
    pub(super) fn column(&self, number: i16) -> Option<usize> {
        self.columns.iter().position(|column| column.number == number)
    }
}

/// Names of the columns that old rows hold for sure and that identify a row; none where old rows are complete.
fn key_of(table: &Table) -> Result<&[String], String> {
    let pk = || match table.primary_key.is_empty() {
        true => Err("it has no primary key".to_owned()),
        false => Ok(&table.primary_key[..]),
    };
    match (table.old_image, table.identity) {
        (OldImage::Nothing, _) => Err("its partitions log different columns of old rows".to_owned()),
        (OldImage::PrimaryKey, _) => pk(),
        (OldImage::AsSent, ReplicaIdentity::Full) => Ok(&[]),
        (OldImage::AsSent, ReplicaIdentity::Default) => pk(),
        (OldImage::AsSent, ReplicaIdentity::Index) if !table.identity_columns.is_empty() => Ok(&table.identity_columns),
        (OldImage::AsSent, ReplicaIdentity::Index | ReplicaIdentity::Nothing) => {
            Err("it has no replica identity".to_owned())
        }
    }
}
