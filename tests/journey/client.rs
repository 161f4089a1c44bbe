//! One client, whichever it is: what a journey asks of all of them.

use serde_json::Value;

use crate::support::phone::{Phone, Version};
use crate::support::sdk::{SdkPhone, Stock};
use crate::support::{Change, Relay};

/// Which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Raw(Version),
    Stock(Stock),
}

pub(super) const EVERY_KIND: [Kind; 4] =
    [Kind::Raw(Version::V1), Kind::Raw(Version::V2), Kind::Stock(Stock::JavaScript), Kind::Stock(Stock::Python)];

/// A connected client with at most one channel, `journey`.
#[expect(clippy::large_enum_variant, reason = "there are a dozen of them")]
pub(super) enum Client {
    Raw(Phone),
    Stock(SdkPhone),
}

const TOPIC: &str = "journey";

impl Client {
    /// Connects and subscribes; changes flow when this returns.
    pub(super) async fn subscribe(kind: Kind, relay: &Relay, token: &str, entries: &Value) -> Client {
        match kind {
            Kind::Raw(version) => {
                let mut phone = Phone::connect(&relay.base(), token, version).await;
                phone.subscribe(TOPIC, entries).await;
                Client::Raw(phone)
            }
            Kind::Stock(stock) => {
                let mut phone = relay.sdk(stock, token).await;
                phone.subscribe(TOPIC, entries).await;
                Client::Stock(phone)
            }
        }
    }

    /// Everything before the mark.
    pub(super) async fn changes_before(&mut self, mark: &str) -> Vec<Change> {
        match self {
            Client::Raw(phone) => phone.changes_before(mark).await,
            Client::Stock(phone) => phone.changes_before(mark).await,
        }
    }

    /// Takes another token and waits until it is in force.
    pub(super) async fn set_token(&mut self, token: &str) {
        match self {
            Client::Raw(phone) => {
                phone.push_token(TOPIC, token).await;
                phone.subscribed(TOPIC).await;
            }
            Client::Stock(phone) => {
                phone.set_auth(token).await;
                phone.subscribed(TOPIC).await;
            }
        }
    }

    /// Leaves the channel and ends.
    pub(super) async fn end(self) {
        match self {
            Client::Raw(mut phone) => phone.leave(TOPIC).await,
            Client::Stock(mut phone) => {
                phone.unsubscribe(TOPIC).await;
                phone.exit().await;
            }
        }
    }
}

/// A pair of clients of each kind: the first of each pair has the first token.
pub(super) async fn pairs(relay: &Relay, tokens: [&str; 2], entries: [&Value; 2]) -> Vec<(Kind, [Client; 2])> {
    let pair = async |kind| {
        let [first, second] = [0, 1].map(|i| Client::subscribe(kind, relay, tokens[i], entries[i]));
        let (first, second) = tokio::join!(first, second);
        (kind, [first, second])
    };
    futures_util::future::join_all(EVERY_KIND.map(pair)).await
}
