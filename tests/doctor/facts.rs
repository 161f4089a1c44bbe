//! What keeps tables out of memory that policies look into: found, and gone after its own SQL.

use rowcast::doctor::Severity::Note;

use super::Clinic;
use super::mended::Cure::{Own, Todo};
use super::mended::{Case, PUBLISH, READ, RLS, TABLE, all, case};

const FACTS: &str = "create table m (t_id int, user_id uuid, primary key (t_id, user_id))";
const LOOKS: &str = "create policy team on t for select to authenticated using (exists (select 1 from m where m.t_id = t.id and m.user_id = auth.uid()))";

/// Tables that policies look into.
pub(super) const FACT_TABLES: &[Case] = &[
    case(
        ("facts_load", Note, "table public.m"),
        &[
            TABLE,
            READ,
            RLS,
            FACTS,
            "grant select on m to authenticated",
            "alter table m enable row level security",
            "create policy all_of_it on m for select using (true)",
            LOOKS,
            PUBLISH,
            "alter role relay nobypassrls",
        ],
        Own,
        &[],
    ),
    // Readable now, and its place in the publication is missing.
    case(
        ("facts_publication", Note, "table public.m"),
        &[],
        Own,
        &[
            "do $$ begin if not exists (select from pg_publication_tables where pubname = 'rowcast_facts' and tablename = 'm') \
           then raise 'it was not added'; end if; end $$",
        ],
    ),
    case(
        ("facts_column_list", Note, "table public.m"),
        &[
            "alter publication rowcast_facts drop table m",
            "alter table m add column rank text",
            "alter policy team on t using (exists (select 1 from m where m.t_id = t.id and m.user_id = auth.uid() and m.rank = 'a'))",
            "alter publication supabase_realtime add table m (t_id, user_id)",
        ],
        Todo("Publish all of its columns there", "alter publication supabase_realtime drop table m"),
        &["drop table t, m"],
    ),
    case(
        ("facts_identity", Note, "table public.m"),
        &[
            TABLE,
            READ,
            RLS,
            "create table m (t_id int, user_id uuid)",
            "grant select on m to authenticated, relay",
            LOOKS,
            PUBLISH,
        ],
        Own,
        &[],
    ),
    case(
        ("facts_stream", Note, "table public.m"),
        &["create table heir () inherits (m)"],
        Todo("a plain table", "drop table heir"),
        &["drop table t, m"],
    ),
    case(
        ("facts_identity", Note, "table public.m"),
        &[
            TABLE,
            READ,
            RLS,
            "create table m (t_id int, user_id uuid, primary key (t_id, user_id)) partition by list (t_id)",
            "create table m1 (user_id uuid not null, t_id int not null)",
            "alter table m1 replica identity nothing",
            "alter table m attach partition m1 for values in (1)",
            "grant select on m to authenticated, relay",
            LOOKS,
            PUBLISH,
        ],
        Todo("each of its partitions", "alter table m replica identity full; alter table m1 replica identity full"),
        &[],
    ),
    case(
        ("facts_via_root", Note, "table public.m"),
        &[
            "alter publication supabase_realtime set (publish_via_partition_root = true)",
            "alter publication supabase_realtime add table m",
        ],
        Todo(
            "publish_via_partition_root",
            "alter publication supabase_realtime set (publish_via_partition_root = false)",
        ),
        &["drop table t, m"],
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_facts_out_of_memory_is_found_and_mended_by_its_own_sql() {
    all(Clinic::healthy().await, FACT_TABLES).await;
}
