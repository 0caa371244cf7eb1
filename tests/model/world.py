"""The actors of the commit and lease protocol around one store, as a model to explore.

Executors, and the judgement of results, are the product's own code; dispatcher, gateway, watcher and
clients are the port calls these services make. All run on the real memory store, with the real `step`.
"""

# pyright: reportPrivateUsage=false

import asyncio
import math
import pickle
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace
from typing_extensions import override

from avtomatika_common.backend.memory.signals import Signals
from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.memory.tables import Tables
from avtomatika_common.backend.ports import (
    Backend,
    Delivery,
    LeasedTask,
    LostClaim,
    Match,
    ResultAnswer,
    Stored,
    StoreUnavailable,
    WaitingTask,
)
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.config import Config
from avtomatika_core.job import TERMINAL, JobId, JobStatus, WorkerId
from avtomatika_executor import Settings as ExecutorSettings
from avtomatika_executor.advances import Advances, InHand
from avtomatika_executor.hosting import Hosting
from avtomatika_executor.runs import HandlerRuns
from avtomatika_executor.threads import HandlerThreads
from avtomatika_gateway.deliveries import Deliveries
from avtomatika_gateway.polls import Polls
from avtomatika_gateway.settings import Settings as GatewaySettings
from avtomatika_gateway.skills import SkillContracts
from avtomatika_gateway.worker_operations import WorkerOperations
from rxon import TaskResult
from tests.model import promises
from tests.model.activities import (
    Activity,
    Answer,
    Call,
    Ended,
    Running,
    answered,
    ask,
    draw_ids,
    finish,
    stepped,
)
from tests.model.canonical import FIRST_NUMBER, digest
from tests.model.explorer import Move, Violation

T = TypeVar("T")

GROUP: Final = "default"
START: Final = 1_000_000.0
TTL_SECONDS: Final = 20.0
POLL_SECONDS: Final = 15.0
MATCH_MEMORY_SECONDS: Final = 3.0
_CAN_LOSE_REPLY: Final = frozenset(
    {
        "inbox.read", "inbox.take_over", "inbox.drop", "jobs.commit", "jobs.create",
        "jobs.request_cancel", "jobs.send_signal", "board.lease", "board.end_lease",
    }
)  # fmt: skip


class Client(NamedTuple):
    """Somebody who does something once."""

    work: Callable[["World"], Coroutine[Any, Any, None]]
    is_ready: Callable[["World"], bool] = lambda _: True


class Scenario(NamedTuple):
    """What there is, and how much may go wrong."""

    blueprints: Sequence[StateMachineBlueprint]
    clients: Mapping[str, Client]
    ends: Collection[JobStatus]
    """Statuses a job may end with."""
    executors: int = 1
    workers: int = 0
    faults: int = 0
    """Crashes, pauses and lost replies, of any kind, in one schedule."""
    hurries: int = 0
    """How often time runs on to the next thing that is due though somebody could act before."""
    settings: ExecutorSettings = ExecutorSettings(retry_delay_seconds=1.0)


class _Clock:
    def __init__(self) -> None:
        self.time = START

    def now(self) -> float:
        return self.time

    async def wait_until(self, when: float, wake: asyncio.Event) -> None:
        raise NotImplementedError  # nothing in the model sleeps


class _Numbers:
    """As `itertools.count`, and can be kept with the store."""

    def __init__(self) -> None:
        self.last = FIRST_NUMBER

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.last += 1
        return self.last


class _NoWaiting(Signals):
    """Blocking reads return at once."""

    @override
    async def wait_for(self, topic: str, read: Callable[[], T], seconds: float) -> T:
        return read()


class Around(msgspec.Struct, frozen=True, kw_only=True):
    """What is known outside the store."""

    faults: int
    hurries: int
    generations: dict[str, int] = {}
    """Of executors and the gateway: how often each was started again."""
    done: tuple[str, ...] = ()
    """Clients that have had their answers."""
    jobs: tuple[JobId, ...] = ()
    polls: dict[str, float] = {}
    """Worker -> until when its poll is open."""
    position: str = "0"
    """How far the gateway has read its mail."""
    wire: tuple[tuple[WorkerId, LeasedTask], ...] = ()
    """Tasks that have reached their workers."""
    matched: dict[str, float] = {}
    """What the dispatcher remembers: an offer -> when it was matched."""
    ended: dict[JobId, str] = {}
    """Jobs that have ended -> how."""
    is_cancelled: bool = False
    """A client was told that its job is to be cancelled."""
    has_counted: bool = False
    """Somebody was told that their result or decision counts."""


