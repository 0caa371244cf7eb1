"""Rows of the archive, made of facts: one fact of a step says what several rows tell."""

from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID, uuid5

from avtomatika_common import codec
from avtomatika_common.records import Fact
from avtomatika_core.commands import RecordFact

_NAMESPACE: Final = UUID("5f0c1f0e-8a8a-5d4b-9e57-0c6c6f1f7a10")

Row = tuple[object, ...]
"""Values of `history.COLUMNS`, then the place among rows of the same job and time."""

_STEP_ROWS: Final = {
    "transition": "state_finished",
    "end": "state_finished",
    "failure": "state_finished",
    "task": "task_dispatched",
    "blueprint": "sub_blueprint_started",
    "approval": "approval_requested",
    "sleep": "state_finished",
    "signal": "state_finished",
}


def rows_of(fact: Fact) -> Iterator[Row]:
    """The contract's rows of one fact, in order. A repeat gives the same rows with the same ids."""
    happened = fact.fact
    number = 0

    def row(event_type: str, **columns: Any) -> Row:
        nonlocal number
        number += 1
        extra: dict[str, Any] = columns.pop("extra", None) or {}
        snapshot = codec.json_bytes({**fact.snapshot, **extra}).decode()
        return (
            str(uuid5(_NAMESPACE, f"{fact.id}/{number}")),
            fact.job_id,
            columns.get("at", happened.at),
            columns.get("state", happened.state),
            event_type,
            columns.get("duration_ms"),
            columns.get("previous_state"),
            columns.get("next_state"),
            happened.worker_id,
            columns.get("attempt_number"),
            snapshot if columns.get("with_snapshot", True) else None,
            fact.client_name,
            fact.order * 1000 + number,
        )

    duration_ms = _duration_ms(happened)
    details = happened.details or {}
    match happened.kind:
        case "step":
            yield row(
                "state_started",
                at=happened.started_at or happened.at,
                attempt_number=happened.attempt,
                with_snapshot=False,
            )
            if happened.followed_by == "parallel":
                for task in details.get("tasks", ()):
                    yield row("task_dispatched", extra={"task_info": task})
                return
            yield row(
                _STEP_ROWS[happened.followed_by or "end"],
                previous_state=happened.state,
                next_state=happened.next_state,
                duration_ms=duration_ms,
                extra=details,
            )
        case "step_failed":
            yield row(
                "state_started",
                at=happened.started_at or happened.at,
                attempt_number=happened.attempt,
                with_snapshot=False,
            )
            yield row(
                "state_failed",
                attempt_number=happened.attempt,
                duration_ms=duration_ms,
                extra=details,
            )
        case _:
            yield row(
                happened.kind,
                attempt_number=happened.attempt,
                next_state=happened.next_state,
                duration_ms=duration_ms,
                extra=details,
            )


def _duration_ms(happened: RecordFact) -> int | None:
    if happened.started_at is None:
        return None
    return max(0, round((happened.at - happened.started_at) * 1000))
