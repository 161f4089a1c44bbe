//! What a user may see of a change now: by the hub's own plans and facts, or by asking Postgres as the hub does.

use std::sync::Arc;

use super::WhyDeps;
use super::answer::Says;
use crate::catalog::Catalog;
use crate::catalog::Table;
use crate::change::RowChange;
use crate::claims::Principal;
use crate::filter::{FilterAnswer, FilterAsker, FilterQuestion};
use crate::hub::{Entry, LiveChannel, Message, Passes, passes, predicate};
use crate::metrics::Metrics;
use crate::policy::{Asker, DenyReason, Engine, Judged, Plan, Question, Right, Setting, Term, Verdict};

/// For whom a row is judged.
#[derive(Clone)]
pub(super) struct Who {
    pub(super) principal: Arc<Principal>,
    /// All claims are known, not only `sub` and `role`.
    pub(super) whole: bool,
}

/// A verdict of now.
#[derive(Clone)]
pub(super) struct Rights {
    pub(super) says: Says,
    pub(super) text: String,
    /// Tables that the verdict depends on beside the row, each with its partitions; `None`: nobody knows.
    pub(super) facts: Option<Vec<(u32, Vec<u32>)>>,
}

/// How the hub would judge, and what Postgres says if it must be asked.
pub(super) async fn now(deps: &WhyDeps, catalog: &Catalog, row: &Arc<RowChange>, who: &Who) -> Rights {
    let judging = deps.hub.judge(row.clone(), who.principal.clone());
    let Ok(Some(judgement)) = tokio::time::timeout(super::HUB_DEADLINE, judging).await else {
        return unknown("the hub does not answer, or has not read the rules yet");
    };
    let plan = &judgement.plan;
    let role = &plan.role;
    if !who.whole && reads_other_claims(plan) {
        return unknown(&format!(
            "the policies for {role} read claims other than sub and role: give the user's token with --token"
        ));
    }
    let facts = facts(plan, catalog);
    let (verdict, judge) = match judgement.judged {
        Judged::Decided(verdict) => (verdict, "judged in memory, now"),
        Judged::Ask => {
            // Metrics of its own: an operator's question is not the load that the relay's metrics show.
            let asker = Asker::new(deps.pool.clone(), deps.ask.clone(), Arc::new(Metrics::new()));
            let principals = vec![who.principal.clone()];
            let question =
                Question { bound: judgement.bound.clone(), change: row.clone(), principals, xids: Arc::new([]) };
            let verdict = asker.judge(&question).await.pop();
            match verdict {
                Some(verdict) => (verdict, "asked of Postgres, now"),
                None => return unknown("Postgres gave no answer"),
            }
        }
    };
    let by = policies(plan);
    match verdict {
        Verdict::Permit(_) => Rights { says: Says::Yes, text: format!("{role} may see it: {by}; {judge}"), facts },
        Verdict::Deny(reason) => {
            Rights { says: Says::No, text: format!("{role} may not see it, {}: {by}; {judge}", words(reason)), facts }
        }
        Verdict::Undecided(reason) => unknown(&format!("not decided ({}): {by}; {judge}", reason.as_str())),
    }
}

/// Of a database broadcast: not of the row, but of the channel that it is for.
pub(super) fn of_message(row: &RowChange, live: Option<&LiveChannel>) -> Rights {
    let Some(message) = Message::of(row) else {
        let text = "it is no broadcast: it has no topic, event, id or payload, or is not of a broadcast".into();
        return Rights { says: Says::No, text, facts: Some(Vec::new()) };
    };
    if !message.private {
        let text = "members of a public channel need no right".into();
        return Rights { says: Says::Yes, text, facts: Some(Vec::new()) };
    }
    let asked = live.iter().flat_map(|live| live.entries.iter()).filter_map(|entry| entry.messages.as_ref());
    let right =
        asked.filter_map(|messages| messages.member.as_ref()).find_map(|member| member.get(Right::ReadBroadcast));
    match right {
        Some(true) => {
            Rights { says: Says::Yes, text: "the channel may read broadcasts, as decided last".into(), facts: None }
        }
        Some(false) => {
            Rights { says: Says::No, text: "the channel may not read broadcasts, as decided last".into(), facts: None }
        }
        None => unknown("whether the channel might read broadcasts then is not kept"),
    }
}

fn unknown(text: &str) -> Rights {
    Rights { says: Says::Unknown, text: text.into(), facts: None }
}

