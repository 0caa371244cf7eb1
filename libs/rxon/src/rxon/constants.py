"""The names both ends of the wire agree on: version, headers, paths, codes and statuses."""

from typing import Final

PROTOCOL_VERSION: Final = "1.0b2"
PROTOCOL_VERSION_HEADER: Final = "X-RXON-Version"

AUTH_HEADER_CLIENT: Final = "X-Client-Token"
AUTH_HEADER_WORKER: Final = "X-Worker-Token"
WORKER_ID_HEADER: Final = "X-Worker-ID"
"""Which worker sends a request whose path and body do not say it."""

# Paths stand under WORKER_API_PREFIX; `{worker_id}` is a placeholder for str.format and aiohttp.
WORKER_API_PREFIX: Final = "/_worker"
ENDPOINT_WORKER_REGISTER: Final = "/workers/register"
ENDPOINT_WORKER_HEARTBEAT: Final = "/workers/{worker_id}"
ENDPOINT_TASK_NEXT: Final = "/workers/{worker_id}/tasks/next"
ENDPOINT_TASK_RESULT: Final = "/tasks/result"
ENDPOINT_TASK_RESULTS: Final = "/tasks/results"
ENDPOINT_TASK_PROGRESS: Final = "/tasks/progress"
ENDPOINT_WORKER_EVENTS: Final = "/events"
STS_TOKEN_ENDPOINT: Final = "/auth/token"  # noqa: S105 - a path
WS_ENDPOINT: Final = "/ws"

ERROR_CODE_TRANSIENT: Final = "TRANSIENT_ERROR"
ERROR_CODE_PERMANENT: Final = "PERMANENT_ERROR"
ERROR_CODE_INVALID_INPUT: Final = "INVALID_INPUT_ERROR"
ERROR_CODE_INTEGRITY_MISMATCH: Final = "INTEGRITY_MISMATCH_ERROR"
ERROR_CODE_TIMEOUT: Final = "TIMEOUT_ERROR"
ERROR_CODE_RESOURCE_EXHAUSTED: Final = "RESOURCE_EXHAUSTED_ERROR"
ERROR_CODE_DEPENDENCY: Final = "DEPENDENCY_ERROR"
ERROR_CODE_SECURITY: Final = "SECURITY_ERROR"
ERROR_CODE_INTERNAL: Final = "INTERNAL_ERROR"
ERROR_CODE_CONTRACT_VIOLATION: Final = "CONTRACT_VIOLATION_ERROR"

# Any other string is a legal status of a task too: one the blueprint made up.
TASK_STATUS_SUCCESS: Final = "success"
TASK_STATUS_FAILURE: Final = "failure"
TASK_STATUS_CANCELLED: Final = "cancelled"

JOB_STATUS_PENDING: Final = "pending"
JOB_STATUS_WAITING_FOR_WORKER: Final = "waiting_for_worker"
JOB_STATUS_RUNNING: Final = "running"
JOB_STATUS_FINISHED: Final = "finished"
JOB_STATUS_FAILED: Final = "failed"
JOB_STATUS_ERROR: Final = "error"
JOB_STATUS_QUARANTINED: Final = "quarantined"
JOB_STATUS_CANCELLED: Final = "cancelled"
JOB_STATUS_WAITING_FOR_HUMAN: Final = "waiting_for_human"
JOB_STATUS_WAITING_FOR_PARALLEL: Final = "waiting_for_parallel_tasks"

COMMAND_CANCEL_TASK: Final = "cancel_task"
MSG_TYPE_PROGRESS: Final = "progress_update"
