"""A service as a process of its own: its backend from the environment, then `process.run_process`."""

import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager

from avtomatika_common.backend.opening import open_redis, store_options
from avtomatika_common.backend.ports import Backend
from avtomatika_common.config import Config
from avtomatika_common.lifecycle import Service
from avtomatika_common.process import run_process


def run_service(make: Callable[[Config, Backend], Service]) -> None:
    """Run the service `make` gives until it is told to stop; ends the process."""

    @asynccontextmanager
    async def opened(config: Config) -> AsyncGenerator[Sequence[Service], None]:
        backend = open_redis(config.service_redis_url())
        await backend.open(store_options(config))
        try:
            yield [make(config, backend)]
        finally:
            await backend.close()

    sys.exit(run_process(opened))
