//! `TestPg`: a real PostgreSQL server of a test's own.
//!
//! A private cluster and not a database in a shared one: creating a logical slot waits for every transaction of the cluster,
//! and restarts, kills and invalidated slots can't be tried on a server that others use. It is copied from a directory
//! prepared once per machine and kept under `target/`, onto a memory-backed file system where there is one: 0.1 to 0.3 s.
//! Durability is off unless asked for.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use rand::Rng as _;
use rowcast::dev::binaries::{Binaries, Search};
use rowcast::dev::server::{self, Account, Initdb, Server, ServerOptions};
use rowcast::pg::PgConfig;
use tokio::sync::OnceCell;

/// Change it when the way a template is made changes.
const TEMPLATE_FORMAT: u32 = 1;

/// What a test may choose.
#[derive(Debug, Clone, Default)]
pub(crate) struct TestPgOptions {
    /// Without roles, `auth`, publications and schema `rowcast`.
    pub(crate) bare: bool,
    /// Write through to the disk, for tests of what survives a crash.
    pub(crate) fsync: bool,
    /// More settings, such as `("max_slot_wal_keep_size", "8MB")`.
    pub(crate) settings: Vec<(&'static str, &'static str)>,
    /// Files in the data directory, by name.
    pub(crate) files: Vec<(&'static str, String)>,
}

/// A running server. Dropping it kills the server and deletes its files.
pub(crate) struct TestPg {
    server: Option<Server>,
    binaries: Binaries,
    account: Option<Account>,
    options: ServerOptions,
    home: PathBuf,
    client: tokio::sync::Mutex<Option<tokio_postgres::Client>>,
}

impl TestPg {
    /// With everything `rowcast migrate up` makes.
    pub(crate) async fn start() -> TestPg {
        TestPg::with(TestPgOptions::default()).await
    }

    /// As initdb left it.
    pub(crate) async fn bare() -> TestPg {
        TestPg::with(TestPgOptions { bare: true, ..TestPgOptions::default() }).await
    }

    pub(crate) async fn with(chosen: TestPgOptions) -> TestPg {
        let template = Templates::get().await;
        let source = if chosen.bare { template.bare.clone() } else { template.migrated.clone() };
        let binaries = template.binaries.clone();
        let started = tokio::task::spawn_blocking(move || launch(binaries, &source, &chosen));
        started.await.expect("the server starts")
    }

    /// Of database `postgres`, for the superuser.
    pub(crate) fn url(&self) -> String {
        self.url_as("postgres")
    }

    /// Of database `postgres`, for a login role. Everybody is let in without a look at the password.
    pub(crate) fn url_as(&self, role: &str) -> String {
        format!("postgres://{role}:test@127.0.0.1:{}/postgres", self.options.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.options.port
    }

    /// Such as 15.
    pub(crate) fn major(&self) -> u32 {
        self.binaries.major
    }

    /// The data directory.
    pub(crate) fn data(&self) -> &Path {
        &self.options.data
    }

    /// A new session of the superuser.
    pub(crate) async fn client(&self) -> tokio_postgres::Client {
        self.client_as("postgres").await
    }

    /// A new session of a login role.
    pub(crate) async fn client_as(&self, role: &str) -> tokio_postgres::Client {
        let config = PgConfig::from_url(&self.url_as(role)).expect("a good URL");
        config.connect().await.expect("a connection")
    }

    /// Runs statements as the superuser, in a session kept for this.
    #[track_caller]
    pub(crate) fn exec<'a>(&'a self, sql: &'a str) -> impl Future<Output = ()> + 'a {
        let at = std::panic::Location::caller();
        async move {
            let mut kept = self.client.lock().await;
            if kept.as_ref().is_none_or(tokio_postgres::Client::is_closed) {
                *kept = Some(self.client().await);
            }
            let client = kept.as_ref().expect("just connected");
            if let Err(error) = client.batch_execute(sql).await {
                panic!("at {at}: {}\n{sql}", rowcast::error::chain(&error));
            }
        }
    }

    /// Ends sessions, stops, starts again on the same port.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.start_again().await;
    }

