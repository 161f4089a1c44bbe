//! `realtime.messages` as `protocol.md` §12 has it, with partitions from yesterday to the day after tomorrow, for tests.

pub(crate) const MESSAGES: &str = "
    create schema realtime;
    grant usage on schema realtime to anon, authenticated, service_role, plain_relay;
    create table realtime.messages (
        topic text not null, extension text not null, payload jsonb, event text, private boolean default false,
        updated_at timestamp without time zone default now() not null,
        inserted_at timestamp without time zone default now() not null,
        id uuid default gen_random_uuid() not null, binary_payload bytea,
        constraint messages_payload_exclusive check (payload is null or binary_payload is null),
        primary key (id, inserted_at)) partition by range (inserted_at);
    create index messages_inserted_at_topic on realtime.messages (inserted_at desc, topic)
        where extension = 'broadcast' and private is true;
    alter table realtime.messages enable row level security;
    do $$ begin
        for day in -1..2 loop
            execute format('create table realtime.messages_%s partition of realtime.messages for values from (%L) to (%L)',
                to_char(now() at time zone 'utc' + day * interval '1 day', 'YYYY_MM_DD'),
                (now() at time zone 'utc')::date + day, (now() at time zone 'utc')::date + day + 1);
        end loop;
    end $$;
    alter table realtime.messages owner to plain_relay;
    grant select, insert, update on realtime.messages to anon, authenticated, service_role;
    create function realtime.topic() returns text language sql stable as
        $$ select nullif(current_setting('realtime.topic', true), '')::text; $$;";
