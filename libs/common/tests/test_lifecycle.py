"""Services start in order, stop in reverse order, and fail as themselves."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import pytest

from avtomatika_common.backend.ports import StoreUnavailable
from avtomatika_common.config import Config
from avtomatika_common.lifecycle import Service, ServiceEnded, StartupError, Suite, running
from avtomatika_common.process import run_process
from tests.support import until


class Recorded:
    """A service that writes what happens to it into a list, and misbehaves as told."""

    def __init__(self, name: str, story: list[str], **faults: BaseException | None) -> None:
        self.name = name
        self._story = story
        self._faults = faults
        self.fail_now = asyncio.Event()

    async def run(self, ready: asyncio.Event, stop: asyncio.Event) -> None:
        self._story.append(f"{self.name} starts")
        self._raise("at_start")
        ready.set()
        try:
            async with asyncio.TaskGroup() as waits:
                stopped = waits.create_task(stop.wait())
                failing = waits.create_task(self.fail_now.wait())
                await asyncio.wait([stopped, failing], return_when=asyncio.FIRST_COMPLETED)
                failing.cancel()
                stopped.cancel()
            if self.fail_now.is_set():
                self._raise("later")
                return
            self._raise("at_stop")
        except asyncio.CancelledError:
            self._story.append(f"{self.name} is cancelled")
            raise
        self._story.append(f"{self.name} is drained")

    def _raise(self, moment: str) -> None:
        if fault := self._faults.get(moment):
            raise fault


async def test_services_start_in_order_and_drain_in_reverse() -> None:
    story: list[str] = []

    async with running(Recorded("a", story), Recorded("b", story)):
        story.append("block")

    assert story == ["a starts", "b starts", "block", "b is drained", "a is drained"]


async def test_one_is_drained_before_the_next_is_told_to_stop() -> None:
    class Slow(Recorded):
        async def run(self, ready: asyncio.Event, stop: asyncio.Event) -> None:
            ready.set()
            await stop.wait()
            self._story.append("slow is asked")
            await finish.wait()
            self._story.append("slow is drained")

    story: list[str] = []
    finish = asyncio.Event()
    suite = Suite(Recorded("a", story), Slow("slow", story))
    await suite.start()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(suite.stop())
        await until(lambda: "slow is asked" in story)
        finish.set()

    assert story == ["a starts", "slow is asked", "slow is drained", "a is drained"]


async def test_a_failure_before_ready_is_raised_as_itself_and_the_others_stop() -> None:
    story: list[str] = []
    failure = StartupError("no redis")

    with pytest.raises(StartupError) as raised:
        async with running(
            Recorded("a", story), Recorded("b", story, at_start=failure), Recorded("c", story)
        ):
            story.append("never")

    assert raised.value is failure
    assert story == ["a starts", "b starts", "a is cancelled"]


async def test_a_failure_while_running_cancels_the_block_and_is_raised_as_itself() -> None:
    story: list[str] = []
    nested = ExceptionGroup("of one", [ExceptionGroup("of one", [OSError("disk")])])
    failing = Recorded("b", story, later=nested)

    async def hold() -> None:
        async with running(Recorded("a", story), failing):
            failing.fail_now.set()
            await asyncio.Event().wait()

    with pytest.raises(OSError, match="disk"):
        await hold()

    assert story == ["a starts", "b starts", "a is cancelled"]


async def test_a_failure_while_draining_is_raised_and_the_rest_stops() -> None:
    story: list[str] = []

    with pytest.raises(OSError, match="flush"):
        async with running(Recorded("a", story), Recorded("b", story, at_stop=OSError("flush"))):
            pass

    assert story == ["a starts", "b starts", "a is cancelled"]


async def test_two_failures_are_both_raised() -> None:
    class Bursting(Recorded):
        async def run(self, ready: asyncio.Event, stop: asyncio.Event) -> None:
            ready.set()
            try:
                await stop.wait()
            finally:
                raise LookupError("burst")

    with pytest.raises(ExceptionGroup) as raised:
        async with running(Bursting("a", []), Recorded("b", [], at_start=OSError("disk"))):
            pass

    assert {type(one) for one in raised.value.exceptions} == {OSError, LookupError}


async def test_an_error_of_the_block_drains_and_is_raised_as_itself() -> None:
    story: list[str] = []

    with pytest.raises(LookupError, match="block"):
        async with running(Recorded("a", story)):
            raise LookupError("block")

    assert story == ["a starts", "a is drained"]


async def test_a_service_that_just_ends_is_a_failure_not_a_hang() -> None:
    class Ending(Recorded):
        async def run(self, ready: asyncio.Event, stop: asyncio.Event) -> None:  # noqa: ARG002
            return

    with pytest.raises(ServiceEnded, match="a ended"):
        async with running(Ending("a", [])):
            pass


async def test_cancelling_drains_and_cancelling_again_cuts_it_short() -> None:
    class Stubborn(Recorded):
        async def run(self, ready: asyncio.Event, stop: asyncio.Event) -> None:
            ready.set()
            await stop.wait()
            self._story.append("asked")
            try:
                await asyncio.Event().wait()
            finally:
                self._story.append("cut")

    async def hold() -> None:
        async with running(Stubborn("a", story)):
            story.append("up")
            await asyncio.Event().wait()

    story: list[str] = []
    async with asyncio.TaskGroup() as tasks:
        holder = tasks.create_task(hold())
        await until(lambda: "up" in story)
        holder.cancel()
        await until(lambda: "asked" in story)
        assert not holder.done()
        holder.cancel()

    assert holder.cancelled()
    assert story == ["up", "asked", "cut"]


async def test_a_suite_is_started_and_stopped_by_two_tasks() -> None:
    story: list[str] = []
    suite = Suite(Recorded("a", story))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(suite.start())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(suite.stop())
    await suite.stop()

    assert story == ["a starts", "a is drained"]


async def test_a_suite_that_cannot_start_says_why() -> None:
    story: list[str] = []

    with pytest.raises(StartupError, match="no redis"):
        await Suite(
            Recorded("a", story), Recorded("b", story, at_start=StartupError("no redis"))
        ).start()

    assert story == ["a starts", "b starts", "a is cancelled"]


async def test_a_suite_that_failed_meanwhile_says_so_at_its_stop() -> None:
    failing = Recorded("a", [], later=OSError("disk"))
    suite = Suite(failing)
    await suite.start()
    failing.fail_now.set()

    with pytest.raises(OSError, match="disk"):
        await suite.stop()


class Signalled:
    """A service that sends its own process signals: one when ready, one more when drained so."""

    name = "signalled"

    def __init__(self, story: list[str], *, second: bool = False) -> None:
        self._story = story
        self._second = second

    async def run(self, ready: asyncio.Event, stop: asyncio.Event) -> None:
        ready.set()
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        if self._second:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        self._story.append("drained")


def process_of(service: Service, story: list[str]) -> int:
    @asynccontextmanager
    async def opened(_config: Config) -> AsyncGenerator[Sequence[Service], None]:
        story.append("opened")
        try:
            yield [service]
        finally:
            story.append("closed")

    return run_process(opened, Config({}))


def test_a_signal_drains_the_process_and_it_exits_0() -> None:
    story: list[str] = []

    code = process_of(Signalled(story), story)

    assert (code, story) == (0, ["opened", "drained", "closed"])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_signal_cuts_the_drain_short() -> None:
    story: list[str] = []

    code = process_of(Signalled(story, second=True), story)

    assert (code, story) == (1, ["opened", "closed"])


def test_a_signal_during_the_start_ends_it() -> None:
    class Starting(Recorded):
        async def run(self, ready: asyncio.Event, stop: asyncio.Event) -> None:  # noqa: ARG002
            os.kill(os.getpid(), signal.SIGTERM)
            await stop.wait()

    story: list[str] = []

    code = process_of(Starting("a", story), story)

    assert (code, story) == (0, ["opened", "closed"])


@pytest.mark.parametrize("error", [StartupError, StoreUnavailable])
def test_what_stops_a_start_is_one_line(
    capsys: pytest.CaptureFixture[str], error: type[Exception]
) -> None:
    story: list[str] = []
    service = Recorded("a", story, at_start=error("Redis at cache:6379 does not answer."))

    code = process_of(service, story)

    assert code == 1
    assert story == ["opened", "a starts", "closed"]
    assert capsys.readouterr().err == "avtomatika: Redis at cache:6379 does not answer.\n"


def test_a_wrong_setting_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # R75
    @asynccontextmanager
    async def opened(_config: Config) -> AsyncGenerator[Sequence[Service], None]:
        yield []

    monkeypatch.setenv("JOB_MAX_RETRIES", "x")

    code = run_process(opened)

    assert code == 1
    assert capsys.readouterr().err == (
        "avtomatika: JOB_MAX_RETRIES: 'x' is not an integer of at least 0.\n"
    )


def test_any_other_error_is_raised() -> None:
    with pytest.raises(LookupError):
        process_of(Recorded("a", [], at_start=LookupError("a bug")), [])
