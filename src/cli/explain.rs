//! `rowcast explain-policy`: the rules of a table as a tree, or as JSON.

use std::fmt::Write as _;

use super::args::ExplainArgs;
use super::doctor::{json, wrapped};
use super::{Environment, Failure};
use crate::config::SHORTEST_SECRET;
use crate::doctor::{self, Explanation};

pub(super) async fn explain(args: &ExplainArgs, environment: &Environment) -> Result<(), Failure> {
    let mut settings = environment.settings(args.database.config.as_deref(), &args.database.flags())?;
    // No token is verified here, so a secret that is missing harms nobody; how deletes and partitions are treated counts.
    settings.set("jwt_secret", &"-".repeat(SHORTEST_SECRET));
    let config = settings.config(&environment.data_dir())?;
    let roles = if args.role.is_empty() { vec!["anon".into(), "authenticated".into()] } else { args.role.clone() };
    let explanations = Box::pin(doctor::explain(&config, &args.table, &roles)).await?;
    if args.json {
        println!("{}", json(&explanations)?);
    } else {
        let trees: Vec<String> = explanations.iter().map(|explanation| tree(explanation).text()).collect();
        print!("{}", trees.join("\n"));
    }
    Ok(())
}

/// A line and what is below it.
struct Node {
    text: String,
    below: Vec<Node>,
}

impl Node {
    fn new(text: impl Into<String>) -> Node {
        Node { text: text.into(), below: Vec::new() }
    }

    fn with(mut self, below: impl IntoIterator<Item = Node>) -> Node {
        self.below.extend(below);
        self
    }

    fn text(&self) -> String {
        let mut text = format!("{}\n", self.text);
        self.write_below(&mut text, "");
        text
    }

    fn write_below(&self, text: &mut String, indent: &str) {
        let last = self.below.len().saturating_sub(1);
        for (i, node) in self.below.iter().enumerate() {
            let (branch, more) = if i == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            let below = format!("{indent}{more}");
            // What goes on under the line leaves room for the branches below it.
            let hanging = if node.below.is_empty() { below.clone() } else { format!("{below}│  ") };
            for (j, line) in wrapped(&node.text).iter().enumerate() {
                let start = if j == 0 { format!("{indent}{branch}") } else { hanging.clone() };
                let _ = writeln!(text, "{start}{line}");
            }
            node.write_below(text, &below);
        }
    }
}

fn tree(explanation: &Explanation) -> Node {
    let e = explanation;
    let mut nodes = vec![judged(e)];
    nodes.extend(e.obstacle.map(|why| Node::new(format!("INSERT and UPDATE are never sent: {why}"))));
    let policies = e.policies.iter().map(|policy| {
        let mark = if policy.applies { "applies" } else { "does not apply" };
        let head = format!(
            "\"{}\" {} for {} to {}: {mark}",
            policy.name,
            policy.kind,
            policy.command,
            policy.roles.join(", ")
        );
        let using = policy.using.as_deref().unwrap_or("no USING: neither permits nor restricts reading");
        Node::new(head).with([Node::new(using)])
    });
    nodes.push(match e.policies.len() {
        0 => Node::new("policies for reading: none"),
        count => Node::new(format!("policies for reading: {count}")).with(policies),
    });
    nodes.extend(e.row_filter.as_ref().map(|filter| Node::new(format!("row filter of the publication: {filter}"))));
    nodes.push(columns(e));
    let verb = if e.deletes.delivered { "judged and sent" } else { "never sent" };
    nodes.push(Node::new(format!("DELETE: {verb}; {}", e.deletes.why)));
    nodes.push(Node::new(format!(
        "a change of the rules counts for every row that is judged more than {} after its commit",
        time(e.rules_followed_within_ms)
    )));
    Node::new(format!("{} for {}", e.table, e.role)).with(nodes)
}

fn judged(e: &Explanation) -> Node {
    let who = match e.engine {
        "everything" => "every row is sent",
        "pure" => "judged in memory",
        "ask" => "Postgres is asked",
        _ => "nothing is sent",
    };
    let mut node = Node::new(format!("engine {}: {who}", e.engine));
    node.below.push(Node::new(format!("because {}", e.reason)));
    node.below.extend(e.condition.as_ref().map(|condition| Node::new(format!("condition: {condition}"))));
    if e.engine == "pure" {
        node.below.push(match &e.owner_column {
            Some(column) => Node::new(format!("receivers are found by {column}, without looking at anybody else")),
            None => Node::new("no single column names the receivers: each subscriber of the table is looked at"),
        });
    }
    if let Some(cost) = &e.ask {
        let limits =
            format!("at most {} each, {} for a change", time(cost.statement_timeout_ms), time(cost.deadline_ms));
        node.below.push(Node::new(format!("cost: {}", cost.how_often)).with([
            Node::new(format!("{limits}; after that the subscriber is told of a gap")),
            Node::new(format!("statement: {}", cost.statement)),
        ]));
    }
    node.below.extend(e.pure_if.as_ref().map(|hint| Node::new(format!("memory could judge: {hint}"))));
    node
}

fn columns(e: &Explanation) -> Node {
    let listed = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let mut node = Node::new(format!("columns shown: {}", listed(&e.columns_shown)));
    if !e.columns_withheld.is_empty() {
        node.below.push(Node::new(format!(
            "withheld, since {} may not select them: {}",
            e.role,
            listed(&e.columns_withheld)
        )));
    }
    if !e.columns_not_sent.is_empty() {
        node.below.push(Node::new(format!("not in the stream: {}", listed(&e.columns_not_sent))));
    }
    node
}

fn time(milliseconds: u64) -> String {
    if milliseconds.is_multiple_of(1000) { format!("{} s", milliseconds / 1000) } else { format!("{milliseconds} ms") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_has_a_branch_for_each_node() {
        let tree = Node::new("root").with([Node::new("one").with([Node::new("deep")]), Node::new("two")]);
        assert_eq!(tree.text(), "root\n├─ one\n│  └─ deep\n└─ two\n");
    }

    #[test]
    fn long_lines_stay_under_their_branch() {
        let tree = Node::new("root").with([Node::new("word ".repeat(30)), Node::new("two")]);
        let text = tree.text();
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.lines().nth(2).is_some_and(|line| line.starts_with("│  word")), "{text}");
    }
}
