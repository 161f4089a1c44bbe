//! The answer put together: for each change the story of the channel on which it came furthest.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::answer::{Answer, Explained, Outcome, Request, Says, Step};
use super::evidence::{Evidence, Past};
use super::rights::{self, Rights, Who};
use super::search::{Found, Searched, TableName, shown};
use super::story::{self, Case, Channel, Ending};
use super::{Subject, WhyDeps, clock};
use crate::catalog::{Catalog, Table};
use crate::change::{Change, RowChange, Tuple, Value};
use crate::claims::Principal;
use crate::hub::{Action, Entry, LiveChannel, Looked, MOST, Name, Start, is_of_messages, wants};
use crate::journal::Wanted;

/// What the answer is made of.
pub(super) struct Scene<'a> {
    pub(super) deps: &'a WhyDeps,
    pub(super) request: &'a Request,
    pub(super) subject: &'a Subject,
    pub(super) looked: &'a Looked,
    pub(super) catalog: &'a Catalog,
    pub(super) evidence: &'a Evidence,
    /// Live channels that the journal does not know.
    pub(super) unknown: Vec<Past>,
}

/// Live channels that the journal lacks: it is off, or their join was too long ago for it.
pub(super) fn unknown(looked: &Looked, evidence: &Evidence) -> Vec<Past> {
    let run = evidence.present_run();
    let known =
        |live: &LiveChannel| evidence.channels.iter().any(|p| p.run == run && p.id == live.id && p.from.is_some());
    let past = |live: &LiveChannel| Past {
        run,
        id: live.id,
        connection: Some(live.connection),
        topic: Some(live.topic.clone()),
        role: live.principal.role.clone(),
        joined: None,
        from: Some(live.from),
        entries: None,
        left: None,
        expired: None,
        tokens: vec![(live.from, live.principal.expires_at)],
        ended: None,
        ..evidence.rest_of(live.id)
    };
    looked.channels.iter().filter(|live| !known(live)).map(past).collect()
}

