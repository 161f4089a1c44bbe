//! What is asked, and the answer: the JSON between the command line and the relay, and how a person reads it.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The body of `POST /why`.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Request {
    /// `schema.table`, or a name in schema `public`.
    pub table: Option<String>,
    /// The primary key of the row as Postgres prints it: values in key order, or `column=value`.
    pub pk: Vec<String>,
    /// The change's `cursor` as clients have it; or its position: `LSN/ordinal` or `LSN#ordinal`; without an ordinal, all of its
    /// transaction.
    pub cursor: Option<String>,
    /// The token's `sub`.
    pub user: Option<String>,
    /// Instead of `user`: the token itself. It may have expired.
    pub token: Option<String>,
    /// The token's `role`, beside `user`.
    pub role: Option<String>,
    /// Only changes of the last so many seconds.
    pub since_seconds: Option<u64>,
    /// Whether values of the row may be in the answer.
    pub show_row: bool,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Whether the question is answered: for each change found it is known what became of it, or that there is none.
    pub answered: bool,
    /// `schema.table`.
    pub table: Option<String>,
    /// The token's `sub`.
    pub user: String,
    /// The token's `role`, if one was asked about.
    pub role: Option<String>,
    /// What was looked through for the row.
    pub searched: String,
    /// From when on there is evidence of what happened.
    pub evidence: String,
    /// What must be known to read the rest.
    pub remarks: Vec<String>,
    /// The changes of the row, oldest first.
    pub changes: Vec<Explained>,
}

/// What became of one change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// `LSN/ordinal`.
    pub position: String,
    /// `schema.table`.
    pub table: String,
    /// `INSERT`, `UPDATE` or `DELETE`.
    pub kind: String,
    /// When it was committed, by the database's clock.
    pub committed_at: String,
    /// The row, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row: Option<Map<String, Value>>,
    /// One question after the other, up to the one that decides.
    pub steps: Vec<Step>,
    /// What became of it.
    pub outcome: Outcome,
    /// Why, in a sentence.
    pub because: String,
}

/// A question on the way of the row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// `published`, `subscribed`, `filter`, `rights_now`, `rights_then`, `delivery`.
    pub question: String,
    /// `yes`, `no` or `unknown`.
    pub says: Says,
    /// In a sentence.
    pub text: String,
}

/// The answer to one question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Says {
    /// It was so.
    Yes,
    /// It was not so.
    No,
    /// There is no evidence, or not enough.
    Unknown,
}

/// What became of a change for this user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was put on a connection of his.
    Sent,
    /// He was told that something is missing instead.
    ToldOfGap,
    /// It has not been judged yet.
    Waiting,
    /// It was not sent.
    NotSent,
    /// What is left of the evidence does not say.
    Unknown,
}

impl Outcome {
    fn words(self) -> &'static str {
        match self {
            Outcome::Sent => "SENT",
            Outcome::ToldOfGap => "NOT SENT, TOLD OF A GAP",
            Outcome::Waiting => "WAITS",
            Outcome::NotSent => "NOT SENT",
            Outcome::Unknown => "NOT KNOWN",
        }
    }
}

impl Step {
    pub(super) fn new(question: &str, says: Says, text: impl Into<String>) -> Step {
        Step { question: question.into(), says, text: text.into() }
    }
}

impl Answer {
    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let who = match (&*self.user, &self.role) {
            ("", Some(role)) => format!("role {role}"),
            (user, Some(role)) => format!("user {user} ({role})"),
            (user, None) => format!("user {user}"),
        };
        let table = self.table.as_deref().map(|table| format!(" of {table}")).unwrap_or_default();
        let _ = writeln!(text, "Changes{table}, and what became of them for {who}");
        let _ = writeln!(text, "  searched: {}", self.searched);
        let _ = writeln!(text, "  evidence: {}", self.evidence);
        for remark in &self.remarks {
            let _ = writeln!(text, "  remark:   {remark}");
        }
        for change in &self.changes {
            change.write(&mut text);
        }
        text
    }
}

impl Explained {
    fn write(&self, text: &mut String) {
        let _ = writeln!(text, "\n{} at {}, committed {}", self.kind, self.position, self.committed_at);
        if let Some(row) = &self.row {
            let _ = writeln!(text, "  row: {}", Value::Object(row.clone()));
        }
        for Step { question, says, text: answer } in &self.steps {
            let mark = match says {
                Says::Yes => "yes",
                Says::No => "no",
                Says::Unknown => "?",
            };
            let _ = writeln!(text, "  {:<12} {mark:<4} {answer}", question.replace('_', " "));
        }
        let _ = writeln!(text, "  → {}: {}", self.outcome.words(), self.because);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_reads_from_the_question_to_the_outcome() {
        let change = Explained {
            position: "0/10/3".into(),
            table: "public.t".into(),
            kind: "INSERT".into(),
            committed_at: "2026-01-01T00:00:00.000Z".into(),
            row: None,
            steps: vec![Step::new("rights_now", Says::No, "the policy says no")],
            outcome: Outcome::NotSent,
            because: "he may not see it".into(),
        };
        let answer = Answer { user: "alice".into(), changes: vec![change], ..Answer::default() };
        let text = answer.text();
        assert!(text.starts_with("Changes, and what became of them for user alice\n"), "{text}");
        assert!(text.contains("\nINSERT at 0/10/3, committed 2026"), "{text}");
        assert!(text.contains("\n  rights now   no   the policy says no\n"), "{text}");
        assert!(text.ends_with("  → NOT SENT: he may not see it\n"), "{text}");
        let json = serde_json::to_string(&answer).unwrap();
        assert_eq!(serde_json::from_str::<Answer>(&json).unwrap(), answer);
        assert!(json.contains(r#""outcome":"not_sent""#) && !json.contains("row\""), "{json}");
    }
}
