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
        (
            "reads the clock",
            "A policy without the clock or chance, such as a column published boolean that a job sets instead of at < now().",
        ),
        ("system column", "A policy that reads columns of the table only."),
        ("name that is not a column", "A policy that reads columns of the table only."),
        ("may not execute", "grant execute on function … to the role."),
        (
            "can't be kept in memory",
            "Of the table that the policy looks into: a primary key or REPLICA IDENTITY FULL, no column list in a publication, and \
             columns that memory compares as Postgres does.",
        ),
        (
            "is not a table that we know",
            "The tables behind the view, in the policy itself: what a view shows is not followed.",
        ),
        ("an array that is not a column", ELEMENTS),
        ("no array of plain values", ELEMENTS),
        ("containment in a column", ELEMENTS),
        ("search_path", "Tables with their schema in the function's body, or a function with set search_path = ''."),
        (
            "function",
            "A function in language sql whose body is such a policy, or auth.uid(), auth.jwt(), auth.role() as `rowcast migrate up` makes \
             them. Other languages are asked of Postgres.",
        ),
        (
            "a cast",
            "Casts of claims to text, varchar without a size, uuid, the integers, boolean, json or jsonb, written outside of json: \
             (auth.jwt() ->> 'org')::bigint.",
        ),
        ("UNION", SUB_SELECT),
        ("LIMIT", SUB_SELECT),
        ("sub-select", SUB_SELECT),
        ("join", SUB_SELECT),
        (
            "an order",
            "Order of numbers, dates and times; of text only under the collation \"C\". Equality works under every deterministic \
             collation.",
        ),
        (
            "a comparison of type",
            "Columns of type boolean, integer, numeric, uuid, text, date, timestamptz or an enum, with a deterministic collation.",
        ),
        (
            "the operator",
            "Comparisons (= <> < <= > >=), IN, = ANY, IS NULL, IS DISTINCT FROM, CASE and COALESCE, joined by AND, OR and NOT.",
        ),
        (
            "arithmetic",
            "Comparisons (= <> < <= > >=), IN, = ANY, IS NULL, IS DISTINCT FROM, CASE and COALESCE, joined by AND, OR and NOT.",
        ),
    ];
    let hint = hints.iter().find(|(sign, _)| reason.contains(sign)).map(|(_, hint)| *hint);
    hint.unwrap_or(
        "A policy of equalities between columns and claims, such as user_id = auth.uid(), joined by AND and OR.",
    )
    .into()
}

const SUB_SELECT: &str = "A plain sub-select: EXISTS, IN or = ANY over SELECT, FROM with inner joins, and WHERE, or a UNION of such; no \
                          outer join, LIMIT, WITH or GROUP BY. One that stands for a value has to yield one row, by a key.";

const ELEMENTS: &str =
    "A table with a row for each element, and a policy that looks into it, instead of an array in the row.";