class State(NamedTuple):
    store: bytes
    around: Around
    activities: Mapping[str, Activity]
    begun: int
    """How many activities there were so far."""
    key: bytes


class World:
    def __init__(
        self, scenario: Scenario, storage: Callable[[Any], MemoryStorage] = MemoryStorage
    ) -> None:
        self.scenario = scenario
        self.clock = _Clock()
        self.store = storage(self.clock)
        self.tables.signals = _NoWaiting()
        self.tables._numbers = _Numbers()  # pyright: ignore[reportAttributeAccessIssue]
        self.backend: Backend = stepped(self.store)
        self.around = Around(faults=scenario.faults, hurries=scenario.hurries)
        self.activities: dict[str, Activity] = {}
        self.begun = 0
        finish(Hosting(scenario.settings, self.store, scenario.blueprints).publish())
        self.watch = finish(self.store.leases.acquire("watcher", "watcher", math.inf))
        self._hosting = Hosting(scenario.settings, self.backend, scenario.blueprints)
        self._runs = HandlerRuns(self.backend, self._hosting, HandlerThreads())
        self._advances = Advances(
            scenario.settings,
            self.backend,
            self._hosting,
            self._runs,
            asyncio.TaskGroup(),
            has_room=lambda: False,
            on_commit=None,
        )
        self.executors = [f"executor {number + 1}" for number in range(scenario.executors)]
        self.workers = [WorkerId(f"worker {number + 1}") for number in range(scenario.workers)]

    @property
    def tables(self) -> Tables:
        return self.store._tables

    def note(self, **changes: Any) -> None:
        self.around = replace(self.around, **changes)

    def instance(self, actor: str) -> str:
        return f"{actor}.{self.around.generations.get(actor, 0)}"

    # --- as a model

    def first(self) -> State:
        for executor in self.executors:
            self._live(executor)
        if self.workers:
            self._live("gateway")
        for worker in self.workers:
            finish(self.store.workers.register(worker, _described(worker), TTL_SECONDS))
        return self.leave()

    def enter(self, state: State) -> None:
        for (port, name), value in pickle.loads(state.store).items():  # noqa: S301 - our own
            setattr(self._ports[port], name, value)
        self.around = state.around
        self.activities = dict(state.activities)
        self.begun = state.begun

    def moves(self) -> Sequence[Move]:
        moves = [*self._fair_moves()]
        if not moves and (due := self._next_due()) is not None:
            moves.append(Move(partial(self._pass_time, due)))
        return [*moves, *self._faults(hurry=bool(moves))]

    def leave(self) -> State:
        self.note(ended={**promises.ends(self.tables), **self.around.ended})
        kept = {
            (port, name): value
            for port, holder in self._ports.items()
            for name, value in vars(holder).items()
            if name in _KEPT[port]
        }
        seen = {place: value for place, value in kept.items() if place not in _NOT_SEEN}
        doing = {
            actor: (one.kind, one.of, [(answer.at, answer.text) for answer in one.answers])
            for actor, one in sorted(self.activities.items())
        }
        return State(
            pickle.dumps(kept, protocol=5),
            self.around,
            dict(self.activities),
            self.begun,
            digest((seen, self.around, doing)),
        )

    def key(self, state: State) -> bytes:
        return state.key

    @property
    def _ports(self) -> dict[str, object]:
        store = self.store
        return {
            "tables": store._tables, "liveness": store.liveness, "workers": store.workers,
            "mailbox": store.mailbox, "clock": self.clock,
        }  # fmt: skip

    # --- what may happen

    def _fair_moves(self) -> Iterator[Move]:
        for actor in self.activities:
            yield Move(partial(self._go_on, actor))
        for name, client in self.scenario.clients.items():
            is_idle = name not in self.around.done and name not in self.activities
            if is_idle and client.is_ready(self):
                yield self._beginning(name, "client", name)
        for executor in self.executors:
            if executor not in self.activities:
                yield from self._work_for(executor)
        yield from self._watcher_moves()
        if self.workers:
            yield from self._task_moves()

    def _beginning(self, actor: str, kind: str, of: str = "") -> Move:
        def begin() -> str:
            self.begun += 1
            self.activities[actor] = Activity(kind, of, self.begun)
            return self._go_on(actor)

        return Move(begin)

    def _work_for(self, executor: str) -> Iterator[Move]:
        me, group = self.instance(executor), self.tables.group(GROUP)
        if group.consumers.get(me):
            yield self._beginning(executor, "audit")
            return
        if any(group.lanes.values()):
            yield self._beginning(executor, "read")
        for name, mine in group.consumers.items():
            if name != me and mine and not self.store.liveness.has(name):
                yield self._beginning(executor, "take over", name)

    def _watcher_moves(self) -> Iterator[Move]:
        store, now = self.store, self.clock.now()
        due = self.tables.partitions[0].timetable.next_due()
        if due is not None and due <= now:
            yield self._watching("timers.fire", partial(store.timers.fire, 0, self.watch, 1))
        if self.tables.partitions[0].out:
            yield self._watching("relay.run_once", partial(store.relay.run_once, 0))
        if store.workers.gone:
            yield self._watching("relay.return_lost", store.relay.return_lost)
        expiry = finish(store.workers.next_expiry())
        if expiry is not None and expiry <= now:
            yield self._watching("workers.expire", store.workers.expire)

    def _watching(self, name: str, perform: Callable[[], Any]) -> Move:
        def do() -> str:
            self.begun += 1
            draw_ids(self.begun, 0)
            try:
                return f"watcher: {name} -> {finish(perform())}"
            except (AssertionError, LookupError) as error:
                raise Violation(f"watcher: {name}: {type(error).__name__} {error}") from error

        return Move(do)

    def _task_moves(self) -> Iterator[Move]:
        if "gateway" not in self.activities and self._unread_mail():
            yield self._beginning("gateway", "hand out")
        for worker in self.workers:
            if worker in self.activities:
                continue
            if any(holder == worker for holder, _ in self.around.wire):
                yield self._beginning(worker, "submit")
            elif worker not in self.around.polls and self.tables.partitions[0].board:
                yield self._beginning(worker, "poll")
        if "dispatcher" not in self.activities and self._unmatched():
            for worker in finish(self.store.workers.live()):
                if worker.places.room:
                    yield self._beginning("dispatcher", "match", worker.worker_id)

    def _unread_mail(self) -> bool:
        box = self.store.mailbox._boxes.get(self.instance("gateway"))
        return bool(box) and box[-1][0] > int(self.around.position)

    def _unmatched(self) -> list[WaitingTask]:
        now, matched = self.clock.now(), self.around.matched
        return [
            head
            for head in finish(self.store.board.heads(0, 10))
            if matched.get(_offer(head), -math.inf) + MATCH_MEMORY_SECONDS <= now
        ]

    def _is_over(self) -> bool:
        return len(self.around.done) == len(self.scenario.clients) and all(
            record.status in TERMINAL for record in self.tables.jobs.values()
        )

    def _faults(self, *, hurry: bool) -> Iterator[Move]:
        if hurry and self.around.hurries and (due := self._next_due()) is not None:
            yield Move(partial(self._pass_time, due, hurry=1), is_fault=True)
        if not self.around.faults:
            return
        for actor, activity in self.activities.items():
            if actor in self.executors or actor == "gateway":
                yield Move(partial(self._crash, actor), is_fault=True)
            call = self._resumed(actor, activity).next
            if isinstance(call, Call) and call.name in _CAN_LOSE_REPLY:
                yield Move(partial(self._go_on, actor, lost=True), is_fault=True)
            if actor in self.executors and self.store.liveness.has(self.instance(actor)):
                yield Move(partial(self._pause, actor), is_fault=True)
            if isinstance(call, Call) and call.name == "answer written":
                for arrived in (True, False):
                    yield Move(partial(self._cut, actor, arrived=arrived), is_fault=True)

    # --- time

    def _next_due(self) -> float | None:
        """When something happens by itself, where there is a job that may need it."""
        timer = self.tables.partitions[0].timetable.next_due()
        if self._is_over() and timer is None:
            return None
        workers = self.store.workers._registrations.values()
        dues = [
            *([] if timer is None else [timer]),
            *(known.expires_at for known in workers),
            *(hold.until for known in workers for hold in known.holds.values()),
            *self.around.polls.values(),
            *(at + MATCH_MEMORY_SECONDS for at in self.around.matched.values()),
        ]
        return min((due for due in dues if self.clock.now() < due < math.inf), default=None)

    def _pass_time(self, due: float, hurry: int = 0) -> str:
        passed, self.clock.time = due - self.clock.time, due
        in_hand = self.activities.get("gateway")
        polls = self.around.polls
        if in_hand is None:
            polls = {worker: until for worker, until in polls.items() if until > due}
        self.note(
            hurries=self.around.hurries - hurry,
            polls=polls,
            matched={
                offer: at
                for offer, at in self.around.matched.items()
                if at + MATCH_MEMORY_SECONDS > due
            },
        )
        return f"time: {passed:g} s pass" + (" before anybody acts" if hurry else "")

    # --- activities

    def _resumed(self, actor: str, activity: Activity) -> Running:
        now = self.clock.time
        self.clock.time = START
        running = Running(self._work(actor, activity), activity.number)
        for answer in activity.answers:
            self.clock.time = answer.at
            running.take(answer)
        self.clock.time = now
        return running

    def _work(self, actor: str, activity: Activity) -> Any:
        match activity.kind:
            case "read" | "audit" | "take over":
                return self._executes(self.instance(actor), activity)
            case "hand out":
                return self._hands_out()
            case "poll":
                return self._polls(WorkerId(actor))
            case "submit":
                return self._submits(WorkerId(actor))
            case "match":
                return self._matches(WorkerId(activity.of))
            case _:
                return self.scenario.clients[activity.of].work(self)

    def _go_on(self, actor: str, *, lost: bool = False) -> str:
        activity = self.activities[actor]
        running = self._resumed(actor, activity)
        call = running.next
        assert isinstance(call, Call), "an activity that is over is none"
        if actor in self.executors:
            self._live(actor)  # who acts is awake
        said = f"{actor}: {call.name}"
        judge = promises.judge_of(call, self.tables, is_cancelled=self.around.is_cancelled)
        draw_ids(activity.number, 1000 + len(activity.answers))
        try:
            answer = answered(self.clock.now(), finish(call.perform()))
        except Exception as error:  # noqa: BLE001 - it is the actor's to handle
            answer = answered(self.clock.now(), error, is_raised=True)
        self._judge(judge, answer, said)
        self._note_word_given(call, answer)
        said += f" -> {_shown(answer.value)}"
        if lost:
            self.note(faults=self.around.faults - 1)
            said += ", and the reply is lost"
            error = StoreUnavailable("the reply was lost")
            answer = answered(self.clock.now(), error, is_raised=True)
        try:
            running.take(answer)
        except Exception as error:
            raise Violation(f"{said}: then {type(error).__name__}: {error}") from error
        if isinstance(running.next, Ended):
            del self.activities[actor]
            if actor in self.scenario.clients:
                self.note(done=tuple(sorted((*self.around.done, actor))))
        else:
            self.activities[actor] = activity._replace(answers=(*activity.answers, answer))
            running.close()
        return said

    async def _executes(self, me: str, activity: Activity) -> None:
        inbox = self.backend.inbox
        match activity.kind:
            case "read":
                deliveries = await inbox.read(GROUP, me, 1)
            case "audit":
                deliveries = await inbox.pending(GROUP, me)
            case _:
                deliveries = await inbox.take_over(GROUP, activity.of, me, 1)
        for delivery in deliveries[:1]:  # what is left comes with the next audit
            with suppress(LostClaim):
                await self._advances.advance(delivery, InHand(delivery.job_id))

    async def _matches(self, worker_id: WorkerId) -> None:
        heads = await self.backend.board.heads(0, 10)
        offers = [head for head in heads if _offer(head) not in self.around.matched][:1]

        async def match() -> Sequence[str]:
            matched = await self.store.workers.match([(worker_id, offer) for offer in offers])
            now = self.clock.now()
            self.note(matched={**self.around.matched, **{_offer(one): now for one in offers}})
            return matched.answers

        if offers:
            await ask(Call("workers.match", match))

    async def _hands_out(self) -> None:
        """The gateway's way with a match: `avtomatika_gateway.polls` and `.deliveries`."""
        board, workers = self.backend.board, self.backend.workers
        mail: list[tuple[Match, bool]] = await ask(Call("mailbox.read", self._read_mail))
        for match, is_open in mail:
            promise, worker_id = match.promises[0], match.worker_id
            about = promise.task_id, promise.job_id
            task: LeasedTask | None = None
            if is_open:
                try:
                    task = await board.lease(
                        *about,
                        promise.offer_number,
                        worker_id,
                        match.incarnation,
                        until=match.until,
                    )
                except StoreUnavailable:
                    task = None
            if task is None:
                await ask(Call("poll ends", partial(self._end_poll, worker_id)))
                await workers.end_hold(
                    worker_id, promise.task_id, offer_number=promise.offer_number
                )
                continue
            write = partial(self._write_answer, worker_id, task)
            if await ask(Call("answer written", write, (worker_id, task))):
                await board.confirm(*about, worker_id, offer_number=task.offer_number)
            else:
                await board.undeliver(*about, worker_id, offer_number=task.offer_number)

    async def _read_mail(self) -> list[tuple[Match, bool]]:
        position, mail = await self.store.mailbox.read(
            self.instance("gateway"), self.around.position
        )
        self.note(position=position)
        return [(one, one.worker_id in self.around.polls) for one in mail if isinstance(one, Match)]

    async def _end_poll(self, worker_id: WorkerId) -> None:
        polls = {one: until for one, until in self.around.polls.items() if one != worker_id}
        self.note(polls=polls)

    async def _write_answer(self, worker_id: WorkerId, task: LeasedTask) -> bool:
        await self._end_poll(worker_id)
        self.note(wire=(*self.around.wire, (worker_id, task)))
        return True

    async def _polls(self, worker_id: WorkerId) -> None:
        workers, gateway = self.store.workers, self.instance("gateway")
        until = self.clock.now() + POLL_SECONDS

        async def announce() -> int | None:
            incarnation = await workers.announce_credit(
                worker_id, f"{worker_id} at {until}", gateway, until, TTL_SECONDS
            )
            if incarnation is not None:
                self.note(polls={**self.around.polls, worker_id: until})
            return incarnation

        if await ask(Call("workers.announce_credit", announce)) is None:
            await self.backend.workers.register(worker_id, _described(worker_id), TTL_SECONDS)

    async def _submits(self, worker_id: WorkerId) -> None:
        """The task is done, and the answer to its result never read: so it comes twice."""

        async def take() -> LeasedTask:
            wire = list(self.around.wire)
            mine = next(one for one in wire if one[0] == worker_id)
            wire.remove(mine)
            self.note(wire=tuple(wire))
            return mine[1]

        task: LeasedTask = await ask(Call("does the task", take))
        result = TaskResult(
            job_id=task.job_id,
            task_id=task.task_id,
            worker_id=worker_id,
            status="success",
            data={"by": worker_id},
        )
        answers = [await self._answer_to(worker_id, result) for _ in range(2)]
        if answers[0] == "ok" and answers[1] != "ok":
            raise Violation(f"the repeated result is answered {answers[1]}")

    async def _answer_to(self, worker_id: WorkerId, result: TaskResult) -> str:
        settings = GatewaySettings.from_config(Config({}))
        contracts = SkillContracts(self.backend.workers, self.clock)
        deliveries = Deliveries(self.backend.board)
        polls = Polls(settings, self.backend, deliveries, contracts)
        gateway = WorkerOperations(settings, self.backend, polls, deliveries, contracts)
        while True:
            try:
                answer = await gateway.submit_result(worker_id, result)
            except StoreUnavailable:
                continue
            return answer.status

    def _note_word_given(self, call: Call, answer: Answer) -> None:
        if answer.is_raised:
            return
        if call.name == "jobs.request_cancel":
            self.note(is_cancelled=True)
        is_result = call.name == "board.end_lease" and answer.value is ResultAnswer.APPLIED
        if is_result or call.name == "jobs.decide_approval":
            self.note(has_counted=True)

    # --- faults

    def _live(self, actor: str) -> None:
        self.store.liveness._alive[self.instance(actor)] = 1

    def _pause(self, actor: str) -> str:
        del self.store.liveness._alive[self.instance(actor)]
        self.note(faults=self.around.faults - 1)
        return f"{actor} stands still and is taken for dead"

    def _crash(self, actor: str) -> str:
        self.store.liveness._alive.pop(self.instance(actor), None)
        del self.activities[actor]
        generations = self.around.generations
        self.note(
            faults=self.around.faults - 1,
            generations={**generations, actor: generations.get(actor, 0) + 1},
        )
        if actor == "gateway":
            self.store.mailbox.forget(f"gateway.{generations.get(actor, 0)}")
            self.note(polls={}, position="0")
        self._live(actor)
        return f"{actor} crashes and is started again"

    def _cut(self, actor: str, *, arrived: bool) -> str:
        activity = self.activities[actor]
        call = self._resumed(actor, activity).next
        assert isinstance(call, Call)
        worker_id, task = call.arguments
        if arrived:
            finish(self._write_answer(worker_id, task))
        else:
            finish(self._end_poll(worker_id))
        answer = answered(self.clock.now(), value=False)
        self.activities[actor] = activity._replace(answers=(*activity.answers, answer))
        self.note(faults=self.around.faults - 1)
        return f"{actor}: the connection breaks {'after' if arrived else 'before'} the answer"

    # --- what must hold

    @staticmethod
    def _judge(judge: promises.Judge, answer: Answer, said: str) -> None:
        if answer.is_raised and isinstance(answer.value, AssertionError | LookupError | TypeError):
            raise Violation(f"{said}: {type(answer.value).__name__}: {answer.value}")
        if (broken := judge(answer)) is not None:
            raise Violation(f"{said}: {broken}")

    def check(self, before: State) -> None:
        promises.check(self.tables, before.around.ended)

    def check_end(self) -> None:
        if len(self.around.done) < len(self.scenario.clients):
            raise Violation("a client never gets its answer")
        promises.check_end(self.store, self.scenario.ends)
        promises.check_word(
            self.tables,
            is_cancelled=self.around.is_cancelled,
            has_counted=self.around.has_counted,
        )


