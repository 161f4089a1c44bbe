// The stock @supabase/realtime-js client, driven over its standard streams, one JSON object a line, so that the tests
// themselves are written in Rust. tests/sdk/py/driver.py speaks the same language.
//
// Reads   {"do":"connect","url":…,"token":…}          url as an application gives it: ws://host/realtime/v1; "vsn" if not the default,
//                                                     and "params" of the query
//         {"do":"subscribe","topic":…,"entries":[…]}  topic without `realtime:`; a filter that is a list of calls such as
//                                                     [["eq","id",1],["not","kind","in",["a"]]] is made by the client's builder
//                                                     also "options", of the channel's config
//         {"do":"setAuth","token":…}
//         {"do":"unsubscribe","topic":…}
//         {"do":"exit"}                               also the end of the input
// Writes  {"event":"ready"}                           may be told to connect
//         {"event":"status","topic":…,"status":…,"error":…}
//         {"event":"system","topic":…,"payload":{…}}
//         {"event":"change","topic":…,"entry":n,"change":{type, schema, table, commit_timestamp, record, old_record, errors}}
//         {"event":"done","did":…}                    after setAuth and unsubscribe
//         {"event":"error","message":…}               anything that an application would not have expected

import { createInterface } from 'node:readline';
import realtime from '@supabase/realtime-js';
import ws from 'ws';

const { RealtimeClient, postgresChangesFilter } = realtime;

function tell(event) {
  process.stdout.write(`${JSON.stringify(event)}\n`);
}

function fail(error) {
  tell({ event: 'error', message: error?.stack ?? String(error) });
}

process.on('uncaughtException', fail);
process.on('unhandledRejection', fail);

let client;
const channels = new Map();

// Back to the form that the wire has: the client shows `{}` for an image which was not sent.
function asSent(payload) {
  const { eventType, schema, table, commit_timestamp, errors } = payload;
  const change = { type: eventType, schema, table, commit_timestamp, errors };
  if (eventType !== 'DELETE') change.record = payload.new;
  if (eventType !== 'INSERT') change.old_record = payload.old;
  return change;
}

// As an application writes it that does not put filters together by hand.
function withBuiltFilter(entry) {
  if (!Array.isArray(entry.filter)) return entry;
  const build = (builder, [method, ...values]) => builder[method](...values);
  return { ...entry, filter: entry.filter.reduce(build, postgresChangesFilter()) };
}

const commands = {
  async connect({ url, token, vsn, params }) {
    // Before Node 22 there is no WebSocket of its own.
    const transport = typeof WebSocket === 'undefined' ? { transport: ws } : {};
    client = new RealtimeClient(url, { params: { apikey: token, ...params }, ...(vsn && { vsn }), ...transport });
    await client.setAuth(token);
    client.connect();
  },

  subscribe({ topic, entries, options }) {
    const channel = client.channel(topic, { config: options ?? {} });
    channels.set(topic, channel);
    entries.forEach((entry, index) => {
      channel.on('postgres_changes', withBuiltFilter(entry), (payload) => {
        tell({ event: 'change', topic, entry: index, change: asSent(payload) });
      });
    });
    channel.on('system', {}, (payload) => tell({ event: 'system', topic, payload }));
    channel.subscribe((status, error) => {
      tell({ event: 'status', topic, status, error: error?.message ?? null });
    });
  },

  async setAuth({ token }) {
    await client.setAuth(token);
    tell({ event: 'done', did: 'setAuth' });
  },

  async unsubscribe({ topic }) {
    const answer = await client.removeChannel(channels.get(topic));
    channels.delete(topic);
    if (answer !== 'ok') fail(`unsubscribe: ${answer}`);
    tell({ event: 'done', did: 'unsubscribe' });
  },

  async exit() {
    if (client) {
      await client.removeAllChannels();
      await client.disconnect();
    }
    process.exit(0);
  },
};

// One after the other, in the order given.
let work = Promise.resolve();
const lines = createInterface({ input: process.stdin });
lines.on('line', (line) => {
  const command = JSON.parse(line);
  work = work.then(() => commands[command.do](command)).catch(fail);
});
// The test is gone, and nobody reads what a goodbye would say.
lines.on('close', () => void work.then(() => process.exit(0)));

tell({ event: 'ready' });
