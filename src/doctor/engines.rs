//! Who judges the rows of each (table, role): nobody has to, memory, Postgres, or nothing is ever sent.

use super::{Finding, Subject};
use crate::policy::{DenyReason, Engine, Plan};

pub(super) fn check(plans: &[Plan]) -> Vec<Finding> {
    plans.iter().filter_map(one).collect()
}

fn one(plan: &Plan) -> Option<Finding> {
    let table = plan.table.as_ref()?;
    let subject = Subject::table(&table.schema, &table.name).seen_by(&plan.role);
    let role = &plan.role;
    Some(match &plan.engine {
        Engine::Everything => {
            let why = if table.row_security { "it is above the policies" } else { "there is no row-level security" };
            Finding::ok("engine", subject, format!("{role} receives every row: {why}"))
        }
        Engine::Pure(expr) => {
            let found = match plan.keys() {
                Some(keys) => format!("; owners are found by {keys}"),
                None => String::new(),
            };
            Finding::ok("engine", subject, format!("{role} is judged in memory: {expr}{found}"))
        }
        Engine::Ask { reason, .. } => {
            Finding::note("engine", subject, format!("Postgres is asked about every row for {role}: {reason}"))
                .why("One question per change and user: fine for hundreds of users of a table, not for many thousands.")
                .todo(what_would_make_it_pure(reason))
        }
        Engine::Deny(reason) => Finding::ok("engine", subject, format!("{role} receives nothing: {}", denial(*reason))),
    })
}

/// In words.
pub(super) fn denial(reason: DenyReason) -> &'static str {
    match reason {
        DenyReason::NoPolicy => "no policy applies to it",
        DenyReason::NoGrant => "it may not select the table",
        DenyReason::UnknownRole => "there is no such role",
        DenyReason::SuperuserRole => "it is a superuser",
        DenyReason::UnprotectedPartition => "the partition has no row-level security, though its root has",
        DenyReason::NoPrimaryKey => "the table has no primary key",
        DenyReason::UnknownTable => "the table is not published",
        DenyReason::Policy | DenyReason::PolicyError | DenyReason::MissingEvidence | DenyReason::Expired => {
            reason.as_str()
        }
    }
}

/// What to change so that memory can judge, from the reason why it can't.
pub fn what_would_make_it_pure(reason: &str) -> String {
    let hints = [
        ("encoding is not UTF8", "A database in UTF8."),
        ("request.jwt setting", "Remove the setting from the database, the role or postgresql.conf."),
        ("reads a system column", "A policy that reads columns of the table only."),
        (
            "the body of",
            "The function as `rowcast migrate up` makes it (auth.uid(), auth.jwt(), auth.role()); or current_setting('request.jwt.claims', \
             true)::jsonb ->> 'claim' written out in the policy.",
        ),
        ("may not execute", "grant execute on function … to the role."),
        ("unlike types", "Cast the claim to the column's type: org_id = (auth.jwt() ->> 'org_id')::bigint."),
        ("a cast that is not reproduced", "Casts of claims to text, uuid, smallint, integer, bigint, json or jsonb."),
        (
            "no side is a plain column",
            "A comparison of a column with a claim. Columns of type uuid, text, varchar, smallint, integer and bigint, with a \
             deterministic collation, can be compared in memory.",
        ),
        ("SELECT", MEMBERSHIP),
        ("EXISTS", MEMBERSHIP),
    ];
    let hint = hints.iter().find(|(sign, _)| reason.contains(sign)).map(|(_, hint)| *hint);
    hint.unwrap_or(
        "A policy of equalities between columns and claims, such as user_id = auth.uid(), joined by AND and OR.",
    )
    .into()
}

const MEMBERSHIP: &str = "A look into another table is asked of Postgres. If each row has one owner, write the owner into the row \
                          (a column user_id, filled by a trigger) and the policy as user_id = auth.uid().";
