//! Postgres's side: where a round's tables are made, and what it answers about them.
//!
//! A table of all images side by side has the policies, grants and columns of the published one. What a subscriber may see
//! of it, by a real SELECT as his role with his claims, is the truth about every image at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rowcast::catalog::{self, Catalog, Wanted};
use rowcast::change::{Tuple, Value};
use rowcast::filter::Validator;
use rowcast::metrics::Metrics;
use rowcast::pg::PgConfig;
use rowcast::policy::{AskConfig, Asker};
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use super::claims::{ROLES, Who};
use super::column::TYPES;
use super::filters::{Condition, Filter};
use super::policies::ACL;
use super::round::Round;
use crate::support::TestPg;

/// What an SQL statement said, or the SQLSTATE.
type Answer<T> = Result<T, String>;

/// Whether a subscriber sees an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    Yes,
    No,
    Raises,
}

pub(super) struct Stage {
    client: Client,
    pub(super) validator: Validator,
    pub(super) asker: Asker,
    tables: u32,
    // Dropped last.
    pub(super) pg: TestPg,
}

/// What Postgres says of a round.
pub(super) struct Truth {
    pub(super) name: String,
    pub(super) catalog: Catalog,
    /// As the stream would send them.
    pub(super) images: Vec<Tuple>,
    /// `to_jsonb` of each value, by image and column.
    pub(super) json: Vec<Vec<String>>,
    /// By role, for each column.
    pub(super) readable: BTreeMap<String, Vec<bool>>,
    /// By subscriber and image.
    pub(super) seen: Vec<Vec<Seen>>,
}

/// Types, roles and tables that all rounds need.
fn setup() -> String {
    format!(
        "create role clerk nologin; grant usage on schema public, auth to clerk;
         {TYPES} {ACL}"
    )
}

impl Stage {
    /// In a database whose default collation is ICU's, where the server can have one.
    pub(super) async fn new() -> Stage {
        let pg = TestPg::start().await;
        if pg.major() < 15 {
            return Stage::on(pg, "postgres").await;
        }
        let template = "template0 locale_provider icu icu_locale 'en-US' locale 'C.UTF-8' encoding 'UTF8'";
        pg.exec(&format!("create database oracle template {template}")).await;
        Stage::on(pg, "oracle").await
    }

    /// In the database that relays work in.
    pub(super) async fn for_relay() -> Stage {
        Stage::on(TestPg::start().await, "postgres").await
    }

    async fn on(pg: TestPg, database: &str) -> Stage {
        let url = format!("postgres://postgres:test@127.0.0.1:{}/{database}", pg.port());
        let config = PgConfig::from_url(&url).expect("a good URL");
        let mut client = config.connect().await.expect("a connection");
        rowcast::migrate::up(&mut client).await.expect("the migrations run");
        client.batch_execute(&setup()).await.expect("the setup runs");
        let (deadline, statement_timeout) = (Duration::from_secs(20), Duration::from_secs(10));
        let ask = AskConfig { deadline, statement_timeout, ..AskConfig::default() };
        let asker = Asker::new(config.pool().expect("a pool"), ask, Arc::new(Metrics::new()));
        let validator = Validator::new(config.pool().expect("a pool"), statement_timeout);
        Stage { client, validator, asker, tables: 0, pg }
    }

    /// Makes the round's tables and asks everything that is known beforehand.
    pub(super) async fn begin(&mut self, round: &Round) -> Answer<Truth> {
        self.tables += 1;
        let name = format!("t{}", self.tables);
        let images = format!("{name}_images");
        let all: Vec<_> = round.rows.iter().collect();
        let table = &round.table;
        let sql = table.create(&name) + &table.create_images(&images) + &table.insert(&images, &all);
        self.client.batch_execute(&sql).await.map_err(|error| format!("{}\n{sql}", rowcast::error::chain(&error)))?;
        let roles: BTreeSet<String> = ROLES.map(str::to_owned).into();
        let wanted = Wanted { publications: vec!["supabase_realtime".into()], others: Vec::new(), roles };
        let catalog = catalog::read(&mut self.client, &wanted).await.map_err(|error| rowcast::error::chain(&error))?;
        let columns: Vec<String> = table.columns.iter().map(|c| c.quoted()).collect();
        let rows = self.rows(&format!("select {} from {images} order by n", columns.join(", "))).await?;
        let tuple = |row: &SimpleQueryRow| {
            let value = |i| row.get(i).map_or(Value::Null, |text| Value::Text(text.as_bytes()));
            Tuple::from_values((0..columns.len()).map(value))
        };
        let tuples = rows.iter().map(tuple).collect();
        let jsons: Vec<String> = table.columns.iter().map(|c| format!("{}::text", c.kind.json(&c.quoted()))).collect();
        let rows = self.rows(&format!("select {} from {images} order by n", jsons.join(", "))).await?;
        let json = |row: &SimpleQueryRow| (0..columns.len()).map(|i| row.get(i).unwrap_or("null").to_owned()).collect();
        let json = rows.iter().map(json).collect();
        let readable = self.readable(&images, &columns.len()).await?;
        let mut seen = Vec::new();
        for who in &round.who {
            seen.push(self.seen(round, &images, who, &readable[who.role()]).await?);
        }
        Ok(Truth { name, catalog, images: tuples, json, readable, seen })
    }

    pub(super) async fn end(&self, truth: &Truth) {
        let name = &truth.name;
        self.client.batch_execute(&format!("drop table {name}, {name}_images")).await.expect("the tables go");
    }