impl Scene<'_> {
    pub(super) async fn answer(&self, searched: Searched, table: Option<&TableName>) -> Answer {
        let mut remarks: Vec<String> = self.subject.remark.iter().cloned().collect();
        let mut changes = Vec::new();
        for found in &searched.found {
            changes.push(self.explained(found).await);
        }
        if self.subject.principal.is_none() && self.live_principal(None).is_none() {
            remarks.push(
                "only sub and role of the user are known, no other claim: nobody of that name is connected".into(),
            );
        }
        if self.looked.channels.len() >= MOST || self.evidence.more {
            remarks.push("the user has more channels than are looked at; the answer is about some of them".into());
        }
        let mut answered = !changes.is_empty() && changes.iter().all(|change| change.outcome != Outcome::Unknown);
        if changes.is_empty() {
            let (known, remark) = self.nothing(table, searched.complete);
            answered = known;
            remarks.push(remark);
        }
        Answer {
            answered,
            table: table.map(|table| format!("{}.{}", table.schema, table.name)),
            user: self.subject.subject.to_string(),
            role: self.subject.role.as_deref().map(str::to_owned),
            searched: searched.text,
            evidence: self.evidence.describe(self.deps.journal.is_on()),
            remarks,
            changes,
        }
    }

    /// There is no such change; whether that is an answer.
    fn nothing(&self, table: Option<&TableName>, complete: bool) -> (bool, String) {
        let Some(name) = table else { return (false, "there is no change at this position in the log".into()) };
        let shown = format!("{}.{}", name.schema, name.name);
        let known = name.oid.and_then(|oid| self.catalog.table(oid));
        let Some(published) = known.and_then(|table| table.published.as_ref()) else {
            let text = format!(
                "{shown} is not published now, so no change of it is sent to anybody: add it to the publication"
            );
            return (true, text);
        };
        let kinds = [(published.insert, "INSERT"), (published.update, "UPDATE"), (published.delete, "DELETE")];
        let unsent: Vec<&str> = kinds.iter().filter(|(sent, _)| !sent).map(|(_, kind)| *kind).collect();
        let mut text = format!("no change of this row of {shown} is in what was searched");
        if !unsent.is_empty() {
            text.push_str(&format!("; the publication does not send {}", unsent.join(", ")));
        }
        if !complete {
            text.push_str("; older ones may be");
        }
        (false, text)
    }

    async fn explained(&self, found: &Found) -> Explained {
        let row = &found.row;
        let (kind, relation) = (kind(&row.change), &row.relation);
        let table = self.catalog.table(relation.oid).map(|table| &**table);
        let published = self.published(found, table);
        let ending = if published.says == Says::No {
            let because = published.text.clone();
            Ending { steps: vec![published], outcome: Outcome::NotSent, because }
        } else {
            let mut ending = self.ending(found, table).await;
            ending.steps.insert(0, published);
            ending
        };
        Explained {
            position: shown(row.position),
            table: format!("{}.{}", relation.schema, relation.table),
            kind: kind.into(),
            committed_at: clock::time(found.millis()),
            row: self.request.show_row.then(|| values(found)),
            steps: ending.steps,
            outcome: ending.outcome,
            because: ending.because,
        }
    }

    fn published(&self, found: &Found, table: Option<&Table>) -> Step {
        let at = found.row.position;
        let changed = self.evidence.rules.iter().any(|(_, position)| position.lsn >= at.lsn)
            || !self.evidence.covers(at, found.millis());
        let no = |text: String| {
            let (says, text) = match changed {
                true => (Says::Unknown, format!("{text} now; the rules may have changed since")),
                false => (Says::No, text),
            };
            Step::new("published", says, text)
        };
        let is_delete = matches!(found.row.change, Change::Delete { .. });
        if found.retention && is_delete {
            return Step::new("published", Says::No, "the row was removed by retention, which nobody is told");
        }
        if is_message(&found.row) {
            return Step::new("published", Says::Yes, "it is a database broadcast, and in the stream as one");
        }
        let Some(published) = table.and_then(|table| table.published.as_ref()) else {
            return no("the table is in no publication of clients".into());
        };
        let sends = match found.row.change {
            Change::Insert { .. } => published.insert,
            Change::Update { .. } => published.update,
            Change::Delete { .. } => published.delete,
        };
        if !sends {
            return no(format!("the publication does not send {}", kind(&found.row.change)));
        }
        Step::new("published", Says::Yes, "it is in the stream, and its publication sends it to clients")
    }

    /// The story that is told: of the channel on which it came furthest.
    async fn ending(&self, found: &Found, table: Option<&Table>) -> Ending {
        let mut rights: HashMap<Arc<str>, Rights> = HashMap::new();
        let present = self.evidence.present_run();
        let mut best: Option<Ending> = None;
        let mut told = 0;
        for past in self.evidence.channels.iter().filter(|past| !self.replaced(past)).chain(&self.unknown) {
            let live = self.looked.channels.iter().find(|live| past.run == present && live.id == past.id);
            let channel = Channel {
                past,
                live: live.map(|live| live.waiting),
                in_force: live.is_none_or(|live| live.in_force),
                present: past.run == present,
            };
            let role = past.role.clone();
            if !rights.contains_key(&role) {
                let who = self.who(&role, live);
                rights.insert(role.clone(), rights::now(self.deps, self.catalog, &found.row, &who).await);
            }
            let Some(of_role) = rights.get(&role) else { continue };
            // The right to the channel, which is its own.
            let of_channel = is_message(&found.row).then(|| rights::of_message(&found.row, live));
            let case = Case { found, evidence: self.evidence, rights: of_channel.as_ref().unwrap_or(of_role) };
            let ending = self.of_channel(&case, &channel, live, table).await;
            told += 1;
            if best.as_ref().is_none_or(|best| ending.rank() > best.rank()) {
                best = Some(ending);
            }
        }
        let mut ending = match best {
            // That a channel ended long before says nothing; that nobody knows of others does.
            Some(ending)
                if ending.outcome != Outcome::NotSent || self.evidence.covers(found.row.position, found.millis()) =>
            {
                ending
            }
            best => {
                let role = self.subject.role.clone().unwrap_or_else(|| "authenticated".into());
                let known = rights.remove(&role);
                let rights = match known {
                    Some(rights) => rights,
                    None => rights::now(self.deps, self.catalog, &found.row, &self.who(&role, None)).await,
                };
                let refused = self.evidence.refused.iter().rfind(|(at, _)| *at <= found.millis());
                let refused = refused.map(|(at, topic)| (*at, topic.to_string()));
                let nobody = story::nobody(&Case { found, evidence: self.evidence, rights: &rights }, refused);
                // A step that is certain whatever else there was: nobody with these rights would have got it.
                match best {
                    Some(best) if nobody.outcome == Outcome::NotSent => best,
                    _ => nobody,
                }
            }
        };
        if told > 1 {
            let others = told - 1;
            ending.because.push_str(&format!(" ({others} more channels of this user were looked at)"));
        }
        if matches!(ending.outcome, Outcome::Sent | Outcome::Unknown)
            && let Some(text) = story::ahead(found.row.position, self.looked.position)
        {
            (ending.outcome, ending.because) = (Outcome::Waiting, text);
        }
        ending
    }

    /// The hub knows more of this channel than the journal.
    fn replaced(&self, past: &Past) -> bool {
        self.unknown.iter().any(|unknown| (unknown.run, unknown.id) == (past.run, past.id))
    }

    async fn of_channel(
        &self,
        case: &Case<'_>,
        channel: &Channel<'_>,
        live: Option<&LiveChannel>,
        table: Option<&Table>,
    ) -> Ending {
        let (row, past) = (&case.found.row, channel.past);
        let rights = || Step::new("rights_now", case.rights.says, case.rights.text.clone());
        let (mut says, mut text) = case.subscribed(channel);
        let end = |says: Says, text: String| {
            let outcome = if says == Says::No { Outcome::NotSent } else { Outcome::Unknown };
            Ending { steps: vec![Step::new("subscribed", says, text.clone()), rights()], outcome, because: text }
        };
        if says == Says::No {
            return end(says, text);
        }
        let kept: Option<Vec<Entry>> = match (live, &past.entries) {
            (Some(live), _) => Some(live.entries.iter().map(Entry::as_rows).collect()),
            (None, Some(entries)) => Some(entries.iter().map(entry).collect()),
            (None, None) => None,
        };
        let Some(entries) = kept else {
            return end(Says::Unknown, format!("what {} had asked for is not in the journal", past.name()));
        };
        let (schema, name) = (&row.relation.schema, &row.relation.table);
        let wanted: Vec<&Entry> = entries.iter().filter(|entry| wants(entry, schema, name, &row.change)).collect();
        if wanted.is_empty() {
            text = format!("{} had no entry for {} of {schema}.{name}", past.name(), kind(&row.change));
            says = Says::No;
        }
        if says != Says::Yes {
            return end(says, text);
        }
        let passes = self.filters(&wanted, &past.role, row, table).await;
        case.told(channel, passes, vec![Step::new("subscribed", says, text)])
    }

    /// One entry that lets it through is enough.
    async fn filters(
        &self,
        entries: &[&Entry],
        role: &str,
        row: &Arc<RowChange>,
        table: Option<&Table>,
    ) -> (Says, String) {
        let mut all = Vec::new();
        for entry in entries {
            let known = (self.catalog, table);
            let (says, text) = rights::filter(self.deps, known, (entry, role), row, self.request.show_row).await;
            if says == Says::Yes {
                return (says, text);
            }
            all.push((says, text));
        }
        let says = if all.iter().any(|(says, _)| *says == Says::Unknown) { Says::Unknown } else { Says::No };
        let mut texts: Vec<String> = all.into_iter().filter(|(s, _)| *s == says).map(|(_, text)| text).collect();
        texts.dedup();
        (says, texts.join("; "))
    }

    /// The claims that a row is judged with: of the token that was given, of a channel that is there, or what little is known.
    fn who(&self, role: &Arc<str>, live: Option<&LiveChannel>) -> Who {
        let given = self.subject.principal.as_ref().filter(|principal| principal.role == *role);
        let known = live.map(|live| &live.principal).or(given).or_else(|| self.live_principal(Some(role)));
        if let Some(principal) = known {
            // Whether the token has expired is looked at with the evidence.
            let principal = Principal { expires_at: i64::MAX, ..(**principal).clone() };
            return Who { principal: Arc::new(principal), whole: true };
        }
        let mut claims = Map::new();
        claims.insert("role".into(), Json::from(&**role));
        if !self.subject.subject.is_empty() {
            claims.insert("sub".into(), Json::from(&*self.subject.subject));
        }
        let principal = Principal::new(claims, i64::MAX).map(Arc::new);
        // There is a role, so there is a principal.
        let principal = principal.unwrap_or_else(|| unreachable!("a role was put into the claims"));
        Who { principal, whole: false }
    }

    fn live_principal(&self, role: Option<&Arc<str>>) -> Option<&Arc<Principal>> {
        let channels = self.looked.channels.iter().map(|live| &live.principal);
        channels.into_iter().find(|principal| role.is_none_or(|role| principal.role == *role))
    }
}

