"""What a worker is and can do, and the messages in which it says so."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from avtomatika_worker.advertise import Advertised, advertise, hot_skills
from avtomatika_worker.config import WorkerConfig
from avtomatika_worker.handlers import Handler
from avtomatika_worker.params import schema_of
from avtomatika_worker.types import CapacityChecker, Middleware
from rxon import (
    Heartbeat,
    InstalledModel,
    Resources,
    Skill,
    WorkerCapabilities,
    WorkerRegistration,
)

log = logging.getLogger("avtomatika_worker")


@dataclass(kw_only=True)
class Profile:
    """Grows while handlers and middlewares are registered; only the hot cache changes later."""

    config: WorkerConfig
    worker_type: str
    places: int
    limits: Mapping[str, int]
    skill_dependencies: dict[str, tuple[str, ...]] | None
    capacity_checker: CapacityChecker | None
    announce_contracts: bool
    handlers: dict[str, Handler] = field(default_factory=dict[str, Handler])
    middlewares: list[Middleware] = field(default_factory=list[Middleware])
    hot_cache: set[str] = field(default_factory=set[str])
    on_change: Callable[[], None] | None = None
    """Called in whichever thread the change was made."""

    @property
    def takes_one_by_one(self) -> bool:
        """Whether a task in hand may keep others from coming, while there are places left."""
        return bool(self.limits) or self.capacity_checker is not None

    def add_to_hot_cache(self, model: str) -> None:
        if model not in self.hot_cache:
            self.hot_cache.add(model)
            self._changed()

    def remove_from_hot_cache(self, model: str) -> None:
        if model in self.hot_cache:
            self.hot_cache.discard(model)
            self._changed()

    def registration(self, running: Sequence[str | None]) -> WorkerRegistration:
        """`running` are the classes of concurrency of the tasks in hand."""
        config = self.config
        resources = msgspec.convert(config.RESOURCES, Resources)
        return WorkerRegistration(
            worker_id=config.WORKER_ID,
            worker_type=self.worker_type,
            supported_tasks=self._advertised(running).supported_tasks,
            resources=msgspec.structs.replace(resources, max_concurrent_tasks=self.places),
            installed_software=config.INSTALLED_SOFTWARE,
            installed_models=tuple(
                msgspec.convert(model, InstalledModel) for model in config.INSTALLED_MODELS
            ),
            capabilities=WorkerCapabilities(
                hostname=config.HOSTNAME,
                ip_address=config.IP_ADDRESS,
                cost_per_skill=config.COST_PER_SKILL,
            ),
            cost_per_second=msgspec.UNSET
            if config.COST_PER_SECOND is None
            else config.COST_PER_SECOND,
            supported_skills=tuple(map(_contract_of, self.handlers.values()))
            if self.announce_contracts
            else msgspec.UNSET,
        )

    def heartbeat(
        self, running: Sequence[str | None], *, current_tasks: Iterable[str], draining: bool
    ) -> Heartbeat:
        advertised = self._advertised(running)
        return Heartbeat(
            worker_id=self.config.WORKER_ID,
            status="draining" if draining else advertised.status,
            load=float(len(running)),
            current_tasks=tuple(current_tasks),
            supported_tasks=advertised.supported_tasks,
            hot_cache=tuple(sorted(self.hot_cache)),
            skill_dependencies=self.skill_dependencies,
            hot_skills=hot_skills(self.skill_dependencies, self.hot_cache),
        )

    def _advertised(self, running: Sequence[str | None]) -> Advertised:
        return advertise(
            self.handlers.values(),
            running=running,
            places=self.places,
            limits=self.limits,
            has_capacity=self._has_capacity,
        )

    def _has_capacity(self, task_name: str) -> bool:
        if self.capacity_checker is None:
            return True
        try:
            return self.capacity_checker(task_name)
        except Exception:  # a user's code: a fault in it is no reason to drop all tasks
            log.exception("capacity checker raised", extra={"task_name": task_name})
            return False

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()


def _contract_of(handler: Handler) -> Skill:
    try:
        input_schema = schema_of(handler.params_type)
    except TypeError as error:
        log.warning("params have no schema", extra={"task_name": handler.name, "error": str(error)})
        input_schema = None
    return Skill(
        name=handler.name,
        description=handler.description,
        input_schema=input_schema,
        output_statuses=handler.output_statuses,
    )
