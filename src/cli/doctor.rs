//! `rowcast doctor`: what was found, for a person or as JSON, and an exit code.

use std::fmt::Write as _;
use std::io::IsTerminal as _;

use super::args::DoctorArgs;
use super::{Environment, Failure};
use crate::clock::Clock;
use crate::doctor::{self, Finding, Severity};

/// Columns of text beside the severity.
const WIDTH: usize = 100;
/// Where the text begins: two blanks, the longest severity, two blanks.
const INDENT: usize = 11;

pub(super) async fn doctor(args: &DoctorArgs, environment: &Environment) -> Result<(), Failure> {
    let settings = environment.settings(args.settings.config.as_deref(), &args.settings.flags())?;
    let (config, mut findings) = doctor::usable(&settings, &environment.data_dir());
    if let Some(config) = config {
        findings.extend(Box::pin(doctor::examine(&config, &args.role, &Clock::system())).await);
    }
    findings.sort_by(|a, b| (a.subject.kind, &a.subject.name).cmp(&(b.subject.kind, &b.subject.name)));
    if args.json {
        println!("{}", json(&findings)?);
    } else {
        print!("{}", report(&findings, std::io::stdout().is_terminal()));
    }
    let limit = if args.strict { Severity::Warning } else { Severity::Error };
    if doctor::worst(&findings) < limit {
        return Ok(());
    }
    Err(Failure { text: counted(&findings), advice: String::new(), exit: 1 })
}

/// Of values that can't fail to be written.
pub(super) fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map_err(|error| Failure {
        text: format!("cannot write JSON: {error}"),
        advice: String::new(),
        exit: super::EXIT_BUG,
    })
}

fn counted(findings: &[Finding]) -> String {
    let of = |severity, one: &str| {
        let count = findings.iter().filter(|finding| finding.severity == severity).count();
        let plural = if count == 1 { "" } else { "s" };
        (count > 0).then(|| format!("{count} {one}{plural}"))
    };
    let counts = [of(Severity::Error, "error"), of(Severity::Warning, "warning"), of(Severity::Note, "note")];
    let counts: Vec<String> = counts.into_iter().flatten().collect();
    if counts.is_empty() { "nothing to mend".into() } else { counts.join(", ") }
}

/// Grouped by subject, in the order in which the findings are.
fn report(findings: &[Finding], colours: bool) -> String {
    let mut text = String::new();
    let mut last = String::new();
    let mut subjects: Vec<String> = Vec::new();
    for finding in findings {
        let subject = finding.subject.to_string();
        if !subjects.contains(&subject) {
            subjects.push(subject);
        }
    }
    for subject in subjects {
        for finding in findings.iter().filter(|finding| finding.subject.to_string() == subject) {
            if last != subject {
                let gap = if last.is_empty() { "" } else { "\n" };
                let _ = writeln!(text, "{gap}{subject}");
                last.clone_from(&subject);
            }
            one(&mut text, finding, colours);
        }
    }
    let _ = writeln!(text, "\n{}", counted(findings));
    text
}

fn one(text: &mut String, finding: &Finding, colours: bool) {
    let severity = format!("{:<7}", finding.severity.as_str());
    let severity = match (colours, finding.severity) {
        (false, _) => severity,
        (true, Severity::Ok) => format!("\x1b[32m{severity}\x1b[0m"),
        (true, Severity::Note) => format!("\x1b[36m{severity}\x1b[0m"),
        (true, Severity::Warning) => format!("\x1b[33m{severity}\x1b[0m"),
        (true, Severity::Error) => format!("\x1b[31m{severity}\x1b[0m"),
    };
    let indent = " ".repeat(INDENT);
    let mut lines = wrapped(&finding.what).into_iter();
    let _ = writeln!(text, "  {severity}  {}", lines.next().unwrap_or_default());
    let more = lines.chain(wrapped(&finding.why));
    for line in more {
        let _ = writeln!(text, "{indent}{line}");
    }
    for line in finding.sql.iter().flat_map(|sql| sql.lines()) {
        let _ = writeln!(text, "{indent}  {line}");
    }
    for (i, line) in finding.todo.iter().flat_map(|todo| wrapped(todo)).enumerate() {
        let mark = if i == 0 { "→ " } else { "  " };
        let _ = writeln!(text, "{indent}{mark}{line}");
    }
}

/// Lines of at most [`WIDTH`] characters, broken at blanks.
pub(super) fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_at_blanks_and_nothing_is_lost() {
        let text = "word ".repeat(60) + &"x".repeat(150);
        let lines = wrapped(&text);
        assert!(lines.len() > 3 && lines[..lines.len() - 1].iter().all(|line| line.len() <= WIDTH), "{lines:?}");
        assert_eq!(lines.join(" "), text);
        assert_eq!(wrapped(""), Vec::<String>::new());
    }
}
