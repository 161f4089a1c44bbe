//! Requests as they come, with an exchange that says who may and keeps what is sent.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::stream;
use serde_json::{Value, json};
use warp::http::StatusCode;

use super::*;
use crate::claims::TokenError;

/// What the exchange was asked and given, and its answers: to each question the next one, then yes.
#[derive(Default)]
struct Book {
    asked: Mutex<Vec<(String, String)>>,
    answers: Mutex<VecDeque<Result<bool, AuthorityError>>>,
    sent: Mutex<Vec<(bool, String, String)>>,
    full: Option<RoomError>,
    stuck: bool,
}

struct Copy(Arc<Book>);

fn show(message: &Message) -> String {
    match message {
        Message::Text { payload } => String::from_utf8_lossy(payload).into_owned(),
        Message::Event { event, payload: Payload::Json(json), meta: None } => {
            format!("{event} {}", String::from_utf8_lossy(json))
        }
        Message::Event { event, payload: Payload::Binary(bytes), meta: None } => format!("{event} {bytes:?}"),
        Message::Event { .. } => panic!("meta over HTTP"),
    }
}

impl Exchange for Copy {
    fn may_write(&self, asking: Asking) -> BoxFuture<'_, Result<bool, AuthorityError>> {
        assert_eq!(&*asking.principal.role, "anon");
        self.0.asked.lock().unwrap().push((asking.topic.to_string(), asking.headers.to_string()));
        let answer = self.0.answers.lock().unwrap().pop_front().unwrap_or(Ok(true));
        async { answer }.boxed()
    }

    fn publish(&self, room: RoomKey, message: Message, _: Arc<str>) -> BoxFuture<'_, Result<(), RoomError>> {
        let book = self.0.clone();
        async move {
            if book.stuck {
                std::future::pending::<()>().await;
            }
            book.full.map_or(Ok(()), Err)?;
            book.sent.lock().unwrap().push((room.private, room.topic.to_string(), show(&message)));
            Ok(())
        }
        .boxed()
    }
}

struct Stage {
    broadcasts: Broadcasts,
    book: Arc<Book>,
}

fn stage() -> Stage {
    stage_with(Book::default(), |_| {})
}

fn stage_with(book: Book, change: impl FnOnce(&mut GatewayConfig)) -> Stage {
    let book = Arc::new(book);
    let mut config = GatewayConfig { post_timeout: Duration::from_millis(200), ..GatewayConfig::default() };
    change(&mut config);
    let exchange = Box::new(Copy(book.clone()));
    Stage { broadcasts: Broadcasts::new(config, exchange, Arc::default(), Drain::new()), book }
}

fn principal(subject: &str) -> Arc<Principal> {
    let claims = json!({ "role": "anon", "sub": subject, "exp": 9_999_999_999_i64 });
    let Value::Object(claims) = claims else { unreachable!("an object") };
    Arc::new(Principal::new(claims, i64::MAX).unwrap())
}

type Parts = Vec<Result<Bytes, warp::Error>>;

