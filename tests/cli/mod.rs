//! What is typed in a terminal: `rowcast token` and `rowcast tail`, as processes against a real relay.

mod refusals;
mod secure;
mod tail;
mod token;

use std::io::{BufRead as _, BufReader};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::startup::process::{Ended, Process, Rowcast};

const PATIENCE: Duration = Duration::from_secs(60);

/// A table whose rows are their owner's, with the old row in full.
const NOTES: &str = "create table public.notes (id int primary key, owner uuid, kind text); \
     alter table public.notes replica identity full; alter table public.notes enable row level security; \
     create policy own on public.notes for select to authenticated using (owner = auth.uid()); \
     grant select on public.notes to authenticated; alter publication supabase_realtime add table public.notes;";

fn note(id: u32, owner: &str, kind: &str) -> String {
    format!("insert into public.notes values ({id}, '{owner}', '{kind}')")
}

/// A running `rowcast tail`.
struct Tail {
    process: Process,
    lines: mpsc::Receiver<String>,
}

impl Tail {
    /// With the token in the environment.
    fn start(url: &str, token: &str, arguments: &[&str]) -> Tail {
        Tail::of(tail(url, token, arguments))
    }

    fn of(rowcast: Rowcast) -> Tail {
        let mut process = rowcast.spawn();
        let (sender, lines) = mpsc::channel(1024);
        let stdout = process.take_stdout();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        Tail { process, lines }
    }

    async fn subscribed(&mut self) {
        self.process.line_with("subscribed to ").await;
    }

    /// The next line of standard output; `None` at its end.
    #[track_caller]
    fn line(&mut self) -> impl Future<Output = Option<String>> + '_ {
        let at = std::panic::Location::caller();
        let line = tokio::time::timeout(PATIENCE, self.lines.recv());
        async move { line.await.unwrap_or_else(|_| panic!("at {at}: no line within {PATIENCE:?}")) }
    }

    /// How it ended, and what it still had to say.
    async fn ended(mut self) -> (Ended, Vec<String>) {
        let mut rest = Vec::new();
        while let Some(line) = self.line().await {
            rest.push(line);
        }
        (self.process.ended().await, rest)
    }
}

fn tail(url: &str, token: &str, arguments: &[&str]) -> Rowcast {
    let all: Vec<&str> = ["tail", "--url", url].iter().chain(arguments).copied().collect();
    Rowcast::new(&all).env("ROWCAST_TOKEN", token)
}

/// Exit code 1, nothing on standard output, one `error:` line; the phrases stand from there on.
#[track_caller]
fn refused(ended: &Ended, phrases: &[&str]) {
    let text = &ended.stderr;
    assert_eq!((ended.code, &*ended.stdout), (Some(1), ""), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{text}");
    let message = &text[text.find("error: ").expect("just counted")..];
    for phrase in phrases {
        assert!(message.contains(phrase), "no {phrase:?} in:\n{text}");
    }
}
