"""How services become a process: settings, logs, signals, one clear line when it cannot start."""

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from avtomatika_common.backend.ports import StoreUnavailable
from avtomatika_common.config import Config
from avtomatika_common.lifecycle import Listening, Service, StartupError, running
from avtomatika_common.logs import configure_logging, get_logger

try:
    import uvloop
except ImportError:  # it does not exist for every platform
    make_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
else:
    make_loop = uvloop.new_event_loop

OpenServices = Callable[[Config], AbstractAsyncContextManager[Sequence[Service]]]

_COLLECTED_AFTER = 20_000
"""Objects made and not freed, before the youngest are looked at; Python's own number is 700."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = get_logger()


def run_process(open_services: OpenServices, config: Config | None = None) -> int:
    """Run services until SIGTERM or SIGINT, then drain them; returns the exit code.

    `open_services(config)` is entered before they start and left after they are drained: it opens
    and closes what they share. A second signal cuts the drain short (exit code 1). A StartupError,
    from wherever, and a store that is lost before they serve, are one line on stderr and exit code 1;
    any other error is raised.
    """
    try:
        config = config or Config()
        configure_logging(config)
        with asyncio.Runner(loop_factory=make_loop) as runner:
            return runner.run(_serve(open_services, config))
    except StartupError as reason:
        sys.stderr.write(f"avtomatika: {reason}\n")
        return 1


def calm_collector() -> None:
    """Let the garbage collector look less often, and never at what is there already.

    A service makes many small values that die by themselves, and next to no cycles; its modules and
    routes stay for ever. To be called once a process that is ours has started.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED_AFTER, 20, 50)


async def _serve(open_services: OpenServices, config: Config) -> int:
    stop = asyncio.Event()
    this_task = asyncio.current_task()
    assert this_task is not None
    signals = 0
    serving = False

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        if serving and not stop.is_set():
            stop.set()
        else:  # before there is anything to drain, or for the second time
            this_task.cancel()

    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        async with open_services(config) as services, running(*services):
            serving = True
            calm_collector()
            names = [service.name for service in services]
            addresses = [one.address for one in services if isinstance(one, Listening)]
            where = {"address": addresses[0]} if addresses else {}
            log.info("serving", services=names, **where, instance_id=config.INSTANCE_ID)
            await stop.wait()
            log.info("draining", services=names)
    except asyncio.CancelledError:
        if not signals:
            raise
    except StoreUnavailable as error:
        if serving:
            raise
        raise StartupError(str(error)) from error
    finally:  # the loop's end does not always give them back
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
    if signals > 1:
        log.warning("stopped before all work was drained")
        return 1
    log.info("stopped")
    return 0
