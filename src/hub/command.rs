//! What others may ask of the hub, and how a channel looks from here.
//!
//! The hub takes commands between two transactions, so each takes effect at an exact position of the stream.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{mpsc, oneshot};

use super::Outbox;
use crate::claims::Principal;

/// One joined channel instance, unique in the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub u64);

/// The Phoenix serializer of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// JSON objects.
    V1,
    /// JSON arrays.
    V2,
}

/// A joined channel as the hub and the shards see it.
pub struct Port {
    /// Which.
    pub id: ChannelId,
    /// Where its frames go.
    pub outbox: Arc<Outbox>,
    /// The shard of sockets that its connection belongs to.
    pub shard: usize,
    /// The full topic, `realtime:…`.
    pub topic: Arc<str>,
    /// How its frames look.
    pub version: Version,
    /// The channel's join_ref as JSON text: a quoted string, or `null`.
    pub join_ref: Arc<str>,
    /// Set by the connection before it says anything about the channel's end, or about another instance on its topic:
    /// nothing that was permitted to this instance may be written after that.
    pub closed: AtomicBool,
}

impl Port {
    /// From now on nothing more is written for this instance.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Whether the instance has ended.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").field("id", &self.id).field("topic", &self.topic).finish_non_exhaustive()
    }
}

/// Which kinds of change an entry wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// `*`, and everything that is not one of the three.
    All,
    /// INSERT.
    Insert,
    /// UPDATE.
    Update,
    /// DELETE.
    Delete,
}

/// A schema or table name of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Name {
    /// `*`: every one in the publication.
    Any,
    /// This one, compared literally.
    Is(Arc<str>),
}

/// One `postgres_changes` entry of a join, of an accepted shape (`protocol.md` §5.1), its filter not yet parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The id given in the join reply (§5.8).
    pub id: i32,
    /// Kinds of change.
    pub action: Action,
    /// Schema.
    pub schema: Name,
    /// Table.
    pub table: Name,
    /// The filter text as the client sent it.
    pub filter: Option<Arc<str>>,
    /// The columns asked for; the key is added. `None` or empty: all.
    pub select: Option<Vec<String>>,
}

/// Why the entries of a channel are not active: the text of the `system` frame (§5.5). None of them is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SubscribeError {
    /// Safe for the client.
    pub message: String,
    /// Whether the same entries may be accepted a moment later (the database was not reachable), so that the session
    /// should try again every few seconds.
    pub retry: bool,
}

/// A command in the hub's queue.
#[derive(Debug)]
pub enum Command {
    /// Activate all entries of a channel, or none.
    Subscribe {
        /// The channel.
        port: Arc<Port>,
        /// Its entries.
        entries: Vec<Entry>,
        /// Who it speaks for.
        principal: Arc<Principal>,
        /// Answered when they are active, or refused.
        reply: oneshot::Sender<Result<(), SubscribeError>>,
    },
    /// A channel has a new token: judge what follows by it.
    Reclaim {
        /// The channel.
        id: ChannelId,
        /// Who it speaks for from now on.
        principal: Arc<Principal>,
        /// Answered when it is in force. The entries are validated again; refused ones end all entries of the channel.
        reply: oneshot::Sender<Result<(), SubscribeError>>,
    },
    /// Forget a channel.
    Leave {
        /// The channel.
        id: ChannelId,
    },
}

/// The way to the hub's bounded queue. Cheap to clone.
#[derive(Debug, Clone)]
pub struct HubHandle {
    commands: mpsc::Sender<Command>,
}

impl HubHandle {
    /// Over an existing queue.
    pub fn new(commands: mpsc::Sender<Command>) -> HubHandle {
        HubHandle { commands }
    }

    /// Resolves when every change committed after this moment will be delivered to the channel.
    pub async fn subscribe(
        &self,
        port: Arc<Port>,
        entries: Vec<Entry>,
        principal: Arc<Principal>,
    ) -> Result<(), SubscribeError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Subscribe { port, entries, principal, reply }, answer).await
    }

    /// Resolves when the new principal is in force.
    pub async fn reclaim(&self, id: ChannelId, principal: Arc<Principal>) -> Result<(), SubscribeError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Reclaim { id, principal, reply }, answer).await
    }

    /// Forgets the channel. Never fails: without a hub there is nothing to forget.
    pub async fn leave(&self, id: ChannelId) {
        let _ = self.commands.send(Command::Leave { id }).await;
    }

    async fn ask(
        &self,
        command: Command,
        answer: oneshot::Receiver<Result<(), SubscribeError>>,
    ) -> Result<(), SubscribeError> {
        let stopping = || SubscribeError { message: "Realtime is restarting, please standby".into(), retry: true };
        self.commands.send(command).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }
}
