"""What of a job a client may see: jobs of its own, all of them if it is an admin, never a secret."""

from collections.abc import Iterable
from typing import Any

from avtomatika_common.backend.ports import JobNotFound, JobStore, Stored
from avtomatika_common.backend.salvage import load_readable
from avtomatika_core.job import TERMINAL, JobId
from avtomatika_gateway.access import ApiClient

_SHORT_FORM = ("id", "status", "blueprint_name", "child_job_id")


async def visible_job(jobs: JobStore, job_id: JobId, client: ApiClient) -> Stored:
    """The job, or what can be read of it, if it is there for this client. Raises JobNotFound."""
    stored = await load_readable(jobs, job_id)
    if stored is None or not client.may_see(stored.job.origin.client.name):
        raise JobNotFound
    return stored


def short_form(document: dict[str, Any]) -> dict[str, Any]:
    """What is shown of a job where `DETAILED_API_RESPONSES` is off."""
    shown = {key: document[key] for key in _SHORT_FORM if key in document}
    if document.get("status") in TERMINAL:
        shown["result"] = document.get("state_history")
    return shown


def only_fields(document: dict[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """`id` and the named keys the document has."""
    wanted = {"id", *(field.strip() for field in fields)}
    return {key: value for key, value in document.items() if key in wanted}
