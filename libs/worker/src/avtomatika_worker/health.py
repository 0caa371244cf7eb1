"""An endpoint that says that the process is alive, for whoever watches over it."""

import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from aiohttp import web

from avtomatika_worker.config import InvalidSetting

log = logging.getLogger("avtomatika_worker")


@asynccontextmanager
async def health_endpoint(port: int) -> AsyncGenerator[None]:
    """Answer GET `/health` with 200 `OK` inside; port 0 is any free one, which is logged.

    Raises InvalidSetting where nothing can listen on that port.
    """

    async def healthy(_: web.Request) -> web.Response:
        return web.Response(text="OK")

    app = web.Application()
    app.router.add_get("/health", healthy)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        # All interfaces: who asks is a container's supervisor or a load balancer.
        try:
            await web.TCPSite(runner, "0.0.0.0", port).start()  # noqa: S104
        except OSError as error:
            raise InvalidSetting(
                f"WORKER_PORT: cannot listen on port {port}: {os.strerror(error.errno or 0)}."
                " Set it to a free one."
            ) from error
        log.info("health check listens", extra={"port": runner.addresses[0][1]})
        yield
    finally:
        await runner.cleanup()
