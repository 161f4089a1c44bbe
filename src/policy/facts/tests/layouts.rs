//! Which tables can be facts, and what is kept of them.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::{Column, OldImage, Published, Streamed, Table};
use crate::change::ReplicaIdentity;
use crate::pgtype::Types;
use crate::policy::facts::{FactKey, Layout};

/// (id uuid primary key, team_id uuid, user_id uuid, meta json, made text generated).
fn table() -> Table {
    let column = |(at, (name, type_oid)): (usize, &(&str, u32))| Column {
        number: at as i16 + 1,
        name: (*name).to_owned(),
        type_oid: *type_oid,
        type_modifier: -1,
        collation_deterministic: true,
        collation: None,
        generated: *name == "made",
        has_default: false,
        not_null: true,
    };
    let columns = [("id", 2950), ("team_id", 2950), ("user_id", 2950), ("meta", 114), ("made", 25)];
    Table {
        oid: 1,
        schema: "public".into(),
        name: "members".into(),
        columns: columns.iter().enumerate().map(column).collect(),
        primary_key: vec!["id".into()],
        identity: ReplicaIdentity::Default,
        identity_columns: vec!["id".into()],
        old_image: OldImage::AsSent,
        row_security: false,
        force_row_security: false,
        owner: "postgres".into(),
        policies: Vec::new(),
        published: None,
        is_partitioned: false,
        ancestors: Vec::new(),
        access: BTreeMap::new(),
        leaves: vec![1],
        streamed: Streamed::default(),
        storage: 0,
        loadable: true,
        ours: true,
    }
}

fn kept(table: &Table, wanted: &[i16]) -> Result<(FactKey, Vec<String>), String> {
    let layout = Layout::of(table, &Types::default(), &wanted.iter().copied().collect::<BTreeSet<_>>())?;
    Ok((layout.key, layout.columns.into_iter().map(|column| column.name).collect()))
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn the_key_is_what_old_rows_have_for_sure() {
    let plain = table();
    assert_eq!(kept(&plain, &[3, 2]), Ok((FactKey::Columns(1), names(&["id", "team_id", "user_id"]))));
    let full = Table { identity: ReplicaIdentity::Full, ..table() };
    assert_eq!(kept(&full, &[3, 2]), Ok((FactKey::Whole, names(&["team_id", "user_id"]))));
    // Some partitions log the primary key only, whatever their root says.
    let mixed = Table { old_image: OldImage::PrimaryKey, identity: ReplicaIdentity::Full, ..table() };
    assert_eq!(kept(&mixed, &[3]), Ok((FactKey::Columns(1), names(&["id", "user_id"]))));
    let by_index =
        Table { identity: ReplicaIdentity::Index, identity_columns: names(&["user_id", "team_id"]), ..table() };
    assert_eq!(kept(&by_index, &[2]), Ok((FactKey::Columns(2), names(&["user_id", "team_id"]))));
}

#[test]
fn a_table_that_can_t_be_followed_says_why() {
    let says = |table: Table, wanted: &[i16], why: &str| {
        let said = kept(&table, wanted).expect_err("it can't be one");
        assert!(said.contains(why), "{said}");
    };
    says(table(), &[4], "values of column meta can't be compared");
    says(table(), &[5], "column made is generated");
    says(table(), &[9], "column number 9 does not exist");
    says(Table { primary_key: Vec::new(), ..table() }, &[2], "no primary key");
    says(Table { identity: ReplicaIdentity::Nothing, ..table() }, &[2], "no replica identity");
    says(Table { old_image: OldImage::Nothing, ..table() }, &[2], "log different columns");
    let published = Some(Published { via_root: true, ..Published::default() });
    says(Table { is_partitioned: true, published, ..table() }, &[2], "published via its root");
}
