//! What became of one change for one channel, from the evidence: step by step, and never further than it goes.

use super::answer::{Outcome, Says, Step};
use super::clock::time;
use super::evidence::{Closed, Evidence, Past};
use super::rights::Rights;
use super::search::{Found, shown};
use crate::change::{Change, Lsn, Position};

/// What the hub and the journal say of a channel.
pub(super) struct Channel<'a> {
    /// In the journal.
    pub(super) past: &'a Past,
    /// In the hub now: bytes that wait for its connection.
    pub(super) live: Option<usize>,
    pub(super) in_force: bool,
    /// The channel's run is the present one.
    pub(super) present: bool,
}

/// A row on its way to a channel.
pub(super) struct Case<'a> {
    pub(super) found: &'a Found,
    pub(super) evidence: &'a Evidence,
    pub(super) rights: &'a Rights,
}

/// The end of a story.
pub(super) struct Ending {
    pub(super) steps: Vec<Step>,
    pub(super) outcome: Outcome,
    pub(super) because: String,
}

impl Ending {
    fn new(steps: Vec<Step>, outcome: Outcome, because: impl Into<String>) -> Ending {
        Ending { steps, outcome, because: because.into() }
    }

    /// Which of several stories of one user is told: what was sent on one channel has arrived; of what was not, the one that
    /// came furthest.
    pub(super) fn rank(&self) -> (u8, usize) {
        let outcome = match self.outcome {
            Outcome::Sent => 4,
            Outcome::Waiting => 3,
            Outcome::ToldOfGap => 2,
            Outcome::Unknown => 1,
            Outcome::NotSent => 0,
        };
        (outcome, self.steps.iter().filter(|step| step.says == Says::Yes).count())
    }
}

