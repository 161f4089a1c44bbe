//! README says what is true: its generated parts are what the code gives, its links lead somewhere, the tests that it names
//! exist, and its snippets run.
//!
//! `ROWCAST_WRITE_DOCS=1 cargo test --test main docs::` writes the generated parts anew.

mod forms;
mod links;
mod snippets;
mod topics;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rowcast::cli::reference;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What stands between the two comments of a generated part, and what stands before and after it.
fn generated<'a>(text: &'a str, name: &str) -> (&'a str, &'a str, &'a str) {
    let (begin, end) = (format!("<!-- generated: {name} -->\n"), format!("<!-- end: {name} -->"));
    let at = text.find(&begin).unwrap_or_else(|| panic!("README.md lacks {begin}")) + begin.len();
    let length = text[at..].find(&end).unwrap_or_else(|| panic!("README.md lacks {end}"));
    (&text[..at], &text[at..at + length], &text[at + length..])
}

/// Compares, or writes if asked to.
fn hold(name: &str, wanted: &str) {
    let readme = text("README.md");
    let (before, found, after) = generated(&readme, name);
    let wanted = format!("\n{wanted}\n");
    if found == wanted {
        return;
    }
    if std::env::var_os("ROWCAST_WRITE_DOCS").is_some() {
        fs::write(root().join("README.md"), format!("{before}{wanted}{after}")).expect("README.md can be written");
        return;
    }
    panic!(
        "README.md, part `{name}`, is not what the code gives; this writes it anew:\n\n  \
         ROWCAST_WRITE_DOCS=1 cargo test --test main docs::\n\nwanted:\n{wanted}"
    );
}

#[test]
fn the_settings_in_the_readme_are_those_of_the_code() {
    hold("settings", &reference::markdown());
}

/// The names of the functions of one source file that have a test's attribute.
fn tests_in(source: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim_start) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(rest) = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn ")) {
            names.extend(rest.split(['(', '<']).next().filter(|_| is_test));
            is_test = false;
        }
    }
    names
}

/// `[a sentence](tests/journey/order.rs "name_of_the_test")`: the file, the name. Several names are parted by spaces.
fn named_tests(readme: &str) -> Vec<(&str, &str)> {
    let mut named = Vec::new();
    for (at, _) in readme.match_indices("](") {
        let rest = &readme[at + 2..];
        let Some((path, rest)) = rest.split_once(" \"") else { continue };
        if !path.ends_with(".rs") || path.contains([')', '\n']) {
            continue;
        }
        let names = rest.split('"').next().unwrap_or_default();
        named.extend(names.split(' ').map(|name| (path, name)));
    }
    named
}

#[test]
fn every_test_that_the_readme_names_exists_in_the_file_that_it_names() {
    let readme = text("README.md");
    let named = named_tests(&readme);
    assert!(named.len() >= 25, "only {} tests are named", named.len());
    let missing: Vec<_> = named.iter().filter(|(path, name)| !tests_in(&text(path)).contains(name)).collect();
    assert!(missing.is_empty(), "README.md names tests that are not there: {missing:#?}");
}

/// A promise without a test is an advertisement.
#[test]
fn every_promise_of_the_readme_is_linked_to_its_test() {
    let readme = text("README.md");
    let part = section(&readme, "## What is promised");
    let rows: Vec<&str> =
        part.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| Promise ")).collect();
    assert!(rows.len() >= 12, "{} promises", rows.len());
    for row in rows {
        assert!(!named_tests(row).is_empty(), "no test is linked here: {row}");
    }
}

/// From a heading to the next one of its level.
fn section<'a>(readme: &'a str, heading: &str) -> &'a str {
    let at = readme.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("README.md lacks {heading}")) + 1;
    let rest = &readme[at + heading.len()..];
    &rest[..rest.find("\n## ").unwrap_or(rest.len())]
}

#[test]
fn the_format_on_disk_that_the_readme_tells_is_the_one_that_is_written() {
    let source = text("src/log/segment.rs");
    let version =
        source.lines().find_map(|line| line.strip_prefix("pub(super) const VERSION: u16 = ")?.strip_suffix(';'));
    let told = format!("format {}", version.expect("the version"));
    assert!(section(&text("README.md"), "## Upgrading").contains(&told), "README.md does not tell of {told}");
}

/// Each number is what `GatewayConfig` and the others say.
#[test]
fn the_limits_that_the_readme_tells_are_those_of_the_code() {
    let readme = text("README.md");
    let part = section(&readme, "## Known limits");
    let gateway = rowcast::gateway::GatewayConfig::default();
    for (what, number) in [
        ("channels on one connection", gateway.max_channels),
        ("entries of `postgres_changes` in one join", gateway.max_entries),
        ("bytes of one message from a client", gateway.max_message_bytes),
    ] {
        let shown = format!("{} {what}", thousands(number));
        assert!(part.contains(&shown), "README.md does not say: {shown}");
    }
}

fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).expect("digits")).collect();
    groups.join(",")
}

#[test]
fn the_supported_versions_are_those_of_the_matrix() {
    let readme = text("README.md");
    let part = section(&readme, "## Supported PostgreSQL");
    let told: BTreeSet<&str> =
        part.lines().filter_map(|line| line.strip_prefix("| PostgreSQL ")?.split(['.', ' ']).next()).collect();
    let script = text("scripts/matrix");
    let all =
        script.lines().find_map(|line| line.split_once("|| wanted=(")?.1.strip_suffix(')')).expect("the versions");
    assert_eq!(told, all.split(' ').collect());
}

#[test]
fn tests_are_told_from_other_functions() {
    let source = "#[test]\nfn a() {}\nfn b() {}\n#[tokio::test(flavor = \"x\")]\nasync fn c<T>() {}";
    assert_eq!(tests_in(source), ["a", "c"]);
    let named = named_tests("[x](tests/a.rs \"one two\") [y](other.md \"no\") [z](src/b.rs)");
    assert_eq!(named, [("tests/a.rs", "one"), ("tests/a.rs", "two")]);
}