    async fn rows(&self, sql: &str) -> Answer<Vec<SimpleQueryRow>> {
        rows(&self.client, sql).await.map_err(|state| format!("{state}\n{sql}"))
    }

    async fn readable(&self, table: &str, count: &usize) -> Answer<BTreeMap<String, Vec<bool>>> {
        let mut readable = BTreeMap::new();
        for role in ROLES {
            let sql = format!(
                "select has_column_privilege('{role}', attrelid, attnum, 'select') from pg_attribute
                 where attrelid = '{table}'::regclass and attnum > 0 order by attnum"
            );
            let rows = self.rows(&sql).await?;
            assert_eq!(rows.len(), *count);
            readable.insert(role.to_owned(), rows.iter().map(|row| row.get(0) == Some("t")).collect());
        }
        Ok(readable)
    }

    /// A SELECT of everything that the role may read; row by row if it raises.
    async fn seen(&self, round: &Round, images: &str, who: &Who, readable: &[bool]) -> Answer<Vec<Seen>> {
        let columns = round.table.columns.iter().zip(readable).filter(|(_, may)| **may).map(|(c, _)| c.quoted());
        let columns = columns.collect::<Vec<_>>().join(", ");
        let select = |which: &str| format!("{}select {columns} from public.{images} {which};rollback", assume(who));
        let count = round.rows.len();
        let mut seen = vec![Seen::No; count];
        let numbers = |rows: &[SimpleQueryRow]| -> Vec<usize> {
            // Those of the settings come first, and have other columns.
            let numbers = rows.iter().filter(|row| row.columns().iter().any(|c| c.name() == "n"));
            numbers.filter_map(|row| row.get("n")?.parse().ok()).collect()
        };
        match rows(&self.client, &select("")).await {
            Ok(rows) => numbers(&rows).into_iter().for_each(|n| seen[n] = Seen::Yes),
            Err(_) => {
                self.client.batch_execute("rollback").await.expect("it ends");
                for (n, seen) in seen.iter_mut().enumerate() {
                    *seen = match rows(&self.client, &select(&format!("where n = {n}"))).await {
                        Ok(rows) if numbers(&rows).is_empty() => Seen::No,
                        Ok(_) => Seen::Yes,
                        Err(_) => {
                            self.client.batch_execute("rollback").await.expect("it ends");
                            Seen::Raises
                        }
                    };
                }
            }
        }
        Ok(seen)
    }

    /// For each filter, which images match it.
    pub(super) async fn matching(&self, round: &Round, truth: &Truth, filters: &[&Filter]) -> Vec<Answer<Vec<bool>>> {
        let select = |filters: &[&Filter]| {
            let columns: Vec<String> = filters.iter().map(|filter| filter.sql(&round.table)).collect();
            format!("select {} from {}_images order by n", columns.join(",\n  "), truth.name)
        };
        let column = |rows: &[SimpleQueryRow], i: usize| rows.iter().map(|row| row.get(i) == Some("t")).collect();
        if filters.is_empty() {
            return Vec::new();
        }
        if let Ok(rows) = rows(&self.client, &select(filters)).await {
            return (0..filters.len()).map(|i| Ok(column(&rows, i))).collect();
        }
        let mut answers = Vec::new();
        for filter in filters {
            answers.push(rows(&self.client, &select(&[filter])).await.map(|rows| column(&rows, 0)));
        }
        answers
    }

    /// Whether Postgres refuses one of its conditions as well, with the same code, whatever the others keep a SELECT from reaching;
    /// else what it says instead.
    pub(super) async fn refuses(
        &self,
        round: &Round,
        truth: &Truth,
        filter: &Filter,
        sqlstate: &str,
    ) -> Result<(), String> {
        let mut states = Vec::new();
        for condition in &filter.0 {
            match self.condition(round, truth, condition).await {
                // Of a literal that is too long for a domain: an explicit cast would cut it.
                Ok(_) if sqlstate == "22001" => return Ok(()),
                // A pattern that ends with an escape is wrong for values only that reach its end.
                Ok(_) if sqlstate == "22025" && condition.ends_with_escape() => return Ok(()),
                Ok(_) => {}
                // Ours are raised by a function, so the code says nothing.
                Err(state) if state == sqlstate || sqlstate == "P0001" => return Ok(()),
                Err(state) => states.push(state),
            }
        }
        Err(if states.is_empty() { "Postgres takes it".into() } else { format!("Postgres says {states:?}") })
    }

    /// What Postgres says of one condition.
    async fn condition(&self, round: &Round, truth: &Truth, condition: &Condition) -> Answer<Vec<bool>> {
        let filter = Filter(vec![condition.clone()]);
        self.matching(round, truth, &[&filter]).await.remove(0)
    }
}

async fn rows(client: &Client, sql: &str) -> Answer<Vec<SimpleQueryRow>> {
    let messages = client.simple_query(sql).await;
    let messages =
        messages.map_err(|error| error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned()))?;
    let row = |message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None };
    Ok(messages.into_iter().filter_map(row).collect())
}

/// Begins a transaction as the subscriber.
pub(super) fn assume(who: &Who) -> String {
    let set = |name: &str, value: &str| format!("set_config('{name}', {}, true)", super::column::quote(value));
    let principal = &who.principal;
    format!(
        "begin; select {}, {}, {}, {};\n",
        set("request.jwt.claims", &principal.claims_json),
        set("request.jwt.claim.sub", principal.claims.get("sub").and_then(|sub| sub.as_str()).unwrap_or("")),
        set("request.jwt.claim.role", who.role()),
        set("role", who.role())
    )
}
