//! What is on trial: the crate's own judgement, or the same with a fault planted in it.
//!
//! The faults are here to show that the oracle would see them. Each is a mistake that is easily made and that no type forbids.

use rowcast::catalog::{Catalog, Table as CatalogTable};
use rowcast::change::{Change, OldRow, Relation, RowChange, Timestamp, Tuple, Value};
use rowcast::claims::Principal;
use rowcast::filter::{self, BoundPredicate, ColumnSpec, FilterError, Operator, Predicate, Validator};
use rowcast::gateway::encode::{Place, RowShape, write_data};
use rowcast::pgtype::{oid, type_name};
use rowcast::policy::rule::{RowKeys, ViewerKey};
use rowcast::policy::{Bound, DenyReason, Judged, Permit, UndecidedReason, Verdict};

use super::filters::Filter;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Text is compared by its bytes, whatever the collation.
    Bytes,
    /// Under `not`, NULL is taken for false.
    NullIsFalse,
    /// The blanks at the end of `char(n)` count.
    Padding,
    /// Claims and owners are compared without case.
    OwnerCase,
    /// Who has no claim owns the rows that have no owner.
    NobodyOwnsNull,
    /// An UPDATE is judged by its old row.
    OldRow,
    /// What the role may not read stays in the JSON.
    Unmasked,
}

/// Judges; with a fault, wrongly.
#[derive(Debug, Clone, Copy)]
pub(super) struct Evaluator(pub(super) Option<Fault>);

/// A filter that was accepted.
pub(super) enum Checked {
    Predicate(BoundPredicate),
    /// Each condition, and the column whose NULL would make it hold.
    Each(Vec<(BoundPredicate, Option<usize>)>),
    /// Of bytes: column, operator, negated, literal.
    Bytes(usize, &'static str, bool, Vec<u8>),
}

/// The answer for a row and a principal.
#[derive(Debug)]
pub(super) enum Said {
    /// A planted fault can't make a permit.
    Yes(Option<Permit>),
    No(DenyReason),
    Ask,
    Undecided(UndecidedReason),
}

impl Evaluator {
    pub(super) async fn check(
        &self,
        validator: &Validator,
        catalog: &Catalog,
        relation: &Relation,
        filter: &Filter,
    ) -> Result<Checked, FilterError> {
        let conditions = filter::parse(&filter.text())?;
        let table = catalog.table(relation.oid).expect("the catalog has it");
        let mut relation = relation.clone();
        let mut columns = specs(catalog, table);
        if self.0 == Some(Fault::Bytes) {
            columns.iter_mut().for_each(|column| {
                (column.collation_deterministic, column.collation_bytewise) = (true, true);
            });
        }
        if self.0 == Some(Fault::Padding) {
            columns.iter_mut().filter(|c| c.type_oid == oid::BPCHAR).for_each(|c| c.type_oid = oid::TEXT);
            relation.columns.iter_mut().filter(|c| c.type_oid == oid::BPCHAR).for_each(|c| c.type_oid = oid::TEXT);
        }
        let bind = |predicate: Predicate| predicate.bind(&relation).expect("it is the relation that was checked");
        if self.0 == Some(Fault::NullIsFalse) {
            let mut each = Vec::new();
            for condition in conditions {
                let sees_null = matches!(condition.operator, Operator::Is | Operator::IsDistinct);
                let fooled = (condition.negated && !sees_null).then(|| relation.column(&condition.column)).flatten();
                each.push((bind(validator.validate("", &[condition], &columns, catalog.types()).await?), fooled));
            }
            return Ok(Checked::Each(each));
        }
        if let (Some(Fault::Bytes), [only]) = (self.0, &filter.0[..]) {
            let index = relation.column(&only.column).expect("the column");
            let is_text = matches!(relation.columns[index].type_oid, oid::TEXT | oid::VARCHAR);
            if let (true, "lt" | "lte" | "gt" | "gte", Some(literal)) = (is_text, only.operator, only.literal()) {
                return Ok(Checked::Bytes(index, only.operator, only.negated, literal.into()));
            }
        }
        Ok(Checked::Predicate(bind(validator.validate("", &conditions, &columns, catalog.types()).await?)))
    }

    /// `None` if Postgres would be asked.
    pub(super) fn matches(&self, checked: &Checked, change: &Change) -> Option<bool> {
        Some(match checked {
            Checked::Predicate(predicate) if predicate.matches(change) => {
                return predicate.open(change).is_empty().then_some(true);
            }
            Checked::Predicate(_) => false,
            Checked::Each(each) => each.iter().all(|(predicate, fooled)| {
                let is_null = |column: usize| image(change).get(column) == Value::Null;
                let real = !matches!(change, Change::Delete { old: OldRow::KeyOnly(_) });
                predicate.matches(change) || (real && fooled.is_some_and(is_null))
            }),
            Checked::Bytes(index, operator, negated, literal) => match image(change).get(*index) {
                Value::Text(text) => {
                    let order = text.cmp(literal);
                    let holds = match *operator {
                        "lt" => order.is_lt(),
                        "lte" => order.is_le(),
                        "gt" => order.is_gt(),
                        _ => order.is_ge(),
                    };
                    holds != *negated
                }
                Value::Null | Value::Unchanged => false,
            },
        })
    }

