//! Everything that can be set: the struct of each module's own configuration, and how it comes from a file, the environment
//! and the command line.
//!
//! Invariants:
//! * Every mistake is reported, all at once, each by the name of its setting and with what to do.
//! * Nothing here prints a secret: not in `Debug`, not in an error.
//! * A [`Config`] can be built in code ([`Config::new`]); nothing is global.
//!
//! Precedence: default < TOML file < environment < flag. Rejected: letting the flag parser read the environment, which would
//! put the file above or beside it and stop at the first mistake.

mod limits;
mod parse;
mod settings;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use parse::{duration, switch};
pub use settings::{LogFormat, Logging, Settings, default_data_dir, is_setting, names};

use crate::authority::AuthorityConfig;
use crate::claims::VerifierConfig;
use crate::error::{Fault, Remedy};
use crate::gateway::GatewayConfig;
use crate::hub::HubConfig;
use crate::ingest::IngestConfig;
use crate::journal::JournalConfig;
use crate::log::LogConfig;
use crate::messages::KeeperConfig;
use crate::pg::PgConfig;
use crate::resume::FrontierConfig;
use crate::room::RoomConfig;
use crate::wal::WalConfig;

/// The shortest `JWT_SECRET`, in bytes.
pub const SHORTEST_SECRET: usize = 32;
/// The publication of tables that policies look into; always read beside those that clients subscribe to.
pub use crate::catalog::{FACTS_PUBLICATION, MESSAGES_PUBLICATION};

/// All of one relay.
#[derive(Debug, Clone)]
pub struct Config {
    /// The database, for queries. The stream's copy is in `ingest.wal`.
    pub pg: PgConfig,
    /// The same database under another login, as which Postgres is asked about rows; `None` for the same login.
    pub ask_login: Option<Box<PgConfig>>,
    /// Where clients connect.
    pub host: IpAddr,
    /// Where clients connect; 0 takes a free port.
    pub port: u16,
    /// Metrics and the state dump; `None` for none.
    pub admin: Option<SocketAddr>,
    /// What tokens are verified with.
    pub verifier: VerifierConfig,
    /// What the relay keeps.
    pub data_dir: PathBuf,
    /// What clients may subscribe to.
    pub publications: Vec<String>,
    /// Bring the whole database to the wanted state first, not only what is the relay's own.
    pub migrate: bool,
    /// Rows that the rules in `rowcast.retention` no longer keep are removed this often; `None` for never.
    pub retention: Option<Duration>,
    /// Care for the partitions of `realtime.messages`.
    pub messages: KeeperConfig,
    /// How often the relay writes into `rowcast.relay_status` what `sql/monitor.sql` shows.
    pub report_interval: Duration,
    /// How long a database or a key set that can't be reached is waited for at the start.
    pub startup_timeout: Duration,
    /// So long after changes stopped streaming, clients are sent away and refused, until they stream again: another relay may
    /// have the slot.
    pub slot_grace: Duration,
    /// For the whole drain.
    pub drain_timeout: Duration,
    /// Shards of sockets.
    pub shards: usize,
    /// The stream into the log. The publications in it are set from `publications` when the relay is built.
    pub ingest: IngestConfig,
    /// The log.
    pub log: LogConfig,
    /// What `rowcast why` answers from.
    pub journal: JournalConfig,
    /// Matching and policy. Its publications are set from `publications` when the relay is built.
    pub hub: HubConfig,
    /// Questions about private channels.
    pub authority: AuthorityConfig,
    /// Connections.
    pub gateway: GatewayConfig,
    /// What devices have received. How long it is kept is set from the log's age when the relay is built.
    pub frontiers: FrontierConfig,
    /// Broadcast between clients, and presence.
    pub rooms: RoomConfig,
}

impl Config {
    /// The defaults, with a free port on the loopback interface and no admin port: what a test wants. Says what can't work.
    pub fn new(database_url: &str, jwt_secret: &str, data_dir: impl Into<PathBuf>) -> Result<Config, ConfigError> {
        let mut settings = Settings::default();
        settings.set("database_url", database_url);
        settings.set("jwt_secret", jwt_secret);
        settings.set("host", "127.0.0.1");
        settings.set("port", "0");
        settings.set("admin_addr", "off");
        let data_dir: PathBuf = data_dir.into();
        settings.config(&data_dir)
    }

    fn assemble(pg: PgConfig, data_dir: &Path, slot: &str, publications: Vec<String>) -> Config {
        let wal = WalConfig::new(pg.clone(), slot, publications.clone(), data_dir.join("spill"));
        Config {
            pg,
            ask_login: None,
            host: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            port: 4000,
            admin: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 4001))),
            verifier: VerifierConfig::default(),
            data_dir: data_dir.to_owned(),
            publications,
            migrate: false,
            retention: None,
            messages: KeeperConfig::default(),
            report_interval: Duration::from_secs(10),
            startup_timeout: Duration::from_secs(20),
            slot_grace: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(8),
            shards: std::thread::available_parallelism().map_or(1, usize::from).min(8),
            ingest: IngestConfig::new(wal),
            log: LogConfig::new(data_dir.join("log")),
            journal: JournalConfig::new(data_dir.join("journal")),
            hub: HubConfig::default(),
            authority: AuthorityConfig::default(),
            gateway: GatewayConfig::default(),
            frontiers: FrontierConfig::default(),
            rooms: RoomConfig::default(),
        }
    }

    /// How to log in for questions about rows.
    pub fn ask_pg(&self) -> &PgConfig {
        self.ask_login.as_deref().unwrap_or(&self.pg)
    }

    /// The publications of the stream: those of clients, that of facts, and that of messages.
    pub fn stream_publications(&self) -> Vec<String> {
        let mut all = self.publications.clone();
        for own in [FACTS_PUBLICATION, MESSAGES_PUBLICATION] {
            if !all.iter().any(|name| name == own) {
                all.push(own.to_owned());
            }
        }
        all
    }
}

/// One setting that can't be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Its name in the environment, such as `JWT_SECRET`.
    pub setting: String,
    /// What is wrong with it, as the rest of a sentence that begins with the name.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}. {}", self.setting, self.problem, self.remedy)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// All that is wrong.
    #[error("{}", listed(.0))]
    Mistakes(Vec<Mistake>),
    /// The file can't be read.
    #[error("cannot read the configuration file {}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration file {} is not valid TOML: {reason}", path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where and what; holds no value.
        reason: String,
    },
}

fn listed(mistakes: &[Mistake]) -> String {
    match mistakes {
        [one] => one.to_string(),
        all => {
            let lines: Vec<String> = all.iter().map(|mistake| format!("\n  - {mistake}")).collect();
            format!("{} settings can't be used:{}", all.len(), lines.concat())
        }
    }
}

impl Fault for ConfigError {
    fn remedy(&self) -> Remedy {
        Remedy::Operator
    }

    fn advice(&self) -> String {
        match self {
            ConfigError::Mistakes(_) => "`rowcast serve --help` lists all settings.".into(),
            ConfigError::Unreadable { .. } | ConfigError::Syntax { .. } => {
                "Give the path of a readable TOML file with --config or ROWCAST_CONFIG.".into()
            }
        }
    }
}
