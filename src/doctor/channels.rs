//! Private channels: whether the relay's login can ask about them, and what is judged in memory.

use serde::Serialize;
use tokio_postgres::Client;

use super::engines::what_would_make_it_pure;
use super::explain::PolicyText;
use super::facts::Facts;
use super::finding::ident;
use super::insight::{self, FactView};
use super::{Finding, Subject, SubjectKind, millis};
use crate::authority::{AuthorityError, can_probe};
use crate::catalog::Catalog;
use crate::config::Config;
use crate::error::Fault as _;
use crate::policy::rule::Branch;
use crate::policy::{MemberEngine, MemberPlan, Way};

const TABLE: &str = "realtime.messages";

/// How one role's use of private channels is judged, by the policies of `realtime.messages`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChannelView {
    /// `read` or `write`.
    pub way: &'static str,
    /// `everything`, `pure`, `probe` or `nothing`.
    pub engine: &'static str,
    /// Why it is this one.
    pub reason: String,
    /// Of `pure`: the condition that memory evaluates.
    pub condition: Option<String>,
    /// The same as a tree.
    pub condition_tree: Option<Branch>,
    /// The tables that it looks into.
    pub facts: Vec<FactView>,
    /// What it makes of the topic by casts: about a topic for which one raises, Postgres is asked.
    pub casts: Vec<String>,
    /// How the rights of those who are in a channel are kept true.
    pub kept: String,
    /// Of `probe`: they are asked for again after this, in milliseconds.
    pub asked_again_ms: Option<u64>,
    /// Of `probe`: what would let memory judge.
    pub pure_if: Option<String>,
    /// The policies that decide, whether they apply or not.
    pub policies: Vec<PolicyText>,
}

const KEPT_BY_RULES: &str =
    "rights follow the rules: a message of the database goes by those of its commit, all else by those of 250 ms ago";
const KEPT_BY_FACTS: &str = "rights follow the rules and the tables that they look into: a message of the database goes by those of its \
                             commit, all else by those of 250 ms ago";

/// Of a role, for reading and for writing.
pub(super) async fn views(
    client: &Client,
    catalog: &Catalog,
    role: &str,
    config: &Config,
) -> Result<Vec<ChannelView>, tokio_postgres::Error> {
    let mut views = Vec::new();
    for (way, name) in [(Way::Read, "read"), (Way::Write, "write")] {
        let plan = MemberPlan::compile(catalog, role, way);
        let facts = match plan.rule() {
            Some(rule) => insight::facts(client, rule).await?,
            None => Vec::new(),
        };
        views.push(view(catalog, role, (way, name), &plan, facts, millis(config.authority.recheck)));
    }
    Ok(views)
}

fn view(
    catalog: &Catalog,
    role: &str,
    (way, name): (Way, &'static str),
    plan: &MemberPlan,
    facts: Vec<FactView>,
    recheck: u64,
) -> ChannelView {
    let asked = || {
        format!(
            "rights are asked for when a member joins or first sends, and again every {} s (ROWCAST_AUTHZ_RECHECK): until then one that \
             ended may still let messages through",
            recheck / 1000
        )
    };
    let (engine, reason, kept) = match &plan.engine {
        MemberEngine::Probe(_) if catalog.role(role).is_none() => {
            ("nothing", "there is no such role".to_owned(), KEPT_BY_RULES.to_owned())
        }
        MemberEngine::Everything => {
            ("everything", "row-level security does not apply to the role".to_owned(), KEPT_BY_RULES.to_owned())
        }
        MemberEngine::Pure(_) => {
            let kept = if facts.is_empty() { KEPT_BY_RULES } else { KEPT_BY_FACTS };
            ("pure", "memory judges the policies exactly as Postgres does".into(), kept.into())
        }
        MemberEngine::Probe(why) => ("probe", why.clone(), asked()),
        MemberEngine::Nothing(why) => ("nothing", (*why).to_owned(), KEPT_BY_RULES.to_owned()),
    };
    let is_probe = engine == "probe";
    ChannelView {
        way: name,
        engine,
        condition: plan.rule().map(|rule| rule.to_string()),
        condition_tree: plan.rule().map(|rule| rule.tree(&|rule| rule.to_string())),
        facts,
        casts: plan.casts(),
        kept,
        asked_again_ms: is_probe.then_some(recheck),
        pure_if: is_probe.then(|| hint(&reason)),
        policies: policies(catalog, role, way),
        reason,
    }
}

/// What to change so that memory can judge.
fn hint(reason: &str) -> String {
    let hints = [
        (
            "differs from question to question",
            "A policy that reads topic, extension, claims and other tables, not the id or the times of the message.",
        ),
        (
            "into realtime.messages itself",
            "A policy that looks into tables of your own: who may read a channel is not to be found in its messages.",
        ),
        ("of the known shape", KNOWN_SHAPE),
        ("in its own way", KNOWN_SHAPE),
        ("realtime.messages has", KNOWN_SHAPE),
        ("the operator ||", TOPIC),
        ("the operator ~", TOPIC),
        ("the operator !~", TOPIC),
        ("of the topic", TOPIC),
        ("with the topic", TOPIC),
    ];
    let own = hints.iter().find(|(sign, _)| reason.contains(sign));
    own.map_or_else(|| what_would_make_it_pure(reason), |(_, hint)| (*hint).to_owned())
}

const TOPIC: &str = "Of the topic of a channel: =, IN, LIKE, starts_with, split_part, substring, left, right, replace and string_to_array(…)[n] \
                     with constants, casts of these, and 'room:' || column::text = realtime.topic(). ILIKE, regular expressions and patterns \
                     that are no constants are asked of Postgres.";

const KNOWN_SHAPE: &str = "The table as `rowcast migrate up` or Supabase makes it, without triggers, rules, constraints, indexes or columns of \
                           one's own that an INSERT runs into.";

fn policies(catalog: &Catalog, role: &str, way: Way) -> Vec<PolicyText> {
    let Some(messages) = catalog.messages() else { return Vec::new() };
    let (table, command) = match way {
        Way::Read => (&messages.reading, "select"),
        Way::Write => (&messages.inserting, "insert"),
    };
    let mut asked = MemberPlan::obstacles(catalog, role, way);
    let mut texts = super::explain::policy_texts(table, role, &mut asked);
    // What is for ALL counts for INSERT, and is not told apart from it.
    texts.iter_mut().filter(|_| way == Way::Write).for_each(|text| text.command = command);
    texts
}

/// The checks.
pub(super) async fn check(client: &Client, catalog: &Catalog, facts: &Facts) -> Vec<Finding> {
    let Some(messages) = catalog.messages() else { return Vec::new() };
    let subject = || Subject::new(SubjectKind::Table, TABLE);
    let found = match can_probe(client).await {
        Ok(()) => {
            Finding::ok("private_channels", subject(), "the relay can ask its policies who may use a private channel")
        }
        Err(AuthorityError::Unavailable) => {
            let owner = ident(&messages.reading.owner);
            let options = if facts.version >= 160_000 { " with inherit true, set true" } else { "" };
            Finding::error(
                "private_channels",
                subject(),
                "the relay's login may not insert the rows that its policies are asked with",
            )
            .why("Nobody can join a private channel unless memory can judge the policies. The rows are rolled back.")
            .sql(format!("grant {owner} to {}{options};", ident(&facts.login)))
        }
        Err(error) => Finding::error("private_channels", subject(), error.to_string())
            .why("Nobody can join a private channel unless memory can judge the policies.")
            .todo(error.advice()),
    };
    vec![found]
}
