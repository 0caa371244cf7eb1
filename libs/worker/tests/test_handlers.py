"""What a handler is given, and what is refused before it could ever run."""

import threading
import traceback
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from avtomatika_worker import TaskFiles
from avtomatika_worker.handlers import HandlerFunction, execute, read_handler
from avtomatika_worker.outcome import Outcome
from avtomatika_worker.types import Middleware, ParamValidationError
from rxon import TaskError

SUPPLIED: dict[str, object] = {
    "params": {"width": 10, "colour": "red"},
    "task_id": "t-1",
    "job_id": "j-1",
    "tracing_context": {"traceparent": "00-1"},
    "priority": 0,
    "checkpoint": None,
    "cancellation": None,
    "send_progress": print,
    "send_event": print,
    "add_to_hot_cache": print,
    "remove_from_hot_cache": print,
}

Following = Callable[..., Awaitable[Any]]

FILES = TaskFiles(Path("/nowhere"))


@dataclass
class Size:
    width: int
    height: int = 7


@dataclass
class Strict:
    missing: int


class Model:
    """Has the method by which a pydantic model is known."""

    def __init__(self, width: int) -> None:
        self.width = width

    @classmethod
    def model_validate(cls, given: dict[str, Any]) -> "Model":
        if given["colour"] != "blue":
            raise ValueError("colour must be blue")
        return cls(given["width"])


async def run(function: HandlerFunction) -> Outcome:
    return await execute(read_handler("resize", None, function), SUPPLIED, FILES)


def success(data: dict[str, object]) -> Outcome:
    return Outcome(status="success", data=data)


async def test_a_handler_gets_what_it_names() -> None:
    async def handler(task_id: str, params: dict[str, Any]) -> dict[str, object]:
        return {"task": task_id, "width": params["width"]}

    assert await run(handler) == success({"task": "t-1", "width": 10})


async def test_a_handler_with_kwargs_gets_everything() -> None:
    async def handler(params: dict[str, Any], **rest: object) -> dict[str, object]:
        return {"names": sorted(rest)}

    assert await run(handler) == success(
        {
            "names": [
                "add_to_hot_cache",
                "cancellation",
                "checkpoint",
                "job_id",
                "priority",
                "remove_from_hot_cache",
                "send_event",
                "send_progress",
                "task_id",
                "tracing_context",
            ]
        }
    )


async def test_an_argument_with_a_default_that_is_not_ours_is_left_alone() -> None:
    async def handler(job_id: str, size: int = 3) -> dict[str, object]:
        return {"job": job_id, "size": size}

    assert await run(handler) == success({"job": "j-1", "size": 3})


async def test_a_plain_handler_runs_in_a_thread_with_the_context_of_its_task() -> None:
    request: ContextVar[str] = ContextVar("request")

    def handler(job_id: str) -> dict[str, object]:
        here = threading.current_thread() is threading.main_thread()
        return {"main": here, "request": request.get()}

    request.set("r-1")

    assert await run(handler) == success({"main": False, "request": "r-1"})


async def test_an_object_with_an_async_call_is_awaited() -> None:
    class Callable:
        async def __call__(self, job_id: str) -> str:
            return job_id

    assert await run(Callable()) == success({"result": "j-1"})


def by_position_only(params: dict[str, Any], /) -> None: ...


def by_a_name_of_its_own(p: dict[str, Any]) -> None: ...


@pytest.mark.parametrize("function", [by_position_only, by_a_name_of_its_own])
def test_an_argument_that_nobody_supplies_is_refused_at_once(function: HandlerFunction) -> None:
    with pytest.raises(TypeError, match="The handler of task 'resize' takes 'p"):
        read_handler("resize", None, function)


async def test_a_dataclass_takes_the_keys_it_knows() -> None:
    async def handler(params: Size) -> dict[str, object]:
        return {"size": [params.width, params.height]}

    assert await run(handler) == success({"size": [10, 7]})


async def test_a_dataclass_that_misses_a_key_is_invalid_input() -> None:
    async def handler(params: Strict) -> None: ...

    outcome = await run(handler)

    assert outcome.error is not None
    assert outcome.error.code == "INVALID_INPUT_ERROR"
    assert "missing" in outcome.error.message


async def test_a_model_validates_the_params() -> None:
    async def handler(params: Model) -> None: ...

    assert await run(handler) == Outcome(
        status="failure",
        error=TaskError(code="INVALID_INPUT_ERROR", message="params: colour must be blue"),
    )


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, StopIteration])
async def test_nothing_a_thread_raises_is_lost(kind: type[BaseException]) -> None:
    def handler() -> None:
        raise kind("odd")

    assert await run(handler) == Outcome(
        status="failure", error=TaskError(code="TRANSIENT_ERROR", message="odd")
    )


