"""Connections that can fail: a listener that passes on to one of several servers, or does not."""

import asyncio
import itertools
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

_PIECE: Final = 65536


class _Pair:
    """One connection from a client and the one that goes on from there to a server."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.ends = (client, server)
        self.is_dead = False
        """Both ends believe that it is there, and nothing arrives any more."""

    def abort(self) -> None:
        for end in self.ends:
            end.transport.abort()


class Link:
    """Each new connection goes to the next of the servers that answers."""

    def __init__(self, name: str, ports: Sequence[int]) -> None:
        self.name = name
        self.port = 0
        self.delay_seconds = 0.0
        """Of each piece, in both directions."""
        self._servers = itertools.cycle(ports)
        self._count = len(ports)
        self._pairs: set[_Pair] = set()
        self._is_dead = False

    def cut(self) -> None:
        """Break every connection."""
        for pair in list(self._pairs):
            pair.abort()

    def die(self) -> None:
        """Nothing passes any more, on new connections neither, and nobody is told."""
        self._is_dead = True
        for pair in self._pairs:
            pair.is_dead = True

    def heal(self) -> None:
        """New connections work; those that were dead are noticed to be broken."""
        self._is_dead = False
        self.delay_seconds = 0.0
        for pair in list(self._pairs):
            if pair.is_dead:
                pair.abort()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected = await self._connected()
        if connected is None:
            writer.transport.abort()
            return
        server_reader, server_writer = connected
        pair = _Pair(writer, server_writer)
        pair.is_dead = self._is_dead
        self._pairs.add(pair)
        for end in pair.ends:
            connection = end.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(reader, server_writer, pair))
                tasks.create_task(self._pump(server_reader, writer, pair))
        finally:
            self._pairs.discard(pair)
            pair.abort()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in range(self._count):
            with suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", next(self._servers))
        return None

    async def _pump(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, pair: _Pair
    ) -> None:
        with suppress(OSError):
            while data := await source.read(_PIECE):
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                if pair.is_dead:
                    continue
                target.write(data)
                await target.drain()
        pair.abort()


@asynccontextmanager
async def a_link(name: str, ports: Sequence[int]) -> AsyncGenerator[Link, None]:
    link = Link(name, ports)
    server = await asyncio.start_server(link.handle, "127.0.0.1", 0)
    link.port = server.sockets[0].getsockname()[1]
    try:
        yield link
    finally:
        server.close()
        link.cut()
        await server.wait_closed()
