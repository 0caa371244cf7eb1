"""Jobs in Redis: created, loaded, committed. One round trip each."""

import math
from collections.abc import Collection, Sequence
from typing import Final, cast

import msgspec
from typing_extensions import TypeIs

from avtomatika_common import codec, ids
from avtomatika_common.backend.ports import (
    ApprovalNotOpen,
    Created,
    Delivery,
    IdempotencyKey,
    IdempotencyKeyReused,
    JobIsTerminal,
    JobNotFound,
    JobStore,
    JobView,
    LostClaim,
    OpenTask,
    Progress,
    StaleJob,
    Stored,
    StoreFull,
    StoreOptions,
    TooManySignals,
    UnreadableJob,
    too_many_new_jobs,
)
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.connection import Argument
from avtomatika_common.backend.redis.scripts import script
from avtomatika_common.backend.salvage import salvaged_job
from avtomatika_common.backend.shapes import shape_of
from avtomatika_common.clock import Clock
from avtomatika_common.records import pack_fact, pack_notification, version_of
from avtomatika_core.commands import (
    CancelChild,
    ClearDeadline,
    ClearTimer,
    CloseBranches,
    CloseTask,
    Command,
    CreateChild,
    NextAttempt,
    Notify,
    OfferTask,
    RecordFact,
    ResumeParent,
    SetTimer,
    StartBranches,
    Step,
)
from avtomatika_core.events import (
    ApprovalDecided,
    BranchesDone,
    CancelRequested,
    JobCreated,
    SignalReceived,
)
from avtomatika_core.job import (
    ApprovalWait,
    Branch,
    BranchResult,
    Job,
    JobId,
    JobStatus,
    Origin,
    TaskId,
    TaskWait,
    WorkerId,
    is_beside,
)
from avtomatika_core.redrive import Redriven
from avtomatika_core.signals import MOST_WAITING

_CREATE: Final = script("create_job")
_COMMIT: Final = script("commit")
_CANCEL: Final = script("request_cancel")
_DECIDE: Final = script("decide_approval")
_SETTLE: Final = script("settle_branch")
_SIGNAL: Final = script("send_signal")
_RESERVE_KEY: Final = script("reserve_key")
_REDRIVE: Final = script("redrive_job")

_STAGE: Final = script("stage_branches")
_BRANCHES_AT_ONCE: Final = 256
_IDS_AT_ONCE: Final = 512
_STAGED_SECONDS: Final = 3600
_REMEMBERED_SECONDS: Final = 7 * 86_400
_CALLS_KNOWN: Final = 2 * MOST_WAITING
"""Of those that sent a job a signal: a repeat of one of them sends nothing more."""
_MODE_OF: Final = {True: "keep", False: "answer"}
_unpack_progress: Final = msgspec.msgpack.Decoder(Progress).decode


def new_fence(version: int, nonce: str) -> str:
    return f"{version}:{nonce}"


def next_fence(stored: Stored) -> str:
    """What the commit of `stored` writes. The nonce was drawn when it was read: a repeat is the same."""
    return new_fence(version_of(stored.fence) + 1, stored.next_nonce)


def milliseconds(seconds: float | None) -> int | str:
    """Rounded up: no timer fires early."""
    return "" if seconds is None else math.ceil(seconds * 1000)


def _is_staged(command: Command) -> TypeIs[StartBranches]:
    """Whether it opens a fan-out that is laid beside its job first."""
    return isinstance(command, StartBranches) and len(command.branches) > _BRANCHES_AT_ONCE


