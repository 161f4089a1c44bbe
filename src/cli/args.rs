//! What may be written on the command line.

mod limits;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use self::limits::LimitArgs;
use super::tail::TailArgs;
use super::token::TokenArgs;

/// PostgreSQL changes to the phones of the users who own the rows, in the Supabase Realtime protocol.
#[derive(Debug, Parser)]
#[command(name = "rowcast", version, propagate_version = true, max_term_width = 110)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the relay
    Serve(Box<ServeArgs>),
    /// Try everything on this machine: a private PostgreSQL, example tables, two phones
    Dev(DevArgs),
    /// What Rowcast installs in your database
    Migrate {
        #[command(subcommand)]
        action: MigrateAction,
    },
    /// Look for everything that is wrong with the database and this machine; changes nothing, needs no relay
    Doctor(Box<DoctorArgs>),
    /// Show who judges the rows of a table for a role, and why; reads only the catalog
    ExplainPolicy(ExplainArgs),
    /// Ask a relay on this machine why a user did not get a row
    Why(WhyArgs),
    /// Ask a relay on this machine whether changes are streaming; exits with 0 or 1
    Health(HealthArgs),
    /// Make a token for development
    Token(TokenArgs),
    /// Print the changes that a token's owner gets, as they happen
    Tail(Box<TailArgs>),
    /// Print the version
    Version,
}

#[derive(Debug, Subcommand)]
pub(super) enum MigrateAction {
    /// Make what is missing: schema rowcast, roles, auth helpers, the publication
    Up(DatabaseArgs),
    /// Remove what Rowcast made, and nothing else
    Down {
        /// Keep the steps up to this one
        #[arg(long, value_name = "VERSION")]
        to: Option<u32>,
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// List the steps and whether they were made; exits with 1 if something that the relay needs is missing
    Status(DatabaseArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "It looks at what `rowcast serve` would use: the same settings, from flags, environment and file.\n\n\
                  Exit codes: 0 nothing worse than notes and warnings, 1 errors (with --strict, warnings too), 2 wrong usage."
)]
pub(super) struct DoctorArgs {
    /// A JSON array of findings instead of text
    #[arg(long)]
    pub(super) json: bool,
    /// Exit with 1 at warnings too
    #[arg(long)]
    pub(super) strict: bool,
    /// A role that tokens name beside anon, authenticated and service_role; may be repeated
    #[arg(long, value_name = "ROLE")]
    pub(super) role: Vec<String>,
    #[command(flatten)]
    pub(super) settings: ServeArgs,
}

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// The published table: schema.name, or a name in schema public
    #[arg(value_name = "TABLE")]
    pub(super) table: String,
    /// The role that tokens name; may be repeated [default: anon and authenticated]
    #[arg(long, value_name = "ROLE")]
    pub(super) role: Vec<String>,
    /// JSON instead of a tree
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) database: DatabaseArgs,
}

#[derive(Args)]
#[command(
    group(clap::ArgGroup::new("row").required(true).args(["pk", "cursor"])),
    after_help = "It looks for the row's changes in the relay's log, newest first, and tells what became of each for this user: published,\n\
                  subscribed, filter, rights now and then, sent. What there is no evidence of is said to be unknown.\n\n\
                  Exit codes: 0 answered, 1 not known or the relay can't be asked, 2 wrong usage."
)]
pub(super) struct WhyArgs {
    /// The table: schema.name, or a name in schema public
    #[arg(long, value_name = "TABLE")]
    pub(super) table: Option<String>,
    /// The row's primary key as Postgres prints it: values in key order with commas, or column=value; may be repeated
    #[arg(long, value_name = "VALUE", requires = "table")]
    pub(super) pk: Vec<String>,
    /// Instead of the key: the cursor of the change, or its position LSN/ordinal; LSN alone for all of its transaction
    #[arg(long, value_name = "CURSOR")]
    pub(super) cursor: Option<String>,
    /// The `sub` of the user's token
    #[arg(long, value_name = "SUB", conflicts_with = "token")]
    pub(super) user: Option<String>,
    /// The role in the user's token, beside --user or for those without a `sub` [default: every role he has had]
    #[arg(long, value_name = "ROLE", conflicts_with = "token")]
    pub(super) role: Option<String>,
    /// Instead of the user: his token, which may have expired [env: ROWCAST_TOKEN]
    #[arg(long, value_name = "JWT")]
    pub(super) token: Option<String>,
    /// Look no further back than this
    #[arg(long, value_name = "TIME")]
    pub(super) since: Option<String>,
    /// Show the values of the row and of filters
    #[arg(long)]
    pub(super) show_row: bool,
    /// JSON instead of text
    #[arg(long)]
    pub(super) json: bool,
    /// The relay's admin address [env: ROWCAST_ADMIN_ADDR] [default: 127.0.0.1:4001]
    #[arg(long, value_name = "ADDRESS")]
    pub(super) admin_addr: Option<String>,
    /// A TOML file with settings [env: ROWCAST_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

impl std::fmt::Debug for WhyArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WhyArgs")
    }
}

