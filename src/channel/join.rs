//! The payload of a join, read leniently (`protocol.md` §3.1.1): what can't be read is as if it were absent, and named.
//!
//! The one exception is `private`: a client that meant to be private must not end up in the public channel of that name, so an
//! unreadable value is refused (decision 3).

use std::time::Duration;

use super::changes::Wanted;
use super::object::{Object, string};
use crate::claims::TokenError;
use crate::error::{ClientFacing, Fault, Remedy};
use crate::hub::RESTARTING;

/// Why a join is refused (`protocol.md` §3.1.3).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The topic is `realtime:` and nothing more.
    #[error("the topic has no name")]
    TopicName,
    /// The relay is stopping.
    #[error("the relay is stopping")]
    Restarting,
    /// Public channels are switched off.
    #[error("only private channels are allowed")]
    PrivateOnly,
    /// The connection joins more often than it may; it is closed after the reply.
    #[error("the connection joins too often")]
    TooManyJoins,
    /// The connection has as many channels as it may.
    #[error("the connection has too many channels")]
    TooManyChannels,
    /// The token is not good for anything.
    #[error("the token was refused")]
    Token(#[from] TokenError),
    /// The payload is not one that we may guess about.
    #[error("the payload is invalid: {0}")]
    Payload(&'static str),
    /// Policies let nothing of this private channel be read.
    #[error("the private channel may not be read")]
    Unauthorized {
        /// Without `realtime:`.
        topic: String,
    },
    /// Postgres did not say in time whether it may be read: its message.
    #[error("it could not be decided in time whether the channel may be read")]
    Canceled(String),
    /// `realtime.messages` has no partition for today, without which nothing can be decided.
    #[error("realtime.messages has no partition for today")]
    MissingPartition,
    /// Too many ask whether they may read.
    #[error("too many channels are being authorized")]
    PoolExhausted,
    /// The database, which has to decide, is not there.
    #[error("the database can't be reached")]
    Unreachable,
    /// Replay is for private channels.
    #[error("replay is not allowed for public channels")]
    Replay,
    /// What is to be replayed can't be read, or is out of range.
    #[error("the replay parameters are not valid")]
    ReplayParams,
    /// The table could not be read.
    #[error("stored messages could not be read")]
    ReplayFailed,
    /// The join was to be answered when its changes are active, and they can't be: the text of §5.5.
    #[error("the changes asked for can't be subscribed to")]
    Changes(String),
    /// The join was to be answered when its changes are active, and they were not in time.
    #[error("the changes asked for were not active in time")]
    ChangesTimeout {
        /// How long that was.
        after: Duration,
        /// What stood in the way at last; safe for the client.
        last: Option<String>,
    },
}

impl ClientFacing for JoinError {
    fn code(&self) -> &'static str {
        match self {
            JoinError::TopicName => "TopicNameRequired",
            JoinError::Restarting => "RealtimeRestarting",
            JoinError::PrivateOnly => "PrivateOnly",
            JoinError::TooManyJoins => "ClientJoinRateLimitReached",
            JoinError::TooManyChannels => "ChannelRateLimitReached",
            JoinError::Token(error) => error.code(),
            JoinError::Payload(_) => "InvalidJoinPayload",
            JoinError::Unauthorized { .. } => "Unauthorized",
            JoinError::Canceled(_) => "QueryCanceled",
            JoinError::MissingPartition => "MissingPartition",
            JoinError::PoolExhausted => "IncreaseConnectionPool",
            JoinError::Unreachable => "UnableToConnectToProject",
            JoinError::Replay | JoinError::ReplayParams | JoinError::ReplayFailed => "UnableToReplayMessages",
            JoinError::Changes(_) => "RealtimeDisabledForConfiguration",
            JoinError::ChangesTimeout { .. } => "PostgresChangesSubscribeTimeout",
        }
    }

    /// The whole `reason`.
    fn client_text(&self) -> String {
        let text = match self {
            JoinError::TopicName => "You must provide a topic name",
            JoinError::Restarting => RESTARTING,
            JoinError::PrivateOnly => "This project only allows private channels",
            JoinError::TooManyJoins => "Too many joins per second",
            JoinError::TooManyChannels => "Too many channels",
            JoinError::Token(error) => return error.join_reason(),
            JoinError::Payload(text) => text,
            JoinError::Unauthorized { topic } => return format!("{}: {}", self.code(), no_permission(topic)),
            JoinError::MissingPartition => "Realtime was unable to find the expected messages partition",
            JoinError::PoolExhausted => "Please increase your connection pool size",
            JoinError::Unreachable => UNREACHABLE,
            JoinError::Replay => "Replay is not allowed for public channels",
            JoinError::ReplayParams => "Replay params are not valid",
            JoinError::ReplayFailed => "Realtime was unable to replay messages",
            JoinError::Canceled(text) | JoinError::Changes(text) => text,
            JoinError::ChangesTimeout { after, last } => {
                let why = last.as_ref().map(|text| format!(" ({text})")).unwrap_or_default();
                return format!("{}: Changes were not active within {} ms{why}", self.code(), after.as_millis());
            }
        };
        format!("{}: {text}", self.code())
    }
}

