"""Who is taken for dead: nobody by a store that has not been told for long enough who is alive."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.ports import Consumer, Delivery
from avtomatika_executor import takeover
from avtomatika_executor.takeover import TakeOver
from tests.support import until


class Dead:
    """An inbox with a consumer that is dead, as far as the store knows."""

    def __init__(self) -> None:
        self.looks = 0
        self.taken: list[str] = []

    async def consumers(self, _group: str) -> Sequence[Consumer]:
        self.looks += 1
        return [Consumer(name="other", pending=1, is_alive=False)]

    async def take_over(self, _group: str, dead: str, *_: object) -> Sequence[Delivery]:
        self.taken.append(dead)
        return []


class Known:
    seconds = 100.0

    def known_seconds(self) -> float:
        return self.seconds


async def test_after_a_fail_over_everybody_gets_time_to_be_seen_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(takeover, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(takeover, "_CALM_SECONDS", 0.05)
    inbox, liveness = Dead(), Known()
    asked: Any = TakeOver(
        cast("Any", inbox), cast("Any", liveness), MemoryStorage().clock, "default", "me",
        lambda: 1, lambda _: None,
    )  # fmt: skip
    liveness.seconds = 0.0  # the store is another one by now
    async with asyncio.TaskGroup() as group:
        running = group.create_task(asked.run())
        await until(lambda: inbox.looks > 20)
        before = list(inbox.taken)
        liveness.seconds = 100.0
        await until(lambda: inbox.taken)
        running.cancel()

    assert before == []
