//! `rowcast explain-policy`: the rules of a table as a tree, or as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

use super::args::ExplainArgs;
use super::doctor::{json, wrapped};
use super::{Environment, Failure, relay};
use crate::config::{SHORTEST_SECRET, Settings};
use crate::doctor::{self, ChannelView, Explanation, FactView, PolicyText};
use crate::policy::rule::Branch;

pub(super) async fn explain(args: &ExplainArgs, environment: &Environment) -> Result<(), Failure> {
    let mut settings = environment.settings(args.database.config.as_deref(), &args.database.flags())?;
    // No token is verified here, so a secret that is missing harms nobody; how deletes and partitions are treated counts.
    settings.set("jwt_secret", &"-".repeat(SHORTEST_SECRET));
    let config = settings.config(&environment.data_dir())?;
    let roles = if args.role.is_empty() { vec!["anon".into(), "authenticated".into()] } else { args.role.clone() };
    let mut explanations = Box::pin(doctor::explain(&config, &args.table, &roles)).await?;
    running(&settings, &mut explanations).await;
    if args.json {
        println!("{}", json(&explanations)?);
    } else {
        let trees: Vec<String> = explanations.iter().map(|explanation| tree(explanation).text()).collect();
        print!("{}", trees.join("\n"));
    }
    Ok(())
}

/// How long a relay is waited for that may not run.
const DEADLINE: Duration = Duration::from_secs(3);

/// What the relay that runs has in memory, in place of estimates. Without one there is nothing to tell.
async fn running(settings: &Settings, explanations: &mut [Explanation]) {
    if explanations.iter_mut().all(|explanation| facts(explanation).next().is_none()) {
        return;
    }
    let Ok(address) = relay::address(settings) else { return };
    let Ok((200, text)) = relay::ask(address, ("GET", "/state"), "", DEADLINE).await else { return };
    let Ok(state) = serde_json::from_str::<Value>(&text) else { return };
    let Some(loaded) = state["hub"]["facts"].as_array() else { return };
    for fact in explanations.iter_mut().flat_map(facts) {
        let Some(known) = loaded.iter().find(|known| known["table"] == *fact.table) else {
            fact.state = "not loaded".into();
            continue;
        };
        let text = |name: &str| known[name].as_str().unwrap_or_default().to_owned();
        (fact.state, fact.why, fact.remedy) = (text("state"), text("why"), text("remedy"));
        if fact.state == "ready" {
            (fact.rows, fact.bytes) = (known["rows"].as_u64(), known["bytes"].as_u64());
        }
    }
}

/// Of its rows and of private channels.
fn facts(explanation: &mut Explanation) -> impl Iterator<Item = &mut FactView> {
    let channels = explanation.private_channels.iter_mut().flat_map(|view| &mut view.facts);
    explanation.facts.iter_mut().chain(channels)
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
    let rows = rows(e);
    let changes = Node::new("changes of the rules").with([
        Node::new(format!("count from their commit on: {}", e.rules.at_commit.join("; "))),
        Node::new(format!(
            "count for every row that is judged more than {} after their commit: {}",
            time(e.rules.within_ms),
            e.rules.polled.join("; ")
        )),
    ]);
    let mut nodes = if e.private_channels.is_empty() {
        rows
    } else {
        let subscribed = Node::new("its rows, where it is subscribed to as a table (postgres_changes)").with(rows);
        vec![channels(e), subscribed]
    };
    nodes.push(changes);
    Node::new(format!("{} for {}", e.table, e.role)).with(nodes)
}

/// What becomes of its rows.
fn rows(e: &Explanation) -> Vec<Node> {
    let mut nodes = vec![judged(e)];
    nodes.extend(e.obstacle.map(|why| Node::new(format!("INSERT and UPDATE are never sent: {why}"))));
    nodes.push(policies("policies for reading", &e.policies, "no USING: neither permits nor restricts reading"));
    nodes.extend(e.row_filter.as_ref().map(|filter| Node::new(format!("row filter of the publication: {filter}"))));
    nodes.push(columns(e));
    let verb = if e.deletes.delivered { "judged and sent" } else { "never sent" };
    nodes.push(Node::new(format!("DELETE: {verb}; {}", e.deletes.why)));
    nodes
}

