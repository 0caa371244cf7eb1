"""Results on disk that could not be sent yet: one file each, there after a restart too."""

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import orjson

from rxon import RxonError, TaskResult, parse_result
from rxon.utils import to_dict

SPOOL_MAX_BYTES: Final = 64 * 1024 * 1024
"""All files of one worker; over it the oldest go."""
SPOOL_MAX_AGE_SECONDS: Final = 7 * 24 * 3600.0

_NAME: Final = re.compile(r"[0-9a-f]{32}\.(json|tmp|corrupt)")

log = logging.getLogger("avtomatika_worker")


class Spooled(msgspec.Struct, frozen=True, kw_only=True):
    orchestrator: str
    """The URL of the one it belongs to."""
    result: TaskResult


class Spool:
    """The folder `<directory>/<worker_id>`. Never raises for what a disk does: it logs it."""

    def __init__(
        self,
        directory: Path,
        worker_id: str,
        *,
        max_bytes: int = SPOOL_MAX_BYTES,
        max_age_seconds: float = SPOOL_MAX_AGE_SECONDS,
        clock: Callable[[], float] = time.time,  # noqa: TID251 - files carry the time of the wall
    ) -> None:
        self._directory = directory
        self._folder = directory / worker_id
        self._max_bytes = max_bytes
        self._max_age_seconds = max_age_seconds
        self._clock = clock

    def keep(self, orchestrator: str, result: TaskResult) -> bool:
        """Write it, whole or not at all; whether it lies on disk now."""
        path = self._path(orchestrator, result.task_id)
        content = orjson.dumps({"orchestrator": orchestrator, "result": to_dict(result)})
        if len(content) > self._max_bytes:
            log.warning("result too large to spool", extra=_about(result, bytes=len(content)))
            return False
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(len(content))
            _write_whole(path, content)
        except OSError as error:
            log.warning("result not spooled", extra=_about(result, error=str(error)))
            return False
        log.info("result spooled", extra=_about(result, path=str(path)))
        return True

    def discard(self, orchestrator: str, task_id: str) -> None:
        _remove(self._path(orchestrator, task_id))

    def load(self) -> list[Spooled]:
        """What lies there, the oldest first. A file that cannot be read is set aside."""
        spooled: list[Spooled] = []
        for path in self._files():
            if path.suffix != ".json":
                continue
            try:
                content = path.read_bytes()
            except OSError as error:
                log.warning("spooled result unreadable", extra=_of_file(path, error))
                continue
            try:
                spooled.append(_read(content))
            except (msgspec.DecodeError, RxonError) as error:
                log.error("spooled result set aside", extra=_of_file(path, error))
                with suppress(OSError):
                    path.replace(path.with_suffix(".corrupt"))
        return spooled

    def sweep(self) -> None:
        """Remove what is too old, of workers with other ids too: they may never come back."""
        oldest = self._clock() - self._max_age_seconds
        for path in self._directory.glob("*/*"):
            if _is_ours(path) and _stat(path)[0] < oldest:
                log.error("spooled result too old", extra={"path": str(path)})
                _remove(path)

    def _make_room(self, needed: int) -> None:
        files = self._files()
        total = needed + sum(_stat(path)[1] for path in files)
        for path in files:
            if total <= self._max_bytes:
                return
            total -= _stat(path)[1]
            log.error("spool full: oldest result lost", extra={"path": str(path)})
            _remove(path)

    def _files(self) -> list[Path]:
        return sorted(filter(_is_ours, self._folder.glob("*")), key=_stat)

    def _path(self, orchestrator: str, task_id: str) -> Path:
        # Task ids are the orchestrator's; what it calls them must not choose our file names.
        digest = hashlib.sha256(f"{orchestrator}\n{task_id}".encode()).hexdigest()[:32]
        return self._folder / f"{digest}.json"


def _is_ours(path: Path) -> bool:
    """The directory may be one where others keep files too."""
    return _NAME.fullmatch(path.name) is not None


def _read(content: bytes) -> Spooled:
    raw = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    if raw.keys() != {"orchestrator", "result"}:
        raise msgspec.DecodeError("it is not what this program wrote")
    return Spooled(
        orchestrator=msgspec.json.decode(raw["orchestrator"], type=str),
        result=parse_result(msgspec.json.decode(raw["result"], type=dict[str, object])),
    )


def _write_whole(path: Path, content: bytes) -> None:
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("spooled result not removed", extra=_of_file(path, error))


def _stat(path: Path) -> tuple[float, int]:
    """When it was written, and its size; of a file that is gone, long ago and nothing."""
    try:
        found = path.stat()
    except OSError:
        return (0.0, 0)
    return (found.st_mtime, found.st_size)


def _about(result: TaskResult, **fields: object) -> dict[str, object]:
    return {"task_id": result.task_id, "job_id": result.job_id, **fields}


def _of_file(path: Path, error: Exception) -> dict[str, str]:
    return {"path": str(path), "error": str(error)}
