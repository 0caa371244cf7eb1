"""Facts reach the database once, in batches, whatever dies or is away meanwhile."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from msgspec.structs import replace
from typing_extensions import override

from avtomatika_common import codec
from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.ports import StoreOptions, StreamEntry, WorkStream
from avtomatika_common.config import Config
from avtomatika_common.history import HistoryReader, history_reader
from avtomatika_common.lifecycle import StartupError, running
from avtomatika_common.records import unpack_fact
from avtomatika_core.commands import RecordFact, Step
from avtomatika_core.job import JobId, Origin, new_job
from avtomatika_history import HistoryService, Settings
from avtomatika_history.rows import rows_of
from avtomatika_history.sqlite import SqliteArchive
from tests.support import until

UTC = Config({}).timezone()


class World:
    """A memory store that keeps facts, and the archive they are to get into."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = MemoryStorage()

    async def open(self) -> None:
        await self.store.open(StoreOptions(keep_facts=True, block_seconds=0.05))

    def service(self, **settings: Any) -> HistoryService:
        described: dict[str, Any] = {"uri": f"sqlite:{self.path}", "look_seconds": 0.05, **settings}
        return HistoryService(Settings(**described), self.store)

    @property
    def reader(self) -> HistoryReader:
        reader = history_reader(f"sqlite:{self.path}", UTC)
        assert reader is not None
        return reader

    async def new_job(self, number: int = 0) -> JobId:
        """A job, and with it one fact."""
        job_id = JobId(f"00000000-0000-4000-8000-{number:012}")
        origin = Origin(
            blueprint="b", group="default", start_state="s", created_at=self.store.clock.now()
        )
        await self.store.jobs.create(new_job(job_id, origin))
        return job_id

    async def kinds(self, job_id: JobId) -> list[str]:
        return [row["event_type"] for row in await self.reader.rows(job_id)]

    async def all_written(self) -> None:
        async def is_empty() -> bool:
            return await self.store.facts.length() == 0

        await until(is_empty, message="facts are left in the stream")


@pytest.fixture
async def world(tmp_path: Path) -> World:
    made = World(tmp_path / "h.db")
    await made.open()
    return made


class Counted(WorkStream):
    """A stream that counts how often it was answered."""

    def __init__(self, stream: WorkStream) -> None:
        self._stream = stream
        self.answers: list[int] = []

    @override
    async def read(self, consumer: str, room: int) -> list[StreamEntry]:
        return await self._stream.read(consumer, room)

    @override
    async def pending(self, consumer: str) -> list[StreamEntry]:
        return await self._stream.pending(consumer)

    @override
    async def acknowledge(self, entries: Sequence[StreamEntry]) -> None:
        self.answers.append(len(entries))
        await self._stream.acknowledge(entries)

    @override
    async def take_over(self, consumer: str, room: int) -> list[StreamEntry]:
        return await self._stream.take_over(consumer, room)

    @override
    async def length(self) -> int:
        return await self._stream.length()


async def test_a_fact_becomes_a_row_and_leaves_the_stream(world: World) -> None:
    async with running(world.service()):
        job_id = await world.new_job()
        await world.all_written()

        assert await world.kinds(job_id) == ["job_created"]


async def test_facts_are_written_in_batches(world: World) -> None:
    jobs = [await world.new_job(number) for number in range(30)]
    counted = Counted(world.store.facts)
    service = world.service(batch=20)
    service._stream = counted  # pyright: ignore[reportPrivateUsage]

    async with running(service):
        await world.all_written()

    assert counted.answers == [20, 10]
    assert len(await world.reader.latest(None, 100, 0)) == len(jobs)


async def test_a_fact_that_was_inserted_but_not_acknowledged_is_one_row(world: World) -> None:
    job_id = await world.new_job()
    async with world.store.liveness.keep("killed"):
        [entry] = await world.store.facts.read("killed", 10)
        archive = SqliteArchive(str(world.path))
        await archive.write(rows_of(unpack_fact(entry.payload)))
        await archive.close()
    before = await world.reader.rows(job_id)

    async with running(world.service()):
        await world.all_written()

    assert await world.reader.rows(job_id) == before
    assert await world.kinds(job_id) == ["job_created"]


