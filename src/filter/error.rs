//! Why a subscription is refused, in the words that clients of this protocol know.

use tokio_postgres::error::DbError;

use super::{Condition, inspect};
use crate::error::{Fault, Remedy};
use crate::pg::PgError;

/// Why a filter or a column selection is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// Not of the language; the detail after the colon.
    #[error("Error parsing `filter` params: {0}")]
    Syntax(String),
    /// Postgres refused it, or would.
    #[error("ERROR {sqlstate} ({}) {message}", condition_name(.sqlstate))]
    Refused {
        /// Five characters.
        sqlstate: String,
        /// Postgres's text, or the exact text of `protocol.md` §5.4.
        message: String,
    },
    /// Correct, but not to be judged exactly in memory.
    #[error("ERROR 0A000 (feature_not_supported) {0}")]
    Unsupported(String),
    /// The database could not be asked: the same filter may be accepted a moment later.
    #[error("the database could not check the filter")]
    Unavailable(#[source] PgError),
}

impl FilterError {
    /// An exception raised by the rules of §5.4.
    pub(super) fn raised(message: impl Into<String>) -> FilterError {
        FilterError::Refused { sqlstate: "P0001".into(), message: message.into() }
    }

    /// What a client may read of it: what follows `Exception: `, or for a syntax error the whole message.
    pub fn client_detail(&self) -> String {
        match self {
            FilterError::Unavailable(_) => "The database is not reachable at the moment, trying again".into(),
            other => other.to_string(),
        }
    }

    /// Whether the same entry may be accepted later without any change to it.
    pub fn is_retryable(&self) -> bool {
        matches!(self, FilterError::Unavailable(_))
    }
}

impl From<PgError> for FilterError {
    /// An answer that judges the literal is a refusal; no answer, or one that will pass, is not.
    fn from(error: PgError) -> FilterError {
        let refusal = match &error {
            PgError::Query { source, .. } => source.as_db_error(),
            _ => None,
        };
        match refusal {
            Some(db) if !crate::pg::is_transient(db.code()) => FilterError::refused(db),
            _ => FilterError::Unavailable(error),
        }
    }
}

impl FilterError {
    fn refused(db: &DbError) -> FilterError {
        FilterError::Refused { sqlstate: db.code().code().into(), message: db.message().into() }
    }
}

impl Fault for FilterError {
    fn remedy(&self) -> Remedy {
        match self {
            FilterError::Unavailable(_) => Remedy::Retry,
            // The client's to mend; for whoever runs the relay it is final.
            FilterError::Syntax(_) | FilterError::Refused { .. } | FilterError::Unsupported(_) => Remedy::Operator,
        }
    }

    fn advice(&self) -> String {
        match self {
            FilterError::Unavailable(source) => source.advice(),
            FilterError::Syntax(_) | FilterError::Refused { .. } | FilterError::Unsupported(_) => {
                "Correct the filter in the client that subscribes.".into()
            }
        }
    }
}

/// What was asked for, as the messages of §5.5 print it.
#[derive(Debug, Clone, Copy)]
pub struct SubscribeParameters<'a> {
    /// `*`, `INSERT`, `UPDATE` or `DELETE`.
    pub event: &'a str,
    /// As asked, `*` included.
    pub schema: &'a str,
    /// As asked, `*` included.
    pub table: &'a str,
    /// The parsed filter.
    pub conditions: &'a [Condition],
    /// The column selection.
    pub select: Option<&'a [String]>,
}

/// How the message begins when no table of the publication matches.
pub const NOT_ENABLED: &str = "Unable to subscribe to changes with given parameters. \
    Please check Realtime is enabled for the given connect parameters:";

impl SubscribeParameters<'_> {
    /// `[event: *, schema: public, table: todos, filters: [{"id", "eq", "1", false}], select: nil]`
    fn print(&self) -> String {
        let condition = |c: &Condition| {
            let (column, value) = (inspect::string(&c.column), inspect::string(&c.value));
            format!("{{{column}, \"{}\", {value}, {}}}", c.operator.as_str(), c.negated)
        };
        let filters = self.conditions.iter().map(condition).collect::<Vec<_>>().join(", ");
        let select = match self.select {
            None => "nil".into(),
            Some(columns) => inspect::strings(columns.iter().map(String::as_str)),
        };
        let (event, schema, table) = (self.event, self.schema, self.table);
        format!("[event: {event}, schema: {schema}, table: {table}, filters: [{filters}], select: {select}]")
    }

    /// The message when no table of the publication matches.
    pub fn not_enabled(&self) -> String {
        format!("{NOT_ENABLED} {}", self.print())
    }

    /// The message when the database refuses; `detail` is [`FilterError::client_detail`] or of its form.
    pub fn exception(&self, detail: &str) -> String {
        format!(
            "Unable to subscribe to changes with given parameters. \
             An exception happened so please check your connect parameters: {}. Exception: {detail}",
            self.print()
        )
    }

    /// The whole message for this error.
    pub fn message(&self, error: &FilterError) -> String {
        match error {
            FilterError::Syntax(_) | FilterError::Unavailable(_) => error.client_detail(),
            FilterError::Refused { .. } | FilterError::Unsupported(_) => self.exception(&error.client_detail()),
        }
    }
}