def _described(worker_id: WorkerId) -> dict[str, Any]:
    return {"worker_id": worker_id, "supported_tasks": ["t"]}


def _offer(task: WaitingTask) -> str:
    return f"{task.offer_number}:{task.task_id}"


def _shown(value: Any) -> str:
    """Enough of an answer to follow a schedule."""
    match value:
        case None | bool() | str() | int():
            return str(value)
        case BaseException():
            return type(value).__name__
        case Stored(job=job):
            return f"{job.status} in {job.state!r}, version {value.fence.partition(':')[0]}"
        case [Delivery(), *_]:
            return ", ".join(f"{type(one.event).__name__} {one.entry_id[-4:]}" for one in value)
        case list() | tuple():
            return f"{len(value)}: {', '.join(map(_shown, value))}"
        case _:
            return type(value).__name__


_KEPT: Final = {
    "tables": frozenset(
        {
            "jobs", "ends", "idempotency", "made", "counts", "quarantined", "groups", "entries",
            "deferred", "dead", "partitions", "facts", "notifications", "_numbers",
        }
    ),
    "liveness": frozenset({"_alive"}),
    "workers": frozenset({"_incarnations", "_registrations", "gone"}),
    "mailbox": frozenset({"_boxes"}),
    "clock": frozenset({"time"}),
}  # fmt: skip
"""What changes in a store, by its parts."""
_NOT_SEEN: Final = {("tables", "_numbers")}
