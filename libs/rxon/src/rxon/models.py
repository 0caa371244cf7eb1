"""The messages of the wire. Empty fields are sent as `null`; unknown keys are ignored.

Times are in seconds, sizes in bytes. A field that is `UNSET` is left out of the message: its
sender says nothing about it, which is not the same as saying that it is empty.
"""

from collections.abc import Mapping

from msgspec import UNSET, Struct, UnsetType, field


class GPUInfo(Struct, frozen=True, kw_only=True):
    model: str = ""
    vram_gb: int = 0


class InstalledModel(Struct, frozen=True, kw_only=True):
    name: str
    version: str = ""


class FileMetadata(Struct, frozen=True, kw_only=True):
    uri: str
    size: int
    etag: str | None = None


class Resources(Struct, frozen=True, kw_only=True):
    max_concurrent_tasks: int | None = None
    """Tasks the worker may hold at once; None: it did not say."""
    cpu_cores: int | None = None
    gpu_info: GPUInfo | None = None


class Skill(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The contract of one type of task; schemas are JSON Schema."""

    name: str
    version: str | None = None
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, object] | None = None
    """Of the task's `params`."""
    output_schema: dict[str, object] | None = None
    """Of the `data` of a result that is no failure."""
    events_schema: dict[str, dict[str, object]] | None = None
    """Event type -> schema of its `payload`."""
    output_statuses: tuple[str, ...] | None = None
    """What a result's status may be, beside `failure` and `cancelled`."""


class WorkerCapabilities(Struct, frozen=True, kw_only=True):
    hostname: str = ""
    ip_address: str = ""
    cost_per_skill: dict[str, float] = field(default_factory=dict[str, float])
    s3_config_hash: str | None = None
    extra: dict[str, object] | None = None


class WorkerRegistration(Struct, frozen=True, kw_only=True):
    """What a worker says of itself when it comes; only `worker_id` must be there."""

    worker_id: str
    worker_type: str = ""
    supported_tasks: tuple[str, ...] = ()
    resources: Resources = Resources()
    installed_software: Mapping[str, object] = field(default_factory=dict[str, object])
    installed_models: tuple[InstalledModel, ...] = ()
    capabilities: WorkerCapabilities = WorkerCapabilities()
    cost_per_second: float | UnsetType = UNSET
    supported_skills: tuple[Skill, ...] | UnsetType = UNSET
    """Contracts of supported tasks; a bare name is a contract that asks for nothing."""


class WorkerDocument(WorkerRegistration, frozen=True, kw_only=True):
    """The keys the orchestrator reads of a stored worker: registration and heartbeats merged."""

    status: str = "idle"
    load: float = 0.0
    current_tasks: tuple[str, ...] = ()
    hot_cache: tuple[str, ...] = ()
    hot_skills: tuple[str, ...] = ()
    skill_dependencies: dict[str, tuple[str, ...]] = field(
        default_factory=dict[str, tuple[str, ...]]
    )
    cost: float | UnsetType = UNSET
    reputation: float = 1.0


class Heartbeat(Struct, frozen=True, kw_only=True):
    """A worker's news. The SDK sends every field; from others, what is UNSET stays as it was."""

    worker_id: str
    status: str | UnsetType = UNSET
    load: float | UnsetType = UNSET
    current_tasks: tuple[str, ...] | UnsetType = UNSET
    supported_tasks: tuple[str, ...] | UnsetType = UNSET
    hot_cache: tuple[str, ...] | UnsetType = UNSET
    skill_dependencies: dict[str, tuple[str, ...]] | UnsetType | None = UNSET
    hot_skills: tuple[str, ...] | UnsetType | None = UNSET


class HeartbeatAnswer(Struct, frozen=True, kw_only=True):
    """The part of a heartbeat's answer that a worker acts on."""

    cancel_task_ids: tuple[str, ...] = ()


class TaskPayload(Struct, frozen=True, kw_only=True):
    """A task on its way to a worker."""

    job_id: str
    task_id: str
    type: str
    params: dict[str, object] = field(default_factory=dict[str, object])
    tracing_context: dict[str, str] = field(default_factory=dict[str, str])
    params_metadata: dict[str, FileMetadata] | None = None


class Task(TaskPayload, frozen=True, kw_only=True):
    """A task as a poll for several gets it."""

    attempt: int = 1
    """From 1."""
    deadline: float | None = None
    """When its result timeout is over, Unix seconds; None: the orchestrator did not say."""
    checkpoint: dict[str, object] | None = None
    """What the last attempt left with its progress."""


class TaskBatch(Struct, frozen=True, kw_only=True):
    """The answer to a poll for several tasks: at least one."""

    tasks: tuple[Task, ...]


class TaskError(Struct, frozen=True, kw_only=True):
    code: str
    message: str
    details: object = None


class TaskResult(Struct, frozen=True, kw_only=True):
    """What became of a task. `data` is an object or null; any JSON is carried."""

    job_id: str
    task_id: str
    worker_id: str
    status: str
    data: object = None
    error: TaskError | None = None
    data_metadata: dict[str, FileMetadata] | None = None


class ResultAnswer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`status` is `ok`, or `ignored` with a `reason`: then the result changed nothing."""

    status: str
    reason: str | None = None
    message: str | None = None


class BatchedResultAnswer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to one result of several: a `ResultAnswer`, or the error a request of its own
    would have got, and then no status."""

    status: str | None = None
    reason: str | None = None
    message: str | None = None
    error: str | None = None


class ResultBatch(Struct, frozen=True, kw_only=True):
    """Several results in one request."""

    results: tuple[TaskResult, ...]
    max: int | UnsetType = UNSET
    """How many tasks may come with the answer; unset: none."""


class ResultBatchAnswer(Struct, frozen=True, kw_only=True):
    """One answer per result, in order, and the tasks that were ready."""

    answers: tuple[BatchedResultAnswer, ...]
    tasks: tuple[Task, ...] = ()


class ProgressUpdatePayload(Struct, frozen=True, kw_only=True):
    """`progress` runs from 0 to 1."""

    task_id: str
    job_id: str
    progress: float = 0.0
    message: str | None = None
    event: str = "progress_update"
    checkpoint: dict[str, object] | UnsetType = UNSET
    """Handed to the task's next attempt, should there be one; the last one counts."""


class ProgressAnswer(ResultAnswer, frozen=True, kw_only=True, omit_defaults=True):
    """As for a result, and the tasks the worker should stop."""

    cancel_task_ids: tuple[str, ...] = ()


class WorkerEvent(Struct, frozen=True, kw_only=True):
    """Something that happened while a worker did a task, told before its result."""

    event_id: str
    """The same for every repeat of one event."""
    worker_id: str
    origin_worker_id: str
    event_type: str
    payload: dict[str, object] = field(default_factory=dict[str, object])
    origin_task_id: str | None = None
    bubbling_chain: tuple[str, ...] | None = None
    target_job_id: str | None = None
    target_task_id: str | None = None
    trace_context: dict[str, str] | None = None
    priority: float | None = None
    timestamp: float | None = None
    metadata: dict[str, object] | None = None


class EventAnswer(Struct, frozen=True, kw_only=True):
    status: str = "event_accepted"


class WorkerCommand(Struct, frozen=True, kw_only=True):
    command: str
    task_id: str | None = None
    job_id: str | None = None
    params: dict[str, object] | None = None


class TokenResponse(Struct, frozen=True, kw_only=True):
    access_token: str
    expires_in: float
    worker_id: str
