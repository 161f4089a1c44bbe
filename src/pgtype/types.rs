//! What a type is, as far as writing and comparing its text needs to know.

use std::collections::HashMap;
use std::sync::Arc;

/// How a type is built (`pg_type.typtype`, `typelem`, `typbasetype`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TypeKind {
    /// A base type, a pseudo-type, or one we know nothing more of.
    Base,
    /// An array; the element's oid and the delimiter between elements (`,`; `;` for box).
    Array {
        /// `pg_type.typelem`.
        element: u32,
        /// `pg_type.typdelim` of the element.
        delimiter: u8,
    },
    /// A domain over another type.
    Domain {
        /// `pg_type.typbasetype`.
        base: u32,
    },
    /// An enum.
    Enum,
    /// A range or multirange.
    Range,
    /// A composite; its attributes' names and types in order.
    Composite {
        /// (`attname`, `atttypid`), dropped attributes left out.
        attributes: Vec<(String, u32)>,
    },
}

/// One type of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeInfo {
    /// `pg_type.oid`.
    pub oid: u32,
    /// `pg_namespace.nspname`.
    pub schema: String,
    /// `pg_type.typname`: `int4`, `_text`, an enum's own name; this is what clients see in `columns[].type`.
    pub name: String,
    /// How it is built.
    pub kind: TypeKind,
}

/// The types of a database by oid, as of one catalog read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Types {
    by_oid: HashMap<u32, Arc<TypeInfo>>,
}

impl Types {
    /// The type of this oid.
    pub fn get(&self, oid: u32) -> Option<&Arc<TypeInfo>> {
        self.by_oid.get(&oid)
    }

    /// The type of this name.
    pub fn find(&self, schema: &str, name: &str) -> Option<&Arc<TypeInfo>> {
        self.by_oid.values().find(|info| info.schema == schema && info.name == name)
    }

    /// Follows domains down to the type whose output the text is; stops at an unknown type, which is returned as it is.
    pub fn base_of(&self, oid: u32) -> u32 {
        let mut oid = oid;
        // A domain chain is finite in any real catalog; the bound holds for a corrupt one.
        for _ in 0..32 {
            match self.by_oid.get(&oid).map(|t| &t.kind) {
                Some(TypeKind::Domain { base }) => oid = *base,
                _ => break,
            }
        }
        oid
    }
}

impl FromIterator<TypeInfo> for Types {
    fn from_iter<I: IntoIterator<Item = TypeInfo>>(types: I) -> Types {
        Types { by_oid: types.into_iter().map(|t| (t.oid, Arc::new(t))).collect() }
    }
}
