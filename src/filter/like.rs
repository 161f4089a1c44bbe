//! `LIKE` in memory, for `text` and `varchar` of a UTF-8 database under a deterministic collation.
//!
//! `%` is any text, `_` one character, `\` takes the next character literally. Between two `%` is a segment of a fixed number of
//! characters, so that its leftmost place is as good as any: no backtracking over segments. Segments of letters are searched in
//! linear time; one with `_` in it costs its length for each place, so a long one is left to Postgres. It is judged before
//! authorization, in the hub's own thread, and by the pattern of a stranger: so a large value is left to Postgres too.
//!
//! Rejected: `ILIKE` and regular expressions. How letters fold is the collation's, and the regular expressions are Postgres's own.

/// A pattern that Postgres would accept, and that is cheap.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Pattern {
    /// What the text begins with; without a `%`, all of it.
    first: Segment,
    /// What is searched for in what is left, one after another, and what the text ends with. `None` without a `%`.
    rest: Option<(Box<[Segment]>, Segment)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Segment {
    Text(Box<str>),
    /// `None` is `_`.
    Mixed(Box<[Option<char>]>),
}

/// Longest segment with `_` that is searched for.
const MAX_MIXED: usize = 16;
/// Bytes that are looked at for one value.
const MAX_WORK: usize = 8192;

impl Pattern {
    /// `None` if it ends with a lone backslash, or is not cheap.
    pub(super) fn parse(text: &str) -> Option<Pattern> {
        let mut segments = vec![Vec::new()];
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            let part = match c {
                '%' => {
                    segments.push(Vec::new());
                    continue;
                }
                '_' => None,
                '\\' => Some(chars.next()?),
                c => Some(c),
            };
            segments.last_mut()?.push(part);
        }
        let mut segments = segments.iter().map(|parts| Segment::new(parts));
        let first = segments.next()?;
        let Some(last) = segments.next_back() else { return Some(Pattern { first, rest: None }) };
        let middle: Box<[Segment]> = segments.filter(|segment| !segment.is_empty()).collect();
        middle.iter().all(Segment::is_cheap).then_some(Pattern { first, rest: Some((middle, last)) })
    }

    /// Whether a value of this many bytes is to be judged in memory.
    pub(super) fn is_cheap_on(&self, bytes: usize) -> bool {
        let searched = self.rest.iter().flat_map(|(middle, _)| middle.iter());
        let is_mixed = searched.clone().any(|segment| matches!(segment, Segment::Mixed(_)));
        bytes * if is_mixed { MAX_MIXED } else { 1 } <= MAX_WORK
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        let Some(mut left) = self.first.strip_prefix(text) else { return false };
        let Some((middle, last)) = &self.rest else { return left.is_empty() };
        let Some(until) = last.strip_suffix(left) else { return false };
        left = until;
        middle.iter().all(|segment| segment.find(left).map(|rest| left = rest).is_some())
    }
}

impl Segment {
    fn new(parts: &[Option<char>]) -> Segment {
        match parts.iter().copied().collect::<Option<String>>() {
            Some(text) => Segment::Text(text.into()),
            None => Segment::Mixed(parts.into()),
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Segment::Text(text) if text.is_empty())
    }

    fn is_cheap(&self) -> bool {
        match self {
            Segment::Text(_) => true,
            Segment::Mixed(parts) => parts.len() <= MAX_MIXED,
        }
    }

    /// What comes after it at the beginning of the text.
    fn strip_prefix<'a>(&self, text: &'a str) -> Option<&'a str> {
        match self {
            Segment::Text(own) => text.strip_prefix(&**own),
            Segment::Mixed(parts) => {
                let mut chars = text.chars();
                let mut fits = |part: &Option<char>| chars.next().is_some_and(|c| part.is_none_or(|own| own == c));
                parts.iter().all(&mut fits).then_some(chars.as_str())
            }
        }
    }

    /// What comes before it at the end of the text.
    fn strip_suffix<'a>(&self, text: &'a str) -> Option<&'a str> {
        match self {
            Segment::Text(own) => text.strip_suffix(&**own),
            Segment::Mixed(parts) => {
                let mut chars = text.chars();
                let mut fits = |part: &Option<char>| chars.next_back().is_some_and(|c| part.is_none_or(|own| own == c));
                parts.iter().rev().all(&mut fits).then_some(chars.as_str())
            }
        }
    }

    /// What comes after its leftmost place in the text.
    fn find<'a>(&self, text: &'a str) -> Option<&'a str> {
        match self {
            Segment::Text(own) => text.find(&**own).map(|at| &text[at + own.len()..]),
            Segment::Mixed(_) => text.char_indices().find_map(|(at, _)| self.strip_prefix(&text[at..])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_like_does() {
        for (pattern, text, matches) in [
            ("", "", true),
            ("", "a", false),
            ("%", "", true),
            ("_", "", false),
            ("_", "ö", true),
            ("_", "öö", false),
            ("a%b", "ab", true),
            ("a%b", "axxb", true),
            ("a%b", "axxbc", false),
            ("a%a", "a", false),
            ("%a%b%", "xaybz", true),
            ("%ab", "aab", true),
            ("%_%_%", "a", false),
            ("%a_%_b", "xaayzb", true),
            ("a\\%", "a%", true),
            ("a\\%", "ab", false),
            ("\\\\", "\\", true),
            ("\\a", "a", true),
            ("%😀_", "x😀y", true),
            ("%aab", "aaaab", true),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(text), matches, "{pattern} {text}");
        }
        assert_eq!(Pattern::parse("a\\"), None);
        assert!(Pattern::parse("a\\\\").is_some());
    }

    #[test]
    fn a_pattern_that_would_cost_much_is_left_to_postgres() {
        assert_eq!(Pattern::parse(&format!("%{}_b%", "a".repeat(MAX_MIXED))), None);
        // Not searched for: its place is known.
        assert!(Pattern::parse(&format!("{}_%_{}", "a".repeat(500), "a".repeat(500))).is_some());
        // As long as a filter may be, on a large value: the product of the two would take minutes.
        let is_cheap = |pattern: &str, bytes| Pattern::parse(pattern).unwrap().is_cheap_on(bytes);
        assert!(is_cheap("%a%", 8192) && !is_cheap("%a%", 8193) && is_cheap("_%_", 8192));
        assert!(is_cheap("%a_%", 512) && !is_cheap("%a_%", 513));
        let (letters, text) = ("a".repeat(30_000), "a".repeat(1 << 20));
        assert!(!Pattern::parse(&format!("%{letters}b%")).unwrap().matches(&text));
        assert!(!Pattern::parse(&format!("{}b", "%a".repeat(15_000))).unwrap().matches(&text));
    }
}