impl WhyArgs {
    pub(super) fn flags(&self) -> BTreeMap<String, String> {
        named([("admin_addr", &self.admin_addr)])
    }
}

#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// The relay's port for clients [env: PORT] [default: 4000]
    #[arg(long)]
    pub(super) port: Option<String>,
    /// The relay's address for clients [env: HOST] [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    pub(super) host: Option<String>,
    /// A TOML file with settings [env: ROWCAST_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

impl HealthArgs {
    pub(super) fn flags(&self) -> BTreeMap<String, String> {
        named([("port", &self.port), ("host", &self.host)])
    }
}

#[derive(Args)]
pub(super) struct DatabaseArgs {
    /// postgres://user:password@host:5432/database [env: DATABASE_URL]
    #[arg(long, value_name = "URL")]
    pub(super) database_url: Option<String>,
    /// Publications that must be there, with commas; for `status` [env: ROWCAST_PUBLICATION] [default: supabase_realtime]
    #[arg(long, value_name = "NAMES")]
    pub(super) publication: Option<String>,
    /// A TOML file with settings [env: ROWCAST_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

impl std::fmt::Debug for DatabaseArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DatabaseArgs")
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Stops the relay and its private database at Ctrl-C; the data stays in the state folder.")]
pub(super) struct DevArgs {
    /// Port for clients [env: PORT] [default: 4000]
    #[arg(long)]
    pub(super) port: Option<String>,
    /// Address for clients [env: HOST] [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    pub(super) host: Option<String>,
    /// Port of the private PostgreSQL [default: the one used last time, or a free one]
    #[arg(long, value_name = "PORT")]
    pub(super) postgres_port: Option<u16>,
    /// Where database, secrets and log are kept [default: /var/lib/rowcast-dev for root, else
    /// $XDG_STATE_HOME/rowcast/dev, else ~/.local/state/rowcast/dev]
    #[arg(long, value_name = "DIR")]
    pub(super) state_dir: Option<PathBuf>,
    /// End after the demonstration; the exit code says whether it held
    #[arg(long)]
    pub(super) once: bool,
    /// Metrics and state: address and port, or off [env: ROWCAST_ADMIN_ADDR] [default: off]
    #[arg(long, value_name = "ADDRESS")]
    pub(super) admin_addr: Option<String>,
    /// What is logged [env: ROWCAST_LOG] [default: warn]
    #[arg(long, value_name = "FILTER")]
    pub(super) log: Option<String>,
}

impl DevArgs {
    pub(super) fn flags(&self) -> BTreeMap<String, String> {
        named([("port", &self.port), ("host", &self.host), ("admin_addr", &self.admin_addr), ("log", &self.log)])
    }
}

/// Secrets are better given by environment or file: everybody on the machine can read a command line.
#[derive(Args)]
#[command(
    after_help = "Each setting can also be given in the environment or, by the flag's name with underscores, in a TOML file.\n\
                  Flags win over the environment, which wins over the file. Only DATABASE_URL has no default, and one of JWT_SECRET\n\
                  and JWKS_URL must be set.\n\n\
                  Exit codes: 0 stopped as asked, 1 somebody must act, 2 wrong usage, 70 a bug.\n\
                  SIGTERM or Ctrl-C drains within 10 s; a second one stops at once."
)]
pub(super) struct ServeArgs {
    /// A TOML file with settings [env: ROWCAST_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    /// postgres://user:password@host:5432/database [env: DATABASE_URL]
    #[arg(long, value_name = "URL", help_heading = "Database")]
    database_url: Option<String>,
    /// Another user of the same database, as whom Postgres is asked about rows that memory can't judge: `rowcast_ask` of
    /// sql/roles.sql, which has no other right [env: ROWCAST_ASK_USER] [default: the user of DATABASE_URL]
    #[arg(long, value_name = "NAME", help_heading = "Database")]
    ask_user: Option<String>,
    /// The password of that user [env: ROWCAST_ASK_PASSWORD]
    #[arg(long, value_name = "SECRET", help_heading = "Database")]
    ask_password: Option<String>,
    /// Connections on which Postgres is asked about rows [env: ROWCAST_ASK_CONNECTIONS] [default: 4]
    #[arg(long, value_name = "NUMBER", help_heading = "Database")]
    ask_connections: Option<String>,
    /// Connections on which snapshots are read [env: ROWCAST_SNAPSHOT_CONNECTIONS] [default: 4]
    #[arg(long, value_name = "NUMBER", help_heading = "Database")]
    snapshot_connections: Option<String>,
    /// Publications that clients may subscribe to, with commas [env: ROWCAST_PUBLICATION] [default: supabase_realtime]
    #[arg(long, value_name = "NAMES", help_heading = "Database")]
    publication: Option<String>,
    /// Replication slot; made if absent [env: ROWCAST_SLOT] [default: rowcast]
    #[arg(long, value_name = "NAME", help_heading = "Database")]
    slot: Option<String>,
    /// Make a slot that standbys get a copy of (PostgreSQL 17 and up) [env: ROWCAST_SLOT_FAILOVER] [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", help_heading = "Database")]
    slot_failover: Option<String>,
    /// How long clients stay when changes no longer stream; then they are sent away until they do [env: ROWCAST_SLOT_GRACE] [default: 10s]
    #[arg(long, value_name = "TIME", help_heading = "Database")]
    slot_grace: Option<String>,
    /// Make roles, auth helpers and the publication too, as `rowcast migrate up` does [env: ROWCAST_MIGRATE] [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", help_heading = "Database")]
    migrate: Option<String>,
    /// How long to wait at the start for a database or a key set that can't be reached [env: ROWCAST_STARTUP_TIMEOUT] [default: 20s]
    #[arg(long, value_name = "TIME", help_heading = "Database")]
    startup_timeout: Option<String>,