impl Fault for JoinError {
    fn remedy(&self) -> Remedy {
        match self {
            JoinError::Restarting
            | JoinError::ChangesTimeout { .. }
            | JoinError::Canceled(_)
            | JoinError::PoolExhausted
            | JoinError::Unreachable
            | JoinError::ReplayFailed => Remedy::Retry,
            _ => Remedy::Operator,
        }
    }
}

/// What a channel's end and a refused join say of a database that is not there.
pub const UNREACHABLE: &str = "Realtime was unable to connect to the project database";

/// That nothing of a private channel may be read. `topic`: without `realtime:`.
pub fn no_permission(topic: &str) -> String {
    format!("You do not have permissions to read from this Channel topic: {topic}")
}

/// The token of an `access_token` event, if it is one to look at: not absent, null or an opaque key (§3.4).
pub fn renewed_token(payload: &str) -> Option<String> {
    Object::parse(payload)?.string("access_token").filter(|token| !token.starts_with("sb_"))
}

/// Whether the channel is to be private.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privacy {
    /// `private` is absent or false.
    Public,
    /// `private` is true.
    Private,
    /// `private` is something else.
    Unreadable,
}

/// Which token the channel speaks with (§3.1.2).
#[derive(Clone, PartialEq, Eq)]
pub enum TokenChoice {
    /// The connection's.
    Connection,
    /// This one.
    Own(String),
}

/// `broadcast.replay`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replay {
    /// Out of the table: the newest ones stored since then.
    Stored {
        /// Milliseconds since 1970.
        since: i64,
        /// At most so many, 1 to 25.
        limit: u32,
    },
    /// Out of the log: all that came after this cursor, which is not opened yet.
    After(String),
    /// What can't be read.
    Invalid,
}

/// What a join asks for.
pub struct Join {
    /// Whether it is to be private.
    pub privacy: Privacy,
    /// Whether each broadcast is to be answered.
    pub ack: bool,
    /// Whether its own broadcasts come back to it.
    pub echo: bool,
    /// What of the past is to be sent again.
    pub replay: Option<Replay>,
    /// Whether it is to be told when broadcasts from the database flow.
    pub replication_ready: bool,
    /// Whether presence is asked for.
    pub presence: bool,
    /// Under which key it is to be present; `None`: one of our making.
    pub key: Option<Box<str>>,
    /// The `postgres_changes` entries, nulls removed.
    pub changes: Vec<Wanted>,
    /// `postgres_changes_options`: the reply is to be held until the entries are active, at most for this long (§5.6).
    pub wait: Option<Duration>,
    /// The token.
    pub token: TokenChoice,
    /// Fields that could not be read and count as absent, for the log.
    pub unreadable: Vec<&'static str>,
}