/// The condition name of a SQLSTATE (appendix A of the Postgres manual) for the ones that a literal can cause; others print as
/// themselves.
fn condition_name(sqlstate: &str) -> &str {
    match sqlstate {
        "0A000" => "feature_not_supported",
        "21000" => "cardinality_violation",
        "22000" => "data_exception",
        "22001" => "string_data_right_truncation",
        "22003" => "numeric_value_out_of_range",
        "22007" => "invalid_datetime_format",
        "22008" => "datetime_field_overflow",
        "22009" => "invalid_time_zone_displacement_value",
        "22012" => "division_by_zero",
        "22015" => "interval_field_overflow",
        "22021" => "character_not_in_repertoire",
        "22023" => "invalid_parameter_value",
        "22025" => "invalid_escape_sequence",
        "22026" => "string_data_length_mismatch",
        "22032" => "invalid_json_text",
        "22P01" => "floating_point_exception",
        "22P02" => "invalid_text_representation",
        "22P03" => "invalid_binary_representation",
        "22P05" => "untranslatable_character",
        "2200M" => "invalid_xml_document",
        "2200N" => "invalid_xml_content",
        "2201B" => "invalid_regular_expression",
        "2202E" => "array_subscript_error",
        "23502" => "not_null_violation",
        "23514" => "check_violation",
        "3F000" => "invalid_schema_name",
        "42501" => "insufficient_privilege",
        "42601" => "syntax_error",
        "42703" => "undefined_column",
        "42704" => "undefined_object",
        "42725" => "ambiguous_function",
        "42804" => "datatype_mismatch",
        "42846" => "cannot_coerce",
        "42883" => "undefined_function",
        "42P01" => "undefined_table",
        "42P18" => "indeterminate_datatype",
        "42P22" => "indeterminate_collation",
        "54000" => "program_limit_exceeded",
        "54001" => "statement_too_complex",
        "57014" => "query_canceled",
        "P0001" => "raise_exception",
        "XX000" => "internal_error",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::parse;

    fn parameters<'a>(conditions: &'a [Condition], select: Option<&'a [String]>) -> SubscribeParameters<'a> {
        SubscribeParameters { event: "INSERT", schema: "public", table: "todos", conditions, select }
    }

    #[test]
    fn refusals_read_as_clients_know_them() {
        let conditions = parse("id=eq.hey,name=not.in.(a,\"b\")").unwrap();
        let error = FilterError::Refused {
            sqlstate: "22P02".into(),
            message: "invalid input syntax for type integer: \"hey\"".into(),
        };
        assert_eq!(
            parameters(&conditions, None).message(&error),
            "Unable to subscribe to changes with given parameters. An exception happened so please check your connect \
             parameters: [event: INSERT, schema: public, table: todos, filters: [{\"id\", \"eq\", \"hey\", false}, \
             {\"name\", \"in\", \"{a,\\\"b\\\"}\", true}], select: nil]. Exception: ERROR 22P02 \
             (invalid_text_representation) invalid input syntax for type integer: \"hey\""
        );
        assert_eq!(
            FilterError::raised("invalid column for filter nope").client_detail(),
            "ERROR P0001 (raise_exception) invalid column for filter nope"
        );
    }

    #[test]
    fn a_table_outside_the_publication_gets_the_known_sentence() {
        let select = ["a".to_owned(), "b".to_owned()];
        assert_eq!(
            parameters(&[], Some(&select)).not_enabled(),
            "Unable to subscribe to changes with given parameters. Please check Realtime is enabled for the given connect \
             parameters: [event: INSERT, schema: public, table: todos, filters: [], select: [\"a\", \"b\"]]"
        );
        assert!(parameters(&[], None).not_enabled().ends_with("filters: [], select: nil]"));
    }

    #[test]
    fn syntax_errors_stand_alone_and_unknown_states_print_as_themselves() {
        let error = parse("wrong").unwrap_err();
        assert_eq!(parameters(&[], None).message(&error), "Error parsing `filter` params: [\"wrong\"]");
        let error = FilterError::Refused { sqlstate: "ZZ999".into(), message: "m".into() };
        assert_eq!(error.client_detail(), "ERROR ZZ999 (ZZ999) m");
    }
}
