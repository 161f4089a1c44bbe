//! The settings as texts, by name, from every source; then checked all together.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::Figment;
use figment::providers::{Format as _, Serialized, Toml};
use figment::value::{Num, Value};

use super::{Config, ConfigError, Mistake, SHORTEST_SECRET, parse};
use crate::claims::KeySetConfig;
use crate::gateway::{Receipt, TlsFiles};
use crate::messages;
use crate::pg::PgConfig;
use crate::policy::Deletes;

/// A setting's names: in a file (and, with dashes, as a flag), and in the environment.
const NAMES: &[(&str, &str)] = &[
    ("database_url", "DATABASE_URL"),
    ("ask_user", "ROWCAST_ASK_USER"),
    ("ask_password", "ROWCAST_ASK_PASSWORD"),
    ("ask_connections", "ROWCAST_ASK_CONNECTIONS"),
    ("host", "HOST"),
    ("port", "PORT"),
    ("jwt_secret", "JWT_SECRET"),
    ("jwks_url", "JWKS_URL"),
    ("jwks_refresh", "ROWCAST_JWKS_REFRESH"),
    ("jwks_ca", "ROWCAST_JWKS_CA"),
    ("ssl_cert_file", "SSL_CERT_FILE"),
    ("api_keys", "ROWCAST_API_KEYS"),
    ("data_dir", "ROWCAST_DATA_DIR"),
    ("slot", "ROWCAST_SLOT"),
    ("slot_failover", "ROWCAST_SLOT_FAILOVER"),
    ("slot_grace", "ROWCAST_SLOT_GRACE"),
    ("publication", "ROWCAST_PUBLICATION"),
    ("migrate", "ROWCAST_MIGRATE"),
    ("startup_timeout", "ROWCAST_STARTUP_TIMEOUT"),
    ("retention", "ROWCAST_RETENTION"),
    ("retention_interval", "ROWCAST_RETENTION_INTERVAL"),
    ("messages_upkeep", "ROWCAST_MESSAGES_UPKEEP"),
    ("messages_retention", "ROWCAST_MESSAGES_RETENTION"),
    ("deletes", "ROWCAST_DELETES"),
    ("open_partitions", "ROWCAST_OPEN_PARTITIONS"),
    ("facts_memory", "ROWCAST_FACTS_MEMORY"),
    ("log_retain_bytes", "ROWCAST_LOG_RETAIN_BYTES"),
    ("log_retain_age", "ROWCAST_LOG_RETAIN_AGE"),
    ("log_memory", "ROWCAST_LOG_MEMORY"),
    ("journal_bytes", "ROWCAST_JOURNAL_BYTES"),
    ("outbox_bytes", "ROWCAST_OUTBOX_BYTES"),
    ("max_connections", "ROWCAST_MAX_CONNECTIONS"),
    ("max_unauthenticated", "ROWCAST_MAX_UNAUTHENTICATED"),
    ("idle_timeout", "ROWCAST_IDLE_TIMEOUT"),
    ("tls_cert", "ROWCAST_TLS_CERT"),
    ("tls_key", "ROWCAST_TLS_KEY"),
    ("max_channels", "ROWCAST_MAX_CHANNELS"),
    ("max_entries_per_join", "ROWCAST_MAX_ENTRIES_PER_JOIN"),
    ("max_entries_per_connection", "ROWCAST_MAX_ENTRIES_PER_CONNECTION"),
    ("max_joins_per_second", "ROWCAST_MAX_JOINS_PER_SECOND"),
    ("max_all_joins_per_second", "ROWCAST_MAX_ALL_JOINS_PER_SECOND"),
    ("max_messages_per_second", "ROWCAST_MAX_MESSAGES_PER_SECOND"),
    ("max_presence_calls", "ROWCAST_MAX_PRESENCE_CALLS"),
    ("presence_window", "ROWCAST_PRESENCE_WINDOW"),
    ("max_payload_bytes", "ROWCAST_MAX_PAYLOAD_BYTES"),
    ("max_presence_bytes", "ROWCAST_MAX_PRESENCE_BYTES"),
    ("max_connection_presence_bytes", "ROWCAST_MAX_CONNECTION_PRESENCE_BYTES"),
    ("max_all_presence_bytes", "ROWCAST_MAX_ALL_PRESENCE_BYTES"),
    ("max_room_messages_per_second", "ROWCAST_MAX_ROOM_MESSAGES_PER_SECOND"),
    ("max_room_presence_per_second", "ROWCAST_MAX_ROOM_PRESENCE_PER_SECOND"),
    ("max_room_presences", "ROWCAST_MAX_ROOM_PRESENCES"),
    ("max_room_presence_bytes", "ROWCAST_MAX_ROOM_PRESENCE_BYTES"),
    ("presence_diff_window", "ROWCAST_PRESENCE_DIFF_WINDOW"),
    ("max_presence_diff_window", "ROWCAST_MAX_PRESENCE_DIFF_WINDOW"),
    ("private_only", "ROWCAST_PRIVATE_ONLY"),
    ("authz_recheck", "ROWCAST_AUTHZ_RECHECK"),
    ("authz_connections", "ROWCAST_AUTHZ_CONNECTIONS"),
    ("max_join_wait", "ROWCAST_MAX_JOIN_WAIT"),
    ("max_snapshot_rows", "ROWCAST_MAX_SNAPSHOT_ROWS"),
    ("snapshot_connections", "ROWCAST_SNAPSHOT_CONNECTIONS"),
    ("max_pages", "ROWCAST_MAX_PAGES"),
    ("max_user_pages", "ROWCAST_MAX_USER_PAGES"),
    ("max_posts_per_second", "ROWCAST_MAX_POSTS_PER_SECOND"),
    ("max_posted_messages_per_second", "ROWCAST_MAX_POSTED_MESSAGES_PER_SECOND"),
    ("max_user_posts", "ROWCAST_MAX_USER_POSTS"),
    ("max_post_bytes", "ROWCAST_MAX_POST_BYTES"),
    ("max_posting_bytes", "ROWCAST_MAX_POSTING_BYTES"),
    ("max_message_bytes", "ROWCAST_MAX_MESSAGE_BYTES"),
    ("max_unfinished_bytes", "ROWCAST_MAX_UNFINISHED_BYTES"),
    ("max_header_bytes", "ROWCAST_MAX_HEADER_BYTES"),
    ("device_claim", "ROWCAST_DEVICE_CLAIM"),
    ("receipt", "ROWCAST_RECEIPT"),
    ("max_frontiers", "ROWCAST_MAX_FRONTIERS"),
    ("admin_addr", "ROWCAST_ADMIN_ADDR"),
    ("log", "ROWCAST_LOG"),
    ("log_format", "ROWCAST_LOG_FORMAT"),
];

