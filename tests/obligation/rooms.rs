//! Private channels, whose members come and go, and what the writers send there by `realtime.send()`, next to rows.

use rand::Rng as _;
use rand::rngs::StdRng;

pub(super) const ROOMS: [&str; 3] = ["room-1", "room-2", "room-3"];

/// Whoever is a member of the room that the channel is named after may read it.
pub(super) const SCHEMA: &str = "
    create table room_members (room text, user_id uuid, primary key (room, user_id));
    grant select on room_members to authenticated;
    create policy members on realtime.messages for select to authenticated using (exists (
        select 1 from room_members m where m.user_id = auth.uid() and m.room = (select realtime.topic())));";

/// What a phone in a room asks for besides its messages.
pub(super) const TABLES: [&str; 4] = ["docs", "notes", "own", "marks"];

/// Everybody is a member of every room.
pub(super) fn let_all_in(users: &[String]) -> String {
    let rooms = ROOMS.map(|room| format!("'{room}'")).join(", ");
    let users: Vec<String> = users.iter().map(|user| format!("'{user}'::uuid")).collect();
    format!(
        "insert into room_members select room, member from unnest(array[{rooms}]) room, \
         unnest(array[{}]) member on conflict do nothing;",
        users.join(", ")
    )
}

fn any(random: &mut StdRng) -> &'static str {
    ROOMS[random.random_range(0..ROOMS.len())]
}

/// A change of who is a member.
pub(super) fn right(random: &mut StdRng, users: &[String]) -> String {
    let (room, other) = (any(random), any(random));
    let user = &users[random.random_range(0..users.len())];
    match random.random_range(0..100) {
        0..60 => format!("insert into room_members values ('{room}', '{user}') on conflict do nothing;"),
        60..92 => format!("delete from room_members where room = '{room}' and user_id = '{user}';"),
        92..98 => format!(
            "update room_members set room = '{other}' where room = '{room}' and user_id = '{user}' and not exists \
             (select from room_members where room = '{other}' and user_id = '{user}');"
        ),
        _ => format!("delete from room_members where room = '{room}';"),
    }
}

/// A message to the members of a room.
pub(super) fn message(random: &mut StdRng) -> String {
    let (number, room) = (random.random_range(0..1000), any(random));
    format!("select realtime.send('{{\"n\": {number}}}', 'said', '{room}', true);")
}
