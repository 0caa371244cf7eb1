"""Who is alive, in Redis: a key per instance and slot, renewed from a thread.

A handler that blocks the event loop does not stop the thread, so its process is not taken for dead.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from avtomatika_common.backend.ports import Liveness, StoreUnavailable
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.connection import BlockingReader, follow_master, own_pool
from avtomatika_common.backend.redis.scripts import script
from avtomatika_common.logs import get_logger

log = get_logger()

_KEEP: Final = script("keep_alive").source
_LIFETIME_MS: Final = 5000
_PAUSE_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 1.5  # a stuck connection is replaced well before the lifetime is over
_START_SECONDS: Final = 10.0
_FAREWELL_SECONDS: Final = 3.0


class RedisLiveness(Liveness):
    def __init__(self, client: Redis, commands: Commands, partitions: int) -> None:
        self._client = client
        self._commands = commands
        slots = [keys.partition(number) for number in range(partitions)]
        self._slots = [*slots, keys.WORKERS]

    def keep(self, instance: str) -> AbstractAsyncContextManager[None]:
        """Raises StoreUnavailable when it cannot be made known at first."""
        return self._keep(instance)

    @asynccontextmanager
    async def _keep(self, instance: str) -> AsyncGenerator[None, None]:
        pulse = _Pulse(self._client, [keys.alive(slot, instance) for slot in self._slots])
        pulse.start()
        try:
            if not await asyncio.to_thread(pulse.began.wait, _START_SECONDS):
                raise StoreUnavailable("Redis does not answer: the instance cannot say it is alive")
            yield
        finally:
            pulse.stop()
            await asyncio.to_thread(pulse.join, _FAREWELL_SECONDS)

    def known_seconds(self) -> float:
        return self._commands.here_seconds

    async def is_alive(self, instance: str) -> bool:
        return bool(await self._commands.command("EXISTS", keys.alive(keys.WORKERS, instance)))


class _Pulse(threading.Thread):
    """Renews keys until it is stopped, then deletes them. It has a loop and a connection of its own."""

    def __init__(self, client: Redis, names: list[str]) -> None:
        super().__init__(name="liveness", daemon=True)
        self.began = threading.Event()
        self._client = client
        self._names = names
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)

    def run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._beat())

    async def _beat(self) -> None:
        pool = own_pool(self._client)
        following = self._loop.create_task(follow_master(pool), name="redis master")
        try:
            await self._beat_on(BlockingReader(pool))
        finally:
            following.cancel()
            await pool.aclose()

    async def _beat_on(self, reader: BlockingReader) -> None:
        failing = False
        while not self._stopped.is_set():
            try:
                for name in self._names:
                    async with asyncio.timeout(_ANSWER_SECONDS):
                        await reader.read("EVAL", _KEEP, 1, name, _LIFETIME_MS, seconds=0)
            except (StoreUnavailable, ResponseError, TimeoutError) as error:
                if not failing:
                    log.warning("liveness not renewed", error=str(error))
                failing = True
            else:
                failing = False
                self.began.set()
            await self._pause()
        await self._say_goodbye(reader)

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(_PAUSE_SECONDS):
                await self._stopped.wait()
        except TimeoutError:
            pass

    async def _say_goodbye(self, reader: BlockingReader) -> None:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                for name in self._names:
                    await reader.read("DEL", name, seconds=0)
        except (StoreUnavailable, ResponseError, TimeoutError) as error:
            log.info("liveness ends by itself", error=str(error))
        finally:
            await reader.close()
