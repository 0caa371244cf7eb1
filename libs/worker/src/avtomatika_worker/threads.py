"""Plain handlers run in threads, and call back into the event loop from there."""

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

_Value = TypeVar("_Value")
_Arguments = ParamSpec("_Arguments")


class HandlerRaised(Exception):
    """A handler raised what must not be raised inside an event loop: SystemExit, for one."""


async def in_thread(work: Callable[[], _Value], name: str) -> _Value:
    """What `work` returns or raises, done in a thread of its own.

    A thread per task and not the loop's pool: the pool has fewer places than a worker may have,
    and a process that ends waits for its pool, however long a task takes. A thread cannot be
    stopped: if the caller is cancelled, it is left alone.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[_Value | None, Exception | asyncio.CancelledError | None]] = (
        loop.create_future()
    )

    def settle(
        value: _Value | None, error: Exception | asyncio.CancelledError | None = None
    ) -> None:
        if not done.done():
            done.set_result((value, error))

    def tell(*answer: Any) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it all interest in the answer
            loop.call_soon_threadsafe(settle, *answer)

    def body() -> None:
        try:
            tell(work())
        except StopIteration as error:
            tell(None, _wrapped(error))
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the caller hears it
            tell(None, error)
        except BaseException as error:  # noqa: BLE001 - a thread has nobody above it
            tell(None, _wrapped(error))

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(body,), name=name, daemon=True).start()
    value, error = await done
    if error is not None:
        raise error
    return value  # type: ignore[return-value] # None only if `work` returned it


def from_thread(
    function: Callable[_Arguments, Coroutine[Any, Any, _Value]], loop: asyncio.AbstractEventLoop
) -> Callable[_Arguments, _Value]:
    """`function` for a thread beside `loop`: called there, it returns when the loop has done it.

    Raises CancelledError when the loop has ended: then the worker stopped without the thread.
    """

    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Value:
        coroutine = function(*args, **kwargs)
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        except RuntimeError:
            coroutine.close()
            raise asyncio.CancelledError("The worker has stopped.") from None
        return future.result()

    return call


def _wrapped(error: BaseException) -> HandlerRaised:
    wrapped = HandlerRaised(str(error) or type(error).__name__)
    wrapped.__cause__ = error
    return wrapped