impl Stage {
    async fn post(
        &self,
        target: Target,
        headers: &[(&'static str, &str)],
        query: &str,
        body: &[u8],
    ) -> Response<Bytes> {
        let body: Parts = vec![Ok(Bytes::copy_from_slice(body))];
        self.post_as(Ok(principal("ada")), target, headers, query, stream::iter(body)).await
    }

    async fn post_as(
        &self,
        who: Result<Arc<Principal>, Refusal>,
        target: Target,
        headers: &[(&'static str, &str)],
        query: &str,
        body: impl Stream<Item = Result<Bytes, warp::Error>>,
    ) -> Response<Bytes> {
        let mut all = HeaderMap::new();
        headers.iter().for_each(|(name, value)| assert!(!all.append(*name, value.parse().unwrap())));
        let posted = Posted { target, headers: &all, query };
        self.broadcasts.answer(&posted, body, who).await
    }

    async fn batch(&self, body: &Value) -> (u16, Value) {
        told(&self.post(Target::Batch, &[], "", body.to_string().as_bytes()).await)
    }

    fn sent(&self) -> Vec<(bool, String, String)> {
        std::mem::take(&mut self.book.sent.lock().unwrap())
    }

    fn asked(&self) -> Vec<String> {
        self.book.asked.lock().unwrap().drain(..).map(|(topic, _)| topic).collect()
    }
}

fn told(response: &Response<Bytes>) -> (u16, Value) {
    let body = match response.body() {
        body if body.is_empty() => Value::Null,
        body => serde_json::from_slice(body).unwrap_or_else(|_| json!(String::from_utf8_lossy(body))),
    };
    (response.status().as_u16(), body)
}

fn message(topic: &str, private: bool) -> Value {
    json!({ "topic": topic, "event": "e", "payload": { "a": 1 }, "private": private })
}

fn event(topic: &str) -> Target {
    Target::Event { topic: topic.into(), event: "e%20e".into() }
}

const TEXT: &str = r#"{"type":"broadcast","event":"e","payload":{"a":1}}"#;

#[tokio::test]
async fn a_batch_is_handed_over_in_its_order() {
    let stage = stage();
    let body = json!({ "messages": [message("b", false), message("a", false), message("b", false)] });
    assert_eq!(stage.batch(&body).await, (202, Value::Null));
    let row = |topic: &str| (false, topic.to_owned(), TEXT.to_owned());
    assert_eq!(stage.sent(), [row("b"), row("a"), row("b")]);
    assert!(stage.asked().is_empty());
}

#[tokio::test]
async fn nothing_of_a_batch_with_a_mistake_is_delivered() {
    let stage = stage();
    let body = json!({ "messages": [message("a", false), { "topic": "a" }] });
    let wrong = json!({ "payload": ["can't be blank"], "event": ["can't be blank"] });
    assert_eq!(stage.batch(&body).await, (422, json!({ "errors": { "messages": [{}, wrong] } })));
    let blank = json!({ "errors": { "messages": ["can't be blank"] } });
    assert_eq!(stage.batch(&json!({})).await, (422, blank));
    let broken = stage.post(Target::Batch, &[], "", b"{").await;
    assert_eq!(told(&broken), (400, json!("Bad Request")));
    assert!(stage.sent().is_empty());
}

#[tokio::test]
async fn each_private_topic_of_a_batch_is_asked_about_once_and_what_is_denied_is_skipped() {
    let stage = stage();
    stage.book.answers.lock().unwrap().extend([Ok(true), Ok(false), Err(AuthorityError::Policy)]);
    let messages = [("a", true), ("b", true), ("c", true), ("a", true), ("b", false)];
    let body = json!({ "messages": messages.map(|(topic, private)| message(topic, private)) });
    assert_eq!(stage.batch(&body).await.0, 202);
    assert_eq!(stage.asked(), ["a", "b", "c"]);
    let row = |private, topic: &str| (private, topic.to_owned(), TEXT.to_owned());
    assert_eq!(stage.sent(), [row(true, "a"), row(true, "a"), row(false, "b")]);
}

#[tokio::test]
async fn a_batch_may_not_ask_about_topics_without_end() {
    let stage = stage();
    let topics = |count: usize| (0..count).map(|n| message(&format!("t{n}"), true)).collect::<Vec<_>>();
    stage.book.answers.lock().unwrap().extend((0..300).map(|_| Ok(true)));
    assert_eq!(stage.batch(&json!({ "messages": topics(MAX_PRIVATE_TOPICS) })).await.0, 202);
    assert_eq!(stage.sent().len(), MAX_PRIVATE_TOPICS);
    assert_eq!(stage.batch(&json!({ "messages": topics(MAX_PRIVATE_TOPICS + 1) })).await.0, 429);
    assert!(stage.sent().is_empty());
}

#[tokio::test]
async fn policies_see_all_headers_of_the_request() {
    let stage = stage();
    let headers = [("authorization", "Bearer t"), ("x-team", "7"), ("accept", "*/*")];
    assert_eq!(stage.post(event("a"), &headers, "private=true", b"1").await.status(), 202);
    let seen: Value = serde_json::from_str(&stage.book.asked.lock().unwrap()[0].1).unwrap();
    assert_eq!(seen, json!({ "authorization": "Bearer t", "x-team": "7", "accept": "*/*" }));
}

#[tokio::test]
async fn a_single_message_is_any_json_or_bytes() {
    let stage = stage();
    let json = [("content-type", "application/json; charset=utf-8")];
    for body in ["[1]", "\"x\"", " 1.10 ", "{\"a\": {}}", "null"] {
        assert_eq!(told(&stage.post(event("t%3A1%2F2"), &json, "", body.as_bytes()).await), (202, Value::Null));
        assert_eq!(stage.sent(), [(false, "t:1/2".to_owned(), format!("e e {body}"))]);
    }
    assert_eq!(stage.post(event("a"), &[], "private=false", b"").await.status(), 202);
    assert_eq!(stage.sent(), [(false, "a".to_owned(), "e e {}".to_owned())]);
    let octets = [("content-type", "application/octet-stream")];
    for body in [&b"\xde\xad"[..], b""] {
        assert_eq!(stage.post(event("a"), &octets, "", body).await.status(), 202);
        assert_eq!(stage.sent()[0].2, format!("e e {:?}", Bytes::from(body)));
    }
    assert!(stage.asked().is_empty());
    let text = [("content-type", "text/plain")];
    let (status, told_) = told(&stage.post(event("a"), &text, "", b"hi").await);
    assert_eq!((status, told_["error"].is_string()), (415, true));
    for body in [&b"{"[..], b"\xff", b"1 2"] {
        assert_eq!(stage.post(event("a"), &[], "", body).await.status(), 400);
    }
    let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    assert_eq!(stage.post(event("a"), &[], "", deep.as_bytes()).await.status(), 202);
    assert_eq!(stage.sent()[0].2.len(), deep.len() + 4);
}

#[tokio::test]
async fn what_stands_in_the_way_of_a_private_message_is_told() {
    let stage = stage();
    let timeout = AuthorityError::Timeout("canceled".into());
    for (answer, status, text) in [
        (Ok(false), 403, "Unauthorized"),
        (Err(AuthorityError::NotInstalled), 403, "Unauthorized"),
        (Err(AuthorityError::Policy), 422, "RLS policy error"),
        (Err(timeout), 422, "Query canceled"),
        (Err(AuthorityError::MissingPartition), 422, "Missing messages partition"),
        (Err(AuthorityError::Unavailable), 422, "Tenant database unavailable"),
        (Err(AuthorityError::PoolExhausted), 429, "Connection pool exhausted"),
    ] {
        stage.book.answers.lock().unwrap().push_back(answer);
        let response = stage.post(event("a"), &[], "private=true", b"{}").await;
        assert_eq!(told(&response), (status, json!({ "message": text })));
        assert!(stage.sent().is_empty());
    }
    // A batch that could not be judged says so, and nothing of it was sent.
    stage.book.answers.lock().unwrap().push_back(Err(AuthorityError::Unavailable));
    let body = json!({ "messages": [message("b", false), message("a", true)] });
    assert_eq!(stage.batch(&body).await.0, 422);
    assert!(stage.sent().is_empty());
}

#[tokio::test]
async fn whoever_is_not_authenticated_is_not_read() {
    let stage = stage();
    for refusal in [Refusal::NoKey, Refusal::Token(TokenError::Expired { seconds: 1 })] {
        let body = stream::poll_fn(|_| -> std::task::Poll<Option<Result<Bytes, warp::Error>>> {
            panic!("a byte was asked for")
        });
        let response = stage.post_as(Err(refusal), Target::Batch, &[("content-length", "1000")], "", body).await;
        assert_eq!(told(&response), (401, json!({ "message": "Unauthorized" })));
        for name in ["x-rate-rolling", "x-rate-limit", "x-rate-limit-remaining", "x-request-id"] {
            assert!(response.headers().contains_key(name), "{name}");
        }
        assert_eq!(response.headers()["access-control-allow-origin"], "*");
    }
}

#[tokio::test]
async fn bodies_that_are_too_large_are_refused_before_and_while_they_are_read() {
    let stage = stage_with(Book::default(), |config| (config.max_payload_bytes, config.max_post_bytes) = (1000, 9000));
    let large = json!({ "errors": { "payload": ["Payload size exceeds tenant limit"] } });
    let unread = || stream::poll_fn(|_| -> std::task::Poll<Option<Result<Bytes, warp::Error>>> { panic!("read") });
    let announced = stage.post_as(Ok(principal("a")), event("a"), &[("content-length", "1501")], "", unread()).await;
    assert_eq!(told(&announced), (422, large.clone()));
    let announced = stage.post_as(Ok(principal("a")), Target::Batch, &[("content-length", "9001")], "", unread()).await;
    assert_eq!(announced.status(), 413);
    let endless = stream::repeat_with(|| Ok(Bytes::from_static(&[b' '; 100])));
    assert_eq!(told(&stage.post_as(Ok(principal("a")), event("a"), &[], "", endless).await), (422, large));
    assert_eq!(stage.post(event("a"), &[], "", &[b'1'; 1500]).await.status(), 202);
    let mut message = message("a", false);
    message["payload"] = json!({ "x": "y".repeat(1500) });
    let told_ = stage.batch(&json!({ "messages": [message, {}] })).await;
    let expected = json!({ "payload": ["Payload size exceeds tenant limit"] });
    assert_eq!((told_.0, &told_.1["errors"]["messages"][0]), (422, &expected));
}

#[tokio::test]
async fn a_slow_body_and_a_slow_hand_over_end() {
    let stage = stage_with(Book { stuck: true, ..Book::default() }, |_| {});
    let slow = stream::once(async { Ok(Bytes::from_static(b"[")) }).chain(stream::pending());
    let response = stage.post_as(Ok(principal("a")), event("a"), &[], "", slow).await;
    assert_eq!(response.status(), 408);
    let response = stage.post(event("a"), &[], "", b"1").await;
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
}

#[tokio::test]
async fn above_a_rate_users_are_told_so_and_others_are_not() {
    let stage = stage_with(Book::default(), |config| config.max_posted_messages_per_second = 1);
    let many = json!({ "messages": vec![message("a", false); 61] });
    let text = "Too many messages to broadcast, please reduce the batch size";
    assert_eq!(stage.batch(&many).await, (429, json!({ "message": text })));
    let full = json!({ "messages": vec![message("a", false); 60] });
    assert_eq!(stage.batch(&full).await.0, 202);
    assert_eq!(stage.sent().len(), 60);
    let text = "You have exceeded your rate limit";
    assert_eq!(stage.batch(&full).await, (429, json!({ "message": text })));
    assert_eq!(told(&stage.post(event("a"), &[], "", b"1").await), (429, json!({ "message": text })));
    let body = stream::iter(vec![Ok(Bytes::from_static(b"1"))]);
    assert_eq!(stage.post_as(Ok(principal("bob")), event("a"), &[], "", body).await.status(), 202);
    let stage = stage_with(Book::default(), |config| config.max_posts_per_second = 1);
    for _ in 0..60 {
        assert_eq!(stage.post(event("a"), &[], "", b"1").await.status(), 202);
    }
    let response = stage.post(event("a"), &[], "", b"1").await;
    assert_eq!(told(&response), (429, json!({ "message": "Too many requests" })));
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!((header("x-rate-limit"), header("x-rate-limit-remaining")), ("1".into(), "0".into()));
    assert_eq!(header("x-rate-rolling"), "1.02");
}

#[tokio::test]
async fn a_room_that_is_full_and_a_relay_that_stops_say_so() {
    for (full, status) in [(RoomError::TooManyMessages, 429), (RoomError::Closed, 503)] {
        let stage = stage_with(Book { full: Some(full), ..Book::default() }, |_| {});
        assert_eq!(stage.post(event("a"), &[], "", b"1").await.status(), status);
    }
    let stage = stage();
    stage.broadcasts.drain.drain();
    assert_eq!(stage.post(event("a"), &[], "", b"1").await.status(), 503);
    assert!(stage.sent().is_empty());
}

#[tokio::test]
async fn bodies_count_until_their_messages_are_handed_over_and_not_only_while_they_are_read() {
    let stage = stage_with(Book { stuck: true, ..Book::default() }, |config| {
        config.post_timeout = Duration::from_secs(3600);
        (config.max_payload_bytes, config.max_post_bytes, config.max_posting_bytes) = (1000, 2000, 2000);
    });
    let mut waiting = Vec::new();
    // Each waits for its room with the place of a whole body, as it did not say how long it is.
    let refused = loop {
        let mut post = Box::pin(stage.post(event("a"), &[], "", b"1"));
        match futures_util::poll!(&mut post) {
            std::task::Poll::Ready(response) => break response,
            std::task::Poll::Pending => waiting.push(post),
        }
        assert!(waiting.len() < 10, "they all wait");
    };
    assert_eq!(refused.status(), 429);
    drop(waiting);
    let mut post = Box::pin(stage.post(event("a"), &[], "", b"1"));
    assert!(futures_util::poll!(&mut post).is_pending());
}

#[tokio::test]
async fn slow_bodies_of_one_user_are_bounded_in_number_and_others_are_taken() {
    let stage = stage_with(Book::default(), |config| {
        config.post_timeout = Duration::from_secs(3600);
        config.max_user_posts = 3;
    });
    let small = [("content-length", "2")];
    let slow = || {
        let body = stream::once(async { Ok(Bytes::from_static(b"[")) }).chain(stream::pending());
        Box::pin(stage.post_as(Ok(principal("ada")), event("a"), &small, "", body))
    };
    let mut under_way: Vec<_> = (0..3).map(|_| slow()).collect();
    for post in &mut under_way {
        assert!(futures_util::poll!(post).is_pending());
    }
    let std::task::Poll::Ready(refused) = futures_util::poll!(&mut slow()) else { panic!("it is read") };
    assert_eq!(told(&refused), (429, json!({ "message": "Too many requests" })));
    assert!(refused.headers().contains_key("retry-after"));
    let body = stream::iter(vec![Ok(Bytes::from_static(b"1"))]);
    assert_eq!(stage.post_as(Ok(principal("bob")), event("a"), &[], "", body).await.status(), 202);
    under_way.pop();
    assert_eq!(stage.post(event("a"), &[], "", b"1").await.status(), 202);
}

#[tokio::test]
async fn requests_that_wait_for_a_slow_room_keep_no_other_of_the_same_key_from_being_read() {
    let stage = stage_with(Book { stuck: true, ..Book::default() }, |config| {
        config.post_timeout = Duration::from_secs(3600);
        config.max_user_posts = 2;
    });
    let mut waiting: Vec<_> =
        (0..9).map(|_| Box::pin(stage.post(event("slow"), &[("content-length", "1")], "", b"1"))).collect();
    for post in &mut waiting {
        assert!(futures_util::poll!(post).is_pending(), "it is refused");
    }
}

#[tokio::test]
async fn names_that_no_frame_could_carry_are_refused() {
    let stage = stage();
    let long = Target::Event { topic: "a".into(), event: "e".repeat(256) };
    assert_eq!(told(&stage.post(long, &[], "", b"1").await).1["errors"]["event"][0], "should be at most 255 byte(s)");
    assert_eq!(stage.post(event(&"t".repeat(2000)), &[], "", b"1").await.status(), 422);
    assert_eq!(stage.post(event("%ff"), &[], "", b"1").await.status(), 400);
}

#[test]
fn browsers_may_ask_with_the_headers_that_they_name() {
    let mut asking = HeaderMap::new();
    let allowed = |asking: &HeaderMap| {
        let response = response::preflight(asking);
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
        assert_eq!(response.headers()["access-control-allow-origin"], "*");
        assert_eq!(response.headers()["access-control-allow-methods"], "POST, OPTIONS");
        let all = response.headers().get_all("access-control-allow-headers");
        all.iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(allowed(&asking), "authorization, apikey, content-type, x-client-info");
    asking.insert("access-control-request-headers", "x-team,apikey".parse().unwrap());
    assert!(allowed(&asking).ends_with(", x-team,apikey"));
    asking.insert("access-control-request-headers", "a\tb".parse().unwrap());
    assert!(!allowed(&asking).contains("a\t"));
}
