//! What others may ask of the hub, and how a channel looks from here.
//!
//! The hub takes commands between two transactions, so each takes effect at an exact position of the stream.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use super::members::{Watch, Watched};
use super::{Footing, Judgement, Look, Looked, MESSAGES_TABLE, Outbox, Place, Replayed, Summary};
use crate::change::{RowChange, Timestamp};
use crate::claims::Principal;
use crate::policy::{Asking, Rights, Told, Way};
use crate::resume::Cursor;

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
    /// Not Phoenix: each `data` object, and each notice as `{"notice":…}`, is a line of its own.
    Plain,
    /// Not Phoenix: typed JSON objects (`/api/ws`).
    Topics,
}

impl Version {
    /// As clients write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::V1 => "1.0.0",
            Version::V2 => "2.0.0",
            Version::Plain => "plain",
            Version::Topics => "topics",
        }
    }
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
    /// Whether anything of this instance may be written. Shared with the session, which decides about a held join.
    pub stage: Arc<Stage>,
    /// How far it is in the stream. Begins as the default.
    pub place: Place,
}

/// How far a channel instance is: waiting for its join reply, greeted, or closed. One atomic, so that "the join has timed out"
/// and "its reply is written" exclude each other.
///
/// A change or notice is written only for a greeted instance, which whoever writes asks while it holds the outbox: so nothing
/// precedes the join reply, and nothing follows the frames that tell the instance's end.
#[derive(Debug)]
pub struct Stage {
    state: AtomicU8,
    /// Greeted together with this one.
    also: Option<Arc<Stage>>,
}

const WAITING: u8 = 0;
const GREETED: u8 = 1;
const CLOSED: u8 = 2;

impl Stage {
    /// Of a channel whose join was answered before it was subscribed.
    pub fn greeted() -> Stage {
        Stage { state: AtomicU8::new(GREETED), also: None }
    }

    /// Of a channel whose join reply is held until it is active.
    pub fn waiting() -> Stage {
        Stage { state: AtomicU8::new(WAITING), also: None }
    }

    /// The same; whoever greets it greets the other one too, which has an end of its own. For a channel that the hub learns of
    /// several times and others once.
    pub fn waiting_with(also: Arc<Stage>) -> Stage {
        Stage { state: AtomicU8::new(WAITING), also: Some(also) }
    }

    /// Whether the caller is to write the join reply now: true once, and never after [`Stage::give_up`] was. To be asked while
    /// the outbox is held, so that the reply takes its place before whatever sees the instance greeted.
    pub fn greet(&self) -> bool {
        let greets = self.change(WAITING, GREETED);
        if greets && let Some(also) = &self.also {
            also.greet();
        }
        greets
    }

    /// Ends an instance that waits, if it has not ended already. False if its join reply is out.
    pub fn give_up(&self) -> bool {
        self.change(WAITING, CLOSED) || self.is_closed()
    }

    /// From now on nothing more is written for this instance. Called before anything is said about its end, or about another
    /// instance on its topic.
    pub fn close(&self) {
        self.state.store(CLOSED, Ordering::Release);
    }

    /// Whether changes and notices may be written.
    pub fn is_greeted(&self) -> bool {
        self.state.load(Ordering::Acquire) == GREETED
    }

    /// Whether the instance has ended.
    pub fn is_closed(&self) -> bool {
        self.state.load(Ordering::Acquire) == CLOSED
    }

    fn change(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
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
    /// From where on.
    pub start: Start,
    /// The record is to carry its cursor under this name.
    pub cursor_as: Option<Arc<str>>,
    /// The rows that are there already are to come first.
    pub snapshot: Option<SnapshotWish>,
    /// It asks for the messages of a topic, not for rows of a table; what is said of those above is then without meaning, but
    /// for `id` and `start`.
    pub messages: Option<Messages>,
}

impl Entry {
    /// What it asks for in terms of rows: one that asks for messages, as one on the table that they are inserted into.
    pub fn as_rows(&self) -> Entry {
        let Some(messages) = &self.messages else { return self.clone() };
        let (schema, table) = MESSAGES_TABLE;
        let topic = messages.topic.replace('\\', "\\\\").replace('"', "\\\"");
        let filter = format!("topic=eq.\"{topic}\",private=is.{}", messages.member.is_some());
        Entry {
            action: Action::Insert,
            schema: Name::Is(schema.into()),
            table: Name::Is(table.into()),
            filter: Some(filter.into()),
            messages: None,
            ..self.clone()
        }
    }
}

/// The broadcasts of a topic that come from the database: rows of `realtime.messages`.
#[derive(Debug, Clone)]
pub struct Messages {
    /// Without `realtime:`.
    pub topic: Arc<str>,
    /// Of the private channel of that name: what its member may do, of which the read right counts here. `None`: of the public
    /// channel, which needs no right.
    pub member: Option<Arc<Rights>>,
    /// What the member has had out of the table.
    pub replayed: Option<Arc<Replayed>>,
}

impl PartialEq for Messages {
    /// The same messages; the member is one and the same if it is there.
    fn eq(&self, other: &Messages) -> bool {
        let members = match (&self.member, &other.member) {
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            (None, None) => true,
            _ => false,
        };
        members && self.topic == other.topic && self.replayed == other.replayed
    }
}

impl Eq for Messages {}

/// From where on an entry is to be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// From the hub's position at the activation.
    #[default]
    Now,
    /// What comes after this place; a gap is told if that is not all there.
    After(Cursor),
    /// From the first transaction on that committed at or after this moment, by the database's clock.
    Time(Timestamp),
    /// From a place that can't be told any more (its key is lost): a gap is told, then as `Now`.
    Lost,
}

