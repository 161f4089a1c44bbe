//! A generated table, and the statements that make it.

use super::column::{self, Column, KINDS, is_out_of_line, quote};
use super::dice::Dice;
use super::policies::Policy;

/// Column 0 is `n`, the number of the image; column 1 is the key.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) columns: Vec<Column>,
    /// Indexes.
    pub(super) key: Vec<usize>,
    pub(super) identity: Identity,
    pub(super) row_security: bool,
    pub(super) policies: Vec<Policy>,
    /// What role `clerk` may read, by index.
    pub(super) clerk: Vec<bool>,
}

/// What is logged of an old row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Identity {
    /// The primary key.
    Default,
    Full,
    /// Column `n`.
    Index,
}

/// Input literals; `None` is NULL.
pub(super) type Row = Vec<Option<String>>;

const NAMES: [&str; 10] = ["c1", "c2", "Mixed", "two words", "ünï", "c6", "c7", "select", "c9", "c10"];

impl Table {
    pub(super) fn generate(dice: &mut Dice) -> Table {
        let mut columns = vec![Column::new("n", &column::N), Column::new("id", dice.one(&column::KEYS))];
        let mut key = vec![1];
        if dice.percent(25) {
            columns.push(Column::new("id2", dice.one(&column::KEYS)));
            key.push(2);
        }
        columns.push(Column::new("owner", &column::OWNER));
        columns.push(Column::new("owner_text", dice.one(&column::OWNER_TEXTS)));
        columns.push(Column::new("owner_other", dice.one(&column::OTHER_OWNERS)));
        columns.push(Column::new("org", dice.one(&column::ORGS)));
        columns.push(Column::new("flag", &column::FLAG));
        let others = 2 + dice.below(5);
        columns.extend(NAMES[..others].iter().map(|name| Column::new(name, dice.one(KINDS))));
        if dice.percent(15) {
            // A key that is an owner too, so that a key-only old row can be judged.
            key.push(columns.iter().position(|c| c.name == "owner").expect("it is there"));
        }
        let clerk =
            (0..columns.len()).map(|i| i == 0 || dice.percent(if key.contains(&i) { 92 } else { 65 })).collect();
        let policies = Policy::generate_all(dice, &columns);
        let identity = match dice.below(20) {
            0..=10 => Identity::Full,
            11 | 12 => Identity::Index,
            _ => Identity::Default,
        };
        Table { columns, key, identity, row_security: dice.percent(88), policies, clerk }
    }

    /// A row with this image number. NULLs everywhere but in the key.
    pub(super) fn row(&self, dice: &mut Dice, n: usize) -> Row {
        let value = |(index, column): (usize, &Column)| {
            let nullable = !self.key.contains(&index);
            (!(nullable && dice.percent(14))).then(|| column.kind.value(dice))
        };
        let mut row: Row = self.columns.iter().enumerate().map(value).collect();
        row[0] = Some(n.to_string());
        row
    }

    pub(super) fn same_key(&self, a: &Row, b: &Row) -> bool {
        self.key.iter().all(|i| a[*i] == b[*i])
    }

    pub(super) fn find(&self, name: &str) -> usize {
        self.columns.iter().position(|c| c.name == name).expect("a column of the table")
    }

    pub(super) fn is_full(&self) -> bool {
        self.identity == Identity::Full
    }

    /// The columns that say which row it is, and are logged of an old one at least.
    pub(super) fn identity_columns(&self) -> Vec<usize> {
        match self.identity {
            Identity::Default | Identity::Full => self.key.clone(),
            Identity::Index => vec![0],
        }
    }

    /// The published table.
    pub(super) fn create(&self, name: &str) -> String {
        let key: Vec<String> = self.key.iter().map(|i| self.columns[*i].quoted()).collect();
        let mut sql = self.body(name, &format!(", primary key ({})", key.join(", ")));
        match self.identity {
            Identity::Default => {}
            Identity::Full => sql.push_str(&format!("alter table public.{name} replica identity full;\n")),
            Identity::Index => sql.push_str(&format!(
                "alter table public.{name} alter n set not null; create unique index {name}_n on public.{name} (n);\n\
                 alter table public.{name} replica identity using index {name}_n;\n"
            )),
        }
        sql.push_str(&format!("alter publication supabase_realtime add table public.{name};\n"));
        sql
    }

    /// A table of the same columns, grants and policies that holds all images side by side, and is not published.
    pub(super) fn create_images(&self, name: &str) -> String {
        self.body(name, "")
    }

    fn body(&self, name: &str, constraint: &str) -> String {
        let declared = |c: &Column| format!("{} {}", c.quoted(), c.kind.sql);
        let columns: Vec<String> = self.columns.iter().map(declared).collect();
        let granted: Vec<String> =
            self.columns.iter().zip(&self.clerk).filter(|(_, may)| **may).map(|(c, _)| c.quoted()).collect();
        let mut sql = format!(
            "create table public.{name} ({}{constraint});\n\
             grant select on public.{name} to authenticated, anon, service_role;\n\
             grant select ({}) on public.{name} to clerk;\n",
            columns.join(", "),
            granted.join(", ")
        );
        for column in self.columns.iter().filter(|column| column.kind.large) {
            sql.push_str(&format!("alter table public.{name} alter {} set storage external;\n", column.quoted()));
        }
        if self.row_security {
            sql.push_str(&format!("alter table public.{name} enable row level security;\n"));
        }
        for (i, policy) in self.policies.iter().enumerate() {
            sql.push_str(&policy.create(&format!("p{i}"), name));
        }
        sql
    }

    pub(super) fn insert(&self, name: &str, rows: &[&Row]) -> String {
        let columns: Vec<String> = self.columns.iter().map(Column::quoted).collect();
        let row = |row: &&Row| format!("({})", self.literals(row).join(", "));
        let rows: Vec<String> = rows.iter().map(row).collect();
        format!("insert into public.{name} ({}) values\n  {};\n", columns.join(", "), rows.join(",\n  "))
    }

    /// Each value as an SQL literal.
    pub(super) fn literals(&self, row: &Row) -> Vec<String> {
        let literal = |text: &String| match text.chars().next() {
            Some(only) if is_out_of_line(Some(text)) => format!("repeat('{only}', {})", text.len()),
            _ => quote(text),
        };
        row.iter().map(|value| value.as_ref().map_or_else(|| "null".to_owned(), literal)).collect()
    }

    /// Without a column that nothing needs.
    pub(super) fn without(&self, index: usize) -> Option<Table> {
        let name = &self.columns[index].name;
        let needed = index == 0 || self.key.contains(&index);
        if needed || self.policies.iter().any(|policy| policy.reads(name)) {
            return None;
        }
        let mut table = self.clone();
        table.columns.remove(index);
        table.clerk.remove(index);
        for key in &mut table.key {
            *key -= usize::from(*key > index);
        }
        Some(table)
    }
}
