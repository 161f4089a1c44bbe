//! What was found: one thing each, with what it means and what mends it.

use std::fmt;

use serde::Serialize;

/// How bad it is. The order is from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing is wrong.
    Note,
    /// Works, and will hurt somebody some day.
    Warning,
    /// The relay does not work, or somebody's rows are not sent, or the writers fail.
    Error,
}

impl Severity {
    /// A stable lower-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// What sort of thing a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SubjectKind {
    /// A setting of the relay.
    Setting,
    /// The machine that `doctor` runs on.
    Machine,
    /// The database server, or the way to it.
    Server,
    /// A replication slot.
    Slot,
    /// A role.
    Role,
    /// Schema `rowcast`.
    Schema,
    /// A publication.
    Publication,
    /// A table.
    Table,
}

/// What a finding is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Subject {
    /// Its sort.
    pub kind: SubjectKind,
    /// Its name, unquoted; `schema.name` for a table, empty for the server and the machine.
    pub name: String,
    /// Of a finding about one role's view of a table: the role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
}

impl Subject {
    /// Of a sort, by name.
    pub fn new(kind: SubjectKind, name: impl Into<String>) -> Subject {
        Subject { kind, name: name.into(), role: None }
    }

    pub(super) fn server() -> Subject {
        Subject::new(SubjectKind::Server, "")
    }

    pub(super) fn machine() -> Subject {
        Subject::new(SubjectKind::Machine, "")
    }

    pub(super) fn role(name: &str) -> Subject {
        Subject::new(SubjectKind::Role, name)
    }

    pub(super) fn table(schema: &str, name: &str) -> Subject {
        Subject::new(SubjectKind::Table, format!("{schema}.{name}"))
    }

    pub(super) fn seen_by(mut self, role: &str) -> Subject {
        self.role = Some(role.to_owned());
        self
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            SubjectKind::Setting => write!(f, "setting {}", self.name),
            SubjectKind::Machine => f.write_str("this machine"),
            SubjectKind::Server => f.write_str("server"),
            SubjectKind::Slot => write!(f, "slot {}", self.name),
            SubjectKind::Role => write!(f, "role {}", self.name),
            SubjectKind::Schema => write!(f, "schema {}", self.name),
            SubjectKind::Publication => write!(f, "publication {}", self.name),
            SubjectKind::Table => write!(f, "table {}", self.name),
        }
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which check found it: a stable name.
    pub check: &'static str,
    /// How bad.
    pub severity: Severity,
    /// About what.
    pub subject: Subject,
    /// What is so.
    pub what: String,
    /// Why it matters; empty for what is as it should be.
    pub why: String,
    /// The SQL that mends it, one statement a line.
    pub sql: Option<String>,
    /// What else there is to do: a setting, a command, a decision.
    pub todo: Option<String>,
}

impl Finding {
    fn new(severity: Severity, check: &'static str, subject: Subject, what: impl Into<String>) -> Finding {
        Finding { check, severity, subject, what: what.into(), why: String::new(), sql: None, todo: None }
    }

    pub(super) fn ok(check: &'static str, subject: Subject, what: impl Into<String>) -> Finding {
        Finding::new(Severity::Ok, check, subject, what)
    }

    pub(super) fn note(check: &'static str, subject: Subject, what: impl Into<String>) -> Finding {
        Finding::new(Severity::Note, check, subject, what)
    }

    pub(super) fn warning(check: &'static str, subject: Subject, what: impl Into<String>) -> Finding {
        Finding::new(Severity::Warning, check, subject, what)
    }

    pub(super) fn error(check: &'static str, subject: Subject, what: impl Into<String>) -> Finding {
        Finding::new(Severity::Error, check, subject, what)
    }

    pub(super) fn why(mut self, why: impl Into<String>) -> Finding {
        self.why = why.into();
        self
    }

    pub(super) fn sql(mut self, sql: impl Into<String>) -> Finding {
        self.sql = Some(sql.into());
        self
    }

    pub(super) fn todo(mut self, todo: impl Into<String>) -> Finding {
        self.todo = Some(todo.into());
        self
    }
}

/// The worst of them.
pub fn worst(findings: &[Finding]) -> Severity {
    findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
}

/// A name as SQL wants it: quoted where it must be.
pub(super) fn ident(name: &str) -> String {
    let plain = |(i, b): (usize, u8)| matches!(b, b'a'..=b'z' | b'_') || (i > 0 && b.is_ascii_digit());
    if !name.is_empty() && name.bytes().enumerate().all(plain) && !RESERVED.split(' ').any(|word| word == name) {
        return name.to_owned();
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `schema.name`, quoted where it must be.
pub(super) fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", ident(schema), ident(name))
}

/// A text as an SQL literal.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A number of bytes, for people.
pub(super) fn size(bytes: i64) -> String {
    let units = [("GiB", 1_i64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => {
            let tenths = i128::from(bytes) * 10 / i128::from(*unit);
            if tenths % 10 == 0 {
                format!("{} {name}", tenths / 10)
            } else {
                format!("{}.{} {name}", tenths / 10, tenths % 10)
            }
        }
        None => format!("{bytes} bytes"),
    }
}

/// Words that no table or role can be called by without quotes, in any supported version.
const RESERVED: &str = "all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate \
    collation column concurrently constraint create cross current_catalog current_date current_role \
    current_schema current_time current_timestamp current_user default deferrable desc distinct do else end \
    except false fetch for foreign freeze from full grant group having ilike in initially inner intersect into \
    is isnull join lateral leading left like limit localtime localtimestamp natural not notnull null offset on \
    only or order outer overlaps placing primary references returning right select session_user similar some \
    symmetric system_user table tablesample then to trailing true union unique user using variadic verbose when \
    where with";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_where_sql_wants_it() {
        for (name, quoted) in [
            ("orders", "orders"),
            ("order", "\"order\""),
            ("Order", "\"Order\""),
            ("a\"b", "\"a\"\"b\""),
            ("7x", "\"7x\""),
        ] {
            assert_eq!(ident(name), quoted);
        }
    }

    #[test]
    fn sizes_are_for_people() {
        for (bytes, text) in [(7, "7 bytes"), (1 << 20, "1 MiB"), (3 << 29, "1.5 GiB"), (i64::MAX, "8589934591.9 GiB")]
        {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn the_worst_of_nothing_is_fine() {
        assert_eq!(worst(&[]), Severity::Ok);
        let findings = [
            Finding::note("a", Subject::server(), ""),
            Finding::error("b", Subject::server(), ""),
            Finding::warning("c", Subject::server(), ""),
        ];
        assert_eq!(worst(&findings), Severity::Error);
    }
}
