//! The relay put together: the only place that knows everyone.
//!
//! ```text
//!  build   folder, log and both ports are ours; nothing runs
//!  spawn   admin, shards run at once; key set → gateway; database → hub → ingest
//!  drain   gateway (1012 to everyone) → hub → shards → ingest (last fsync, last confirmation) → admin
//! ```
//!
//! Invariants: a service that ends before the drain ends the process, and says which it was; connections may end when they
//! like. No runtime is made here and nothing global is touched, so a test can run as many relays as it likes in one process.

mod database;
mod error;
mod running;
mod slot;
mod standby;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{oneshot, watch};

pub use error::AppError;
pub use running::{Drained, Running};

use crate::admin::{Admin, AdminDeps};
use crate::authority::Authority;
use crate::claims::Verifier;
use crate::clock::Clock;
use crate::config::Config;
use crate::filter::Validator;
use crate::gateway::shard::Shard;
use crate::gateway::{self, Gateway, Tls};
use crate::hub::{Hub, HubDeps, HubHandle};
use crate::ingest::{Ingest, IngestHandle};
use crate::journal::{Journal, Note, Writer};
use crate::log::{self, Files, Log, RealFiles};
use crate::messages::Keeper;
use crate::metrics::Metrics;
use crate::pg::Pool;
use crate::report::Reporter;
use crate::resume::{CursorKey, FrontierConfig, FrontierStore, Frontiers, History, StoreDeps};
use crate::retention::Retention;
use crate::room::Rooms;
use crate::task::{Connections, Drain, Gate};
use crate::why::{Why, WhyDeps};
use running::{Service, service};

/// When each part is to stop.
#[derive(Clone, Default)]
struct Drains {
    gateway: Drain,
    hub: Drain,
    ingest: Drain,
    /// Retention and the report: they need nobody and nobody needs them.
    chores: Drain,
    /// Who saves what devices have received, when no connection can receive more.
    frontiers: Drain,
    /// Who writes down how the others ended.
    journal: Drain,
    admin: Drain,
}

/// A relay that holds its ports and its folder, and does nothing yet. Dropping it gives them back.
pub struct App {
    config: Config,
    gateway: gateway::Bound,
    verifier: Arc<Verifier>,
    admin: Option<Admin>,
    hub: Hub,
    commands: HubHandle,
    shards: Vec<Shard>,
    rooms: Arc<Rooms>,
    ingest: Ingest,
    handle: IngestHandle,
    log: Log,
    metrics: Arc<Metrics>,
    connections: Connections,
    pool: Pool,
    retention: Option<Retention>,
    keeper: Keeper,
    reporter: Reporter,
    store: FrontierStore,
    clock: Clock,
    cursor_key: Arc<CursorKey>,
    journal: Journal,
    journal_writer: Option<Writer>,
    drains: Drains,
    gate_keeper: watch::Sender<bool>,
}

impl App {
    /// On the machine's own disk and clock.
    pub async fn build(config: Config) -> Result<App, AppError> {
        App::build_on(config, Arc::new(RealFiles), Clock::system()).await
    }

    /// With the log on other files, and another clock.
    pub async fn build_on(config: Config, files: Arc<dyn Files>, clock: Clock) -> Result<App, AppError> {
        // So large that callers should not carry it.
        Box::pin(App::put_together(config, files, clock)).await
    }

