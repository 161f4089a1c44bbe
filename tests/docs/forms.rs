//! Which engine judges which form of a policy: the table in README, from the forms that `policy` is tested with. Those tests hold
//! each form to its engine, and memory's answers to those of a SELECT.

use std::fmt::Write as _;

use tested::{Expected, FORMS, Form};

#[expect(dead_code, reason = "the tables and rows of the forms are for the tests of `policy`")]
#[path = "../../src/policy/tests/forms.rs"]
mod tested;

/// What applications commonly write, by kind and by the forms' names. Each form stands for one thing that is wanted, and is
/// counted once.
const COMMON: &[(&str, &[&str])] = &[
    (
        "The owner",
        &[
            "own rows",
            "own rows, cached",
            "own rows, as text",
            "own rows, by the claims",
            "owner or public",
            "others' rows",
            "who is logged in",
            "an array column",
        ],
    ),
    (
        "Claims",
        &[
            "e-mail",
            "tenant in the token",
            "tenant by a path",
            "integer claim",
            "admin flag",
            "admin flag of type jsonb",
            "team list, ?",
            "team list, @> text",
            "elements, any array",
            "the role",
        ],
    ),
    (
        "Values of the row",
        &[
            "everybody",
            "a flag",
            "flag differs",
            "not deleted",
            "integers",
            "numeric",
            "text with quotes",
            "timestamptz",
            "date",
            "enum",
            "status list",
            "own rows, two columns as an array",
            "case",
            "coalesce of columns",
            "the clock",
        ],
    ),
    (
        "Memberships",
        &[
            "team, in",
            "team, any",
            "team, exists",
            "team, by role",
            "block list",
            "organisation, join",
            "organisation, two levels",
            "my organisation",
            "admin or owner or team",
        ],
    ),
    (
        "Functions",
        &[
            "tenant by a helper",
            "helper, exists",
            "helper, a set",
            "helper, a value",
            "helper, permission",
            "Basejump, has_role_on_account",
        ],
    ),
];

/// What else is worth to be known, of what memory does not judge.
const OTHERS: &[(&str, &[&str])] = &[
    (
        "Only Postgres can say",
        &[
            "an array column, contains",
            "JSON in a column",
            "a pattern",
            "case folding",
            "arithmetic",
            "order of an enum",
            "a helper in PL/pgSQL",
            "a helper without a search_path",
            "a view",
            "a table without a key",
            "several rows as a value",
            "an outer join",
            "grouping",
            "limit",
        ],
    ),
    ("Postgres refuses every query", &["no grant on the inner table", "its own table"]),
];

/// At least this share of the common forms has to be judged in memory.
const WANTED_PERCENT: usize = 95;

fn form(name: &str) -> &'static Form {
    FORMS.iter().find(|form| form.name == name).unwrap_or_else(|| panic!("there is no form {name:?}"))
}

fn engine(form: &Form) -> &'static str {
    match form.engine {
        Expected::Pure => "memory",
        Expected::Ask(_) => "Postgres",
        Expected::Refused(_) => "nobody",
    }
}

fn count(engine_of: &str) -> usize {
    FORMS.iter().filter(|form| engine(form) == engine_of).count()
}

/// How many common forms there are, and how many of them memory judges.
fn common() -> (usize, usize) {
    let names = COMMON.iter().flat_map(|(_, names)| *names);
    let in_memory = names.clone().filter(|name| form(name).engine == Expected::Pure).count();
    (names.count(), in_memory)
}

fn rows(text: &mut String, kinds: &[(&str, &[&str])]) {
    for (kind, names) in kinds {
        for (i, name) in names.iter().enumerate() {
            let form = form(name);
            let kind = if i == 0 { format!("**{kind}**") } else { String::new() };
            let policy = form.policy.replace('|', "\\|");
            let _ = writeln!(text, "| {kind} | {name} | `{policy}` | {} |", engine(form));
        }
    }
}

fn markdown() -> String {
    let mut text = String::new();
    let (wanted, in_memory) = common();
    let _ = writeln!(
        text,
        "{} forms are tested. Memory judges {} of them, Postgres is asked about {}, and {} are refused by Postgres itself, so that\n\
         nothing is sent. Of the {wanted} common forms, each counted once, memory judges {in_memory}: {} %.\n",
        FORMS.len(),
        count("memory"),
        count("Postgres"),
        count("nobody"),
        100 * in_memory / wanted,
    );
    text.push_str("| | Form | Policy on a table `t` | Judged by |\n|---|---|---|---|\n");
    rows(&mut text, COMMON);
    rows(&mut text, OTHERS);
    text
}

#[test]
fn the_forms_of_policies_in_the_readme_are_those_that_are_tested() {
    super::hold("forms", &markdown());
}

#[test]
fn memory_judges_nearly_all_common_forms() {
    let (wanted, in_memory) = common();
    assert!(100 * in_memory >= WANTED_PERCENT * wanted, "{in_memory} of {wanted}");
    let mut names: Vec<_> = COMMON.iter().chain(OTHERS).flat_map(|(_, names)| *names).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "a form is listed twice");
}
