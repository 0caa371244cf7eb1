"""A receiver of webhooks that takes everything and remembers it."""

from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
from aiohttp import web


class Webhook(msgspec.Struct):
    """What the verdict looks at of a call."""

    job_id: str
    event: str
    event_id: str
    status: str


class Receiver:
    def __init__(self) -> None:
        self.by_job: defaultdict[str, list[Webhook]] = defaultdict(list)
        self.port = 0

    async def take(self, request: web.Request) -> web.Response:
        webhook = msgspec.json.decode(await request.read(), type=Webhook)
        self.by_job[webhook.job_id].append(webhook)
        return web.Response()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


@asynccontextmanager
async def a_receiver() -> AsyncGenerator[Receiver, None]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/", receiver.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.port = runner.addresses[0][1]
    try:
        yield receiver
    finally:
        await runner.cleanup()
