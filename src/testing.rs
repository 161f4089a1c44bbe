//! Real PostgreSQL servers for the unit tests: [`TestServer`] is a test's own, [`TestDatabase`] a database of its own in a
//! server that the tests of this process share.
//!
//! A test that makes slots, changes settings or crashes the server needs its own: creating a logical slot waits for every
//! transaction of the server. All others share one, which is quicker. The data directory is made
//! once per process and copied for each server, into memory where there is enough of it.
//!
//! Nothing outlives the process, not even a killed one: a shell waits for its end and clears what it left. Destructors alone
//! would not do, since statics have none. Rejected: servers in the tests' process group, which a Ctrl-C ends but a SIGKILL
//! does not. Integration tests, which can't see this module, have `tests/support`.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::OnceCell;
use tokio_postgres::Client;

use crate::dev::binaries::{Binaries, Search};
use crate::dev::server::{self, Account, Initdb, Server, ServerOptions};
use crate::pg::{PgConfig, Pool};

/// For anything that a server is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running server on a unix socket, superuser `postgres`; nobody needs a password but roles named `locked` (SCRAM) and
/// `old` (MD5). Dropping it kills the server and deletes its files.
pub(crate) struct TestServer {
    // Dropped in this order: the server ends before its files go.
    server: Server,
    home: TempDir,
}

impl TestServer {
    /// With `wal_level = logical`.
    pub(crate) async fn start() -> TestServer {
        TestServer::start_with(&[]).await
    }

    /// With more settings, which win.
    pub(crate) async fn start_with(settings: &[(&str, &str)]) -> TestServer {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let launched = tokio::task::spawn_blocking(move || launch(settings)).await;
        launched.expect("the server starts")
    }

    /// The folder of the socket, where a test may keep files of its own.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// How to log in, as `key=value` pairs; as `postgres` into `postgres` unless they say otherwise.
    pub(crate) fn pg(&self, more: &str) -> PgConfig {
        let user = if more.contains("user=") { "" } else { "user=postgres" };
        let dbname = if more.contains("dbname=") { "" } else { "dbname=postgres" };
        let text = format!("host={} {user} {dbname} {more}", self.home().display());
        PgConfig::from_url(&text).expect("parameters")
    }

    /// A session.
    pub(crate) async fn client(&self) -> Client {
        self.pg("").connect().await.expect("connected")
    }

    /// Runs statements in a session of their own.
    pub(crate) async fn sql(&self, sql: &str) {
        run(&self.client().await, sql).await;
    }

    /// The query's one value, as text; empty for NULL.
    pub(crate) async fn text(&self, sql: &str) -> String {
        text(&self.client().await, sql).await
    }

    /// Such as 15.
    pub(crate) async fn major(&self) -> u32 {
        self.text("current_setting('server_version_num')::int / 10000").await.parse().expect("a number")
    }

    /// Waits until the query's text is as wanted.
    pub(crate) async fn wait_until(&self, sql: &str, wanted: impl Fn(&str) -> bool) -> String {
        let client = self.client().await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = text(&client, sql).await;
            if wanted(&text) {
                return text;
            }
            assert!(Instant::now() < deadline, "{sql} is still {text}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops the server as a crash would.
    pub(crate) fn crash(&mut self) {
        self.server.kill();
    }
}

async fn run(client: &Client, sql: &str) {
    if let Err(error) = client.batch_execute(sql).await {
        panic!("{}\n{sql}", crate::error::chain(&error));
    }
}

async fn text(client: &Client, sql: &str) -> String {
    let row = client.query_one(&format!("select ({sql})::text"), &[]).await.expect("one row");
    row.get::<_, Option<String>>(0).unwrap_or_default()
}

/// What every server of this process starts from.
struct Template {
    binaries: Binaries,
    account: Option<Account>,
    home: TempDir,
}

fn template() -> &'static Template {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let search = Search {
            pg_bin: std::env::var_os("PG_BIN").map(PathBuf::from),
            path: std::env::var_os("PATH"),
            ..Search::default()
        };
        let binaries = Binaries::find(&search).unwrap_or_else(|error| panic!("these tests need PostgreSQL: {error}"));
        let account = Account::for_server().unwrap_or_else(|error| panic!("{error}"));
        let home = new_home(account.as_ref());
        let data = home.path().join("data");
        let initdb = Initdb { password: None, arguments: vec!["--wal-segsize=1".into(), "--no-sync".into()] };
        let made = server::initdb(&binaries, &data, &initdb, account.as_ref());
        made.unwrap_or_else(|error| panic!("{}", crate::error::chain(&error)));
        let hba = data.join("pg_hba.conf");
        let trust = fs::read_to_string(&hba).expect("pg_hba.conf");
        let rules = format!("local all locked scram-sha-256\nlocal all old md5\n{trust}");
        fs::write(&hba, rules).expect("pg_hba.conf");
        Template { binaries, account, home }
    })
}