fn entry(wanted: &Wanted) -> Entry {
    let name = |name: &Option<Arc<str>>| name.clone().map_or(Name::Any, Name::Is);
    let action = match &*wanted.action {
        "INSERT" => Action::Insert,
        "UPDATE" => Action::Update,
        "DELETE" => Action::Delete,
        _ => Action::All,
    };
    let (schema, table, filter) = (name(&wanted.schema), name(&wanted.table), wanted.filter.clone());
    let (start, cursor_as, snapshot) = (Start::Now, None, None);
    Entry { id: wanted.id, action, schema, table, filter, select: None, start, cursor_as, snapshot, messages: None }
}

/// Sent to the members of its topic; whether somebody asks for the table as well is another question.
fn is_message(row: &RowChange) -> bool {
    is_of_messages(&row.relation) && matches!(row.change, Change::Insert { .. })
}

fn kind(change: &Change) -> &'static str {
    match change {
        Change::Insert { .. } => "INSERT",
        Change::Update { .. } => "UPDATE",
        Change::Delete { .. } => "DELETE",
    }
}

/// The values as the stream has them.
fn values(found: &Found) -> Map<String, Json> {
    let row = &found.row;
    let of = |tuple: &Tuple| -> Map<String, Json> {
        let named = row.relation.columns.iter().zip(tuple.values());
        let sent = named.filter(|(_, value)| *value != Value::Unchanged);
        let text = |value: Value<'_>| match value {
            Value::Text(text) => Json::from(String::from_utf8_lossy(text)),
            Value::Null | Value::Unchanged => Json::Null,
        };
        sent.map(|(column, value)| (column.name.clone(), text(value))).collect()
    };
    match &row.change {
        Change::Insert { new } | Change::Update { new, .. } => of(new),
        Change::Delete { old } => of(old.tuple()),
    }
}
