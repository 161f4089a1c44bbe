//! A member of a room who does nothing wrong: it reads all the time, as an application does, and is heard.

use std::net::SocketAddr;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::ROOM;
use crate::support::phone::PATIENCE;
use crate::support::token::{self, ALICE};

const SUBSCRIBED: &str = "Subscribed to PostgreSQL";
/// Bytes of a message: what the test looks for is shorter.
const LONGEST: usize = 4096;

type Socket = WebSocketStream<TcpStream>;

/// Not what others say in the room: event and number of what the test looks for.
type Heard = (&'static str, String);

pub(super) struct Witness {
    sink: SplitSink<Socket, Message>,
    heard: mpsc::Receiver<Heard>,
    listening: JoinHandle<()>,
}

impl Witness {
    /// In the room, with the rows of `marks`.
    pub(super) async fn join(addr: SocketAddr) -> Witness {
        let token = token::user(ALICE);
        let url = format!("ws://{addr}/realtime/v1/websocket?apikey={token}&vsn=2.0.0");
        let line = TcpStream::connect(addr).await.expect("a connection");
        let (socket, _) = client_async(url, line).await.expect("a handshake");
        let (sink, stream) = socket.split();
        let (out, heard) = mpsc::channel(100);
        let listening = rowcast::task::spawn("witness", listen(stream, out));
        let mut witness = Witness { sink, heard, listening };
        let entries = json!([{ "event": "INSERT", "schema": "public", "table": "marks" }]);
        let config = json!({ "config": { "postgres_changes": entries }, "access_token": token });
        witness.push("phx_join", &config).await;
        witness.hears("system", SUBSCRIBED).await;
        witness
    }

    async fn push(&mut self, event: &str, payload: &Value) {
        let frame = json!(["1", "1", format!("realtime:{ROOM}"), event, payload]).to_string();
        let sent = timeout(PATIENCE, self.sink.send(Message::text(frame))).await;
        sent.expect("taken in time").expect("it is connected");
    }

    pub(super) async fn say(&mut self, text: &str) {
        self.push("broadcast", &json!({ "type": "broadcast", "event": "tick", "payload": text })).await;
    }

    /// Waits until it has heard this.
    pub(super) async fn hears(&mut self, event: &str, text: &str) {
        let hearing = async {
            while let Some((what, heard)) = self.heard.recv().await {
                if what == event && heard == text {
                    return;
                }
            }
            panic!("it was sent away before it heard {event} {text}");
        };
        timeout(PATIENCE, hearing).await.unwrap_or_else(|_| panic!("{event} {text} has not come within {PATIENCE:?}"));
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Reads until the connection ends. Nobody waits for what `out` has no place for: it is what others say.
async fn listen(mut stream: SplitStream<Socket>, out: mpsc::Sender<Heard>) {
    while let Some(message) = stream.next().await {
        let text = match message {
            Ok(Message::Text(text)) => text,
            Ok(Message::Close(frame)) => {
                println!("the witness was told to go: {frame:?}");
                continue;
            }
            Ok(_) => continue,
            Err(Error::ConnectionClosed) => return,
            Err(error) => return println!("the witness: {error}"),
        };
        let known = ["\"tick\"", "\"postgres_changes\"", "\"system\""];
        if text.len() > LONGEST || !known.iter().any(|word| text.contains(word)) {
            continue;
        }
        let Ok(frame) = serde_json::from_str::<Value>(&text) else { continue };
        let (event, heard) = match frame[3].as_str() {
            Some("broadcast") => ("broadcast", &frame[4]["payload"]),
            Some("postgres_changes") => ("postgres_changes", &frame[4]["data"]["record"]["note"]),
            Some("system") => ("system", &frame[4]["message"]),
            _ => continue,
        };
        let heard = heard.as_str().unwrap_or_default().to_owned();
        if event == "system" && heard != SUBSCRIBED {
            println!("the witness was told: {heard}");
        }
        let _ = out.try_send((event, heard));
    }
}
