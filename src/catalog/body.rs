//! What can be told from a function's definition without Postgres: the names that a body mentions, its own search_path.
//!
//! A body kept as text (`AS $$ … $$`) has no dependencies in the catalog, so what it may look into is known from its words only.
//! Too many names do no harm: the catalog then knows a table more than it needs. A missed one does none either: whoever reads
//! the body finds a table that is not known, and lets Postgres judge. Rejected: a parser here, which would have to agree with
//! the compiler's about what a body is.

use std::collections::BTreeSet;

/// Longer bodies are not searched.
const MAX_BODY: usize = 64 * 1024;

/// Names that bodies mention, as (schema, name).
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mentions {
    /// May be tables.
    pub(super) tables: BTreeSet<(String, String)>,
    /// Stand before a parenthesis.
    pub(super) functions: BTreeSet<(String, String)>,
}

impl Mentions {
    pub(super) fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.functions.is_empty()
    }

    /// Adds what `source` mentions. Names without a schema are looked for in `search_path`; without one they mean what the
    /// caller's says, and nobody knows.
    pub(super) fn add(&mut self, source: &str, search_path: &[String]) {
        if source.len() > MAX_BODY {
            return;
        }
        let tokens = tokens(source);
        let mut at = 0;
        while let Some(Token::Name(first)) = next_name(&tokens, &mut at) {
            let mut parts = vec![first.as_str()];
            while let (Some(Token::Dot), Some(Token::Name(part))) = (tokens.get(at), tokens.get(at + 1)) {
                parts.push(part);
                at += 2;
            }
            let called = matches!(tokens.get(at), Some(Token::Open));
            self.chain(&parts, called, search_path);
        }
    }

    fn chain(&mut self, parts: &[&str], called: bool, search_path: &[String]) {
        for schema in search_path {
            self.tables.insert((schema.clone(), parts[0].to_owned()));
            if let (true, [name]) = (called, parts) {
                self.functions.insert((schema.clone(), (*name).to_owned()));
            }
        }
        for pair in parts.windows(2) {
            self.tables.insert((pair[0].to_owned(), pair[1].to_owned()));
        }
        if let (true, [.., schema, name]) = (called, parts) {
            self.functions.insert(((*schema).to_owned(), (*name).to_owned()));
        }
    }
}

fn next_name<'a>(tokens: &'a [Token], at: &mut usize) -> Option<&'a Token> {
    while let Some(token) = tokens.get(*at) {
        *at += 1;
        if matches!(token, Token::Name(_)) {
            return Some(token);
        }
    }
    None
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    /// Folded to lower case unless it was quoted.
    Name(String),
    Dot,
    Open,
    Other,
}

/// Strings and comments are passed over; blanks separate nothing here but names.
fn tokens(source: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let (token, length) = match c {
            c if c.is_whitespace() => (None, c.len_utf8()),
            '-' if rest.starts_with("--") => (None, rest.find('\n').unwrap_or(rest.len())),
            '/' if rest.starts_with("/*") => (None, comment(rest)),
            '\'' => (Some(Token::Other), quoted(rest, '\'', false).1),
            'e' | 'E' if rest[1..].starts_with('\'') => (Some(Token::Other), 1 + quoted(&rest[1..], '\'', true).1),
            '"' => {
                let (name, length) = quoted(rest, '"', false);
                (Some(Token::Name(name)), length)
            }
            '$' => (Some(Token::Other), dollar(rest)),
            '.' => (Some(Token::Dot), 1),
            '(' => (Some(Token::Open), 1),
            c if is_start(c) => {
                let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
                (Some(Token::Name(rest[..end].to_ascii_lowercase())), end)
            }
            // A number's letters are no name.
            c if c.is_ascii_digit() => (Some(Token::Other), rest.find(|c| !is_part(c)).unwrap_or(rest.len())),
            c => (Some(Token::Other), c.len_utf8()),
        };
        tokens.extend(token);
        rest = &rest[length..];
    }
    tokens
}

fn is_start(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

fn is_part(c: char) -> bool {
    is_start(c) || c.is_ascii_digit() || c == '$'
}

/// What stands between the quotes, and how much of the text it takes with them; an open end takes all.
fn quoted(text: &str, quote: char, backslashes: bool) -> (String, usize) {
    let mut inside = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if backslashes && c == '\\' {
            inside.extend(chars.next().map(|(_, c)| c));
        } else if c != quote {
            inside.push(c);
        } else if chars.peek().is_some_and(|(_, next)| *next == quote) {
            inside.extend(chars.next().map(|(_, c)| c));
        } else {
            return (inside, at + quote.len_utf8());
        }
    }
    (inside, text.len())
}

