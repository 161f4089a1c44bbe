//! Links within the repository, of all documents at the top: the file is there, and so is the heading.

use super::{root, text};

/// `[text](target)` and `[text](target "title")`, outside of code.
fn links(markdown: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut code = false;
    for line in markdown.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
        }
        if code {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            let target = line[at + 2..].split([')', ' ']).next().unwrap_or_default();
            found.push(target.to_owned());
        }
    }
    found
}

/// As the hosts of repositories make them: lower case, punctuation gone, blanks to dashes.
fn anchors(markdown: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut code = false;
    for line in markdown.lines() {
        if line.starts_with("```") {
            code = !code;
        }
        let title = line.trim_start_matches('#');
        if !code && title.len() < line.len() && title.starts_with(' ') {
            let kept = title.trim().to_lowercase();
            let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            found.push(kept.collect::<String>().replace(' ', "-"));
        }
    }
    found
}

#[test]
fn every_link_leads_to_a_file_and_a_heading_that_are_there() {
    let mut wrong = Vec::new();
    for document in ["README.md", "CHANGELOG.md", "SECURITY.md", "TOPICS.md"] {
        for link in links(&text(document)) {
            if link.contains("://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let path = if path.is_empty() { document } else { path };
            if !root().join(path).exists() || (!anchor.is_empty() && !anchors(&text(path)).iter().any(|a| a == anchor))
            {
                wrong.push(format!("{document}: {link}"));
            }
        }
    }
    assert!(wrong.is_empty(), "links that lead nowhere: {wrong:#?}");
}

#[test]
fn headings_become_anchors_as_repositories_show_them() {
    let text = "# A `b`, c?\n```\n# no\n```\n## TLS for clients\n";
    assert_eq!(anchors(text), ["a-b-c", "tls-for-clients"]);
    assert_eq!(links("[a](x.md#y) ![b](z \"t\")\n```\n[c](no)\n```"), ["x.md#y", "z"]);
}
