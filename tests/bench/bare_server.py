"""The floor: an aiohttp server that answers a worker's requests with constants and does nothing."""

import asyncio
import json
from functools import partial

from aiohttp import web

from tests.bench.children import Answer, serve

_TASK = {
    "job_id": "0192f0c1-7a5e-4c3b-9d2e-6f8a1b2c3d4e",
    "task_id": "0192f0c1-7a5e-4c3b-9d2e-6f8a1b2c3d4f",
    "type": "echo",
    "params": {"submitted": 0.0, "dispatched": 0.0},
    "tracing_context": {},
    "params_metadata": None,
}
_OK = b'{"status":"ok"}'


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")


async def _next_task(request: web.Request) -> web.Response:
    if "max" in request.query:
        tasks = [{**_TASK, "attempt": 1, "deadline": 0.0, "checkpoint": None}]
        return _json(json.dumps({"tasks": tasks * int(request.query["max"])}).encode())
    return _json(json.dumps(_TASK).encode())


async def _result(request: web.Request) -> web.Response:
    await request.read()
    return _json(_OK)


async def _results(request: web.Request) -> web.Response:
    body = await request.read()
    count = body.count(b'"task_id"')
    task = {**_TASK, "attempt": 1, "deadline": 0.0, "checkpoint": None}
    answers = [{"status": "ok"}] * count
    return _json(json.dumps({"answers": answers, "tasks": [task] * count}).encode())


async def _registered(request: web.Request) -> web.Response:
    await request.read()
    return _json(b'{"status":"registered","version":"1.0b2"}')


class Parked:
    """Requests that are answered never."""

    def __init__(self) -> None:
        self._count = 0

    async def wait(self, _request: web.Request) -> web.Response:
        self._count += 1
        try:
            await asyncio.Event().wait()
        finally:
            self._count -= 1
        return _json(_OK)

    async def count(self) -> Answer:
        return {"count": self._count}


async def start(parked: Parked) -> Answer:
    app = web.Application()
    app.router.add_post("/_worker/workers/register", _registered)
    app.router.add_get("/_worker/workers/{worker_id}/tasks/next", _next_task)
    app.router.add_post("/_worker/tasks/result", _result)
    app.router.add_post("/_worker/tasks/results", _results)
    app.router.add_get("/parked/workers/{worker_id}/tasks/next", parked.wait)
    app.router.add_post("/parked/workers/register", _registered)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return {"port": runner.addresses[0][1]}


if __name__ == "__main__":
    here = Parked()
    serve(start=partial(start, here), parked=here.count)
