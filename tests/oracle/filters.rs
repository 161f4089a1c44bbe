//! Generated filters, each written twice: as a phone writes it, and as SQL.

use super::column::quote;
use super::dice::Dice;
use super::table::{Row, Table};

#[derive(Debug, Clone)]
enum Operand {
    One(String),
    List(Vec<Option<String>>),
}

#[derive(Debug, Clone)]
pub(super) struct Condition {
    pub(super) column: String,
    pub(super) operator: &'static str,
    pub(super) negated: bool,
    operand: Operand,
    /// In quotes although it need not be.
    quoted: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Filter(pub(super) Vec<Condition>);

const OPERATORS: [&str; 13] =
    ["eq", "neq", "lt", "lte", "gt", "gte", "in", "like", "ilike", "is", "match", "imatch", "isdistinct"];

impl Filter {
    pub(super) fn generate(dice: &mut Dice, table: &Table, rows: &[Row]) -> Filter {
        let count = if dice.percent(70) { 1 } else { 2 + dice.below(2) };
        Filter((0..count).map(|_| Condition::generate(dice, table, rows)).collect())
    }

    /// As a phone writes it.
    pub(super) fn text(&self) -> String {
        self.0.iter().map(Condition::text).collect::<Vec<_>>().join(",")
    }

    /// What a row must answer.
    pub(super) fn sql(&self, table: &Table) -> String {
        let conditions: Vec<String> = self.0.iter().map(|condition| condition.sql(table)).collect();
        format!("coalesce({}, false)", conditions.join(" and "))
    }

    pub(super) fn reads(&self, column: &str) -> bool {
        self.0.iter().any(|condition| condition.column == column)
    }
}

impl Condition {
    fn generate(dice: &mut Dice, table: &Table, rows: &[Row]) -> Condition {
        let index = dice.below(table.columns.len());
        let column = &table.columns[index];
        let literal = |dice: &mut Dice| {
            // One that some row has, or anything.
            let known = if dice.percent(45) { dice.one(rows)[index].clone() } else { None };
            known.unwrap_or_else(|| column.kind.literal(dice))
        };
        // Not evenly: what a type has at all is worth more tries than what it lacks.
        let operator = loop {
            let operator = *dice.one(&OPERATORS);
            let pattern = matches!(operator, "like" | "ilike" | "match" | "imatch");
            if !pattern || column.kind.textual || dice.percent(8) {
                break operator;
            }
        };
        let operand = match operator {
            "in" => {
                let element = |dice: &mut Dice| (!dice.percent(15)).then(|| literal(dice));
                Operand::List((0..dice.below(4)).map(|_| element(dice)).collect())
            }
            "is" if column.kind.sql == "bool" => {
                Operand::One((*dice.one(&["null", "true", "false", "unknown"])).into())
            }
            "is" => Operand::One((*dice.one(&["null", "null", "null", "null", "true"])).into()),
            _ => Operand::One(literal(dice)),
        };
        Condition {
            column: column.name.clone(),
            operator,
            negated: dice.percent(35),
            operand,
            quoted: dice.percent(20),
        }
    }

    fn text(&self) -> String {
        let (column, operator, not) = (&self.column, self.operator, if self.negated { "not." } else { "" });
        let value = match &self.operand {
            Operand::One(value) if self.quoted || !is_plain(value) => escaped(value),
            Operand::One(value) => value.clone(),
            Operand::List(values) => {
                let element = |value: &Option<String>| match value {
                    None => "null".to_owned(),
                    Some(value) if self.quoted || !is_plain_element(value) => escaped(value),
                    Some(value) => value.clone(),
                };
                format!("({})", values.iter().map(element).collect::<Vec<_>>().join(","))
            }
        };
        format!("{column}={not}{operator}.{value}")
    }

    fn sql(&self, table: &Table) -> String {
        let column = &table.columns[table.find(&self.column)];
        let (name, of) = (column.quoted(), column.kind.cast);
        let one = |text: &str| format!("{}::{of}", quote(text));
        let truth = match (&self.operand, self.operator) {
            (Operand::One(value), "is") => {
                return format!("({name} is {}{value})", if self.negated { "not " } else { "" });
            }
            (Operand::One(value), "isdistinct") => format!("{name} is distinct from {}", one(value)),
            (Operand::One(value), operator) => format!("{name} {} {}", sign(operator), one(value)),
            (Operand::List(values), _) => {
                let element = |value: &Option<String>| value.as_deref().map_or_else(|| "null".to_owned(), escaped);
                let elements: Vec<String> = values.iter().map(element).collect();
                format!("{name} = any ({}::{of}[])", quote(&format!("{{{}}}", elements.join(","))))
            }
        };
        if self.negated { format!("(not ({truth}))") } else { format!("({truth})") }
    }

    /// Whether it is a pattern whose last character would need another one behind it.
    pub(super) fn ends_with_escape(&self) -> bool {
        let pattern = self.literal().filter(|_| matches!(self.operator, "like" | "ilike"));
        pattern.is_some_and(|text| text.chars().rev().take_while(|c| *c == '\\').count() % 2 == 1)
    }

    /// The one value, if it is one.
    pub(super) fn literal(&self) -> Option<&str> {
        match &self.operand {
            Operand::One(value) => Some(value),
            Operand::List(_) => None,
        }
    }
}

fn sign(operator: &str) -> &str {
    match operator {
        "eq" => "=",
        "neq" => "<>",
        "lt" => "<",
        "lte" => "<=",
        "gt" => ">",
        "gte" => ">=",
        "like" => "like",
        "ilike" => "ilike",
        "match" => "~",
        "imatch" => "~*",
        other => panic!("{other} has no sign"),
    }
}

/// Means itself without quotes. Blanks at the ends would be trimmed at the end of a filter.
fn is_plain(value: &str) -> bool {
    let special = |c: char| matches!(c, ',' | '(' | ')');
    value.trim() == value && !value.contains(special) && !value.starts_with('"') && !value.contains(".\"")
}

fn is_plain_element(value: &str) -> bool {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | ':' | '+' | '_' | '%' | '@');
    !value.is_empty() && value.chars().all(plain) && !value.eq_ignore_ascii_case("null")
}

/// The same escapes serve the filter language and Postgres's array literals.
fn escaped(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}