/// Whether the environment variable of this name is a setting.
pub fn is_setting(variable: &str) -> bool {
    NAMES.iter().any(|(_, known)| *known == variable)
}
/// Between two runs of retention, unless told otherwise.
const RETENTION_INTERVAL: Duration = Duration::from_secs(600);
/// Less would forget a join before its channel.
const LEAST_JOURNAL: u64 = 1 << 20;
/// Readers that keep up must find in memory what was just written.
const LEAST_LOG_MEMORY: u64 = 1 << 20;
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// Partitions of messages are of whole days, and looked after every hour.
const SHORTEST_KEPT: Duration = Duration::from_secs(3600);

/// Every setting's name in a file and in the environment.
pub fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    NAMES.iter().copied()
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For a person.
    Text,
    /// One JSON object a line.
    Json,
}

/// What the process prints on standard error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logging {
    /// A `tracing` filter, such as `info,rowcast::wal=debug`.
    pub filter: String,
    /// How.
    pub format: LogFormat,
}

/// Texts by name; empty ones count as absent, as in a shell's `PORT=`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Settings {
    values: BTreeMap<String, String>,
    unknown: Vec<String>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

/// Where the relay keeps what it keeps, unless told otherwise; the arguments are `XDG_STATE_HOME` and `HOME`.
pub fn default_data_dir(xdg_state_home: Option<&Path>, home: Option<&Path>) -> PathBuf {
    if nix::unistd::Uid::effective().is_root() {
        return PathBuf::from("/var/lib/rowcast");
    }
    match (xdg_state_home.filter(|path| path.is_absolute()), home) {
        (Some(state), _) => state.join("rowcast"),
        (None, Some(home)) => home.join(".local/state/rowcast"),
        (None, None) => PathBuf::from("rowcast-data"),
    }
}