    async fn put_together(mut config: Config, files: Arc<dyn Files>, clock: Clock) -> Result<App, AppError> {
        config.ingest.wal.publications = config.stream_publications();
        config.hub.publications.clone_from(&config.publications);
        let others = config.stream_publications().into_iter().filter(|name| !config.publications.contains(name));
        config.hub.other_publications = others.collect();
        // As for those of clients, with their tolerance (`protocol.md` §9.1).
        config.hub.max_message_bytes = config.gateway.max_payload_bytes.saturating_add(500);
        config.gateway.rights_recheck = config.authority.recheck;
        // The ports first: a relay that runs already is the usual reason for failing here, and says so best.
        let admin = match config.admin {
            Some(addr) => Some(Admin::bind(addr).await?),
            None => None,
        };
        let metrics = Arc::new(Metrics::new());
        let drains = Drains::default();
        let (journal, journal_writer) =
            Journal::new(config.journal.clone(), files.clone(), clock.clone(), metrics.clone());
        let (opened, key) = open_folder(&config, files, clock.clone(), metrics.clone()).await?;
        let log = opened.log;
        journal.note(Note::Started { position: log.end() });
        let pool = config.pg.pool()?;
        let mut catalog_config = config.pg.clone();
        catalog_config.pool_size = 1;
        let mut facts_config = config.pg.clone();
        facts_config.pool_size = 2;
        let (ingest, handle) = Ingest::new(
            config.ingest.clone(),
            log.clone(),
            opened.writer,
            config.pg.clone(),
            metrics.clone(),
            drains.ingest.clone(),
        );
        let count = config.shards.max(1);
        let (shards, to_shards): (Vec<_>, Vec<_>) =
            (0..count).map(|_| Shard::new(metrics.clone(), clock.clone(), key.clone())).unzip();
        let rooms = Rooms::new(config.rooms.clone(), shards.iter().map(Shard::rooms).collect(), metrics.clone());
        let deps = HubDeps {
            log: log.clone(),
            pool: pool.clone(),
            ask_pool: config.ask_pg().asking_pool(config.hub.ask.connections)?,
            snapshot_pool: config.ask_pg().asking_pool(config.hub.snapshot.connections)?,
            catalog_pool: catalog_config.pool()?,
            facts_pool: facts_config.pool()?,
            clock: clock.clone(),
            metrics: metrics.clone(),
            journal: journal.clone(),
            drain: drains.hub.clone(),
            shards: to_shards,
        };
        let (hub, commands) = Hub::new(config.hub.clone(), deps);
        let connections = Connections::default();
        let verifier = Arc::new(Verifier::new(config.verifier.clone(), clock.clone(), metrics.clone()));
        let retention = config.retention.map(|interval| Retention {
            pg: config.pg.clone(),
            interval,
            ready: handle.ready.clone(),
            metrics: metrics.clone(),
            clock: clock.clone(),
            drain: drains.chores.clone(),
        });
        let keeper = Keeper {
            pg: config.pg.clone(),
            config: config.messages,
            ready: handle.ready.clone(),
            metrics: metrics.clone(),
            clock: clock.clone(),
            drain: drains.chores.clone(),
        };
        let reporter = Reporter {
            pg: config.pg.clone(),
            interval: config.report_interval,
            slot: config.ingest.wal.slot.clone(),
            log: log.clone(),
            ingest: handle.clone(),
            connections: connections.clone(),
            hub: commands.clone(),
            metrics: metrics.clone(),
            drain: drains.chores.clone(),
        };
        let mut authority_config = config.pg.clone();
        authority_config.pool_size = config.authority.connections.max(1);
        let authority =
            Authority::new(authority_config.pool()?, commands.clone(), config.authority.clone(), metrics.clone());
        let (gate_keeper, gate) = Gate::new();
        let tls = match config.gateway.tls.clone() {
            Some(files) => Some(Arc::new(Tls::load(files, config.gateway.tls_poll, metrics.clone())?)),
            None => None,
        };
        let keep = config.log.retain_age * 2;
        let frontiers = Frontiers::new(FrontierConfig { keep, ..config.frontiers }, metrics.clone());
        let store = FrontierStore::new(StoreDeps {
            frontiers: frontiers.clone(),
            pg: config.pg.clone(),
            slot: config.ingest.wal.slot.clone(),
            ready: handle.ready.clone(),
            log: log.clone(),
            metrics: metrics.clone(),
            drain: drains.frontiers.clone(),
        });
        let deps = gateway::Deps {
            hub: commands.clone(),
            rooms: rooms.clone(),
            verifier: verifier.clone(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            journal: journal.clone(),
            log: History::new(log.clone()),
            cursor_key: key.clone(),
            frontiers,
            authority,
            pool: pool.clone(),
            drain: drains.gateway.clone(),
            gate,
            connections: connections.clone(),
            ready: handle.ready.clone(),
            shards: count,
            tls,
        };
        let address = SocketAddr::new(config.host, config.port);
        let gateway = Gateway::new(config.gateway.clone(), deps).bind(address).await?;
        Ok(App {
            config,
            gateway,
            verifier,
            admin,
            hub,
            commands,
            shards,
            rooms,
            ingest,
            handle,
            log,
            metrics,
            connections,
            pool,
            retention,
            keeper,
            reporter,
            store,
            clock,
            cursor_key: key,
            journal,
            journal_writer,
            drains,
            gate_keeper,
        })
    }

    /// Starts everything. Must be called in a tokio runtime.
    pub fn spawn(self) -> Running {
        let App {
            config,
            gateway,
            verifier,
            admin,
            hub,
            commands,
            shards,
            rooms,
            ingest,
            handle,
            log,
            metrics,
            connections,
            pool,
            ..
        } = self;
        let App { retention, keeper, reporter, store, clock, cursor_key, journal, .. } = self;
        let App { journal_writer, drains, gate_keeper, .. } = self;
        let local_addr = gateway.local_addr();
        let admin_addr = admin.as_ref().map(Admin::local_addr);
        let mut services = Vec::new();
        if let Some(admin) = admin {
            let deps = AdminDeps {
                metrics: metrics.clone(),
                log: log.clone(),
                ingest: handle.clone(),
                connections: connections.clone(),
                drain: drains.gateway.clone(),
                slot: config.ingest.wal.slot.as_str().into(),
                hub: commands.clone(),
                why: Arc::new(Why::new(WhyDeps {
                    hub: commands,
                    log: log.clone(),
                    journal,
                    pool: pool.clone(),
                    ask: config.hub.ask.clone(),
                    filter_ask: config.hub.filter_ask.clone(),
                    validator: Arc::new(Validator::new(pool.clone(), config.hub.filter_ask.statement_timeout)),
                    verifier: verifier.clone(),
                    clock,
                    cursor_key,
                })),
            };
            let stop = drains.admin.clone();
            services.push(service("admin", async move {
                admin.serve(deps, stop).await;
                Ok(())
            }));
        }
        services.extend(clients(&config, gateway, verifier, &drains));
        for shard in shards {
            services.push(service("shard", async move {
                shard.run().await;
                Ok(())
            }));
        }
        // Until the last connection has left.
        let stop = drains.hub.clone();
        services.push(service("rooms", async move {
            rooms.run(stop).await;
            Ok(())
        }));
        services.extend(stream(&config, hub, ingest, &drains));
        if let Some(retention) = retention {
            services.push(service("retention", async move {
                retention.run().await;
                Ok(())
            }));
        }
        services.push(service("messages", async move {
            keeper.run().await;
            Ok(())
        }));
        if let Some(writer) = journal_writer {
            let stop = drains.journal.clone();
            services.push(service("journal", async move {
                writer.run(stop).await;
                Ok(())
            }));
        }
        services.push(service("frontiers", async move {
            store.run().await;
            Ok(())
        }));
        services.push(service("report", async move {
            reporter.run().await;
            Ok(())
        }));
        let standby = standby::Standby {
            ingest: handle.clone(),
            gate: gate_keeper,
            grace: config.slot_grace,
            connections: connections.clone(),
            drain: drains.chores.clone(),
        };
        services.push(service("standby", async move {
            standby.run().await;
            Ok(())
        }));
        let watch = slot::Watch::new(pool.clone(), &config.ingest.wal.slot, metrics.clone(), drains.ingest.clone());
        services.push(service("slot", async move {
            watch.run().await;
            Ok(())
        }));
        Running {
            local_addr,
            admin_addr,
            drain_timeout: config.drain_timeout,
            ingest: handle,
            log,
            metrics,
            connections,
            pool,
            drains,
            services,
        }
    }
}

/// The gateway, and who keeps its key set. Without the first set nobody is let in: those who hold a good token would be told
/// that it is none.
fn clients(config: &Config, gateway: gateway::Bound, verifier: Arc<Verifier>, drains: &Drains) -> [Service; 2] {
    let (loaded, may_serve) = oneshot::channel::<()>();
    let (patience, drain) = (config.startup_timeout, drains.gateway.clone());
    let keys = service("keys", async move {
        verifier.load(patience, &drain).await?;
        let _ = loaded.send(());
        verifier.keep(&drain).await;
        Ok(())
    });
    let drain = drains.gateway.clone();
    let gateway = service("gateway", async move {
        tokio::select! {
            () = drain.draining() => return Ok(()),
            // Dropped: the service above has the error.
            loaded = may_serve => if loaded.is_err() { drain.draining().await; return Ok(()) },
        }
        gateway.serve().await;
        Ok(())
    });
    [keys, gateway]
}

/// The services that wait for the database: the hub, which looks into it, and ingest, which must not run before the hub has
/// its place in the log.
fn stream(config: &Config, hub: Hub, ingest: Ingest, drains: &Drains) -> [Service; 2] {
    let (prepared, hub_may_start) = oneshot::channel::<()>();
    let hub_drain = drains.hub.clone();
    let hub = service("hub", async move {
        tokio::select! {
            () = hub_drain.draining() => return Ok(()),
            // Dropped: ingest has the error.
            started = hub_may_start => if started.is_err() { hub_drain.draining().await; return Ok(()) },
        }
        Ok(Box::pin(hub.run()).await?)
    });
    let (config, drain) = (config.clone(), drains.ingest.clone());
    let ingest = service("ingest", async move {
        let Some(left) = database::prepare(&config, &drain).await? else { return Ok(()) };
        let _ = prepared.send(());
        Ok(Box::pin(ingest.run(left)).await?)
    });
    [hub, ingest]
}

/// The log, and the key that lies beside it.
async fn open_folder(
    config: &Config,
    files: Arc<dyn Files>,
    clock: Clock,
    metrics: Arc<Metrics>,
) -> Result<(log::Opened, Arc<CursorKey>), AppError> {
    let (dir, log_config) = (config.data_dir.clone(), config.log.clone());
    let opening = tokio::task::spawn_blocking(move || {
        files.create_dir(&dir).map_err(|source| AppError::DataDir { path: dir.clone(), source })?;
        let opened = log::open(log_config, files, clock, metrics)?;
        // With the log's lock: nobody else makes a key at the same time.
        Ok((opened, Arc::new(CursorKey::load_or_create(&dir.join("cursor.key"))?)))
    });
    match opening.await {
        Ok(opened) => opened,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(AppError::Ended("opening of the log")),
    }
}
