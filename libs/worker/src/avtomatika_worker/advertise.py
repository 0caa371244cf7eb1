"""What a worker tells its orchestrators it can take right now."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet

import msgspec

from avtomatika_worker.handlers import Handler


class Advertised(msgspec.Struct, frozen=True, kw_only=True):
    status: str
    supported_tasks: tuple[str, ...]


def advertise(
    handlers: Iterable[Handler],
    *,
    running: Iterable[str | None],
    places: int,
    limits: Mapping[str, int],
    has_capacity: Callable[[str], bool],
) -> Advertised:
    """The task names that may come, given the classes of the `running` tasks.

    Left out are tasks whose class is full and those for which there is no capacity. Where no
    place or no name is left, the worker is busy.
    """
    taken = Counter(running)
    if taken.total() >= places:
        return Advertised(status="busy", supported_tasks=())
    names = tuple(
        handler.name
        for handler in handlers
        if (
            handler.task_type is None
            or handler.task_type not in limits
            or taken[handler.task_type] < limits[handler.task_type]
        )
        and has_capacity(handler.name)
    )
    return Advertised(status="idle" if names else "busy", supported_tasks=names)


def hot_skills(
    dependencies: Mapping[str, Iterable[str]] | None, hot_cache: AbstractSet[str]
) -> tuple[str, ...] | None:
    """The tasks all of whose models are loaded; None where no task is known to need any."""
    if dependencies is None:
        return None
    needed = {task: set(models) for task, models in dependencies.items()}
    return tuple(task for task, models in needed.items() if models and models <= hot_cache)
