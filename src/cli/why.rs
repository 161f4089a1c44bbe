//! `rowcast why`: asks the running relay why a user did not get a row.

use std::time::Duration;

use serde_json::Value;

use super::args::WhyArgs;
use super::{Environment, Failure, relay};
use crate::why::{Answer, Request};

/// A search in the log, the journal, and questions to Postgres have bounds of their own.
const DEADLINE: Duration = Duration::from_secs(120);
const EXIT_USAGE: u8 = 2;

pub(super) async fn why(args: &WhyArgs, environment: &Environment) -> Result<(), Failure> {
    let settings = environment.settings(args.config.as_deref(), &args.flags())?;
    let address = relay::address(&settings)?;
    let request = request(args, environment)?;
    let body = serde_json::to_string(&request).map_err(|error| failed(error.to_string(), ""))?;
    let asked = relay::ask(address, ("POST", "/why"), &body, DEADLINE).await;
    let (status, text) = asked.map_err(|error| {
        let advice = "Start the relay, or give --admin-addr with the admin address of the one that runs.";
        failed(format!("no relay answers on {address}: {error}"), advice)
    })?;
    if status != 200 {
        return Err(refused(status, &text));
    }
    let answer: Answer = serde_json::from_str(&text).map_err(|_| {
        failed(format!("the relay on {address} is of another version"), "Use the same program as the relay's.")
    })?;
    if args.json {
        println!("{}", super::doctor::json(&answer)?);
    } else {
        print!("{}", answer.text());
    }
    match answer.answered {
        true => Ok(()),
        false => Err(failed("what became of it is not known".into(), "The lines above say what is missing.")),
    }
}

fn request(args: &WhyArgs, environment: &Environment) -> Result<Request, Failure> {
    let usage = |text: &str, advice: &str| Failure { text: text.into(), advice: advice.into(), exit: EXIT_USAGE };
    let since_seconds = match args.since.as_deref().map(crate::config::duration) {
        None => None,
        Some(Ok(since)) => Some(since.as_secs()),
        Some(Err(problem)) => return Err(usage(&format!("--since {problem}"), "Write it like 1h or 90s.")),
    };
    let from_environment = || environment.values.get("ROWCAST_TOKEN").filter(|token| !token.is_empty()).cloned();
    let named = args.user.is_some() || args.role.is_some();
    let token = args.token.clone().or_else(|| from_environment().filter(|_| !named));
    if token.is_none() && !named {
        let advice = "Give --user with the sub of the user's token, or the token itself with --token or ROWCAST_TOKEN.";
        return Err(usage("the question names nobody", advice));
    }
    Ok(Request {
        table: args.table.clone(),
        pk: args.pk.clone(),
        cursor: args.cursor.clone(),
        user: args.user.clone(),
        token,
        role: args.role.clone(),
        since_seconds,
        show_row: args.show_row,
    })
}

fn refused(status: u16, text: &str) -> Failure {
    let body: Value = serde_json::from_str(text).unwrap_or_default();
    match body["error"].as_str() {
        Some(error) => failed(error.to_owned(), body["advice"].as_str().unwrap_or_default()),
        None if status == 404 => {
            failed("what answers there can't be asked".into(), "Give the admin address of a relay of this version.")
        }
        None => failed(format!("the relay answered with status {status}"), ""),
    }
}

fn failed(text: String, advice: &str) -> Failure {
    Failure { text, advice: advice.into(), exit: 1 }
}
