//! Names of metrics are a promise: dashboards and alerts are built on them. A change of `metrics.txt` is a change for everybody.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rowcast::metrics::Metrics;
use serde_json::Value;

fn text(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Name and type of each metric, as it is rendered.
fn metrics() -> Vec<(String, String)> {
    let rendered = Metrics::new().render();
    let types = rendered.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

/// The names that a query may use.
fn samples() -> BTreeSet<String> {
    let names = metrics().into_iter().flat_map(|(name, kind)| {
        let suffixes: &[&str] = match kind.as_str() {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        suffixes.iter().map(|suffix| format!("{name}{suffix}")).collect::<Vec<_>>()
    });
    names.collect()
}

/// Checks that a query uses metrics of ours, and at least one.
#[track_caller]
fn check(query: &str, samples: &BTreeSet<String>) {
    let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    let used: Vec<&str> = words.filter(|word| word.starts_with("rowcast_")).collect();
    assert!(!used.is_empty() || query.starts_with("up{"), "no metric of ours in {query}");
    for name in used {
        assert!(samples.contains(name), "{name} does not exist: {query}");
    }
    let count = |c| query.matches(c).count();
    for (open, close) in [('(', ')'), ('{', '}'), ('[', ']')] {
        assert_eq!(count(open), count(close), "{query}");
    }
}

#[test]
fn every_metric_is_in_the_list_and_no_other() {
    let lines: Vec<String> = metrics().iter().map(|(name, kind)| format!("{name} {kind}\n")).collect();
    let listed = text("tests/ops/metrics.txt");
    assert!(lines.concat() == listed, "tests/ops/metrics.txt is not what is rendered:\n{}", lines.concat());
}

#[test]
fn names_follow_the_conventions_of_prometheus() {
    for (name, kind) in metrics() {
        assert!(
            name.starts_with("rowcast_") && name.chars().all(|c| c.is_ascii_lowercase() || "_0123456789".contains(c))
        );
        // The unit comes last, the suffix of a counter is added.
        assert!(!name.ends_with("_total") && !name.ends_with("_count"), "{name}");
        assert!(kind != "histogram" || name.ends_with("_seconds"), "{name}");
        for unit in ["_ms", "_millis", "_kb", "_mb"] {
            assert!(!name.ends_with(unit), "{name}");
        }
    }
    let rendered = Metrics::new().render();
    for help in rendered.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let (name, help) = help.split_once(' ').expect("a help text");
        assert!(help.len() > 15, "{name}: {help}");
    }
}

#[test]
fn the_dashboard_shows_metrics_that_exist() {
    let dashboard: Value = serde_json::from_str(&text("docker/grafana/rowcast.json")).expect("JSON");
    let samples = samples();
    let panels = dashboard["panels"].as_array().expect("panels");
    let rows: Vec<&str> = panels.iter().filter(|p| p["type"] == "row").filter_map(|p| p["title"].as_str()).collect();
    assert_eq!(rows, ["Traffic", "Latency by stage", "Rights", "Slot and disk", "Connections", "Errors"]);
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    let mut shown = String::new();
    for panel in panels {
        let place = &panel["gridPos"];
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{panel}");
        assert!(places.insert((place["y"].as_u64(), place["x"].as_u64())), "two panels in one place: {panel}");
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        for target in panel["targets"].as_array().expect("targets") {
            let query = target["expr"].as_str().expect("a query");
            check(query, &samples);
            shown.push_str(query);
        }
    }
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    let names: Vec<&str> = variables.iter().filter_map(|variable| variable["name"].as_str()).collect();
    assert_eq!(names, ["datasource", "instance"]);
    // What somebody measures and nobody shows is of no use: each metric is on the dashboard.
    let missing: Vec<String> =
        metrics().into_iter().map(|(name, _)| name).filter(|name| !shown.contains(name)).collect();
    assert!(missing.is_empty(), "not shown: {missing:?}");
}

#[test]
fn the_alerts_use_metrics_that_exist_and_say_what_to_do() {
    let rules: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text("docker/alerts.yaml")).expect("YAML");
    let samples = samples();
    let mut names = BTreeSet::new();
    for group in rules["groups"].as_sequence().expect("groups") {
        for rule in group["rules"].as_sequence().expect("rules") {
            let name = rule["alert"].as_str().expect("a name");
            assert!(name.starts_with("Rowcast") && names.insert(name), "{name}");
            check(rule["expr"].as_str().expect("a query"), &samples);
            assert!(
                ["critical", "warning"].contains(&rule["labels"]["severity"].as_str().expect("a severity")),
                "{name}"
            );
            for text in ["summary", "description"] {
                assert!(rule["annotations"][text].as_str().is_some_and(|text| text.len() > 20), "{name}: {text}");
            }
            if let Some(time) = rule["for"].as_str() {
                assert!(time.trim_end_matches(['s', 'm', 'h']).parse::<u32>().is_ok(), "{name}: {time}");
            }
        }
    }
    for needed in [
        "RowcastNotStreaming",
        "RowcastSlotFillsUp",
        "RowcastLogAppendErrors",
        "RowcastUndecidedGaps",
        "RowcastAskSlow",
        "RowcastSlowConsumers",
        "RowcastTokensRefused",
        "RowcastCatalogStale",
        "RowcastDevicesForgotten",
    ] {
        assert!(names.contains(needed), "{needed}");
    }
}
