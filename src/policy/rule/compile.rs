//! From a table's policies to one [`Rule`].

use super::parse::{Compiler, NotPure};
use super::{Expr, Rule, TopicValue};
use crate::catalog::{Catalog, PolicyRow, Table};
use crate::policy::facts::Layout;

/// Policies and their USING texts.
pub(in crate::policy) type Policies<'a> = [(&'a PolicyRow, &'a str)];

/// What the policies come to.
pub(in crate::policy) enum Compiled {
    Pure(Box<Rule>),
    /// Postgres refuses every query of the role under these policies, for this reason.
    Refused(String),
    /// Postgres must be asked, for this reason.
    NotPure(String),
}

/// `(p1 or p2) and r1 and r2`; without permissive policies, where row-level security does not apply, `r1 and r2`.
pub(in crate::policy) fn compile<'a>(
    catalog: &'a Catalog,
    table: &'a Table,
    role: &'a str,
    permissive: &Policies<'a>,
    restrictive: &Policies<'a>,
) -> Compiled {
    compiled(&mut Compiler::new(catalog, table, role), permissive, restrictive)
}

/// The same where the row is the one that private channels are judged by, whose topic is the setting `realtime.topic` too. What
/// policies make of the topic stands in the rule's `reads` as columns with negative numbers: -1 is the first of these values.
pub(in crate::policy) fn compile_channel<'a>(
    catalog: &'a Catalog,
    table: &'a Table,
    role: &'a str,
    permissive: &Policies<'a>,
    restrictive: &Policies<'a>,
) -> (Compiled, Vec<TopicValue>) {
    let mut compiler = Compiler::new(catalog, table, role);
    compiler.topic = table.column("topic");
    let compiled = compiled(&mut compiler, permissive, restrictive);
    (compiled, compiler.topic_values)
}

fn compiled<'a>(compiler: &mut Compiler<'a>, permissive: &Policies<'a>, restrictive: &Policies<'a>) -> Compiled {
    let catalog = compiler.catalog;
    if !catalog.is_utf8() {
        return Compiled::NotPure("the database's encoding is not UTF8".into());
    }
    let condition = condition(compiler, permissive, restrictive);
    if let Some(refused) = compiler.refused.take() {
        return Compiled::Refused(refused);
    }
    let condition = match condition {
        Ok(condition) => condition,
        Err(NotPure(why)) => return Compiled::NotPure(why),
    };
    let (reads, claims) = (std::mem::take(&mut compiler.reads), std::mem::take(&mut compiler.claims));
    let rule = Rule { condition, reads, claims, sources: std::mem::take(&mut compiler.sources) };
    let mut forbidden = std::mem::take(&mut compiler.forbidden);
    let rule = rule.compacted(&mut forbidden);
    if let Some((_, why)) = forbidden.into_iter().next() {
        return Compiled::Refused(why);
    }
    for (oid, columns) in rule.fact_columns() {
        let Some(inner) = catalog.table(oid) else { return Compiled::NotPure("a table that we don't know".into()) };
        if let Err(why) = Layout::of(inner, catalog.types(), &columns) {
            return Compiled::NotPure(format!("{}.{} can't be kept in memory: {why}", inner.schema, inner.name));
        }
    }
    Compiled::Pure(Box::new(rule))
}

fn condition<'a>(
    compiler: &mut Compiler<'a>,
    permissive: &Policies<'a>,
    restrictive: &Policies<'a>,
) -> Result<Expr, NotPure> {
    let mut read = |(policy, text): &(&'a PolicyRow, &'a str)| {
        compiler.policy(policy, text).map_err(|NotPure(why)| NotPure(format!("policy \"{}\": {why}", policy.name)))
    };
    // All are read, whatever the first ones say: Postgres notices an infinite recursion before it folds anything.
    let permitted: Vec<_> = permissive.iter().map(&mut read).collect();
    let restricted: Vec<_> = restrictive.iter().map(&mut read).collect();
    let open = permitted.contains(&Ok(Expr::Constant(Some(true))));
    let permitted = match open || permissive.is_empty() {
        true => Expr::Constant(Some(true)),
        false => Expr::any(permitted.into_iter().collect::<Result<_, _>>()?),
    };
    let mut all = vec![permitted];
    for condition in restricted {
        all.push(condition?);
    }
    Ok(Expr::all(all))
}