/// What an entry asks for with `snapshot`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotWish {
    /// At most so many rows.
    pub limit: u32,
    /// By which columns, and whether descending; by the primary key if empty.
    pub order: Vec<(String, bool)>,
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

/// Something about an accepted subscription that its client should know.
///
/// Other servers repeat "no primary key" and "unauthorized" (400 and 401) as a row with each change. Here they are told once, at
/// subscribe time, as a `system` message after `Subscribed to PostgreSQL`, never one per change (decision 25).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// `status` is `ok`, not `error`.
    pub ok: bool,
    /// Safe for the client.
    pub message: String,
}

/// The `system` message that tells a channel that its changes flow (§5.6).
pub const SUBSCRIBED: &str = "Subscribed to PostgreSQL";
/// The `system` message that tells a quiet client how far it is.
pub const CURSOR: &str = "Cursor";
/// What a client is told that asks for something while the relay stops.
pub const RESTARTING: &str = "Realtime is restarting, please standby";

/// All entries of a channel are active.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Activated {
    /// What is to be said about them.
    pub warnings: Vec<Warning>,
    /// Everything that is owed after this place arrives; `None` while there is no history yet.
    pub cursor: Option<Cursor>,
    /// The client is told already, in order with its rows ([`Place::announcing`]).
    pub told: bool,
}

