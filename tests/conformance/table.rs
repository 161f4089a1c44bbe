//! Which item is held by which test: `items.txt` and the sources of this folder, compared, and printed as `TABLE.md`.
//!
//! The table is generated and kept in the repository, so that a reader finds it and a review shows what a change does to it.
//! `ROWCAST_WRITE_TABLE=1 cargo test --test main conformance::table` writes it anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Items of the protocol's list.
const ITEMS: u32 = 204;

/// A line of `items.txt`.
struct Item {
    section: String,
    rule: String,
    state: String,
}

/// A test's name and the file it is in. An item with much to try may be held by several.
struct Test {
    name: String,
    file: String,
}

type Tests = BTreeMap<u32, Vec<Test>>;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance")
}

fn items(text: &str, mistakes: &mut Vec<String>) -> BTreeMap<u32, Item> {
    let mut items = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(" | ").map(str::trim).collect();
        let parsed = match fields[..] {
            [number, section, rule, state] => number
                .parse()
                .ok()
                .map(|number: u32| (number, Item { section: section.into(), rule: rule.into(), state: state.into() })),
            _ => None,
        };
        match parsed {
            Some((number, item)) => {
                if items.insert(number, item).is_some() {
                    mistakes.push(format!("items.txt lists {number} twice"));
                }
            }
            None => mistakes.push(format!("items.txt has a line that can't be read: {line}")),
        }
    }
    mistakes.extend(
        (1..=ITEMS).filter(|number| !items.contains_key(number)).map(|number| format!("items.txt lacks {number}")),
    );
    items
}

/// The tests that are named after an item, of one source file. A function without a test's attribute doesn't count.
fn tests_in(source: &str) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim_start) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(rest) = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn ")) {
            let name = rest.split(['(', '<']).next().unwrap_or_default();
            let number = name.strip_prefix("item_").and_then(|rest| rest.get(..3)?.parse().ok());
            found.extend(number.filter(|_| is_test).map(|number| (number, name.to_owned())));
            is_test = false;
        }
    }
    found
}

fn add(tests: &mut Tests, file: &str, source: &str, mistakes: &mut Vec<String>) {
    for (number, name) in tests_in(source) {
        let held = tests.entry(number).or_default();
        if let Some(same) = held.iter().find(|test| test.name == name) {
            mistakes.push(format!("{name} is in {} and in {file}", same.file));
        }
        held.push(Test { name, file: file.to_owned() });
    }
}

fn tests(mistakes: &mut Vec<String>) -> Tests {
    let entries = fs::read_dir(folder()).expect("the folder");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    let mut tests = BTreeMap::new();
    for path in files.iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs")) {
        let file = path.file_name().and_then(|name| name.to_str()).expect("a name");
        add(&mut tests, file, &fs::read_to_string(path).expect("a source file"), mistakes);
    }
    tests
}

/// What is wrong between the two.
fn compare(items: &BTreeMap<u32, Item>, tests: &Tests, mistakes: &mut Vec<String>) {
    for (number, item) in items {
        let state = &*item.state;
        let decided = state.strip_prefix("decided ").is_some_and(|decision| decision.parse::<u32>().is_ok());
        let later = state.strip_prefix("issue-later ").is_some_and(|what| !what.is_empty());
        if !(state == "tested" || decided || later) {
            mistakes.push(format!("{number} has the state {state:?}, which is none"));
        } else if !(later || tests.contains_key(number)) {
            mistakes.push(format!("{number} is {state}, but there is no test of that number"));
        }
    }
    for (number, held) in tests.iter().filter(|(number, _)| !items.contains_key(number)) {
        mistakes.extend(
            held.iter().map(|Test { name, file }| format!("{name} in {file} is of {number}, which is no item")),
        );
    }
}

fn table(items: &BTreeMap<u32, Item>, tests: &Tests) -> String {
    let mut out = String::from(
        "<!-- Generated: ROWCAST_WRITE_TABLE=1 cargo test --test main conformance::table -->\n\n# Conformance\n\n\
         Each rule that clients of the protocol rely on, and the test that holds it. `decided`: held in the way of our own\n\
         decision of that number. `issue-later`: needs what is not built yet; its test, if it has one, holds the part that works.\n\n",
    );
    let held = items.values().filter(|item| item.state == "tested" || item.state.starts_with("decided")).count();
    let _ = writeln!(out, "{held} of {} are held.\n", items.len());
    out.push_str("| Item | Section | Rule | Test | State |\n|---|---|---|---|---|\n");
    for (number, Item { section, rule, state }) in items {
        let shown = |Test { name, file }: &Test| format!("`{name}` ({file})");
        let held: Vec<String> = tests.get(number).into_iter().flatten().map(shown).collect();
        let test = held.join(", ");
        let _ = writeln!(out, "| {number} | {section} | {rule} | {test} | {state} |");
    }
    out
}

#[test]
fn every_item_is_listed_and_held_as_the_list_says_and_the_table_is_up_to_date() {
    let mut mistakes = Vec::new();
    let items = items(include_str!("items.txt"), &mut mistakes);
    let tests = tests(&mut mistakes);
    compare(&items, &tests, &mut mistakes);
    assert!(mistakes.is_empty(), "{mistakes:#?}");
    let (path, expected) = (folder().join("TABLE.md"), table(&items, &tests));
    if std::env::var_os("ROWCAST_WRITE_TABLE").is_some() {
        fs::write(&path, &expected).expect("the table is written");
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == expected,
        "TABLE.md is out of date: ROWCAST_WRITE_TABLE=1 cargo test --test main conformance::table"
    );
}

#[test]
fn only_functions_that_run_as_tests_count() {
    let source = "#[tokio::test(flavor = \"multi_thread\")]\nasync fn item_007_a() {}\nfn item_008_b() {}\n\
                  #[test]\n#[should_panic]\nfn item_009_c() {}\n#[test]\nfn other() {}\n";
    let numbers: Vec<u32> = tests_in(source).into_iter().map(|(number, _)| number).collect();
    assert_eq!(numbers, [7, 9]);
}

#[test]
fn what_does_not_fit_is_named() {
    let mut mistakes = Vec::new();
    let listed = items(
        "1 | 1 | a | tested\n2 | 1 | b | tested\n2 | 1 | b | decided 4\nno item\n4 | 1 | d | done\n3 | 1 | c | issue-later x",
        &mut mistakes,
    );
    mistakes.retain(|mistake| !mistake.contains("lacks"));
    let mut found = BTreeMap::new();
    add(&mut found, "f.rs", "#[test]\nfn item_003_c() {}\n#[test]\nfn item_003_cc() {}\n", &mut mistakes);
    add(&mut found, "g.rs", "#[test]\nfn item_003_c() {}\n#[test]\nfn item_999_e() {}\n", &mut mistakes);
    compare(&listed, &found, &mut mistakes);
    let expected = [
        "lists 2 twice",
        "can't be read: no item",
        "item_003_c is in f.rs and in g.rs",
        "1 is tested, but",
        "2 is decided 4, but",
        "4 has the state \"done\"",
        "item_999_e in g.rs is of 999, which is no item",
    ];
    assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
    for (mistake, part) in mistakes.iter().zip(expected) {
        assert!(mistake.contains(part), "{mistake} / {part}");
    }
}
