use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use super::*;

const SECRET: &str = "a secret of at least thirty-two bytes";
const URL: &str = "postgres://u:hunter2@h/d";

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn load(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let mut written = tempfile::NamedTempFile::new().expect("a file");
    written.write_all(file.as_bytes()).expect("written");
    Settings::load(Some(written.path()), &map(environment), &map(flags))?.config(Path::new("/default"))
}

fn mistakes(result: Result<Config, ConfigError>) -> Vec<(String, String)> {
    match result.expect_err("refused") {
        ConfigError::Mistakes(all) => all.into_iter().map(|m| (m.setting, m.problem)).collect(),
        other => panic!("{other}"),
    }
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file_and_that_over_defaults() {
    let file = format!(
        "database_url = '{URL}'\nport = 1\nslot = 'file'\nhost = '::1'\npublication = ['a', 'b']\nmigrate = true"
    );
    let environment = [("PORT", "2"), ("ROWCAST_SLOT", "environment"), ("JWT_SECRET", SECRET), ("HOST", "")];
    let config = load(&file, &environment, &[("port", "3")]).expect("good");
    assert_eq!((config.port, config.ingest.wal.slot.as_str()), (3, "environment"));
    assert_eq!(config.host.to_string(), "::1", "an empty variable is none");
    assert_eq!(config.publications, ["a", "b"]);
    assert_eq!(config.stream_publications(), ["a", "b", FACTS_PUBLICATION, MESSAGES_PUBLICATION]);
    assert!(config.migrate);
    assert_eq!(config.retention, None, "off unless told");
    assert_eq!(config.data_dir, Path::new("/default"));
    assert_eq!(config.log.dir, Path::new("/default/log"));
    assert_eq!(config.admin.map(|a| a.to_string()).as_deref(), Some("127.0.0.1:4001"));
}

#[test]
fn every_mistake_is_reported_by_the_name_of_its_setting() {
    let environment = [
        ("DATABASE_URL", "postgres://h"),
        ("JWT_SECRET", "short"),
        ("JWKS_URL", "http://idp.example/keys"),
        ("ROWCAST_JWKS_REFRESH", "10ms"),
        ("PORT", "x"),
        ("HOST", "example.com"),
        ("ROWCAST_SLOT", "Upper"),
        ("ROWCAST_ADMIN_ADDR", "there"),
        ("ROWCAST_DELETES", "all"),
        ("ROWCAST_MIGRATE", "perhaps"),
        ("ROWCAST_STARTUP_TIMEOUT", "soon"),
        ("ROWCAST_RETENTION", "perhaps"),
        ("ROWCAST_RETENTION_INTERVAL", "0s"),
        ("ROWCAST_LOG_RETAIN_BYTES", "much"),
        ("ROWCAST_LOG_RETAIN_AGE", "long"),
        ("ROWCAST_LOG_MEMORY", "1023KiB"),
        ("ROWCAST_OUTBOX_BYTES", "-1"),
        ("ROWCAST_MAX_CONNECTIONS", "0"),
        ("ROWCAST_MAX_CHANNELS", "0"),
        ("ROWCAST_MAX_ENTRIES_PER_JOIN", "-1"),
        ("ROWCAST_MAX_ENTRIES_PER_CONNECTION", "many"),
        ("ROWCAST_MAX_JOINS_PER_SECOND", "0"),
        ("ROWCAST_MAX_JOIN_WAIT", "2h"),
        ("ROWCAST_MAX_SNAPSHOT_ROWS", "100001"),
        ("ROWCAST_SNAPSHOT_CONNECTIONS", "0"),
        ("ROWCAST_MAX_PAGES", "0"),
        ("ROWCAST_MAX_MESSAGE_BYTES", "1000"),
        ("ROWCAST_MAX_HEADER_BYTES", "4KiB"),
        ("ROWCAST_MAX_UNFINISHED_BYTES", "9MB"),
        ("ROWCAST_MAX_UNAUTHENTICATED", "0"),
        ("ROWCAST_IDLE_TIMEOUT", "2h"),
        ("ROWCAST_MAX_USER_POSTS", "0"),
        ("ROWCAST_MAX_POST_BYTES", "1"),
        ("ROWCAST_MAX_POSTING_BYTES", "few"),
        ("ROWCAST_MAX_ROOM_MESSAGES_PER_SECOND", "0"),
        ("ROWCAST_MAX_ROOM_PRESENCE_PER_SECOND", "-1"),
        ("ROWCAST_MAX_ROOM_PRESENCES", "all"),
        ("ROWCAST_MAX_ROOM_PRESENCE_BYTES", "100"),
        ("ROWCAST_PRESENCE_DIFF_WINDOW", "0ms"),
        ("ROWCAST_MAX_PRESENCE_DIFF_WINDOW", "61s"),
        ("ROWCAST_API_KEYS", "sb_secret_only"),
        ("ROWCAST_LOG", "a=b=c"),
        ("ROWCAST_LOG_FORMAT", "xml"),
    ];
    let found = mistakes(load("portt = 1\n[table]\nx = 1", &environment, &[]));
    for (name, _) in environment {
        assert!(found.iter().any(|(setting, _)| setting == name), "{name} in {found:?}");
    }
    for name in ["portt", "table"] {
        assert!(found.iter().any(|(setting, _)| setting == name), "{name} in {found:?}");
    }
    assert_eq!(found.len(), environment.len() + 2, "{found:?}");
    assert!(!format!("{found:?}").contains("sb_secret_only"), "a key was printed");
}

#[test]
fn what_has_no_default_is_asked_for() {
    let found = mistakes(load("", &[], &[]));
    let names: Vec<&str> = found.iter().map(|(setting, _)| setting.as_str()).collect();
    assert_eq!(names, ["DATABASE_URL", "JWT_SECRET"]);
}

#[test]
fn the_limits_of_a_connection_can_be_set() {
    let environment = [
        ("DATABASE_URL", URL),
        ("JWT_SECRET", SECRET),
        ("ROWCAST_MAX_CHANNELS", "7"),
        ("ROWCAST_MAX_ENTRIES_PER_JOIN", "8"),
        ("ROWCAST_MAX_ENTRIES_PER_CONNECTION", "9"),
        ("ROWCAST_MAX_JOINS_PER_SECOND", "10"),
        ("ROWCAST_MAX_JOIN_WAIT", "11s"),
        ("ROWCAST_MAX_SNAPSHOT_ROWS", "14"),
        ("ROWCAST_SNAPSHOT_CONNECTIONS", "15"),
        ("ROWCAST_MAX_PAGES", "16"),
        ("ROWCAST_MAX_POSTS_PER_SECOND", "25"),
        ("ROWCAST_MAX_POSTED_MESSAGES_PER_SECOND", "26"),
        ("ROWCAST_MAX_MESSAGE_BYTES", "12MB"),
        ("ROWCAST_MAX_HEADER_BYTES", "13KiB"),
        ("ROWCAST_MAX_ALL_JOINS_PER_SECOND", "17"),
        ("ROWCAST_MAX_MESSAGES_PER_SECOND", "18"),
        ("ROWCAST_MAX_PRESENCE_CALLS", "19"),
        ("ROWCAST_PRESENCE_WINDOW", "20s"),
        ("ROWCAST_MAX_PAYLOAD_BYTES", "256kB"),
        ("ROWCAST_PRIVATE_ONLY", "true"),
        ("ROWCAST_AUTHZ_RECHECK", "21s"),
        ("ROWCAST_AUTHZ_CONNECTIONS", "22"),
    ];
    let config = load("", &environment, &[]).expect("good");
    assert_eq!((config.authority.recheck.as_secs(), config.authority.connections), (21, 22));
    let (gateway, snapshot) = (config.gateway, config.hub.snapshot);
    assert_eq!((snapshot.max_rows, snapshot.connections), (14, 15));
    assert_eq!((gateway.max_page_rows, gateway.max_pages), (14, 16));
    assert_eq!((gateway.max_posts_per_second, gateway.max_posted_messages_per_second), (25, 26));
    assert_eq!((gateway.max_channels, gateway.max_entries, gateway.max_connection_entries), (7, 8, 9));
    assert_eq!((gateway.max_joins_per_second, gateway.max_join_wait.as_secs()), (10, 11));
    assert_eq!((gateway.max_all_joins_per_second, gateway.max_messages_per_second), (17, 18));
    assert_eq!((gateway.max_presence_calls, gateway.presence_window.as_secs()), (19, 20));
    assert_eq!((gateway.max_payload_bytes, gateway.private_only), (256_000, true));
    assert_eq!((gateway.max_message_bytes, gateway.max_head_bytes), (12_000_000, 13 * 1024));
    let defaults = Config::new(URL, SECRET, "/data").expect("good");
    assert_eq!((defaults.gateway, defaults.rooms), (GatewayConfig::default(), RoomConfig::default()));
}

#[test]
fn the_limits_of_rooms_and_of_all_clients_can_be_set() {
    let environment = [
        ("DATABASE_URL", URL),
        ("JWT_SECRET", SECRET),
        ("ROWCAST_MAX_ROOM_MESSAGES_PER_SECOND", "1"),
        ("ROWCAST_MAX_ROOM_PRESENCE_PER_SECOND", "2"),
        ("ROWCAST_MAX_ROOM_PRESENCES", "3"),
        ("ROWCAST_MAX_ROOM_PRESENCE_BYTES", "4KiB"),
        ("ROWCAST_PRESENCE_DIFF_WINDOW", "5ms"),
        ("ROWCAST_MAX_PRESENCE_DIFF_WINDOW", "6s"),
        ("ROWCAST_MAX_UNFINISHED_BYTES", "70MB"),
        ("ROWCAST_MAX_USER_POSTS", "8"),
        ("ROWCAST_MAX_USER_PAGES", "13"),
        ("ROWCAST_MAX_POST_BYTES", "9kB"),
        ("ROWCAST_MAX_POSTING_BYTES", "10MB"),
        ("ROWCAST_MAX_UNAUTHENTICATED", "11"),
        ("ROWCAST_IDLE_TIMEOUT", "12s"),
    ];
    let Config { rooms, gateway, .. } = load("", &environment, &[]).expect("good");
    let expected = RoomConfig {
        messages_per_second: 1,
        presence_per_second: 2,
        presence_metas: 3,
        presence_bytes: 4096,
        presence_window: Duration::from_millis(5),
        presence_longest_window: Duration::from_secs(6),
        ..RoomConfig::default()
    };
    assert_eq!(rooms, expected);
    assert_eq!((gateway.max_unfinished_bytes, gateway.max_user_posts), (70_000_000, 8));
    assert_eq!(gateway.max_user_pages, 13);
    assert_eq!((gateway.max_post_bytes, gateway.max_posting_bytes), (9000, 10_000_000));
    assert_eq!((gateway.max_unauthenticated, gateway.idle_timeout.as_secs()), (11, 12));
}

#[test]
fn there_is_a_place_for_two_of_the_largest_messages() {
    let with = |more: &[(&str, &str)]| {
        let base = [("DATABASE_URL", URL), ("JWT_SECRET", SECRET), ("ROWCAST_MAX_MESSAGE_BYTES", "200MB")];
        load("", &[&base, more].concat(), &[])
    };
    assert_eq!(with(&[]).expect("good").gateway.max_unfinished_bytes, 400_000_000);
    assert!(with(&[("ROWCAST_MAX_UNFINISHED_BYTES", "400MB")]).is_ok());
    let found = mistakes(with(&[("ROWCAST_MAX_UNFINISHED_BYTES", "399MB")]));
    assert_eq!(found, [("ROWCAST_MAX_UNFINISHED_BYTES".to_owned(), "is less than 400000000 bytes".to_owned())]);
}

#[test]
fn nothing_prints_a_secret() {
    let environment = [("DATABASE_URL", URL), ("JWT_SECRET", SECRET), ("ROWCAST_API_KEYS", "sb_secret_x=service_role")];
    let config = load("", &environment, &[]).expect("good");
    let settings = Settings::load(None, &map(&environment), &BTreeMap::new()).expect("good");
    let text = format!("{config:?} {settings:?}");
    for secret in ["hunter2", "thirty-two", "sb_secret_x"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    assert_eq!(config.verifier.opaque_keys["sb_secret_x"], "service_role");
}

#[test]
fn a_file_that_is_no_toml_is_refused_without_its_text() {
    let error = load("jwt_secret = \"hunter2", &[], &[]).expect_err("refused");
    assert!(matches!(error, ConfigError::Syntax { .. }), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    let missing = Settings::load(Some(Path::new("/no/such/file")), &BTreeMap::new(), &BTreeMap::new());
    assert!(matches!(missing, Err(ConfigError::Unreadable { .. })));
}

#[test]
fn a_configuration_for_a_test_needs_three_things() {
    let config = Config::new(URL, SECRET, "/data").expect("good");
    assert_eq!((config.port, config.admin, config.host.is_loopback()), (0, None, true));
    assert_eq!(config.ingest.wal.spill_dir, Path::new("/data/spill"));
    assert!(Config::new("nonsense", "short", "/data").is_err());
}

#[test]
fn a_key_set_can_stand_beside_the_secret_or_in_its_place() {
    let url = ("JWKS_URL", "https://idp.example/keys?token=hunter2");
    let key_set = |more: &[(&str, &str)]| {
        let environment = [&[("DATABASE_URL", URL), url], more].concat();
        let config = load("", &environment, &[]).expect("good");
        assert!(!format!("{config:?}").contains("hunter2"), "the query was printed");
        (config.verifier.jwt_secret, config.verifier.key_set.expect("a key set"))
    };
    let (secret, alone) = key_set(&[]);
    assert_eq!((secret, alone.ca, alone.refresh.as_secs(), alone.floor.as_secs()), (None, None, 600, 30));
    assert_eq!(alone.location.to_string(), "https://idp.example/keys");
    let (secret, beside) = key_set(&[("JWT_SECRET", SECRET), ("ROWCAST_JWKS_REFRESH", "1m"), ("SSL_CERT_FILE", "/a")]);
    assert_eq!((secret.as_deref(), beside.refresh.as_secs()), (Some(SECRET.as_bytes()), 60));
    assert_eq!(beside.ca.as_deref(), Some(Path::new("/a")));
    let (_, own) = key_set(&[("SSL_CERT_FILE", "/a"), ("ROWCAST_JWKS_CA", "/b")]);
    assert_eq!(own.ca.as_deref(), Some(Path::new("/b")));
    // Set for other programs; nothing here needs it.
    assert!(load("", &[("DATABASE_URL", URL), ("JWT_SECRET", SECRET), ("SSL_CERT_FILE", "/no/such")], &[]).is_ok());
}

#[test]
fn retention_runs_only_when_told_to() {
    let base = [("DATABASE_URL", URL), ("JWT_SECRET", SECRET)];
    for (more, expected) in [
        (vec![("ROWCAST_RETENTION", "off"), ("ROWCAST_RETENTION_INTERVAL", "1m")], None),
        (vec![("ROWCAST_RETENTION_INTERVAL", "1m")], None),
        (vec![("ROWCAST_RETENTION", "on")], Some(600)),
        (vec![("ROWCAST_RETENTION", "on"), ("ROWCAST_RETENTION_INTERVAL", "1m")], Some(60)),
    ] {
        let environment: Vec<_> = base.into_iter().chain(more).collect();
        let config = load("", &environment, &[]).expect("good");
        assert_eq!(config.retention.map(|interval| interval.as_secs()), expected, "{environment:?}");
    }
}
