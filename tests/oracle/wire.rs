//! End to end: generated tables and subscribers on a real relay, one batch of committed changes, and then a mark. What each
//! subscriber received up to the mark must be what Postgres says he is owed, frame by frame.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use rowcast::clock::Clock;
use rowcast::dev::mint_token;
use serde_json::{Map, Value, json};

use super::check::Difference;
use super::claims::Who;
use super::dice::Dice;
use super::filters::Filter;
use super::json::normal;
use super::round::{Round, Step};
use super::rules::{Owed, Rules};
use super::shrink::repeat;
use super::stage::{Stage, Truth};
use crate::support::token::SECRET;
use crate::support::{Change, Relay};

const TABLES: u64 = 4;
const PHONES: usize = 24;
const FILTERS: usize = 12;

const MARKS: &str =
    "create table public.marks (id bigint generated always as identity primary key, note text not null);
    grant select on public.marks to anon, authenticated, clerk, service_role;
    alter publication supabase_realtime add table public.marks;";

#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    pub(super) entries: usize,
    pub(super) changes: usize,
    pub(super) owed: usize,
    pub(super) received: usize,
}

impl Counts {
    pub(super) fn add(&mut self, other: Counts) {
        self.entries += other.entries;
        self.changes += other.changes;
        self.owed += other.owed;
        self.received += other.received;
    }
}

/// A table of the scene.
struct Part {
    round: Round,
    truth: Truth,
    /// For each filter which images match; none if the relay doesn't take it.
    filters: Vec<Option<Vec<bool>>>,
}

/// An entry of a subscription.
struct Entry {
    part: usize,
    event: &'static str,
    filter: Option<usize>,
    select: Option<Vec<usize>>,
    id: i64,
}

/// One frame that a subscriber is owed, in any of these forms.
struct Due {
    forms: Vec<String>,
    must: bool,
    part: usize,
    step: Step,
    filter: Option<usize>,
}

/// Spoils what one of the subscribers received, to see that it is noticed.
pub(super) type Spoil = fn(&mut Vec<Change>);

/// Runs one scene. The error says what differs, with the SQL to see it again.
pub(super) async fn run(seed: u64, spoil: Option<Spoil>) -> Result<Counts, String> {
    let mut stage = Stage::for_relay().await;
    stage.pg.exec(MARKS).await;
    let mut dice = Dice::new(seed);
    let who: Vec<Who> = (0..PHONES).map(|_| Who::generate(&mut dice)).collect();
    let mut parts = Vec::new();
    for number in 0..TABLES {
        let mut round = Round::generate(seed.wrapping_mul(TABLES).wrapping_add(number));
        round.who.clone_from(&who);
        round.filters.truncate(FILTERS);
        let truth = stage.begin(&round).await?;
        parts.push(Part { round, truth, filters: Vec::new() });
    }
    let relay = Relay::with(&stage.pg, Clock::system(), |config| {
        // A busy machine must not look like a hostile pattern.
        config.hub.filter_ask.statement_timeout = Duration::from_secs(5);
        config.hub.filter_ask.budget = Duration::from_secs(600);
        (config.hub.filter_ask.conditions_of_owner, config.hub.filter_ask.part_of_rest) = (1000, 1);
    })
    .await;
    let mut counts = Counts::default();
    for part in &mut parts {
        part.filters = accepted(&stage, &relay, part).await?;
    }
    let mut phones = Vec::new();
    for who in &who {
        let mut entries: Vec<Entry> = (0..parts.len()).flat_map(|part| entries(&mut dice, &parts, part, who)).collect();
        let mut phone = relay.phone(&token(who)).await;
        let mut wanted: Vec<Value> = entries.iter().map(|entry| entry.json(&parts)).collect();
        wanted.push(json!({ "event": "INSERT", "schema": "public", "table": "marks" }));
        let ids = phone.subscribe("room", &Value::from(wanted)).await;
        entries.iter_mut().zip(ids).for_each(|(entry, id)| entry.id = id);
        counts.entries += entries.len();
        phones.push((phone, entries));
    }
    mark(&stage, "begin").await;
    for (phone, _) in &mut phones {
        phone.changes_before("begin").await;
    }
    let changes = write(&stage, &mut dice, &parts).await;
    counts.changes += changes.len();
    mark(&stage, "end").await;
    for (index, (phone, entries)) in phones.iter_mut().enumerate() {
        let mut received = phone.changes_before("end").await;
        if let Some(spoil) = spoil.filter(|_| index == 0) {
            spoil(&mut received);
        }
        counts.received += received.len();
        let due: Vec<Due> = changes.iter().flat_map(|change| due(&parts, entries, index, *change)).collect();
        counts.owed += due.iter().filter(|due| due.must).count();
        compare(&parts, index, due, received)?;
    }
    Ok(counts)
}

