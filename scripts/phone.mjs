#!/usr/bin/env node
// A phone: the stock @supabase/realtime-js client, subscribed to a table; prints each change it receives.
//
//   node scripts/phone.mjs --token <jwt> [--url ws://127.0.0.1:4000/realtime/v1] [--schema public]
//                          [--table session_events] [--event '*'] [--filter 'session_id=eq.…'] [--count n] [--json]
//
// --token-file <path> reads the token from a file; --count ends it after n changes; --json prints one object a line.

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { parseArgs } from 'node:util';

const usage = `node scripts/phone.mjs --token <jwt> | --token-file <path>
  [--url ws://127.0.0.1:4000/realtime/v1] [--schema public] [--table session_events]
  [--event INSERT|UPDATE|DELETE|*] [--filter col=eq.value] [--count n] [--json]`;

function stop(text) {
  console.error(text);
  process.exit(2);
}

function readOptions() {
  try {
    return parseArgs({
      options: {
        url: { type: 'string', default: 'ws://127.0.0.1:4000/realtime/v1' },
        token: { type: 'string' },
        'token-file': { type: 'string' },
        schema: { type: 'string', default: 'public' },
        table: { type: 'string', default: 'session_events' },
        event: { type: 'string', default: '*' },
        filter: { type: 'string' },
        count: { type: 'string' },
        json: { type: 'boolean', default: false },
        help: { type: 'boolean', default: false },
      },
    }).values;
  } catch (error) {
    return stop(`${error.message}\n\n${usage}`);
  }
}

// The client is installed for the tests; there is no second copy for this script.
function loadClient() {
  const fromSdk = createRequire(new URL('../tests/sdk/package.json', import.meta.url));
  try {
    // Before Node 22 there is no WebSocket of its own.
    const transport = typeof WebSocket === 'undefined' ? fromSdk('ws') : undefined;
    return { RealtimeClient: fromSdk('@supabase/realtime-js').RealtimeClient, transport };
  } catch (error) {
    if (error.code !== 'MODULE_NOT_FOUND') throw error;
    const directory = new URL('../tests/sdk', import.meta.url).pathname;
    return stop(`The client is not installed yet. Run this once:\n\n  npm ci --prefix ${directory}\n`);
  }
}

const options = readOptions();
if (options.help) {
  console.log(usage);
  process.exit(0);
}
const token = options['token-file'] ? readFileSync(options['token-file'], 'utf8').trim() : options.token;
if (!token) stop(usage);
const wanted = options.count === undefined ? Infinity : Number(options.count);
if (!(wanted > 0)) stop('--count takes a number above 0');

const { RealtimeClient, transport } = loadClient();
const client = new RealtimeClient(options.url.replace(/^http/, 'ws'), {
  params: { apikey: token },
  ...(transport && { transport }),
});
await client.setAuth(token);

let received = 0;
const change = { event: options.event, schema: options.schema, table: options.table };
if (options.filter) change.filter = options.filter;

function show(payload) {
  received += 1;
  if (options.json) {
    console.log(JSON.stringify(payload));
  } else {
    const time = new Date().toISOString().slice(11, 23);
    const row = payload.eventType === 'DELETE' ? payload.old : payload.new;
    console.log(`  ${time}  ${payload.eventType.padEnd(6)}  ${payload.table}  ${JSON.stringify(row)}`);
  }
  if (received >= wanted) void end(0);
}

async function end(code) {
  await client.removeAllChannels();
  client.disconnect();
  process.exit(code);
}

client
  .channel(`phone:${options.table}`)
  .on('postgres_changes', change, show)
  // The join is answered before the subscription is active; this says that changes flow from here on.
  .on('system', {}, (notice) => {
    if (notice.extension !== 'postgres_changes') return;
    if (notice.status === 'ok') console.error(`  subscribed to ${options.schema}.${options.table} (Ctrl-C ends)`);
    else console.error(`  refused: ${notice.message}`);
  })
  .subscribe((status, error) => {
    if (status === 'SUBSCRIBED') return;
    console.error(`  ${status}${error ? `: ${error.message}` : ''}`);
  });

process.on('SIGINT', () => void end(0));