/// Messages that are replayed out of the table.
const MAX_REPLAYED: i64 = 25;
/// Bytes of a presence key: it is in every frame that tells of its owner.
const MAX_KEY_BYTES: usize = 1024;
/// How long a join reply is held if the client says no time of its own.
const DEFAULT_WAIT: Duration = Duration::from_secs(15);

impl Join {
    /// Never fails; see the module's comment. A payload without `config` is one with an empty `config` (decision 5).
    pub fn parse(payload: &str) -> Join {
        let mut unreadable = Vec::new();
        let payload = section(Some(payload), "payload", &mut unreadable);
        let config = section(payload.get_some("config"), "config", &mut unreadable);
        let broadcast = section(config.get_some("broadcast"), "broadcast", &mut unreadable);
        let presence = section(config.get_some("presence"), "presence", &mut unreadable);
        let mut flag = |object: &Object<'_>, name: &'static str| {
            let value = object.get_some(name).map(boolean);
            if value == Some(None) {
                unreadable.push(name);
            }
            value.flatten().unwrap_or(false)
        };
        let ack = flag(&broadcast, "ack");
        let echo = flag(&broadcast, "self");
        let replication_ready = flag(&broadcast, "replication_ready");
        let enabled = flag(&presence, "enabled");
        let key = key(&presence, &mut unreadable);
        let privacy = match config.get_some("private").map(boolean) {
            None | Some(Some(false)) => Privacy::Public,
            Some(Some(true)) => Privacy::Private,
            Some(None) => Privacy::Unreadable,
        };
        let changes = config.get_some("postgres_changes").map_or_else(|| Some(Vec::new()), Wanted::parse_all);
        if changes.is_none() {
            unreadable.push("postgres_changes");
        }
        let options = section(config.get_some("postgres_changes_options"), "postgres_changes_options", &mut unreadable);
        Join {
            wait: wait(&options, &mut unreadable),
            privacy,
            ack,
            echo,
            replay: broadcast.get_some("replay").map(replay),
            replication_ready,
            presence: enabled,
            key,
            changes: changes.unwrap_or_default(),
            token: token(&payload),
            unreadable,
        }
    }
}

fn section<'a>(json: Option<&'a str>, name: &'static str, unreadable: &mut Vec<&'static str>) -> Object<'a> {
    json.map_or_else(
        || Some(Object::default()),
        |json| if json == "null" { Some(Object::default()) } else { Object::parse(json) },
    )
    .unwrap_or_else(|| {
        unreadable.push(name);
        Object::default()
    })
}

fn wait(options: &Object<'_>, unreadable: &mut Vec<&'static str>) -> Option<Duration> {
    let wanted = options.get_some("wait").map(boolean);
    if wanted == Some(None) {
        unreadable.push("wait");
    }
    wanted.flatten().filter(|wanted| *wanted)?;
    let millis = |json: &str| json.parse::<f64>().ok().filter(|millis| millis.is_finite() && *millis > 0.0);
    let timeout = options.get_some("timeout").map(millis);
    if timeout == Some(None) {
        unreadable.push("timeout");
    }
    // `as` saturates; the caller has a bound of its own.
    Some(timeout.flatten().map_or(DEFAULT_WAIT, |millis| Duration::from_millis(millis as u64)))
}

/// `presence.key`: a string; of anything else its JSON text.
fn key(presence: &Object<'_>, unreadable: &mut Vec<&'static str>) -> Option<Box<str>> {
    let json = presence.get_some("key")?;
    let text = string(json).unwrap_or_else(|| json.to_owned());
    if text.len() > MAX_KEY_BYTES {
        unreadable.push("key");
        return None;
    }
    (!text.is_empty()).then(|| text.into())
}

fn replay(json: &str) -> Replay {
    let Some(object) = Object::parse(json) else { return Replay::Invalid };
    let limit = match object.get_some("limit") {
        None => Some(MAX_REPLAYED),
        Some(json) => json.parse::<i64>().ok(),
    };
    let since = object.get_some("since").map(|json| json.parse::<i64>().ok().filter(|since| *since >= 0));
    match (since, object.get_some("cursor"), limit) {
        (Some(Some(since)), None, Some(limit)) => {
            // It fits: it is between the two.
            Replay::Stored { since, limit: limit.clamp(1, MAX_REPLAYED) as u32 }
        }
        (None, Some(cursor), _) => string(cursor).map_or(Replay::Invalid, Replay::After),
        _ => Replay::Invalid,
    }
}

