//! The flags that bound what clients may take.

use std::collections::BTreeMap;

use clap::Args;

use super::named;

/// See the module's comment; part of `serve`'s.
#[derive(Args)]
pub(super) struct LimitArgs {
    /// Channels of one connection [env: ROWCAST_MAX_CHANNELS] [default: 1000]
    #[arg(long, value_name = "NUMBER", help_heading = "Clients")]
    max_channels: Option<String>,
    /// Entries of `postgres_changes` in one join [env: ROWCAST_MAX_ENTRIES_PER_JOIN] [default: 1000]
    #[arg(long, value_name = "NUMBER", help_heading = "Clients")]
    max_entries_per_join: Option<String>,
    /// Entries of `postgres_changes` of one connection [env: ROWCAST_MAX_ENTRIES_PER_CONNECTION] [default: 10000]
    #[arg(long, value_name = "NUMBER", help_heading = "Clients")]
    max_entries_per_connection: Option<String>,
    /// Joins of one connection, on average over a minute; more close it with 1012 [env: ROWCAST_MAX_JOINS_PER_SECOND]
    /// [default: 100]
    #[arg(long, value_name = "NUMBER", help_heading = "Clients")]
    max_joins_per_second: Option<String>,
    /// Joins of all connections, on average over a minute; more close theirs with 1012, and handshakes get 429
    /// [env: ROWCAST_MAX_ALL_JOINS_PER_SECOND] [default: 20000]
    #[arg(long, value_name = "NUMBER", help_heading = "Clients")]
    max_all_joins_per_second: Option<String>,
    /// Messages of one connection on its channels, on average over a minute; more end the channel
    /// [env: ROWCAST_MAX_MESSAGES_PER_SECOND] [default: 1000]
    #[arg(long, value_name = "NUMBER", help_heading = "Clients")]
    max_messages_per_second: Option<String>,
    /// Presence messages of one channel in the time of `--presence-window`; more end the channel
    /// [env: ROWCAST_MAX_PRESENCE_CALLS] [default: 1000]
    #[arg(long, value_name = "NUMBER", help_heading = "Clients")]
    max_presence_calls: Option<String>,
    /// The time in which presence messages are counted [env: ROWCAST_PRESENCE_WINDOW] [default: 30s]
    #[arg(long, value_name = "TIME", help_heading = "Clients")]
    presence_window: Option<String>,
    /// Payload of a broadcast or of a presence message; a larger broadcast goes to nobody
    /// [env: ROWCAST_MAX_PAYLOAD_BYTES] [default: 3MB]
    #[arg(long, value_name = "SIZE", help_heading = "Clients")]
    max_payload_bytes: Option<String>,
    /// What a client is present with on one channel, its key included [env: ROWCAST_MAX_PRESENCE_BYTES] [default: 64KiB]
    #[arg(long, value_name = "SIZE", help_heading = "Clients")]
    max_presence_bytes: Option<String>,
    /// The same on all channels of a connection [env: ROWCAST_MAX_CONNECTION_PRESENCE_BYTES] [default: 1MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Clients")]
    max_connection_presence_bytes: Option<String>,
    /// The same of all clients, which is memory [env: ROWCAST_MAX_ALL_PRESENCE_BYTES] [default: 256MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Clients")]
    max_all_presence_bytes: Option<String>,
    /// Messages of one room, on average over a minute; with more, users end their channel who send more than their share
    /// [env: ROWCAST_MAX_ROOM_MESSAGES_PER_SECOND] [default: 10000]
    #[arg(long, value_name = "NUMBER", help_heading = "Clients")]
    max_room_messages_per_second: Option<String>,
    /// Changes of presence in one room, on average over a minute; more end the channel
    /// [env: ROWCAST_MAX_ROOM_PRESENCE_PER_SECOND] [default: 5000]
    #[arg(long, value_name = "NUMBER", help_heading = "Clients")]
    max_room_presence_per_second: Option<String>,
    /// Clients that are present in one room; more are told that there are too many
    /// [env: ROWCAST_MAX_ROOM_PRESENCES] [default: 50000]
    #[arg(long, value_name = "NUMBER", help_heading = "Clients")]
    max_room_presences: Option<String>,
    /// What they are all present with, their keys included: who joins gets it in one frame
    /// [env: ROWCAST_MAX_ROOM_PRESENCE_BYTES] [default: 8MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Clients")]
    max_room_presence_bytes: Option<String>,
    /// Between two diffs of the presence of one room; what happens meanwhile is told in one
    /// [env: ROWCAST_PRESENCE_DIFF_WINDOW] [default: 50ms]
    #[arg(long, value_name = "TIME", help_heading = "Clients")]
    presence_diff_window: Option<String>,
    /// It grows with rooms of more than a thousand members, up to this [env: ROWCAST_MAX_PRESENCE_DIFF_WINDOW]
    /// [default: 1500ms]
    #[arg(long, value_name = "TIME", help_heading = "Clients")]
    max_presence_diff_window: Option<String>,
    /// Only private channels can be joined [env: ROWCAST_PRIVATE_ONLY] [default: false]
    #[arg(long, value_name = "BOOL", help_heading = "Clients", num_args = 0..=1, default_missing_value = "true")]
    private_only: Option<String>,
    /// What may be done on a private channel is asked of Postgres again after this, where Rowcast can't follow its policies
    /// itself [env: ROWCAST_AUTHZ_RECHECK] [default: 10s]
    #[arg(long, value_name = "TIME", help_heading = "Clients")]
    authz_recheck: Option<String>,
    /// Connections to the database for those questions [env: ROWCAST_AUTHZ_CONNECTIONS] [default: 4]
    #[arg(long, value_name = "NUMBER", help_heading = "Clients")]
    authz_connections: Option<String>,
    /// The longest that a join with `postgres_changes_options: {wait: true}` waits for its reply
    /// [env: ROWCAST_MAX_JOIN_WAIT] [default: 20s]
    #[arg(long, value_name = "TIME", help_heading = "Clients")]
    max_join_wait: Option<String>,
    /// Rows of one snapshot, and of a page of history [env: ROWCAST_MAX_SNAPSHOT_ROWS] [default: 1000]
    #[arg(long, value_name = "NUMBER", help_heading = "Clients")]
    max_snapshot_rows: Option<String>,
    /// Pages of history and snapshots that are read over HTTP at a time; more get 429 [env: ROWCAST_MAX_PAGES]
    /// [default: 32]
    #[arg(long, value_name = "NUMBER", help_heading = "Clients")]
    max_pages: Option<String>,
    /// Those of one user, whatever tokens he has; more get 429 [env: ROWCAST_MAX_USER_PAGES] [default: 4]
    #[arg(long, value_name = "NUMBER", help_heading = "Clients")]
    max_user_pages: Option<String>,
    /// Requests to broadcast over HTTP of one user, on average over a minute; more get 429
    /// [env: ROWCAST_MAX_POSTS_PER_SECOND] [default: 1000]
    #[arg(long, value_name = "NUMBER", help_heading = "Clients")]
    max_posts_per_second: Option<String>,
    /// Messages that one user broadcasts over HTTP, on average over a minute; more get 429
    /// [env: ROWCAST_MAX_POSTED_MESSAGES_PER_SECOND] [default: 10000]
    #[arg(long, value_name = "NUMBER", help_heading = "Clients")]
    max_posted_messages_per_second: Option<String>,
    /// Requests to broadcast over HTTP of one user whose body is still on its way; more get 429. With those that wait to be
    /// answered, no user has more than half of `--max-unauthenticated` [env: ROWCAST_MAX_USER_POSTS] [default: 128]
    #[arg(long, value_name = "NUMBER", help_heading = "Clients")]
    max_user_posts: Option<String>,
    /// The body of such a request with several messages; a larger one gets 413 [env: ROWCAST_MAX_POST_BYTES] [default: 8MB]
    #[arg(long, value_name = "SIZE", help_heading = "Clients")]
    max_post_bytes: Option<String>,
    /// All bodies of such requests at a time, of which one user has at most a quarter; more get 429
    /// [env: ROWCAST_MAX_POSTING_BYTES] [default: 64MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Clients")]
    max_posting_bytes: Option<String>,
    /// A message from a client; a larger one closes its connection with 1009 [env: ROWCAST_MAX_MESSAGE_BYTES]
    /// [default: 5MB]
    #[arg(long, value_name = "SIZE", help_heading = "Clients")]
    max_message_bytes: Option<String>,
    /// Messages above 64 KiB that are on their way from all clients, of which no user has more than is left; who sends more is
    /// closed with 1013; at least twice the size of a message [env: ROWCAST_MAX_UNFINISHED_BYTES] [default: 256MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Clients")]
    max_unfinished_bytes: Option<String>,
    /// The head of a request, at least 8KiB; a larger one gets 431 [env: ROWCAST_MAX_HEADER_BYTES] [default: 16KiB]
    #[arg(long, value_name = "SIZE", help_heading = "Clients")]
    max_header_bytes: Option<String>,
}

