"""A TCP proxy between a client and a server of the tests: it can cut, delay and refuse."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class Proxy:
    """Forwards to `port`. `cut_replies_after(n)` breaks each connection n reply bytes later."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._left: int | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.connections = 0
        self.cuts = 0
        self.is_silent = asyncio.Event()
        """While it is set, replies are swallowed."""
        self.refuses = False
        """New connections are broken at once."""
        self.delay_seconds = 0.0
        """Of each piece of replies."""
        self.on_cut: Callable[[], None] | None = None

    def cut_replies_after(self, count: int | None) -> None:
        """Break whichever connection carries reply byte `count` from now; None: no more."""
        self._left = count

    def cut_now(self) -> None:
        """Break every open connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refuses:
            writer.transport.abort()
            return
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, up_writer}
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(reader, up_writer, replies=False))
                tasks.create_task(self._pump(up_reader, writer, replies=True))
        finally:
            self._writers -= {writer, up_writer}
            for end in (writer, up_writer):
                end.transport.abort()

    async def _pump(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, replies: bool
    ) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if replies and self.is_silent.is_set():
                    continue
                if replies and self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                if replies and self._left is not None:
                    if self._left < len(data):
                        target.write(data[: self._left])
                        self._left = None
                        self.cuts += 1
                        if self.on_cut is not None:
                            self.on_cut()
                        break
                    self._left -= len(data)
                target.write(data)
                await target.drain()
        for end in list(self._writers):
            if end is target:
                end.transport.abort()


@asynccontextmanager
async def proxy_to(url: str) -> AsyncGenerator[tuple[Proxy, str], None]:
    """A proxy to the server at `url`, and the URL by which to reach it."""
    parts = urlsplit(url)
    assert parts.port is not None
    proxy = Proxy(parts.port)
    server = await asyncio.start_server(proxy.handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield proxy, parts._replace(netloc=f"127.0.0.1:{port}").geturl()
    finally:
        server.close()
        proxy.cut_now()
        await server.wait_closed()
