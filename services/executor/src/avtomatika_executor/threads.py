"""Where plain functions run: a thread for each call, which does not keep the process from ending."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from threading import Thread
from typing import Any

from typing_extensions import override


class HandlerThreads(Executor):
    """How many run at a time is decided by who submits.

    The threads of a pool are joined when Python ends: one handler that never returns would hold the
    process for ever, and one that nobody waits for any more would hold the place of another.
    """

    @override
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - it is raised where the future is awaited
                future.set_exception(error)
            else:
                future.set_result(result)

        Thread(target=run, name="handler", daemon=True).start()
        return future
