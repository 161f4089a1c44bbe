//! Members of private channels, whose rights the hub keeps true.

use std::sync::{Arc, Weak};

use tokio::sync::oneshot;

use super::run::Hub;
use crate::policy::{Asking, Rights, Told, Way};

/// Rights that the hub keeps true, until this is dropped.
#[derive(Debug)]
pub struct Watch {
    _alive: Arc<()>,
}

/// The hub's end of a [`Watch`].
#[derive(Debug)]
pub struct Watched {
    pub(super) asking: Asking,
    pub(super) rights: Arc<Rights>,
    pub(super) alive: Weak<()>,
}

impl Watch {
    pub(super) fn new(asking: Asking, rights: Arc<Rights>) -> (Watch, Watched) {
        let alive = Arc::new(());
        let watched = Watched { asking, rights, alive: Arc::downgrade(&alive) };
        (Watch { _alive: alive }, watched)
    }
}

impl Hub {
    pub(super) fn on_rights_asked(
        &mut self,
        _asking: Asking,
        _way: Way,
        _expected: Option<(bool, Option<bool>)>,
        reply: oneshot::Sender<Option<Told>>,
    ) {
        let _ = reply.send(None);
    }

    pub(super) fn on_watch(&mut self, watched: Watched) {
        drop(watched);
    }
}
