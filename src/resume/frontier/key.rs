//! What a frontier is kept for: a user, a device of his, a topic and an entry.
//!
//! Digests, so that a key has one size whatever clients send, and the table tells nobody's name. SHA-256, since clients choose
//! the texts: nobody can make a key that is somebody else's.

use sha2::{Digest as _, Sha256};

use crate::claims::Principal;

/// Bytes of a part of a key.
const PART: usize = 16;

/// A part of a key.
pub(in crate::resume) type Part = [u8; PART];

/// Who keeps frontiers: bounds are per owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::resume) struct Owner(pub(in crate::resume) Part);

/// What a frontier is kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub(in crate::resume) owner: Owner,
    pub(in crate::resume) device: Part,
    /// Topic and entry.
    pub(in crate::resume) what: Part,
    /// The owner is a device that no user has signed in on.
    pub(in crate::resume) anonymous: bool,
}

impl Key {
    /// `entry`: its canonical JSON without what says where it begins.
    pub fn new(principal: &Principal, device: &str, topic: &str, entry: &str) -> Key {
        let (role, subject) = (&*principal.role, &*principal.subject);
        let anonymous = subject.is_empty();
        // Devices without a user have nothing in common but a role, and must not use up each other's bounds.
        let owner = if anonymous { digest("device", &[role, device]) } else { digest("user", &[role, subject]) };
        let (device, what) = (digest("on", &[device]), digest("what", &[topic, entry]));
        Key { owner: Owner(owner), device, what, anonymous }
    }
}

/// The mark of a `since` that a client sent, to know it again.
pub(in crate::resume) fn mark(since: &str) -> Part {
    digest("since", &[since])
}

/// Each text with its length before it, so that no two lists of texts read the same.
fn digest(kind: &str, texts: &[&str]) -> Part {
    let mut hash = Sha256::new();
    for text in std::iter::once(&kind).chain(texts) {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    }
    let whole = hash.finalize();
    let mut part = [0; PART];
    part.iter_mut().zip(whole.iter()).for_each(|(to, from)| *to = *from);
    part
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn principal(role: &str, subject: Option<&str>) -> Principal {
        let mut claims = json!({ "role": role });
        subject.into_iter().for_each(|subject| claims["sub"] = json!(subject));
        Principal::new(claims.as_object().unwrap().clone(), 0).unwrap()
    }

    #[test]
    fn another_user_role_device_topic_or_entry_is_another_key() {
        let (alice, bob) = (principal("authenticated", Some("alice")), principal("authenticated", Some("bob")));
        let key = Key::new(&alice, "phone", "realtime:t", "{}");
        assert_eq!(key, Key::new(&alice, "phone", "realtime:t", "{}"));
        for other in [
            Key::new(&bob, "phone", "realtime:t", "{}"),
            Key::new(&principal("admin", Some("alice")), "phone", "realtime:t", "{}"),
            Key::new(&alice, "phone2", "realtime:t", "{}"),
            Key::new(&alice, "phone", "realtime:t{", "}"),
            Key::new(&alice, "phone", "realtime:t", "{ }"),
        ] {
            assert_ne!(key, other);
        }
        assert_eq!(key.owner, Key::new(&alice, "tablet", "realtime:u", "").owner);
    }

    #[test]
    fn without_a_user_the_device_is_the_owner() {
        let anon = principal("anon", None);
        let (one, two) = (Key::new(&anon, "a", "t", ""), Key::new(&anon, "b", "t", ""));
        assert!(one.anonymous && one.owner != two.owner);
        assert_eq!(one, Key::new(&principal("anon", Some("")), "a", "t", ""));
        // A user whose name is a device's is still a user.
        assert_ne!(one.owner, Key::new(&principal("anon", Some("a")), "a", "t", "").owner);
    }
}
