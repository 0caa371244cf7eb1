"""What a handler tells of its task while it runs: progress, checkpoints and events."""

import asyncio
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from avtomatika_worker.in_hand import InHand
from rxon import ProgressUpdatePayload, RxonError, WorkerEvent

PROGRESS_SECONDS: Final = 10.0
"""How long a handler waits for its progress to be taken."""

log = logging.getLogger("avtomatika_worker")


class Reports:
    """The voice of one task."""

    def __init__(
        self,
        in_hand: InHand,
        worker_id: str,
        heard: Callable[[InHand, Sequence[str]], None],
    ) -> None:
        """`heard` is called for each progress, and for the ids of tasks its answer withdraws."""
        self._in_hand = in_hand
        self._worker_id = worker_id
        self._heard = heard

    async def send_progress(self, *given: Any, **named: Any) -> None:
        """`send_progress(progress, message="", checkpoint=None)`.

        It may also be called as `Worker.send_progress`, with task id and job id in front: they are
        those of the task in any case.
        """
        if given and isinstance(given[0], str):
            given = given[2:]
        named.pop("task_id", None)
        named.pop("job_id", None)
        await self._send_progress(*given, **named)

    async def _send_progress(
        self, progress: float, message: str = "", checkpoint: dict[str, object] | None = None
    ) -> None:
        task = self._in_hand.task
        self._in_hand.progress, self._in_hand.message = progress, message
        self._heard(self._in_hand, ())
        try:
            async with asyncio.timeout(PROGRESS_SECONDS):
                answer = await self._in_hand.link.send_progress(
                    ProgressUpdatePayload(
                        task_id=task.task_id,
                        job_id=task.job_id,
                        progress=progress,
                        message=message,
                        checkpoint=msgspec.UNSET if checkpoint is None else checkpoint,
                    )
                )
        except (RxonError, TimeoutError, TypeError, ValueError) as error:
            # Progress informs; that it could not be told is no reason to fail the task.
            log.warning(
                "progress not sent",
                extra={"task_id": task.task_id, "error": str(error) or type(error).__name__},
            )
        else:
            self._heard(self._in_hand, answer.cancel_task_ids)

    async def send_event(
        self, event_type: str, payload: Mapping[str, object] | None = None
    ) -> None:
        """Tell the job that something happened. Raises `RxonError` if it cannot be told."""
        task = self._in_hand.task
        await self._in_hand.link.send_event(
            WorkerEvent(
                event_id=str(uuid.uuid4()),  # noqa: TID251 - drawn once, kept for every repeat
                worker_id=self._worker_id,
                origin_worker_id=self._worker_id,
                event_type=event_type,
                payload=dict(payload or {}),
                origin_task_id=task.task_id,
                target_job_id=task.job_id,
                target_task_id=task.task_id,
                trace_context=task.tracing_context or None,
            )
        )
