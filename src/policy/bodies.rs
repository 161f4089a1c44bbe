//! The helper functions whose bodies are known by heart: those that Supabase has shipped.
//!
//! A function counts by its *body*, never by its name: `auth.uid()` may have been replaced. Rejected: parsing any SQL body,
//! whose unqualified names mean what the caller's search_path says.

use super::term::{Setting, Term, TermType};
use crate::catalog::Function;

const TEXT: u32 = 25;
const UUID: u32 = 2950;
const JSONB: u32 = 3802;

/// What the function returns, if its body is a known one.
pub(super) fn known(function: &Function) -> Option<Term> {
    let body = normalise(function.sql_body.as_deref()?);
    let term = match (body.as_str(), function.result_type) {
        ("selectnullif(current_setting('request.jwt.claim.sub',true),'')::uuid", UUID) => {
            non_empty(Setting::Subject).cast(TermType::Uuid)?
        }
        (
            "selectcoalesce(current_setting('request.jwt.claim.sub',true),\
             (current_setting('request.jwt.claims',true)::jsonb->>'sub'))::uuid",
            UUID,
        ) => Term::Coalesce(vec![
            Term::Setting(Setting::Subject),
            Term::Setting(Setting::Claims).cast(TermType::Jsonb)?.member("sub", true)?,
        ])
        .cast(TermType::Uuid)?,
        (
            "selectcoalesce(nullif(current_setting('request.jwt.claim.sub',true),''),\
             (nullif(current_setting('request.jwt.claims',true),'')::jsonb->>'sub'))::uuid",
            UUID,
        ) => uid()?,
        (
            "selectnullif(current_setting('request.jwt.claim.role',true),'')::text"
            | "selectnullif(current_setting('request.jwt.claim.role',true),'')",
            TEXT,
        ) => non_empty(Setting::Role),
        (
            "selectcoalesce(current_setting('request.jwt.claim.role',true),\
             (current_setting('request.jwt.claims',true)::jsonb->>'role'))::text",
            TEXT,
        ) => Term::Coalesce(vec![
            Term::Setting(Setting::Role),
            Term::Setting(Setting::Claims).cast(TermType::Jsonb)?.member("role", true)?,
        ]),
        (
            "selectcoalesce(nullif(current_setting('request.jwt.claim.role',true),''),\
             (nullif(current_setting('request.jwt.claims',true),'')::jsonb->>'role'))::text",
            TEXT,
        ) => setting_or_claim(Setting::Role, "role")?,
        // The settings `request.jwt.claim` and `request.jwt.claim.email` are not ours to set; the caller makes sure that
        // nobody else has set them, so that the second alternative is what counts.
        (
            "selectcoalesce(nullif(current_setting('request.jwt.claim',true),''),\
             nullif(current_setting('request.jwt.claims',true),''))::jsonb",
            JSONB,
        ) => jwt()?,
        (
            "selectcoalesce(nullif(current_setting('request.jwt.claim.email',true),''),\
             (nullif(current_setting('request.jwt.claims',true),'')::jsonb->>'email'))::text",
            TEXT,
        ) => jwt()?.member("email", true)?,
        _ => return None,
    };
    Some(term)
}

/// The call by which people know the term: those of current Supabase images, whose text is long.
pub(super) fn call_of(term: &Term) -> Option<&'static str> {
    let is = |known: Option<Term>| known.as_ref() == Some(term);
    match term {
        Term::Cast(inner, TermType::Uuid) if matches!(**inner, Term::Coalesce(_)) => is(uid()).then_some("auth.uid()"),
        Term::Cast(_, TermType::Jsonb) => is(jwt()).then_some("auth.jwt()"),
        Term::Coalesce(_) => is(setting_or_claim(Setting::Role, "role")).then_some("auth.role()"),
        _ => None,
    }
}

fn uid() -> Option<Term> {
    setting_or_claim(Setting::Subject, "sub")?.cast(TermType::Uuid)
}

fn jwt() -> Option<Term> {
    non_empty(Setting::Claims).cast(TermType::Jsonb)
}

fn non_empty(setting: Setting) -> Term {
    Term::NullIfEmpty(Box::new(Term::Setting(setting)))
}

fn setting_or_claim(setting: Setting, claim: &str) -> Option<Term> {
    let claims = jwt()?;
    Some(Term::Coalesce(vec![non_empty(setting), claims.member(claim, true)?]))
}

/// Without blanks and the last semicolon, `select` in lower case. No known body has a blank in a literal, and one that has
/// would have to be equal but for blanks inside quotes: such a setting name does not exist.
fn normalise(body: &str) -> String {
    let mut text: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    if text.ends_with(';') {
        text.pop();
    }
    if text.get(..6).is_some_and(|word| word.eq_ignore_ascii_case("select")) {
        text.replace_range(..6, "select");
    }
    text
}
