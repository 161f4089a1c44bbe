//! What comes through the topics door: one frame may be several messages.

use bytes::Bytes;
use tokio_tungstenite::tungstenite::Message;

use super::Connection;
use crate::gateway::topics;

impl Connection {
    pub(super) fn asked(&mut self, message: &Message) {
        let text = match message {
            Message::Text(text) => text,
            Message::Binary(_) => return self.answer_malformed(&topics::refuse_binary()),
            // Pings are answered by tungstenite, closes echoed.
            _ => return,
        };
        let frame = Bytes::from(text.clone());
        let mut door = std::mem::take(&mut self.door);
        match door.read(text, &self.shared.config) {
            Ok(read) => {
                let joined = if read.renews() { self.session.names() } else { Vec::new() };
                for message in door.messages(&read, &joined) {
                    // One of them may have ended it.
                    if !self.outbox.is_open() {
                        break;
                    }
                    self.handle(message, &frame);
                }
            }
            Err(answer) => self.answer_malformed(&answer),
        }
        self.door = door;
    }

    fn answer_malformed(&self, answer: &Bytes) {
        self.shared.metrics.malformed_frames.inc();
        self.outbox.send_own([answer]);
    }
}
