//! The types that every database has under the same oids, known without a catalog.

use super::{TypeKind, Types};

/// Oids of types that code elsewhere treats in a way of its own.
pub mod oid {
    #![expect(missing_docs, reason = "each is the oid of the type of its name")]
    pub const BOOL: u32 = 16;
    pub const BYTEA: u32 = 17;
    pub const CHAR: u32 = 18;
    pub const NAME: u32 = 19;
    pub const INT8: u32 = 20;
    pub const INT2: u32 = 21;
    pub const INT2VECTOR: u32 = 22;
    pub const INT4: u32 = 23;
    pub const TEXT: u32 = 25;
    pub const OID: u32 = 26;
    pub const OIDVECTOR: u32 = 30;
    pub const JSON: u32 = 114;
    pub const CIDR: u32 = 650;
    pub const FLOAT4: u32 = 700;
    pub const FLOAT8: u32 = 701;
    pub const MACADDR8: u32 = 774;
    pub const MACADDR: u32 = 829;
    pub const INET: u32 = 869;
    pub const BPCHAR: u32 = 1042;
    pub const VARCHAR: u32 = 1043;
    pub const DATE: u32 = 1082;
    pub const TIME: u32 = 1083;
    pub const TIMESTAMP: u32 = 1114;
    pub const TIMESTAMPTZ: u32 = 1184;
    pub const BIT: u32 = 1560;
    pub const VARBIT: u32 = 1562;
    pub const NUMERIC: u32 = 1700;
    pub const UUID: u32 = 2950;
    pub const PG_LSN: u32 = 3220;
    pub const JSONB: u32 = 3802;
}

/// (oid, `typname`, name and oid of its array type); `pg_type.dat` never changes these.
#[rustfmt::skip]
const BUILTIN: &[(u32, &str, &str, u32)] = &[
    (16, "bool", "_bool", 1000), (17, "bytea", "_bytea", 1001), (18, "char", "_char", 1002), (19, "name", "_name", 1003),
    (20, "int8", "_int8", 1016), (21, "int2", "_int2", 1005), (22, "int2vector", "_int2vector", 1006),
    (23, "int4", "_int4", 1007), (24, "regproc", "_regproc", 1008), (25, "text", "_text", 1009), (26, "oid", "_oid", 1028),
    (27, "tid", "_tid", 1010), (28, "xid", "_xid", 1011), (29, "cid", "_cid", 1012), (30, "oidvector", "_oidvector", 1013),
    (114, "json", "_json", 199), (142, "xml", "_xml", 143), (600, "point", "_point", 1017), (601, "lseg", "_lseg", 1018),
    (602, "path", "_path", 1019), (603, "box", "_box", 1020), (604, "polygon", "_polygon", 1027), (628, "line", "_line", 629),
    (650, "cidr", "_cidr", 651), (700, "float4", "_float4", 1021), (701, "float8", "_float8", 1022),
    (718, "circle", "_circle", 719), (774, "macaddr8", "_macaddr8", 775), (790, "money", "_money", 791),
    (829, "macaddr", "_macaddr", 1040), (869, "inet", "_inet", 1041), (1033, "aclitem", "_aclitem", 1034),
    (1042, "bpchar", "_bpchar", 1014), (1043, "varchar", "_varchar", 1015), (1082, "date", "_date", 1182),
    (1083, "time", "_time", 1183), (1114, "timestamp", "_timestamp", 1115), (1184, "timestamptz", "_timestamptz", 1185),
    (1186, "interval", "_interval", 1187), (1266, "timetz", "_timetz", 1270), (1560, "bit", "_bit", 1561),
    (1562, "varbit", "_varbit", 1563), (1700, "numeric", "_numeric", 1231), (1790, "refcursor", "_refcursor", 2201),
    (2202, "regprocedure", "_regprocedure", 2207), (2203, "regoper", "_regoper", 2208),
    (2204, "regoperator", "_regoperator", 2209), (2205, "regclass", "_regclass", 2210), (2206, "regtype", "_regtype", 2211),
    (2950, "uuid", "_uuid", 2951), (2970, "txid_snapshot", "_txid_snapshot", 2949), (3220, "pg_lsn", "_pg_lsn", 3221),
    (3614, "tsvector", "_tsvector", 3643), (3615, "tsquery", "_tsquery", 3645), (3734, "regconfig", "_regconfig", 3735),
    (3769, "regdictionary", "_regdictionary", 3770), (3802, "jsonb", "_jsonb", 3807),
    (3904, "int4range", "_int4range", 3905), (3906, "numrange", "_numrange", 3907), (3908, "tsrange", "_tsrange", 3909),
    (3910, "tstzrange", "_tstzrange", 3911), (3912, "daterange", "_daterange", 3913), (3926, "int8range", "_int8range", 3927),
    (4072, "jsonpath", "_jsonpath", 4073), (4089, "regnamespace", "_regnamespace", 4090), (4096, "regrole", "_regrole", 4097),
    (4191, "regcollation", "_regcollation", 4192), (4451, "int4multirange", "_int4multirange", 6150),
    (4532, "nummultirange", "_nummultirange", 6151), (4533, "tsmultirange", "_tsmultirange", 6152),
    (4534, "tstzmultirange", "_tstzmultirange", 6153), (4535, "datemultirange", "_datemultirange", 6155),
    (4536, "int8multirange", "_int8multirange", 6157), (5038, "pg_snapshot", "_pg_snapshot", 5039), (5069, "xid8", "_xid8", 271),
];