async fn mark(stage: &Stage, note: &str) {
    stage.pg.exec(&format!("insert into public.marks (note) values ('{note}')")).await;
}

fn token(who: &Who) -> String {
    let claims: Map<String, Value> = (*who.principal.claims).clone();
    mint_token(SECRET, claims, &Clock::system(), Duration::from_secs(3600)).expect("claims can be signed")
}

/// Which filters the relay takes from a subscriber who may read all columns, each tried in a channel of its own.
async fn accepted(stage: &Stage, relay: &Relay, part: &Part) -> Result<Vec<Option<Vec<bool>>>, String> {
    let claims = [("role".to_owned(), json!("authenticated"))].into_iter().collect();
    let mut scout = relay.phone(&token(&Who::new(claims, &[]))).await;
    let mut taken = Vec::new();
    for (index, filter) in part.round.filters.iter().enumerate() {
        let answer = stage.matching(&part.round, &part.truth, &[filter]).await.remove(0);
        let topic = format!("scout-{index}");
        let entry = json!([{ "event": "*", "schema": "public", "table": part.truth.name, "filter": filter.text() }]);
        let reply = scout.join(&topic, &entry).await;
        assert_eq!(reply["status"], "ok", "{reply}");
        let system = scout.system(&topic).await;
        let message = system["message"].as_str().unwrap_or_default();
        let answer = match (system["status"] == "ok", answer) {
            (true, Ok(matching)) => Some(matching),
            (false, Err(_)) => None,
            // One of its conditions is wrong that another one keeps a SELECT from reaching.
            (false, Ok(_)) if refused_alone(stage, part, filter, message).await => None,
            (_, answer) => {
                let what = format!("the relay says {message:?}, Postgres {answer:?}");
                let difference = Difference { what, step: None, who: None, filter: Some(0) };
                let round = part.round.narrowed(None, None, Some(index));
                return Err(repeat(&round, &difference));
            }
        };
        taken.push(answer);
        scout.leave(&topic).await;
    }
    Ok(taken)
}

/// Whether Postgres refuses one of the conditions with the code of this message.
async fn refused_alone(stage: &Stage, part: &Part, filter: &Filter, message: &str) -> bool {
    let code = message.split_once("ERROR ").and_then(|(_, rest)| rest.get(..5));
    match code {
        Some(code) => stage.refuses(&part.round, &part.truth, filter, code).await.is_ok(),
        None => false,
    }
}

/// One or two on a table that this subscriber may make.
fn entries(dice: &mut Dice, parts: &[Part], part: usize, who: &Who) -> Vec<Entry> {
    let Part { round, truth, filters } = &parts[part];
    let readable = &truth.readable[who.role()];
    let usable = |index: &usize| {
        let mut conditions = round.filters[*index].0.iter();
        filters[*index].is_some() && conditions.all(|c| readable[round.table.find(&c.column)])
    };
    let usable: Vec<usize> = (0..filters.len()).filter(usable).collect();
    let mut made = Vec::new();
    for _ in 0..1 + dice.below(2) {
        let event = *dice.one(&["*", "*", "INSERT", "UPDATE", "DELETE", "update"]);
        let filter = (!usable.is_empty() && dice.percent(55)).then(|| *dice.one(&usable));
        // With `n`, so that no two frames of new rows are alike.
        let columns: Vec<usize> =
            (0..readable.len()).filter(|i| *i == 0 || (readable[*i] && dice.percent(40))).collect();
        let select = dice.percent(30).then_some(columns);
        made.push(Entry { part, event, filter, select, id: 0 });
    }
    made
}

impl Entry {
    fn json(&self, parts: &[Part]) -> Value {
        let Part { round, truth, .. } = &parts[self.part];
        let mut entry = json!({ "event": self.event, "schema": "public", "table": truth.name });
        if let Some(filter) = self.filter {
            entry["filter"] = round.filters[filter].text().into();
        }
        if let Some(select) = &self.select {
            entry["select"] = select.iter().map(|i| round.table.columns[*i].name.as_str()).collect();
        }
        entry
    }

    fn wants(&self, rules: &Rules<'_>, matching: &[Option<Vec<bool>>], step: Step) -> bool {
        let kind = self.event == "*" || self.event.eq_ignore_ascii_case(kind(step));
        kind && self.filter.is_none_or(|filter| {
            let columns = rules.round.filters[filter].0.iter().map(|condition| condition.column.as_str());
            let matching = matching[filter].as_ref().expect("it was accepted");
            rules.sent(step, columns) && matching[step.judged()]
        })
    }
}

