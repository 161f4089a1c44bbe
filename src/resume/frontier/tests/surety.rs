//! When a client would be known again, whatever ends now.

use super::*;

/// The table still said that it was left, and forgot it a minute later.
#[test]
fn a_channel_that_was_left_is_safe_again_when_its_return_is_saved() {
    let stage = Stage::new(FrontierConfig::default());
    stage.frontiers.saving(true);
    let leave = |tracked: &Tracked| tracked.end(true, stage.now, stage.now);
    let (_, tracked) = stage.join(key(), 10);
    stage.save();
    leave(&tracked);
    stage.save();
    let (_, tracked) = stage.join(key(), 90);
    assert!(!tracked.is_safe());
    assert!(stage.save().iter().all(|row| !row.left));
    assert!(tracked.is_safe());
    // The word of the leave is on its way when the client is back.
    leave(&tracked);
    let leaving = stage.frontiers.with(|access| access.take_unsaved(1000));
    let (_, tracked) = stage.join(key(), 90);
    assert!(!tracked.is_safe());
    stage.frontiers.with(|access| access.saved(&leaving, stage.now));
    assert!(!tracked.is_safe(), "what was saved is the leave");
    stage.save();
    assert!(tracked.is_safe());
    // And after a restart, which reads the leave.
    leave(&tracked);
    let rows = stage.save();
    let stage = Stage::new(FrontierConfig::default());
    stage.frontiers.saving(true);
    stage.load(rows, false);
    let (start, tracked) = stage.join(key(), 90);
    assert!(start == Some(10) && !tracked.is_safe());
    // A tab that was left is no surety for another.
    stage.save();
    let (_, more) = stage.join(key(), 90);
    stage.save();
    tracked.end(true, stage.now, stage.now);
    stage.save();
    let (_, one_more) = stage.join(key(), 90);
    assert!(one_more.is_safe(), "the other one is there");
    drop((more, one_more));
}

/// It came back from the crash of a server that had not made it durable.
#[test]
fn what_must_not_be_lost_is_saved_for_good_and_what_only_costs_repeats_is_not() {
    let stage = Stage::new(FrontierConfig::default());
    let is_firm = || {
        stage.frontiers.with(|access| {
            let unsaved = access.take_unsaved(1000);
            access.saved(&unsaved, stage.now);
            assert_eq!(unsaved.rows.len(), 1);
            unsaved.firm
        })
    };
    let (_, tracked) = stage.join(key(), 10);
    assert!(is_firm(), "its first place");
    tracked.handles().advance(at(20), true);
    assert!(!is_firm(), "a receipt");
    tracked.end(true, stage.now, stage.now);
    assert!(!is_firm(), "a leave");
    let (_, _tracked) = stage.join(key(), 10);
    assert!(is_firm(), "its return");
}

/// A database that was put back to what it was knows nothing of it, and whose it is neither.
#[test]
fn what_only_this_relay_knows_outlives_a_look_at_what_another_one_has_saved() {
    let stage = Stage::new(FrontierConfig::default());
    let (mine, theirs) = (key(), key_of("bob", "phone", "{}"));
    stage.end(&stage.join(mine, 10).1);
    stage.end(&stage.join(theirs, 10).1);
    stage.save();
    let newer = Row { key: theirs, tab: 0, at: at(30), since: None, left: false };
    stage.load(vec![newer], true);
    assert_eq!(stage.frontiers.count_all(), (0, 2));
    assert_eq!(stage.save().iter().map(|row| row.key).collect::<Vec<_>>(), [mine]);
    assert_eq!((stage.join(mine, 90).0, stage.join(theirs, 90).0), (Some(10), Some(30)));
}
