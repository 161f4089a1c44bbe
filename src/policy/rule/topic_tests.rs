//! Against a real Postgres, for topics and arguments of every kind.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::testing::TestDatabase;

const TOPICS: &[&str] = &[
    "",
    ":",
    "::",
    ":::",
    "room",
    "room:",
    "room:1",
    "room:1:",
    ":room:1",
    "room:1:chat",
    "room::chat",
    "a:b:c:d:e:f:g:h:i:j:k",
    "rooms:1",
    "ROOM:1",
    "room:room:room",
    "aaa",
    "aaaaaaa",
    "%",
    "_",
    "%%",
    "__",
    "room:%",
    "room_1",
    "\\",
    "\\\\",
    "room\\:1",
    "\\%",
    "100%",
    "a%b_c\\d",
    "ünï:cödé",
    "ü",
    "üü",
    "房间:一",
    "😀:😀😀",
    "e\u{301}:é",
    "it's",
    "a\nb:c\td",
    " room : 1 ",
    "room:a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    "room:A0EEBC999C0B4EF8BB6D6BB9BD380A11",
    "room:007",
    "room: 7 ",
    "room:-7",
    "room:9223372036854775807",
    "room:9223372036854775808",
    "room:1.5",
    "room:true",
    "room:room:1",
];
const TEXTS: &[&str] =
    &["", ":", "::", "a", "aa", "room", "room:", "o", "ü", "😀", "%", "_", "\\", "'", "\u{301}", " "];
const PATTERNS: &[&str] = &[
    "",
    "%",
    "%%",
    "_",
    "__",
    "room:%",
    "room:_",
    "%:%",
    "%:_",
    "_%",
    "%_%",
    "room",
    "%1",
    "%1%",
    "%o%o%",
    "a%b_c\\\\d",
    "\\%",
    "\\_",
    "%\\%",
    "room\\:1",
    "ü%",
    "_:%",
    "%😀",
    "%😀_",
    "\\ü%",
    "%a%a%a%",
    "%aab",
    "r__m:%",
    "%:%:%",
    "%é",
    "\\\\",
    "\\\\\\\\",
    "%\\\\%",
    "room\\\\%",
];
const NUMBERS: &[i32] = &[1, 2, 3, 4, 5, 11, 12, 100, -1, -2, -3, -4, -11, -12, i32::MAX, i32::MIN + 1];

fn made(dice: &mut StdRng, depth: u32) -> TopicValue {
    if depth == 0 {
        return TopicValue::Topic;
    }
    let of = Box::new(made(dice, depth - 1));
    let text = |dice: &mut StdRng| Box::from(*TEXTS.choose(dice).expect("some"));
    let number = |dice: &mut StdRng| *NUMBERS.choose(dice).expect("some");
    let any = |dice: &mut StdRng| if dice.random_bool(0.2) { 0 } else { *NUMBERS.choose(dice).expect("some") };
    match dice.random_range(0..10) {
        0 => TopicValue::NullIf(of, text(dice)),
        1 | 2 => TopicValue::Part(of, text(dice), number(dice)),
        3 => TopicValue::Element(of, text(dice), any(dice)),
        4 => TopicValue::Substring(of, any(dice), None),
        5 => TopicValue::Substring(of, any(dice), Some(any(dice).saturating_abs())),
        6 => TopicValue::Left(of, any(dice)),
        7 => TopicValue::Right(of, any(dice)),
        8 => TopicValue::Replace(of, text(dice), text(dice)),
        _ => TopicValue::Joined(vec![TopicValue::Text(text(dice)), *of, TopicValue::Text(text(dice))]),
    }
}

fn whole(dice: &mut StdRng) -> TopicValue {
    let depth = dice.random_range(0..4);
    let of = Box::new(made(dice, depth));
    match dice.random_range(0..6) {
        0 | 1 => TopicValue::Like(of, Pattern::new(PATTERNS.choose(dice).expect("some")).expect("a pattern")),
        2 => TopicValue::StartsWith(of, Box::from(*TEXTS.choose(dice).expect("some"))),
        3 => {
            let casts =
                [Conversion::TextToUuid, Conversion::TextToInt(2), Conversion::TextToInt(4), Conversion::TextToInt(8)];
            TopicValue::Cast(*casts.choose(dice).expect("some"), of)
        }
        _ => *of,
    }
}

