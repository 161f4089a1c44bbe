//! The login as which Postgres is asked about rows.

use rowcast::clock::Clock;
use rowcast::doctor::{Finding, Severity, examine};

use super::{Clinic, config, shown};

async fn found(clinic: &Clinic, asking: Option<&str>) -> Vec<Finding> {
    let mut config = config(&clinic.pg.url_as("relay"), clinic.data.path());
    config.ask_login = asking.map(|user| Box::new(config.pg.as_user(user, None)));
    examine(&config, &clinic.roles, &Clock::system()).await
}

fn about_login(found: &[Finding]) -> Option<(Severity, String)> {
    let finding = found.iter().find(|finding| finding.check == "ask_login")?;
    Some((finding.severity, finding.what.clone()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_for_asking_that_may_more_than_become_the_token_roles_is_told_with_what_mends_it() {
    let clinic = Clinic::healthy().await;
    clinic
        .pg
        .exec(
            "create role other nologin; create role asker login superuser inherit;
             grant anon, authenticated, service_role, other to asker; create table public.mine (id int);
             alter table public.mine owner to asker",
        )
        .await;
    let told = about_login(&found(&clinic, Some("asker")).await).expect("a finding");
    assert_eq!(told.0, Severity::Warning);
    for part in ["is a superuser", "owns 1 tables", "is a member of other", "inherits"] {
        assert!(told.1.contains(part), "{}", told.1);
    }
    let all = found(&clinic, Some("asker")).await;
    let sql = all.iter().find(|finding| finding.check == "ask_login").and_then(|finding| finding.sql.clone());
    clinic.pg.exec(&sql.expect("its SQL")).await;
    let told = about_login(&found(&clinic, Some("asker")).await).expect("a finding");
    assert_eq!(told.0, Severity::Note);
    assert!(told.1.ends_with("which owns 1 tables, views or functions"), "{}", told.1);
    clinic.pg.exec("drop table public.mine; revoke anon from asker").await;
    let all = found(&clinic, Some("asker")).await;
    assert_eq!(about_login(&all).expect("a finding").0, Severity::Ok);
    // Every policy's role must be within its reach, and it is this login's, not the relay's.
    clinic.pg.exec("revoke authenticated from asker").await;
    let all = found(&clinic, Some("asker")).await;
    let missing = all.iter().find(|finding| finding.check == "token_role_not_granted").expect("a finding");
    assert!(missing.what.starts_with("asker may not become it"), "{}", missing.what);
    clinic.pg.exec(missing.sql.as_deref().expect("its SQL")).await;
    let all = found(&clinic, Some("asker")).await;
    assert!(all.iter().all(|finding| finding.check != "token_role_not_granted"), "{}", shown(&all));
    clinic.pg.exec("revoke asker from current_user; alter role asker nologin").await;
    let told = about_login(&found(&clinic, Some("asker")).await).expect("a finding");
    assert!(told.0 == Severity::Error && told.1.contains("not permitted to log in"), "{}", told.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_relays_own_login_is_told_only_if_postgres_is_asked_and_it_has_more_than_it_needs() {
    let clinic = Clinic::healthy().await;
    assert_eq!(about_login(&found(&clinic, None).await), None);
    clinic
        .pg
        .exec(
            "create table public.odd (id int primary key, user_id uuid); alter table public.odd enable row level security;
             create policy p on public.odd for select to authenticated using (md5(user_id::text) = md5(auth.uid()::text));
             grant select on public.odd to authenticated; alter publication supabase_realtime add table public.odd",
        )
        .await;
    assert_eq!(about_login(&found(&clinic, None).await), None);
    clinic.pg.exec("create role other nologin; grant other to relay").await;
    let all = found(&clinic, None).await;
    let told = about_login(&all).expect("a finding");
    assert!(told.0 == Severity::Note && told.1.contains("is a member of other"), "{}", told.1);
}
