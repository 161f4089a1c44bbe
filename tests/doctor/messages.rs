//! What is found about `realtime.messages`, and gone after its own SQL.

use rowcast::doctor::Severity::{Error, Note, Warning};

use super::Clinic;
use super::mended::Cure::{Own, Todo};
use super::mended::{Case, all, case};

const NO_TOMORROW: &str = "do $$ begin execute 'drop table realtime.messages_' || to_char((now() at time zone 'utc')::date + 1, 'YYYY_MM_DD'); end $$";
const A_TOMORROW: &str = "do $$ begin if to_regclass('realtime.messages_' || to_char((now() at time zone 'utc')::date + 1, 'YYYY_MM_DD')) is null \
    then raise 'it was not made'; end if; end $$";

pub(super) const MESSAGES: &[Case] = &[
    case(
        ("messages", Note, "table realtime.messages"),
        &["alter table realtime.messages rename to moved"],
        Todo("rowcast migrate up", "alter table realtime.moved rename to messages"),
        &[],
    ),
    case(
        ("private_channels", Error, "table realtime.messages"),
        &["revoke supabase_realtime_admin from relay", "alter role relay nobypassrls"],
        Own,
        &["alter role relay bypassrls"],
    ),
    // Above the policies by BYPASSRLS, but without a grant; then with neither.
    case(
        ("messages_rights", Warning, "table realtime.messages"),
        &["revoke supabase_realtime_admin from relay", "revoke select on rowcast.installed from relay"],
        Own,
        &["revoke supabase_realtime_admin from relay", "alter role relay noinherit"],
    ),
    case(("messages_rights", Warning, "table realtime.messages"), &[], Own, &["alter role relay inherit"]),
    case(("messages_partition", Note, "table realtime.messages"), &[NO_TOMORROW], Own, &[A_TOMORROW]),
    case(
        ("messages_partition", Warning, "table realtime.messages"),
        &["drop table realtime.messages_default", NO_TOMORROW],
        Own,
        &[A_TOMORROW, "create table realtime.messages_default partition of realtime.messages default"],
    ),
    case(
        ("messages_default", Note, "table realtime.messages"),
        &["insert into realtime.messages (topic, extension, inserted_at) values ('t', 'broadcast', '2001-01-01')"],
        Todo("A running relay moves them", "delete from realtime.messages"),
        &[],
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_messages_is_found_and_mended_by_its_own_sql() {
    all(Clinic::healthy().await, MESSAGES).await;
}
