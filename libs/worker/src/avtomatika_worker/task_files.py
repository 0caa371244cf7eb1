"""The files of one task: a directory of its own, which goes when its result is delivered."""

import asyncio
import hashlib
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

import orjson

from rxon import FileMetadata
from rxon.validators import is_valid_identifier


class TransferUnavailable(RuntimeError):
    def __init__(self, what: str) -> None:
        super().__init__(
            f"'{what}' cannot be transferred: this version has no S3. Use the local methods of "
            "TaskFiles, and hand data on in the result."
        )


class TaskFiles:
    """Files below `root`, by names relative to it. A name that leaves it is a ValueError.

    The directory is made when it is first needed, and each file's own directory when it is
    written.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    async def get_root(self) -> Path:
        return await asyncio.to_thread(self.get_root_sync)

    def get_root_sync(self) -> Path:
        self._root.mkdir(parents=True, exist_ok=True)
        return self._root

    async def path_to(self, name: str) -> Path:
        return await asyncio.to_thread(self.path_to_sync, name)

    def path_to_sync(self, name: str) -> Path:
        """Where the file is or would be, its directory made. Links are followed and must stay."""
        root = self.get_root_sync().resolve()
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise ValueError(f"The name '{name}' leaves the directory of the task.")
        if path != root:
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @asynccontextmanager
    async def open(self, name: str, mode: str = "r") -> AsyncGenerator["AsyncFile"]:
        """A file whose methods are awaited."""

        def opened() -> IO[Any]:
            return self.path_to_sync(name).open(mode)

        file = AsyncFile(await asyncio.to_thread(opened))
        try:
            yield file
        finally:
            await file.close()

    async def read(self, name: str, mode: str = "r") -> Any:
        """The whole file: text, or bytes in mode `rb`."""
        async with self.open(name, mode) as file:
            return await file.read()

    async def write(
        self, name: str, data: str | bytes, mode: str | None = None
    ) -> FileMetadata | None:
        """Write text or bytes; `mode` is one for writing, `w` or `wb` if left out.

        None comes back: the metadata of an upload needs S3.
        """
        chosen = mode or ("w" if isinstance(data, str) else "wb")
        async with self.open(name, chosen) as file:
            await file.write(data)
        return None

    async def write_json(self, name: str, data: object) -> FileMetadata | None:
        return await self.write(name, orjson.dumps(data), "wb")

    async def read_json(self, name: str) -> Any:
        return orjson.loads(await self.read(name, "rb"))

    async def list(self) -> list[str]:
        """The names of all files, also in directories below, in order."""

        def names() -> list[str]:
            root = self._root
            return sorted(str(one.relative_to(root)) for one in root.rglob("*") if one.is_file())

        return await asyncio.to_thread(names)

    async def exists(self, name: str) -> bool:
        path = await self.path_to(name)
        return await asyncio.to_thread(path.exists)

    async def upload_file(self, name: str) -> FileMetadata:
        raise TransferUnavailable(name)

    async def upload_dir(self, name: str = "") -> FileMetadata:
        raise TransferUnavailable(name)

    async def download_file(
        self,
        uri: str,
        filename: str,
        verify_meta: FileMetadata | None = None,  # noqa: ARG002 - for when there is S3
    ) -> Path:
        raise TransferUnavailable(f"{uri} as {filename}")

    def remove_sync(self) -> None:
        """Remove the directory with all that is in it; there may be none."""
        shutil.rmtree(self._root, ignore_errors=True)


class AsyncFile:
    """An open file; each call is done in a thread and awaited."""

    def __init__(self, file: IO[Any]) -> None:
        self._file = file

    async def read(self, size: int = -1) -> Any:
        return await asyncio.to_thread(self._file.read, size)

    async def readline(self) -> Any:
        return await asyncio.to_thread(self._file.readline)

    async def write(self, data: str | bytes) -> int:
        return await asyncio.to_thread(self._file.write, data)

    async def seek(self, offset: int, whence: int = 0) -> int:
        return await asyncio.to_thread(self._file.seek, offset, whence)

    async def tell(self) -> int:
        return await asyncio.to_thread(self._file.tell)

    async def flush(self) -> None:
        await asyncio.to_thread(self._file.flush)

    async def close(self) -> None:
        await asyncio.to_thread(self._file.close)

    def __aiter__(self) -> "AsyncFile":
        return self

    async def __anext__(self) -> Any:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line


def files_of_task(directory: Path, task_id: str) -> TaskFiles:
    """`<directory>/<task_id>`; an id that is no plain name is replaced by its digest."""
    plain = is_valid_identifier(task_id) and len(task_id) <= 200
    name = task_id if plain else hashlib.sha256(task_id.encode()).hexdigest()
    return TaskFiles(directory / name)