fn policies(plan: &Plan) -> String {
    let applying = plan.table.as_ref().and_then(|table| table.access.get(&plan.role));
    let names: Vec<String> =
        applying.iter().flat_map(|access| &access.policies).map(|name| format!("\"{name}\"")).collect();
    match &plan.engine {
        Engine::Everything => "row-level security does not apply".into(),
        Engine::Deny(reason) => plan.refused.clone().unwrap_or_else(|| words(*reason).into()),
        Engine::Pure(_) => format!("policies {}", names.join(", ")),
        Engine::Ask { reason, .. } => {
            format!("policies {}, which Postgres judges since {reason}", names.join(", "))
        }
    }
}

/// The tables that a plan looks into; `None` if only Postgres knows.
fn facts(plan: &Plan, catalog: &Catalog) -> Option<Vec<(u32, Vec<u32>)>> {
    match &plan.engine {
        Engine::Ask { .. } => None,
        Engine::Pure(rule) => {
            let leaves = |oid| catalog.table(oid).map(|table| table.leaves.clone()).unwrap_or_default();
            Some(rule.sources.iter().map(|source| (source.table_oid, leaves(source.table_oid))).collect())
        }
        Engine::Everything | Engine::Deny(_) => Some(Vec::new()),
    }
}

/// Whether the policies read more of a token than its `sub` and `role`; for those that Postgres judges, as far as their text
/// tells.
fn reads_other_claims(plan: &Plan) -> bool {
    let Some(table) = &plan.table else { return false };
    match &plan.engine {
        Engine::Pure(rule) => rule.claims.iter().any(|claim| reads_other(&claim.term)),
        Engine::Ask { .. } => {
            let applying = table.access.get(&plan.role).map(|access| &access.policies);
            let applies = |name: &String| applying.is_some_and(|names| names.contains(name));
            let policies = table.policies.iter().filter(|policy| applies(&policy.name));
            policies.filter_map(|policy| policy.expression.as_deref()).any(other_claims)
        }
        Engine::Everything | Engine::Deny(_) => false,
    }
}

fn reads_other(term: &Term) -> bool {
    let known = |key: &str| matches!(key, "sub" | "role");
    match term {
        Term::Setting(setting) => *setting == Setting::Claims,
        Term::Text(_) => false,
        Term::Coalesce(terms) => terms.iter().any(reads_other),
        Term::Member(from, key) | Term::MemberText(from, key) if is_all_claims(from) => !known(key),
        Term::Path(from, path, _) if is_all_claims(from) => path.first().is_none_or(|key| !known(key)),
        Term::NullIfEmpty(inner)
        | Term::Member(inner, _)
        | Term::MemberText(inner, _)
        | Term::Index(inner, ..)
        | Term::Path(inner, ..)
        | Term::Contains(inner, _)
        | Term::Equals(inner, _)
        | Term::Elements(inner, _)
        | Term::Split(inner, _)
        | Term::Cast(inner, _) => reads_other(inner),
    }
}

/// It is the object of all claims, or a text of it.
fn is_all_claims(term: &Term) -> bool {
    match term {
        Term::Setting(setting) => *setting == Setting::Claims,
        Term::NullIfEmpty(inner) | Term::Cast(inner, _) => is_all_claims(inner),
        Term::Coalesce(terms) => terms.iter().any(is_all_claims),
        _ => false,
    }
}

/// Of one policy: `jwt` in it, other than in `->> 'sub'` and `->> 'role'`.
fn other_claims(text: &str) -> bool {
    let known = ["request.jwt.claim.sub", "request.jwt.claim.role"];
    let text = known.iter().fold(text.to_owned(), |text, known| text.replace(known, ""));
    let mut rest = text.as_str();
    while let Some(at) = rest.find("jwt") {
        rest = &rest[at + 3..];
        let upto = rest.find("jwt").unwrap_or(rest.len());
        let member = rest[..upto].split("->> '").nth(1).and_then(|key| key.split('\'').next());
        if !matches!(member, Some("sub" | "role")) {
            return true;
        }
    }
    false
}

/// A denial in words.
fn words(reason: DenyReason) -> &'static str {
    match reason {
        DenyReason::Policy => "the policies say no",
        DenyReason::NoPolicy => "no policy applies to it",
        DenyReason::NoGrant => "it has no right to select what is needed",
        DenyReason::UnknownRole => "there is no such role",
        DenyReason::SuperuserRole => "it is a superuser",
        DenyReason::PolicyError => "a policy raises an error",
        DenyReason::MissingEvidence => "the stream has not all columns that the policies read (see explain-policy)",
        DenyReason::Expired => "the token has expired",
        DenyReason::UnknownTable => "the table is not published",
        DenyReason::UnprotectedPartition => "the partition has no row-level security, though its root has",
        DenyReason::NoPrimaryKey => "the table has no primary key",
    }
}

