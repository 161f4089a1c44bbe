//! Filter text to conditions (`protocol.md` §5.2).
//!
//! The text comes from a phone: one pass, no recursion, bounded in length and in number of conditions.

use super::{FilterError, inspect};

/// The longest filter text. An `in` list of a hundred quoted uuids takes four thousand bytes.
pub const MAX_FILTER_BYTES: usize = 65_536;
/// The most conditions in one filter.
pub const MAX_CONDITIONS: usize = 100;

/// What a condition asks of its column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the language's own names; their meaning is the table of protocol.md §5.3")]
pub enum Operator {
    Eq,
    Neq,
    Lt,
    Lte,
    Gt,
    Gte,
    In,
    Like,
    Ilike,
    Is,
    Match,
    Imatch,
    IsDistinct,
}

impl Operator {
    pub(super) const ALL: [Operator; 13] = [
        Operator::Eq,
        Operator::Neq,
        Operator::Lt,
        Operator::Lte,
        Operator::Gt,
        Operator::Gte,
        Operator::In,
        Operator::Like,
        Operator::Ilike,
        Operator::Is,
        Operator::Match,
        Operator::Imatch,
        Operator::IsDistinct,
    ];

    /// As clients write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Operator::Eq => "eq",
            Operator::Neq => "neq",
            Operator::Lt => "lt",
            Operator::Lte => "lte",
            Operator::Gt => "gt",
            Operator::Gte => "gte",
            Operator::In => "in",
            Operator::Like => "like",
            Operator::Ilike => "ilike",
            Operator::Is => "is",
            Operator::Match => "match",
            Operator::Imatch => "imatch",
            Operator::IsDistinct => "isdistinct",
        }
    }

    fn parse(text: &str) -> Option<Operator> {
        Operator::ALL.into_iter().find(|op| op.as_str() == text)
    }
}

/// One segment of a filter. All of a filter's conditions must hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Condition {
    /// As written before the first `=`.
    pub column: String,
    /// What is asked.
    pub operator: Operator,
    /// Written with `not.`.
    pub negated: bool,
    /// Unquoted; of `in` a Postgres array literal, `{a,"b,c"}`.
    pub value: String,
}

/// Parses a filter. Empty or blank means no condition.
pub fn parse(text: &str) -> Result<Vec<Condition>, FilterError> {
    if text.len() > MAX_FILTER_BYTES {
        return Err(FilterError::Syntax(format!("filter is longer than {MAX_FILTER_BYTES} bytes")));
    }
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let mut conditions = Vec::new();
    for part in segments(text) {
        let part = part.trim();
        if part.is_empty() {
            let text = "filter must not contain empty segments (check for extra commas)";
            return Err(FilterError::Syntax(text.into()));
        }
        if conditions.len() == MAX_CONDITIONS {
            return Err(FilterError::Syntax(format!("filter has more than {MAX_CONDITIONS} conditions")));
        }
        conditions.push(condition(part)?);
    }
    Ok(conditions)
}

/// The text between commas that are outside parentheses and quotes. A quote opens only after `.`, `(` or `,`.
fn segments(text: &str) -> impl Iterator<Item = &str> {
    let bytes = text.as_bytes();
    let mut start = Some(0);
    std::iter::from_fn(move || {
        let from = start?;
        let (mut depth, mut quoted) = (0usize, false);
        let mut at = from;
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'\\' if quoted => at += 1,
                b'"' if quoted => quoted = false,
                _ if quoted => {}
                b'"' => quoted = at > 0 && matches!(bytes[at - 1], b'.' | b'(' | b','),
                b'(' => depth += 1,
                b')' => depth = depth.saturating_sub(1),
                b',' if depth == 0 => {
                    start = Some(at + 1);
                    return Some(&text[from..at]);
                }
                _ => {}
            }
            at += 1;
        }
        start = None;
        Some(&text[from..])
    })
}

