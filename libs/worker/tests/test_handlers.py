"""What a handler is given, and what is refused before it could ever run."""

import threading
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import pytest

from avtomatika_worker.handlers import HandlerFunction, execute, read_handler
from avtomatika_worker.outcome import Outcome
from rxon import TaskError

SUPPLIED: dict[str, object] = {
    "params": {"width": 10, "colour": "red"},
    "task_id": "t-1",
    "job_id": "j-1",
    "tracing_context": {"traceparent": "00-1"},
    "priority": 0,
    "add_to_hot_cache": print,
    "remove_from_hot_cache": print,
}


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
    return await execute(read_handler("resize", None, function), SUPPLIED)


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
                "job_id",
                "priority",
                "remove_from_hot_cache",
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
