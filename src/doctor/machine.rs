//! What can be told without a database: the settings, the data folder, the disk, the keys.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::stat::{major, minor, stat};
use nix::unistd::{AccessFlags, access};

use super::finding::size;
use super::{Finding, Subject, SubjectKind};
use crate::claims::{Verifier, VerifierConfig};
use crate::clock::Clock;
use crate::config::{Config, ConfigError, SHORTEST_SECRET, Settings};
use crate::error::{Fault as _, chain};
use crate::metrics::Metrics;
use crate::task::Drain;

/// For the issuer's key set.
const KEYS: Duration = Duration::from_secs(10);

/// The configuration as far as it can be used, and a finding for each setting that can't. Without a usable database URL there
/// is no configuration; every other mistake is set aside, so that the database is looked at all the same.
pub fn usable(settings: &Settings, data_dir: &Path) -> (Option<Config>, Vec<Finding>) {
    let error = match settings.config(data_dir) {
        Ok(config) => return (Some(config), Vec::new()),
        Err(error) => error,
    };
    let findings = match &error {
        ConfigError::Mistakes(mistakes) => mistakes.iter().map(of_mistake).collect(),
        other => vec![Finding::error("setting", Subject::machine(), chain(other)).todo(other.advice())],
    };
    // Stage by stage fewer settings; a placeholder stands for the secret, which nothing here verifies with.
    for kept in [&["database_url", "slot", "publication", "data_dir"][..], &["database_url", "data_dir"]] {
        let mut some = settings.clone();
        some.retain(kept);
        some.set("jwt_secret", &"-".repeat(SHORTEST_SECRET));
        if let Ok(mut config) = some.config(data_dir) {
            config.verifier = VerifierConfig::default();
            return (Some(config), findings);
        }
    }
    (None, findings)
}

fn of_mistake(mistake: &crate::config::Mistake) -> Finding {
    let subject = Subject::new(SubjectKind::Setting, &mistake.setting);
    Finding::error("setting", subject, format!("{} {}", mistake.setting, mistake.problem))
        .why("`rowcast serve` does not start with it.")
        .todo(&mistake.remedy)
}

pub(super) async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(secret(config.verifier.jwt_secret.as_deref()));
    findings.extend(keys(config).await);
    let (dir, keep) = (config.data_dir.clone(), config.log.retain_bytes);
    let log_dir = config.log.dir.clone();
    let looked = tokio::task::spawn_blocking(move || folder(&dir, &log_dir, keep));
    // A disk that hangs must not hang us.
    match tokio::time::timeout(KEYS, looked).await {
        Ok(Ok(found)) => findings.extend(found),
        _ => findings.push(
            Finding::error("data_dir", Subject::machine(), "the data folder's file system does not answer")
                .why("The relay keeps its log there."),
        ),
    }
    findings
}

/// Secrets that everybody knows, from the examples of Supabase and of documentation.
const KNOWN_SECRETS: [&str; 4] = [
    "super-secret-jwt-token-with-at-least-32-characters-long",
    "your-super-secret-jwt-token-with-at-least-32-characters-long",
    "your-256-bit-secret-your-256-bit-secret",
    "a-string-secret-at-least-256-bits-long",
];
/// A random text of 32 bytes has more different ones than this, hexadecimal digits included.
const FEWEST_SYMBOLS: usize = 9;

fn secret(secret: Option<&[u8]>) -> Option<Finding> {
    let secret = secret?;
    let subject = || Subject::new(SubjectKind::Setting, "JWT_SECRET");
    let mut symbols = secret.to_vec();
    symbols.sort_unstable();
    symbols.dedup();
    let problem = if KNOWN_SECRETS.iter().any(|known| known.as_bytes() == secret) {
        "JWT_SECRET is one that stands in everybody's documentation"
    } else if symbols.len() < FEWEST_SYMBOLS {
        "JWT_SECRET repeats a few characters"
    } else {
        return Some(Finding::ok("jwt_secret", subject(), format!("JWT_SECRET has {} bytes", secret.len())));
    };
    let found = Finding::warning("jwt_secret", subject(), problem)
        .why("Whoever guesses it signs himself a token of any user, and of service_role, which sees everything.")
        .todo("Make one with `openssl rand -hex 32`, and give it to the issuer of the tokens too.");
    Some(found)
}

async fn keys(config: &Config) -> Option<Finding> {
    let location = config.verifier.key_set.as_ref()?.location.to_string();
    let subject = Subject::new(SubjectKind::Setting, "JWKS_URL");
    // With a secret beside it, a set that can't be had would count as no error.
    let alone = VerifierConfig { jwt_secret: None, ..config.verifier.clone() };
    let verifier = Verifier::new(alone, Clock::system(), Arc::new(Metrics::new()));
    let loaded = tokio::time::timeout(KEYS, verifier.load(Duration::ZERO, &Drain::new())).await;
    let (text, advice) = match loaded {
        Ok(Ok(())) => return Some(Finding::ok("key_set", subject, format!("the key set {location} can be read"))),
        Ok(Err(error)) => (chain(&error), error.advice()),
        Err(_) => (format!("the key set {location} does not come within {KEYS:?}"), String::new()),
    };
    let finding = Finding::error("key_set", subject, text).why("Tokens signed with the issuer's keys are refused.");
    Some(if advice.is_empty() { finding } else { finding.todo(advice) })
}