    /// Stops in order, keeping the files.
    pub(crate) async fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            blocking(move || server.stop(Duration::from_secs(20))).await;
        }
    }

    /// Stops as a crash would, keeping the files.
    pub(crate) async fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            blocking(move || server.kill()).await;
        }
    }

    /// A copy of a stopped server's files, not started yet: another machine, a standby, a restored backup. On the same port,
    /// unless its options are changed.
    pub(crate) async fn copy(&self, change: impl FnOnce(&mut ServerOptions)) -> TestPg {
        assert!(self.server.is_none(), "it runs");
        let (account, from) = (self.account.clone(), self.options.data.clone());
        let home = blocking(move || {
            let home = new_home(account.as_ref());
            copy_dir(&from, &home.join("data"), account.as_ref());
            home
        })
        .await;
        let mut options = ServerOptions {
            data: home.join("data"),
            log: home.join("server.log"),
            socket_dir: Some(home.clone()),
            ..self.options.clone()
        };
        change(&mut options);
        let (binaries, account) = (self.binaries.clone(), self.account.clone());
        TestPg { server: None, binaries, account, options, home, client: tokio::sync::Mutex::new(None) }
    }

    /// Writes a file into the data directory of a stopped server.
    pub(crate) fn write_file(&self, name: &str, text: &str) {
        write_private(&self.data().join(name), text, self.account.as_ref());
    }

    /// After `stop` or `kill`.
    pub(crate) async fn start_again(&mut self) {
        let (binaries, options, account) = (self.binaries.clone(), self.options.clone(), self.account.clone());
        let server = blocking(move || Server::start(&binaries, &options, account.as_ref())).await;
        self.server = Some(server.expect("it starts again"));
    }
}

impl Drop for TestPg {
    fn drop(&mut self) {
        drop(self.server.take());
        let _ = fs::remove_dir_all(&self.home);
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("it does not panic")
}

fn launch(binaries: Binaries, source: &Path, chosen: &TestPgOptions) -> TestPg {
    let account = Account::for_server().expect("a user to run the server");
    let home = new_home(account.as_ref());
    let data = home.join("data");
    copy_dir(source, &data, account.as_ref());
    for (name, text) in &chosen.files {
        write_private(&data.join(name), text, account.as_ref());
    }
    let mut settings = vec![
        ("max_connections", "60"),
        ("shared_buffers", "16MB"),
        ("autovacuum", "off"),
        ("jit", "off"),
        ("wal_sender_timeout", "10s"),
    ];
    if !chosen.fsync {
        settings.extend([("fsync", "off"), ("full_page_writes", "off")]);
    }
    settings.extend(chosen.settings.iter().copied());
    let mut options = ServerOptions {
        data,
        log: home.join("server.log"),
        port: 0,
        socket_dir: Some(home.clone()),
        settings: settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        start_timeout: Duration::from_secs(60),
    };
    // Another test may take the port between our look and the server's bind.
    for attempt in 1.. {
        options.port = free_port();
        match Server::start(&binaries, &options, account.as_ref()) {
            Ok(server) => {
                let client = tokio::sync::Mutex::new(None);
                return TestPg { server: Some(server), binaries, account, options, home, client };
            }
            Err(error) => assert!(attempt < 5, "the server does not start: {error}"),
        }
    }
    unreachable!("the loop returns or panics")
}

fn write_private(path: &Path, text: &str, account: Option<&Account>) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text).expect("a file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("permissions");
    server::give(path, account).expect("an owner");
}