impl Settings {
    /// Merges file, environment and flags, the later over the earlier. `flags` are by the names in a file.
    pub fn load(
        file: Option<&Path>,
        environment: &BTreeMap<String, String>,
        flags: &BTreeMap<String, String>,
    ) -> Result<Settings, ConfigError> {
        let mut figment = Figment::new();
        if let Some(path) = file {
            let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
            let text = std::fs::read_to_string(path).map_err(unreadable)?;
            figment = figment.merge(Toml::string(&text));
        }
        let known = |(name, variable): &(&str, &str)| {
            let value = environment.get(*variable).filter(|value| !value.is_empty())?;
            Some(((*name).to_owned(), value.clone()))
        };
        let from_environment: BTreeMap<String, String> = NAMES.iter().filter_map(known).collect();
        figment = figment.merge(Serialized::defaults(from_environment)).merge(Serialized::defaults(flags));
        let merged: BTreeMap<String, Value> = figment.extract().map_err(|error| ConfigError::Syntax {
            path: file.unwrap_or(Path::new("")).to_owned(),
            // The message has line and column; the text of the line, which may hold a secret, follows on further lines.
            reason: error.kind.to_string().lines().next().unwrap_or_default().to_owned(),
        })?;
        let mut settings = Settings::default();
        for (name, value) in merged {
            match scalar(&value).filter(|_| NAMES.iter().any(|(known, _)| *known == name)) {
                Some(text) if text.is_empty() => {}
                Some(text) => settings.set(&name, &text),
                None => settings.unknown.push(name),
            }
        }
        Ok(settings)
    }

    /// Sets one by its name in a file; the strongest source.
    pub fn set(&mut self, name: &str, value: &str) {
        self.values.insert(name.to_owned(), value.to_owned());
    }

    /// Sets one unless it is set.
    pub fn set_default(&mut self, name: &str, value: &str) {
        self.values.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }

    /// Keeps only these.
    pub fn retain(&mut self, names: &[&str]) {
        self.values.retain(|name, _| names.contains(&name.as_str()));
        self.unknown.clear();
    }

    /// The text of one.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// The database alone, for commands that need nothing else.
    pub fn database(&self) -> Result<PgConfig, ConfigError> {
        let mut reading = Reading::new(self);
        let pg = reading.database();
        match pg {
            Some(pg) if reading.mistakes.is_empty() => Ok(pg),
            _ => Err(ConfigError::Mistakes(reading.mistakes)),
        }
    }

    /// The publications that are set, or the default.
    pub fn publications(&self) -> Vec<String> {
        parse::list(self.get("publication").unwrap_or("supabase_realtime"))
    }

    /// How to log; a filter that can't be used is a mistake.
    pub fn logging(&self) -> Result<Logging, ConfigError> {
        let mut reading = Reading::new(self);
        let logging = reading.logging();
        if reading.mistakes.is_empty() { Ok(logging) } else { Err(ConfigError::Mistakes(reading.mistakes)) }
    }

    /// All of it checked; every mistake at once. `data_dir` is for when none is set.
    pub fn config(&self, data_dir: &Path) -> Result<Config, ConfigError> {
        let mut reading = Reading::new(self);
        let config = reading.config(data_dir);
        // What else is wrong is worth knowing together with it.
        let _ = reading.logging();
        for name in &self.unknown {
            reading.mistakes.push(Mistake {
                setting: name.clone(),
                problem: "in the configuration file is not a setting, or not a single value".into(),
                remedy: "Correct its name or remove it.".into(),
            });
        }
        match config {
            Some(config) if reading.mistakes.is_empty() => Ok(config),
            _ => Err(ConfigError::Mistakes(reading.mistakes)),
        }
    }
}

/// A file may write numbers, switches and lists as such.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(_, text) => Some(text.clone()),
        Value::Bool(_, switch) => Some(switch.to_string()),
        Value::Num(_, number) => number_text(*number),
        Value::Array(_, parts) => parts.iter().map(scalar).collect::<Option<Vec<_>>>().map(|parts| parts.join(",")),
        _ => None,
    }
}

fn number_text(number: Num) -> Option<String> {
    number.to_i128().map(|n| n.to_string()).or_else(|| number.to_u128().map(|n| n.to_string()))
}

/// Collects the mistakes while reading.
pub(super) struct Reading<'a> {
    settings: &'a Settings,
    mistakes: Vec<Mistake>,
}