    /// Remove rows that the rules in rowcast.retention no longer keep (sql/retention_set.sql): on or off [env: ROWCAST_RETENTION]
    /// [default: off]
    #[arg(long, value_name = "SWITCH", num_args = 0..=1, default_missing_value = "on", help_heading = "Database")]
    retention: Option<String>,
    /// Time between two runs of it [env: ROWCAST_RETENTION_INTERVAL] [default: 10m]
    #[arg(long, value_name = "TIME", help_heading = "Database")]
    retention_interval: Option<String>,

    /// Make and drop the daily partitions of realtime.messages: own (where Rowcast made the table; elsewhere only missing days are
    /// made), all, or off [env: ROWCAST_MESSAGES_UPKEEP] [default: own]
    #[arg(long, value_name = "SCOPE", help_heading = "Database")]
    messages_upkeep: Option<String>,
    /// How long a partition is kept after its day is over [env: ROWCAST_MESSAGES_RETENTION] [default: 72h]
    #[arg(long, value_name = "TIME", help_heading = "Database")]
    messages_retention: Option<String>,

    /// Secret of the users' tokens (HS256, HS384, HS512), at least 32 bytes [env: JWT_SECRET]
    #[arg(long, value_name = "SECRET", help_heading = "Who may see what")]
    jwt_secret: Option<String>,
    /// The issuer's key set (JWKS): an https address or the path of a file; beside JWT_SECRET or instead of it [env: JWKS_URL]
    #[arg(long, value_name = "URL", help_heading = "Who may see what")]
    jwks_url: Option<String>,
    /// Between two fetches of the key set [env: ROWCAST_JWKS_REFRESH] [default: 10m]
    #[arg(long, value_name = "TIME", help_heading = "Who may see what")]
    jwks_refresh: Option<String>,
    /// PEM file of the only authorities that may vouch for the key set's server [env: ROWCAST_JWKS_CA, else SSL_CERT_FILE]
    /// [default: Mozilla's]
    #[arg(long, value_name = "FILE", help_heading = "Who may see what")]
    jwks_ca: Option<String>,
    /// Opaque API keys and their roles: key=role,key=role [env: ROWCAST_API_KEYS]
    #[arg(long, value_name = "PAIRS", help_heading = "Who may see what")]
    api_keys: Option<String>,
    /// Who gets a DELETE: `judged`, those who may see the old row; `key-to-all`, every subscriber of the table gets the
    /// primary key, as Supabase Realtime does [env: ROWCAST_DELETES] [default: judged]
    #[arg(long, value_name = "MODE", help_heading = "Who may see what")]
    deletes: Option<String>,
    /// Send rows of published partitions that have no row-level security though their root has, as Postgres would show them
    /// [env: ROWCAST_OPEN_PARTITIONS] [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", help_heading = "Who may see what")]
    open_partitions: Option<String>,
    /// Memory for the rows of tables that policies look into; policies over what does not fit are asked of Postgres, row by row
    /// [env: ROWCAST_FACTS_MEMORY] [default: 256MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Who may see what")]
    facts_memory: Option<String>,

