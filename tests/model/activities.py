"""What an actor does between two rests, one call at a time.

The product's coroutines run on ports that hand every call to the model and wait for its answer. What
such a coroutine does next depends only on the answers it has had, so these stand for its state: it is
begun anew from them wherever the exploration takes it up.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from types import coroutine
from typing import Any, NamedTuple, cast

from avtomatika_common import ids
from avtomatika_common.backend.ports import Backend, StoreUnavailable
from tests.model.canonical import text_of


class Call(NamedTuple):
    """One atomic operation that an actor asks for."""

    name: str
    perform: Callable[[], Awaitable[Any]]
    arguments: tuple[Any, ...] = ()


class Answer(NamedTuple):
    at: float
    """The time it came."""
    value: Any
    text: str
    """What it says (`text_of`): it is compared often."""
    is_raised: bool = False


def answered(at: float, value: Any, *, is_raised: bool = False) -> Answer:
    return Answer(at, value, text_of(value), is_raised)


class Activity(NamedTuple):
    kind: str
    of: str
    number: int
    """No two have the same: the ids they draw are of it."""
    answers: tuple[Answer, ...] = ()


@coroutine
def ask(call: Call) -> Generator[Call, Any, Any]:
    """Let the model carry it out when it chooses to."""
    return (yield call)


class _Stepped:
    """A port, each call of which waits until the model carries it out."""

    def __init__(self, name: str, port: object) -> None:
        self._name = name
        self._port = port

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        function = getattr(self._port, method)

        async def call(*args: Any, **options: Any) -> Any:
            perform = partial(function, *args, **options)
            return await ask(Call(f"{self._name}.{method}", perform, args))

        return call


class _SteppedBackend:
    def __init__(self, backend: Backend) -> None:
        self.clock = backend.clock
        self.partitions = backend.partitions
        for name in ("jobs", "inbox", "board", "workers", "catalogue"):
            setattr(self, name, _Stepped(name, getattr(backend, name)))


def stepped(backend: Backend) -> Backend:
    return cast("Backend", _SteppedBackend(backend))


class Ended(NamedTuple):
    """The activity is over, and how."""

    error: Exception | None = None


class Running:
    """A coroutine of the product, driven by hand."""

    def __init__(self, work: Coroutine[Any, Any, None], number: int) -> None:
        self._work = work
        self._number = number
        self._turns = 0
        self.next = self._go_on(None)

    def take(self, answer: Answer) -> None:
        self.next = self._go_on(answer)

    def close(self) -> None:
        self._work.close()

    def _go_on(self, answer: Answer | None) -> Call | Ended:
        self._turns += 1
        draw_ids(self._number, self._turns)
        try:
            if answer is not None and answer.is_raised:
                asked = self._work.throw(answer.value)
            else:
                asked = self._work.send(None if answer is None else answer.value)
            while not isinstance(asked, Call):  # it lets others go first, or backs off for a while
                if isinstance(asked, asyncio.Future):
                    cast("asyncio.Future[None]", asked).set_result(None)
                asked = self._work.send(None)
        except StopIteration:
            return Ended()
        except StoreUnavailable as error:
            return Ended(error)
        return asked


def draw_ids(number: int, turn: int) -> None:
    """The ids that come next are the same each time this turn is taken."""
    drawn = [f"{number:08x}{turn:08x}{index:016x}" for index in range(8)]
    ids._drawn[:] = drawn  # pyright: ignore[reportPrivateUsage]


def finish(operation: Awaitable[Any]) -> Any:
    """What an operation that waits for nothing returns."""
    steps = operation.__await__()
    try:
        while True:
            asked = next(steps)
            assert asked is None, "an operation of the store waits for nothing"
    except StopIteration as end:
        return end.value
