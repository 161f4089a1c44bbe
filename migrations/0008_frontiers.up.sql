-- How far each device has received each of its subscriptions, so that a stock client which names its device goes on where it
-- was, also after a crash of the relay.
--
-- Who may run it: a role with CREATE on schema `rowcast`.
-- Locks:          none on existing tables; it only creates.
-- Undo:           0008_frontiers.down.sql; devices that come back then are told nothing and miss what they missed.
--
-- Names of users, devices and topics are not in it, only digests of them. Everything here is replaced all the time and read
-- once, when a relay starts.

-- Which relay saves the frontiers of a slot: what an older one still writes has no effect.
create table rowcast.frontier_owners (
    slot     text        primary key,
    relay    text        not null,
    taken_at timestamptz not null default now()
);

-- One row for each connection's subscription: `tab` tells those of one device apart. Everything at or before the place
-- (`lsn`, `ordinal`) in the history `epoch` was received.
create table rowcast.frontiers (
    slot      text        not null,
    owner     bytea       not null,
    device    bytea       not null,
    what      bytea       not null,
    tab       integer     not null,
    anonymous boolean     not null,
    epoch     bigint      not null,
    lsn       pg_lsn      not null,
    ordinal   bigint      not null,
    since     bytea,
    departed  boolean     not null,
    saved_at  timestamptz not null default now(),
    primary key (slot, owner, device, what, tab)
) with (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);
