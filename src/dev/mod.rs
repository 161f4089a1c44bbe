//! `rowcast dev`: everything a newcomer needs on one machine, and nothing that outlives it.
//!
//! A private PostgreSQL cluster in a state folder, the migrations, the example tables, two users with a session each and
//! tokens for both ([`prepare`]); then a demonstration over real sockets that one user's rows reach that user and not the
//! other ([`demo`]). The relay itself is started by the command line in between, as any other relay is.
//!
//! Invariants: no cluster but our own is ever touched; secrets are generated, kept in the state folder and readable by its
//! owner only; what was started is stopped, also when a step fails or the value is dropped.

pub mod binaries;
pub mod server;
pub mod cluster;
mod phone;
mod demo;
pub(crate) mod screen;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio_postgres::error::SqlState;

pub use demo::{DemoOutcome, demo, insert_typed_lines, what_next};

use crate::clock::Clock;
use crate::error::{Fault, Remedy};
use crate::migrate::{self, MigrateError};
use crate::pg::{PgConfig, PgError};
use binaries::Search;
use cluster::{Cluster, ClusterError, ClusterOptions};
use server::ServerError;

/// The database in the private cluster.
const DATABASE: &str = "rowcast";
/// How long the demonstration's tokens are good for.
const TOKEN_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// In the state folder.
const SECRET_FILE: &str = "jwt-secret";
const EXAMPLES: [&str; 2] =
    [include_str!("../../sql/examples/session_events.sql"), include_str!("../../sql/examples/notifications.sql")];