/// Below the range that the system hands to outgoing connections, so that a restart finds its port free.
pub(crate) fn free_port() -> u16 {
    loop {
        let port = rand::rng().random_range(16_000..30_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Memory if there is a good deal of it, else the temporary folder.
fn fast_dir() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let room =
        nix::sys::statvfs::statvfs(memory).map(|fs| u128::from(fs.blocks_available()) * u128::from(fs.fragment_size()));
    if room.is_ok_and(|bytes| bytes > 2 << 30) { memory.to_owned() } else { std::env::temp_dir() }
}

const HOME_PREFIX: &str = "rowcast-test-";

fn new_home(account: Option<&Account>) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let home = fast_dir().join(format!("{HOME_PREFIX}{}-{number}", std::process::id()));
    server::make_private_dir(&home, account).expect("a folder for the server");
    home
}

/// Stops and deletes what killed test runs left behind.
fn sweep() {
    for entry in fs::read_dir(fast_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(HOME_PREFIX)?.split('-').next()?.parse().ok());
        let Some(owner) = owner else { continue };
        let gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(owner), None) == Err(nix::errno::Errno::ESRCH);
        if gone {
            let _ = server::clear_leftover(&entry.path().join("data"));
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn copy_dir(from: &Path, to: &Path, account: Option<&Account>) {
    server::make_private_dir(to, account).expect("a folder");
    for entry in fs::read_dir(from).expect("the template can be read") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_dir(&entry.path(), &target, account);
        } else {
            fs::copy(entry.path(), &target).expect("a copy");
            server::give(&target, account).expect("an owner");
        }
    }
}

/// The prepared data directories of this machine.
struct Templates {
    binaries: Binaries,
    bare: PathBuf,
    migrated: PathBuf,
}

impl Templates {
    async fn get() -> &'static Templates {
        static READY: OnceCell<Templates> = OnceCell::const_new();
        READY.get_or_init(Templates::prepare).await
    }

    async fn prepare() -> Templates {
        let search = Search {
            pg_bin: std::env::var_os("PG_BIN").map(PathBuf::from),
            path: std::env::var_os("PATH"),
            extra: Vec::new(),
            major: None,
        };
        let binaries = Binaries::find(&search).expect("server programs");
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pg-template");
        fs::create_dir_all(&root).expect("a folder under target/");
        let key = template_key(&binaries);
        let template = Templates {
            binaries,
            bare: root.join(format!("{key}-bare")),
            migrated: root.join(format!("{key}-migrated")),
        };
        // Test processes run side by side; the first one prepares, the others wait.
        let lock = blocking(move || {
            let file = fs::File::create(root.join("lock")).expect("a lock file");
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).expect("the lock")
        })
        .await;
        blocking(sweep).await;
        if !template.bare.exists() {
            let (binaries, target) = (template.binaries.clone(), template.bare.clone());
            blocking(move || make_bare(&binaries, &target)).await;
        }
        if !template.migrated.exists() {
            make_migrated(&template).await;
        }
        drop(lock);
        template
    }
}

/// Changes with the server's version, the migrations and the way the template is made.
fn template_key(binaries: &Binaries) -> String {
    let mut text = format!("{TEMPLATE_FORMAT} {} {}", binaries.version, binaries.dir.display());
    for migration in rowcast::migrate::MIGRATIONS {
        text.push_str(migration.up_script());
    }
    format!("{}-{:08x}", binaries.major, crc32c::crc32c(text.as_bytes()))
}

fn make_bare(binaries: &Binaries, target: &Path) {
    // The server's user may not be able to enter target/, so initdb works elsewhere.
    let account = Account::for_server().expect("a user to run the server");
    let home = new_home(account.as_ref());
    let arguments = ["--wal-segsize=1", "--no-sync", "--no-instructions"].map(str::to_owned).to_vec();
    let data = home.join("data");
    server::initdb(binaries, &data, &Initdb { password: None, arguments }, account.as_ref()).expect("initdb");
    install(&data, target);
    let _ = fs::remove_dir_all(home);
}

async fn make_migrated(template: &Templates) {
    let (binaries, bare) = (template.binaries.clone(), template.bare.clone());
    let mut pg = blocking(move || launch(binaries, &bare, &TestPgOptions::default())).await;
    let mut client = pg.client().await;
    rowcast::migrate::up(&mut client).await.expect("the migrations run");
    drop(client);
    pg.stop().await;
    install(pg.data(), &template.migrated);
}

/// Copies a stopped data directory to its place, whole or not at all.
fn install(data: &Path, target: &Path) {
    let unfinished = target.with_extension("unfinished");
    let _ = fs::remove_dir_all(&unfinished);
    copy_dir(data, &unfinished, None);
    fs::rename(&unfinished, target).expect("the template in its place");
}