/// What the server says of each topic; `Err` where it raises.
async fn told(database: &TestDatabase, value: &TopicValue) -> Vec<Result<Option<String>, ()>> {
    let sql = format!("select ({value})::text from unnest($1::text[]) with ordinality as t(topic, n) order by n");
    match database.client.query(&sql, &[&TOPICS]).await {
        Ok(rows) => rows.iter().map(|row| Ok(row.get(0))).collect(),
        Err(error) if error.as_db_error().is_some_and(|error| error.code().code() != "42601") => {
            let sql = format!("select ({value})::text from (values ($1::text)) as t(topic)");
            let mut all = Vec::new();
            for topic in TOPICS {
                all.push(database.client.query_one(&sql, &[topic]).await.map(|row| row.get(0)).map_err(|_| ()));
            }
            all
        }
        Err(error) => panic!("{value}: {error:?}"),
    }
}

#[tokio::test]
async fn what_is_made_of_a_topic_is_what_postgres_makes_of_it() {
    let database = TestDatabase::new().await;
    let seed: u64 = rand::random_range(1_000_000..1_000_000_000);
    println!("topic values: seeds 1 and {seed}");
    let (mut compared, mut raised) = (0, 0);
    for seed in [1, seed] {
        let mut dice = StdRng::seed_from_u64(seed);
        let patterns = PATTERNS.iter().map(|pattern| Pattern::new(pattern).expect("a pattern"));
        let mut values: Vec<TopicValue> =
            patterns.map(|pattern| TopicValue::Like(Box::new(TopicValue::Topic), pattern)).collect();
        values.extend((0..400).map(|_| whole(&mut dice)));
        for value in &values {
            let is_boolean = matches!(value, TopicValue::Like(..) | TopicValue::StartsWith(..));
            for (topic, told) in TOPICS.iter().zip(told(&database, value).await) {
                let made = value.of(topic);
                if made == Err(Fault::Unsure) {
                    continue;
                }
                let told = told.map(|text| text.map(|text| if is_boolean { text[..1].to_owned() } else { text }));
                let shown = made
                    .as_ref()
                    .map_err(|_| ())
                    .map(|made| made.as_deref().map(|made| String::from_utf8(made.to_vec()).expect("a text")));
                assert_eq!(shown, told, "seed {seed}, topic {topic:?}: {value}");
                compared += 1;
                raised += u32::from(told.is_err());
            }
        }
    }
    println!("{compared} values compared, of which {raised} raise");
    assert!(compared > 30_000 && raised > 1_000 && raised < compared / 4, "{compared} compared, {raised} raised");
}

#[tokio::test]
async fn an_escape_of_ones_own_is_written_with_backslashes_as_postgres_writes_it() {
    let database = TestDatabase::new().await;
    for escape in ["", "!", "\\", "%", "_", "ü", "a"] {
        for pattern in PATTERNS.iter().chain(&["!", "!!", "a!%b", "!%!_!!", "%!", "üü%", "ü%", "\\!%", "!\\%"]) {
            let told: String = database
                .client
                .query_one("select like_escape($1, $2)", &[pattern, &escape])
                .await
                .expect("told")
                .get(0);
            assert_eq!(Pattern::escaped(pattern, escape).as_deref(), Some(&*told), "{pattern} escape {escape}");
        }
    }
    assert_eq!(Pattern::escaped("a", "!!"), None);
}

#[test]
fn a_pattern_that_ends_in_a_backslash_is_no_pattern() {
    for text in ["\\", "a\\", "%\\", "\\\\\\"] {
        assert_eq!(Pattern::new(text), None, "{text}");
    }
    assert!(Pattern::new("a\\\\").is_some());
}

#[test]
fn what_stands_inside_is_the_only_text_that_makes_the_whole() {
    for topic in TOPICS {
        for prefix in TEXTS {
            for suffix in TEXTS {
                let value = TopicValue::Inside(Box::new(TopicValue::Topic), (*prefix).into(), (*suffix).into());
                let made = value.of(topic).expect("a value").expect("not null").into_owned();
                match std::str::from_utf8(&made) {
                    Ok(inside) => assert_eq!(format!("{prefix}{inside}{suffix}"), **topic),
                    Err(_) => assert!(
                        topic.len() < prefix.len() + suffix.len()
                            || !topic.starts_with(prefix)
                            || !topic.ends_with(suffix),
                        "{value} of {topic}"
                    ),
                }
            }
        }
    }
    let null = TopicValue::NullIf(Box::new(TopicValue::Topic), "".into());
    assert_eq!(TopicValue::Inside(Box::new(null), "a".into(), "".into()).of(""), Ok(None));
}
