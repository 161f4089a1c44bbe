//! The stock JavaScript and Python clients, unmodified, over everything that they can do: what applications write, and what
//! their callbacks are given. JavaScript speaks both versions of the protocol, Python knows version 1 only.

mod broadcast;
mod channels;
mod filters;
mod presence;
mod private;
mod refusals;
mod replay;
mod restart;
mod tokens;

use serde_json::{Value, json};

use crate::support::sdk::SdkPhone;
use crate::support::token::{ALICE, BOB};
use crate::support::{Change, Stage, Stock};

const STOCKS: [Stock; 3] = [Stock::JavaScript, Stock::JavaScriptV1, Stock::Python];

/// Tasks that everybody may read, and notes that are their owner's.
const TABLES: &str = "
    create table public.tasks (id int primary key, title text, rank int, done boolean, due timestamptz);
    create table public.notes (id int primary key, user_id uuid, note text);
    alter table public.tasks replica identity full;
    alter table public.notes replica identity full;
    alter table public.notes enable row level security;
    create policy own on public.notes for select to authenticated using (user_id = auth.uid());
    grant select on public.tasks, public.notes to authenticated;
    create table public.unpublished (id int primary key);
    grant select on public.unpublished to authenticated;
    alter publication supabase_realtime add table public.tasks, public.notes;";

/// One entry for a table, with more keys.
fn entry(event: &str, table: &str, rest: &Value) -> Value {
    let mut entry = json!({ "event": event, "schema": "public", "table": table });
    entry.as_object_mut().expect("an object").extend(rest.as_object().expect("an object").clone());
    entry
}

/// One note of each user.
async fn write_notes(stage: &Stage) {
    stage.exec(&format!("insert into notes values (1, '{ALICE}', 'a'), (2, '{BOB}', 'b')")).await;
    stage.exec("update notes set note = note || '!'").await;
    stage.exec("delete from notes").await;
}

/// The callbacks that were called, by the index of their entry, with the kind of change and the row's id.
fn calls(changes: &[Change]) -> Vec<String> {
    let texts = crate::support::summary(changes, "id");
    changes.iter().zip(texts).map(|(change, text)| format!("{}: {text}", change.ids[0])).collect()
}

/// Everything before the mark, with the calls of one change in the order of their entries.
async fn calls_before(phone: &mut SdkPhone, mark: &str) -> Vec<String> {
    let mut changes = phone.changes_before(mark).await;
    // A stable sort within each change: what the application registered first isn't always called first.
    let mut start = 0;
    for end in 1..=changes.len() {
        if end == changes.len() || changes[end].data != changes[start].data {
            changes[start..end].sort_by_key(|change| change.ids[0]);
            start = end;
        }
    }
    calls(&changes)
}
