"""What processes wait for and share in Redis: streams, wake-ups, leases, liveness, the catalogue."""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import suppress
from typing import Final

import pytest
import pytest_asyncio
from libs.common.tests.redis_ports import Ports, open_ports

from avtomatika_common.backend.ports import (
    CatalogueEntry,
    Hint,
    LostLease,
    StoreUnavailable,
    StreamEntry,
)
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.scripts import script
from avtomatika_core.job import WorkerId
from tests.servers import redis_binaries, running_redis
from tests.support import until

pytestmark = pytest.mark.integration

SERVERS = redis_binaries()
PARTITIONS: Final = 2


@pytest.fixture(scope="module", params=sorted(SERVERS))
def server(request: pytest.FixtureRequest) -> Generator[str, None, None]:
    with running_redis(SERVERS[request.param]) as url:
        yield url


@pytest_asyncio.fixture
async def ports(server: str) -> AsyncGenerator[Ports, None]:
    async with open_ports(server, partitions=PARTITIONS) as opened:
        yield opened


# -- work streams


async def append(ports: Ports, payload: bytes, partition: int = 0) -> None:
    await ports.commands.command("XADD", f"{keys.partition(partition)}facts", "*", "d", payload)


def payloads(entries: list[StreamEntry]) -> list[bytes]:
    return sorted(entry.payload for entry in entries)


async def test_entries_written_before_the_group_existed_are_read(ports: Ports) -> None:
    await append(ports, b"a")
    await append(ports, b"b", partition=1)

    read = await ports.facts.read("c1", 10)

    assert payloads(read) == [b"a", b"b"]
    assert await ports.facts.length() == 2


async def test_a_group_that_vanished_is_made_again_from_the_start(ports: Ports) -> None:
    await append(ports, b"a")
    await ports.facts.read("c1", 10)
    await ports.commands.command("XGROUP", "DESTROY", f"{keys.partition(0)}facts", "g")

    assert payloads(await ports.facts.read("c1", 10)) == [b"a"]


async def test_room_limits_what_is_read_and_what_is_acknowledged_is_deleted(ports: Ports) -> None:
    for number in range(5):
        await append(ports, b"%d" % number, partition=number % 2)

    first = await ports.facts.read("c1", 3)
    await ports.facts.acknowledge(first)
    rest = await ports.facts.read("c1", 3)

    assert (len(first), len(rest)) == (3, 2)
    assert await ports.facts.length() == 2
    assert payloads(await ports.facts.pending("c1")) == payloads(rest)


async def test_a_reader_wakes_when_something_comes_to_any_partition(ports: Ports) -> None:
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(_read_something(ports))
        await until(lambda: _groups_exist(ports))
        await append(ports, b"new", partition=1)

    (entry,) = reading.result()
    assert (entry.partition, entry.payload) == (1, b"new")


async def _read_something(ports: Ports) -> list[StreamEntry]:
    found: list[StreamEntry] = []
    while not found:
        found = await ports.facts.read("c1", 10)
    return found


async def _groups_exist(ports: Ports) -> bool:
    return bool(await ports.commands.command("EXISTS", f"{keys.partition(1)}facts"))


async def test_an_empty_stream_is_waited_for_and_gives_nothing(ports: Ports) -> None:
    assert await ports.facts.read("c1", 10) == []


async def test_entries_of_a_dead_consumer_go_to_a_living_one_and_it_is_forgotten(
    ports: Ports,
) -> None:
    for number in range(3):
        await append(ports, b"%d" % number)
    async with ports.liveness.keep("living"):
        await ports.facts.read("dead", 1)
        await ports.facts.read("living", 1)

        some = await ports.facts.take_over("heir", 10)
        none_left = await ports.facts.take_over("heir", 10)

    assert payloads(some) == [b"0"]
    assert [entry.deliveries for entry in some] == [2]
    assert none_left == []
    names = await ports.commands.command("XINFO", "CONSUMERS", f"{keys.partition(0)}facts", "g")
    assert sorted(row[1] for row in names) == [b"heir", b"living"]
    assert [entry.deliveries for entry in await ports.facts.pending("heir")] == [2]


async def test_a_dead_consumer_is_kept_while_it_has_entries_left(ports: Ports) -> None:
    for number in range(3):
        await append(ports, b"%d" % number)
    await ports.facts.read("dead", 3)

    parts = [await ports.facts.take_over("heir", 2) for _ in range(3)]

    assert [payloads(part) for part in parts] == [[b"0", b"1"], [b"2"], []]