impl LimitArgs {
    /// What was given, by the names of a settings file.
    pub(super) fn flags(&self) -> BTreeMap<String, String> {
        named([
            ("max_channels", &self.max_channels),
            ("max_entries_per_join", &self.max_entries_per_join),
            ("max_entries_per_connection", &self.max_entries_per_connection),
            ("max_joins_per_second", &self.max_joins_per_second),
            ("max_all_joins_per_second", &self.max_all_joins_per_second),
            ("max_messages_per_second", &self.max_messages_per_second),
            ("max_presence_calls", &self.max_presence_calls),
            ("presence_window", &self.presence_window),
            ("max_payload_bytes", &self.max_payload_bytes),
            ("max_presence_bytes", &self.max_presence_bytes),
            ("max_connection_presence_bytes", &self.max_connection_presence_bytes),
            ("max_all_presence_bytes", &self.max_all_presence_bytes),
            ("max_room_messages_per_second", &self.max_room_messages_per_second),
            ("max_room_presence_per_second", &self.max_room_presence_per_second),
            ("max_room_presences", &self.max_room_presences),
            ("max_room_presence_bytes", &self.max_room_presence_bytes),
            ("presence_diff_window", &self.presence_diff_window),
            ("max_presence_diff_window", &self.max_presence_diff_window),
            ("private_only", &self.private_only),
            ("authz_recheck", &self.authz_recheck),
            ("authz_connections", &self.authz_connections),
            ("max_join_wait", &self.max_join_wait),
            ("max_snapshot_rows", &self.max_snapshot_rows),
            ("max_pages", &self.max_pages),
            ("max_user_pages", &self.max_user_pages),
            ("max_posts_per_second", &self.max_posts_per_second),
            ("max_posted_messages_per_second", &self.max_posted_messages_per_second),
            ("max_user_posts", &self.max_user_posts),
            ("max_post_bytes", &self.max_post_bytes),
            ("max_posting_bytes", &self.max_posting_bytes),
            ("max_message_bytes", &self.max_message_bytes),
            ("max_unfinished_bytes", &self.max_unfinished_bytes),
            ("max_header_bytes", &self.max_header_bytes),
        ])
    }
}