fn launch(settings: Vec<(String, String)>) -> TestServer {
    let Template { binaries, account, home: origin } = template();
    let home = new_home(account.as_ref());
    let data = home.path().join("data");
    // -p keeps the owner, which as root is not us.
    let copied = Command::new("cp").arg("-Rp").arg(origin.path().join("data")).arg(&data).status();
    assert!(copied.expect("cp runs").success(), "the data directory is copied");
    let fixed = [
        ("listen_addresses", ""),
        ("fsync", "off"),
        ("max_prepared_transactions", "5"),
        ("shared_buffers", "16MB"),
        ("autovacuum", "off"),
    ];
    let fixed = fixed.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let options = ServerOptions {
        data,
        log: home.path().join("server.log"),
        // Part of the socket's name, and of nothing else.
        port: 5432,
        socket_dir: Some(home.path().to_owned()),
        settings: fixed.into_iter().chain(settings).collect(),
        start_timeout: PATIENCE,
    };
    let server = Server::start(binaries, &options, account.as_ref());
    TestServer { server: server.unwrap_or_else(|error| panic!("{}", crate::error::chain(&error))), home }
}

/// Named after this process, so that whoever finds it later knows whether its owner still runs.
fn new_home(account: Option<&Account>) -> TempDir {
    static KEEPER: OnceLock<Child> = OnceLock::new();
    let base = fast_dir();
    let prefix = format!("rowcast-test-{}-", std::process::id());
    KEEPER.get_or_init(|| keeper(&base.join(&prefix)));
    let home = tempfile::Builder::new().prefix(&prefix).tempdir_in(&base).expect("a folder");
    server::give(home.path(), account).unwrap_or_else(|error| panic!("{}", crate::error::chain(&error)));
    home
}

/// Memory if there is a good deal of it, else the temporary folder.
fn fast_dir() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let room =
        nix::sys::statvfs::statvfs(memory).map(|fs| u128::from(fs.blocks_available()) * u128::from(fs.fragment_size()));
    if room.is_ok_and(|bytes| bytes > 1 << 30) { memory.to_owned() } else { std::env::temp_dir() }
}

/// `$1` is how the folders' paths begin. A process id may be somebody else's by now, so its command line must name the
/// folder; and a starting server's file may be empty still, so it is read again. A folder outlives a round if initdb or a
/// server was about to write into it.
const KEEPER: &str = r#"
    stop() {
        { read -r server <"$1/data/postmaster.pid"; } 2>/dev/null || return
        { tr '\0' ' ' <"/proc/$server/cmdline" || ps -ww -o args= -p "$server"; } 2>/dev/null |
            grep -qF "$1/data" && kill -QUIT "$server"
    }
    cat >/dev/null
    for round in 1 2 3; do
        for home in "$1"*; do stop "$home"; done
        for home in "$1"*; do
            tries=0
            while [ -e "$home/data/postmaster.pid" ] && [ "$tries" -lt 100 ]; do
                sleep 0.05
                stop "$home"
                tries=$((tries + 1))
            done
            rm -rf "$home"
        done
        set -- "$1" "$1"*
        [ -e "$2" ] || exit 0
        sleep 1
    done"#;

/// A shell whose standard input ends when this process does, however it does. In a group of its own, out of a Ctrl-C's reach.
fn keeper(prefix: &Path) -> Child {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", KEEPER, "keeper"]).arg(prefix).current_dir("/").process_group(0);
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a shell")
}

const ROLES: &str = "create role anon; create role authenticated; create role service_role bypassrls;
    create role rowcast_filter nologin noinherit;
    create role relay login superuser; create role plain_relay login;
    grant anon, authenticated, service_role, rowcast_filter to plain_relay;";

/// The helper functions as current Supabase images have them.
const AUTH: &str = "create schema auth; grant usage on schema auth to public;
    create function auth.uid() returns uuid language sql stable as $$
  select
  coalesce(
    nullif(current_setting('request.jwt.claim.sub', true), ''),
    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
  )::uuid
$$;
    create function auth.role() returns text language sql stable as $$
  select
  coalesce(
    nullif(current_setting('request.jwt.claim.role', true), ''),
    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role')
  )::text