@pytest.mark.parametrize("annotation", [TaskFiles, "TaskFiles", TaskFiles | None])
async def test_an_argument_annotated_task_files_gets_the_files_under_any_name(
    annotation: object,
) -> None:
    async def handler(there: object, job_id: str) -> dict[str, object]:
        return {"files": there is FILES}

    handler.__annotations__["there"] = annotation

    assert await run(handler) == success({"files": True})


async def test_an_annotation_only_the_type_checker_can_see_does_not_hide_the_others() -> None:
    async def handler(job_id: str, params: Size) -> dict[str, object]:
        return {"size": [params.width, params.height]}

    handler.__annotations__["job_id"] = "Unseen"

    assert await run(handler) == success({"size": [10, 7]})


async def test_a_part_of_a_function_is_a_handler_too() -> None:
    def work(factor: int, params: Size) -> dict[str, object]:
        return {"width": params.width * factor}

    assert await run(partial(work, 2)) == success({"width": 20})


async def through(function: HandlerFunction, *middlewares: Middleware) -> Outcome:
    handler = read_handler("resize", None, function)
    return await execute(handler, SUPPLIED, FILES, middlewares)


@pytest.mark.parametrize("in_thread", [False, True])
async def test_the_first_middleware_is_outermost(in_thread: bool) -> None:
    seen: list[str] = []

    def named(name: str) -> Middleware:
        async def middleware(context: dict[str, Any], following: Following) -> object:
            seen.append(f"{name} in")
            returned = await following()
            seen.append(f"{name} out")
            return returned

        return middleware

    def plain() -> dict[str, int]:
        seen.append("handler")
        return {"n": 1}

    async def in_the_loop() -> dict[str, int]:
        return plain()

    outcome = await through(plain if in_thread else in_the_loop, named("first"), named("second"))

    assert outcome == success({"n": 1})
    assert seen == ["first in", "second in", "handler", "second out", "first out"]


async def test_a_middleware_sees_the_task_and_what_became_of_it() -> None:
    seen: list[object] = []

    async def watching(context: dict[str, Any], following: Following) -> object:
        seen.append({key: context[key] for key in ("task_id", "job_id", "task_name", "params")})
        try:
            return await following(context)
        except ParamValidationError as error:
            seen.append(str(error))
            raise

    async def handler(params: Strict) -> None: ...

    outcome = await through(handler, watching)

    assert outcome.error is not None
    assert outcome.error.code == "INVALID_INPUT_ERROR"
    assert seen == [
        {
            "task_id": "t-1",
            "job_id": "j-1",
            "task_name": "resize",
            "params": {"width": 10, "colour": "red"},
        },
        "params.missing: missing",
    ]


async def test_what_a_middleware_adds_reaches_the_handlers_that_take_it() -> None:
    async def lending(context: dict[str, Any], following: Following) -> object:
        context["handler_kwargs"]["database"] = "db"
        context["handler_kwargs"]["params"] = {"width": 3}
        return await following()

    async def taking(params: Size, database: str | None = None) -> dict[str, object]:
        return {"database": database, "width": params.width}

    async def not_taking(job_id: str) -> dict[str, object]:
        return {"job": job_id}

    assert await through(taking, lending) == success({"database": "db", "width": 3})
    assert await through(not_taking, lending) == success({"job": "j-1"})


async def test_a_middleware_may_answer_instead_of_the_handler() -> None:
    async def cached(context: dict[str, Any], following: Following) -> object:
        return {"cached": True}

    async def handler() -> None:
        raise AssertionError("not called")

    assert await through(handler, cached) == success({"cached": True})


async def test_a_middleware_that_raises_fails_the_task() -> None:
    async def broken(context: dict[str, Any], following: Following) -> object:
        raise ValueError("no database")

    async def handler() -> None: ...

    outcome = await through(handler, broken)

    assert outcome.error == TaskError(code="TRANSIENT_ERROR", message="no database")


@pytest.mark.parametrize("in_thread", [False, True])
async def test_an_error_is_logged_with_its_task_and_from_the_handlers_own_line_on(
    in_thread: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ConnectionError("out of luck")

    async def broken_too() -> None:
        broken()

    await execute(read_handler("work", None, broken if in_thread else broken_too), SUPPLIED, FILES)

    (record,) = caplog.records
    about = vars(record)
    assert (about["task_name"], about["task_id"], about["job_id"]) == ("work", "t-1", "j-1")
    assert record.exc_info is not None
    shown = [frame.name for frame in traceback.extract_tb(record.exc_info[2])]
    assert shown == (["broken"] if in_thread else ["broken_too", "broken"])


def test_a_misspelt_argument_is_told_what_it_may_mean() -> None:
    def misspelt(parms: dict[str, Any]) -> None: ...

    def strange(xyz: int) -> None: ...

    with pytest.raises(TypeError, match=r"'parms', which .* by name\. Did you mean 'params'\?"):
        read_handler("work", None, misspelt)
    with pytest.raises(TypeError, match=r"'xyz', which cannot be supplied by name\. It may take"):
        read_handler("work", None, strange)
