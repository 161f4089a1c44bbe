//! Who may use a private channel, judged in memory: the policies of `realtime.messages` over the row that Postgres would be
//! shown (`protocol.md` §7.5).

#[cfg(test)]
pub(crate) mod fixture;
mod plan;

use std::fmt;
use std::sync::Arc;

pub use plan::{MemberEngine, MemberPlan};

use crate::claims::Principal;

/// Who wants to use which private channel.
#[derive(Clone)]
pub struct Asking {
    /// Without `realtime:`.
    pub topic: Arc<str>,
    /// Who.
    pub principal: Arc<Principal>,
    /// The headers of the request that the connection was opened with, as the text of a JSON object.
    pub headers: Arc<str>,
}

impl fmt::Debug for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asking").field("topic", &self.topic).field("principal", &self.principal).finish_non_exhaustive()
    }
}

/// What for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// SELECT.
    Read,
    /// INSERT.
    Write,
}

/// What memory says of one way; `None`: only Postgres knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// Of `extension = 'broadcast'`.
    pub broadcast: Option<bool>,
    /// Of `extension = 'presence'`.
    pub presence: Option<bool>,
    /// It rests on rows of other tables, as of the moment that the stream has come to.
    pub by_facts: bool,
}
