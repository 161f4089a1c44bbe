//! What the server says of itself, its settings, our login and our database: one question, one answer.

use serde::Deserialize;
use tokio_postgres::Client;

use super::Unreadable;
use crate::clock::Clock;
use crate::config::Config;

/// As [`SQL`] names them.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Facts {
    pub(super) version: i32,
    pub(super) version_name: String,
    pub(super) standby: bool,
    pub(super) encoding: String,
    pub(super) wal_level: String,
    pub(super) max_slots: i64,
    pub(super) used_slots: i64,
    pub(super) max_senders: i64,
    pub(super) used_senders: i64,
    pub(super) max_connections: i64,
    pub(super) reserved_connections: i64,
    pub(super) used_connections: i64,
    /// Megabytes; -1 for no limit.
    pub(super) slot_keep_mb: i64,
    /// Version 18 and up; in the setting's own unit, `0` for off.
    pub(super) idle_slot_timeout: Option<String>,
    pub(super) synchronous_commit: String,
    pub(super) wal_writer_delay_ms: i64,
    /// `role` or empty, `database` or empty: who has `synchronous_commit = off` of his own.
    pub(super) asynchronous: Vec<Asynchronous>,
    pub(super) ssl: bool,
    pub(super) encrypted: bool,
    pub(super) statement_timeout: String,
    pub(super) date_style: String,
    /// Of the server, in the middle of the question.
    pub(super) now_ms: i64,
    pub(super) login: String,
    pub(super) superuser: bool,
    pub(super) bypass: bool,
    pub(super) replication: bool,
    /// How many connections the login may have; -1 for any number.
    pub(super) connection_limit: i64,
    pub(super) database: String,
    pub(super) may_create: bool,
    pub(super) has_schema: bool,
    /// Whose member is above the policies of `realtime.messages`, unless that is a superuser.
    pub(super) messages_owner: Option<String>,
    /// It is BYPASSRLS by which the login is above them.
    pub(super) messages_by_bypass: bool,
    pub(super) missing_publications: Vec<String>,
    /// Milliseconds that the server is ahead of us.
    #[serde(skip)]
    pub(super) ahead_ms: i64,
    /// How wrong `ahead_ms` may be.
    #[serde(skip)]
    pub(super) doubt_ms: i64,
}

/// A place where somebody turned `synchronous_commit` off.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Asynchronous {
    pub(super) role: Option<String>,
    pub(super) database: Option<String>,
}

const SQL: &str = "select json_build_object( \
    'version', current_setting('server_version_num')::int, 'version_name', current_setting('server_version'), \
    'standby', pg_is_in_recovery(), 'encoding', current_setting('server_encoding'), \
    'wal_level', current_setting('wal_level'), \
    'max_slots', current_setting('max_replication_slots')::int, \
    'used_slots', (select count(*) from pg_catalog.pg_replication_slots), \
    'max_senders', current_setting('max_wal_senders')::int, \
    'used_senders', (select count(*) from pg_catalog.pg_stat_get_wal_senders()), \
    'max_connections', current_setting('max_connections')::int, \
    'reserved_connections', current_setting('superuser_reserved_connections')::int \
        + coalesce(current_setting('reserved_connections', true)::int, 0), \
    'used_connections', (select coalesce(sum(numbackends), 0) from pg_catalog.pg_stat_database), \
    'slot_keep_mb', (select setting::bigint from pg_catalog.pg_settings where name = 'max_slot_wal_keep_size'), \
    'idle_slot_timeout', nullif(current_setting('idle_replication_slot_timeout', true), '0'), \
    'synchronous_commit', current_setting('synchronous_commit'), \
    'wal_writer_delay_ms', (select setting::bigint from pg_catalog.pg_settings where name = 'wal_writer_delay'), \
    'asynchronous', (select coalesce(json_agg(json_build_object('role', r.rolname, 'database', d.datname)), '[]') \
        from pg_catalog.pg_db_role_setting s left join pg_catalog.pg_roles r on r.oid = s.setrole \
        left join pg_catalog.pg_database d on d.oid = s.setdatabase \
        where (d.datname is null or d.datname = current_database()) and 'synchronous_commit=off' = any (s.setconfig)), \
    'ssl', current_setting('ssl')::bool, \
    'encrypted', coalesce((select ssl from pg_catalog.pg_stat_ssl where pid = pg_backend_pid()), false), \
    'statement_timeout', current_setting('statement_timeout'), 'date_style', current_setting('DateStyle'), \
    'now_ms', (extract(epoch from clock_timestamp()) * 1000)::bigint, \
    'login', session_user, 'superuser', me.rolsuper, 'bypass', me.rolbypassrls, \
    'replication', me.rolsuper or me.rolreplication or exists (select from pg_catalog.pg_roles \
        where rolname = 'rds_replication' and pg_has_role(oid, 'member')), \
    'connection_limit', me.rolconnlimit, \
    'database', current_database(), \
    'may_create', has_database_privilege(current_database(), 'CREATE'), \
    'has_schema', exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
        where n.nspname = 'rowcast' and c.relname = 'migrations'), \
    'messages_owner', (select r.rolname from pg_catalog.pg_class c join pg_catalog.pg_roles r on r.oid = c.relowner \
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace where n.nspname = 'realtime' and c.relname = 'messages' and not r.rolsuper), \
    'messages_by_bypass', me.rolbypassrls and exists (select from pg_catalog.pg_class c \
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace where n.nspname = 'realtime' and c.relname = 'messages' \
        and has_table_privilege(c.oid, 'INSERT') and not pg_has_role(c.relowner, 'USAGE')), \
    'missing_publications', (select coalesce(json_agg(name order by place), '[]') \
        from unnest($1::text[]) with ordinality as wanted (name, place) \
        where not exists (select from pg_catalog.pg_publication where pubname = name)) \
    )::text from pg_catalog.pg_roles me where me.rolname = session_user";

impl Facts {
    pub(super) async fn read(client: &Client, config: &Config, clock: &Clock) -> Result<Facts, Unreadable> {
        let publications = config.stream_publications();
        // Prepared before, so that the clock is read around one round trip.
        let statement = client.prepare(SQL).await?;
        let before = clock.unix_millis();
        let row = client.query_one(&statement, &[&publications]).await?;
        let after = clock.unix_millis();
        let text: &str = row.try_get(0)?;
        let mut facts: Facts = serde_json::from_str(text)?;
        facts.doubt_ms = (after - before) / 2 + 1;
        facts.ahead_ms = facts.now_ms - (before + (after - before) / 2);
        Ok(facts)
    }
}
