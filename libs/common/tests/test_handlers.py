import asyncio
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypedDict, cast

import pytest

from avtomatika_common.actions import ActionFactory
from avtomatika_common.context import ClientConfig, JobContext
from avtomatika_common.definitions import DefinitionError
from avtomatika_common.handlers import CompiledHandler

if TYPE_CHECKING:
    from pathlib import Path as OnlyForTypeCheckers

SEEN: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    SEEN.clear()


def context(
    initial_data: dict[str, Any] | None = None,
    state_history: dict[str, Any] | None = None,
    **more: Any,
) -> JobContext:
    return JobContext(
        job_id="job-1",
        current_state="work",
        initial_data={} if initial_data is None else initial_data,
        state_history={} if state_history is None else state_history,
        client=ClientConfig(token=""),
        actions=ActionFactory("job-1"),
        **more,
    )


async def run(handler: Callable[..., object], given: JobContext) -> dict[str, Any]:
    await CompiledHandler(handler).run(given)
    return SEEN


def saw(**values: object) -> None:
    SEEN.update(values)


async def test_each_parameter_gets_the_field_of_its_name() -> None:
    given = context(
        webhook_url="http://x/", data_stores=object(), tracing_context={"traceparent": "00"},
        aggregation_results={"t": {}}, task_files=object(), last_error={"code": "X"},
    )  # fmt: skip

    async def handler(
        job_id: str, current_state: str, initial_data: Any, state_history: Any, client: Any,
        actions: Any, data_stores: Any, tracing_context: Any, aggregation_results: Any,
        webhook_url: Any, task_files: Any, last_error: Any,
    ) -> None:  # fmt: skip
        saw(**locals())

    assert await run(handler, given) == given._asdict()


async def test_one_field_or_none_at_all_can_be_asked_for() -> None:
    async def one(actions: ActionFactory) -> None:
        actions.transition_to("end")

    async def none() -> None:
        saw(ran=True)

    given = context()
    await run(one, given)
    await run(none, given)

    assert given.actions.next_state == "end"
    assert SEEN == {"ran": True}


async def test_other_names_are_keys_of_the_history_and_then_of_the_input() -> None:
    async def handler(both: int, ours: int, theirs: int, absent: int = 7) -> None:
        saw(both=both, ours=ours, theirs=theirs, absent=absent)

    given = context({"both": 1, "theirs": 2}, {"both": 3, "ours": 4})

    assert await run(handler, given) == {"both": 3, "ours": 4, "theirs": 2, "absent": 7}


async def test_a_field_goes_before_a_key_of_the_same_name() -> None:
    async def handler(job_id: str, last_error: object = "default") -> None:
        saw(job_id=job_id, last_error=last_error)

    given = context({"job_id": "wrong", "last_error": "wrong"}, {"job_id": "wrong"})

    assert await run(handler, given) == {"job_id": "job-1", "last_error": None}


async def test_a_value_that_is_none_is_supplied() -> None:
    async def handler(note: str | None = "default") -> None:
        saw(note=note)

    assert await run(handler, context({"note": None})) == {"note": None}


async def test_every_kind_of_parameter_is_filled() -> None:
    async def handler(
        a: int, /, b: int = 2, *rest: object, c: int, d: int = 4, **kw: object
    ) -> None:
        saw(a=a, b=b, rest=rest, c=c, d=d, kw=kw)

    seen = await run(handler, context({"a": 1, "c": 3, "extra": 5, "over": 6}, {"over": 7}))

    assert seen == {
        "a": 1,
        "b": 2,
        "rest": (),
        "c": 3,
        "d": 4,
        "kw": {"extra": 5, "over": 7},
    }  # R60


async def test_a_parameter_that_nothing_supplies_is_named_with_what_to_do() -> None:  # R24
    async def handler(actions: ActionFactory, file_name: str) -> None:
        saw(ran=True)

    with pytest.raises(DefinitionError) as refused:
        await run(handler, context())

    assert "handler' for state 'work' has a parameter 'file_name' that nothing supplies" in str(
        refused.value
    )
    assert "put 'file_name' into initial_data or state_history" in str(refused.value)
    assert not SEEN


async def test_a_handler_that_takes_the_context_gets_actions_and_files_beside_it() -> None:
    async def handler(
        context: JobContext, actions: object, task_files: object, job_id: str = "none", **kw: object
    ) -> None:
        saw(context=context, actions=actions, task_files=task_files, job_id=job_id, kw=kw)

    given = context({"key": 1}, task_files="files")

    assert await run(handler, given) == {
        "context": given, "actions": given.actions, "task_files": "files", "job_id": "none", "kw": {}
    }  # fmt: skip


async def test_beside_the_context_no_other_name_is_supplied() -> None:
    async def handler(context: JobContext, state_history: object) -> None:
        saw(ran=True)

    with pytest.raises(DefinitionError, match=r"parameter 'state_history' .* take it from context"):
        await run(handler, context())


