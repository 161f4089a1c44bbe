//! Three tables, their model as plain lists, and random transactions over both.

use std::sync::Arc;

use bytes::Bytes;

use super::Dice;
use crate::change::{
    Lsn, Relation, RelationColumn, ReplicaIdentity, Timestamp, Transaction, TransactionBuilder, Tuple, Value,
};
use crate::pgtype::{Equality, Order};
use crate::policy::facts::{FactKey, Layout};
use crate::policy::rule::{Kind, RuleColumn};

pub(in crate::policy) type Cell = Option<&'static str>;

/// Two classes of values: texts, and numbers that are equal with different texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::policy) enum Class {
    Text,
    Number,
}

impl Class {
    pub(in crate::policy) fn kind(self) -> Kind {
        match self {
            Class::Text => Kind { oid: 25, equality: Equality::Bytes, order: Some(Order::Bytes) },
            Class::Number => Kind { oid: 1700, equality: Equality::Numeric, order: Some(Order::Numeric) },
        }
    }

    pub(in crate::policy) fn values(self) -> &'static [&'static str] {
        match self {
            Class::Text => &["1", "2", "x"],
            Class::Number => &["1", "1.0", "2"],
        }
    }

    pub(in crate::policy) fn any(self, dice: &mut Dice) -> Cell {
        if dice.one_in(4) { None } else { Some(*dice.pick(self.values())) }
    }
}

pub(in crate::policy) const CLASSES: [&[Class]; 3] =
    [&[Class::Text, Class::Text, Class::Number], &[Class::Text, Class::Number], &[Class::Text, Class::Text]];

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::policy) struct Row {
    pub(in crate::policy) leaf: usize,
    pub(in crate::policy) cells: Vec<Cell>,
}

pub(in crate::policy) struct Table {
    pub(in crate::policy) layout: Arc<Layout>,
    /// One for each leaf, then one for the root if it is another.
    relations: Vec<Arc<Relation>>,
    pub(in crate::policy) rows: Vec<Row>,
}

pub(in crate::policy) struct World {
    pub(in crate::policy) tables: Vec<Table>,
    xid: u32,
}

pub(in crate::policy) fn columns(classes: &[Class]) -> Vec<RuleColumn> {
    let column =
        |(i, class): (usize, &Class)| RuleColumn { name: format!("c{i}"), number: i as i16 + 1, kind: class.kind() };
    classes.iter().enumerate().map(column).collect()
}

/// A relation that has the columns in another order, and one that nobody wants.
fn relation(oid: u32, identity: ReplicaIdentity, classes: &[Class], key: usize, turned: bool) -> Arc<Relation> {
    let full = identity == ReplicaIdentity::Full;
    let column =
        |name: String, type_oid: u32, key: bool| RelationColumn { name, type_oid, type_modifier: -1, key: key || full };
    let mut columns: Vec<RelationColumn> =
        classes.iter().enumerate().map(|(i, class)| column(format!("c{i}"), class.kind().oid, i < key)).collect();
    columns.insert(1, column("other".to_owned(), 17, false));
    if turned {
        columns.reverse();
    }
    Arc::new(Relation { oid, schema: "public".into(), table: format!("t{oid}"), identity, columns })
}

impl World {
    pub(in crate::policy) fn new() -> World {
        let table = |oid: u32, leaves: &[u32], key: FactKey, at: usize| {
            let classes = CLASSES[at];
            let identity = match key {
                FactKey::Whole => ReplicaIdentity::Full,
                FactKey::Columns(_) => ReplicaIdentity::Default,
            };
            let n = if let FactKey::Columns(n) = key { n } else { 0 };
            let layout = Layout {
                table_oid: oid,
                leaves: leaves.to_vec(),
                key,
                columns: columns(classes),
                types: classes.iter().map(|class| class.kind().oid).collect(),
            };
            let turned = |(i, oid): (usize, &u32)| relation(*oid, identity, classes, n, i % 2 == 1);
            let relations = leaves.iter().enumerate().map(turned).collect();
            Table { layout: Arc::new(layout), relations, rows: Vec::new() }
        };
        World {
            tables: vec![
                table(1001, &[1001], FactKey::Columns(2), 0),
                table(1002, &[1002], FactKey::Whole, 1),
                table(1003, &[2001, 2002], FactKey::Columns(1), 2),
            ],
            xid: 100,
        }
    }

    /// The state as rows of each table.
    pub(in crate::policy) fn state(&self) -> Vec<Vec<Row>> {
        self.tables.iter().map(|table| table.rows.clone()).collect()
    }

    /// One transaction, applied to the model.
    pub(in crate::policy) fn transaction(&mut self, dice: &mut Dice) -> Transaction {
        let mut builder = TransactionBuilder::default();
        for _ in 0..1 + dice.roll(5) {
            let table = &mut self.tables[dice.roll(3)];
            table.change(dice, &mut builder);
        }
        self.xid += 1 + dice.roll(3) as u32;
        let end = Lsn(u64::from(self.xid));
        builder.finish(self.xid, end, end, Timestamp(0), None)
    }
}

