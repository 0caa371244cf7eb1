"""What a handler sees of its job."""

from typing import Any, NamedTuple

import msgspec

from avtomatika_common.actions import ActionFactory


class ClientConfig(msgspec.Struct, frozen=True):
    """The client on whose behalf the job runs."""

    token: str
    """Empty: handlers never see a client's token. `internal-scheduler` for background jobs."""
    plan: str = "unknown"
    params: dict[str, Any] = {}

    @property
    def config(self) -> dict[str, Any]:
        """The same as `params`."""
        return self.params


class JobContext(NamedTuple):
    """Everything a handler may ask for, by these names or as a whole as `context`.

    In-place changes of `state_history` and `initial_data` are saved with the step.
    """

    job_id: str
    current_state: str
    initial_data: dict[str, Any]
    state_history: dict[str, Any]
    client: ClientConfig
    actions: ActionFactory
    data_stores: Any = None
    """Namespace of the blueprint's data stores."""
    tracing_context: dict[str, str] | None = None
    aggregation_results: dict[str, Any] | None = None
    """Task id -> result, when the state was entered from a fan-out; else None."""
    webhook_url: str | None = None
    task_files: Any = None
    """The job's files; None unless S3 is enabled."""
    last_error: dict[str, Any] | None = None
    """`{code, message, details, task_id, worker_id}` of the failure that led here."""
