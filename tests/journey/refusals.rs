//! Subscriptions that can't be: what the client reads, and that its channel lives on (`protocol.md` §5.5).

use serde_json::{Value, json};

use super::{Scene, notify, watching};
use crate::support::phone::PATIENCE;
use crate::support::token::{self, ALICE};
use crate::support::{Phone, Stock, Version};

const NOT_ENABLED: &str = "Unable to subscribe to changes with given parameters. Please check Realtime is enabled for the given \
                           connect parameters: ";
const EXCEPTION: &str = "Unable to subscribe to changes with given parameters. An exception happened so please check your \
                         connect parameters: ";

fn notifications(filter: &str) -> Value {
    json!([{ "event": "*", "schema": "public", "table": "notifications", "filter": filter }])
}

/// The message of the `system` frame that follows a good join reply.
async fn refusal(phone: &mut Phone, topic: &str, entries: &Value) -> String {
    let reply = phone.join(topic, entries).await;
    assert_eq!(reply["status"], "ok", "{reply}");
    let system = phone.system(topic).await;
    let message = system["message"].as_str().expect("a text").to_owned();
    let expected = json!({ "extension": "postgres_changes", "status": "error", "message": message, "channel": topic });
    assert_eq!(system, expected, "{entries}");
    message
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_that_cannot_be_read_is_answered_with_the_known_words() {
    let scene = Scene::start().await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    let cases = [
        ("wrong", "Error parsing `filter` params: [\"wrong\"]"),
        ("id=foo.hey", "Error parsing `filter` params: [\"foo\", \"hey\"]"),
        ("id=eq5", "Error parsing `filter` params: [\"eq5\"]"),
        ("id=gt.1,", "Error parsing `filter` params: filter must not contain empty segments (check for extra commas)"),
        ("id=in.1", "Error parsing `filter` params: `in` filter value must be wrapped by parentheses"),
    ];
    for (index, (filter, expected)) in cases.into_iter().enumerate() {
        let message = refusal(&mut phone, &format!("room {index}"), &notifications(filter)).await;
        assert_eq!(message, expected, "{filter}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_that_postgres_refuses_is_answered_with_its_words() {
    let scene = Scene::start().await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    let parameters =
        |filters: &str| format!("[event: *, schema: public, table: notifications, filters: [{filters}], select: nil]");
    let cases = [
        (
            "nope=eq.1",
            "{\"nope\", \"eq\", \"1\", false}",
            "ERROR P0001 (raise_exception) invalid column for filter nope",
        ),
        (
            "id=eq.hey",
            "{\"id\", \"eq\", \"hey\", false}",
            "ERROR 22P02 (invalid_text_representation) invalid input syntax for type bigint: \"hey\"",
        ),
        (
            "user_id=eq.me",
            "{\"user_id\", \"eq\", \"me\", false}",
            "ERROR 22P02 (invalid_text_representation) invalid input syntax for type uuid: \"me\"",
        ),
        (
            "read_at=eq.99999-99-99",
            "{\"read_at\", \"eq\", \"99999-99-99\", false}",
            "ERROR 22008 (datetime_field_overflow) date/time field value out of range: \"99999-99-99\"",
        ),
    ];
    for (index, (filter, filters, exception)) in cases.into_iter().enumerate() {
        let message = refusal(&mut phone, &format!("room {index}"), &notifications(filter)).await;
        assert_eq!(message, format!("{EXCEPTION}{}. Exception: {exception}", parameters(filters)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_not_published_and_a_shape_that_is_none_are_named() {
    let unpublished = "create table public.private_notes (id int primary key); \
                       grant select on public.private_notes to authenticated;";
    let scene = Scene::with(unpublished).await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    for (index, (schema, table)) in
        [("public", "private_notes"), ("public", "no_such_table"), ("nowhere", "*")].into_iter().enumerate()
    {
        let entries = json!([{ "event": "INSERT", "schema": schema, "table": table }]);
        let message = refusal(&mut phone, &format!("table {index}"), &entries).await;
        let parameters = format!("[event: INSERT, schema: {schema}, table: {table}, filters: [], select: nil]");
        assert_eq!(message, format!("{NOT_ENABLED}{parameters}"));
    }
    for (index, entry) in [json!({ "event": "*" }), json!({ "event": "*", "schema": "public", "filter": "id=eq.1" })]
        .into_iter()
        .enumerate()
    {
        let message = refusal(&mut phone, &format!("shape {index}"), &json!([entry])).await;
        let known =
            "No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: %{";
        assert!(message.starts_with(known), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_entry_leaves_none_active_and_the_channel_lives_on() {
    let scene = Scene::start().await;
    for version in [Version::V1, Version::V2] {
        let mut phone = Phone::connect(&scene.relay.base(), &token::user(ALICE), version).await;
        let entries = json!([
            { "event": "*", "schema": "public", "table": "notifications" },
            { "event": "*", "schema": "public", "table": "notifications", "filter": "nope=eq.1" },
        ]);
        let message = refusal(&mut phone, "mixed", &entries).await;
        assert!(message.ends_with("invalid column for filter nope"), "{message}");
        phone.subscribe("good", &watching(&["notifications"])).await;
        scene.exec(&notify(ALICE, "n")).await;
        scene.mark("end").await;
        let changes = phone.changes_before("end").await;
        assert_eq!(changes.iter().map(|change| &*change.topic).collect::<Vec<_>>(), ["good"]);
        phone.leave("mixed").await;
        phone.subscribe("mixed", &watching(&["notifications"])).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_clients_tell_their_application_why() {
    let scene = Scene::start().await;
    let entries = json!([{ "event": "*", "schema": "public", "table": "no_such_table" }]);
    let mut js = scene.relay.sdk(Stock::JavaScript, &token::user(ALICE)).await;
    js.ask_to_subscribe("room", &entries);
    assert_eq!(js.status("room").await.0, "SUBSCRIBED");
    let system = js.system("room").await;
    assert_eq!(system["status"], "error");
    assert!(system["message"].as_str().is_some_and(|text| text.starts_with(NOT_ENABLED)), "{system}");
    js.exit().await;

    let mut py = scene.relay.sdk(Stock::Python, &token::user(ALICE)).await;
    py.ask_to_subscribe("room", &entries);
    assert_eq!(py.status("room").await.0, "SUBSCRIBED");
    let (status, error) = py.status("room").await;
    assert_eq!(status, "CHANNEL_ERROR");
    assert!(error.contains(NOT_ENABLED), "{error}");
    py.exit().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_is_refused_at_the_door() {
    let scene = Scene::start().await;
    let address = scene.relay.addr();
    let handshake = async |key: &str| {
        let url = format!("ws://{address}/realtime/v1/websocket?vsn=2.0.0{key}");
        let connecting = tokio_tungstenite::connect_async(url);
        match tokio::time::timeout(PATIENCE, connecting).await.expect("an answer") {
            Err(tokio_tungstenite::tungstenite::Error::Http(answer)) => {
                let body: Value = serde_json::from_slice(answer.body().as_deref().unwrap_or_default()).expect("JSON");
                (answer.status().as_u16(), body["error"].as_str().unwrap_or_default().to_owned())
            }
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("it was let in"),
        }
    };
    assert_eq!(handshake("").await, (401, "API key is missing".to_owned()));
    assert_eq!(handshake("&apikey=x").await, (401, "The token provided is not a valid JWT".to_owned()));
    let old = format!("&apikey={}", token::expired(ALICE));
    assert_eq!(handshake(&old).await, (401, "Token has expired".to_owned()));
}

/// Decision 25: told once when the subscription begins, and never a frame for each row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_never_be_sent_is_told_once() {
    let tables = "
        create table public.keyless (id int, note text); alter table public.keyless replica identity full;
        create table public.hidden_key (id int primary key, note text); alter table public.hidden_key replica identity full;
        grant select on public.keyless to authenticated; grant select (note) on public.hidden_key to authenticated;
        alter publication supabase_realtime add table public.keyless, public.hidden_key;";
    let scene = Scene::with(tables).await;
    for version in [Version::V1, Version::V2] {
        let mut phone = Phone::connect(&scene.relay.base(), &token::user(ALICE), version).await;
        for (table, text) in [
            ("keyless", "Error 400: Bad Request, no primary key: INSERT and UPDATE of public.keyless are not sent"),
            (
                "hidden_key",
                "Error 401: Unauthorized: role authenticated may not select the primary key of public.hidden_key; \
                 INSERT and UPDATE are not sent",
            ),
        ] {
            phone.subscribe(table, &watching(&[table])).await;
            let system = phone.system(table).await;
            let expected =
                json!({ "extension": "postgres_changes", "status": "ok", "message": text, "channel": table });
            assert_eq!(system, expected);
            scene
                .exec(&format!(
                    "insert into {table} values (1, 'n'); update {table} set note = 'm'; delete from {table}"
                ))
                .await;
            scene.mark("end").await;
            let changes = phone.changes_before("end").await;
            let kinds: Vec<_> = changes.iter().map(|c| (c.kind(), c.old_record()["note"].clone())).collect();
            assert_eq!(kinds, [("DELETE", json!("m"))], "{table}");
            phone.leave(table).await;
        }
        phone.subscribe("all", &json!([{ "event": "*", "schema": "*" }])).await;
        for text in ["public.hidden_key", "public.keyless"] {
            let system = phone.system("all").await;
            assert_eq!(system["status"], "ok");
            assert!(system["message"].as_str().is_some_and(|message| message.contains(text)), "{system}");
        }
        phone.subscribe("deletes", &json!([{ "event": "DELETE", "schema": "public", "table": "keyless" }])).await;
        phone.leave("deletes").await;
    }
}