class RedisJobs(JobStore):
    def __init__(self, commands: Commands, clock: Clock, options: StoreOptions) -> None:
        self._commands = commands
        self._now = clock.now
        self._options = options
        self._prefixes = [keys.partition(number) for number in range(options.partitions)]

    def _p(self, job_id: str) -> str:
        return self._prefixes[ids.partition_of(job_id, len(self._prefixes))]

    async def create(
        self, job: Job, *, idempotency: IdempotencyKey | None = None, once: bool = False
    ) -> Created:
        p = self._p(job.id)
        fence = new_fence(0, ids.new_nonce())
        fact = self._created_fact(job, fence)
        timeout = job.origin.timeout_seconds
        deadline = None if timeout is None else job.origin.created_at + timeout
        answer, job_id = cast(
            "list[bytes]",
            await self._commands.script(
                _CREATE,
                [keys.job(p, job.id)],
                [
                    p, job.id, fence, codec.pack(job.origin), codec.pack(job.head),
                    job.origin.group, job.origin.client.name or "",
                    codec.pack(JobCreated(at=job.origin.created_at)),
                    fact, *self._idempotency(p, idempotency), codec.pack_data(job.data),
                    "1" if once else "", milliseconds(deadline),
                    self._options.most_new_jobs,
                ],
                outward=True,
            ),
        )  # fmt: skip
        if answer == b"REUSED":
            raise IdempotencyKeyReused
        if answer == b"FULL":
            raise StoreFull(too_many_new_jobs(job.origin.group))
        return Created(job_id=JobId(job_id.decode()), is_repeat=answer == b"AGAIN")

    def _idempotency(self, p: str, given: IdempotencyKey | None) -> tuple[Argument, ...]:
        """Key, fingerprint, lifetime (s), as the scripts take them."""
        if given is None:
            return "", "", self._known_seconds
        key = keys.idempotency(p, given.client, given.key)
        return key, given.fingerprint, self._known_seconds

    @property
    def _known_seconds(self) -> int:
        return max(_REMEMBERED_SECONDS, int(self._options.retention_seconds))

    def _created_fact(self, job: Job, fence: str) -> bytes:
        if not self._options.keep_facts:
            return b""
        created = RecordFact(kind="job_created", at=job.origin.created_at, state=job.state)
        return pack_fact(job, created, fence, 0)

    async def load(self, job_id: JobId) -> Stored | None:
        packed = cast(
            "list[bytes | None]",
            await self._commands.command(
                "HMGET", keys.job(self._p(job_id), job_id),
                "fence", "input", "head", "data", "run", "cancel", "claim", "tries",
                "status", "group", "owner", "signals", "wait",
            ),
        )  # fmt: skip
        fence, origin, head, data, run, cancel, claim, tries, *parts = packed
        status, group, owner, signals, wait = parts
        if fence is None or origin is None or head is None or data is None:
            return None
        unreadable: msgspec.MsgspecError | None = None
        try:
            job = Job(
                id=job_id,
                origin=codec.unpack_origin(origin),
                head=codec.unpack_head(head),
                data=codec.unpack_data(data),
                run=int(run or 0),
                cancelled=cancel == b"1",
                signals=codec.unpack_signals(signals),
            )
        except msgspec.MsgspecError as error:
            unreadable = error
            job = salvaged_job(
                job_id, origin, head, data,
                status=(status or b"").decode(), group=(group or b"").decode(),
                owner=(owner or b"").decode() or None, run=int(run or 0),
                task_id=(wait or b"").decode().removeprefix("t:"), now=self._now(),
            )  # fmt: skip
        stored = Stored(
            job=job,
            fence=fence.decode(),
            next_nonce=ids.new_nonce(),
            packed_data=data,
            claim=claim.decode() if claim else None,
            tries=int(tries or 0),
            is_salvaged=unreadable is not None,
        )
        if unreadable is not None:
            raise UnreadableJob(stored, str(unreadable)) from unreadable
        return stored

    async def commit(
        self,
        stored: Stored,
        step: Step,
        delivery: Delivery,
        *,
        packed_data: bytes | None = None,
        requeue: bool = False,
        set_aside: str | None = None,
    ) -> Stored:
        job, head = step.job, step.job.head
        p = self._p(job.id)
        fence = next_fence(stored)
        unchanged = job.data is stored.job.data and not stored.is_salvaged
        if unchanged:
            packed_data = stored.packed_data
        elif packed_data is None:
            packed_data = codec.pack_data(job.data)
        runs_on = head.status is JobStatus.RUNNING
        mode = "requeue" if runs_on and requeue else _MODE_OF[runs_on]
        if set_aside is not None:
            assert not runs_on, "the claim of a running job is not set aside"
            mode = "dead"
        if is_beside(stored.job, job):
            mode = "beside"
        # A step before it leaves the job running: it has none.
        staged = next((command for command in step.commands if _is_staged(command)), None)
        if staged is not None:
            await self._stage(job, staged, stored.next_nonce)
        arguments: list[Argument] = [
            p, job.id, stored.fence, fence,
            keys.lane(p, delivery.lane, delivery.group), delivery.consumer, delivery.entry_id,
            mode, head.status, job.run, _open_wait(job), codec.pack(head),
            b"" if unchanged else packed_data,
        ]  # fmt: skip
        if mode == "requeue":
            arguments.append(_CONTINUE)
        if set_aside is not None:
            arguments.append(set_aside)
        if staged is not None:
            arguments += ("fan_out_staged", stored.next_nonce, len(staged.branches))
        if stored.is_salvaged:
            arguments += ("input", codec.pack(job.origin))
        index = 0
        for one in step.in_order:
            if one.commands:
                self._add_effects(arguments, one.job, one.commands, fence, index)
                index += len(one.commands)
        if job.signals is not stored.job.signals:
            arguments += ("signals", codec.pack(job.signals), job.signals.taken)
        if job.is_terminal:
            self._add_end(arguments, job)
        answer = cast(
            "bytes", await self._commands.script(_COMMIT, [keys.job(p, job.id)], arguments)
        )
        if answer == b"LOST":
            raise LostClaim
        if answer == b"STALE":
            raise StaleJob
        claim = delivery.entry_id if mode == "keep" else None
        if mode == "requeue":
            claim = answer.decode()
        elif mode == "beside":
            claim = stored.claim
        return Stored(
            job=job,
            fence=fence,
            next_nonce=ids.new_nonce(),
            packed_data=packed_data,
            claim=claim,
        )

    def _add_end(self, arguments: list[Argument], job: Job) -> None:
        if job.status is JobStatus.QUARANTINED:
            arguments += ("quarantine", int(job.head.updated_at * 1000))
        arguments += ("finish", int(self._options.retention_seconds), self._known_seconds)

    def _add_effects(
        self,
        arguments: list[Argument],
        job: Job,
        commands: Sequence[Command],
        fence: str,
        first: int,
    ) -> None:
        """`first`: place of the first command within the commit."""
        nonce = fence.partition(":")[2]
        for index, command in enumerate(commands, first):
            match command:
                case RecordFact():
                    if self._options.keep_facts:
                        arguments += ("fact", pack_fact(job, command, fence, index))
                case Notify():
                    packed = pack_notification(job, command, fence, index)
                    if packed is not None:
                        arguments += ("notify", packed)
                case OfferTask():
                    arguments += ("offer", command.task_id, *_offer(command, job.id))
                case StartBranches() if _is_staged(command):
                    pass  # it comes first of all
                case StartBranches():
                    arguments += ("fan_out", len(command.branches))
                    for offer, branch in zip(command.offers, command.branches, strict=True):
                        arguments += ("branch", offer.task_id, codec.pack(branch))
                        arguments += ("offer", offer.task_id, *_offer(offer, job.id))
                case SetTimer():
                    arguments += ("timer", command.token, milliseconds(command.due))
                case ClearTimer():
                    arguments += ("untimer", command.token)
                case ClearDeadline():
                    arguments.append("undeadline")
                case CloseTask():
                    arguments += ("close", command.task_id)
                case CloseBranches():
                    arguments.append("close_branches")
                case CreateChild():
                    self._add_child(arguments, command.child, fence)
                case CancelChild():
                    event = CancelRequested(at=job.head.updated_at, reason="Parent job ended.")
                    arguments += ("cancel_child", command.child_id, nonce, codec.pack(event))
                case ResumeParent():
                    parent = command.parent
                    arguments += ("parent", parent.job_id, codec.pack(command.event))

    async def _stage(self, job: Job, fan_out: StartBranches, nonce: str) -> None:
        """Lay the branches of a large fan-out beside the job, a chunk at a time."""
        key = keys.job(self._p(job.id), job.id)
        pairs = list(zip(fan_out.offers, fan_out.branches, strict=True))
        for first in range(0, len(pairs), _BRANCHES_AT_ONCE):
            arguments: list[Argument] = [nonce, "" if first else "1", _STAGED_SECONDS]
            for offer, branch in pairs[first : first + _BRANCHES_AT_ONCE]:
                arguments += (offer.task_id, codec.pack(branch), *_offer(offer, job.id))
            await self._commands.script(_STAGE, [key], arguments)

    def _add_child(self, arguments: list[Argument], child: Job, fence: str) -> None:
        first = new_fence(0, fence)
        event = JobCreated(at=child.origin.created_at)
        arguments += (
            "child", child.id, first, codec.pack(child.origin), codec.pack(child.head),
            codec.pack_data(child.data), child.origin.group, codec.pack(event),
            self._created_fact(child, first),
        )  # fmt: skip

    async def branch_results(self, job_id: JobId) -> dict[TaskId, BranchResult]:
        key = f"{keys.job(self._p(job_id), job_id)}:res"
        flat = cast("list[bytes]", await self._commands.command("HGETALL", key))
        return _in_order(flat)

    async def branch(self, job_id: JobId, task_id: TaskId) -> Branch | None:
        key = f"{keys.job(self._p(job_id), job_id)}:br"
        packed = cast("bytes | None", await self._commands.command("HGET", key, task_id))
        return None if packed is None else codec.unpack_branch(packed)

    async def origin(self, job_id: JobId) -> tuple[Origin, int] | None:
        key = keys.job(self._p(job_id), job_id)
        packed, fence = cast(
            "tuple[bytes | None, bytes | None]",
            await self._commands.command("HMGET", key, "input", "fence"),
        )
        if packed is None or fence is None:
            return None
        return codec.unpack_origin(packed), version_of(fence.decode())

    async def settle_branch(
        self,
        delivery: Delivery,
        task_id: TaskId,
        outcome: BranchResult | NextAttempt,
        *,
        token: str,
        fact: bytes | None = None,
    ) -> None:
        p = self._p(delivery.job_id)
        kept = fact if fact is not None and self._options.keep_facts else b""
        arguments: list[Argument] = [
            p, delivery.job_id, keys.lane(p, delivery.lane, delivery.group),
            delivery.consumer, delivery.entry_id, task_id, kept,
        ]  # fmt: skip
        match outcome:
            case BranchResult():
                at = 0.0 if delivery.event is None else delivery.event.at
                done = BranchesDone(at=at, token=token)
                arguments += ("result", codec.pack(outcome), codec.pack(done))
            case NextAttempt(branch=branch, task_id=next_id, offer=offer) if offer is not None:
                arguments += ("offer", codec.pack(branch), next_id, *_offer(offer, delivery.job_id))
            case NextAttempt(branch=branch, task_id=next_id, due=due):
                assert due is not None
                arguments += ("retry", codec.pack(branch), next_id, milliseconds(due))
        answer = await self._commands.script(_SETTLE, [keys.job(p, delivery.job_id)], arguments)
        if answer == b"LOST":
            raise LostClaim

    async def view(self, job_id: JobId) -> JobView | None:
        try:
            stored = await self.load(job_id)
        except UnreadableJob as error:
            stored = error.salvaged
        if stored is None:
            return None
        p = self._p(job_id)
        key = keys.job(p, job_id)
        results = self._commands.command("HGETALL", f"{key}:res")
        branches = self._commands.command("HGETALL", f"{key}:br")
        progress = self._commands.command("LRANGE", f"{key}:prog", 0, -1)
        wait = stored.job.head.wait
        task = None
        if isinstance(wait, TaskWait):
            task = await self._open_task(p, wait)
        open_branches = cast("list[bytes]", await branches)
        numbered = sorted(
            (codec.unpack_branch(packed).index, TaskId(task_id.decode()))
            for task_id, packed in zip(open_branches[::2], open_branches[1::2], strict=True)
        )
        return JobView(
            job=stored.job,
            task=task,
            branches=[task_id for _, task_id in numbered],
            results=_in_order(cast("list[bytes]", await results)),
            progress=[_unpack_progress(entry) for entry in cast("list[bytes]", await progress)],
        )

    async def _open_task(self, p: str, wait: TaskWait) -> OpenTask:
        worker, leased_at, result_ms, reason = cast(
            "list[bytes | None]",
            await self._commands.command(
                "HMGET", keys.task(p, wait.task_id), "worker", "leased_at", "result_ms", "reason"
            ),
        )
        picked_up_at = int(leased_at) / 1000 if leased_at else None
        return OpenTask(
            task_id=wait.task_id,
            worker_id=WorkerId(worker.decode()) if worker else None,
            picked_up_at=picked_up_at,
            result_deadline=(
                picked_up_at + int(result_ms) / 1000 if picked_up_at and result_ms else None
            ),
            waiting_reason=reason.decode() if reason else None,
        )

    async def is_wanted(self, job_id: JobId, run: int) -> bool:
        now, cancel = cast(
            "list[bytes | None]",
            await self._commands.command(
                "HMGET", keys.job(self._p(job_id), job_id), "run", "cancel"
            ),
        )
        return now is not None and int(now) == run and cancel != b"1"

    async def request_cancel(
        self, job_id: JobId, event: CancelRequested
    ) -> list[tuple[WorkerId, TaskId]]:
        p = self._p(job_id)
        answer, *held = cast(
            "list[bytes]",
            await self._commands.script(
                _CANCEL,
                [keys.job(p, job_id)],
                [p, job_id, ids.new_nonce(), codec.pack(event)],
                outward=True,
            ),
        )
        if answer == b"NONE":
            raise JobNotFound
        if answer == b"TERMINAL":
            raise JobIsTerminal(held[0].decode())
        words = [word.decode() for word in held]
        return [
            (WorkerId(worker_id), TaskId(task_id))
            for worker_id, task_id in zip(words[::2], words[1::2], strict=True)
        ]

    async def decide_approval(self, job_id: JobId, *, token: str, decision: str, at: float) -> None:
        p = self._p(job_id)
        event = ApprovalDecided(at=at, token=token, decision=decision)
        answer = await self._commands.script(
            _DECIDE,
            [keys.job(p, job_id)],
            [p, job_id, token, codec.pack(event), ids.new_nonce()],
            outward=True,
        )
        if answer == b"NONE":
            raise JobNotFound
        if answer == b"CLOSED":
            raise ApprovalNotOpen

    async def send_signal(
        self,
        job_id: JobId,
        signal: SignalReceived,
        *,
        idempotency: IdempotencyKey | None = None,
    ) -> None:
        p = self._p(job_id)
        if idempotency is not None:
            await self._reserve(p, job_id, idempotency)
        answer = cast(
            "bytes",
            await self._commands.script(
                _SIGNAL,
                [keys.job(p, job_id)],
                [
                    p, job_id, codec.pack(signal), ids.new_nonce(), MOST_WAITING, _CALLS_KNOWN,
                    *self._idempotency(p, idempotency),
                ],
                outward=True,
            ),
        )  # fmt: skip
        match answer:
            case b"OK":
                return
            case b"NONE":
                raise JobNotFound
            case b"REUSED":
                raise IdempotencyKeyReused
            case b"FULL":
                raise TooManySignals
            case _:
                raise JobIsTerminal(answer.decode())

    async def _reserve(self, p: str, job_id: JobId, key: IdempotencyKey) -> None:
        """Where the key is known to whoever makes a job, if that is another partition than `p`.

        It comes first: whoever dies in between repeats the signal with the same key.
        """
        place = ids.partition_of_key(key.client, key.key, len(self._prefixes))
        if self._prefixes[place] == p:
            return
        name, *arguments = self._idempotency(self._prefixes[place], key)
        answer = await self._commands.script(
            _RESERVE_KEY, [name], [job_id, *arguments], outward=True
        )
        if answer == b"REUSED":
            raise IdempotencyKeyReused

    async def not_ended(self, job_ids: Collection[JobId]) -> set[JobId]:
        of: dict[str, list[JobId]] = {}
        for job_id in job_ids:
            of.setdefault(self._p(job_id), []).append(job_id)
        asked = [
            (few, self._commands.command("SMISMEMBER", f"{p}live", *few))
            for p, theirs in of.items()
            for first in range(0, len(theirs), _IDS_AT_ONCE)
            for few in [theirs[first : first + _IDS_AT_ONCE]]
        ]
        found: set[JobId] = set()
        for few, reply in asked:
            answers = cast("list[int]", await reply)
            found.update(job_id for job_id, live in zip(few, answers, strict=True) if live)
        return found

    async def redrive(self, stored: Stored, redriven: Redriven) -> None:
        job, fence = redriven.job, next_fence(stored)
        p = self._p(job.id)
        fact = b""
        if self._options.keep_facts:
            fact = pack_fact(job, redriven.fact, fence, 0)
        answer = await self._commands.script(
            _REDRIVE,
            [keys.job(p, job.id)],
            [
                p, job.id, stored.fence, fence, job.status, job.run, codec.pack(job.head),
                _CONTINUE, milliseconds(redriven.deadline), fact,
            ],
            outward=True,
        )  # fmt: skip
        if answer == b"NONE":
            raise JobNotFound
        if answer == b"STALE":
            raise StaleJob

    async def quarantined(self, owner: str | None = None) -> list[JobId]:
        found: list[tuple[float, JobId]] = []
        for number in range(self._options.partitions):
            p = keys.partition(number)
            flat = cast(
                "list[bytes]",
                await self._commands.command("ZREVRANGE", f"{p}quar", 0, -1, "WITHSCORES"),
            )
            members = [JobId(member.decode()) for member in flat[::2]]
            reads = [self._commands.command("HGET", keys.job(p, m), "owner") for m in members]
            for member, score, read in zip(members, flat[1::2], reads, strict=True):
                their = cast("bytes | None", await read)
                if their is None:  # its retention is over
                    await self._commands.command("ZREM", f"{p}quar", member)
                elif owner is None or their.decode() == owner:
                    found.append((-float(score), member))
        return [job_id for _, job_id in sorted(found)]

    async def forget_quarantined(self, job_id: JobId) -> bool:
        return bool(await self._commands.command("ZREM", f"{self._p(job_id)}quar", job_id))

    async def count_by_status(self, owner: str | None = None) -> dict[JobStatus, int]:
        totals = dict.fromkeys(JobStatus, 0)
        suffix = "" if owner is None else f"|{owner}"
        fields = [f"{status}{suffix}" for status in JobStatus]
        for number in range(self._options.partitions):
            counts = cast(
                "list[bytes | None]",
                await self._commands.command("HMGET", f"{keys.partition(number)}count", *fields),
            )
            for status, count in zip(JobStatus, counts, strict=True):
                totals[status] += int(count or 0)
        return {status: count for status, count in totals.items() if count}


