"""Redis behind Sentinel: each connection goes to the server that is the master now.

Connections that were made to another one are broken once Sentinel names a new master, also when the old
one still answers: what is written there would be lost.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast
from urllib.parse import unquote

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError, RedisError
from typing_extensions import override

from avtomatika_common.logs import get_logger

log = get_logger()

Address = tuple[str, int]
"""Host and port."""

_ASK_SECONDS: Final = 0.5
"""Longest wait for one Sentinel; the others are asked at the same time."""
_LOOK_SECONDS: Final = 1.0
"""How often a process asks whether its server still is the master."""
_SCHEMES: Final = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
_PORT: Final = 26379
_EXAMPLE: Final = "redis+sentinel://host1:26379,host2:26379/mymaster"
_HOST: Final = re.compile(r"(?P<host>\[[^\]]+\]|[^:\[\]]+)(?::(?P<port>\d{1,5}))?")


def is_sentinel_url(url: str) -> bool:
    return url.partition("://")[0].lower() in _SCHEMES


def client_of(url: str) -> Redis:
    """A client of the master that `url` means.

    `redis+sentinel://[user:password@]host[:port],…/name[/db][?options]`; `rediss+sentinel` for TLS to
    servers and Sentinels. `sentinel_username` and `sentinel_password` are for the Sentinels, other
    options are those of redis-py's URLs. Raises ValueError, which repeats no password.
    """
    scheme, _, rest = url.partition("://")
    plain = _SCHEMES[scheme.lower()]
    place, _, options = rest.partition("?")
    login, _, where = place.rpartition("@")
    hosts, _, path = where.partition("/")
    name, _, database = path.partition("/")
    if not name:
        raise ValueError(f"it lacks the name of the master, as in {_EXAMPLE}")
    if not (database or "0").isdecimal():
        raise ValueError(f"the database '{database}' is not a number")
    settings: dict[str, Any] = dict(parse_url(f"{plain}://server/{database or 0}?{options}"))
    settings.pop("host", None)
    user, _, password = login.partition(":")
    settings |= {"username": unquote(user) or None, "password": unquote(password) or None}
    theirs = {
        option: settings.pop(f"sentinel_{option}")
        for option in ("username", "password")
        if f"sentinel_{option}" in settings
    }
    if settings.pop("connection_class", None) is not None:
        settings["ssl"] = True
        theirs |= {key: value for key, value in settings.items() if key.startswith("ssl")}
    make: Any = Sentinel  # redis-py's annotations are partial
    sentinel = make([_parsed(host) for host in hosts.split(",")], sentinel_kwargs=theirs)
    return cast("Redis", sentinel.master_for(unquote(name), **settings))


def _parsed(host: str) -> Address:
    found = _HOST.fullmatch(unquote(host.strip()))
    port = int(found["port"] or _PORT) if found else 0
    if found is None or not 0 < port < 65536:
        raise ValueError(f"'{host}' is not the host[:port] of a Sentinel, as in {_EXAMPLE}")
    return found["host"].strip("[]"), port


class Sentinels(Sentinel):
    """All are asked at the same time, and who knows of the latest fail-over is believed: one that was
    cut off may still name the server of before."""

    sentinels: list[Redis]

    @override
    async def discover_master(self, service_name: str) -> Address:
        """Raises MasterNotFoundError, which says what each of them answered."""
        us: Any = self
        asked = [self._ask(sentinel, service_name) for sentinel in self.sentinels]
        answers = await asyncio.gather(*asked)
        states = [answer for answer in answers if not isinstance(answer, str)]
        latest = max((state["config-epoch"] for state in states), default=0)
        for state in states:
            if state["config-epoch"] == latest and us.check_master_state(state, service_name):
                return us._force_master_ip or state["ip"], state["port"]  # noqa: SLF001
        said = [answer for answer in answers if isinstance(answer, str)]
        if states:
            said.append("it is down and no other is promoted yet")
        raise MasterNotFoundError(f"Sentinel names no master {service_name!r}: {'; '.join(said)}")

    async def _ask(self, sentinel: Any, name: str) -> Mapping[str, Any] | str:
        """The state of that master; else what is wrong."""
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                return cast("Mapping[str, Any]", await sentinel.sentinel_master(name))
        except (RedisError, OSError, TimeoutError) as error:
            said = str(error).rstrip(".") or "no answer"
            return f"{_text(_address_of(sentinel))}: {said}"

    @override
    async def aclose(self) -> None:
        for sentinel in self.sentinels:
            await sentinel.aclose()


class MasterPool(SentinelConnectionPool):
    """Connections to the master only. `theirs` says how to find it; its Sentinels are asked by clients
    of our own, which belong to this event loop."""

    service_name: str
    sentinel_manager: Sentinels
    master_address: Address | None

    def __init__(self, theirs: SentinelConnectionPool, settings: Mapping[str, Any]) -> None:
        given: Any = theirs
        known = given.sentinel_manager
        fixed = {
            "decode_responses": False,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": None,  # `Sentinels` has one
        }
        make: Any = Sentinels
        sentinels = make(
            [_address_of(one) for one in known.sentinels],
            min_other_sentinels=known.min_other_sentinels,
            sentinel_kwargs={**known.sentinel_kwargs, **fixed},
            force_master_ip=known._force_master_ip,  # noqa: SLF001 - else it would be lost
        )
        ours = {key: value for key, value in settings.items() if key != "connection_pool"}
        cast("Any", super()).__init__(
            given.service_name, sentinels, connection_class=given.connection_class, **ours
        )

    @override
    async def ensure_connection(self, connection: AbstractConnection) -> None:
        await super().ensure_connection(connection)
        try:
            await connection.send_command("HELLO")
            told = cast("Sequence[object]", await connection.read_response())
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        if dict(zip(told[::2], told[1::2], strict=True)).get(b"role") != b"master":
            await connection.disconnect(nowait=True)
            raise ReadOnlyError(f"{_text(_server(connection))}, which Sentinel names, is a replica")

    @override
    async def get_master_address(self) -> Address:
        return cast("Address", await cast("Any", super()).get_master_address())

    async def follow(self) -> None:
        """Leave servers that are the master no more, for ever."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                master = await self.get_master_address()
            except (RedisError, OSError, TimeoutError):
                continue  # nobody knows of a better one
            left = {
                _server(connection)
                for connection in self._in_use_connections
                if _server(connection) != master and _broken(connection)
            }
            for server in left:
                log.warning(
                    "redis server left: it is not the master",
                    service=self.service_name,
                    server=_text(server),
                    master=_text(master),
                )

    @override
    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


def service_of(pool: MasterPool) -> str:
    """What is asked for, and its server once that is known: for people."""
    service = f"{pool.service_name}/{pool.connection_kwargs.get('db', 0)}"
    if pool.master_address is not None:
        return f"{service} ({_text(pool.master_address)})"
    sentinels = (_text(_address_of(one)) for one in pool.sentinel_manager.sentinels)
    return f"{service} (by Sentinel at {', '.join(sentinels)})"


def _address_of(client: Redis) -> Address:
    settings = client.connection_pool.connection_kwargs
    return settings["host"], settings["port"]


def _server(connection: AbstractConnection) -> Address:
    """Where it was made to."""
    made: Any = connection
    return made.host, made.port


def _broken(connection: AbstractConnection) -> bool:
    """Break it; whoever reads from it hears of it at once, even if the server is frozen. False: it
    was broken before."""
    made: Any = connection
    if not made.is_connected or made._writer.transport.is_closing():  # noqa: SLF001
        return False
    made._writer.transport.abort()  # noqa: SLF001 - redis-py has no such word
    return True


def _text(address: Address) -> str:
    return "{}:{}".format(*address)
