//! Private channels: who is let in and who is not, what members send each other, and a token that is changed on the way.

use serde_json::{Value, json};

use super::tokens::connected;
use crate::support::sdk::SdkPhone;
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Stage, Stock};

/// Members may read and write in their teams. The list of members changes.
const TEAMS: &str = "
    create table public.members (team text, user_id uuid, writes bool not null, primary key (team, user_id));
    grant select on public.members to authenticated;
    create policy \"members read\" on realtime.messages for select to authenticated
        using (exists (select from public.members m where m.team = realtime.topic() and m.user_id = auth.uid()));
    create policy \"members write\" on realtime.messages for insert to authenticated
        with check (exists (select from public.members m
                            where m.team = realtime.topic() and m.user_id = auth.uid() and m.writes));";

fn private() -> Value {
    json!({ "private": true })
}

async fn members(stage: &Stage, rows: &[(&str, &str, bool)]) {
    for (team, user, writes) in rows {
        stage.exec(&format!("insert into members values ('{team}', '{user}', {writes})")).await;
    }
}

/// The channel ends with this message: JavaScript shows both, Python's client takes an error for the end of it.
async fn closed_with(stock: Stock, phone: &mut SdkPhone, topic: &str, part: &str) {
    let message = if stock == Stock::Python {
        let (status, error) = phone.status(topic).await;
        assert_eq!(status, "CHANNEL_ERROR", "{error}");
        error
    } else {
        phone.system(topic).await["message"].to_string()
    };
    assert!(message.contains(part), "{stock:?}: {message}");
    assert_eq!(phone.status(topic).await.0, "CLOSED", "{stock:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_let_in_and_hear_each_other_and_who_is_refused_comes_in_once_he_may() {
    let stage = Stage::with(TEAMS).await;
    members(&stage, &[("team", ALICE, true)]).await;
    let mut ours = connected(&stage, &token::user(ALICE)).await;
    let mut theirs = connected(&stage, &token::user(BOB)).await;
    for (_, phone) in &mut ours {
        phone.open("team", &private()).await;
    }
    for (stock, phone) in &mut theirs {
        phone.ask_to_subscribe_with("team", &json!([]), &private());
        let (status, error) = phone.status("team").await;
        let expected = "Unauthorized: You do not have permissions to read from this Channel topic: team";
        assert_eq!(status, "CHANNEL_ERROR", "{stock:?}");
        assert!(error.contains(expected), "{stock:?}: {error}");
    }
    for sender in 0..ours.len() {
        let payload = json!({ "from": sender });
        ours[sender].1.send("team", "x", &payload).await;
        for (place, (stock, phone)) in ours.iter_mut().enumerate() {
            if place != sender {
                assert_eq!(phone.broadcast().await["payload"], payload, "{stock:?}");
            }
        }
    }
    // The clients ask again by themselves.
    members(&stage, &[("team", BOB, false)]).await;
    for (_, phone) in &mut theirs {
        while phone.status("team").await.0 != "SUBSCRIBED" {}
        // Who may only read sends into the void.
        phone.send("team", "x", &json!({ "from": "nobody" })).await;
    }
    for (_, phone) in &mut theirs {
        // A round trip: what it sent before is dealt with.
        phone.unsubscribe("team").await;
    }
    ours[0].1.send("team", "x", &json!({ "from": "the end" })).await;
    for (stock, phone) in &mut ours[1..] {
        assert_eq!(phone.broadcast().await["payload"], json!({ "from": "the end" }), "{stock:?}");
    }
    for (_, phone) in ours.into_iter().chain(theirs) {
        phone.exit().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_token_keeps_a_private_channel_and_one_of_somebody_else_ends_it() {
    let stage = Stage::with(TEAMS).await;
    members(&stage, &[("team", ALICE, true), ("both", ALICE, true), ("both", BOB, true)]).await;
    let mut phones = connected(&stage, &token::user(ALICE)).await;
    let mut sender = stage.relay.sdk(Stock::JavaScript, &token::user(ALICE)).await;
    for topic in ["team", "both"] {
        sender.open(topic, &private()).await;
        for (_, phone) in &mut phones {
            phone.open(topic, &private()).await;
        }
    }
    let fresh = token::short(ALICE, 1800);
    for (_, phone) in &mut phones {
        phone.set_auth(&fresh).await;
    }
    sender.send("team", "x", &json!({ "n": 1 })).await;
    for (stock, phone) in &mut phones {
        assert_eq!(phone.broadcast().await["payload"], json!({ "n": 1 }), "{stock:?}");
        assert_eq!(phone.more_statuses("team"), [], "{stock:?}");
        phone.set_auth(&token::user(BOB)).await;
        closed_with(*stock, phone, "team", "You do not have permissions to read from this Channel topic: team").await;
    }
    sender.send("team", "x", &json!({ "n": 2 })).await;
    sender.send("both", "x", &json!({ "n": 3 })).await;
    for (stock, phone) in &mut phones {
        assert_eq!(phone.broadcast().await["payload"], json!({ "n": 3 }), "{stock:?}");
    }
    // A right that ends in the database ends the membership too, with no token sent.
    stage.exec(&format!("delete from members where team = 'both' and user_id = '{BOB}'")).await;
    for (stock, phone) in &mut phones {
        closed_with(*stock, phone, "both", "permission").await;
    }
    for phone in phones.into_iter().map(|(_, phone)| phone).chain([sender]) {
        phone.exit().await;
    }
}
