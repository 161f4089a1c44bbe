"""The stock PyPI `realtime` client, driven over its standard streams, one JSON object a line.

The language is described in ../js/driver.mjs. What differs is the client's, not ours: it shows `system` frames of status "ok"
only, and reports the others as status CHANNEL_ERROR; it logs and drops frames that its models do not accept, which is told as
an `error` here, since the server should never send one.
"""

import asyncio
import json
import logging
import sys
import traceback

from realtime import AsyncRealtimeClient
from realtime.exceptions import RealtimeHTTPError
from realtime.types import RealtimePostgresChangesListenEvent as Listen

# What the client logs when its server goes away or refuses a channel, which tests do on purpose.
EXPECTED = ("WebSocket connection closed with code", "Connection attempt failed", "join push error")


def tell(event):
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


class Complaints(logging.Handler):
    """Errors in the client's log."""

    def emit(self, record):
        message = record.getMessage()
        if not message.startswith(EXPECTED):
            tell({"event": "error", "message": message})


class Driver:
    def __init__(self):
        self.client = None
        self.channels = {}
        self.tasks = set()

    async def connect(self, url, token):
        self.client = AsyncRealtimeClient(url, token)
        await self.client.connect()

    def channel_to_open(self, topic, options):
        options = options or {}
        config = {
            "broadcast": {"ack": False, "self": False, **options.get("broadcast", {})},
            "presence": {"key": "", "enabled": False, **options.get("presence", {})},
            "private": options.get("private", False),
        }
        self.channels[topic] = self.client.channel(topic, {"config": config})
        return self.channels[topic]

    def channel(self, topic, options):
        return self.channels.get(topic) or self.channel_to_open(topic, options)

    async def subscribe(self, topic, entries, options=None, presence=False):
        channel = self.channel_to_open(topic, options)
        for index, entry in enumerate(entries):
            channel.on_postgres_changes(
                Listen(entry["event"]),
                lambda payload, index=index: tell(
                    {"event": "change", "topic": topic, "entry": index, "change": payload["data"]}
                ),
                table=entry.get("table"),
                schema=entry.get("schema"),
                filter=entry.get("filter"),
                select=entry.get("select"),
            )
        channel.on_broadcast("*", lambda message: tell({"event": "broadcast", "topic": topic, "message": message}))
        if presence:
            self.listen_for_presence(topic, channel)
        channel.on_system(lambda payload: tell({"event": "system", "topic": topic, "payload": payload.model_dump()}))

        def status(state, error):
            tell({"event": "status", "topic": topic, "status": state.value, "error": error and str(error)})

        # It returns when the join is answered; commands that follow must not wait for that.
        self.start(channel.subscribe(status))

    def listen_for_presence(self, topic, channel):
        def told(kind):
            return lambda key, current, changed: tell(
                {"event": "presence", "topic": topic, "kind": kind, "key": key, "changed": changed}
            )

        channel.on_presence_sync(lambda: tell({"event": "presence", "topic": topic, "kind": "sync"}))
        channel.on_presence_join(told("join"))
        channel.on_presence_leave(told("leave"))

    async def send(self, topic, event, payload, options=None):
        await self.channel(topic, options).send_broadcast(event, payload)
        # It does not tell what came of it.
        tell({"event": "done", "did": "send", "answer": None})

    async def http_send(self, topic, event, payload=None, bytes=None, options=None):
        content = payload if bytes is None else bytearray.fromhex(bytes)
        try:
            await self.channel(topic, options).http_send(event, content)
            answer = {"success": True}
        except RealtimeHTTPError as error:
            answer = {"refused": str(error)}
        tell({"event": "done", "did": "httpSend", "answer": answer})

    async def track(self, topic, payload):
        await self.channels[topic].track(payload)
        tell({"event": "done", "did": "track", "answer": None})

    async def untrack(self, topic):
        await self.channels[topic].untrack()
        tell({"event": "done", "did": "untrack", "answer": None})

    async def presence_state(self, topic):
        tell({"event": "state", "topic": topic, "state": self.channels[topic].presence_state()})

    async def set_auth(self, token):
        await self.client.set_auth(token)
        tell({"event": "done", "did": "setAuth"})

    async def unsubscribe(self, topic):
        await self.channels.pop(topic).unsubscribe()
        tell({"event": "done", "did": "unsubscribe"})

    async def run(self, command):
        name = command.pop("do")
        named = {"setAuth": self.set_auth, "httpSend": self.http_send, "presenceState": self.presence_state}
        method = named.get(name) or getattr(self, name)
        await method(**command)

    def start(self, work):
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.ended)

    def ended(self, task):
        self.tasks.discard(task)
        if not task.cancelled() and task.exception():
            complain(task.exception())


def complain(error):
    tell({"event": "error", "message": "".join(traceback.format_exception(error))})


async def main():
    logging.getLogger("realtime").addHandler(Complaints(level=logging.ERROR))
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(
        lambda _, context: tell({"event": "error", "message": context.get("message", "") + repr(context.get("exception"))})
    )
    driver = Driver()
    tell({"event": "ready"})
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        if command["do"] == "exit":
            break
        try:
            await driver.run(command)
        except Exception as error:  # Whatever it is, the test has to see it.
            complain(error)
    if driver.client and driver.client.is_connected:
        await asyncio.wait_for(driver.client.close(), 5)


asyncio.run(main())
