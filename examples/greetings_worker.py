"""The worker of greetings.py: `worker run --app examples.greetings_worker:worker`."""

from typing import Any

from avtomatika_worker import Worker

worker = Worker()


@worker.task("greet")
async def greet(params: dict[str, Any]) -> dict[str, Any]:
    return {"greeting": f"Hello, {params['name']}!"}
