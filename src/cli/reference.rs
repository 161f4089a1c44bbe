//! The settings of `rowcast serve` as a table in Markdown, for README.
//!
//! Made of the flags' own help texts, which are the one place where a setting is described: the help, this table and the tests
//! can't say different things. What a flag's help must hold for that: a first sentence, then `[env: NAME]`, then, if there is
//! one, `[default: VALUE]`. Rejected: a table of its own beside the flags, which every new setting would have to be added to.

use std::fmt::Write as _;

use clap::{Arg, CommandFactory as _};

use super::args::Cli;

/// One setting, as its flag's help describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The heading it stands under in the help.
    pub group: String,
    /// Such as `--log-retain-age`. In a settings file it is the same without the dashes in front, with underscores.
    pub flag: String,
    /// What its value is: `TIME`, `SIZE`, `BOOL` and so on.
    pub form: String,
    /// Its name in the environment; more names, with their order, follow a comma.
    pub env: String,
    /// What counts if it is not set, in words.
    pub default: Option<String>,
    /// What it does.
    pub about: String,
}

/// All settings of `rowcast serve`, in the order of its help.
pub fn settings() -> Vec<Setting> {
    let command = Cli::command();
    let serve = command.find_subcommand("serve");
    serve.map(|serve| serve.get_arguments().filter_map(setting).collect()).unwrap_or_default()
}

fn setting(flag: &Arg) -> Option<Setting> {
    // clap's own flags, `--help` and `--version`, set nothing.
    let long = flag.get_long().filter(|_| flag.get_action().takes_values())?;
    let help = flag.get_help()?.to_string();
    let form = flag.get_value_names().and_then(|names| names.first()).map(|name| name.as_str().to_owned());
    Some(Setting {
        group: flag.get_help_heading().unwrap_or("Where the settings are").to_owned(),
        flag: format!("--{long}"),
        form: form.filter(|form| form != &long.to_uppercase()).unwrap_or_else(|| "NUMBER".into()),
        env: bracketed(&help, "[env: ").unwrap_or_default().to_owned(),
        default: bracketed(&help, "[default: ").map(str::to_owned),
        about: help.split(" [").next().unwrap_or_default().trim().to_owned(),
    })
}

fn bracketed<'a>(help: &'a str, start: &str) -> Option<&'a str> {
    let (_, rest) = help.split_once(start)?;
    rest.split_once(']').map(|(inside, _)| inside)
}

/// The table, one part for each heading of the help.
pub fn markdown() -> String {
    let mut text = String::new();
    let mut group = None;
    for setting in settings() {
        if group.as_ref() != Some(&setting.group) {
            let line = if group.is_some() { "\n" } else { "" };
            let head = "| Environment | Flag | Value | Default | What it does |\n|---|---|---|---|---|";
            let _ = writeln!(text, "{line}**{}**\n\n{head}", setting.group);
            group = Some(setting.group.clone());
        }
        let default = setting.default.map_or_else(|| "not set".to_owned(), |default| cell(&default));
        let (env, flag) = (cell(&setting.env.replace(", else ", "`, else `")), &setting.flag);
        let (form, about) = (setting.form.to_lowercase(), cell(&setting.about));
        let _ = writeln!(text, "| `{env}` | `{flag}` | {form} | {default} | {about} |");
    }
    text
}

/// A bar would end the cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use std::path::Path;

    #[test]
    fn every_flag_says_what_it_does_and_its_name_in_the_environment() {
        let settings = settings();
        assert!(settings.len() > 20, "{settings:#?}");
        for Setting { flag, env, about, .. } in settings {
            assert!(about.len() > 5 && !about.ends_with('.'), "{flag}: {about:?}");
            assert!(!env.is_empty(), "{flag} names no variable");
        }
    }

    /// What is set in a file, in the environment and by flag is the same, except for what no flag sets.
    #[test]
    fn the_flags_are_the_settings_by_the_names_that_the_code_reads() {
        let mut described: Vec<(String, String)> = settings()
            .into_iter()
            .map(|setting| {
                let name = setting.flag.trim_start_matches('-').replace('-', "_");
                (name, setting.env.split(", else ").next().expect("a first").to_owned())
            })
            .filter(|(name, _)| name != "config")
            .collect();
        let mut read: Vec<(String, String)> = crate::config::names()
            .filter(|(name, _)| *name != "ssl_cert_file")
            .map(|(name, variable)| (name.to_owned(), variable.to_owned()))
            .collect();
        described.sort();
        read.sort();
        assert_eq!(described, read);
    }

    /// A default that is a value is one: setting it changes nothing.
    #[test]
    fn the_defaults_in_the_help_are_those_of_the_code() {
        let mut unset = Settings::default();
        unset.set("database_url", "postgres://relay@localhost/app");
        unset.set("jwt_secret", &"s".repeat(32));
        unset.set("jwks_url", "https://issuer.example/keys");
        let config = |settings: &Settings| format!("{:?}", settings.config(Path::new("/data")).expect("good settings"));
        let mut checked = 0;
        for Setting { flag, default, .. } in settings() {
            let name = flag.trim_start_matches('-').replace('-', "_");
            // Those in words depend on the machine.
            let Some(default) = default.filter(|default| !default.contains(' ') && name != "jwks_ca") else { continue };
            let mut set = unset.clone();
            set.set(&name, &default);
            assert_eq!(config(&set), config(&unset), "{flag}: {default} is not the default");
            assert_eq!(
                set.logging().expect("good"),
                unset.logging().expect("good"),
                "{flag}: {default} is not the default"
            );
            checked += 1;
        }
        assert!(checked >= 14, "only {checked} defaults are values");
    }
}