$$;
    create function auth.jwt() returns jsonb language sql stable as $$
  select
    coalesce(
        nullif(current_setting('request.jwt.claim', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')
    )::jsonb
$$;
    create publication supabase_realtime;
    grant usage on schema public to public;
    alter default privileges for role relay in schema public grant select on tables to anon, authenticated, service_role;";

/// A database of its own, with roles `anon`, `authenticated`, `service_role`, the `auth` functions and an empty
/// publication `supabase_realtime`. Roles are shared by all tests of the process: name new ones after the test.
pub(crate) struct TestDatabase {
    server: &'static TestServer,
    name: String,
    /// A superuser's session.
    pub(crate) client: Client,
}

impl TestDatabase {
    pub(crate) async fn new() -> TestDatabase {
        static SHARED: OnceCell<TestServer> = OnceCell::const_new();
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let server = SHARED.get_or_init(shared_server).await;
        let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        server.sql(&format!("create database {name} strategy wal_log")).await;
        let client = login(server, "relay", &name).connect().await.expect("connected");
        TestDatabase { server, name, client }
    }

    /// In a server of its own, for a test that makes slots. The server lives as long as the process.
    pub(crate) async fn alone() -> TestDatabase {
        let server: &'static TestServer = Box::leak(Box::new(shared_server().await));
        let client = login(server, "relay", "template1").connect().await.expect("connected");
        TestDatabase { server, name: "template1".into(), client }
    }

    /// How to log in as this user; `relay` is a superuser, `plain_relay` is not.
    pub(crate) fn config(&self, user: &str) -> PgConfig {
        login(self.server, user, &self.name)
    }

    pub(crate) fn pool(&self, user: &str) -> Pool {
        self.config(user).pool().expect("a pool")
    }

    pub(crate) fn asking_pool(&self, user: &str) -> Pool {
        self.config(user).asking_pool(4).expect("a pool")
    }

    /// A way to it for this user; see [`Way`].
    pub(crate) fn way(&self, user: &str) -> Way {
        Way::new(self, user)
    }

    /// The server's, such as 15.
    pub(crate) async fn major(&self) -> u32 {
        self.server.major().await
    }

    /// Runs a script as the superuser.
    pub(crate) async fn run(&self, sql: &str) {
        run(&self.client, sql).await;
    }
}

/// Every database made in it is a copy of `template1`.
async fn shared_server() -> TestServer {
    let server = TestServer::start_with(&[("max_connections", "200"), ("shared_buffers", "32MB")]).await;
    let client = server.pg("dbname=template1").connect().await.expect("connected");
    run(&client, ROLES).await;
    run(&client, AUTH).await;
    server
}

/// With patience: many tests connect at once.
fn login(server: &TestServer, user: &str, database: &str) -> PgConfig {
    let mut config = server.pg(&format!("user={user} dbname={database}"));
    config.connect_timeout = PATIENCE;
    config
}

/// A way to the server through the test. Everything that the server said before the end of a session arrives, and then the end:
/// a socket that the server closes while something comes in is reset, and a client may notice that before it has read what was
/// there. It can also be cut.
pub(crate) struct Way {
    /// How to log in over it.
    pub(crate) config: PgConfig,
    /// So many bytes of the server's are let through before all sessions are cut, and new ones too.
    pub(crate) left: Arc<AtomicUsize>,
    _home: TempDir,
}

impl Way {
    fn new(database: &TestDatabase, user: &str) -> Way {
        let mut config = database.config(user);
        let (server, home) = (database.server.home().join(".s.PGSQL.5432"), tempfile::tempdir().expect("a folder"));
        let dbname = config.connection.get_dbname().expect("a database");
        let text = format!("host={} user={user} dbname={dbname}", home.path().display());
        config.connection = PgConfig::from_url(&text).expect("parameters").connection;
        let listener = UnixListener::bind(home.path().join(".s.PGSQL.5432")).expect("a socket");
        let left = Arc::new(AtomicUsize::new(usize::MAX));
        let bound = left.clone();
        drop(crate::task::spawn("way", async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = UnixStream::connect(&server).await.expect("the server takes it");
                carry(client, server, bound.clone());
            }
        }));
        Way { config, left, _home: home }
    }
}

fn carry(client: UnixStream, server: UnixStream, left: Arc<AtomicUsize>) {
    let ((mut said, mut told), (mut asked, mut answers)) = (server.into_split(), client.into_split());
    drop(crate::task::spawn("answers", async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = said.read(&mut buffer).await {
            let passes = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(length));
            if passes.is_err() || answers.write_all(&buffer[..length]).await.is_err() {
                break;
            }
        }
        drop(answers.shutdown().await);
    }));
    drop(crate::task::spawn("questions", async move {
        drop(tokio::io::copy(&mut asked, &mut told).await);
        // What is asked of nobody is taken, too.
        drop(tokio::io::copy(&mut asked, &mut tokio::io::sink()).await);
    }));
}