fn kind(step: Step) -> &'static str {
    match step {
        Step::Insert(_) => "INSERT",
        Step::Update(..) => "UPDATE",
        Step::Delete(_) => "DELETE",
    }
}

/// Commits changes to all tables, several in a transaction; those that Postgres refuses (a key that is there already) are
/// not in the result.
async fn write(stage: &Stage, dice: &mut Dice, parts: &[Part]) -> Vec<(usize, Step)> {
    let client = stage.pg.client().await;
    let mut alive: Vec<Vec<usize>> = vec![Vec::new(); parts.len()];
    let mut done = Vec::new();
    let mut open = false;
    let images: Vec<(usize, usize)> =
        (0..parts[0].round.rows.len()).flat_map(|row| (0..parts.len()).map(move |part| (part, row))).collect();
    for (part, row) in images {
        let round = &parts[part].round;
        let mut steps = Vec::new();
        let sibling = alive[part].iter().copied().find(|n| round.table.same_key(&round.rows[*n], &round.rows[row]));
        steps.push(match sibling {
            Some(sibling) => Step::Update(sibling, row),
            None if !alive[part].is_empty() && dice.percent(35) => Step::Update(*dice.one(&alive[part]), row),
            None => Step::Insert(row),
        });
        if dice.percent(30) {
            steps.push(Step::Delete(row));
        }
        for step in steps {
            if !open {
                client.batch_execute("begin").await.expect("begins");
                open = true;
            }
            client.batch_execute("savepoint s").await.expect("a savepoint");
            match client.batch_execute(&statement(&parts[part], step)).await {
                Ok(()) => {
                    alive[part].retain(|n| !matches!(step, Step::Update(old, _) | Step::Delete(old) if old == *n));
                    if !step.is_delete() {
                        alive[part].push(row);
                    }
                    done.push((part, step));
                }
                Err(error) => {
                    assert_eq!(error.code().map(|code| code.code()), Some("23505"), "{error:?}");
                    client.batch_execute("rollback to savepoint s").await.expect("goes back");
                    break;
                }
            }
            if dice.percent(30) {
                client.batch_execute("commit").await.expect("commits");
                open = false;
            }
        }
    }
    if open {
        client.batch_execute("commit").await.expect("commits");
    }
    done
}

fn statement(part: &Part, step: Step) -> String {
    let (table, name, rows) = (&part.round.table, &part.truth.name, &part.round.rows);
    match step {
        Step::Insert(row) => table.insert(name, &[&rows[row]]),
        Step::Delete(row) => format!("delete from public.{name} where n = {row}"),
        Step::Update(from, to) => {
            // What stays is not mentioned, so that a value out of line stays where it is.
            let values = table.columns.iter().zip(table.literals(&rows[to])).enumerate();
            let values = values.filter(|(i, _)| rows[from][*i] != rows[to][*i]);
            let values: Vec<String> =
                values.map(|(_, (column, value))| format!("{} = {value}", column.quoted())).collect();
            format!("update public.{name} set {} where n = {from}", values.join(", "))
        }
    }
}

/// The frames of one change: one for each selection, with the ids of its entries.
fn due(parts: &[Part], entries: &[Entry], who: usize, (part, step): (usize, Step)) -> Vec<Due> {
    let Part { round, truth, filters } = &parts[part];
    let rules = Rules { round, truth };
    let owed = rules.owed(step, who);
    if owed == Owed::Not {
        return Vec::new();
    }
    let mut groups: BTreeMap<Option<Vec<usize>>, Vec<&Entry>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry.part == part && entry.wants(&rules, filters, step)) {
        let select = entry.select.as_ref().map(|select| {
            let mut columns: Vec<usize> = select.iter().chain(&round.table.key).copied().collect();
            columns.sort_unstable();
            columns.dedup();
            columns
        });
        groups.entry(select).or_default().push(entry);
    }
    let frame = |(select, entries): (Option<Vec<usize>>, Vec<&Entry>)| {
        let shown = |columns: Vec<usize>| -> Vec<usize> {
            let mut columns = rules.readable(who, &columns);
            columns.retain(|column| select.as_ref().is_none_or(|select| select.contains(column)));
            columns.sort_unstable();
            columns
        };
        let (all, key) = (shown(rules.all()), shown(round.table.identity_columns()));
        let new = shown(rules.new_columns(step));
        let mut ids: Vec<i64> = entries.iter().map(|entry| entry.id).collect();
        ids.sort_unstable();
        ids.dedup();
        let form = |named: &[usize], new: Option<(usize, &[usize])>, old: Option<(usize, &[usize])>| {
            let object = |of: (usize, &[usize])| {
                let value = |i: &usize| (round.table.columns[*i].name.clone(), single(&truth.json[of.0][*i]));
                of.1.iter().map(value).collect::<BTreeMap<String, String>>()
            };
            let named = named.iter().map(|i| round.table.columns[*i].name.clone()).collect();
            print(&truth.name, kind(step), &ids, named, new.map(object), old.map(object))
        };
        let forms = match step {
            Step::Insert(row) => vec![form(&all, Some((row, &new)), None)],
            Step::Delete(row) => {
                let identity = shown(rules.identity());
                vec![form(&all, None, Some((row, &identity)))]
            }
            Step::Update(from, to) => {
                let with = |old: &[usize]| form(&all, Some((to, &new)), Some((from, old)));
                match rules.widened(from, who) {
                    Owed::Must => vec![with(&all)],
                    Owed::May => vec![with(&key), with(&all)],
                    Owed::Not => vec![with(&key)],
                }
            }
        };
        Due { forms, must: owed == Owed::Must, part, step, filter: entries[0].filter }
    };
    groups.into_iter().map(frame).collect()
}

