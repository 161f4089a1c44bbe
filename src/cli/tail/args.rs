//! What may be written after `rowcast tail`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::client::Wanted;
use crate::config::duration;

/// A token is better given by environment or file: everybody on the machine can read a command line.
#[derive(Args)]
#[command(
    after_help = "Changes go to standard output, a line each; everything else to standard error. A connection that is lost is made \
                  again, and goes on after the last change: none is missed, unless standard error says so.\n\n\
                  Exit codes: 0 after --count, --for or Ctrl-C, 1 refused or never subscribed, 2 wrong usage."
)]
pub(crate) struct TailArgs {
    /// The relay [env: ROWCAST_URL] [default: ws://127.0.0.1:4000]
    #[arg(long)]
    pub(super) url: Option<String>,
    /// Whose rows: a user's token [env: ROWCAST_TOKEN]
    #[arg(long, conflicts_with = "token_file")]
    pub(super) token: Option<String>,
    /// A file that holds the token
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// What the connection is made with, if not the token: an opaque key, as applications have
    #[arg(long, value_name = "KEY")]
    pub(super) api_key: Option<String>,
    /// PEM file of the only authorities that may vouch for the relay [env: SSL_CERT_FILE] [default: Mozilla's]
    #[arg(long, value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,

    /// Schema, or * for all
    #[arg(long, default_value = "public", help_heading = "Which changes")]
    schema: String,
    /// Table [default: all that are published]
    #[arg(long, help_heading = "Which changes")]
    table: Option<String>,
    /// Such as id=eq.5 or kind=in.(a,b)
    #[arg(long, help_heading = "Which changes")]
    filter: Option<String>,
    /// *, insert, update or delete
    #[arg(long, default_value = "*", value_parser = event, help_heading = "Which changes")]
    event: String,
    /// Columns, with commas [default: all that may be seen]
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',', help_heading = "Which changes")]
    select: Vec<String>,

    /// From where on: a cursor, a commit time such as 2026-11-21T10:15:30Z, or so long ago, such as 10m [default: now]
    #[arg(long, value_name = "CURSOR|TIME", help_heading = "Which changes")]
    pub(super) since: Option<String>,

    /// Each change as the JSON object that applications get
    #[arg(long, help_heading = "Output")]
    pub(super) json: bool,
    /// Show the cursor of each change, and at the end the last one, for --since
    #[arg(long, help_heading = "Output")]
    pub(super) cursors: bool,
    /// End after so many changes
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Output")]
    pub(super) count: Option<u64>,
    /// End after this time, such as 10s
    #[arg(long = "for", value_name = "TIME", value_parser = duration, help_heading = "Output")]
    pub(super) time: Option<Duration>,
}

impl std::fmt::Debug for TailArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TailArgs")
    }
}

impl TailArgs {
    pub(super) fn wanted(&self) -> Wanted {
        Wanted {
            event: self.event.clone(),
            schema: self.schema.clone(),
            table: self.table.clone(),
            filter: self.filter.clone(),
            select: self.select.iter().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect(),
        }
    }
}

fn event(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    match &*upper {
        "*" | "INSERT" | "UPDATE" | "DELETE" => Ok(upper),
        _ => Err("is none of *, insert, update and delete".into()),
    }
}
