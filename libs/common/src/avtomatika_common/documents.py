"""The public form of a job: the document that answers, webhooks, history and callbacks show."""

from datetime import UTC, datetime
from typing import Any, assert_never

from msgspec.structs import asdict

from avtomatika_common.backend.ports import JobView
from avtomatika_core.job import (
    ApprovalWait,
    BranchesWait,
    ChildWait,
    Client,
    HandlerRetryWait,
    Job,
    SignalWait,
    SleepWait,
    TaskRetryWait,
    TaskWait,
    Wait,
)


def client_config(client: Client) -> dict[str, Any]:
    if client.token:
        return {"token": client.token, "plan": client.plan, "params": client.params}
    return {"name": client.name, "plan": client.plan, "params": client.params}


def base_document(job: Job) -> dict[str, Any]:
    """What the job itself says, without what lies beside it."""
    head, origin = job.head, job.origin
    document: dict[str, Any] = {
        "id": job.id,
        "blueprint_name": origin.blueprint,
        "current_state": head.state,
        "initial_data": job.initial_data,
        "state_history": job.data.state_history,
        "status": head.status.value,
        "tracing_context": origin.tracing_context,
        "client_config": client_config(origin.client),
        "webhook_url": origin.webhook_url,
        "created_at": origin.created_at,
        "updated_at": head.updated_at,
        "retry_count": head.retry_count,
        "task_retry_count": head.task_retry_count,
        "transition_count": head.transition_count,
        "error_message": head.error_message,
        "last_error": None if head.last_error is None else asdict(head.last_error),
        "data_metadata": job.data_metadata,
        "finished_at": head.finished_at,
    }
    if origin.metadata:
        document["metadata"] = origin.metadata
    if origin.parent is not None:
        document["parent_job_id"] = origin.parent.job_id
    if origin.dispatch_timeout is not None:
        document["dispatch_timeout"] = origin.dispatch_timeout
    if origin.result_timeout is not None:
        document["result_timeout"] = origin.result_timeout
    if origin.timeout_seconds is not None:
        document["timeout_seconds"] = origin.timeout_seconds
    return document | _wait_part(head.wait)


def _wait_part(wait: Wait | None) -> dict[str, Any]:
    """What a document says of that which its job waits for."""
    match wait:
        case TaskWait():
            return {
                "current_task_id": wait.task_id,
                "current_task_info": wait.request.described(),
                "current_task_transitions": wait.request.transitions,
                "task_dispatched_at": wait.dispatched_at,
                "dispatch_deadline": wait.dispatch_deadline,
            }
        case TaskRetryWait():
            return {
                "current_task_info": wait.request.described(),
                "current_task_transitions": wait.request.transitions,
            }
        case BranchesWait():
            return {"aggregation_target": wait.aggregate_into}
        case ChildWait():
            return {"child_job_id": wait.child_id}
        case ApprovalWait():
            approval = {
                "integration": wait.integration,
                "message": wait.message,
                "decisions": wait.decisions,
                "requested_at": wait.requested_at,
                "deadline": wait.deadline,
            }
            return {"approval": approval}
        case SleepWait():
            return {"wake_at": wait.due}
        case SignalWait():
            signal = {
                "name": wait.name,
                "requested_at": wait.requested_at,
                "deadline": wait.deadline,
            }
            return {"signal": signal}
        case HandlerRetryWait() | None:
            return {}
        case _:
            assert_never(wait)


def job_document(view: JobView) -> dict[str, Any]:
    """The whole document of a job: JSON values, times in Unix seconds, no secrets."""
    document = base_document(view.job)
    if view.task is not None:
        document |= {
            "task_worker_id": view.task.worker_id,
            "task_picked_up_at": view.task.picked_up_at,
            "result_deadline": view.task.result_deadline,
        }
        if view.task.waiting_reason and view.task.worker_id is None:
            document["waiting_reason"] = view.task.waiting_reason
    if isinstance(view.job.head.wait, BranchesWait):
        document["active_branches"] = list(view.branches)
    if view.results:
        document["aggregation_results"] = {
            task_id: outcome.result for task_id, outcome in view.results.items()
        }
    if view.progress:
        last = view.progress[-1]
        document |= {"progress": last.progress, "progress_message": last.message}
        document["state_history"] = {
            **view.job.data.state_history,
            "progress_updates": [
                {
                    "progress": p.progress,
                    "message": p.message,
                    "timestamp": datetime.fromtimestamp(p.at, UTC).isoformat(),
                    "task_id": p.task_id,
                }
                for p in view.progress
            ],
        }
    return document
