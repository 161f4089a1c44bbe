//! Who subscribes: roles, and claims that are absent, null, wrongly typed, or spelled otherwise.

use std::sync::Arc;

use rowcast::claims::Principal;
use serde_json::{Map, Value, json};

use super::dice::Dice;

pub(super) const ALICE: &str = "a11ce000-0000-4000-8000-00000000000a";
pub(super) const ALICE_UPPER: &str = "A11CE000-0000-4000-8000-00000000000A";
pub(super) const BOB: &str = "b0b00000-0000-4000-8000-00000000000b";

/// An address that wants quoting wherever it goes.
pub(super) const ODD: &str = "Ünï 'x' \"q\" \\b@é";

/// `clerk` may read some columns; `service_role` is above row-level security.
pub(super) const ROLES: [&str; 4] = ["authenticated", "anon", "clerk", "service_role"];

#[derive(Debug, Clone)]
pub(super) struct Who {
    pub(super) principal: Arc<Principal>,
    /// Claims that make a cast raise.
    pub(super) malformed: Vec<&'static str>,
}

impl Who {
    pub(super) fn role(&self) -> &str {
        &self.principal.role
    }

    pub(super) fn generate(dice: &mut Dice) -> Who {
        let role = if dice.percent(70) { ROLES[0] } else { *dice.one(&ROLES) };
        let mut claims = Map::new();
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                claims.insert(name.to_owned(), value);
            }
        };
        let (sub, bad_sub) = subject(dice);
        set("sub", sub);
        let (number, bad_org) = org(dice);
        set("org", number);
        let email = dice.one(&["Ann@Example.com", "ann@example.com", "7", "", ODD]);
        set("email", dice.percent(80).then(|| json!(email)));
        let metadata = match dice.below(6) {
            0 => None,
            1 => Some(Value::Null),
            2 => Some(json!(7)),
            _ => Some(org(dice).0.map_or(json!({}), |org| json!({ "org": org }))),
        };
        set("app_metadata", metadata);
        set("role", Some(json!(role)));
        let malformed = [("sub", bad_sub), ("org", bad_org)].into_iter().filter(|(_, bad)| *bad);
        Who::new(claims, &malformed.map(|(name, _)| name).collect::<Vec<_>>())
    }

    pub(super) fn new(claims: Map<String, Value>, malformed: &[&'static str]) -> Who {
        let principal = Principal::new(claims, i64::MAX).expect("claims with a role");
        Who { principal: Arc::new(principal), malformed: malformed.to_vec() }
    }
}

/// The claim, and whether casts of it raise.
fn subject(dice: &mut Dice) -> (Option<Value>, bool) {
    match dice.below(20) {
        0..=7 => (Some(json!(ALICE)), false),
        8..=10 => (Some(json!(BOB)), false),
        11 => (Some(json!(ALICE_UPPER)), false),
        12 => (Some(json!(ALICE.replace('-', ""))), false),
        13 => (Some(json!(format!("{{{ALICE}}}"))), false),
        14 => (None, false),
        15 => (Some(Value::Null), false),
        16 => (Some(json!("nobody")), true),
        // auth.uid() takes the empty string for no subject, then finds it in the claims.
        17 => (Some(json!("")), true),
        18 => (Some(json!(7)), true),
        _ => (Some(json!([ALICE])), true),
    }
}

fn org(dice: &mut Dice) -> (Option<Value>, bool) {
    match dice.below(14) {
        0..=4 => (Some(json!(7)), false),
        5 | 6 => (Some(json!("7")), false),
        7 => (Some(json!(" +7")), false),
        8 => (Some(json!(-1)), false),
        9 => (None, false),
        10 => (Some(Value::Null), false),
        11 => (Some(json!("x")), true),
        12 => (Some(json!(70000)), true),
        _ => (Some(json!(7.5)), true),
    }
}