    /// Port for clients [env: PORT] [default: 4000]
    #[arg(long, help_heading = "Clients")]
    port: Option<String>,
    /// Address for clients [env: HOST] [default: 0.0.0.0]
    #[arg(long, value_name = "ADDRESS", help_heading = "Clients")]
    host: Option<String>,
    /// WebSocket connections at a time [env: ROWCAST_MAX_CONNECTIONS] [default: 100000]
    #[arg(long, value_name = "NUMBER", help_heading = "Clients")]
    max_connections: Option<String>,
    /// Connections that have not become a WebSocket, requests over HTTP among them; for one more, who has said nothing for the
    /// longest time has to go [env: ROWCAST_MAX_UNAUTHENTICATED] [default: 1024]
    #[arg(long, value_name = "NUMBER", help_heading = "Clients")]
    max_unauthenticated: Option<String>,
    /// A connection that nothing comes from for this long is closed with 1012; the SDKs send something every 25 s
    /// [env: ROWCAST_IDLE_TIMEOUT] [default: 60s]
    #[arg(long, value_name = "TIME", help_heading = "Clients")]
    idle_timeout: Option<String>,
    /// What may wait for one slow client before it is closed with 1013 [env: ROWCAST_OUTBOX_BYTES] [default: 1MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Clients")]
    outbox_bytes: Option<String>,
    /// PEM file of the certificate for TLS, with the intermediate ones; read again when it changes [env: ROWCAST_TLS_CERT]
    #[arg(long, value_name = "FILE", help_heading = "Clients")]
    tls_cert: Option<String>,
    /// PEM file of the certificate's private key [env: ROWCAST_TLS_KEY]
    #[arg(long, value_name = "FILE", help_heading = "Clients")]
    tls_key: Option<String>,
    #[command(flatten)]
    limits: LimitArgs,
    /// A claim of the token that names the device of clients which name none, such as session_id: they go on where they were
    /// [env: ROWCAST_DEVICE_CLAIM] [default: no claim]
    #[arg(long, value_name = "NAME", help_heading = "Clients")]
    device_claim: Option<String>,
    /// What proves that a device has received its rows: `pong`, its answer to a WebSocket Ping; `heartbeat`, its next Phoenix
    /// heartbeat, behind proxies that answer Pings themselves [env: ROWCAST_RECEIPT] [default: pong]
    #[arg(long, value_name = "MODE", help_heading = "Clients")]
    receipt: Option<String>,
    /// Frontiers kept, one for each subscription of each device; at most a quarter for devices without a user [env:
    /// ROWCAST_MAX_FRONTIERS] [default: 1000000]
    #[arg(long, value_name = "NUMBER", help_heading = "Clients")]
    max_frontiers: Option<String>,

