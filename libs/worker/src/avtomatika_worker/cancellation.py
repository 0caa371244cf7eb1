"""How a handler learns that its task should end early."""

import asyncio
import threading


class Cancellation:
    """A token of one task, to be asked from any thread."""

    def __init__(self) -> None:
        self._requested = threading.Event()

    @property
    def requested(self) -> bool:
        """Nobody wants the task any more, or the worker stops and it did not end in time."""
        return self._requested.is_set()

    def raise_if_requested(self) -> None:
        """Raise CancelledError, which makes `cancelled` of the task if nothing catches it."""
        if self.requested:
            raise asyncio.CancelledError("The task is no longer wanted.")

    def wait(self, seconds: float) -> bool:
        """Sleep in a plain handler, but no longer than until it is requested; whether it is."""
        return self._requested.wait(seconds)

    def request(self) -> None:
        self._requested.set()