fn policies(title: &str, texts: &[PolicyText], silent: &str) -> Node {
    let policies = texts.iter().map(|policy| {
        let mark = if policy.applies { "applies" } else { "does not apply" };
        let head = format!(
            "\"{}\" {} for {} to {}: {mark}",
            policy.name,
            policy.kind,
            policy.command,
            policy.roles.join(", ")
        );
        let judge = match (policy.in_memory, &policy.asked_because) {
            (Some(true), _) => Some(Node::new("memory can judge it")),
            (Some(false), Some(why)) => Some(Node::new(format!("Postgres must be asked: {why}"))),
            _ => None,
        };
        Node::new(head).with([Node::new(policy.using.as_deref().unwrap_or(silent))].into_iter().chain(judge))
    });
    match texts.len() {
        0 => Node::new(format!("{title}: none")),
        count => Node::new(format!("{title}: {count}")).with(policies),
    }
}

/// What the policies of `realtime.messages` are really for.
fn channels(e: &Explanation) -> Node {
    let way = |view: &ChannelView| {
        let who = match view.engine {
            "everything" => "everybody of the role may",
            "pure" => "judged in memory",
            "probe" => "Postgres is asked, with rows that are rolled back",
            _ => "nobody of the role may",
        };
        let mut node = Node::new(format!("{}: {who}", view.way));
        node.below.push(Node::new(format!("because {}", view.reason)));
        node.below.extend(view.condition_tree.as_ref().map(|tree| Node::new("condition").with([branch(tree)])));
        if !view.facts.is_empty() {
            let until = "until it is in memory Postgres is asked";
            node.below.push(Node::new("it looks into").with(view.facts.iter().map(|view| fact(view, until))));
        }
        if !view.casts.is_empty() {
            node.below.push(Node::new(format!(
                "about a topic for which {} raises an error, Postgres is asked; compared as text, nothing raises",
                view.casts.join(" or ")
            )));
        }
        node.below.push(Node::new(view.kept.clone()));
        node.below.extend(view.pure_if.as_ref().map(|hint| Node::new(format!("memory could judge: {hint}"))));
        let (title, silent) = match view.way {
            "read" => ("policies for reading", "no USING: neither permits nor restricts reading"),
            _ => ("policies for inserting", "no condition: neither permits nor restricts inserting"),
        };
        node.below.push(policies(title, &view.policies, silent));
        node
    };
    Node::new("private channels").with(e.private_channels.iter().map(way))
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
    node.below.extend(e.condition_tree.as_ref().map(|tree| Node::new("condition").with([branch(tree)])));
    if !e.facts.is_empty() {
        node.below.push(Node::new("it looks into").with(e.facts.iter().map(|view| fact(view, ASKED))));
    }
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

fn branch(branch: &Branch) -> Node {
    Node::new(branch.text.clone()).with(branch.below.iter().map(self::branch))
}

const ASKED: &str = "until it is in memory Postgres is asked, and a DELETE that cascades from it reaches nobody";

fn fact(fact: &FactView, asked: &str) -> Node {
    let size = match (fact.rows, fact.bytes) {
        (Some(rows), Some(bytes)) => format!("{rows} rows, {} KiB in memory", bytes.div_ceil(1024)),
        (Some(rows), None) => format!("about {rows} rows"),
        _ => "never analyzed".into(),
    };
    let node = Node::new(format!("{} ({}): {}; {size}", fact.table, fact.columns.join(", "), fact.state));
    let more = [fact.why.as_str(), if fact.why.is_empty() { "" } else { asked }, fact.remedy.as_str()];
    node.with(more.into_iter().filter(|text| !text.is_empty()).map(Node::new))
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
