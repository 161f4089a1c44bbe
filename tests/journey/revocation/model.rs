//! Who may see what after each commit, from the history alone: the policies of [`super::SCHEMA`] written down a second time.

use std::collections::{BTreeMap, HashMap};

use super::history::{Event, Row};

/// What an entry had been after each commit that changed it.
#[derive(Debug, Default)]
struct Past<T>(Vec<(usize, Option<T>)>);

impl<T: Clone> Past<T> {
    /// After commit `at`.
    fn after(&self, at: usize) -> Option<&T> {
        let later = self.0.partition_point(|(commit, _)| *commit <= at);
        self.0[..later].last().and_then(|(_, value)| value.as_ref())
    }
}

/// A row that clients may be sent.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) table: String,
    /// `INSERT`, `UPDATE` or `DELETE`.
    pub(crate) kind: &'static str,
    pub(crate) row: Row,
    /// Number of the commit.
    pub(crate) commit: usize,
}

impl Sent {
    /// What no other change has: rows' ids are never used again, and each UPDATE makes `rev` larger.
    pub(crate) fn key(&self) -> String {
        let rev = if self.kind == "DELETE" { "" } else { &self.row["rev"] };
        format!("{} {} {} {rev}", self.kind, self.table, self.row["id"])
    }

    /// The first state that it may be judged in: its commit's, and for what is gone the one before.
    pub(crate) fn from(&self) -> usize {
        self.commit - usize::from(self.kind == "DELETE")
    }
}

/// Facts and rules after every commit, and all that could be sent.
#[derive(Debug, Default)]
pub(crate) struct Model {
    teams: BTreeMap<String, Past<String>>,
    /// Role by team and user.
    members: BTreeMap<(String, String), Past<String>>,
    blocks: HashMap<(String, String), Past<()>>,
    /// Those of private channels, by room and user.
    rooms: HashMap<(String, String), Past<()>>,
    /// Tables that nobody may read for now.
    closed: HashMap<String, Past<()>>,
    pub(crate) sent: Vec<Sent>,
    /// Number of each commit's operation.
    pub(crate) operations: Vec<Option<u64>>,
}

const CONTENT: [&str; 7] = ["docs", "notes", "asks", "own", "lent", "called", "messages"];

impl Model {
    pub(crate) fn of(history: &[Vec<Event>]) -> Model {
        let mut model = Model::default();
        // State 0 is the empty one, so that there is always one before.
        model.operations.push(None);
        for events in history {
            let commit = model.operations.len();
            model.operations.push(None);
            for event in events {
                model.take(commit, event);
            }
        }
        model
    }

    fn take(&mut self, commit: usize, event: &Event) {
        match event {
            Event::Message { prefix, content } if prefix == "test.operation" => {
                self.operations[commit] = Some(content.parse().expect("a number"));
            }
            Event::Message { prefix, content } if prefix == "test.closed" => {
                self.closed.entry(content.clone()).or_default().0.push((commit, Some(())));
            }
            Event::Message { prefix, content } if prefix == "test.opened" => {
                self.closed.entry(content.clone()).or_default().0.push((commit, None));
            }
            Event::Message { .. } => {}
            Event::Insert { table, new } => {
                self.fact(commit, table, new, true);
                self.content(commit, "INSERT", table, new);
            }
            Event::Update { table, old, new } => {
                if let Some(old) = old {
                    self.fact(commit, table, old, false);
                }
                self.fact(commit, table, new, true);
                self.content(commit, "UPDATE", table, new);
            }
            Event::Delete { table, old } => {
                self.fact(commit, table, old, false);
                self.content(commit, "DELETE", table, old);
            }
            Event::Truncate { table } if table == "blocks" => {
                self.blocks.values_mut().for_each(|past| past.0.push((commit, None)));
            }
            Event::Truncate { table } if table == "members" => {
                self.members.values_mut().for_each(|past| past.0.push((commit, None)));
            }
            Event::Truncate { table } => panic!("nobody truncates {table}"),
        }
    }

    fn fact(&mut self, commit: usize, table: &str, row: &Row, there: bool) {
        let pair = || (row["team_id"].clone(), row["user_id"].clone());
        match table {
            "teams" => {
                let org = there.then(|| row["org_id"].clone());
                self.teams.entry(row["id"].clone()).or_default().0.push((commit, org));
            }
            "members" => {
                let role = there.then(|| row["role"].clone());
                self.members.entry(pair()).or_default().0.push((commit, role));
            }
            "blocks" => self.blocks.entry(pair()).or_default().0.push((commit, there.then_some(()))),
            "room_members" => {
                let pair = (row["room"].clone(), row["user_id"].clone());
                self.rooms.entry(pair).or_default().0.push((commit, there.then_some(())));
            }
            _ => {}
        }
    }

    fn content(&mut self, commit: usize, kind: &'static str, table: &str, row: &Row) {
        if CONTENT.contains(&table) {
            self.sent.push(Sent { table: table.to_owned(), kind, row: row.clone(), commit });
        }
    }

    /// The commits up to this one that closed or opened the table, latest first.
    pub(crate) fn turns(&self, table: &str, at: usize) -> String {
        let turn = |(commit, closed): &(usize, Option<()>)| {
            format!("{commit} {}", if closed.is_some() { "closed" } else { "opened" })
        };
        let past = self.closed.get(table).map(|past| &past.0[..]).unwrap_or_default();
        let until = past.partition_point(|(commit, _)| *commit <= at + 100);
        past[..until].iter().rev().take(6).map(turn).collect::<Vec<_>>().join(", ")
    }

    /// Whether the user may see the row by the facts and rules after commit `at`.
    pub(crate) fn permits(&self, sent: &Sent, user: &str, at: usize) -> bool {
        let role = |team: &str| self.members.get(&(team.to_owned(), user.to_owned())).and_then(|past| past.after(at));
        let closed = self.closed.get(&sent.table).is_some_and(|past| past.after(at).is_some());
        match &sent.table[..] {
            "docs" | "asks" => {
                let team = &sent.row["team_id"];
                let blocked = self.blocks.get(&(team.clone(), user.to_owned()));
                role(team).is_some_and(|role| role != "banned") && blocked.is_none_or(|past| past.after(at).is_none())
            }
            "notes" => {
                let org = &sent.row["org_id"];
                let of_org = |team: &(&String, &Past<String>)| team.1.after(at).is_some_and(|its| its == org);
                self.teams.iter().filter(of_org).any(|(team, _)| role(team).is_some())
            }
            "messages" => {
                let room = (sent.row["topic"].clone(), user.to_owned());
                self.rooms.get(&room).is_some_and(|past| past.after(at).is_some())
            }
            "own" | "lent" | "called" => !closed && sent.row["user_id"] == user,
            table => panic!("no such table: {table}"),
        }
    }
}