    /// Where the log is kept; one relay per folder [env: ROWCAST_DATA_DIR] [default: /var/lib/rowcast for root, else
    /// $XDG_STATE_HOME/rowcast, else ~/.local/state/rowcast]
    #[arg(long, value_name = "DIR", help_heading = "Log of changes")]
    data_dir: Option<String>,
    /// Largest size of the log; clients that come back can replay what is in it [env: ROWCAST_LOG_RETAIN_BYTES] [default: 4GiB]
    #[arg(long, value_name = "SIZE", help_heading = "Log of changes")]
    log_retain_bytes: Option<String>,
    /// Largest age of what is in the log [env: ROWCAST_LOG_RETAIN_AGE] [default: 24h]
    #[arg(long, value_name = "TIME", help_heading = "Log of changes")]
    log_retain_age: Option<String>,
    /// Memory for the newest part of the log: clients that keep up, or come back within it, are served without a read of the disk
    /// [env: ROWCAST_LOG_MEMORY] [default: 64MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Log of changes")]
    log_memory: Option<String>,
    /// Largest size of the journal that `rowcast why` answers from; 0 for none [env: ROWCAST_JOURNAL_BYTES] [default: 64MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Log of changes")]
    journal_bytes: Option<String>,

    /// Metrics and state: address and port, or off; asks nobody who they are [env: ROWCAST_ADMIN_ADDR]
    /// [default: 127.0.0.1:4001]
    #[arg(long, value_name = "ADDRESS", help_heading = "Operation")]
    admin_addr: Option<String>,
    /// What is logged, such as info or warn,rowcast::ingest=debug [env: ROWCAST_LOG] [default: info]
    #[arg(long, value_name = "FILTER", help_heading = "Operation")]
    log: Option<String>,
    /// text or json [env: ROWCAST_LOG_FORMAT] [default: text]
    #[arg(long, value_name = "FORMAT", help_heading = "Operation")]
    log_format: Option<String>,
}

impl std::fmt::Debug for ServeArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServeArgs")
    }
}

impl ServeArgs {
    /// What was given, by the names of a settings file.
    pub(super) fn flags(&self) -> BTreeMap<String, String> {
        let mut flags = self.limits.flags();
        flags.extend(named([
            ("database_url", &self.database_url),
            ("ask_user", &self.ask_user),
            ("ask_password", &self.ask_password),
            ("ask_connections", &self.ask_connections),
            ("snapshot_connections", &self.snapshot_connections),
            ("publication", &self.publication),
            ("slot", &self.slot),
            ("migrate", &self.migrate),
            ("slot_failover", &self.slot_failover),
            ("slot_grace", &self.slot_grace),
            ("startup_timeout", &self.startup_timeout),
            ("retention", &self.retention),
            ("retention_interval", &self.retention_interval),
            ("messages_upkeep", &self.messages_upkeep),
            ("messages_retention", &self.messages_retention),
            ("jwt_secret", &self.jwt_secret),
            ("jwks_url", &self.jwks_url),
            ("jwks_refresh", &self.jwks_refresh),
            ("jwks_ca", &self.jwks_ca),
            ("api_keys", &self.api_keys),
            ("deletes", &self.deletes),
            ("open_partitions", &self.open_partitions),
            ("facts_memory", &self.facts_memory),
            ("port", &self.port),
            ("host", &self.host),
            ("max_connections", &self.max_connections),
            ("max_unauthenticated", &self.max_unauthenticated),
            ("idle_timeout", &self.idle_timeout),
            ("journal_bytes", &self.journal_bytes),
            ("outbox_bytes", &self.outbox_bytes),
            ("tls_cert", &self.tls_cert),
            ("tls_key", &self.tls_key),
            ("device_claim", &self.device_claim),
            ("receipt", &self.receipt),
            ("max_frontiers", &self.max_frontiers),
            ("data_dir", &self.data_dir),
            ("log_retain_bytes", &self.log_retain_bytes),
            ("log_retain_age", &self.log_retain_age),
            ("log_memory", &self.log_memory),
            ("admin_addr", &self.admin_addr),
            ("log", &self.log),
            ("log_format", &self.log_format),
        ]));
        flags
    }
}

impl DatabaseArgs {
    pub(super) fn flags(&self) -> BTreeMap<String, String> {
        named([("database_url", &self.database_url), ("publication", &self.publication)])
    }
}

fn named<const N: usize>(pairs: [(&str, &Option<String>); N]) -> BTreeMap<String, String> {
    let given = pairs.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)));
    given.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed_and_its_help_names_every_required_setting() {
        Cli::command().debug_assert();
        let mut command = Cli::command();
        let serve = command.find_subcommand_mut("serve").expect("serve");
        let help = serve.render_long_help().to_string();
        for text in ["DATABASE_URL", "JWT_SECRET", "Log of changes:", "Exit codes"] {
            assert!(help.contains(text), "{text}\n{help}");
        }
    }
}
