"""What workers promise of their skills, and what does not keep to it.

A worker's contracts come with its registration. A worker without any costs the way of its results
nothing: what is known of it is kept here and read again once a minute.
"""

import math
import random
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any, Final

import msgspec

import rxon
from avtomatika_common.backend.ports import LeasedTask, Worker, WorkerDirectory
from avtomatika_common.clock import Clock
from avtomatika_common.ids import new_id
from avtomatika_common.logs import get_logger
from avtomatika_common.schemas import InvalidSchema, Schema, compiled
from avtomatika_core.events import TaskFailed
from avtomatika_core.job import TaskId, WorkerId
from avtomatika_core.routing import WorkerProfile, profile_of
from avtomatika_gateway.refusals import BadRequest
from rxon import Skill
from rxon.constants import (
    ERROR_CODE_CONTRACT_VIOLATION,
    TASK_STATUS_CANCELLED,
    TASK_STATUS_FAILURE,
)
from rxon.exceptions import BadMessage

_KNOWN_SECONDS: Final = 60.0
_MOST_KNOWN: Final = 20_000

log = get_logger()


class SkillContract(msgspec.Struct, frozen=True, kw_only=True):
    """The contract of one skill, ready to be checked; None: anything goes."""

    name: str
    params: Schema | None = None
    data: Schema | None = None
    events: Mapping[str, Schema] | None = None
    statuses: frozenset[str] | None = None


Contracts = Mapping[str, SkillContract]
"""Of one worker, by skill; skills that ask for nothing are left out."""


def contracts_of(document: Mapping[str, Any]) -> Contracts:
    """What a worker's document promises. Raises BadMessage, and BadRequest for what is no schema."""
    contracts = [_contract_of(skill) for skill in rxon.parse_skills(document)]
    return {one.name: one for one in contracts if one != SkillContract(name=one.name)}


def _contract_of(skill: Skill) -> SkillContract:
    """What is empty says as little as what is missing."""
    return SkillContract(
        name=skill.name,
        params=_compiled_if_any(skill, "input_schema", skill.input_schema),
        data=_compiled_if_any(skill, "output_schema", skill.output_schema),
        events={
            event: _compiled(skill, f"events_schema.{event}", schema)
            for event, schema in (skill.events_schema or {}).items()
        }
        or None,
        statuses=frozenset(skill.output_statuses or ()) or None,
    )


def _compiled_if_any(skill: Skill, key: str, schema: dict[str, object] | None) -> Schema | None:
    return _compiled(skill, key, schema) if schema else None


def _compiled(skill: Skill, key: str, schema: dict[str, object]) -> Schema:
    try:
        return compiled(schema)
    except InvalidSchema as error:
        raise BadRequest(f"Skill '{skill.name}': {key} is no usable JSON Schema: {error}") from None


def check_params(contract: SkillContract, params: object) -> str | None:
    """What of a task's `params` the skill does not take."""
    return None if contract.params is None else contract.params.problem(params)


def check_result(contract: SkillContract, status: str, data: object) -> str | None:
    """What of a result its skill did not promise; a failure or an end by request is no promise."""
    if status in {TASK_STATUS_FAILURE, TASK_STATUS_CANCELLED}:
        return None
    if contract.statuses is not None and status not in contract.statuses:
        return f"status '{status}' is none of {', '.join(sorted(contract.statuses))}"
    return None if contract.data is None else contract.data.problem({} if data is None else data)


def check_event(contract: SkillContract, event_type: str, payload: object) -> str | None:
    """What of an event the skill did not promise: its type, or its `payload`."""
    if contract.events is None:
        return None
    if event_type not in contract.events:
        return f"event type '{event_type}' is none of {', '.join(sorted(contract.events))}"
    return contract.events[event_type].problem(payload)


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    incarnation: int
    contracts: Contracts
    until: float