async def test_facts_wait_while_the_database_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path / "away" / "h.db")
    await world.open()

    def complaints() -> list[str]:
        """Not what else is said: that depends on who has set the level before."""
        return [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR]

    async with running(world.service()):
        with caplog.at_level(logging.ERROR, "avtomatika"):
            job_id = await world.new_job()
            await until(lambda: len(complaints()) == 2, message="not all was said")
        assert await world.store.facts.length() == 1
        world.path.parent.mkdir()
        await world.all_written()

    assert await world.kinds(job_id) == ["job_created"]
    assert complaints() == [
        "the archive cannot be opened, facts wait until it can",
        "facts wait: they cannot be archived",
    ]


async def test_a_table_that_could_not_be_made_is_made_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path / "h.db")
    await world.open()
    world.path.write_text("not a database " * 100)
    job_id = await world.new_job()

    async with running(world.service()):
        await until(lambda: caplog.records, message="nothing was said")
        world.path.unlink()
        await world.all_written()

    assert await world.kinds(job_id) == ["job_created"]


async def test_a_stop_writes_what_is_there(world: World) -> None:
    async with running(world.service(look_seconds=60.0)):
        await world.new_job()
        await world.all_written()
        jobs = [await world.new_job(number) for number in range(1, 40)]

    assert await world.store.facts.length() == 0
    assert [await world.kinds(job_id) for job_id in jobs] == [["job_created"]] * 39


async def test_a_stop_ends_in_time_when_the_database_is_away(tmp_path: Path) -> None:
    world = World(tmp_path / "away" / "h.db")
    await world.open()

    async with running(world.service()):
        await world.new_job()

    assert await world.store.facts.length() == 1


def garbled(_payload: bytes) -> bytes:
    return b"\xc1"


def too_deep(payload: bytes) -> bytes:
    """To be written as JSON."""
    deep: object = None
    for _ in range(300):
        deep = [deep]
    return codec.pack(replace(unpack_fact(payload), snapshot={"deep": deep}))


@pytest.mark.parametrize(
    ("spoil", "said"), [(garbled, "fact unreadable"), (too_deep, "fact cannot be archived")]
)
async def test_a_fact_that_makes_no_row_is_logged_and_does_not_stop_the_others(
    world: World,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[bytes], bytes],
    said: str,
) -> None:
    await world.new_job()
    log = world.store._tables.facts  # pyright: ignore[reportPrivateUsage]
    log.unread[0].payload = spoil(log.unread[0].payload)
    job_id = await world.new_job(1)

    with caplog.at_level(logging.ERROR, "avtomatika"):
        async with running(world.service()):
            await world.all_written()

    assert await world.kinds(job_id) == ["job_created"]
    assert [record.getMessage() for record in caplog.records] == [said]


async def test_rows_of_one_commit_stand_in_its_order(world: World) -> None:
    job_id = await world.new_job()
    stored = await world.store.jobs.load(job_id)
    assert stored is not None
    [delivery] = await world.store.inbox.read("default", "executor", 1)
    facts = tuple(
        RecordFact(kind=kind, at=stored.job.origin.created_at, state="s")
        for kind in ("approval_received", "job_cancelled", "job_completed")
    )
    await world.store.jobs.commit(stored, Step(stored.job, facts), delivery)

    async with running(world.service()):
        await world.all_written()

    assert await world.kinds(job_id) == [
        "job_created", "approval_received", "job_cancelled", "job_completed",
    ]  # fmt: skip


async def test_two_archives_share_one_stream_and_one_file(world: World) -> None:
    async with running(world.service(batch=2), world.service(batch=2)):
        jobs = [await world.new_job(number) for number in range(50)]
        await world.all_written()

    rows = await world.reader.latest(None, 100, 0)
    assert {row["job_id"] for row in rows} == set(jobs)


async def test_the_tables_are_indexed_and_in_wal_mode(world: World) -> None:
    archive = SqliteArchive(str(world.path))
    await archive.write([])
    await archive.close()

    async with aiosqlite.connect(world.path) as database:
        [[mode]] = await database.execute_fetchall("PRAGMA journal_mode")
        plan = await database.execute_fetchall(
            "EXPLAIN QUERY PLAN SELECT * FROM job_history WHERE job_id = 'j'"
        )

    assert mode == "wal"
    assert "job_history_by_job" in str([tuple(row) for row in plan])


async def test_without_a_database_nothing_is_archived() -> None:
    service = HistoryService(Settings.from_config(Config({})), MemoryStorage())

    async with running(service):
        pass


def test_another_scheme_stops_the_start() -> None:
    config = Config({"HISTORY_DATABASE_URI": "mysql://u:pw@h/db"})

    with pytest.raises(StartupError, match="HISTORY_DATABASE_URI has the scheme 'mysql'"):
        HistoryService(Settings.from_config(config), MemoryStorage())