/// Element and delimiter of a built-in array type.
pub(super) fn array_of(oid: u32) -> Option<(u32, u8)> {
    let (element, ..) = BUILTIN.iter().find(|(_, _, _, array)| *array == oid)?;
    Some((*element, if *element == 603 { b';' } else { b',' }))
}

/// The array type over a built-in type.
pub fn array_over(oid: u32) -> Option<u32> {
    BUILTIN.iter().find(|(own, ..)| *own == oid).map(|(_, _, _, array)| *array)
}

/// How the type is built, from the catalog if it is there, otherwise from what is built in.
pub(super) fn kind_of(types: &Types, oid: u32) -> TypeKind {
    match types.get(oid) {
        Some(info) => info.kind.clone(),
        None => match array_of(oid) {
            Some((element, delimiter)) => TypeKind::Array { element, delimiter },
            None => TypeKind::Base,
        },
    }
}

/// The type of the elements of an array whose text divides them by commas; `None` for any other type.
pub fn element_of(types: &Types, oid: u32) -> Option<u32> {
    match kind_of(types, oid) {
        TypeKind::Array { element, delimiter: b',' } => Some(element),
        _ => None,
    }
}

/// `pg_type.typname`, as clients see it in `columns[].type`; `unknown` if neither the catalog nor we know the type.
pub fn type_name(types: &Types, oid: u32) -> &str {
    if let Some(info) = types.get(oid) {
        return &info.name;
    }
    let known = BUILTIN.iter().find_map(|(own, name, array_name, array)| match oid {
        oid if oid == *own => Some(*name),
        oid if oid == *array => Some(*array_name),
        _ => None,
    });
    known.unwrap_or("unknown")
}

/// Whether a value's text under one type is the text of the same value under the other, with the same equality and order.
/// So a filter that was checked against `int4` holds when the column has become `int8`.
pub fn interchangeable(a: u32, b: u32) -> bool {
    let integer = |oid| matches!(oid, oid::INT2 | oid::INT4 | oid::INT8);
    let text = |oid| matches!(oid, oid::TEXT | oid::VARCHAR);
    a == b || (integer(a) && integer(b)) || (text(a) && text(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_types_have_their_names_without_a_catalog() {
        let types = Types::default();
        for (oid, name) in [(23, "int4"), (1007, "_int4"), (3802, "jsonb"), (1184, "timestamptz"), (99_999, "unknown")]
        {
            assert_eq!(type_name(&types, oid), name);
        }
        assert_eq!(array_of(1020), Some((603, b';')));
        assert_eq!(array_of(0), None);
    }
}
