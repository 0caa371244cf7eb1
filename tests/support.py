"""What tests wait with."""

import asyncio
from collections.abc import Awaitable, Callable
from inspect import isawaitable


async def until(
    condition: Callable[[], object | Awaitable[object]],
    timeout: float = 5.0,  # noqa: ASYNC109 - the deadline is what this is about
    message: str = "",
) -> None:
    """Return as soon as `condition()` is true; fail when it is not within `timeout` seconds.

    An async condition is awaited. `message` says what was waited for.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    pause = 0.0
    while True:
        answer = condition()
        if isawaitable(answer):
            answer = await answer
        if answer:
            return
        if loop.time() > deadline:
            raise AssertionError(message or f"waited {timeout:g} s, still {answer!r}")
        await asyncio.sleep(pause)  # first only a turn of the loop, then 1, 2, 4 … 20 ms
        pause = min(pause * 2 or 0.001, 0.02)
