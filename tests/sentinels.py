"""A Redis master, its replica and the Sentinels that watch them, on loopback."""

import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.servers import RedisServer, a_redis_server, free_port, redis_answers
from tests.support import until

SERVICE: Final = "jobs"
_DOWN_AFTER_MS: Final = 1000
_PERIODS: Final = (
    "info-period", "200", "ping-period", "200", "ask-period", "200", "publish-period", "400",
    "default-failover-timeout", "3000", "election-timeout", "1000",
)  # fmt: skip
"""A fraction of the real ones, which keep a server that comes back waiting for many seconds."""
_REPLICA: Final = ("replica", "on", ">word", "+psync", "+replconf", "+ping")
"""The user the replica is to its master, so that it can be shut out."""


_OF_SENTINEL: Final = ("ping", "slaveof", "replicaof")
"""Commands by which it finds a server alive, and makes it a replica."""


class Watched:
    """A service of Sentinel: a master and its replica."""

    def __init__(self, servers: list[RedisServer], sentinels: list[RedisServer]) -> None:
        self.servers = servers
        self.sentinels = sentinels

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    async def master(self) -> RedisServer:
        """Whom the first Sentinel names."""
        async with Redis(port=self.sentinels[0].port) as client:
            port = await _named(client)
        [named] = [server for server in self.servers if server.port == port]
        return named

    async def replica(self) -> RedisServer:
        master = await self.master()
        [other] = [server for server in self.servers if server is not master]
        return other

    async def promoted(self, server: RedisServer) -> None:
        """Wait until every Sentinel names this server, and it is a master."""
        for sentinel in self.sentinels:
            async with Redis(port=sentinel.port) as client:

                async def is_named(client: Redis = client) -> bool:
                    return await _named(client) == server.port

                await until(is_named, 20.0, "nobody was promoted")
        await self.has_role(server, "master")

    async def has_role(self, server: RedisServer, role: str) -> None:
        async with Redis.from_url(server.url) as client:

            async def is_so() -> bool:
                with suppress(RedisError):  # a server that is demoted closes its connections
                    return bool((await client.role())[0].decode() == role)
                return False

            await until(is_so, 20.0, f"{server.url} is no {role}")

    async def kill_in_step(self, master: RedisServer) -> None:
        """Kill it at a moment when its replica has all that was answered."""
        async with Redis.from_url(master.url) as client:
            await client.client_pause(20_000, all=False)  # writes, which are answered no more

            async def has_all() -> bool:
                known: Any = await client.info("replication")
                return bool(known["slave0"]["offset"] == known["master_repl_offset"])

            await until(has_all, 10.0, "the replica does not catch up")
        master.kill()

    async def cut_off_replica(self) -> None:
        """Nothing that is written from now on reaches it."""
        async with Redis.from_url((await self.master()).url) as client:
            await client.execute_command("ACL", "SETUSER", "replica", "off")
            await client.execute_command("CLIENT", "KILL", "USER", "replica")

    async def isolate(self, server: RedisServer) -> None:
        """To its replica and to the Sentinels it is dead; everybody else it answers as before."""
        await self.cut_off_replica()
        async with Redis.from_url(server.url) as client:
            await client.execute_command(
                "ACL", "SETUSER", "default", *(f"-{word}" for word in _OF_SENTINEL)
            )

    async def rejoin(self, server: RedisServer) -> None:
        async with Redis.from_url(server.url) as client:
            await client.execute_command("ACL", "SETUSER", "replica", "on")
            await client.execute_command(
                "ACL", "SETUSER", "default", *(f"+{word}" for word in _OF_SENTINEL)
            )

    async def in_step(self) -> None:
        """Wait until the replica has all that was written, and the Sentinels know it."""
        master, replica = await self.master(), await self.replica()
        async with Redis.from_url(master.url) as client:

            async def has_all() -> bool:
                with suppress(RedisError):  # it may refuse to write while it is alone
                    await client.set("written", 1)
                    return bool(await client.wait(1, 1000))
                return False

            await until(has_all, 20.0, "the replica does not catch up")
        for sentinel in self.sentinels:
            async with Redis(port=sentinel.port) as client:

                async def is_known(client: Redis = client) -> bool:
                    known: Any = await client.sentinel_slaves(SERVICE)
                    others: Any = await client.sentinel_sentinels(SERVICE)
                    return len(others) == len(self.sentinels) - 1 and any(
                        one["port"] == replica.port and one["master-link-status"] == "ok"
                        for one in known
                    )

                await until(is_known, 20.0, "Sentinel does not know the replica")


async def _named(sentinel: Redis) -> int:
    """The port of the master."""
    address: Any = await sentinel.sentinel_get_master_addr_by_name(SERVICE)
    return int(address[1])


@contextmanager
def watched(binary: Path, *options: str, sentinels: int = 1) -> Generator[Watched, None, None]:
    """Two servers with these options, the first of which begins as the master, and Sentinels of
    which more than half are a quorum."""
    with ExitStack() as stack:
        login = ("--masteruser", "replica", "--masterauth", "word")
        quick = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
        common = ("--user", *_REPLICA, *login, *quick, *options)
        main = stack.enter_context(a_redis_server(binary, *common))
        following = ("--replicaof", "127.0.0.1", str(main.port))
        other = stack.enter_context(a_redis_server(binary, *common, *following))
        ports = [
            stack.enter_context(_a_sentinel(binary, main.port, sentinels // 2 + 1))
            for _ in range(sentinels)
        ]
        yield Watched([main, other], ports)


@contextmanager
def _a_sentinel(binary: Path, master: int, quorum: int) -> Generator[RedisServer, None, None]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="avtomatika-", ignore_cleanup_errors=True) as name:
        place = Path(name)
        settings = [
            "bind 127.0.0.1",
            f"port {port}",
            f"sentinel monitor {SERVICE} 127.0.0.1 {master} {quorum}",
            f"sentinel down-after-milliseconds {SERVICE} {_DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} 3000",
        ]
        (place / "sentinel.conf").write_text("\n".join(settings) + "\n")
        command = [str(binary), "sentinel.conf", "--sentinel"]
        sentinel = RedisServer(command, place, port)
        try:
            sentinel.start()
            assert redis_answers(port, f"SENTINEL DEBUG {' '.join(_PERIODS)}", "+OK")
            yield sentinel
        finally:
            sentinel.kill()
