"""Who receives the webhooks of a test's jobs."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


class Hooks:
    """An HTTP server on loopback, and what was posted to it."""

    def __init__(self) -> None:
        self.url = ""
        self.posts: list[dict[str, Any]] = []

    def of(self, job_id: str) -> list[dict[str, Any]]:
        return [post for post in self.posts if post["job_id"] == job_id]

    async def take(self, request: web.Request) -> web.Response:
        self.posts.append(await request.json())
        return web.json_response({})


@asynccontextmanager
async def webhook_receiver() -> AsyncGenerator[Hooks, None]:
    hooks = Hooks()
    app = web.Application()
    app.router.add_post("/hook", hooks.take)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        _, port = runner.addresses[0]
        hooks.url = f"http://127.0.0.1:{port}/hook"
        yield hooks
    finally:
        await runner.cleanup()
