//! From the catalog to a [`Plan`], in the order in which Postgres itself decides (`check_enable_rls`, `get_row_security_policies`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::form::Form;
use super::permit::DenyReason;
use super::plan::{Engine, Options, Plan};
use super::rule::{self, Compiled};
use crate::catalog::{Access, Catalog, PolicyCommand, PolicyRow, Role, RowFilter, Table};

/// Compiles the rules of a table for a role. Never fails: what can't be judged is asked or denied, with the reason.
pub fn compile(catalog: &Catalog, table_oid: u32, role: &str, options: Options) -> Plan {
    let table = catalog.table(table_oid).cloned();
    let mut plan = Plan {
        table_oid,
        table: table.clone(),
        role: role.to_owned(),
        engine: Engine::Deny(DenyReason::UnknownTable),
        readable: BTreeSet::new(),
        form: None,
        keys: None,
        refused: None,
        options,
    };
    let Some(table) = table else { return plan };
    let rights = match rights(catalog, &table, role) {
        Ok(rights) => rights,
        Err(reason) => {
            plan.engine = Engine::Deny(reason);
            return plan;
        }
    };
    let (role, access) = rights;
    plan.readable =
        table.columns.iter().filter(|c| access.columns.contains(&c.number)).map(|c| c.name.clone()).collect();
    let by_policies = if is_above(role, access, &table) {
        plan.engine = Engine::Everything;
        false
    } else if !table.row_security {
        plan.engine = match is_exposed(catalog, &table, role, access, options) {
            true => Engine::Deny(DenyReason::UnprotectedPartition),
            false => Engine::Everything,
        };
        false
    } else {
        true
    };
    let row_filter = table.published.as_ref().and_then(|published| published.row_filter.as_ref());
    if by_policies || (row_filter.is_some() && plan.engine == Engine::Everything) {
        let policies = if by_policies { &table.policies[..] } else { &[] };
        judge_by(catalog, &table, policies, access, row_filter, &mut plan);
    }
    plan
}

/// What the publication holds back is held back from everybody, as a restrictive policy would. Unlike the server, which turns
/// an UPDATE that moves a row across the filter into an INSERT or a DELETE, only the row that is judged counts.
fn as_policy(filter: &RowFilter) -> PolicyRow {
    PolicyRow {
        name: "row filter of the publication".into(),
        permissive: false,
        command: PolicyCommand::All,
        roles: Vec::new(),
        expression: Some(filter.expression.clone()),
        columns: filter.columns.iter().copied().collect(),
        system_columns: false,
        // A row filter can't call functions of users.
        functions: BTreeSet::new(),
    }
}

/// Why no INSERT or UPDATE of the table will ever be sent to the role, whatever its policies say; `None` if they decide.
pub fn obstacle(catalog: &Catalog, table: &Table, role: &str, options: Options) -> Option<DenyReason> {
    let (role, access) = match rights(catalog, table, role) {
        Ok(rights) => rights,
        Err(reason) => return Some(reason),
    };
    if is_exposed(catalog, table, role, access, options) {
        return Some(DenyReason::UnprotectedPartition);
    }
    if table.primary_key.is_empty() {
        return Some(DenyReason::NoPrimaryKey);
    }
    let readable = |name: &String| table.column(name).is_some_and(|c| access.columns.contains(&c.number));
    (!table.primary_key.iter().all(readable)).then_some(DenyReason::NoGrant)
}

/// For each policy that applies to the role, by name: why Postgres would have to be asked about it; `None` if memory could judge
/// it.
pub fn obstacles_to_memory(catalog: &Catalog, table: &Table, role: &str) -> BTreeMap<String, Option<String>> {
    let Some(access) = table.access.get(role) else { return BTreeMap::new() };
    let applying = table.policies.iter().filter(|policy| access.policies.contains(&policy.name));
    let alone = |policy: &PolicyRow| {
        let text = policy.expression.as_deref()?;
        let why = match rule::compile(catalog, table, role, &[(policy, text)], &[]) {
            Compiled::Pure(_) => None,
            // The name of the policy stands beside it.
            Compiled::NotPure(why) | Compiled::Refused(why) => {
                Some(why.strip_prefix(&format!("policy \"{}\": ", policy.name)).unwrap_or(&why).to_owned())
            }
        };
        Some((policy.name.clone(), why))
    };
    applying.filter_map(alone).collect()
}