/// Comments nest.
fn comment(text: &str) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    let bytes = text.as_bytes();
    while at < bytes.len() {
        match bytes.get(at..at + 2) {
            Some(b"/*") => (depth, at) = (depth + 1, at + 2),
            Some(b"*/") if depth == 1 => return at + 2,
            Some(b"*/") => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    bytes.len()
}

/// `$tag$ … $tag$`, or a parameter such as `$1`.
fn dollar(text: &str) -> usize {
    let Some(end) = text[1..].find('$').map(|at| at + 2) else { return 1 };
    let tag = &text[..end];
    let named = tag[1..end - 1].chars().enumerate().all(|(i, c)| is_start(c) || (i > 0 && c.is_ascii_digit()));
    if !named {
        return 1;
    }
    text[end..].find(tag).map_or(text.len(), |at| end + at + tag.len())
}

/// The settings of a function: its search_path, if it has one, and whether it has others. A search_path that can't be read
/// counts as another setting: nobody should rely on it.
pub(super) fn settings(proconfig: &[String]) -> (Option<Vec<String>>, bool) {
    let (mut path, mut others) = (None, false);
    for setting in proconfig {
        match setting.split_once('=') {
            Some((name, value)) if name.eq_ignore_ascii_case("search_path") => {
                let schemas = schemas(value);
                others |= schemas.is_none();
                path = Some(schemas.unwrap_or_default());
            }
            _ => others = true,
        }
    }
    (path, others)
}

/// A list of identifiers as `SplitIdentifierString` reads it. An empty name, which is how `SET search_path = ''` is kept, is
/// no schema's.
fn schemas(value: &str) -> Option<Vec<String>> {
    let mut schemas = Vec::new();
    let mut rest = value.trim();
    if rest.is_empty() {
        return Some(schemas);
    }
    loop {
        let (name, length) = if rest.starts_with('"') {
            let (name, length) = quoted(rest, '"', false);
            // At the end of an open quote stands no quote, or only the one that opened it.
            if length < 2 || !rest[..length].ends_with('"') {
                return None;
            }
            (name, length)
        } else {
            let end = rest.find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(rest.len());
            (rest[..end].to_ascii_lowercase(), end)
        };
        if length == 0 {
            return None;
        }
        if !name.is_empty() {
            schemas.push(name);
        }
        rest = rest[length..].trim_start();
        if rest.is_empty() {
            return Some(schemas);
        }
        rest = rest.strip_prefix(',')?.trim_start();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mentions(source: &str, path: &[&str]) -> (Vec<String>, Vec<String>) {
        let mut mentions = Mentions::default();
        mentions.add(source, &path.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        let show = |names: BTreeSet<(String, String)>| names.into_iter().map(|(s, n)| format!("{s}.{n}")).collect();
        (show(mentions.tables), show(mentions.functions))
    }

    #[test]
    fn qualified_names_are_found_and_those_before_a_parenthesis_may_be_functions() {
        let (tables, functions) = mentions(
            "select exists (select 1 from App.\"Odd \"\"T\" t where u = auth . uid ( ) and t.x = db.s.t.c)",
            &[],
        );
        assert_eq!(tables, ["app.Odd \"T", "auth.uid", "db.s", "s.t", "t.c", "t.x"]);
        assert_eq!(functions, ["auth.uid"]);
    }

    #[test]
    fn names_without_a_schema_count_only_under_a_search_path_of_the_functions_own() {
        let body = "select 1 from members where f(a)";
        assert_eq!(mentions(body, &[]), (vec![], vec![]));
        let (tables, functions) = mentions(body, &["app"]);
        assert!(tables.contains(&"app.members".to_owned()));
        assert_eq!(functions, ["app.f"]);
    }

    #[test]
    fn strings_and_comments_mention_nothing() {
        let body =
            "select 'a.b', E'it\\'s a.b', $$a.b$$, $x$ a.b $ $x$, $1, 1.e5 -- a.b\n /* a.b /* a.b */ a.b */ from c.d";
        assert_eq!(mentions(body, &[]).0, ["c.d"]);
        assert_eq!(mentions("select $1.f, $2 from c.d", &[]).0, ["c.d"]);
    }

    #[test]
    fn a_search_path_is_read_as_postgres_reads_it() {
        let settings = |all: &[&str]| settings(&all.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        let path = |names: &[&str]| Some(names.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(settings(&[]), (None, false));
        assert_eq!(settings(&["search_path=\"\""]), (path(&[]), false));
        assert_eq!(settings(&["search_path="]), (path(&[]), false));
        assert_eq!(
            settings(&["search_path=Public, \"Odd, \"\"One\",pg_temp"]),
            (path(&["public", "Odd, \"One", "pg_temp"]), false)
        );
        assert_eq!(settings(&["search_path=\"$user\", public", "role=x"]), (path(&["$user", "public"]), true));
        for bad in ["a,", "\"a", "a b", ",", "\"a\"b", "\""] {
            assert_eq!(settings(&[&format!("search_path={bad}")]), (path(&[]), true), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_body_is_searched_without_a_panic(body in "[ -~é\n]{0,80}", path in "[ -~é]{0,20}") {
            let mut mentions = Mentions::default();
            mentions.add(&body, &["p".to_owned()]);
            let _ = settings(&[format!("search_path={path}")]);
        }
    }
}