/// The hub's answer: the entries are active, or none of them is.
pub type Subscribed = Result<Activated, SubscribeError>;

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
        /// Complete frames that the client gets before anything else of this channel: its join reply, held until now. They are
        /// queued at the activation, and written unless the port's stage says otherwise by then.
        greeting: Option<Bytes>,
        /// Answered when they are active, or refused.
        reply: oneshot::Sender<Subscribed>,
    },
    /// A channel has a new token: judge what follows by it.
    Reclaim {
        /// The channel.
        id: ChannelId,
        /// Who it speaks for from now on.
        principal: Arc<Principal>,
        /// Answered when it is in force. The entries are validated again; refused ones end all entries of the channel.
        reply: oneshot::Sender<Subscribed>,
    },
    /// Tell what there is.
    Describe {
        /// Answered at once.
        reply: oneshot::Sender<Summary>,
    },
    /// Tell who is subscribed, for `rowcast why`.
    Look {
        /// Whose channels.
        look: Look,
        /// Answered at once.
        reply: oneshot::Sender<Looked>,
    },
    /// Tell how a row would be judged, for `rowcast why`.
    Judge {
        /// The row.
        row: Arc<RowChange>,
        /// For whom.
        principal: Arc<Principal>,
        /// Answered at once; `None` before the rules were read.
        reply: oneshot::Sender<Option<Judgement>>,
    },
    /// Tell what memory says of a private channel.
    Rights {
        /// Who, and which channel.
        asking: Asking,
        /// What for.
        way: Way,
        /// What Postgres has said of broadcast and, if asked, of presence: answered when memory says so too, or not in time.
        expected: Option<(bool, Option<bool>)>,
        /// Answered when rules that were read after this, and the facts that it takes, are there; `None` if not in time.
        reply: oneshot::Sender<Option<Told>>,
    },
    /// Tell where the stream is, for who is about to read stored messages.
    Footing {
        /// Answered at once; `None` before the first history.
        reply: oneshot::Sender<Option<Footing>>,
    },
    /// Keep a member's rights true.
    Watch(Watched),
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
    pub async fn subscribe(&self, port: Arc<Port>, entries: Vec<Entry>, principal: Arc<Principal>) -> Subscribed {
        self.subscribe_greeting(port, entries, principal, None).await
    }

    /// The same; these frames are the first that the channel gets. See [`Command::Subscribe`].
    pub async fn subscribe_greeting(
        &self,
        port: Arc<Port>,
        entries: Vec<Entry>,
        principal: Arc<Principal>,
        greeting: Option<Bytes>,
    ) -> Subscribed {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Subscribe { port, entries, principal, greeting, reply }, answer).await
    }

    /// Resolves when the new principal is in force.
    pub async fn reclaim(&self, id: ChannelId, principal: Arc<Principal>) -> Subscribed {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Reclaim { id, principal, reply }, answer).await
    }

    /// What there is; `None` if the hub is gone.
    pub async fn describe(&self) -> Option<Summary> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Describe { reply }).await.ok()?;
        answer.await.ok()
    }

    /// Who is subscribed; `None` if the hub is gone.
    pub async fn look(&self, look: Look) -> Option<Looked> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Look { look, reply }).await.ok()?;
        answer.await.ok()
    }

    /// How a row would be judged; `None` if the hub is gone, or has not read the rules yet.
    pub async fn judge(&self, row: Arc<RowChange>, principal: Arc<Principal>) -> Option<Judgement> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Judge { row, principal, reply }).await.ok()?;
        answer.await.ok()?
    }

    /// What memory says of a private channel; `None` if it can't tell in time. See [`Command::Rights`].
    pub async fn rights(&self, asking: Asking, way: Way, expected: Option<(bool, Option<bool>)>) -> Option<Told> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Rights { asking, way, expected, reply }).await.ok()?;
        answer.await.ok()?
    }

    /// Where the stream is, for who is about to read stored messages; `None` if the hub is gone, or before the first history.
    pub async fn footing(&self) -> Option<Footing> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Footing { reply }).await.ok()?;
        answer.await.ok()?
    }

    /// Has the member's rights kept true until the result is dropped. Does not wait.
    pub fn watch(&self, asking: Asking, rights: Arc<Rights>) -> Watch {
        let (watch, watched) = Watch::new(asking, rights);
        if let Err(TrySendError::Full(command)) = self.commands.try_send(Command::Watch(watched)) {
            // There are as many of these as there are channels that were just joined.
            let commands = self.commands.clone();
            drop(crate::task::spawn("watch", async move {
                let _ = commands.send(command).await;
            }));
        }
        watch
    }

    /// Forgets the channel. Never fails: without a hub there is nothing to forget.
    pub async fn leave(&self, id: ChannelId) {
        let _ = self.commands.send(Command::Leave { id }).await;
    }

    async fn ask(&self, command: Command, answer: oneshot::Receiver<Subscribed>) -> Subscribed {
        let stopping = || SubscribeError { message: RESTARTING.into(), retry: true };
        self.commands.send(command).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_is_greeted_or_given_up_never_both() {
        let stage = Stage::waiting();
        assert!(!stage.is_greeted() && !stage.is_closed());
        assert!(stage.greet());
        assert!(!stage.greet() && !stage.give_up() && stage.is_greeted());
        stage.close();
        assert!(!stage.greet() && stage.is_closed());
        let stage = Stage::waiting();
        assert!(stage.give_up());
        assert!(!stage.greet() && stage.give_up() && stage.is_closed());
        assert!(!Stage::greeted().greet() && !Stage::greeted().give_up());
        let other = Arc::new(Stage::waiting());
        let stage = Stage::waiting_with(other.clone());
        assert!(stage.greet() && other.is_greeted());
        stage.close();
        assert!(other.is_greeted());
    }

    #[test]
    fn what_is_asked_of_messages_can_be_said_of_their_rows() {
        let messages = Messages { topic: r#"a "b", \ c"#.into(), member: None, replayed: None };
        let (start, cursor_as, snapshot) = (Start::Now, None, None);
        let (schema, table) = (Name::Any, Name::Any);
        let messages = Some(messages);
        let entry = Entry {
            id: 0,
            action: Action::All,
            schema,
            table,
            filter: None,
            select: None,
            start,
            cursor_as,
            snapshot,
            messages,
        };
        let rows = entry.as_rows();
        assert_eq!((rows.action, &rows.table), (Action::Insert, &Name::Is("messages".into())));
        let conditions = crate::filter::parse(rows.filter.as_deref().unwrap()).unwrap();
        let values: Vec<(&str, &str)> = conditions.iter().map(|c| (&*c.column, &*c.value)).collect();
        assert_eq!(values, [("topic", r#"a "b", \ c"#), ("private", "false")]);
        assert_eq!(rows.as_rows(), rows);
    }

    #[test]
    fn of_two_who_race_for_a_stage_one_wins() {
        for _ in 0..200 {
            let stage = Arc::new(Stage::waiting());
            let other = stage.clone();
            let greeter = std::thread::spawn(move || other.greet());
            let gave_up = stage.give_up();
            let greeted = greeter.join().unwrap();
            assert!(greeted != gave_up && stage.is_greeted() == greeted);
        }
    }
}
