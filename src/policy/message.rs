//! Whether a member may have a database broadcast: a row of `realtime.messages` that is sent to the members of its topic.
//!
//! The rows themselves are not judged: the right is one for the whole channel (`protocol.md` §7.5), decided beforehand by the
//! policies, and what is sent is the message, not columns of a row.

use super::permit::{ColumnMask, DenyReason, Permit, UndecidedReason, Verdict};
use super::rights::{Right, Rights};

/// `None`: a member of the public channel, which needs no right. `judged`: what memory says of the right by the facts of the
/// message's commit, which counts for more than what the member was last told. A right that nobody has decided is
/// [`Verdict::Undecided`]: it is being asked for. The permit names no columns; a message is sent whole or not at all.
pub fn may_have_message(member: Option<&Rights>, judged: Option<bool>) -> Verdict {
    let right = |rights: &Rights| judged.or_else(|| rights.get(Right::ReadBroadcast));
    match member.map_or(Some(true), right) {
        Some(true) => Verdict::Permit(Permit::grant(ColumnMask::none(), ColumnMask::none())),
        Some(false) => Verdict::Deny(DenyReason::Policy),
        None => Verdict::Undecided(UndecidedReason::Facts),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_public_needs_no_right_and_a_member_the_one_to_read_broadcasts() {
        assert!(matches!(may_have_message(None, None), Verdict::Permit(_)));
        let rights = Rights::new(Arc::default());
        rights.set(Right::ReadPresence, Some(true));
        assert_eq!(may_have_message(Some(&rights), None), Verdict::Undecided(UndecidedReason::Facts));
        rights.set(Right::ReadBroadcast, Some(false));
        assert_eq!(may_have_message(Some(&rights), None), Verdict::Deny(DenyReason::Policy));
        rights.set(Right::ReadBroadcast, Some(true));
        assert!(matches!(may_have_message(Some(&rights), None), Verdict::Permit(_)));
        assert_eq!(may_have_message(Some(&rights), Some(false)), Verdict::Deny(DenyReason::Policy));
        rights.set(Right::ReadBroadcast, None);
        assert!(matches!(may_have_message(Some(&rights), Some(true)), Verdict::Permit(_)));
    }
}
