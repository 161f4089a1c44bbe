//! `LIKE` in memory, for `text` and `varchar` of a UTF-8 database under a deterministic collation.
//!
//! Time is at most the product of the two lengths: after a `%`, only the latest one is ever moved, since an earlier one can't
//! succeed where the latest fails. `%` is any text, `_` one character, `\` takes the next character literally.
//!
//! Rejected: `ILIKE` and regular expressions. How letters fold is the collation's, and the regular expressions are Postgres's own.

/// A pattern that Postgres would accept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Pattern(Box<[Part]>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    /// `%`, runs of it folded into one.
    Any,
    /// `_`.
    One,
    Char(char),
}

impl Pattern {
    /// `None` if it ends with a lone backslash.
    pub(super) fn parse(text: &str) -> Option<Pattern> {
        let mut parts = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '%' if parts.last() == Some(&Part::Any) => {}
                '%' => parts.push(Part::Any),
                '_' => parts.push(Part::One),
                '\\' => parts.push(Part::Char(chars.next()?)),
                c => parts.push(Part::Char(c)),
            }
        }
        Some(Pattern(parts.into()))
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        let parts = &self.0;
        let (mut rest, mut at) = (text.chars(), 0);
        // Where to go on if what follows the latest `%` fails: with one character more under it.
        let mut retry: Option<(std::str::Chars<'_>, usize)> = None;
        loop {
            let before = rest.clone();
            match (parts.get(at), rest.next()) {
                (Some(Part::Any), _) => {
                    at += 1;
                    rest = before.clone();
                    retry = Some((before, at));
                    continue;
                }
                (None, None) => return true,
                (Some(Part::One), Some(_)) => {
                    at += 1;
                    continue;
                }
                (Some(Part::Char(wanted)), Some(found)) if *wanted == found => {
                    at += 1;
                    continue;
                }
                // The text is used up: a longer `%` leaves even less of it.
                (Some(_), None) => return false,
                (None | Some(_), Some(_)) => {}
            }
            let Some((from, after)) = &mut retry else { return false };
            if from.next().is_none() {
                return false;
            }
            (rest, at) = (from.clone(), *after);
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
            ("%a%b%", "xaybz", true),
            ("%ab", "aab", true),
            ("%_%_%", "a", false),
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
    fn a_hostile_pattern_costs_no_more_than_the_two_lengths() {
        let text = "a".repeat(20_000);
        let pattern = Pattern::parse(&"%a".repeat(500).replace("%a", "%a_").replace("_%", "%")).unwrap();
        assert!(pattern.matches(&text));
        let pattern = Pattern::parse(&format!("{}b", "%a".repeat(1000))).unwrap();
        assert!(!pattern.matches(&text));
    }
}
