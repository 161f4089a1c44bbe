// The stock @supabase/realtime-js client, driven over its standard streams, one JSON object a line, so that the tests
// themselves are written in Rust. tests/sdk/py/driver.py speaks the same language.
//
// Reads   {"do":"connect","url":…,"token":…}          url as an application gives it: ws://host/realtime/v1; "vsn" if not the default,
//                                                     and "params" of the query
//         {"do":"subscribe","topic":…,"entries":[…]}  topic without `realtime:`; a filter that is a list of calls such as
//                                                     [["eq","id",1],["not","kind","in",["a"]]] is made by the client's builder
//                                                     also "options", of the channel's config, and "presence": true to listen
//                                                     for who comes and goes
//         {"do":"setAuth","token":…}
//         {"do":"unsubscribe","topic":…}
//         {"do":"send","topic":…,"event":…,"payload":…}   a broadcast; "bytes", in hex, instead of "payload" for an ArrayBuffer.
//                                                     Before the channel is subscribed too, with its "options"
//         {"do":"httpSend",…}                         the same over HTTP
//         {"do":"track","topic":…,"payload":…}        presence; and {"do":"untrack","topic":…}
//         {"do":"presenceState","topic":…}
//         {"do":"exit"}                               also the end of the input
// Writes  {"event":"ready"}                           may be told to connect
//         {"event":"status","topic":…,"status":…,"error":…}
//         {"event":"system","topic":…,"payload":{…}}
//         {"event":"change","topic":…,"entry":n,"change":{type, schema, table, commit_timestamp, record, old_record, errors}}
//         {"event":"broadcast","topic":…,"message":{…}}   as the callback is given it; bytes as {"bytes": hex}
//         {"event":"presence","topic":…,"kind":"sync"|"join"|"leave","key":…,"changed":[…]}
//         {"event":"state","topic":…,"state":{…}}     what presenceState() is
//         {"event":"done","did":…,"answer":…}         after all but connect, subscribe and presenceState; what the client's call
//                                                     came to
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

const toHex = (buffer) => Buffer.from(buffer).toString('hex');

function fromHex(hex) {
  const bytes = Buffer.from(hex, 'hex');
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
}

function shownMessage(message) {
  const { payload } = message;
  return payload instanceof ArrayBuffer ? { ...message, payload: { bytes: toHex(payload) } } : message;
}

// The client has one for each topic until it is closed.
function channelToOpen({ topic, options }) {
  const channel = client.channel(topic, { config: options ?? {} });
  channels.set(topic, channel);
  return channel;
}

// It need not be subscribed.
const channelOf = (command) => channels.get(command.topic) ?? channelToOpen(command);

const content = ({ payload, bytes }) => (bytes === undefined ? payload : fromHex(bytes));
const done = (did, answer) => tell({ event: 'done', did, answer });

const commands = {
  async connect({ url, token, vsn, params }) {
    // Before Node 22 there is no WebSocket of its own.
    const transport = typeof WebSocket === 'undefined' ? { transport: ws } : {};
    client = new RealtimeClient(url, { params: { apikey: token, ...params }, ...(vsn && { vsn }), ...transport });
    await client.setAuth(token);
    client.connect();
  },

  subscribe({ topic, entries, options, presence }) {
    const channel = channelToOpen({ topic, options });
    entries.forEach((entry, index) => {
      channel.on('postgres_changes', withBuiltFilter(entry), (payload) => {
        tell({ event: 'change', topic, entry: index, change: asSent(payload) });
      });
    });
    channel.on('broadcast', { event: '*' }, (message) => {
      tell({ event: 'broadcast', topic, message: shownMessage(message) });
    });
    if (presence) {
      channel.on('presence', { event: '*' }, ({ event, key, newPresences, leftPresences }) => {
        tell({ event: 'presence', topic, kind: event, key, changed: newPresences ?? leftPresences });
      });
    }
    channel.on('system', {}, (payload) => tell({ event: 'system', topic, payload }));
    channel.subscribe((status, error) => {
      tell({ event: 'status', topic, status, error: error?.message ?? null });
    });
  },

  async setAuth({ token }) {
    await client.setAuth(token);
    done('setAuth');
  },

  async unsubscribe({ topic }) {
    const answer = await client.removeChannel(channels.get(topic));
    channels.delete(topic);
    if (answer !== 'ok') fail(`unsubscribe: ${answer}`);
    done('unsubscribe');
  },

  // Its answer is not waited for: what follows may be sent meanwhile.
  send(command) {
    const sent = channelOf(command).send({ type: 'broadcast', event: command.event, payload: content(command) });
    sent.then((answer) => done('send', answer)).catch(fail);
  },

  httpSend(command) {
    const refused = (error) => ({ refused: error.message });
    const sent = channelOf(command).httpSend(command.event, content(command)).catch(refused);
    sent.then((answer) => done('httpSend', answer)).catch(fail);
  },

  async track({ topic, payload }) {
    done('track', await channels.get(topic).track(payload));
  },

  async untrack({ topic }) {
    done('untrack', await channels.get(topic).untrack());
  },

  presenceState({ topic }) {
    tell({ event: 'state', topic, state: channels.get(topic).presenceState() });
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