impl Case<'_> {
    fn position(&self) -> Position {
        self.found.row.position
    }

    fn millis(&self) -> i64 {
        self.found.millis()
    }

    /// Whether the channel was active when the row was judged.
    pub(super) fn subscribed(&self, channel: &Channel<'_>) -> (Says, String) {
        let (past, at) = (channel.past, self.position());
        let name = past.name();
        if let Some(from) = past.from.filter(|from| at <= *from) {
            let since = past.joined.map(|joined| format!(" at {}", time(joined))).unwrap_or_default();
            return (Says::No, format!("{name} was joined later{since}: it gets what is after {}", from.lsn));
        }
        if let Some((when, left)) = past.left {
            let why = self.why_left(past);
            if left < at && left.ordinal == 0 && left.lsn == at.lsn {
                return (
                    Says::Unknown,
                    format!("{name} ended at {}{why}, in the middle of this transaction", time(when)),
                );
            }
            if left < at {
                return (Says::No, format!("{name} had ended at {}{why}", time(when)));
            }
        }
        if let Some(ended) = past.ended.filter(|ended| *ended < at) {
            return (Says::No, format!("{name} had been ended at {} for its filter, and told so", shown(ended)));
        }
        if past.is_paused(at) || (channel.live.is_some() && !channel.in_force) {
            let text = "could not be resolved again after a change of its table; it was told of a gap";
            return (Says::No, format!("the entries of {name} {text}"));
        }
        if past.from.is_none() {
            return (Says::Unknown, format!("not known before {}: the journal begins there", self.begins()));
        }
        let since = past.joined.map(|joined| format!(" since {}", time(joined))).unwrap_or_default();
        let yes = (Says::Yes, format!("{name} was active{since}"));
        if channel.live.is_some() || past.left.is_some() {
            return yes;
        }
        match self.closed(past) {
            Some(closed) if closed.at < self.millis() => {
                (Says::No, format!("{name} had ended: {}", closed_text(closed)))
            }
            Some(_) => yes,
            None if channel.present => (Says::Unknown, format!("how {name} ended is not in the journal")),
            None => self.after_a_crash(past),
        }
    }

    /// The run of the channel is over, and nobody noted the channel's end.
    fn after_a_crash(&self, past: &Past) -> (Says, String) {
        let (name, at) = (past.name(), self.position());
        let next = self.evidence.runs.get(past.run + 1).and_then(|run| run.started);
        let latest = self.evidence.runs.get(past.run).map_or(0, |run| run.latest);
        match next {
            Some((when, position)) if at.lsn > position => {
                (Says::No, format!("the relay began anew at {}; {name} was on the run before", time(when)))
            }
            _ => {
                let text = "whether the row was judged before that is not known";
                (Says::Unknown, format!("the relay ended without a goodbye some time after {}; {text}", time(latest)))
            }
        }
    }

    fn begins(&self) -> String {
        self.evidence.extent.begins.map_or_else(|| "now".into(), time)
    }

    fn closed(&self, past: &Past) -> Option<&Closed> {
        self.evidence.closed.get(&(past.run, past.connection?))
    }

    fn why_left(&self, past: &Past) -> String {
        match (past.expired, self.closed(past)) {
            (Some(expired), _) => format!(" (its token expired at {})", time(expired)),
            (None, Some(closed)) => format!(" ({})", closed_text(closed)),
            (None, None) => String::new(),
        }
    }

    /// The row was not decided for it, or lost for everybody; and whether that is certain.
    fn gap(&self, past: &Past) -> Option<(Says, String)> {
        let at = self.position();
        if let Some((from, to)) = self.evidence.gap(at) {
            let text = format!("what was between {from} and {to} was lost to everybody, and all were told of a gap");
            return Some((Says::Yes, text));
        }
        let table = self.found.row.relation.oid;
        let covers = past.undecided.iter().filter(|u| u.table == table && u.first <= at && at <= u.last);
        let told = covers.map(|u| {
            if u.count == 1 || u.first == at || u.last == at {
                return (
                    Says::Yes,
                    format!("it could not be decided in time ({}), and {} was told of a gap", u.reason, past.name()),
                );
            }
            let (first, last) = (shown(u.first), shown(u.last));
            let text = format!(
                "{} changes between {first} and {last} were not decided in time ({}); this may be one",
                u.count, u.reason
            );
            (Says::Unknown, text)
        });
        told.min_by_key(|(says, _)| *says != Says::Yes)
    }

    /// Whether the verdict of now was that of then.
    fn rights_then(&self) -> (Says, String) {
        if let Some(why) = self.changed_since() {
            return (Says::Unknown, why);
        }
        let text = "nothing that the verdict depends on has changed since: it was the same";
        (self.rights.says, text.into())
    }

    /// What stands between the verdict of now and that of then.
    fn changed_since(&self) -> Option<String> {
        let (at, millis) = (self.position(), self.millis());
        if self.rights.says == Says::Unknown {
            return Some("not known, as it is not known now".into());
        }
        if !self.evidence.covers(at, millis) {
            return Some(format!("not known before {}: the journal begins there", self.begins()));
        }
        if let Some(hole) = self.evidence.hole_since(millis) {
            return Some(format!("not known: {hole}"));
        }
        if let Some((when, _)) = self.evidence.rules.iter().find(|(_, position)| position.lsn >= at.lsn) {
            return Some(format!("the rules (policies, grants, tables) changed at {}", time(*when)));
        }
        match &self.rights.facts {
            None => Some(
                "Postgres was asked then; its answer is not kept, and what the policies look into may have changed"
                    .into(),
            ),
            Some(tables) => {
                // A new row is judged by the facts after its own transaction, a deleted one by those before.
                let after = !matches!(self.found.row.change, Change::Delete { .. });
                tables.iter().find_map(|table| self.evidence.same_facts(table, at, after).err())
            }
        }
    }

    /// For a channel whose entries want the row, up to its filters.
    pub(super) fn told(&self, channel: &Channel<'_>, (passes, filter): (Says, String), mut steps: Vec<Step>) -> Ending {
        let past = channel.past;
        steps.push(Step::new("filter", passes, filter.clone()));
        if passes == Says::No {
            steps.push(Step::new("rights_now", self.rights.says, self.rights.text.clone()));
            return Ending::new(steps, Outcome::NotSent, filter);
        }
        steps.push(Step::new("rights_now", self.rights.says, self.rights.text.clone()));
        if let Some((says, text)) = self.gap(past) {
            let outcome = if says == Says::Yes { Outcome::ToldOfGap } else { Outcome::Unknown };
            steps.push(Step::new("rights_then", Says::Unknown, text.clone()));
            return Ending::new(steps, outcome, text);
        }
        if let Some(ending) = self.expired(past, &mut steps) {
            return ending;
        }
        let (then, text) = self.rights_then();
        steps.push(Step::new("rights_then", then, text.clone()));
        match (passes, then) {
            (_, Says::No) => Ending::new(steps, Outcome::NotSent, self.rights.text.clone()),
            (_, Says::Unknown) => {
                let why = format!("whether he might see it then is not known: {text}");
                Ending::new(steps, Outcome::Unknown, why)
            }
            (Says::Yes, Says::Yes) => self.delivered(channel, steps),
            _ => Ending::new(steps, Outcome::Unknown, filter),
        }
    }

    fn expired(&self, past: &Past, steps: &mut Vec<Step>) -> Option<Ending> {
        let expires_at = past.expires_at(self.position())?;
        let before = expires_at.saturating_mul(1000).saturating_sub(self.millis());
        let when = time(expires_at.saturating_mul(1000));
        let (says, outcome, text) = match before {
            ..=0 => (Says::No, Outcome::NotSent, format!("its token had expired at {when}")),
            1..=2000 => {
                let text = format!("its token expired at {when}, within two seconds after the commit");
                (Says::Unknown, Outcome::Unknown, text)
            }
            _ => return None,
        };
        let mut steps = std::mem::take(steps);
        steps.push(Step::new("rights_then", says, text.clone()));
        Some(Ending::new(steps, outcome, text))
    }

    fn delivered(&self, channel: &Channel<'_>, mut steps: Vec<Step>) -> Ending {
        let (past, millis) = (channel.past, self.millis());
        if let Some(hole) = self.evidence.hole_at(millis) {
            let text = format!("{hole}: whether something kept it from being sent is not known");
            steps.push(Step::new("delivery", Says::Unknown, text.clone()));
            return Ending::new(steps, Outcome::Unknown, text);
        }
        let after = match (channel.live, self.closed(past), past.left) {
            (Some(0), ..) => "the connection is still open, and has taken everything that was queued for it".into(),
            (Some(waiting), ..) => {
                format!("the connection is still open; {waiting} bytes wait for it to take them, perhaps with this")
            }
            (None, Some(closed), _) if closed.reason == "slow" => {
                format!("{}: what it had not taken by then was dropped, perhaps with this", closed_text(closed))
            }
            (None, Some(closed), _) => closed_text(closed),
            (None, None, Some((when, _))) => format!("the channel was left at {}", time(when)),
            (None, None, None) => "how the connection ended is not in the journal".into(),
        };
        let ended = channel.past.left.map(|(when, _)| when).filter(|_| channel.live.is_none());
        // A row may wait for Postgres's answers about others before it, and a channel that ends gets nothing more.
        let waited = match ended {
            Some(when) if when.saturating_sub(millis) < WAIT => {
                ". If it still waited behind changes that Postgres was asked about, it was not sent"
            }
            _ => "",
        };
        let text = format!("it was sent on {} unless the connection broke: {after}{waited}", past.name());
        steps.push(Step::new("delivery", Says::Yes, text.clone()));
        Ending::new(steps, Outcome::Sent, text)
    }
}

