//! A server, a relay on it, phones on that, and a wire on either side.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::sync::Arc;

use nix::sys::signal::Signal;
use rowcast::app::{App, Running};
use rowcast::clock::Clock;
use rowcast::config::Config;
use rowcast::gateway::DeviceConfig;
use rowcast::log::RealFiles;
use rowcast::log::testing::FullDisk;
use rowcast::resume::CursorKey;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant};
use tokio_postgres::Client;

use super::faults::Tally;
use super::phone::{Board, Kind, Phone, Record};
use super::rooms::{self, ROOMS};
use super::stock::Client as StockClient;
use crate::journey::revocation::writers::Operations;
use crate::journey::revocation::{CONTENT, prepared};
use crate::support::phone::PATIENCE;
use crate::support::relay::pause;
use crate::support::token::{self, SECRET};
use crate::support::{RelayProcess, Stock, TestPg, Wire};

/// Of an outbox: small, so that who does not read is soon shed.
const OUTBOX: usize = 1 << 20;
/// For everything that is owed, after the quiet.
const CAUGHT_UP: Duration = Duration::from_secs(90);

/// Of the stock clients, between two.
const HEARTBEAT: Duration = Duration::from_secs(25);

/// Who takes part.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cast {
    /// Phones that go on by cursor, and that name a device, for each user.
    pub(super) cursors: usize,
    pub(super) devices: usize,
    pub(super) stock: &'static [Stock],
    /// The same, as members of a private channel.
    pub(super) members: usize,
    pub(super) member_devices: usize,
    pub(super) member_stock: &'static [Stock],
    /// The relay runs in this process, on a disk and a clock of the test's.
    pub(super) in_process: bool,
    /// Phones are behind a proxy that answers Pings itself, and the relay is told so.
    pub(super) lying: bool,
    /// Phones count what they get, and don't keep it.
    pub(super) forgetful: bool,
}

/// The relay.
pub(super) enum Machine {
    Binary(Box<RelayProcess>),
    Process(Box<InProcess>),
}

/// The real `App` in this process, which can be dropped and begun again.
pub(super) struct InProcess {
    config: Config,
    files: Arc<FullDisk>,
    clock: Clock,
    jumped: i64,
    running: Option<Running>,
    data: TempDir,
}

impl Machine {
    pub(super) async fn start(&mut self, _db: &Wire) {
        match self {
            Machine::Binary(relay) => relay.start_again().await,
            Machine::Process(relay) => relay.start().await,
        }
    }

    pub(super) async fn kill(&mut self) {
        match self {
            Machine::Binary(relay) => relay.kill().await,
            Machine::Process(relay) => relay.running.take().expect("it runs").kill().await,
        }
    }

    /// Somewhere in its start.
    pub(super) async fn start_and_kill(&mut self, after: Duration) {
        if let Machine::Binary(relay) = self {
            relay.spawn();
            tokio::time::sleep(after).await;
            relay.kill().await;
        }
    }

    /// Starts it so that it ends itself there, and waits until it has; whether it did.
    pub(super) async fn crash_at(&mut self, failpoint: &str) -> bool {
        let Machine::Binary(relay) = self else { return false };
        relay.set("FAILPOINT", failpoint);
        relay.spawn();
        let deadline = Instant::now() + PATIENCE;
        let ended = loop {
            match relay.has_ended() {
                Some(status) => break status.signal() == Some(Signal::SIGABRT as i32),
                None if Instant::now() > deadline => {
                    relay.kill().await;
                    break false;
                }
                None => pause().await,
            }
        };
        relay.unset("FAILPOINT");
        ended
    }

    /// In order.
    pub(super) async fn stop(&mut self) {
        match self {
            Machine::Binary(relay) => {
                let status = relay.stop().await;
                assert!(status.success(), "{status}: {}", self.log_tail());
            }
            Machine::Process(relay) => {
                relay.running.take().expect("it runs").drain().await;
            }
        }
    }

    pub(super) fn freeze(&self) {
        if let Machine::Binary(relay) = self {
            relay.freeze();
        }
    }

    pub(super) fn thaw(&self) {
        if let Machine::Binary(relay) = self {
            relay.thaw();
        }
    }

    pub(super) fn set_room(&self, bytes: Option<u64>) {
        if let Machine::Process(relay) = self {
            relay.files.set_room(bytes);
        }
    }

    pub(super) fn jump(&mut self, minutes: i64) {
        if let Machine::Process(relay) = self {
            relay.clock.advance(minutes * 60_000);
            relay.jumped += minutes * 60_000;
        }
    }

    pub(super) fn jump_back(&mut self) {
        if let Machine::Process(relay) = self {
            relay.clock.advance(-std::mem::take(&mut relay.jumped));
        }
    }