/// A partition with its own name in the publication would show what its root hides.
fn is_exposed(catalog: &Catalog, table: &Table, role: &Role, access: &Access, options: Options) -> bool {
    let protected = |oid: &u32| catalog.table(*oid).is_none_or(|t| is_protected(t, role));
    let open = !options.open_partitions && !table.row_security && !is_above(role, access, table);
    open && table.ancestors.iter().any(protected)
}

fn rights<'a>(catalog: &'a Catalog, table: &'a Table, role: &str) -> Result<(&'a Role, &'a Access), DenyReason> {
    let role = catalog.role(role).ok_or(DenyReason::UnknownRole)?;
    if role.superuser {
        return Err(DenyReason::SuperuserRole);
    }
    let access = table.access.get(&role.name).ok_or(DenyReason::UnknownRole)?;
    if !access.schema_usage || access.columns.is_empty() {
        return Err(DenyReason::NoGrant);
    }
    Ok((role, access))
}

/// Row-level security, if there is any, does not apply to the role.
fn is_above(role: &Role, access: &Access, table: &Table) -> bool {
    role.bypass_row_security || (access.owner && !table.force_row_security)
}

fn is_protected(table: &Table, role: &Role) -> bool {
    let above = table.access.get(&role.name).is_some_and(|access| is_above(role, access, table));
    table.row_security && !above
}

/// By row-level security, by a row filter, or by both; `policies` is empty where row-level security does not apply.
fn judge_by(
    catalog: &Catalog,
    table: &Arc<Table>,
    policies: &[PolicyRow],
    access: &Access,
    row_filter: Option<&RowFilter>,
    plan: &mut Plan,
) {
    // A policy without USING neither permits nor restricts.
    let applying = policies.iter().filter(|p| access.policies.contains(&p.name));
    let applying: Vec<(&PolicyRow, &str)> = applying.filter_map(|p| Some((p, p.expression.as_deref()?))).collect();
    let (permissive, mut restrictive): (Vec<_>, Vec<_>) = applying.iter().partition(|(p, _)| p.permissive);
    if permissive.is_empty() && plan.engine != Engine::Everything {
        plan.engine = Engine::Deny(DenyReason::NoPolicy);
        return;
    }
    let row_filter = row_filter.map(as_policy);
    restrictive.extend(row_filter.iter().filter_map(|p| Some((p, p.expression.as_deref()?))));
    let form = form(table, &permissive, &restrictive);
    plan.engine = match rule::compile(catalog, table, &plan.role, &permissive, &restrictive) {
        Compiled::Pure(rule) => Engine::Pure(Arc::new(*rule)),
        Compiled::NotPure(reason) => Engine::Ask { sql: form.question.clone(), reason },
        Compiled::Refused(reason) => {
            plan.refused = Some(reason);
            Engine::Deny(DenyReason::PolicyError)
        }
    };
    plan.keys = plan.rule().and_then(|rule| rule.keys());
    plan.form = Some(form);
}

type Policies<'a> = [(&'a PolicyRow, &'a str)];

/// What is asked: `(p1 or p2) and r1 and r2`, over the columns that the policies depend on. Without permissive ones, where
/// row-level security does not apply, `r1 and r2`.
fn form(table: &Table, permissive: &Policies<'_>, restrictive: &Policies<'_>) -> Form {
    let joined = |policies: &Policies<'_>, word: &str| {
        policies.iter().map(|(_, text)| format!("({text}\n)")).collect::<Vec<_>>().join(word)
    };
    let permitted = (!permissive.is_empty()).then(|| format!("({})", joined(permissive, " or ")));
    let restricted = (!restrictive.is_empty()).then(|| joined(restrictive, " and "));
    let expression = permitted.into_iter().chain(restricted).collect::<Vec<_>>().join(" and ");
    let policies = || permissive.iter().chain(restrictive);
    // The dependencies of a policy name its columns, but not a whole-row reference, which is printed as `name.*`.
    let whole = policies().any(|(_, text)| text.contains(".*"));
    let reads = |number: i16| whole || policies().any(|(p, _)| p.columns.contains(&number));
    let reads = table.columns.iter().filter(|c| reads(c.number)).map(|c| c.name.clone()).collect();
    Form::new(table, &expression, reads, whole)
}
