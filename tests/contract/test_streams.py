"""Work streams, the catalogue, data stores, liveness."""

import asyncio
from typing import Any

import pytest

from avtomatika_common.backend.ports import (
    CatalogueEntry,
    StorageBackend,
    StreamEntry,
    WorkStream,
)
from tests.contract.builders import Executor, a_job
from tests.contract.conftest import Open

ME, DEAD = "notifier-1", "notifier-dead"


async def some_entries(backend: StorageBackend, count: int) -> WorkStream:
    executor = Executor(backend)
    for _ in range(count):
        await executor.end(await executor.start(a_job(backend, webhook_url="http://x")))
    return backend.notifications


def ids_of(entries: list[StreamEntry]) -> list[str]:
    return [entry.entry_id for entry in entries]


# --- work streams


async def test_an_entry_is_there_until_it_is_acknowledged(backend: StorageBackend) -> None:
    stream = await some_entries(backend, 2)

    entries = await stream.read(ME, 10)

    assert len(entries) == 2
    assert await stream.read(ME, 10) == []
    assert ids_of(await stream.pending(ME)) == ids_of(entries)
    assert [entry.deliveries for entry in entries] == [1, 1]
    await stream.acknowledge(entries[:1])
    assert ids_of(await stream.pending(ME)) == ids_of(entries[1:])
    assert await stream.length() == 1
    await stream.acknowledge(entries)  # a repeat: the first was acknowledged
    assert await stream.length() == 0


async def test_consumers_share_the_entries(backend: StorageBackend) -> None:
    stream = await some_entries(backend, 12)

    reads = await asyncio.gather(*(stream.read(f"n-{number}", 3) for number in range(4)))

    found = [entry_id for read in reads for entry_id in ids_of(read)]
    assert len(set(found)) == len(found) == 12


async def test_only_entries_of_the_dead_are_taken_over(backend: StorageBackend) -> None:
    stream = await some_entries(backend, 3)
    async with backend.liveness.keep("notifier-2"):
        await stream.read("notifier-2", 1)
        orphans = await stream.read(DEAD, 2)

        taken = await stream.take_over(ME, 10)

        assert ids_of(taken) == ids_of(orphans)
        assert [entry.payload for entry in taken] == [entry.payload for entry in orphans]
        assert [entry.deliveries for entry in taken] == [2, 2]
        assert ids_of(await stream.pending(ME)) == ids_of(orphans)
        assert await stream.pending(DEAD) == []
        assert await stream.take_over(ME, 10) == []


async def test_only_so_many_entries_are_taken_over(backend: StorageBackend) -> None:
    stream = await some_entries(backend, 3)
    await stream.read(DEAD, 3)

    portions = [len(await stream.take_over(ME, 2)) for _ in range(3)]

    assert portions == [2, 1, 0]


async def test_a_waiting_consumer_wakes_when_an_entry_comes(open_backend: Open) -> None:
    backend = await open_backend(block_seconds=30)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        waiting = group.create_task(backend.notifications.read(ME, 10))
        await asyncio.sleep(0)
        await some_entries(backend, 1)

    assert len(waiting.result()) == 1


async def test_entries_of_all_partitions_are_read(open_backend: Open) -> None:
    backend = await open_backend(partitions=3, keep_facts=True)
    for partition in range(3):
        await backend.jobs.create(a_job(backend, partition=partition))

    found: list[StreamEntry] = []
    while len(found) < 3:
        news = await backend.facts.read(ME, 10)
        assert news
        found += news

    assert sorted(entry.partition for entry in found) == [0, 1, 2]
    await backend.facts.acknowledge(found)
    assert await backend.facts.length() == 0


# --- catalogue


def an_entry(
    name: str = "b", *, dot: str = "digraph {}", input_schema: dict[str, Any] | None = None
) -> CatalogueEntry:
    return CatalogueEntry(
        name=name,
        group="default",
        start_state="start",
        api_endpoint=f"/jobs/{name}",
        api_version=None,
        dot=dot,
        input_schema=input_schema,
    )


async def test_published_blueprints_are_known(backend: StorageBackend) -> None:
    _, before = await backend.catalogue.entries()

    await backend.catalogue.publish([an_entry("b"), an_entry("a")])
    await backend.catalogue.publish([an_entry("c")])

    _, after = await backend.catalogue.entries()
    assert before == []
    assert sorted(after, key=lambda entry: entry.name) == [an_entry(name) for name in "abc"]


async def test_a_contract_is_published_with_its_blueprint(backend: StorageBackend) -> None:
    entry = an_entry(input_schema={"$ref": "#/$defs/A", "$defs": {"A": {"type": "object"}}})

    await backend.catalogue.publish([entry])

    _, entries = await backend.catalogue.entries()
    assert entries == [entry]


async def test_only_a_change_makes_another_version(backend: StorageBackend) -> None:
    await backend.catalogue.publish([an_entry()])
    version, _ = await backend.catalogue.entries()

    await backend.catalogue.publish([an_entry()])
    same, _ = await backend.catalogue.entries()
    await backend.catalogue.publish([an_entry(dot="digraph {a}")])
    other, entries = await backend.catalogue.entries()

    assert same == version
    assert other != version
    assert entries == [an_entry(dot="digraph {a}")]


async def test_who_waits_for_the_catalogue_is_woken_by_a_change(open_backend: Open) -> None:
    backend = await open_backend(block_seconds=30)
    version, _ = await backend.catalogue.entries()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(backend.catalogue.changed(version))
        await asyncio.sleep(0)
        await backend.catalogue.publish([an_entry()])

    async with asyncio.timeout(10):
        await backend.catalogue.changed(version)  # missed nothing: it is another version already


# --- data stores


async def test_a_data_store_keeps_bytes_by_namespace_and_key(backend: StorageBackend) -> None:
    values = backend.key_values

    await values.set("a", "k", b"1")
    await values.set("b", "k", b"\x00\xff")
    await values.set("a", "k", b"2")

    assert await values.get("a", "k") == b"2"
    assert await values.get("b", "k") == b"\x00\xff"
    assert await values.get("a", "other") is None
    assert await values.get("other", "k") is None


# --- liveness


async def test_an_instance_is_alive_while_it_is_kept(backend: StorageBackend) -> None:
    assert not await backend.liveness.is_alive(ME)

    async with backend.liveness.keep(ME):
        assert await backend.liveness.is_alive(ME)
        assert not await backend.liveness.is_alive("another")

    assert not await backend.liveness.is_alive(ME)


async def test_an_instance_that_fails_is_not_kept_alive(backend: StorageBackend) -> None:
    with pytest.raises(ValueError, match="broken"):
        async with backend.liveness.keep(ME):
            raise ValueError("broken")

    assert not await backend.liveness.is_alive(ME)