async def test_pending_is_whole_even_over_many_entries_and_tidies_up_deleted_ones(
    ports: Ports,
) -> None:
    for number in range(600):
        await append(ports, b"%d" % number)
    read = await ports.facts.read("c1", 600)
    await ports.commands.command("XDEL", f"{keys.partition(0)}facts", read[0].entry_id)

    pending = await ports.facts.pending("c1")

    assert payloads(pending) == payloads(read[1:])
    summary = await ports.commands.command("XPENDING", f"{keys.partition(0)}facts", "g")
    assert summary[0] == 599


# -- hints


async def hint(ports: Ports, value: str, source: str = "p0") -> None:
    prefix = keys.WORKERS if source == "w" else keys.partition(int(source[1:]))
    await ports.commands.command("XADD", f"{prefix}hint", "*", "k", "task", "v", value)


async def test_a_hint_wakes_everybody_who_waits_each_once(ports: Ports) -> None:
    await hint(ports, "earlier")
    position = await ports.hints.position("p0")

    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(ports.hints.wait("p0", position, 5)) for _ in range(3)]
        await hint(ports, "paint")
        await hint(ports, "unheard", source="p1")
    results = [wait.result() for wait in waits]

    assert [(hints[0], lost) for _, hints, lost in results] == [
        (Hint(kind="task", value="paint"), False)
    ] * 3
    after = results[0][0]
    assert await ports.hints.wait("p0", after, 0.01) == (after, [], False)


async def test_a_wait_ends_on_time_on_an_idle_server(ports: Ports) -> None:
    position = await ports.hints.position("w")
    await ports.hints.wait("w", position, 0.001)

    begun = time.monotonic()
    answer = await ports.hints.wait("w", position, 0.02)

    assert answer == (position, [], False)
    assert 0.02 <= time.monotonic() - begun < 0.07, "a blocking read alone takes 100 ms"


async def test_what_came_between_two_waits_is_not_missed(ports: Ports) -> None:
    position = await ports.hints.position("p0")
    await ports.hints.wait("p0", position, 0.001)
    for number in range(3):
        await hint(ports, str(number))

    heard: list[str] = []
    async with asyncio.timeout(5):
        while len(heard) < 3:
            position, hints, lost = await ports.hints.wait("p0", position, 5)
            heard += [found.value for found in hints]
            assert not lost

    assert heard == ["0", "1", "2"]


async def test_a_listener_that_fell_far_behind_is_told_that_hints_were_lost(ports: Ports) -> None:
    position = await ports.hints.position("p0")
    await ports.hints.wait("p0", position, 0.001)
    await asyncio.gather(*(hint(ports, str(number)) for number in range(1500)))
    await until(lambda: _has_lost(ports, position))


async def _has_lost(ports: Ports, position: str) -> bool:
    _, _, lost = await ports.hints.wait("p0", position, 5)
    return lost


async def test_hints_go_on_after_the_connection_was_cut(ports: Ports) -> None:
    position = await ports.hints.position("w")
    await ports.hints.wait("w", position, 0.001)
    await ports.commands.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    await ports.workers.register(WorkerId("ann"), {}, 60)
    _, hints, _ = await ports.hints.wait("w", position, 5)

    assert hints == [Hint(kind="worker", value="ann")]


# -- leases


@pytest.mark.parametrize("name", ["scheduler", "p1/watcher"])
async def test_a_lease_has_one_holder_and_each_new_one_a_higher_token(
    ports: Ports, name: str
) -> None:
    first = await ports.leases.acquire(name, "one", 60)
    again = await ports.leases.acquire(name, "one", 60)
    refused = await ports.leases.acquire(name, "two", 60)
    assert first is not None
    await ports.leases.release(first)
    second = await ports.leases.acquire(name, "two", 60)

    assert (again, refused) == (first, None)
    assert second is not None
    assert second.token > first.token
    with pytest.raises(LostLease):
        await ports.leases.renew(first, 60)
    await ports.leases.release(first)
    await ports.leases.renew(second, 60)


async def test_a_lease_runs_out_and_a_renewed_one_does_not(ports: Ports) -> None:
    short = await ports.leases.acquire("short", "one", 0.05)
    renewed = await ports.leases.acquire("renewed", "one", 0.05)
    assert short is not None
    assert renewed is not None
    await ports.leases.renew(renewed, 60)

    await until(lambda: _is_taken_by_two(ports))

    assert await ports.leases.acquire("renewed", "two", 60) is None
    with pytest.raises(LostLease):
        await ports.leases.renew(short, 60)


async def _is_taken_by_two(ports: Ports) -> bool:
    return await ports.leases.acquire("short", "two", 60) is not None


# -- liveness


def alive_keys() -> list[str]:
    slots = [*(keys.partition(number) for number in range(PARTITIONS)), keys.WORKERS]
    return [keys.alive(slot, "me") for slot in slots]


