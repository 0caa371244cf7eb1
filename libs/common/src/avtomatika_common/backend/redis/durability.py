"""Whether a Redis server is set up for what an answer promises (`AVTOMATIKA_DURABILITY`)."""

import re
from collections.abc import Mapping
from typing import Final, cast

from redis.exceptions import ResponseError

from avtomatika_common.backend.ports import Durability
from avtomatika_common.backend.redis.connection import BlockingReader
from avtomatika_common.lifecycle import StartupError
from avtomatika_common.logs import get_logger

log = get_logger()

_ANSWER_SECONDS: Final = 5.0
_SETTINGS: Final = ("maxmemory-policy", "appendonly", "appendfsync", "min-replicas-to-write")
_REPLICAS: Final = re.compile(rb"^connected_slaves:(\d+)", re.MULTILINE)


async def check_durability(mode: Durability, server: BlockingReader, address: str) -> None:
    """Raises StartupError in `strict` where the server is not set up for it; else warns.

    Raises StoreUnavailable.
    """
    problem = await _problem(mode, server)
    if problem is None:
        return
    if mode is Durability.STRICT:
        raise StartupError(
            f"Redis at {address} is not set up for AVTOMATIKA_DURABILITY=strict: {problem}."
        )
    log.warning("redis is not set up for the durability mode", mode=mode.value, reason=problem)


async def _problem(mode: Durability, server: BlockingReader) -> str | None:
    try:
        asked = server.read("CONFIG", "GET", *_SETTINGS, seconds=_ANSWER_SECONDS)
        flat = [word.decode() for word in cast("list[bytes]", await asked)]
        info = await server.read("INFO", "replication", seconds=_ANSWER_SECONDS)
        if mode is Durability.STRICT:
            await server.read("WAIT", 0, 0, seconds=_ANSWER_SECONDS)
    except ResponseError as error:
        return (
            f"its settings could not be checked ({str(error).rstrip('.')}), allow this user the"
            " commands CONFIG GET, INFO and WAIT"
        )
    found = _REPLICAS.search(cast("bytes", info))
    replicas = int(found[1]) if found else 0
    settings = dict(zip(flat[::2], flat[1::2], strict=True))
    return "; ".join(shortcomings(mode, settings, replicas)) or None


def shortcomings(mode: Durability, settings: Mapping[str, str], replicas: int) -> list[str]:
    """What of the server's settings is too weak for `mode`, and what to set."""
    wanted: dict[str, tuple[str, ...]] = {"maxmemory-policy": ("noeviction",)}
    if mode is Durability.SAFE:
        wanted |= {"appendonly": ("yes",), "appendfsync": ("everysec", "always")}
    if mode is Durability.STRICT:
        wanted |= {"appendonly": ("yes",), "appendfsync": ("always",)}
    weak = [
        f"{name} is '{settings.get(name, '')}', set it to '{accepted[0]}'"
        for name, accepted in wanted.items()
        if settings.get(name) not in accepted
    ]
    # Without it a server that has lost its replicas would go on alone.
    if mode is Durability.STRICT and replicas and settings.get("min-replicas-to-write") == "0":
        weak.append(f"min-replicas-to-write is '0' and there are replicas, set it to '{replicas}'")
    return weak