class SkillContracts:
    """The contracts of the workers that are at work here."""

    def __init__(self, workers: WorkerDirectory, clock: Clock) -> None:
        self._workers = workers
        self._clock = clock
        self._known: OrderedDict[WorkerId, _Known] = OrderedDict()

    def remember(self, worker_id: WorkerId, incarnation: int, contracts: Contracts) -> None:
        """The worker has just registered here."""
        until = self._clock.now() + _KNOWN_SECONDS
        self._known[worker_id] = _Known(incarnation=incarnation, contracts=contracts, until=until)
        self._known.move_to_end(worker_id)
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)

    def forget(self, worker_id: WorkerId) -> None:
        """It said something new about its skills."""
        self._known.pop(worker_id, None)

    async def of(self, worker_id: WorkerId, incarnation: int | None = None) -> Contracts:
        """The worker's contracts, of the registration of this number if it is given.

        Of a worker that has expired meanwhile what was known last.
        """
        known = self._known.get(worker_id)
        if (
            known is not None
            and self._clock.now() < known.until
            and incarnation in {None, known.incarnation}
        ):
            return known.contracts
        worker = await self._workers.get(worker_id)
        if worker is None:
            return {} if known is None else known.contracts
        contracts = _readable_contracts(worker)
        self.remember(worker_id, worker.places.incarnation, contracts)
        return contracts

    async def refused_by_contract(
        self, task: LeasedTask, worker_id: WorkerId, incarnation: int | None = None
    ) -> TaskFailed | None:
        """How a task ends whose `params` its worker does not take; None: it may be handed out."""
        contract = (await self.of(worker_id, incarnation)).get(task.type)
        problem = None if contract is None else check_params(contract, task.params)
        if problem is None:
            return None
        message = f"Params do not keep to the contract of skill '{task.type}': {problem}"
        return self._violation(task.task_id, worker_id, message)

    async def violated_by_result(
        self, task_type: str, task_id: TaskId, worker_id: WorkerId, status: str, data: object
    ) -> TaskFailed | None:
        """How a task ends whose result its worker's contract does not promise."""
        problem = await self._problem(task_type, worker_id, status, data)
        if problem is not None:  # it may have registered anew through another gateway
            self.forget(worker_id)
            problem = await self._problem(task_type, worker_id, status, data)
        if problem is None:
            return None
        message = f"Result does not keep to the contract of skill '{task_type}': {problem}"
        return self._violation(task_id, worker_id, message)

    async def _problem(
        self, task_type: str, worker_id: WorkerId, status: str, data: object
    ) -> str | None:
        contract = (await self.of(worker_id)).get(task_type)
        return None if contract is None else check_result(contract, status, data)

    def _violation(self, task_id: TaskId, worker_id: WorkerId, message: str) -> TaskFailed:
        return TaskFailed(
            at=self._clock.now(),
            task_id=task_id,
            worker_id=worker_id,
            fresh_id=TaskId(new_id()),
            jitter=random.uniform(-1, 1),  # noqa: S311 - spreads retries, guards nothing
            code=ERROR_CODE_CONTRACT_VIOLATION,
            message=message,
        )


def _readable_contracts(worker: Worker) -> Contracts:
    try:
        return contracts_of(worker.document)
    except (BadMessage, BadRequest) as reason:  # not stored by a door that checks
        log.warning("contracts not read", worker_id=worker.worker_id, reason=str(reason))
        return {}


def skill_catalog(workers: Iterable[Worker]) -> dict[str, dict[str, Any]]:
    """What these workers can do: each skill with its contract, its lowest price and who has it.

    Where workers describe a skill differently, that of the first one by worker id is shown.
    """
    described: dict[str, Skill] = {}
    providers: defaultdict[str, list[WorkerProfile]] = defaultdict(list)
    types: defaultdict[str, set[str]] = defaultdict(set)
    for worker in sorted(workers, key=lambda one: one.worker_id):
        profile = profile_of(worker.worker_id, worker.document)
        skills = {skill.name: skill for skill in _readable_skills(worker)}
        worker_type = worker.document.get("worker_type")
        for name in profile.supported_tasks | skills.keys():
            providers[name].append(profile)
            if isinstance(worker_type, str) and worker_type:
                types[name].add(worker_type)
            skill = skills.get(name, Skill(name=name))
            if described.setdefault(name, skill) == Skill(name=name):
                described[name] = skill
    return {
        name: {
            "contract": _with_price(skill, providers[name]),
            "providers_count": len(providers[name]),
            "worker_types": sorted(types[name]),
            "average_reputation": round(fmean(one.reputation for one in providers[name]), 6),
        }
        for name, skill in sorted(described.items())
    }


def _with_price(skill: Skill, providers: Iterable[WorkerProfile]) -> dict[str, Any]:
    contract: dict[str, Any] = msgspec.to_builtins(skill)
    lowest = min(one.cost_of(skill.name) for one in providers)
    return contract if math.isinf(lowest) else {**contract, "base_price": lowest}


def _readable_skills(worker: Worker) -> tuple[Skill, ...]:
    try:
        return rxon.parse_skills(worker.document)
    except BadMessage:
        return ()