    fn data_dir(&self) -> std::path::PathBuf {
        match self {
            Machine::Binary(relay) => relay.data_dir(),
            Machine::Process(relay) => relay.data.path().to_owned(),
        }
    }

    /// What opens the cursors that it gives.
    pub(super) fn cursor_key(&self) -> Option<CursorKey> {
        let path = self.data_dir().join("cursor.key");
        path.exists().then(|| CursorKey::load_or_create(&path).expect("a key"))
    }

    /// The last things that it complained of, for a message.
    pub(super) fn log_tail(&self) -> String {
        let Machine::Binary(relay) = self else { return String::new() };
        let log = relay.log();
        let lines: Vec<&str> = log.lines().filter(|line| !line.contains(" INFO ")).collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl InProcess {
    fn new(database_url: &str) -> InProcess {
        let data = tempfile::tempdir().expect("a folder");
        let mut config = Config::new(database_url, SECRET, data.path()).expect("good settings");
        config.port = crate::support::pg::free_port();
        config.gateway.max_outbox_bytes = OUTBOX;
        let files = Arc::new(FullDisk::new(Arc::new(RealFiles)));
        InProcess { config, files, clock: Clock::system(), jumped: 0, running: None, data }
    }

    /// The one before may still hold the folder or the port for a moment.
    async fn start(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let app = loop {
            let built = App::build_on(self.config.clone(), self.files.clone(), self.clock.clone());
            match Box::pin(built).await {
                Ok(app) => break app,
                Err(error) => assert!(Instant::now() < deadline, "{}", rowcast::error::chain(&error)),
            }
            pause().await;
        };
        let mut running = app.spawn();
        let ready = running.ready(PATIENCE).await;
        ready.unwrap_or_else(|error| panic!("{}", rowcast::error::chain(&error)));
        self.running = Some(running);
    }
}

/// See the module's comment. The relay is dropped first: it would complain about the others' end.
pub(super) struct World {
    pub(super) machine: Machine,
    pub(super) phones: Wire,
    pub(super) db: Wire,
    pub(super) board: Arc<Board>,
    pub(super) tally: Tally,
    pub(super) users: Vec<String>,
    pub(super) pg: TestPg,
    records: Vec<JoinHandle<Record>>,
    lying: bool,
}

impl World {
    /// Everybody is there and has had a mark.
    pub(super) async fn begin(cast: Cast) -> World {
        let (pg, users) = prepared().await;
        pg.exec(rooms::SCHEMA).await;
        pg.exec(&rooms::let_all_in(&users)).await;
        World::begin_on(pg, users, cast, None).await
    }

    /// The same on a server that is prepared already, with another build of the relay.
    pub(super) async fn begin_on(pg: TestPg, users: Vec<String>, cast: Cast, program: Option<&Path>) -> World {
        let db = Wire::to(([127, 0, 0, 1], pg.port()).into()).await;
        let mut machine = machine(&pg, &db, cast);
        if let Machine::Binary(relay) = &mut machine {
            relay.run_instead(program);
        }
        machine.start(&db).await;
        let target = match &machine {
            Machine::Binary(relay) => relay.addr(),
            Machine::Process(relay) => ([127, 0, 0, 1], relay.config.port).into(),
        };
        let phones = if cast.lying { Wire::answering_pings(target).await } else { Wire::to(target).await };
        let board = Board::new();
        let (tally, records, lying) = (Tally::default(), Vec::new(), cast.lying);
        let mut world = World { machine, phones, db, board, tally, users, pg, records, lying };
        world.people(cast);
        world.begun().await;
        world
    }

    /// More phones.
    pub(super) fn people(&mut self, cast: Cast) {
        let each = cast.cursors + cast.devices + cast.members + cast.member_devices;
        self.board.expect_more(self.users.len() * each + cast.stock.len() + cast.member_stock.len());
        let kinds = [
            (Kind::Cursor, false, cast.cursors),
            (Kind::Device, false, cast.devices),
            (Kind::Cursor, true, cast.members),
            (Kind::Device, true, cast.member_devices),
        ];
        for (place, user) in self.users.iter().enumerate() {
            for (kind, is_member, count) in kinds {
                for n in 0..count {
                    let number = self.records.len();
                    let room = is_member.then(|| ROOMS[(place + n) % ROOMS.len()]);
                    let phone = Phone {
                        number,
                        addr: self.phones.addr(),
                        token: token::user(user),
                        board: self.board.clone(),
                        record: record(number, user, kind, room, cast.forgetful),
                        cursor: None,
                    };
                    self.records.push(rowcast::task::spawn("phone", phone.run()));
                }
            }
        }
        let rooms = std::iter::repeat_n(None, cast.stock.len()).chain(ROOMS.into_iter().cycle().map(Some));
        for ((place, stock), room) in cast.stock.iter().chain(cast.member_stock).enumerate().zip(rooms) {
            let (number, user) = (self.records.len(), &self.users[place % self.users.len()]);
            let client = StockClient {
                number,
                stock: *stock,
                base: format!("ws://{}/realtime/v1", self.phones.addr()),
                token: token::user(user),
                board: self.board.clone(),
                record: record(number, user, Kind::Stock(*stock), room, cast.forgetful),
            };
            self.records.push(rowcast::task::spawn("stock client", client.run()));
        }
    }

    /// Everybody has had a mark.
    pub(super) async fn begun(&self) {
        let deadline = Instant::now() + CAUGHT_UP;
        for number in 0.. {
            let note = format!("begin-{}-{number}", self.records.len());
            self.mark(&note).await;
            let soon = Instant::now() + Duration::from_secs(1);
            while Instant::now() < soon {
                if self.board.without_any().is_empty() {
                    return;
                }
                pause().await;
            }
            assert!(Instant::now() < deadline, "not all are subscribed: {:?}", self.board.without_any());
        }
    }

    /// A row that everybody gets, in a transaction of its own.
    pub(super) async fn mark(&self, note: &str) {
        let sql = format!("insert into public.marks (note) values ('{note}')");
        unhurried(&self.pg).await.batch_execute(&sql).await.expect("a mark");
    }

    /// Much for everybody.
    pub(super) async fn flood(&self) {
        let sql = "insert into public.marks (note) select repeat('x', 32000) from generate_series(1, 10)";
        let client = unhurried(&self.pg).await;
        for _ in 0..20 {
            client.batch_execute(sql).await.expect("a flood");
        }
    }

    /// Whoever was put out of a room may come back; the mark of the end would not reach him.
    pub(super) async fn let_all_in(&self, operations: &Operations) {
        let (number, members) = (operations.begin(), rooms::let_all_in(&self.users));
        let sql =
            format!("begin; select pg_logical_emit_message(true, 'test.operation', '{number}'); {members} commit");
        unhurried(&self.pg).await.batch_execute(&sql).await.expect("members");
    }

    /// Waits until everybody has a mark that is written now; who has not.
    pub(super) async fn caught_up(&self, note: &str) -> Vec<usize> {
        self.mark(note).await;
        let deadline = Instant::now() + CAUGHT_UP;
        while Instant::now() < deadline && !self.board.without(note).is_empty() {
            pause().await;
        }
        self.board.without(note)
    }

    /// Pings that the proxy has answered, if it does that.
    pub(super) fn lies(&self) -> Option<u64> {
        self.lying.then(|| self.phones.pings_answered())
    }

    /// How long after it came a row of a stock client is receipted: its connection is asked once in a while, and once more for
    /// what the hub had not spoken of by then. Behind a proxy that answers Pings, with the second heartbeat.
    pub(super) fn receipted(&self) -> Duration {
        let device = DeviceConfig::default();
        if self.lying { 2 * HEARTBEAT } else { device.behind + 2 * device.busy }
    }

    /// What everybody noticed.
    pub(super) async fn records(&mut self) -> Vec<Record> {
        self.board.end();
        let mut all = Vec::new();
        for record in self.records.drain(..) {
            all.push(record.await.expect("a phone does not panic"));
        }
        all
    }
}

fn record(number: usize, user: &str, kind: Kind, room: Option<&'static str>, forgetful: bool) -> Record {
    let tables = match (room, kind) {
        (Some(_), _) => rooms::TABLES.to_vec(),
        // Nothing that Postgres is asked about: Python's client does not show what a gap notice says.
        (None, Kind::Stock(_)) => vec!["docs", "notes", "own", "lent", "marks"],
        (None, _) => CONTENT.into_iter().chain(["marks"]).collect(),
    };
    let (name, user, seen) = (format!("phone-{number}"), user.to_owned(), Vec::new());
    Record { name, user, kind, room, tables, seen, rows: 0, forgetful }
}

fn machine(pg: &TestPg, db: &Wire, cast: Cast) -> Machine {
    if cast.in_process {
        let url = format!("postgres://postgres:test@127.0.0.1:{}/postgres", db.addr().port());
        return Machine::Process(Box::new(InProcess::new(&url)));
    }
    let mut relay = RelayProcess::new(pg);
    relay.through(db.addr().port());
    relay.set("ROWCAST_OUTBOX_BYTES", &OUTBOX.to_string());
    if cast.lying {
        relay.set("ROWCAST_RECEIPT", "heartbeat");
    }
    Machine::Binary(Box::new(relay))
}

/// A session of the test's own, past the wire.
pub(super) async fn unhurried(pg: &TestPg) -> Client {
    pg.client().await
}