/// The longest that a row waits for Postgres's answers, with room for clocks.
const WAIT: i64 = 20_000;

fn closed_text(closed: &Closed) -> String {
    let code = if closed.code == 0 { String::new() } else { format!(", code {}", closed.code) };
    let why = match closed.reason.as_str() {
        "slow" => "it took too little of what was sent",
        "drain" => "the relay stopped",
        "idle" => "nothing came from the client",
        "joins" => "it joined too often",
        "protocol" => "it broke the protocol",
        "peer" => "the client closed it",
        _ => "it broke",
    };
    format!("its connection closed at {}: {why}{code}", time(closed.at))
}

/// For a user of whom no channel is known.
pub(super) fn nobody(case: &Case<'_>, refused: Option<(i64, String)>) -> Ending {
    let (at, millis) = (case.position(), case.millis());
    let rights = Step::new("rights_now", case.rights.says, case.rights.text.clone());
    let (says, outcome, text) = if !case.evidence.covers(at, millis) {
        let text = format!("not known before {}: the journal begins there", case.begins());
        (Says::Unknown, Outcome::Unknown, text)
    } else if let Some(hole) = case.evidence.hole_at(millis) {
        (Says::Unknown, Outcome::Unknown, format!("no channel of this user is in the journal, but {hole}"))
    } else if let Some((when, topic)) = refused {
        let text =
            format!("no channel of this user was active; his subscription on {topic} was refused at {}", time(when));
        (Says::No, Outcome::NotSent, text)
    } else {
        (Says::No, Outcome::NotSent, "no channel of this user was active with changes".into())
    };
    Ending::new(vec![Step::new("subscribed", says, text.clone()), rights], outcome, text)
}

/// The hub has not come to the row yet.
pub(super) fn ahead(at: Position, hub: Lsn) -> Option<String> {
    (at.lsn > hub)
        .then(|| format!("the hub has come to {hub}, and not to this change yet; see /state for what it waits for"))
}