fn folder(dir: &Path, log_dir: &Path, keep: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (there, exists) = nearest(dir);
    let shown = dir.display();
    let may_write = access(&there, AccessFlags::W_OK | AccessFlags::X_OK);
    match (may_write, exists, there.is_dir()) {
        (_, _, false) => findings.push(bad_folder(format!("{} is no folder", there.display()))),
        (Err(error), true, _) => {
            findings.push(bad_folder(format!("{shown} can't be written: {}", io::Error::from(error))))
        }
        (Err(error), false, _) => findings.push(bad_folder(format!(
            "{shown} is not there and can't be made in {}: {}",
            there.display(),
            io::Error::from(error)
        ))),
        (Ok(()), true, _) => {
            findings.push(Finding::ok("data_dir", Subject::machine(), format!("{shown} can be written")))
        }
        (Ok(()), false, _) => {
            findings.push(Finding::ok("data_dir", Subject::machine(), format!("{shown} will be made")));
        }
    }
    if let Some(pid) = holder(&log_dir.join("lock")) {
        let what = format!("the relay with process id {pid} uses {shown}");
        findings.push(
            Finding::note("data_dir_in_use", Subject::machine(), what)
                .why("A folder belongs to one relay; a second one with the same folder does not start."),
        );
    }
    findings.extend(room(&there, dir, keep));
    findings
}

fn bad_folder(what: String) -> Finding {
    Finding::error("data_dir", Subject::machine(), what)
        .why("The relay keeps its log of changes there and does not start without it.")
        .todo("Set ROWCAST_DATA_DIR to a folder of the relay's user, or give this one to him with chown.")
}

/// The folder, or the one above it that is there.
fn nearest(dir: &Path) -> (PathBuf, bool) {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let found = absolute.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/")).to_owned();
    let exists = found == absolute;
    (found, exists)
}

/// The process that holds the lock on this file, from the kernel's list: to try the lock ourselves could keep a relay from
/// starting in that moment.
fn holder(lock: &Path) -> Option<u32> {
    let file = stat(lock).ok()?;
    let wanted = format!("{:02x}:{:02x}:{}", major(file.st_dev), minor(file.st_dev), file.st_ino);
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let found = words.contains(&"FLOCK") && words.contains(&wanted.as_str());
        found.then(|| words.get(4).and_then(|pid| pid.parse().ok())).flatten()
    })
}

fn room(there: &Path, dir: &Path, keep: u64) -> Option<Finding> {
    let fs = nix::sys::statvfs::statvfs(there).ok()?;
    let free = fs.blocks_available().saturating_mul(fs.fragment_size());
    let used = used(&dir.join("log"));
    let needed = keep.saturating_sub(used);
    if free >= needed {
        return None;
    }
    let shown = |bytes: u64| size(i64::try_from(bytes).unwrap_or(i64::MAX));
    let what = format!("{} has {} free; the log may still grow by {}", there.display(), shown(free), shown(needed));
    let finding = Finding::warning("disk", Subject::machine(), what)
        .why("On a full disk the relay stops reading changes, and the slot holds back WAL on the server.")
        .todo("Set ROWCAST_LOG_RETAIN_BYTES to what the disk has, or ROWCAST_DATA_DIR to a larger disk.");
    Some(finding)
}

/// Bytes of the files in the folder.
fn used(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).filter(std::fs::Metadata::is_file).map(|file| file.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::super::{Severity, worst};
    use super::*;
    use crate::log::{Files as _, Lock, RealFiles};

    #[test]
    fn a_secret_from_the_documentation_or_of_few_characters_is_weak() {
        let severity = |text: &str| secret(Some(text.as_bytes())).expect("a finding").severity;
        assert_eq!(severity(KNOWN_SECRETS[0]), Severity::Warning);
        assert_eq!(severity(&"ab".repeat(20)), Severity::Warning);
        assert_eq!(severity("0f3b9d8c7e6a51420f3b9d8c7e6a5142"), Severity::Ok);
        assert_eq!(secret(None), None);
    }

    #[test]
    fn every_wrong_setting_is_a_finding_and_the_database_is_looked_at_all_the_same() {
        let mut settings = Settings::default();
        settings.set("database_url", "postgres://u@h/d");
        settings.set("slot", "my slot");
        settings.set("jwt_secret", "short");
        let (config, findings) = usable(&settings, Path::new("/nowhere"));
        assert_eq!(config.expect("a configuration").ingest.wal.slot, "rowcast");
        let named: Vec<&str> = findings.iter().map(|finding| finding.subject.name.as_str()).collect();
        assert_eq!(named, ["JWT_SECRET", "ROWCAST_SLOT"]);
        assert!(findings.iter().all(|finding| !finding.what.contains("short")));
        settings.set("database_url", "nonsense");
        assert!(usable(&settings, Path::new("/nowhere")).0.is_none());
    }

    #[test]
    fn the_folder_is_looked_at_and_not_made() {
        let home = tempfile::tempdir().expect("a folder");
        let dir = home.path().join("data");
        let log = dir.join("log");
        let found = folder(&dir, &log, 0);
        assert_eq!(worst(&found), Severity::Ok, "{found:?}");
        assert!(!dir.exists());

        std::fs::write(&dir, "").expect("a file");
        let found = folder(&dir, &log, 0);
        assert!(found[0].what.contains("is no folder"), "{found:?}");
        std::fs::remove_file(&dir).expect("removed");

        std::fs::create_dir_all(&log).expect("a folder");
        let held = RealFiles.lock(&log.join("lock")).expect("a lock");
        assert!(matches!(held, Lock::Ours(_)));
        let found = folder(&dir, &log, u64::MAX);
        let checks: Vec<&str> = found.iter().map(|finding| finding.check).collect();
        assert_eq!(checks, ["data_dir", "data_dir_in_use", "disk"], "{found:?}");
        assert!(found[1].what.contains(&std::process::id().to_string()));
        drop(held);
        assert_eq!(folder(&dir, &log, 0).len(), 1);
    }
}
