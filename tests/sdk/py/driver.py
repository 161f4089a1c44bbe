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
from realtime.types import RealtimePostgresChangesListenEvent as Listen

# What the client logs when its server goes away, which tests do on purpose.
EXPECTED = ("WebSocket connection closed with code", "Connection attempt failed")


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

    async def subscribe(self, topic, entries):
        channel = self.client.channel(topic)
        self.channels[topic] = channel
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
        channel.on_system(lambda payload: tell({"event": "system", "topic": topic, "payload": payload.model_dump()}))

        def status(state, error):
            tell({"event": "status", "topic": topic, "status": state.value, "error": error and str(error)})

        # It returns when the join is answered; commands that follow must not wait for that.
        self.start(channel.subscribe(status))

    async def set_auth(self, token):
        await self.client.set_auth(token)
        tell({"event": "done", "did": "setAuth"})

    async def unsubscribe(self, topic):
        await self.channels.pop(topic).unsubscribe()
        tell({"event": "done", "did": "unsubscribe"})

    async def run(self, command):
        name = command.pop("do")
        method = {"setAuth": self.set_auth}.get(name) or getattr(self, name)
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