/// Why the demonstration can't go on.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// The private cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The migrations.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// The database.
    #[error(transparent)]
    Pg(#[from] PgError),
    /// The claims could not be signed.
    #[error("cannot sign a token")]
    Token(#[source] jsonwebtoken::errors::Error),
    /// A phone could not connect, subscribe or go on.
    #[error("{who}'s phone: {what}")]
    Phone {
        /// Whose.
        who: &'static str,
        /// What happened.
        what: String,
    },
    /// The relay broke its promise: rows missing, or shown to the wrong user.
    #[error("the demonstration failed: {0}")]
    Broken(String),
    /// The terminal is gone.
    #[error("cannot write to the terminal")]
    Screen(#[source] std::io::Error),
}

impl From<ServerError> for DevError {
    fn from(error: ServerError) -> DevError {
        DevError::Cluster(error.into())
    }
}

impl Fault for DevError {
    fn remedy(&self) -> Remedy {
        match self {
            DevError::Cluster(error) => error.remedy(),
            DevError::Migrate(error) => error.remedy(),
            DevError::Pg(error) => error.remedy(),
            DevError::Token(_) | DevError::Broken(_) => Remedy::Bug,
            DevError::Phone { .. } | DevError::Screen(_) => Remedy::Retry,
        }
    }

    fn advice(&self) -> String {
        match self {
            DevError::Cluster(error) => error.advice(),
            DevError::Migrate(error) => error.advice(),
            DevError::Pg(error) => error.advice(),
            _ => String::new(),
        }
    }
}

/// What the command line decides.
#[derive(Debug, Clone)]
pub struct DevOptions {
    /// Kept between runs; see [`default_state_dir`].
    pub state_dir: PathBuf,
    /// Where the server programs are.
    pub search: Search,
    /// Port of the private cluster; `None` for the one used last time, or a free one.
    pub postgres_port: Option<u16>,
    /// For the tokens.
    pub clock: Clock,
}

/// A user of the demonstration.
#[derive(Clone)]
pub struct DemoUser {
    /// `alice` or `bob`.
    pub name: &'static str,
    /// The `sub` of the token, which `auth.uid()` returns.
    pub user_id: &'static str,
    /// The user's coding session.
    pub session_id: &'static str,
    /// Signed, for role `authenticated`, good for 24 hours.
    pub token: String,
    /// A file that holds the token, readable by its owner only.
    pub token_file: PathBuf,
}

/// A prepared database. Dropping it stops the private cluster; [`DevEnvironment::stop`] does it in order.
pub struct DevEnvironment {
    /// For `DATABASE_URL`.
    pub database_url: String,
    /// For `JWT_SECRET`: 64 hexadecimal digits.
    pub jwt_secret: String,
    /// For `ROWCAST_DATA_DIR`: a folder for the relay, in the state folder.
    pub data_dir: PathBuf,
    /// Who inserts.
    pub alice: DemoUser,
    /// Who must not see what is hers.
    pub bob: DemoUser,
    /// `psql` that fits the cluster, if the machine has one.
    pub psql: Option<PathBuf>,
    /// Such as `postgres (PostgreSQL) 17.5`.
    pub postgres_version: String,
    cluster: Cluster,
}

impl DevEnvironment {
    /// Stops the private cluster and keeps its data.
    pub async fn stop(self) {
        let cluster = self.cluster;
        // A panic in there has been logged, and dropping the cluster has ended the server.
        let _ = tokio::task::spawn_blocking(move || cluster.stop()).await;
    }

    /// The private cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Inserts one event of this user with plain SQL, as a backend would.
    pub async fn insert_event(&self, user: &DemoUser, text: &str) -> Result<(), DevError> {
        let client = PgConfig::from_url(&self.database_url)?.connect().await?;
        demo::insert_event(&client, user, "note", text).await?;
        Ok(())
    }
}

/// Where the state is kept unless told otherwise; the arguments are the values of `XDG_STATE_HOME` and `HOME`. For root a
/// folder that the server's user can enter, which a home folder is not.
pub fn default_state_dir(xdg_state_home: Option<&Path>, home: Option<&Path>) -> PathBuf {
    if nix::unistd::Uid::effective().is_root() {
        return PathBuf::from("/var/lib/rowcast-dev");
    }
    match (xdg_state_home.filter(|path| path.is_absolute()), home) {
        (Some(state), _) => state.join("rowcast/dev"),
        (None, Some(home)) => home.join(".local/state/rowcast/dev"),
        (None, None) => std::env::temp_dir().join("rowcast-dev"),
    }
}

/// Starts the private cluster and puts the demonstration's tables and users into it. Can be repeated: what is there stays.
pub async fn prepare(options: DevOptions) -> Result<DevEnvironment, DevError> {
    let state = options.state_dir.clone();
    let wanted =
        ClusterOptions { state_dir: options.state_dir, search: options.search.clone(), port: options.postgres_port };
    let started = tokio::task::spawn_blocking(move || Cluster::start(&wanted)).await;
    let cluster = match started {
        Ok(cluster) => cluster?,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    };
    let database_url = cluster.url(DATABASE);
    create_database(&cluster.url("postgres")).await?;
    let mut client = PgConfig::from_url(&database_url)?.connect().await?;
    migrate::up(&mut client).await?;
    for script in EXAMPLES {
        client.batch_execute(script).await.map_err(PgError::query("cannot create the example tables"))?;
    }
    let jwt_secret = cluster::secret::<32>(&state.join(SECRET_FILE))?;
    let user = |name, user_id, session_id| -> Result<DemoUser, DevError> {
        let token = mint_user_token(&jwt_secret, user_id, &options.clock)?;
        let token_file = state.join(format!("{name}.token"));
        server::write_secret(&token_file, &token)?;
        Ok(DemoUser { name, user_id, session_id, token, token_file })
    };
    // Fixed ids, so that a line copied from one run works in the next.
    let alice = user("alice", "a11ce000-0000-4000-8000-000000000001", "a11ce000-0000-4000-8000-00000000c0de")?;
    let bob = user("bob", "b0b00000-0000-4000-8000-000000000001", "b0b00000-0000-4000-8000-00000000c0de")?;
    for user in [&alice, &bob] {
        let sql = "insert into public.coding_sessions (id, user_id, title) \
                   values ($1::text::uuid, $2::text::uuid, $3) on conflict (id) do nothing";
        let title = format!("{}'s session", user.name);
        let inserted = client.execute(sql, &[&user.session_id, &user.user_id, &title]).await;
        inserted.map_err(PgError::query("cannot create the demo users' sessions"))?;
    }
    let psql = cluster.binaries().psql().or_else(|| binaries::on_path(options.search.path.as_deref(), "psql"));
    let postgres_version = cluster.binaries().version.clone();
    let data_dir = state.join("relay");
    Ok(DevEnvironment { database_url, jwt_secret, data_dir, alice, bob, psql, postgres_version, cluster })
}

async fn create_database(url: &str) -> Result<(), DevError> {
    let client = PgConfig::from_url(url)?.connect().await?;
    match client.batch_execute(&format!("create database {DATABASE}")).await {
        Err(error) if error.code() != Some(&SqlState::DUPLICATE_DATABASE) => {
            Err(PgError::query("cannot create the database")(error).into())
        }
        _ => Ok(()),
    }
}

fn mint_user_token(secret: &str, user_id: &str, clock: &Clock) -> Result<String, DevError> {
    let mut claims = Map::new();
    claims.insert("role".into(), json!("authenticated"));
    claims.insert("sub".into(), json!(user_id));
    mint_token(secret, claims, clock, TOKEN_LIFE)
}

/// The `JWT_SECRET` that an earlier run made in this state folder; `None` if none did.
pub fn kept_secret(state_dir: &Path) -> Result<Option<String>, DevError> {
    let path = state_dir.join(SECRET_FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ServerError::file(&path)(error).into()),
    }
}

/// Signs the claims with HS256, adding `iat` and `exp` where they are absent. `secret` is the text of `JWT_SECRET`.
pub fn mint_token(
    secret: &str,
    mut claims: Map<String, Value>,
    clock: &Clock,
    valid: Duration,
) -> Result<String, DevError> {
    let now = clock.unix_seconds();
    let life = i64::try_from(valid.as_secs()).unwrap_or(i64::MAX);
    claims.entry("iat").or_insert_with(|| json!(now));
    claims.entry("exp").or_insert_with(|| json!(now.saturating_add(life)));
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &Value::Object(claims), &key).map_err(DevError::Token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minted_token_verifies_with_its_secret_and_with_no_other() {
        let clock = Clock::system();
        let token = mint_user_token("a secret of at least thirty-two bytes", "u1", &clock).expect("signed");
        let rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::HS256);
        let verify = |secret: &str| {
            let key = jsonwebtoken::DecodingKey::from_secret(secret.as_bytes());
            jsonwebtoken::decode::<Value>(&token, &key, &rules)
        };
        let claims = verify("a secret of at least thirty-two bytes").expect("verified").claims;
        assert_eq!((&claims["sub"], &claims["role"]), (&json!("u1"), &json!("authenticated")));
        assert_eq!(claims["exp"].as_i64(), claims["iat"].as_i64().map(|iat| iat + 86_400));
        assert!(verify("another secret of thirty-two bytes!!").is_err());
    }

    #[test]
    fn an_expiry_that_the_caller_chose_is_kept() {
        let claims = Map::from_iter([("exp".to_owned(), json!(7)), ("role".to_owned(), json!("anon"))]);
        let token = mint_token("secret", claims, &Clock::system(), TOKEN_LIFE).expect("signed");
        let claims = jsonwebtoken::dangerous::insecure_decode::<Value>(&token).expect("decoded").claims;
        assert_eq!(claims["exp"], 7);
    }

    #[test]
    fn the_state_folder_follows_the_xdg_rules() {
        if nix::unistd::Uid::effective().is_root() {
            assert_eq!(default_state_dir(None, Some(Path::new("/root"))), Path::new("/var/lib/rowcast-dev"));
            return;
        }
        let home = Some(Path::new("/home/u"));
        assert_eq!(default_state_dir(None, home), Path::new("/home/u/.local/state/rowcast/dev"));
        assert_eq!(default_state_dir(Some(Path::new("/state")), home), Path::new("/state/rowcast/dev"));
        assert_eq!(default_state_dir(Some(Path::new("relative")), home), Path::new("/home/u/.local/state/rowcast/dev"));
    }
}