_CONTINUE: Final = codec.pack({"event": "continue", "at": 0.0})


def _open_wait(job: Job) -> str:
    """Token of the wait that something outside may end: an approval, or a task with a worker."""
    match job.head.wait:
        case ApprovalWait(token=token):
            return token
        case TaskWait(task_id=task_id):
            return f"t:{task_id}"  # which no token is
        case _:
            return ""


def _offer(offer: OfferTask, job_id: JobId) -> tuple[Argument, ...]:
    """Arguments of the script's `offer` behind the task id."""
    payload = {
        "job_id": job_id,
        "task_id": offer.task_id,
        "type": offer.type,
        "params": offer.params,
        "tracing_context": offer.tracing_context,
        "params_metadata": offer.params_metadata,
        "attempt": offer.attempt,
    }
    meta = {
        "type": offer.type,
        "resource_requirements": offer.resource_requirements,
        "max_cost": offer.max_cost,
        "strategy": offer.strategy,
    }
    shape = shape_of(offer.type, offer.resource_requirements, offer.max_cost, offer.strategy)
    return (
        shape, codec.pack(meta), offer.type, offer.priority, codec.pack(payload),
        milliseconds(offer.dispatch_deadline), int(offer.result_timeout_seconds * 1000),
        milliseconds(offer.heartbeat_timeout_seconds),
        "1" if offer.is_branch else "",
        b"" if offer.checkpoint is None else codec.pack(offer.checkpoint),
    )  # fmt: skip


def _in_order(flat: list[bytes]) -> dict[TaskId, BranchResult]:
    results = [
        (TaskId(task_id.decode()), codec.unpack_branch_result(packed))
        for task_id, packed in zip(flat[::2], flat[1::2], strict=True)
    ]
    return dict(sorted(results, key=lambda entry: entry[1].index))
