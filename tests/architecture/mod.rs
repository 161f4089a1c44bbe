//! The rules of the source tree that the compiler doesn't know: which module may import which, what some must not touch, and
//! how large a file may get. `src/lib.rs` read from top to bottom is the order.
//!
//! Rejected: a crate per module. The compiler would then check the order, at the price of thirty manifests and of `pub` for
//! everything that two of them share.

mod source;

use std::collections::BTreeMap;
use std::path::Path;

use source::{SourceFile, Tree, words};

/// The longest file that a reader is asked to hold in mind.
const MAX_LINES: usize = 600;

/// Names that a module must not mention outside its tests: paths as written after `crate::` or at their start, or single words.
struct MustNot {
    module: &'static str,
    mention: &'static [&'static str],
    because: &'static str,
}

const MUST_NOT: &[MustNot] = &[
    MustNot {
        module: "change",
        mention: &["tokio", "std::fs", "std::net", "tokio_postgres"],
        because: "it is plain data",
    },
    MustNot {
        module: "pgtype",
        mention: &["tokio", "std::fs", "std::net", "tokio_postgres"],
        because: "it is plain data",
    },
    MustNot {
        module: "wal",
        mention: &["crate::log", "crate::claims", "crate::policy", "crate::hub", "crate::gateway"],
        because: "it knows neither who keeps the changes nor who may see them",
    },
    MustNot {
        module: "log",
        mention: &["crate::wal", "crate::claims", "crate::policy", "crate::hub", "crate::gateway"],
        because: "it knows no WAL client and no subscriber",
    },
    MustNot {
        module: "ingest",
        mention: &["crate::hub", "crate::gateway", "crate::policy"],
        because: "it waits for no subscriber",
    },
    MustNot {
        module: "policy",
        mention: &["task::spawn", "crate::hub", "crate::gateway", "tokio_tungstenite"],
        because: "it owns no task and knows no socket",
    },
    MustNot {
        module: "hub",
        mention: &["crate::gateway", "tokio_tungstenite", "TcpStream", "serde_json"],
        because: "it encodes nothing and touches no socket",
    },
    MustNot {
        module: "channel",
        mention: &["crate::policy", "crate::gateway", "tokio::net", "std::net", "std::fs"],
        because: "it does no I/O and decides no visibility by itself",
    },
    MustNot {
        module: "gateway",
        mention: &["std::env", "crate::config", "crate::log", "crate::wal", "crate::ingest"],
        because: "it sees only rows that are permitted, and its configuration is handed to it",
    },
];

#[test]
fn a_module_imports_only_modules_declared_above_it() {
    let tree = Tree::read();
    let order = tree.modules();
    let place: BTreeMap<&str, usize> = order.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
    let mut wrong = Vec::new();
    for file in tree.files.iter().filter(|file| !file.is_root()) {
        let own = place.get(file.module.as_str());
        let Some(&own) = own else {
            wrong.push(format!("{}: `{}` is not declared in src/lib.rs", file.path, file.module));
            continue;
        };
        // Tests may use what stands below, such as the private cluster of `dev`; nothing that ships depends on them.
        for (line, import) in file.imports().filter(|(line, _)| !file.is_test_line(*line)) {
            match place.get(import.as_str()) {
                Some(&at) if at <= own => {}
                Some(_) => wrong.push(format!(
                    "{}:{line}: `{}` imports `{import}`, which is declared below it",
                    file.path, file.module
                )),
                None => wrong.push(format!("{}:{line}: `crate::{import}` is no module of src/lib.rs", file.path)),
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_binary_uses_the_library_and_has_no_modules_of_its_own() {
    let tree = Tree::read();
    let main = tree.files.iter().find(|file| file.path == "src/main.rs").expect("src/main.rs");
    assert_eq!(source::declared_modules(&main.code), Vec::<String>::new());
}

#[test]
fn modules_leave_alone_what_is_not_theirs() {
    let tree = Tree::read();
    let order = tree.modules();
    let mut wrong = Vec::new();
    for rule in MUST_NOT {
        assert!(order.iter().any(|name| name == rule.module), "there is no module `{}` any more", rule.module);
        for file in tree.files.iter().filter(|file| file.module == rule.module) {
            for (line, word) in file.mentions(rule.mention).filter(|(line, _)| !file.is_test_line(*line)) {
                wrong.push(format!("{}:{line}: `{}` mentions `{word}`, but {}", file.path, rule.module, rule.because));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold_in_mind() {
    let long = |file: &SourceFile| file.lines > MAX_LINES;
    let files = source::rust_files(&["src", "tests"]);
    assert!(files.len() > 100, "only {} files were found", files.len());
    let wrong: Vec<_> =
        files.iter().filter(|file| long(file)).map(|file| format!("{}: {}", file.path, file.lines)).collect();
    assert!(wrong.is_empty(), "files over {MAX_LINES} lines:\n{}", wrong.join("\n"));
}

#[test]
fn every_test_runs() {
    let files = source::rust_files(&["src", "tests"]);
    let ignored =
        |file: &SourceFile| file.code.lines().any(|line| line.contains("#[ignore") || line.contains(", ignore"));
    let wrong: Vec<_> = files.iter().filter(|file| ignored(file)).map(|file| file.path.as_str()).collect();
    assert!(wrong.is_empty(), "ignored tests in {wrong:?}");
}

#[test]
fn the_rules_see_through_every_way_to_write_an_import() {
    let text = r##"
        use crate::log::{Log, Read};
        use crate::{claims, hub::{Outbox, Port}, task as t};
        /* crate::gateway */ // crate::app
        const TEXT: &str = "crate::cli \" crate::dev"; const RAW: &str = r#"crate::admin "quoted""#;
        fn f<'a>(x: &'a crate::policy::Plan) -> char { let _ = crate::wal::Backoff::new(); '"' }
        use super::filter;
        mod inner {
            use super::filter;
            use super::super::channel;
        }
        #[cfg(test)]
        mod tests {
            use crate::migrate;
        }
        use crate::config;
    "##;
    let file = SourceFile::parse("src/x.rs", text);
    let imports: Vec<_> = file.imports().collect();
    let names = |test: bool| {
        let lines = imports.iter().filter(|(line, _)| file.is_test_line(*line) == test);
        lines.map(|(_, name)| name.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(names(false), ["log", "claims", "hub", "task", "policy", "wal", "filter", "channel", "config"]);
    assert_eq!(names(true), ["migrate"]);
    let deeper = SourceFile::parse("src/x/y.rs", "use super::z;\nuse super::super::catalog::Table;\n");
    assert_eq!(deeper.imports().collect::<Vec<_>>(), [(2, "catalog".to_owned())]);
    let found: Vec<_> = file.mentions(&["crate::hub", "Backoff", "Back", "wal::Backoff"]).collect();
    assert_eq!(found, [(3, "crate::hub"), (6, "Backoff"), (6, "wal::Backoff")]);
    let tests = "#[cfg(test)]\nmod tests;\n#[cfg(test)]\n#[path = \"x_tests.rs\"]\nmod more;\nmod plain;\n";
    let paths = |path| SourceFile::parse(path, tests).test_modules;
    assert_eq!(paths("src/a/x.rs"), [Path::new("src/a/x/tests"), Path::new("src/a/x_tests")]);
    assert_eq!(paths("src/a/mod.rs"), [Path::new("src/a/tests"), Path::new("src/a/x_tests")]);
    assert_eq!(words("a::b c").collect::<Vec<_>>(), [(0, "a"), (3, "b"), (5, "c")]);
}