/// A value as the phone's JSON parser leaves it.
fn single(json: &str) -> String {
    readable(&serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}")))
}

/// In one form; of a large value its beginning and its length, since nothing else of them differs.
fn readable(value: &Value) -> String {
    let text = normal(&value.to_string(), true);
    if text.len() < 1000 {
        text
    } else {
        format!("{}… ({} bytes)", text.chars().take(20).collect::<String>(), text.len())
    }
}

type Object = Option<BTreeMap<String, String>>;

fn print(table: &str, kind: &str, ids: &[i64], columns: Vec<String>, new: Object, old: Object) -> String {
    format!("{kind} {table} {ids:?} columns {columns:?}\n    record {new:?}\n    old_record {old:?}")
}

fn printed(change: &Change) -> String {
    let object = |name: &str| -> Object {
        let object = change.data.get(name)?.as_object().expect("an object");
        Some(object.iter().map(|(key, value)| (key.clone(), readable(value))).collect())
    };
    let columns = change.data["columns"].as_array().expect("an array").iter();
    let columns = columns.map(|column| column["name"].as_str().expect("a name").to_owned()).collect();
    let mut ids = change.ids.clone();
    ids.sort_unstable();
    assert_eq!(change.data["errors"], Value::Null);
    print(change.table(), change.kind(), &ids, columns, object("record"), object("old_record"))
}

/// Each frame that is owed is there once, and no other.
fn compare(parts: &[Part], who: usize, mut due: Vec<Due>, received: Vec<Change>) -> Result<(), String> {
    let mut left: BTreeMap<String, usize> = BTreeMap::new();
    for change in &received {
        *left.entry(printed(change)).or_default() += 1;
    }
    let mut missing = Vec::new();
    // Frames that are alike but for whether they must come are those of DELETEs of one key.
    due.sort_by_key(|due| !due.must);
    for due in due {
        let form = due.forms.iter().find(|form| left.get(*form).is_some_and(|count| *count > 0));
        match form {
            Some(form) => *left.entry(form.clone()).or_default() -= 1,
            None if due.must => missing.push(due),
            None => {}
        }
    }
    let extra: Vec<&String> = left.iter().filter(|(_, count)| **count > 0).map(|(form, _)| form).collect();
    if missing.is_empty() && extra.is_empty() {
        return Ok(());
    }
    let claims = &parts[0].round.who[who].principal.claims_json;
    let mut why = format!("subscriber {who} with {claims}: {} missing, {} too many\n", missing.len(), extra.len());
    for form in extra.iter().take(5) {
        let _ = writeln!(why, "too many: {form}");
    }
    for due in missing.iter().take(5) {
        let _ = writeln!(why, "missing: {}", due.forms.join("\n  or "));
    }
    if let Some(due) = missing.first() {
        let round = parts[due.part].round.narrowed(Some(due.step), Some(who), due.filter);
        let (who, filter) = (Some(0), due.filter.map(|_| 0));
        let difference =
            Difference { what: "the first that is missing".into(), step: round.steps.first().copied(), who, filter };
        why.push_str(&repeat(&round, &difference));
    } else if let Some(part) = parts.iter().find(|part| extra[0].contains(&format!(" {} ", part.truth.name))) {
        why.push_str(&part.round.table.create(&part.truth.name));
    }
    Err(why)
}
