//! Facts for private channels: their rules are those of `realtime.messages`, and no subscription on a table asks for them.

use std::sync::Arc;

use super::Keeper;
use crate::policy::rule::Rule;

impl Keeper {
    /// Members of private channels are judged by these rules, as are the rows of the table `messages`.
    pub(in crate::hub) fn want_rules(&mut self, messages: u32, rules: Vec<Arc<Rule>>) {
        self.channels = (messages, rules);
        self.due = true;
    }

    /// Some of these tables' facts are on their way.
    pub(in crate::hub) fn are_under_way(&self, tables: &[u32]) -> bool {
        tables.iter().any(|oid| self.entries.get(oid).is_none_or(|entry| entry.step.is_under_way()))
    }
}
