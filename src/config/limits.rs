//! The settings that bound what clients may take: one connection, one user, one room, and all of them.

use super::parse;
use super::settings::{Reading, above_zero};
use crate::gateway::GatewayConfig;
use crate::room::RoomConfig;

impl Reading<'_> {
    /// What one connection may take.
    pub(super) fn limits(&mut self, gateway: &mut GatewayConfig) {
        let counts = [
            ("max_channels", &mut gateway.max_channels),
            ("max_entries_per_join", &mut gateway.max_entries),
            ("max_entries_per_connection", &mut gateway.max_connection_entries),
            ("max_pages", &mut gateway.max_pages),
            ("max_user_pages", &mut gateway.max_user_pages),
            ("max_user_posts", &mut gateway.max_user_posts),
            ("max_unauthenticated", &mut gateway.max_unauthenticated),
        ];
        for (name, limit) in counts {
            *limit = self.read(name, "Set it to a number above 0.", above_zero).unwrap_or(*limit);
        }
        let rates = [
            ("max_joins_per_second", &mut gateway.max_joins_per_second),
            ("max_all_joins_per_second", &mut gateway.max_all_joins_per_second),
            ("max_messages_per_second", &mut gateway.max_messages_per_second),
            ("max_presence_calls", &mut gateway.max_presence_calls),
            ("max_posts_per_second", &mut gateway.max_posts_per_second),
            ("max_posted_messages_per_second", &mut gateway.max_posted_messages_per_second),
        ];
        self.rates(rates);
        let private_only = self.read("private_only", "Set it to true or false.", parse::switch);
        gateway.private_only = private_only.unwrap_or(gateway.private_only);
        gateway.max_page_rows = self.rows().unwrap_or(gateway.max_page_rows);
        // Below the first, no SDK could say what it wants; below the second, no request could be read.
        self.sizes([
            ("max_message_bytes", 1024, &mut gateway.max_message_bytes),
            ("max_header_bytes", 8192, &mut gateway.max_head_bytes),
            ("max_payload_bytes", 1024, &mut gateway.max_payload_bytes),
            ("max_post_bytes", 1024, &mut gateway.max_post_bytes),
            ("max_posting_bytes", 1024, &mut gateway.max_posting_bytes),
        ]);
        self.unfinished(gateway);
        let waits = [
            ("max_join_wait", "Write it like 20s, from 1s to 1h.", &mut gateway.max_join_wait),
            ("presence_window", "Write it like 30s, from 1s to 1h.", &mut gateway.presence_window),
            ("idle_timeout", "Write it like 60s, from 1s to 1h.", &mut gateway.idle_timeout),
        ];
        for (name, remedy, limit) in waits {
            *limit = self.read(name, remedy, parse::seconds_to_an_hour).unwrap_or(*limit);
        }
    }

    /// A user may hold as much as is left: with less than two of the largest messages, none of them could come in whole.
    fn unfinished(&mut self, gateway: &mut GatewayConfig) {
        let least = gateway.max_message_bytes.saturating_mul(2);
        gateway.max_unfinished_bytes = gateway.max_unfinished_bytes.max(least);
        let remedy = format!("Write it like 256MiB, at least {least} bytes: twice ROWCAST_MAX_MESSAGE_BYTES.");
        let most = self.read("max_unfinished_bytes", &remedy, |text| size(text, least));
        gateway.max_unfinished_bytes = most.unwrap_or(gateway.max_unfinished_bytes);
    }

    /// What one room may take, and what is kept of its members.
    pub(super) fn limits_of_rooms(&mut self, rooms: &mut RoomConfig) {
        self.rates([
            ("max_room_messages_per_second", &mut rooms.messages_per_second),
            ("max_room_presence_per_second", &mut rooms.presence_per_second),
        ]);
        let most = self.read("max_room_presences", "Set it to a number above 0.", above_zero);
        rooms.presence_metas = most.unwrap_or(rooms.presence_metas);
        self.sizes([
            ("max_presence_bytes", 1024, &mut rooms.presence_meta_bytes),
            ("max_connection_presence_bytes", 1024, &mut rooms.presence_connection_bytes),
            ("max_room_presence_bytes", 1024, &mut rooms.presence_bytes),
            ("max_all_presence_bytes", 1024, &mut rooms.presence_all_bytes),
        ]);
        let windows = [
            ("presence_diff_window", &mut rooms.presence_window),
            ("max_presence_diff_window", &mut rooms.presence_longest_window),
        ];
        for (name, window) in windows {
            let remedy = "Write it like 50ms, from 1ms to 1m.";
            *window = self.read(name, remedy, parse::up_to_a_minute).unwrap_or(*window);
        }
    }

    /// Settings that are numbers of something per second, or in a window.
    fn rates<const N: usize>(&mut self, rates: [(&'static str, &mut u32); N]) {
        for (name, limit) in rates {
            let most = self.read(name, "Set it to a number above 0.", above_zero);
            *limit = most.map_or(*limit, |most| u32::try_from(most).unwrap_or(u32::MAX));
        }
    }

    /// Settings that are sizes: the name, the least, and where it goes.
    fn sizes<const N: usize>(&mut self, sizes: [(&'static str, usize, &mut usize); N]) {
        for (name, least, limit) in sizes {
            let remedy = format!("Write it like 5MB or 16KiB, at least {least} bytes.");
            *limit = self.read(name, &remedy, |text| size(text, least)).unwrap_or(*limit);
        }
    }

    /// Most rows of a snapshot, and of a page.
    fn rows(&mut self) -> Option<u32> {
        self.read("max_snapshot_rows", "Set it to a number from 1 to 100000.", |text| {
            let rows = above_zero(text)?;
            u32::try_from(rows).ok().filter(|rows| *rows <= 100_000).ok_or_else(|| format!("is {rows}"))
        })
    }
}

fn size(text: &str, least: usize) -> Result<usize, String> {
    let size = usize::try_from(parse::bytes(text)?).map_err(|_| "is too large".to_owned())?;
    if size < least { Err(format!("is less than {least} bytes")) } else { Ok(size) }
}