def test_client_config_is_the_same_as_client_params() -> None:
    client = ClientConfig("", params={"region": "eu"})

    assert client.plan == "unknown"
    assert client.config is client.params
    assert ClientConfig("").params == {}


async def test_changes_in_place_reach_the_given_data() -> None:
    async def handler(state_history: dict[str, Any]) -> None:
        state_history["step"] = 1

    given = context()
    await run(handler, given)

    assert given.state_history == {"step": 1}


async def harmless(job_id: str, actions: ActionFactory, webhook_url: str, data_stores: Any) -> None:
    pass


async def takes_history(state_history: dict[str, Any]) -> None:
    pass


async def takes_input(initial_data: dict[str, Any]) -> None:
    pass


async def takes_context(context: JobContext) -> None:
    pass


async def takes_a_key(items: list[str]) -> None:
    pass


async def takes_the_rest(**data: object) -> None:
    pass


@pytest.mark.parametrize(
    ("handler", "may_change"),
    [
        (harmless, False),
        (takes_history, True),
        (takes_input, True),
        (takes_context, True),
        (takes_a_key, True),
        (takes_the_rest, True),
    ],
)
def test_only_what_reaches_into_the_data_may_change_it(
    handler: Callable[..., object], may_change: bool
) -> None:
    assert CompiledHandler(handler).may_change_data is may_change


async def test_a_plain_function_does_not_block_the_loop() -> None:  # R60
    release = threading.Event()

    def handler(actions: ActionFactory) -> None:
        assert release.wait(10)
        actions.transition_to("end")

    given = context()

    async def another_job() -> None:
        release.set()

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(run(handler, given))
        tasks.create_task(another_job())

    assert given.actions.next_state == "end"


REQUEST: ContextVar[str] = ContextVar("REQUEST")


async def test_a_plain_function_sees_the_context_variables_and_its_error_comes_back() -> None:
    def handler(job_id: str) -> None:
        raise KeyError(REQUEST.get(), job_id)

    REQUEST.set("r-1")

    with pytest.raises(KeyError) as raised:
        await run(handler, context())
    assert raised.value.args == ("r-1", "job-1")


async def test_a_plain_function_that_raises_stop_iteration_does_not_hang() -> None:
    def handler(files: list[str]) -> None:
        next(iter(files))

    async with asyncio.timeout(10):
        with pytest.raises(RuntimeError, match="StopIteration"):
            await run(handler, context({"files": []}))


async def test_callables_of_every_make_are_handlers() -> None:
    async def scaled(factor: int, n: int) -> None:
        saw(partial=factor * n)

    class Handler:
        async def __call__(self, n: int) -> None:
            saw(instance=n)

        async def method(self, n: int) -> None:
            saw(method=n)

    @functools.wraps(scaled)
    def wrapped(*args: Any, **kwargs: Any) -> Awaitable[None]:
        return scaled(*args, **kwargs)

    handlers = [functools.partial(scaled, factor=2), Handler(), Handler().method]
    for handler in handlers:
        compiled = CompiledHandler(handler)
        assert compiled.is_async
        await compiled.run(context({"n": 4}))

    assert SEEN == {"partial": 8, "instance": 4, "method": 4}
    assert await run(wrapped, context({"factor": 3, "n": 4})) == {
        "partial": 12, "instance": 4, "method": 4
    }  # fmt: skip


class Options(TypedDict):
    depth: int


async def wrong_twice(count: int, job_id: int, actions: ActionFactory) -> None:
    saw(count=count)


async def fine(
    count: int,
    ratio: float,
    names: list[str],
    note: str | None,
    options: Options,
    anything: Any,
    whatever: object,
    state_history: dict[str, Any],
    late: str = cast("str", None),
) -> None:
    saw(ran=True)


async def unresolved(file: "OnlyForTypeCheckers") -> None:
    saw(ran=True)


async def test_an_argument_of_another_type_is_reported_once_per_handler(
    caplog: pytest.LogCaptureFixture,
) -> None:  # R60
    compiled = CompiledHandler(wrong_twice)

    for _ in range(3):
        await compiled.run(context({"count": "many"}))

    assert SEEN == {"count": "many"}
    (line,) = caplog.records
    assert line.levelname == "WARNING"
    assert vars(line)["parameter"] == "count"
    assert (vars(line)["annotated"], vars(line)["got"]) == ("int", "str")


async def test_arguments_of_the_annotated_type_are_not_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    values: dict[str, Any] = {"count": 1, "ratio": 1, "names": [], "note": 1, "options": {}}

    await run(fine, context({**values, "anything": 1, "whatever": 1}))
    await run(unresolved, context({"file": 1}))

    assert SEEN == {"ran": True}
    assert not caplog.records


async def test_the_signature_is_read_only_when_the_handler_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = CompiledHandler(takes_a_key)

    def never(*_: object, **__: object) -> inspect.Signature:
        raise AssertionError

    monkeypatch.setattr(inspect, "signature", never)

    assert compiled.arguments(context({"items": [1]})) == (([1],), {})