impl Table {
    fn key(&self) -> usize {
        match self.layout.key {
            FactKey::Columns(n) => n,
            FactKey::Whole => 0,
        }
    }

    fn classes(&self) -> Vec<Class> {
        let class = |column: &RuleColumn| if column.kind.oid == 25 { Class::Text } else { Class::Number };
        self.layout.columns.iter().map(class).collect()
    }

    /// A row that fits: its key is there, and nobody else's.
    fn fresh(&self, dice: &mut Dice, except: Option<usize>) -> Option<Row> {
        let key = self.key();
        let mut cells: Vec<Cell> = self.classes().iter().map(|class| class.any(dice)).collect();
        for (cell, class) in cells.iter_mut().zip(self.classes()).take(key) {
            *cell = Some(*dice.pick(class.values()));
        }
        let leaf = dice.roll(self.layout.leaves.len());
        let taken = |(at, row): (usize, &Row)| key > 0 && Some(at) != except && row.cells[..key] == cells[..key];
        let free = !self.rows.iter().enumerate().any(taken);
        free.then_some(Row { leaf, cells })
    }

    fn change(&mut self, dice: &mut Dice, builder: &mut TransactionBuilder) {
        match dice.roll(12) {
            0..5 => self.insert(dice, builder),
            5..8 if !self.rows.is_empty() => self.update(dice, builder),
            8..11 if !self.rows.is_empty() => {
                let row = self.rows.swap_remove(dice.roll(self.rows.len()));
                self.send(builder, b'D', &row, None, &[]);
            }
            11 if dice.one_in(3) => {
                let leaf = dice.roll(self.layout.leaves.len());
                self.rows.retain(|row| row.leaf != leaf);
                builder.truncate(0, &[self.relations[leaf].clone()]).expect("a truncate");
            }
            _ => self.insert(dice, builder),
        }
    }

    fn insert(&mut self, dice: &mut Dice, builder: &mut TransactionBuilder) {
        if let Some(row) = self.fresh(dice, None) {
            self.send(builder, b'I', &row, None, &[]);
            self.rows.push(row);
        }
    }

    fn update(&mut self, dice: &mut Dice, builder: &mut TransactionBuilder) {
        let at = dice.roll(self.rows.len());
        let Some(mut row) = self.fresh(dice, Some(at)) else { return };
        let old = self.rows[at].clone();
        let key = self.key();
        if dice.one_in(2) {
            row.cells[..key].copy_from_slice(&old.cells[..key]);
        }
        if row.leaf != old.leaf {
            // Across partitions: two changes.
            self.send(builder, b'D', &old, None, &[]);
            self.send(builder, b'I', &row, None, &[]);
        } else {
            // Values that stay may be out of line and not be sent again.
            let unchanged: Vec<usize> =
                (0..row.cells.len()).filter(|i| row.cells[*i] == old.cells[*i] && dice.one_in(2)).collect();
            self.send(builder, b'U', &row, Some(&old), &unchanged);
        }
        self.rows[at] = row;
    }

    /// Writes a change as the server would.
    fn send(&self, builder: &mut TransactionBuilder, tag: u8, row: &Row, old: Option<&Row>, unchanged: &[usize]) {
        let relation = &self.relations[row.leaf];
        let full = relation.identity == ReplicaIdentity::Full;
        let cell = |cells: &[Cell], name: &str, unchanged: &[usize]| -> Value<'static> {
            let Some(at) = name.strip_prefix('c').and_then(|at| at.parse::<usize>().ok()) else {
                return Value::Text(b"whatever");
            };
            match cells[at] {
                _ if unchanged.contains(&at) => Value::Unchanged,
                None => Value::Null,
                Some(text) => Value::Text(text.as_bytes()),
            }
        };
        let mut raw = Vec::new();
        let mut write = |kind: u8, cells: &[Cell], unchanged: &[usize]| {
            raw.push(kind);
            let values: Vec<Value<'_>> = relation
                .columns
                .iter()
                .map(|column| match kind {
                    b'K' if !column.key => Value::Null,
                    _ => cell(cells, &column.name, unchanged),
                })
                .collect();
            Tuple::encode(values.into_iter(), &mut raw);
        };
        let key = self.key();
        let old_kind = if full { b'O' } else { b'K' };
        match (tag, old) {
            (b'D', _) => write(old_kind, &row.cells, &[]),
            (b'U', Some(old)) => {
                let key_sent = old.cells[..key] != row.cells[..key] || unchanged.iter().any(|at| *at < key);
                if full || key_sent {
                    write(old_kind, &old.cells, &[]);
                }
                write(b'N', &row.cells, unchanged);
            }
            _ => write(b'N', &row.cells, &[]),
        }
        builder.row(tag, relation, &Bytes::from(raw)).expect("a row");
    }
}
