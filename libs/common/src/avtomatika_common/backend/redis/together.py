"""Calls of one script that are made in the same turn of the loop travel, and run, as one.

For operations that come in crowds and are small: sending and starting a script would cost more than
what it does. Such a script takes a list of items and answers each by itself.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.connection import Argument
from avtomatika_common.backend.redis.scripts import Script

_MOST: Final = 64
"""Items per call: each touches up to eight keys."""


class Together:
    """`common`: the arguments that stand before the items, after the prefix of their slot.

    `outward`: as for `Commands.script`.
    """

    def __init__(
        self, commands: Commands, script: Script, *common: Argument, outward: bool = False
    ) -> None:
        self._commands = commands
        self._script = script
        self._common = common
        self._outward = outward
        self._waiting: dict[str, list[tuple[str, Sequence[Argument], asyncio.Future[Any]]]] = {}

    def call(self, prefix: str, key: str, *item: Argument) -> asyncio.Future[Any]:
        """The answer to `item`. Raises as `Commands.script`."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._send)
        answer: asyncio.Future[Any] = loop.create_future()
        self._waiting.setdefault(prefix, []).append((key, item, answer))
        return answer

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for prefix, calls in waiting.items():
            for start in range(0, len(calls), _MOST):
                part = calls[start : start + _MOST]
                arguments: list[Argument] = [prefix, *self._common]
                for _, item, _ in part:
                    arguments += item
                keys = [key for key, _, _ in part]
                try:
                    sent = self._commands.script(
                        self._script, keys, arguments, outward=self._outward
                    )
                except Exception as error:  # noqa: BLE001 - it is the callers', who wait
                    for _, _, answer in part:
                        answer.set_exception(error)
                    continue
                sent.add_done_callback(partial(_hand_on, [answer for _, _, answer in part]))


def _hand_on(answers: list[asyncio.Future[Any]], sent: asyncio.Future[Any]) -> None:
    if sent.cancelled():
        for answer in answers:
            answer.cancel()
        return
    error = sent.exception()
    if error is None:
        for answer, reply in zip(answers, sent.result(), strict=True):
            if not answer.done():
                answer.set_result(reply)
        return
    for answer in answers:
        if not answer.done():
            answer.set_exception(error)
