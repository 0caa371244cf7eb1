"""Which worker should get a task: who is fit for it, and who of those is preferred.

A worker whose reputation is below the threshold gets a task only while no live worker at or above
it is fit for that task. Whether the better one is free does not matter: the task waits for it.
"""

import json
import math
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any, Final, cast

import msgspec

from avtomatika_core.job import WorkerId

STRATEGIES: Final = frozenset(
    {"default", "round_robin", "least_connections", "cheapest", "best_value", "overflow"}
)
DEFAULT_REPUTATION: Final = 1.0
NEVER: Final = -math.inf
_LONGEST_SHOWN: Final = 80

_Row = Mapping[str, object]


class _Value(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    pass


class Unfit(StrEnum):
    """Why a worker cannot get a task: what is farthest from a fit one first."""

    TYPE = "type"
    """It does not do this type of task."""
    NOT_ALLOWED = "not_allowed"
    """It may not be given this type of task."""
    DRAINING = "draining"
    """It takes no new tasks at all."""
    RESOURCES = "resources"
    COST = "cost"
    REPUTATION = "reputation"
    """It is fit, but only while no worker of a better reputation is."""


class PropertyWish(_Value, frozen=True, kw_only=True):
    """What a worker has to say of itself under one name: a number as large, or one of some values."""

    name: str
    wanted: str
    """As JSON; it also tells `true` from 1, which are equal to Python."""
    at_least: float | None = None
    one_of: tuple[bool | float | str, ...] = ()
    """Used where `at_least` is None."""

    def is_met_by(self, value: object) -> bool:
        if self.at_least is not None:
            number = _any_number(value)
            return number is not None and number >= self.at_least
        return any(_is_same(value, wanted) for wanted in self.one_of)

    @property
    def as_text(self) -> str:
        if self.at_least is not None:
            return f"at least {self.wanted}"
        return f"one of {self.wanted}" if self.wanted.startswith("[") else self.wanted


class Demand(_Value, frozen=True, kw_only=True):
    """What a task asks of its worker. Equal for all tasks of one shape, so it can be a key."""

    type: str
    strategy: str = "default"
    max_cost: float | None = None
    gpu_model: str = ""
    """Part of the name of the worker's GPU; empty: any, or none."""
    vram_gb: float = 0.0
    cpu_cores: float = 0.0
    models: frozenset[str] = frozenset()
    properties: tuple[PropertyWish, ...] = ()
    """By name."""
    ignored: tuple[str, ...] = ()
    """Names in the requirements that mean nothing here."""
    unreadable: tuple[str, ...] = ()
    """Names in the requirements whose value makes no sense: no worker can be known to meet them."""


def demand_of(
    task_type: str,
    requirements: Mapping[str, Any] | None = None,
    max_cost: float | None = None,
    strategy: str = "default",
) -> Demand:
    """A task's demand as its handler wrote it: any requirements at all, any strategy's name."""
    wants: _Row = requirements or {}
    gpu_name = "gpu_info" if wants.get("gpu_info") is not None else "gpu"
    gpu = _Wishes(wants.get(gpu_name), f"{gpu_name}.")
    own = _Wishes(wants)
    if gpu.row is None:
        own.unreadable.append(gpu_name)
    extra = _Wishes(wants.get("properties"), "properties.")
    if extra.row is None:
        own.unreadable.append("properties")
    demand = Demand(
        type=task_type,
        strategy=strategy if strategy in STRATEGIES else "default",
        max_cost=max_cost,
        gpu_model=gpu.text("model"),
        vram_gb=gpu.number("vram_gb"),
        cpu_cores=own.number("cpu_cores"),
        models=own.texts("installed_models"),
        properties=extra.properties(),
    )
    return msgspec.structs.replace(
        demand,
        ignored=(*own.unknown("gpu_info", "gpu", "cpu_cores", "installed_models", "properties"),
                 *gpu.unknown("model", "vram_gb")),
        unreadable=(*own.unreadable, *gpu.unreadable, *extra.unreadable),
    )  # fmt: skip


class _Wishes:
    """One table of requirements; notes what cannot be read. A missing or null one wants nothing."""

    def __init__(self, value: object, prefix: str = "") -> None:
        self.row = _row({} if value is None else value)
        self.unreadable: list[str] = []
        self._prefix = prefix

    def _take(self, name: str) -> object:
        return None if self.row is None else self.row.get(name)

    def _failed(self, name: str) -> None:
        self.unreadable.append(self._prefix + name)

    def number(self, name: str) -> float:
        if (value := self._take(name)) is None:
            return 0.0
        if (number := _number(value)) is None:
            self._failed(name)
        return number or 0.0

    def text(self, name: str) -> str:
        if (value := self._take(name)) is None:
            return ""
        if not isinstance(value, str):
            self._failed(name)
            return ""
        return value

    def texts(self, name: str) -> frozenset[str]:
        if (value := self._take(name)) is None:
            return frozenset()
        items = _items(value)
        if not _is_list(value) or not all(isinstance(item, str) for item in items):
            self._failed(name)
        return _texts(items)

    def properties(self) -> tuple[PropertyWish, ...]:
        wishes: list[PropertyWish] = []
        for name, value in sorted((self.row or {}).items()):
            if value is None:
                continue
            wish = _property_wish(name, value)
            if wish is None:
                self._failed(name)
            else:
                wishes.append(wish)
        return tuple(wishes)

    def unknown(self, *known: str) -> list[str]:
        return [f"{self._prefix}{name}" for name in self.row or () if name not in known]


def _property_wish(name: str, value: object) -> PropertyWish | None:
    """None: it cannot be read."""
    if (number := _any_number(value)) is not None:
        return PropertyWish(name=name, wanted=_as_json(value), at_least=number)
    options = _items(value) if _is_list(value) else [value]
    scalars = [scalar for option in options if (scalar := _scalar(option)) is not None]
    if not scalars or len(scalars) < len(options):
        return None
    return PropertyWish(name=name, wanted=_as_json(value), one_of=tuple(scalars))


class WorkerProfile(_Value, frozen=True, kw_only=True):
    """What matters of a worker when a task is to be placed."""

    worker_id: WorkerId
    supported_tasks: frozenset[str] = frozenset()
    allowed_tasks: frozenset[str] | None = None
    """The only types it may be given; None: any it does."""
    is_draining: bool = False
    max_concurrent_tasks: float | None = None
    """None: no limit."""
    gpu_model: str | None = None
    """None: it has no GPU."""
    vram_gb: float = 0.0
    cpu_cores: float = 0.0
    models: frozenset[str] = frozenset()
    properties: Mapping[str, object] = {}
    cost_per_skill: Mapping[str, float] = {}
    cost: float = math.inf
    """Of a task that has no cost of its own; infinite: unknown."""
    hot_skills: frozenset[str] = frozenset()
    hot_cache: frozenset[str] = frozenset()
    skill_dependencies: Mapping[str, frozenset[str]] = {}
    load: float = 0.0
    reputation: float = DEFAULT_REPUTATION

    def cost_of(self, task_type: str) -> float:
        return self.cost_per_skill.get(task_type, self.cost)

    def is_hot_for(self, task_type: str) -> bool:
        """Whether it can start on such a task without loading anything first."""
        if task_type in self.hot_skills or task_type in self.hot_cache:
            return True
        needed = self.skill_dependencies.get(task_type)
        return bool(needed and needed <= self.hot_cache)


def profile_of(worker_id: WorkerId, document: Mapping[str, Any]) -> WorkerProfile:
    """Read a worker's document; what has the wrong type counts as not said."""
    resources = _row(document.get("resources")) or {}
    gpu = _row(resources.get("gpu_info"))
    capabilities = _row(document.get("capabilities")) or {}
    costs = _row(capabilities.get("cost_per_skill")) or {}
    needs = _row(document.get("skill_dependencies")) or {}
    allowed = document.get("allowed_skills")
    installed = (document.get("installed_models"), document.get("installed_artifacts"))
    rows = [_row(model) or {} for models in installed for model in _items(models)]
    return WorkerProfile(
        worker_id=worker_id,
        supported_tasks=_texts(document.get("supported_tasks")),
        allowed_tasks=_texts(allowed) if _is_list(allowed) else None,
        is_draining=document.get("status") == "draining",
        max_concurrent_tasks=_number(resources.get("max_concurrent_tasks")),
        gpu_model=None if gpu is None else str(gpu.get("model") or ""),
        vram_gb=0.0 if gpu is None else _number(gpu.get("vram_gb")) or 0.0,
        cpu_cores=_number(resources.get("cpu_cores")) or 0.0,
        models=_texts([row.get("name") for row in rows]),
        properties=_row(capabilities.get("extra")) or {},
        cost_per_skill={
            task: cost for task, said in costs.items() if (cost := _number(said)) is not None
        },
        cost=_first(_number(document.get("cost_per_second")), _number(document.get("cost"))),
        hot_skills=_texts(document.get("hot_skills")),
        hot_cache=_texts(document.get("hot_cache")),
        skill_dependencies={task: _texts(models) for task, models in needs.items()},
        load=_number(document.get("load")) or 0.0,
        reputation=_first(_number(document.get("reputation")), DEFAULT_REPUTATION),
    )


def unfitness(demand: Demand, profile: WorkerProfile, min_reputation: float = 0.0) -> Unfit | None:
    """Why this worker may not get such a task; None: it may, when it has a free place."""
    if demand.type not in profile.supported_tasks:
        return Unfit.TYPE
    if profile.allowed_tasks is not None and demand.type not in profile.allowed_tasks:
        return Unfit.NOT_ALLOWED
    if profile.is_draining:
        return Unfit.DRAINING
    if not _has_resources(demand, profile):
        return Unfit.RESOURCES
    if demand.max_cost is not None and profile.cost_of(demand.type) > demand.max_cost:
        return Unfit.COST
    return Unfit.REPUTATION if profile.reputation < min_reputation else None


def _has_resources(demand: Demand, profile: WorkerProfile) -> bool:
    if demand.gpu_model and demand.gpu_model not in (profile.gpu_model or ""):
        return False
    return (
        not demand.unreadable
        and demand.vram_gb <= profile.vram_gb
        and demand.cpu_cores <= profile.cpu_cores
        and demand.models <= profile.models
        and all(wish.is_met_by(profile.properties.get(wish.name)) for wish in demand.properties)
    )


def missing_resources(demand: Demand, profile: WorkerProfile) -> list[str]:
    """Every requirement the worker does not meet, for people: what it has, and what is wanted.

    Of its properties only what is wanted: not everybody who may ask is shown them.
    """
    missing = [f"requirement '{name}' cannot be read" for name in demand.unreadable]
    if demand.gpu_model and demand.gpu_model not in (profile.gpu_model or ""):
        has = "no GPU" if profile.gpu_model is None else f"GPU '{_short(profile.gpu_model)}'"
        missing.append(f"has {has}, wanted is '{_short(demand.gpu_model)}'")
    if demand.vram_gb > profile.vram_gb:
        missing.append(
            f"has {profile.vram_gb:.12g} GB of GPU memory, wanted are {demand.vram_gb:.12g}"
        )
    if demand.cpu_cores > profile.cpu_cores:
        missing.append(
            f"has {profile.cpu_cores:.12g} CPU cores, wanted are {demand.cpu_cores:.12g}"
        )
    if lacking := sorted(demand.models - profile.models):
        missing.append(f"model {_short(', '.join(lacking))} is not installed")
    for wish in demand.properties:
        value = profile.properties.get(wish.name)
        if not wish.is_met_by(value):
            has = "is not given" if value is None else "does not fit"
            missing.append(
                f"property '{_short(wish.name)}' {has}, wanted is {_short(wish.as_text)}"
            )
    return missing


def waiting_reason(demand: Demand, verdicts: Collection[Unfit | None]) -> str:
    """Why such a task waits, from what `unfitness` says of each live worker (once is enough).

    Names what is missing of the workers that come nearest.
    """
    if None in verdicts or Unfit.REPUTATION in verdicts:
        return f"All suitable workers for task type '{demand.type}' are busy"
    if Unfit.COST in verdicts:
        return f"No worker meets the maximum cost ({demand.max_cost:.12g}) for task '{demand.type}'"
    if Unfit.RESOURCES in verdicts:
        return f"No worker satisfies the resource requirements for task '{demand.type}'"
    return f"No suitable workers for task type '{demand.type}'"


class Candidate(_Value, frozen=True, kw_only=True):
    """A live worker and what it holds now."""

    profile: WorkerProfile
    is_free: bool = True
    """It has an open poll and a place for one more task."""
    held: int = 0
    """Tasks it holds or was promised."""
    last_turn: float = NEVER
    """When it last got a task of this type, Unix seconds."""
    draw: float = 0.0
    """A random number: decides between workers that are equal otherwise."""


def preference(demand: Demand, candidate: Candidate, soft_limit: int = 3) -> tuple[float, ...]:
    """The smaller, the better; comparable between candidates for the same demand.

    `soft_limit`: tasks a worker may hold before `overflow` passes it over.
    """
    profile = candidate.profile
    cost = profile.cost_of(demand.type)
    match demand.strategy:
        case "round_robin":
            order: tuple[float, ...] = (candidate.last_turn,)
        case "least_connections":
            order = (candidate.held, profile.load)
        case "cheapest":
            order = (cost,)
        case "best_value":
            order = (cost / profile.reputation if profile.reputation else math.inf,)
        case "overflow" if candidate.held < soft_limit:
            order = (0, cost)
        case "overflow":
            order = (1, candidate.held)
        case _:
            order = (not profile.is_hot_for(demand.type), cost)
    return (*order, -profile.reputation, candidate.draw)


def rank(
    demand: Demand,
    workers: Collection[Candidate],
    soft_limit: int = 3,
    min_reputation: float = 0.0,
) -> list[Candidate]:
    """Those of all live workers that may get such a task now, the best first."""
    verdicts = [(unfitness(demand, one.profile, min_reputation), one) for one in workers]
    fit = [one for verdict, one in verdicts if verdict is None]
    if not fit:
        fit = [one for verdict, one in verdicts if verdict is Unfit.REPUTATION]
    free = [one for one in fit if one.is_free]
    return sorted(free, key=lambda one: preference(demand, one, soft_limit))


def _row(value: object) -> _Row | None:
    if not isinstance(value, Mapping):
        return None
    return {
        key: item
        for key, item in cast("Mapping[object, object]", value).items()
        if isinstance(key, str)
    }


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _items(value: object) -> list[object]:
    return list(cast("list[object]", value)) if isinstance(value, list | tuple) else []


def _texts(value: object) -> frozenset[str]:
    return frozenset(item for item in _items(value) if isinstance(item, str))


def _number(value: object) -> float | None:
    """A finite number from 0; a boolean is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= 1e300 else None


def _first(*numbers: float | None) -> float:
    return next((number for number in numbers if number is not None), math.inf)


def _any_number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -1e300 <= value <= 1e300 else None


def _scalar(value: object) -> bool | float | str | None:
    return value if isinstance(value, bool | str) else _any_number(value)


def _is_same(value: object, wanted: bool | float | str) -> bool:
    scalar = _scalar(value)
    return scalar == wanted and isinstance(scalar, bool) == isinstance(wanted, bool)


def _as_json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return type(value).__name__


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"
