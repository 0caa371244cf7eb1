"""A gateway, as a process, that is killed between the lease of its first task and the answer."""

import os
import signal
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from avtomatika_common.backend.opening import open_redis, store_options
from avtomatika_common.config import Config
from avtomatika_common.lifecycle import Service
from avtomatika_common.process import run_process
from avtomatika_gateway.service import GatewayService
from avtomatika_gateway.settings import Settings
from tests.integration.sites import impatient, once

DELIVERY_SECONDS = 1.0


async def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@asynccontextmanager
async def _opened(config: Config) -> AsyncGenerator[Sequence[Service], None]:
    backend = impatient(open_redis(config.service_redis_url()), DELIVERY_SECONDS)
    await backend.open(store_options(config))
    once(backend.board, "lease", after=_die)
    yield [GatewayService(Settings.from_config(config), backend)]


if __name__ == "__main__":
    sys.exit(run_process(_opened))
