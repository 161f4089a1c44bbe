//! Private channels: whether the relay's login can ask about them, and what is judged in memory.

use serde::Serialize;
use tokio_postgres::Client;

use super::facts::Facts;
use super::finding::ident;
use super::{Finding, Subject, SubjectKind};
use crate::authority::{AuthorityError, can_probe};
use crate::catalog::Catalog;
use crate::error::Fault as _;
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
}

/// Of a role, for reading and for writing.
pub(super) fn views(catalog: &Catalog, role: &str) -> Vec<ChannelView> {
    let of = |(way, name)| {
        let plan = MemberPlan::compile(catalog, role, way);
        let condition = plan.rule().map(|rule| rule.to_string());
        let (engine, reason) = match plan.engine {
            MemberEngine::Everything => ("everything", "row-level security does not apply to the role".to_owned()),
            MemberEngine::Pure(_) => {
                ("pure", "memory judges the policies exactly as Postgres does, and follows what they look into".into())
            }
            MemberEngine::Probe(why) => ("probe", why),
            MemberEngine::Nothing(why) => ("nothing", why.to_owned()),
        };
        ChannelView { way: name, engine, reason, condition }
    };
    [(Way::Read, "read"), (Way::Write, "write")].into_iter().map(of).collect()
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