/// A JSON boolean, or the word as a string in any letter case.
fn boolean(json: &str) -> Option<bool> {
    match json {
        "true" => Some(true),
        "false" => Some(false),
        other => match string(other)?.to_ascii_lowercase().as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        },
    }
}

fn token(payload: &Object<'_>) -> TokenChoice {
    let access = payload.string("access_token");
    let user = payload.string("user_token");
    let candidate = access.as_deref().or(user.as_deref());
    if candidate.is_some_and(|token| token.starts_with("sb_")) {
        return TokenChoice::Connection;
    }
    user.or(access).map_or(TokenChoice::Connection, TokenChoice::Own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_string_that_is_no_opaque_key_renews_a_token() {
        assert_eq!(renewed_token(r#"{"access_token":"a"}"#).as_deref(), Some("a"));
        assert_eq!(renewed_token(r#"{"access_token":""}"#).as_deref(), Some(""));
        assert_eq!(renewed_token(r#"{"access_token":"a","access_token":"b"}"#).as_deref(), Some("b"));
        for none in [
            "{}",
            "[]",
            r#"["a"]"#,
            "null",
            r#"{"access_token":null}"#,
            r#"{"access_token":"sb_x"}"#,
            r#"{"access_token":1}"#,
        ] {
            assert_eq!(renewed_token(none), None, "{none}");
        }
    }

    #[test]
    fn absent_and_null_sections_are_defaults() {
        for payload in [
            "{}",
            "null",
            r#"{"config":{}}"#,
            r#"{"config":{"broadcast":null,"presence":null,"postgres_changes":null}}"#,
        ] {
            let join = Join::parse(payload);
            assert_eq!((join.privacy, join.ack, join.presence, join.replay), (Privacy::Public, false, false, None));
            assert!(!join.echo && !join.replication_ready && join.key.is_none());
            assert!(join.changes.is_empty() && join.unreadable.is_empty(), "{payload}");
        }
    }

    #[test]
    fn booleans_as_strings_are_honoured_in_any_case() {
        let join =
            Join::parse(r#"{"config":{"broadcast":{"ack":"True"},"presence":{"enabled":"TRUE"},"private":"False"}}"#);
        assert_eq!((join.ack, join.presence, join.privacy), (true, true, Privacy::Public));
    }

    #[test]
    fn what_can_not_be_read_is_default_and_named_but_private_is_refused() {
        let join =
            Join::parse(r#"{"config":{"broadcast":{"ack":1},"presence":[],"private":"yes","postgres_changes":{}}}"#);
        assert_eq!((join.ack, join.presence, join.privacy), (false, false, Privacy::Unreadable));
        assert_eq!(join.unreadable, ["presence", "ack", "postgres_changes"]);
        assert_eq!(Join::parse("[1]").unreadable, ["payload"]);
        assert_eq!(Join::parse(r#"{"config":{"private":1}}"#).privacy, Privacy::Unreadable);
    }

    #[test]
    fn a_key_is_a_string_whatever_it_was() {
        let key = |presence: &str| Join::parse(&format!(r#"{{"config":{{"presence":{presence}}}}}"#)).key;
        for none in ["{}", r#"{"key":null}"#, r#"{"key":""}"#, &format!(r#"{{"key":"{}"}}"#, "x".repeat(1025))] {
            assert_eq!(key(none), None);
        }
        for (json, text) in [(r#""u\u0031""#, "u1"), ("123", "123"), ("-1.5", "-1.5"), ("true", "true")] {
            assert_eq!(key(&format!(r#"{{"key":{json}}}"#)).as_deref(), Some(text));
        }
    }

    #[test]
    fn a_replay_needs_a_time_or_a_cursor() {
        let replay =
            |replay: &str| Join::parse(&format!(r#"{{"config":{{"broadcast":{{"replay":{replay}}}}}}}"#)).replay;
        let stored = |since, limit| Some(Replay::Stored { since, limit });
        assert_eq!(replay("null"), None);
        assert_eq!(replay(r#"{"since":5}"#), stored(5, 25));
        assert_eq!(replay(r#"{"since":0,"limit":null}"#), stored(0, 25));
        assert_eq!(replay(r#"{"since":1795256130123,"limit":2}"#), stored(1_795_256_130_123, 2));
        assert_eq!(replay(r#"{"since":5,"limit":100}"#), stored(5, 25));
        assert_eq!(replay(r#"{"since":5,"limit":-3}"#), stored(5, 1));
        assert_eq!(replay(r#"{"cursor":"abc"}"#), Some(Replay::After("abc".into())));
        for bad in [
            "{}",
            "true",
            "5",
            r#"{"since":"5"}"#,
            r#"{"since":1.5}"#,
            r#"{"since":-1}"#,
            r#"{"since":99999999999999999999}"#,
            r#"{"since":5,"limit":"2"}"#,
            r#"{"since":5,"limit":2.5}"#,
            r#"{"cursor":5}"#,
            r#"{"since":5,"cursor":"abc"}"#,
            r#"{"limit":5}"#,
        ] {
            assert_eq!(replay(bad), Some(Replay::Invalid), "{bad}");
        }
    }

    #[test]
    fn only_a_readable_wait_holds_the_reply() {
        let wait = |options: &str| {
            let join = Join::parse(&format!(r#"{{"config":{{"postgres_changes_options":{options}}}}}"#));
            (join.wait.map(|wait| wait.as_millis()), join.unreadable)
        };
        for none in ["{}", "null", r#"{"wait":false,"timeout":5}"#, r#"{"wait":null}"#, r#"{"timeout":5}"#] {
            assert_eq!(wait(none), (None, vec![]), "{none}");
        }
        assert_eq!(wait(r#"{"wait":true}"#), (Some(15_000), vec![]));
        assert_eq!(wait(r#"{"wait":"True","timeout":null}"#), (Some(15_000), vec![]));
        assert_eq!(wait(r#"{"wait":true,"timeout":250}"#), (Some(250), vec![]));
        assert_eq!(wait(r#"{"wait":true,"timeout":2.5e3}"#), (Some(2500), vec![]));
        assert_eq!(wait(r#"{"wait":true,"timeout":1e300}"#).0, Some(u128::from(u64::MAX)));
        for bad in ["0", "-5", r#""9""#, "true", "{}"] {
            assert_eq!(wait(&format!(r#"{{"wait":true,"timeout":{bad}}}"#)), (Some(15_000), vec!["timeout"]), "{bad}");
        }
        assert_eq!(wait(r#"{"wait":1}"#), (None, vec!["wait"]));
        assert_eq!(wait("7"), (None, vec!["postgres_changes_options"]));
    }

    #[test]
    fn the_token_is_chosen_as_the_protocol_says() {
        let choice = |json: &str| match Join::parse(json).token {
            TokenChoice::Connection => "connection".to_owned(),
            TokenChoice::Own(token) => token,
        };
        assert_eq!(choice("{}"), "connection");
        assert_eq!(choice(r#"{"access_token":"a"}"#), "a");
        assert_eq!(choice(r#"{"user_token":"u"}"#), "u");
        assert_eq!(choice(r#"{"access_token":"a","user_token":"u"}"#), "u");
        assert_eq!(choice(r#"{"access_token":"sb_a","user_token":"u"}"#), "connection");
        assert_eq!(choice(r#"{"user_token":"sb_u"}"#), "connection");
        assert_eq!(choice(r#"{"access_token":null}"#), "connection");
        assert_eq!(choice(r#"{"access_token":5,"user_token":"u"}"#), "u");
        assert_eq!(choice(r#"{"access_token":""}"#), "");
    }
}
