"""A coroutine that has run up to its first wait: most handlers never wait, and are done by then."""

from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

_Result = TypeVar("_Result")


class Begun(Generic[_Result]):
    """Begin `coroutine` now, in the task that is running; awaiting it once gives the rest."""

    def __init__(self, coroutine: Coroutine[Any, Any, _Result]) -> None:
        self._coroutine = coroutine
        self._waits_for: Any = None
        self.result: _Result | None = None
        """What it returned; None: it waits."""
        try:
            self._waits_for = coroutine.send(None)
        except StopIteration as end:
            self.result = end.value

    def __await__(self) -> Generator[Any, Any, _Result]:
        while True:
            raised: BaseException | None = None
            sent: Any = None
            try:
                sent = yield self._waits_for
            except BaseException as error:  # noqa: BLE001 - it is the coroutine's to handle
                raised = error
            try:
                if raised is None:
                    self._waits_for = self._coroutine.send(sent)
                else:
                    self._waits_for = self._coroutine.throw(raised)
            except StopIteration as end:
                result: _Result = end.value
                return result
