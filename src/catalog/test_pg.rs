//! One private Postgres server per test process, for tests of `catalog` and `policy`: a database for each test.

use std::io::Write as _;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::pg::{PgConfig, Pool};

const ROLES: &str = "create role anon; create role authenticated; create role service_role bypassrls;
    create role relay login superuser; create role plain_relay login;
    grant anon, authenticated, service_role to plain_relay;";

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

struct Server {
    directory: PathBuf,
    /// A shell that stops the server when its standard input closes, thus also when this process dies.
    _keeper: Child,
}

fn user_ids() -> Option<(u32, u32)> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let user = nix::unistd::User::from_name("postgres").expect("user database").expect("a user named postgres");
    Some((user.uid.as_raw(), user.gid.as_raw()))
}

fn binaries() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "a test picks the server's version by PG_BIN")]
    let chosen = std::env::var("PG_BIN");
    chosen.map_or_else(|_| PathBuf::from("/usr/lib/postgresql/15/bin"), PathBuf::from)
}

fn as_server_user(program: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some((uid, gid)) = user_ids() {
        command.uid(uid).gid(gid);
    }
    command.current_dir("/");
    command
}

fn start() -> Server {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let directory = tempfile::Builder::new().prefix("rowcast-test-").tempdir_in(base).expect("a directory").keep();
    if let Some((uid, gid)) = user_ids() {
        chown(&directory, Some(uid), Some(gid)).expect("give the directory to the server's user");
    }
    let data = directory.join("data");
    let made = as_server_user(&binaries().join("initdb"))
        .args(["-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8", "-D"])
        .arg(&data)
        .output()
        .expect("initdb runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // The server is the child of a shell that waits for our end, so a killed test leaves nothing behind.
    let script = r#""$1" -D "$2/data" -c listen_addresses= -c unix_socket_directories="$2" -c fsync=off \
        -c wal_level=logical -c max_connections=200 -c shared_buffers=32MB >"$2/log" 2>&1 </dev/null & server=$!
        read -r _; kill -QUIT $server; wait $server; rm -rf "$2""#;
    let mut keeper = as_server_user(Path::new("/bin/sh"));
    keeper.args(["-c", script, "keeper"]).arg(binaries().join("postgres")).arg(&directory);
    let keeper = keeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a shell");
    Server { directory, _keeper: keeper }
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = start();
        // The first database is prepared here, synchronously for all tests that wait.
        let sql = server.directory.join("prepare.sql");
        let mut file = std::fs::File::create(&sql).expect("a file");
        write!(file, "{ROLES}\n{AUTH}").expect("written");
        let psql = |arguments: &[&str]| {
            let host = server.directory.to_string_lossy().into_owned();
            Command::new(binaries().join("psql"))
                .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h", &host])
                .args(arguments)
                .output()
                .expect("psql runs")
        };
        let mut tries = 0;
        while !psql(&["-d", "template1", "-c", "select 1"]).status.success() {
            tries += 1;
            assert!(tries < 200, "the server does not start: see {}", server.directory.join("log").display());
            std::thread::sleep(Duration::from_millis(50));
        }
        let prepared = psql(&["-d", "template1", "-f", &sql.to_string_lossy()]);
        assert!(prepared.status.success(), "{}", String::from_utf8_lossy(&prepared.stderr));
        server
    })
}

/// A database of its own, with roles `anon`, `authenticated`, `service_role`, the `auth` functions and an empty
/// publication `supabase_realtime`. Roles are shared by all tests of the process: name new ones after the test.
pub(crate) struct TestDatabase {
    name: String,
    /// A superuser's connection.
    pub(crate) client: tokio_postgres::Client,
}

impl TestDatabase {
    pub(crate) async fn new() -> TestDatabase {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let server = tokio::task::spawn_blocking(server).await.expect("the server starts");
        let host = server.directory.to_string_lossy().into_owned();
        let admin = config(&host, "postgres", "postgres").connect().await.expect("connects");
        admin.batch_execute(&format!("create database {name} strategy wal_log")).await.expect("a database");
        let client = config(&host, "relay", &name).connect().await.expect("connects");
        TestDatabase { name, client }
    }

    /// How to log in as this user.
    pub(crate) fn config(&self, user: &str) -> PgConfig {
        config(&server().directory.to_string_lossy(), user, &self.name)
    }

    pub(crate) fn pool(&self, user: &str) -> Pool {
        self.config(user).pool().expect("a pool")
    }

    /// Runs a script as the superuser.
    pub(crate) async fn run(&self, sql: &str) {
        if let Err(error) = self.client.batch_execute(sql).await {
            panic!("{}\n{sql}", crate::error::chain(&error));
        }
    }
}

fn config(host: &str, user: &str, database: &str) -> PgConfig {
    let mut config = PgConfig::from_url(&format!("host={host} user={user} dbname={database}")).expect("a config");
    config.connect_timeout = Duration::from_secs(20);
    config
}
