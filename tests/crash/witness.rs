//! A second slot on the same publication: what was committed, in commit order.

use rowcast::change::Lsn;
use tokio_postgres::Client;

use super::Committed;
use crate::support::TestPg;

const SLOT: &str = "witness";
/// Messages fetched at a time; a transaction is never cut.
const BATCH: i32 = 2000;

/// Reads as much as it is asked to, and remembers all.
pub(super) struct Witness {
    client: Client,
    committed: Vec<Committed>,
}

impl Witness {
    /// From now on.
    pub(super) async fn start(pg: &TestPg) -> Witness {
        let client = pg.client().await;
        let sql = "select pg_create_logical_replication_slot($1, 'pgoutput')";
        client.query_one(sql, &[&SLOT]).await.expect("a slot");
        Witness { client, committed: Vec::new() }
    }

    /// All transactions with rows of table `steps` up to now.
    pub(super) async fn committed(&mut self) -> &[Committed] {
        // Without an end, it would run after the writers.
        let now: String = self.client.query_one("select pg_current_wal_lsn()::text", &[]).await.expect("a row").get(0);
        loop {
            let sql = "select data from pg_logical_slot_get_binary_changes($1, $2::text::pg_lsn, $3, \
                       'proto_version', '1', 'publication_names', 'supabase_realtime')";
            let rows = self.client.query(sql, &[&SLOT, &now, &BATCH]).await.expect("changes");
            if rows.is_empty() {
                return &self.committed;
            }
            let mut open: Option<Vec<String>> = None;
            for row in &rows {
                let message: &[u8] = row.get(0);
                match message[0] {
                    b'B' => open = Some(Vec::new()),
                    b'I' => open.as_mut().expect("inside a transaction").push(first_column(message)),
                    b'C' => {
                        // Flags, the commit's LSN, its end.
                        let end = Lsn(u64::from_be_bytes(message[10..18].try_into().expect("eight bytes")));
                        let ids = open.take().expect("inside a transaction");
                        self.committed.extend((!ids.is_empty()).then_some(Committed { end, ids }));
                    }
                    b'R' | b'Y' | b'O' => {}
                    other => panic!("a message of kind {}", char::from(other)),
                }
            }
            assert!(open.is_none(), "a transaction was cut");
        }
    }
}

/// Of an Insert: relation, `N`, number of columns; the first is the id.
fn first_column(message: &[u8]) -> String {
    assert_eq!((message[5], message[8]), (b'N', b't'), "a text in the first column");
    let length = u32::from_be_bytes(message[9..13].try_into().expect("four bytes")) as usize;
    String::from_utf8(message[13..13 + length].to_vec()).expect("UTF-8")
}
