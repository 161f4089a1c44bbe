//! Rules that change while clients are subscribed: deliveries follow within two seconds, without anybody re-joining.
//!
//! Each probe is a row of the table in question and then a mark. Whether the row has come when the mark has is the answer of
//! that moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::{Scene, watching};
use crate::support::token::{self, ALICE};
use crate::support::{Phone, Relay};

/// What is promised, and as much again for a machine that is busy with other tests.
const BOUND: Duration = Duration::from_secs(2 + 2);

/// `probes` is readable by `authenticated` and by `auditor`.
const PROBES: &str = "
    create role auditor nologin;
    grant usage on schema public to auditor;
    create table public.probes (n bigint generated always as identity primary key, user_id uuid);
    grant select on public.probes, public.marks to authenticated, auditor;
    alter publication supabase_realtime add table public.probes;";

struct Probe {
    scene: Scene,
    phone: Phone,
    marks: u32,
}

impl Probe {
    /// Whoever the token names, subscribed to `probes`.
    async fn new(sql: &str, token: &str) -> Probe {
        let scene = Scene::with(&format!("{PROBES} {sql}")).await;
        let mut phone = scene.relay.phone(token).await;
        phone.subscribe("room", &watching(&["probes"])).await;
        Probe { scene, phone, marks: 0 }
    }

    async fn arrives(&mut self) -> bool {
        self.marks += 1;
        let mark = self.marks.to_string();
        self.scene.exec(&format!("insert into probes (user_id) values ('{ALICE}')")).await;
        self.scene.mark(&mark).await;
        !self.phone.changes_before(&mark).await.is_empty()
    }

    /// Runs the statements; rows arrive, or don't, from the bound on at the latest.
    #[track_caller]
    fn after<'a>(&'a mut self, sql: &'a str, expected: bool) -> impl Future<Output = ()> + 'a {
        let at = std::panic::Location::caller();
        async move {
            self.scene.exec(sql).await;
            let started = Instant::now();
            while self.arrives().await != expected {
                assert!(started.elapsed() < BOUND, "at {at}: not in force {BOUND:?} after: {sql}");
            }
            // And it stays so.
            for _ in 0..3 {
                assert_eq!(self.arrives().await, expected, "at {at}: {sql}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_and_row_level_security_take_effect_on_living_subscriptions() {
    let mut probe = Probe::new("", &token::user(ALICE)).await;
    assert!(probe.arrives().await);
    probe.after("alter table probes enable row level security", false).await;
    probe.after("create policy own on probes for select to authenticated using (user_id = auth.uid())", true).await;
    probe.after("alter policy own on probes using (user_id <> auth.uid())", false).await;
    probe.after("alter policy own on probes using (user_id = auth.uid())", true).await;
    probe.after("create policy never on probes as restrictive for select to authenticated using (false)", false).await;
    probe.after("drop policy never on probes", true).await;
    probe.after("drop policy own on probes", false).await;
    // One that Postgres has to be asked about.
    probe.after("create policy asked on probes for select to authenticated using (abs(n) > 0)", true).await;
    probe.after("drop policy asked on probes", false).await;
    probe.after("alter table probes disable row level security", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grants_take_effect_on_living_subscriptions() {
    let mut probe = Probe::new("", &token::user(ALICE)).await;
    assert!(probe.arrives().await);
    probe.after("revoke select on probes from authenticated", false).await;
    probe.after("grant select on probes to authenticated", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_role_is_takes_effect_on_living_subscriptions() {
    let locked = "alter table probes enable row level security; create role readers nologin; \
                  create policy members on probes for select to readers using (true);";
    let mut probe = Probe::new(locked, &token::role("auditor")).await;
    assert!(!probe.arrives().await);
    probe.after("alter role auditor bypassrls", true).await;
    probe.after("alter role auditor nobypassrls", false).await;
    probe.after("grant readers to auditor", true).await;
    probe.after("revoke readers from auditor", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_role_receives_nothing_more() {
    let mut probe = Probe::new("", &token::role("auditor")).await;
    assert!(probe.arrives().await);
    let mut witness = probe.scene.relay.phone(&token::user(ALICE)).await;
    witness.subscribe("room", &watching(&["probes"])).await;
    probe.scene.exec("drop owned by auditor; drop role auditor").await;
    let started = Instant::now();
    let mut silent = 0;
    // Nothing reaches this phone any more, marks included, so another one's mark and a round trip have to do; several times,
    // since the two are not served in one turn.
    while silent < 3 {
        probe.marks += 1;
        let mark = probe.marks.to_string();
        probe.scene.exec(&format!("insert into probes (user_id) values ('{ALICE}')")).await;
        probe.scene.mark(&mark).await;
        assert_eq!(witness.changes_before(&mark).await.len(), 1);
        probe.phone.heartbeat().await;
        silent = if probe.phone.changes_so_far().is_empty() { silent + 1 } else { 0 };
        assert!(started.elapsed() < BOUND, "it still receives");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_dropped_and_made_again_is_judged_by_its_new_rules() {
    let mut probe = Probe::new("", &token::user(ALICE)).await;
    assert!(probe.arrives().await);
    let again = "drop table probes; \
                 create table public.probes (n bigint generated always as identity primary key, user_id uuid); \
                 alter table public.probes enable row level security; grant select on public.probes to authenticated; \
                 alter publication supabase_realtime add table public.probes;";
    probe.after(again, false).await;
    probe.after("create policy own on probes for select to authenticated using (user_id = auth.uid())", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_are_read_again_by_a_relay_that_starts_later() {
    let mut probe = Probe::new("alter table probes enable row level security;", &token::user(ALICE)).await;
    assert!(!probe.arrives().await);
    let Probe { scene: Scene { relay, pg }, phone, .. } = probe;
    // Nobody would answer the goodbye.
    drop(phone);
    relay.drain().await;
    pg.exec("create policy own on probes for select to authenticated using (user_id = auth.uid())").await;
    let relay = Relay::start(&pg).await;
    let mut phone = relay.phone(&token::user(ALICE)).await;
    phone.subscribe("room", &watching(&["probes"])).await;
    let mut probe = Probe { scene: Scene { relay, pg }, phone, marks: 1000 };
    assert!(probe.arrives().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_states_of_the_rules_are_never_mixed() {
    // Some functions of Postgres see the newest catalog and not that of the transaction's snapshot, so one reading can have
    // the policies of before a commit and the grants of after it.
    // In each state something stands between the user and the rows: now the grant is missing, now the policy says no.
    let locked = "revoke select on probes from authenticated; alter table probes enable row level security; \
                  create policy open on probes for select to authenticated using (true);";
    let mut probe = Probe::new(locked, &token::user(ALICE)).await;
    assert!(!probe.arrives().await);
    let (scene, phone) = (&probe.scene, &mut probe.phone);
    let writer = scene.pg.client().await;
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let writing = rowcast::task::spawn("writer", async move {
        while !stopping.load(Ordering::SeqCst) {
            writer.batch_execute("insert into probes (user_id) values (null)").await.expect("written");
        }
    });
    for _ in 0..400 {
        scene
            .exec(
                "begin; drop policy open on probes; create policy never on probes for select to authenticated using (false); \
                 grant select on probes to authenticated; commit",
            )
            .await;
        scene
            .exec(
                "begin; revoke select on probes from authenticated; drop policy never on probes; \
                 create policy open on probes for select to authenticated using (true); commit",
            )
            .await;
    }
    stop.store(true, Ordering::SeqCst);
    writing.await.expect("it does not panic");
    scene.mark("end").await;
    phone.expect_nothing_before("end").await;
}