/// Whether the filter of an entry lets the row through, and in words why not. Values are shown only if `plain`.
pub(super) async fn filter(
    deps: &WhyDeps,
    (catalog, table): (&Catalog, Option<&Table>),
    (entry, role): (&Entry, &str),
    row: &Arc<RowChange>,
    plain: bool,
) -> (Says, String) {
    let Some(text) = &entry.filter else { return (Says::Yes, "no filter".into()) };
    let shape = shape(text, plain);
    let Some(table) = table else { return (Says::Unknown, format!("{shape}: the table is not known any more")) };
    let predicate = match predicate(catalog, &deps.validator, table, text, role).await {
        Ok(predicate) => predicate,
        Err(_) => return (Says::Unknown, format!("{shape} can't be used with the table as it is now")),
    };
    match passes(&predicate, table, row) {
        Passes::Yes => (Says::Yes, format!("{shape} matches")),
        Passes::No => (Says::No, format!("{shape} does not match")),
        Passes::Absent => (Says::No, format!("{shape} names a column that the stream does not have")),
        Passes::Open(open) => {
            let asker = FilterAsker::new(deps.pool.clone(), deps.filter_ask.clone(), Arc::new(Metrics::new()));
            let question = FilterQuestion { row: row.clone(), terms: open.to_vec() };
            let mut says = Says::Yes;
            for ((answer, _), (term, _)) in asker.judge(&question).await.into_iter().zip(&open) {
                match answer {
                    FilterAnswer::Says(answer) if term.accepts(answer) => {}
                    FilterAnswer::Says(_) => says = Says::No,
                    _ if says == Says::Yes => says = Says::Unknown,
                    _ => {}
                }
            }
            let result = match says {
                Says::Yes => "matches",
                Says::No => "does not match",
                Says::Unknown => "could not be judged",
            };
            (says, format!("{shape} {result}; asked of Postgres, now"))
        }
    }
}

/// A filter without its values.
fn shape(text: &str, plain: bool) -> String {
    if plain {
        return format!("filter {text}");
    }
    match crate::filter::parse(text) {
        Ok(conditions) => {
            let shown = conditions.iter().map(|condition| {
                let not = if condition.negated { "not." } else { "" };
                format!("{}={not}{}.…", condition.column, condition.operator.as_str())
            });
            format!("filter {}", shown.collect::<Vec<_>>().join(","))
        }
        Err(_) => "its filter".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_reads_other_claims_is_told_from_one_that_does_not() {
        for known in [
            "(user_id = auth.uid())",
            "((auth.jwt() ->> 'sub'::text) = owner)",
            "(current_setting('request.jwt.claim.sub'::text, true) = owner)",
            "(((current_setting('request.jwt.claims'::text, true))::json ->> 'role'::text) = 'x'::text)",
            "true",
        ] {
            assert!(!other_claims(known), "{known}");
        }
        for other in [
            "((auth.jwt() ->> 'org'::text) = org)",
            "((auth.jwt() -> 'app_metadata'::text) ? team)",
            "(((auth.jwt() ->> 'sub'::text) = owner) AND ((auth.jwt() ->> 'org'::text) = org))",
            "(auth.jwt() IS NOT NULL)",
        ] {
            assert!(other_claims(other), "{other}");
        }
    }

    #[test]
    fn a_claim_that_memory_reads_is_known_to_be_sub_or_role_or_another() {
        let claims = || Term::NullIfEmpty(Box::new(Term::Setting(Setting::Claims)));
        let of = |key: &str| Term::MemberText(Box::new(claims()), key.into());
        assert!(!reads_other(&Term::Coalesce(vec![Term::Setting(Setting::Subject), of("sub")])));
        assert!(reads_other(&of("org")) && reads_other(&claims()));
        assert!(reads_other(&Term::Coalesce(vec![of("sub"), of("org")])));
        assert!(reads_other(&Term::Path(Box::new(claims()), vec!["app_metadata".into(), "sub".into()], true)));
    }

    #[test]
    fn a_filter_is_shown_without_its_values() {
        assert_eq!(shape("id=eq.4711", false), "filter id=eq.…");
        assert_eq!(shape("id=eq.4711", true), "filter id=eq.4711");
        assert_eq!(shape("no filter at all", false), "its filter");
    }
}