impl<'a> Reading<'a> {
    fn new(settings: &'a Settings) -> Reading<'a> {
        Reading { settings, mistakes: Vec::new() }
    }

    pub(super) fn mistake(&mut self, name: &str, problem: impl Into<String>, remedy: impl Into<String>) {
        let setting = NAMES.iter().find(|(known, _)| *known == name).map_or(name, |(_, variable)| variable).to_owned();
        self.mistakes.push(Mistake { setting, problem: problem.into(), remedy: remedy.into() });
    }

    /// The value, if it is set and good.
    pub(super) fn read<T>(
        &mut self,
        name: &str,
        remedy: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        match parse(self.settings.get(name)?) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.mistake(name, problem, remedy);
                None
            }
        }
    }

    fn database(&mut self) -> Option<PgConfig> {
        let remedy = "Set it to postgres://user:password@host:5432/database.";
        let Some(url) = self.settings.get("database_url") else {
            self.mistake("database_url", "is not set", remedy);
            return None;
        };
        match PgConfig::from_url(url) {
            Ok(pg) => Some(pg),
            Err(error) => {
                let text = error.to_string();
                // The error names the setting itself.
                let problem = text.trim_start_matches("DATABASE_URL").trim_start_matches(':').trim_start().to_owned();
                self.mistake("database_url", problem, remedy);
                None
            }
        }
    }

    /// The same server and database as another user: what is asked elsewhere would be answered about other rows.
    fn ask_login(&mut self, pg: &PgConfig) -> Option<PgConfig> {
        match (self.settings.get("ask_user"), self.settings.get("ask_password")) {
            (Some(user), password) => Some(pg.as_user(user, password)),
            (None, Some(_)) => {
                let remedy = "Set ROWCAST_ASK_USER to the user that it belongs to, or leave both out.";
                self.mistake("ask_password", "is set, but ROWCAST_ASK_USER is not", remedy);
                None
            }
            (None, None) => None,
        }
    }

    fn logging(&mut self) -> Logging {
        let filter = self.read("log", "Write it like `info` or `warn,rowcast::ingest=debug`.", |text| {
            let parsed = tracing_subscriber::EnvFilter::builder().parse(text);
            parsed.map(|_| text.to_owned()).map_err(|error| format!("is not a log filter: {error}"))
        });
        let format = self.read("log_format", "Set it to text or json.", |text| match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            other => Err(format!("is {other:?}")),
        });
        Logging { filter: filter.unwrap_or_else(|| "info".into()), format: format.unwrap_or(LogFormat::Text) }
    }

    fn config(&mut self, data_dir: &Path) -> Option<Config> {
        let pg = self.database();
        let data_dir = self.settings.get("data_dir").map_or_else(|| data_dir.to_owned(), PathBuf::from);
        let slot = self.settings.get("slot").unwrap_or("rowcast");
        let publications = self.settings.publications();
        if publications.is_empty() {
            self.mistake("publication", "names no publication", "Set it to one or more names, with commas.");
        }
        let secret = self.secret();
        let opaque_keys =
            self.read("api_keys", "Write it like `sb_publishable_x=anon,sb_secret_y=service_role`.", api_keys);
        let key_set = self.key_set();
        let deletes = self.read("deletes", "Set it to judged or key-to-all.", |text| match text {
            "judged" => Ok(Deletes::Judged),
            "key-to-all" => Ok(Deletes::KeyToAll),
            other => Err(format!("is {other:?}")),
        });
        let partitions = self.read("open_partitions", "Set it to true or false.", parse::switch);
        let address =
            self.read("host", "Set it to an address of this machine, such as 0.0.0.0 or 127.0.0.1.", parse::host);
        let port = self.read("port", "Set it to a number from 0 to 65535.", number);
        let admin = self.read("admin_addr", "Write it like 127.0.0.1:4001, or off.", parse::admin);
        let ask_login = pg.as_ref().and_then(|pg| self.ask_login(pg));
        let questions = self.read("ask_connections", "Set it to a number above 0.", above_zero);
        let snapshots = self.read("snapshot_connections", "Set it to a number above 0.", above_zero);
        let migrate = self.read("migrate", "Set it to true or false.", parse::switch);
        let failover = self.read("slot_failover", "Set it to true or false.", parse::switch);
        let grace = self.read("slot_grace", "Write it like 10s.", parse::duration);
        let startup = self.read("startup_timeout", "Write it like 20s.", parse::duration);
        let retention = self.read("retention", "Set it to on or off.", parse::switch);
        let retention_interval = self.read("retention_interval", "Write it like 10m, at least 1s.", |text| {
            parse::duration(text)
                .and_then(|time| if time < SHORTEST_INTERVAL { Err("is under 1s".into()) } else { Ok(time) })
        });
        let upkeep = self.read("messages_upkeep", "Set it to own, all or off.", |text| match text {
            "own" => Ok(messages::Scope::Own),
            "all" => Ok(messages::Scope::All),
            "off" => Ok(messages::Scope::Nothing),
            other => Err(format!("is {other:?}")),
        });
        let messages_kept = self.read("messages_retention", "Write it like 72h, at least 1h.", |text| {
            parse::duration(text)
                .and_then(|time| if time < SHORTEST_KEPT { Err("is under 1h".into()) } else { Ok(time) })
        });
        let facts_memory = self.read("facts_memory", "Write it like 256MiB.", |text| {
            usize::try_from(parse::bytes(text)?).map_err(|_| "is too large".to_owned())
        });
        let retain_bytes = self.read("log_retain_bytes", "Write it like 4GiB.", parse::bytes);
        let retain_age = self.read("log_retain_age", "Write it like 24h.", parse::duration);
        let log_memory =
            self.read("log_memory", "Write it like 64MiB, at least 1MiB.", |text| match parse::bytes(text)? {
                bytes if bytes < LEAST_LOG_MEMORY => Err(format!("is {text:?}")),
                bytes => usize::try_from(bytes).map_err(|_| "is too large".to_owned()),
            });
        let journal = self.read("journal_bytes", "Write it like 64MiB, at least 1MiB, or 0 for none.", |text| {
            let bytes = parse::bytes(text)?;
            if (1..LEAST_JOURNAL).contains(&bytes) { Err(format!("is {text:?}")) } else { Ok(bytes) }
        });
        let outbox = self.read("outbox_bytes", "Write it like 1MiB.", |text| {
            usize::try_from(parse::bytes(text)?).map_err(|_| "is too large".to_owned())
        });
        let most = self.read("max_connections", "Set it to a number above 0.", above_zero);
        let tls = self.tls();
        // Made with some database even if ours can't be used, so that the slot's name is looked at too.
        let stand_in = || PgConfig::from_url("postgres://nobody@localhost/nothing").ok();
        let usable = pg.is_some();
        let mut config = Config::assemble(pg.or_else(stand_in)?, &data_dir, slot, publications);
        if !config.publications.is_empty()
            && let Err(error) = config.ingest.wal.validate()
        {
            let name = if error.to_string().contains("slot name") { "slot" } else { "publication" };
            self.mistake(name, format!("can't be used: {error}"), "Correct it.");
        }
        config.verifier.jwt_secret = secret;
        config.verifier.opaque_keys = opaque_keys.unwrap_or_default();
        config.verifier.key_set = key_set;
        config.host = address.unwrap_or(config.host);
        config.port = port.unwrap_or(config.port);
        config.admin = admin.unwrap_or(config.admin);
        config.ask_login = ask_login.map(Box::new);
        config.hub.ask.connections = questions.unwrap_or(config.hub.ask.connections);
        config.hub.snapshot.connections = snapshots.unwrap_or(config.hub.snapshot.connections);
        config.migrate = migrate.unwrap_or(config.migrate);
        config.retention = retention.unwrap_or(false).then(|| retention_interval.unwrap_or(RETENTION_INTERVAL));
        config.messages.scope = upkeep.unwrap_or(config.messages.scope);
        config.messages.keep = messages_kept.unwrap_or(config.messages.keep);
        config.ingest.wal.failover = failover.unwrap_or(config.ingest.wal.failover);
        config.slot_grace = grace.unwrap_or(config.slot_grace);
        config.startup_timeout = startup.unwrap_or(config.startup_timeout);
        config.hub.policy.deletes = deletes.unwrap_or_default();
        config.hub.policy.open_partitions = partitions.unwrap_or_default();
        config.hub.facts.memory = facts_memory.unwrap_or(config.hub.facts.memory);
        config.log.retain_bytes = retain_bytes.unwrap_or(config.log.retain_bytes);
        config.log.retain_age = retain_age.unwrap_or(config.log.retain_age);
        config.log.tail_bytes = log_memory.unwrap_or(config.log.tail_bytes);
        config.journal.bytes = journal.unwrap_or(config.journal.bytes);
        config.gateway.max_outbox_bytes = outbox.unwrap_or(config.gateway.max_outbox_bytes);
        config.gateway.max_connections = most.unwrap_or(config.gateway.max_connections);
        config.gateway.tls = tls;
        self.limits(&mut config.gateway);
        self.limits_of_rooms(&mut config.rooms);
        config.hub.max_message_bytes = config.gateway.largest_payload();
        let connections = self.read("authz_connections", "Set it to a number above 0.", above_zero);
        config.authority.connections = connections.unwrap_or(config.authority.connections);
        let recheck = self.read("authz_recheck", "Write it like 10s, from 1s to 1h.", parse::seconds_to_an_hour);
        config.authority.recheck = recheck.unwrap_or(config.authority.recheck);
        let receipt = self.read("receipt", "Set it to pong or heartbeat.", |text| match text {
            "pong" => Ok(Receipt::Pong),
            "heartbeat" => Ok(Receipt::Heartbeat),
            other => Err(format!("is {other:?}")),
        });
        config.gateway.device.receipt = receipt.unwrap_or_default();
        config.gateway.device.claim = self.settings.get("device_claim").map(Into::into);
        let most = self.read("max_frontiers", "Set it to a number above 0.", above_zero);
        config.frontiers.most = most.unwrap_or(config.frontiers.most);
        config.hub.snapshot.max_rows = config.gateway.max_page_rows;
        usable.then_some(config)
    }

    fn secret(&mut self) -> Option<Vec<u8>> {
        let remedy = "Set it to the secret that signs your users' tokens, at least 32 bytes; \
                      `openssl rand -hex 32` makes a new one. Or set JWKS_URL to your issuer's key set.";
        match self.settings.get("jwt_secret") {
            None if self.settings.get("jwks_url").is_none() => {
                self.mistake("jwt_secret", "is not set", remedy);
                None
            }
            None => None,
            Some(secret) if secret.len() < SHORTEST_SECRET => {
                let problem = format!("has {} bytes; {SHORTEST_SECRET} are the least that is safe", secret.len());
                self.mistake("jwt_secret", problem, remedy);
                None
            }
            Some(secret) => Some(secret.as_bytes().to_vec()),
        }
    }

    /// Certificate and key belong together.
    fn tls(&mut self) -> Option<TlsFiles> {
        let remedy = "Set both to PEM files, or neither for connections without TLS, as behind a proxy.";
        match (self.settings.get("tls_cert"), self.settings.get("tls_key")) {
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate: certificate.into(), key: key.into() }),
            (Some(_), None) => {
                self.mistake("tls_key", "is not set, but ROWCAST_TLS_CERT is", remedy);
                None
            }
            (None, Some(_)) => {
                self.mistake("tls_cert", "is not set, but ROWCAST_TLS_KEY is", remedy);
                None
            }
            (None, None) => None,
        }
    }

    /// The issuer's keys. Its other settings are looked at even if it is not set: they are then mistaken for nothing.
    fn key_set(&mut self) -> Option<KeySetConfig> {
        let refresh = self.read("jwks_refresh", "Write it like 10m; a second is the least.", |text| {
            let time = parse::duration(text)?;
            if time < Duration::from_secs(1) { Err(format!("is {text:?}, which is too often")) } else { Ok(time) }
        });
        let remedy = "Set it to the https address of your issuer's key set, such as https://issuer/.well-known/jwks.json, or \
                      to the path of a file; plain http is taken for this machine only.";
        let location = self.read("jwks_url", remedy, str::parse)?;
        let own = self.settings.get("jwks_ca").or_else(|| self.settings.get("ssl_cert_file"));
        let defaults = KeySetConfig::new(location);
        Some(KeySetConfig { ca: own.map(PathBuf::from), refresh: refresh.unwrap_or(defaults.refresh), ..defaults })
    }
}

pub(super) fn above_zero(text: &str) -> Result<usize, String> {
    number(text).and_then(|n: usize| if n == 0 { Err("is 0".into()) } else { Ok(n) })
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.trim().parse().map_err(|_| format!("is {text:?}"))
}

/// The problem names no key: they are secrets.
fn api_keys(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut keys = BTreeMap::new();
    for (place, part) in parse::list(text).iter().enumerate() {
        let pair = part.split_once('=').map(|(key, role)| (key.trim(), role.trim()));
        match pair.filter(|(key, role)| !key.is_empty() && !role.is_empty()) {
            Some((key, role)) => keys.insert(key.to_owned(), role.to_owned()),
            None => {
                return Err(format!("has an entry that is not key=role, the {}.", place + 1)
                    .trim_end_matches('.')
                    .into());
            }
        };
    }
    Ok(keys)
}