fn condition(segment: &str) -> Result<Condition, FilterError> {
    let unparsable = |parts: &[&str]| FilterError::Syntax(inspect::strings(parts.iter().copied()));
    let (column, rest) = segment.split_once('=').ok_or_else(|| unparsable(&[segment]))?;
    let (rest, negated) = match rest.strip_prefix("not.") {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let (name, value) = rest.split_once('.').ok_or_else(|| unparsable(&[rest]))?;
    let operator = Operator::parse(name).ok_or_else(|| unparsable(&[name, value]))?;
    let value = match operator {
        Operator::In => {
            let inner = value.strip_prefix('(').and_then(|v| v.strip_suffix(')'));
            let inner =
                inner.ok_or_else(|| FilterError::Syntax("`in` filter value must be wrapped by parentheses".into()))?;
            format!("{{{inner}}}")
        }
        _ => unquote(value).unwrap_or_else(|| value.to_owned()),
    };
    Ok(Condition { column: column.to_owned(), operator, negated, value })
}

/// The content of a quoted string if the whole value is one.
fn unquote(value: &str) -> Option<String> {
    let mut out = String::with_capacity(value.len());
    let mut rest = value.strip_prefix('"')?.chars();
    loop {
        match rest.next()? {
            '"' => return rest.next().is_none().then_some(out),
            '\\' => out.push(rest.next()?),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain(text: &str) -> Vec<(String, &'static str, bool, String)> {
        let conditions = parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        conditions.into_iter().map(|c| (c.column, c.operator.as_str(), c.negated, c.value)).collect()
    }

    fn one(text: &str) -> (String, &'static str, bool, String) {
        let mut all = plain(text);
        assert_eq!(all.len(), 1, "{text}");
        all.remove(0)
    }

    #[test]
    fn each_operator_parses_plain_and_negated() {
        for operator in Operator::ALL {
            let value = if operator == Operator::In { "(1)" } else { "1" };
            let expected = if operator == Operator::In { "{1}" } else { "1" };
            for (prefix, negated) in [("", false), ("not.", true)] {
                let text = format!("a={prefix}{}.{value}", operator.as_str());
                assert_eq!(one(&text), ("a".into(), operator.as_str(), negated, expected.into()));
            }
        }
    }

    #[test]
    fn values_are_taken_as_written() {
        #[rustfmt::skip]
        let table = [
            ("id=eq.1", "id", "1"), ("  id=eq.1  ", "id", "1"), ("a b =eq.x", "a b ", "x"), ("a=eq.", "a", ""), ("=eq.1", "", "1"),
            (r#"note=eq."a,b""#, "note", "a,b"), (r#"note=eq."a\"b\\c""#, "note", r#"a"b\c"#),
            (r#"a=eq."abc"#, "a", r#""abc"#), (r#"a=eq."ab"cd"#, "a", r#""ab"cd"#), (r#"a=eq."ab\""#, "a", r#""ab\""#),
            ("a=eq.x.y=z", "a", "x.y=z"), ("a=eq.f(x,y)", "a", "f(x,y)"), ("a=eq.)(,)", "a", ")(,)"),
            (r#"a=eq.x"y"#, "a", r#"x"y"#), (r#"a=eq."""#, "a", ""), ("a=eq.not.eq.1", "a", "not.eq.1"),
            ("name=in.(a,\"b,c\")", "name", "{a,\"b,c\"}"), ("name=in.()", "name", "{}"), ("name=in.(\"a)\",b)", "name", "{\"a)\",b}"),
            ("email=imatch.^admin@", "email", "^admin@"), ("d=not.is.null", "d", "null"),
        ];
        for (text, column, value) in table {
            let (c, _, _, v) = one(text);
            assert_eq!((c.as_str(), v.as_str()), (column, value), "{text}");
        }
    }

    #[test]
    fn commas_separate_only_outside_quotes_and_parentheses() {
        assert_eq!(plain("id=gte.10,id=lte.20").len(), 2);
        assert_eq!(plain("a=in.(1,2),b=eq.\"x,y\", c=is.null").len(), 3);
        assert_eq!(plain("a=eq.),b=eq.1").len(), 2);
        assert!(plain("").is_empty());
        assert!(plain("  \t").is_empty());
    }

    #[test]
    fn what_is_not_of_the_language_is_refused_in_the_known_words() {
        let empty = "filter must not contain empty segments (check for extra commas)";
        #[rustfmt::skip]
        let table = [
            ("wrong", r#"["wrong"]"#), ("a=foo.hey", r#"["foo", "hey"]"#), ("a=eq5", r#"["eq5"]"#), ("a=EQ.1", r#"["EQ", "1"]"#),
            ("a=not.foo.hey", r#"["foo", "hey"]"#), ("a=not.not.eq.1", r#"["not", "eq.1"]"#), ("id=gt.1,", empty), (",", empty),
            ("a=eq.1,,b=eq.2", empty), ("a=in.1,b=eq.1", "`in` filter value must be wrapped by parentheses"),
            ("a=in.(", "`in` filter value must be wrapped by parentheses"), ("a=eq.1,b c", r#"["b c"]"#),
        ];
        for (text, detail) in table {
            let error = parse(text).unwrap_err();
            assert_eq!(error.to_string(), format!("Error parsing `filter` params: {detail}"), "{text}");
        }
    }

    #[test]
    fn a_filter_is_bounded() {
        assert!(parse(&format!("a=eq.{}", "x".repeat(MAX_FILTER_BYTES))).is_err());
        let many = |n| vec!["a=eq.1"; n].join(",");
        assert_eq!(parse(&many(MAX_CONDITIONS)).unwrap().len(), MAX_CONDITIONS);
        assert!(parse(&many(MAX_CONDITIONS + 1)).is_err());
        assert!(parse(&format!("a=eq.{}", "(".repeat(60_000))).is_ok());
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused_without_panic(text in prop_oneof![
            any::<String>(), "[ab=.,()\"\\\\ é]{0,40}", "(a=(not\\.)?(eq|in|is)\\.[(]?[a\",\\\\)]{0,6},?){0,4}",
        ]) {
            let _ = parse(&text);
        }

        #[test]
        fn a_quoted_value_comes_back(value in any::<String>(), after in "[a-z]{1,4}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let text = format!("a=eq.\"{quoted}\",{after}=is.null");
            let conditions = parse(&text).unwrap();
            prop_assert_eq!(conditions.len(), 2);
            prop_assert_eq!(&conditions[0].value, &value);
            prop_assert_eq!(&conditions[1].column, &after);
        }
    }
}