    pub(super) fn judge(&self, bound: &Bound, change: &Change, principal: &Principal) -> Said {
        match self.0 {
            Some(Fault::OldRow) => {
                if let Change::Update { old: Some(OldRow::Full(old)), .. } = change {
                    return without_permit(judge(bound, &Change::Insert { new: old.clone() }, principal));
                }
            }
            Some(Fault::OwnerCase) => {
                let claims = serde_json::from_str(&principal.claims_json.to_lowercase()).expect("still JSON");
                let lowered = Principal::new(claims, i64::MAX).expect("still a role");
                return without_permit(judge(bound, &in_lower_case(change), &lowered));
            }
            Some(Fault::NobodyOwnsNull) => {
                if let Some(keys) = bound.plan().keys() {
                    let viewer = bound.plan().viewer(principal);
                    let values = |claim: &u16| keys.of_viewer(*claim, &viewer);
                    let is_nobody = |key: ViewerKey| matches!(key, ViewerKey::Values(values) if values.is_empty());
                    let mut owned = false;
                    let complete = bound.row_keys(change, None, usize::MAX, &mut |_, _| owned = true);
                    let unowned = !owned && matches!(complete, RowKeys::Complete);
                    if unowned && keys.claims().iter().map(values).all(is_nobody) {
                        return Said::Yes(None);
                    }
                }
            }
            _ => {}
        }
        judge(bound, change, principal)
    }

    /// The `data` object.
    pub(super) fn data(&self, catalog: &Catalog, change: &RowChange, permit: &Permit, of_all: &Bound) -> String {
        let shape = RowShape::new(&change.relation, catalog.types());
        let mut out = Vec::new();
        let permit = match (self.0, judge(of_all, &change.change, &service())) {
            (Some(Fault::Unmasked), Said::Yes(Some(everything))) => everything,
            _ => permit.clone(),
        };
        write_data(&shape, change, Timestamp(0), Place::default(), &permit, &mut out);
        String::from_utf8(out).expect("UTF-8")
    }
}

/// The columns as a role sees them that may read all.
pub(super) fn specs<'a>(catalog: &'a Catalog, table: &'a CatalogTable) -> Vec<ColumnSpec<'a>> {
    let spec = |column: &'a rowcast::catalog::Column| ColumnSpec {
        name: &column.name,
        type_oid: column.type_oid,
        type_name: type_name(catalog.types(), column.type_oid),
        collation_deterministic: column.collation_deterministic,
        collation: column.collation.as_ref().map(|collation| &*collation.name),
        collation_bytewise: column.collation.as_ref().is_some_and(|collation| collation.bytewise),
        utf8: catalog.is_utf8(),
        readable: true,
    };
    table.columns.iter().map(spec).collect()
}

fn judge(bound: &Bound, change: &Change, principal: &Principal) -> Said {
    match bound.judge(change, &bound.plan().viewer(principal), principal, None, 0) {
        Judged::Decided(verdict) => said(verdict),
        Judged::Ask => Said::Ask,
    }
}

pub(super) fn said(verdict: Verdict) -> Said {
    match verdict {
        Verdict::Permit(permit) => Said::Yes(Some(permit)),
        Verdict::Deny(reason) => Said::No(reason),
        Verdict::Undecided(reason) => Said::Undecided(reason),
    }
}

fn without_permit(said: Said) -> Said {
    if let Said::Yes(_) = said { Said::Yes(None) } else { said }
}

fn service() -> Principal {
    let claims = [("role".to_owned(), "service_role".into())].into_iter().collect();
    Principal::new(claims, i64::MAX).expect("a role")
}

/// The image that decides.
fn image(change: &Change) -> &Tuple {
    match change {
        Change::Insert { new } | Change::Update { new, .. } => new,
        Change::Delete { old } => old.tuple(),
    }
}

fn in_lower_case(change: &Change) -> Change {
    match change {
        Change::Insert { new } => Change::Insert { new: lowered(new) },
        Change::Update { new, old } => Change::Update { new: lowered(new), old: old.clone() },
        Change::Delete { old: OldRow::Full(old) } => Change::Delete { old: OldRow::Full(lowered(old)) },
        Change::Delete { old: OldRow::KeyOnly(old) } => Change::Delete { old: OldRow::KeyOnly(lowered(old)) },
    }
}

fn lowered(tuple: &Tuple) -> Tuple {
    let text = |value| if let Value::Text(text) = value { text.to_ascii_lowercase() } else { Vec::new() };
    let texts: Vec<Vec<u8>> = tuple.values().map(text).collect();
    let value = |i| if let Value::Text(_) = tuple.get(i) { Value::Text(&texts[i]) } else { tuple.get(i) };
    Tuple::from_values((0..tuple.len()).map(value))
}