async def test_an_instance_is_alive_in_every_slot_from_the_first_to_the_last_moment(
    ports: Ports,
) -> None:
    before = await ports.liveness.is_alive("me")
    async with ports.liveness.keep("me"):
        during = await ports.liveness.is_alive("me")
        slots = [await ports.commands.command("EXISTS", key) for key in alive_keys()]
    after = await ports.liveness.is_alive("me")

    assert (before, during, after) == (False, True, False)
    assert slots == [1, 1, 1]


async def test_a_blocked_event_loop_is_alive(ports: Ports) -> None:
    async with ports.liveness.keep("me"):
        await ports.commands.command("DEL", *alive_keys())
        time.sleep(1.5)  # noqa: ASYNC251 - to block the loop is the point

        assert await ports.liveness.is_alive("me")


async def test_liveness_comes_back_after_its_connection_was_cut(ports: Ports) -> None:
    async with ports.liveness.keep("me"):
        await ports.commands.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await ports.commands.command("DEL", *alive_keys())

        await until(lambda: ports.liveness.is_alive("me"))


async def test_liveness_is_kept_when_redis_is_full(ports: Ports) -> None:
    try:
        await ports.commands.command("CONFIG", "SET", "maxmemory", "1")
        async with ports.liveness.keep("me"):
            assert await ports.liveness.is_alive("me")
    finally:
        await ports.commands.command("CONFIG", "SET", "maxmemory", "0")


# -- catalogue and data stores


def entry(name: str, group: str = "default") -> CatalogueEntry:
    return CatalogueEntry(
        name=name,
        group=group,
        start_state="start",
        api_endpoint=None,
        api_version=None,
        dot="digraph {}",
    )


async def test_the_catalogue_has_another_version_only_when_it_says_something_else(
    ports: Ports,
) -> None:
    empty, nothing = await ports.catalogue.entries()
    await ports.catalogue.publish([entry("b"), entry("a")])
    first, entries = await ports.catalogue.entries()
    await ports.catalogue.publish([entry("a")])
    same, _ = await ports.catalogue.entries()
    await ports.catalogue.publish([entry("a", "other")])
    second, changed = await ports.catalogue.entries()

    assert nothing == []
    assert entries == [entry("a"), entry("b")]
    assert len({empty, first, second}) == 3
    assert same == first
    assert changed == [entry("a", "other"), entry("b")]


async def test_who_waits_for_the_catalogue_hears_of_a_change_and_does_not_wait_for_ever(
    server: str,
) -> None:
    async with open_ports(server, block_seconds=30) as ports:
        version, _ = await ports.catalogue.entries()
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(ports.catalogue.changed(version))
            await ports.catalogue.publish([entry("a")])
    async with open_ports(server, block_seconds=0.05) as ports, asyncio.timeout(5):
        await ports.catalogue.changed("0-0")


async def test_a_data_store_gives_back_what_it_was_given(ports: Ports) -> None:
    await ports.key_values.set("shop", "k", b"\x00v")

    assert await ports.key_values.get("shop", "k") == b"\x00v"
    assert await ports.key_values.get("shop", "other") is None
    assert await ports.key_values.get("elsewhere", "k") is None


async def test_a_read_that_was_cancelled_leaves_a_reader_that_works(ports: Ports) -> None:
    version, _ = await ports.catalogue.entries()
    with suppress(TimeoutError):
        async with asyncio.timeout(0.02):
            await ports.catalogue.changed(version)
    await ports.catalogue.publish([entry("a")])

    async with asyncio.timeout(5):
        await ports.catalogue.changed(version)


async def test_a_port_on_a_closed_connection_says_so(server: str) -> None:
    async with open_ports(server) as ports:
        pass

    with pytest.raises(StoreUnavailable):
        await ports.key_values.get("shop", "k")


# --- signals


async def test_a_signal_whose_answer_was_lost_is_not_sent_again(ports: Ports) -> None:
    job = await ports.job()
    p = keys.partition(0)
    await ports.commands.command("SADD", f"{p}live", job)

    async def send(nonce: str) -> object:
        arguments = [p, job, b"event", nonce, 100, 2, "", "", 60]
        return await ports.commands.script(script("send_signal"), [keys.job(p, job)], arguments)

    answers = [await send(nonce) for nonce in ("n1", "n1", "n2", "n1", "n3")]

    assert answers == [b"OK"] * 5
    assert await ports.commands.command("XLEN", keys.lane(p, "in", "g1")) == 3
    assert await ports.commands.command("ZCARD", f"{keys.job(p, job)}:sig") == 2
