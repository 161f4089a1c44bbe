//! How much is kept, of one user, of all, and of those whom nobody knows.

use super::*;

/// Of a device that nobody has signed in on.
fn nobody(device: u32, entry: &str) -> Key {
    let anonymous = Principal::new(json!({ "role": "anon" }).as_object().unwrap().clone(), 0).unwrap();
    Key::new(&anonymous, &device.to_string(), "t", entry)
}

#[test]
fn one_user_has_no_more_than_his_share_and_a_device_goes_as_a_whole() {
    let bounds = FrontierConfig { most_of_user: 6, devices_of_user: 2, ..FrontierConfig::default() };
    let mut stage = Stage::new(bounds);
    let bob = stage.join(key_of("bob", "phone", "{}"), 1).1;
    stage.end(&bob);
    for device in ["a", "b", "c"] {
        for entry in ["1", "2"] {
            stage.end(&stage.join(key_of("alice", device, entry), 10).1);
        }
        stage.pass(1);
    }
    assert_eq!(stage.dropped("user_limit"), 2);
    assert_eq!(stage.join(key_of("alice", "a", "1"), 90).0, None);
    assert_eq!(stage.join(key_of("bob", "phone", "{}"), 90).0, Some(1));
    // Nobody loses what a connection holds.
    let stage = Stage::new(bounds);
    let held: Vec<_> = (0..8).map(|entry| stage.join(key_of("alice", "a", &entry.to_string()), 10).1).collect();
    assert_eq!((stage.frontiers.count_all(), stage.dropped("refused")), ((6, 0), 2));
    drop(held);
}

#[test]
fn all_together_are_bounded_and_devices_without_a_user_go_first() {
    let mut stage = Stage::new(FrontierConfig { most: 10, ..FrontierConfig::default() });
    stage.end(&stage.join(key(), 10).1);
    for device in 0..50 {
        stage.end(&stage.join(nobody(device, "{}"), 10).1);
        stage.pass(1);
    }
    // A quarter is theirs.
    assert_eq!(stage.frontiers.count_all(), (0, 1 + 3));
    assert_eq!((stage.dropped("anonymous_limit"), stage.dropped("limit")), (47, 0));
    assert_eq!(stage.join(key(), 90).0, Some(10));
    // Users take it all if they need it.
    for n in 0..20 {
        stage.end(&stage.join(key_of(&n.to_string(), "phone", "{}"), 10).1);
    }
    assert_eq!(stage.frontiers.count_all(), (0, 10));
    assert_eq!(stage.join(nobody(49, "{}"), 90).0, None);
}

/// Whoever has the public key could fill the table with live connections: users' devices that were away were forgotten, and new
/// ones had no room.
#[test]
fn devices_that_nobody_has_signed_in_on_cost_no_user_his_place() {
    let stage = Stage::new(FrontierConfig { most: 20, ..FrontierConfig::default() });
    let user = |n: u32| key_of(&format!("user {n}"), "phone", "{}");
    for n in 0..12 {
        let (_, tracked) = stage.join(user(n), 10);
        tracked.end(n == 0, stage.now, stage.now);
    }
    let strangers: Vec<_> = (0..50).map(|device| stage.join(nobody(device, "{}"), 10).1).collect();
    assert_eq!(stage.frontiers.count_all(), (5, 12));
    assert_eq!((stage.dropped("anonymous_limit"), stage.dropped("limit"), stage.dropped("refused")), (45, 0, 0));
    // There is room for new users, and then for as many as there are; the oldest that is away goes.
    let users: Vec<_> = (100..104).map(|n| stage.join(user(n), 10).1).collect();
    assert_eq!((stage.frontiers.count_all(), stage.dropped("limit")), ((9, 11), 1));
    // What is not used of the strangers' share is not taken from users either.
    drop(strangers);
    let users: Vec<_> = users.into_iter().chain((104..109).map(|n| stage.join(user(n), 10).1)).collect();
    assert_eq!((stage.frontiers.count_all(), stage.dropped("limit")), ((9, 11), 6));
    let _strangers: Vec<_> = (0..50).map(|device| stage.join(nobody(device, "new"), 10).1).collect();
    assert_eq!((stage.frontiers.count_all(), stage.dropped("limit")), ((9, 11), 6));
    for n in 1..12 {
        assert_eq!(stage.join(user(n), 90).0, Some(10), "user {n}");
    }
    drop(users);
}
