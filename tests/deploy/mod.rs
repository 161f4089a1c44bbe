//! The files in `docker/`, read as their tools would read them. Nothing is built or started here: README says so.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use serde_yaml_ng::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Instructions with their continuation lines, comments left out.
fn instructions(dockerfile: &str) -> Vec<String> {
    let lines = dockerfile.lines().filter(|line| !line.trim_start().starts_with('#') && !line.trim().is_empty());
    let joined = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    joined.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn the_image_is_built_from_what_is_there_and_runs_as_nobody_special() {
    let dockerfile = text("docker/Dockerfile");
    let instructions = instructions(&dockerfile);
    let mut copied = Vec::new();
    for instruction in instructions.iter().filter(|i| i.starts_with("COPY ") && !i.contains("--from")) {
        let words: Vec<&str> = instruction.split(' ').skip(1).collect();
        for source in &words[..words.len() - 1] {
            assert!(root().join(source).exists(), "COPY {source}: not there");
            copied.push(source.trim_end_matches('/').to_owned());
        }
    }
    // Cargo refuses a manifest that names a file which is not there.
    let manifest = text("Cargo.toml");
    let paths = manifest.lines().filter_map(|line| line.trim().strip_prefix("path = \"")?.strip_suffix('"'));
    for path in paths {
        assert!(copied.iter().any(|dir| path.starts_with(&format!("{dir}/"))), "Cargo.toml needs {path}, not copied");
    }
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \"")?.strip_suffix('"'));
    let from = format!("FROM rust:{}-", version.expect("a rust-version"));
    assert!(instructions[0].starts_with(&from), "{} is not the version of Cargo.toml", instructions[0]);
    assert!(instructions[0].ends_with(" AS build"));
    assert!(instructions.iter().any(|i| i == "USER rowcast") && dockerfile.contains("--uid 10001"));
    // What is compiled in must be copied: `include_str!` reaches outside of src.
    for needed in ["src", "migrations", "sql", "Cargo.lock"] {
        assert!(copied.iter().any(|source| source == needed), "{needed} is not copied");
    }
}

#[test]
fn the_compose_file_starts_a_database_that_a_relay_can_use() {
    let compose: Value = serde_yaml_ng::from_str(&text("docker/compose.yaml")).expect("YAML");
    let services = &compose["services"];
    let command = services["postgres"]["command"].as_sequence().expect("a list");
    for setting in ["-cwal_level=logical", "-cmax_slot_wal_keep_size=10GB"] {
        assert!(command.iter().any(|word| word == setting), "{setting}");
    }
    let relay = &services["relay"];
    assert_eq!(relay["depends_on"]["postgres"]["condition"], "service_healthy");
    let build = root().join("docker").join(relay["build"]["context"].as_str().expect("a path"));
    assert!(build.join(relay["build"]["dockerfile"].as_str().expect("a path")).exists());
    assert_eq!(relay["healthcheck"]["test"][1], "rowcast");
    let environment = relay["environment"].as_mapping().expect("a map");
    let url = environment["DATABASE_URL"].as_str().expect("a text").replace("${POSTGRES_PASSWORD}", "x");
    rowcast::pg::PgConfig::from_url(&url).expect("a good URL");
    // Every setting is one that the relay knows: a misspelt one would be ignored in silence.
    let environment: std::collections::BTreeMap<String, String> = environment
        .iter()
        .map(|(name, value)| (name.as_str().expect("a name").into(), value.as_str().expect("a text").into()))
        .collect();
    for name in environment.keys() {
        assert!(rowcast::config::is_setting(name), "{name} is no setting");
    }
    // What is mounted is declared.
    let volumes: BTreeSet<&str> =
        compose["volumes"].as_mapping().expect("a map").keys().filter_map(Value::as_str).collect();
    for service in ["postgres", "relay"] {
        let mounted = services[service]["volumes"].as_sequence().expect("a list");
        for volume in mounted.iter().filter_map(Value::as_str) {
            assert!(volumes.contains(volume.split(':').next().expect("a name")), "{volume}");
        }
    }
    assert_eq!(relay["ports"][1], "127.0.0.1:4001:4001", "metrics are not for everybody");
}

#[test]
fn the_secrets_are_made_once_and_for_the_owner_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("secrets.sh");
    fs::copy(root().join("docker/secrets.sh"), &script).expect("a copy");
    let run = || assert!(Command::new("bash").arg(&script).output().expect("bash").status.success());
    run();
    let file = folder.path().join(".env");
    let first = fs::read_to_string(&file).expect("the file");
    assert_eq!(fs::metadata(&file).expect("metadata").permissions().mode() & 0o777, 0o600);
    let values: Vec<(&str, &str)> = first.lines().filter_map(|line| line.split_once('=')).collect();
    assert_eq!(values.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["POSTGRES_PASSWORD", "JWT_SECRET"]);
    assert!(values.iter().all(|(_, value)| value.len() == 64) && values[0].1 != values[1].1, "{values:?}");
    run();
    assert_eq!(fs::read_to_string(&file).expect("the file"), first, "an existing one is left alone");
}

#[test]
fn the_unit_runs_the_relay_with_settings_that_exist() {
    let unit = text("docker/rowcast.service");
    let mut section = "";
    for line in unit.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        if line.starts_with('[') {
            section = line;
            continue;
        }
        let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("{line}"));
        match (section, name) {
            ("[Service]", "ExecStart") => assert!(value.ends_with("rowcast serve")),
            ("[Service]", "Environment") => {
                let (setting, _) = value.split_once('=').expect("a pair");
                assert!(rowcast::config::is_setting(setting), "{setting}");
            }
            ("[Unit]" | "[Service]" | "[Install]", _) => {}
            _ => panic!("{section} {line}"),
        }
    }
    assert!(unit.contains("DynamicUser=yes"));
}
