"""Jobs made and watched through the ports, as tests of several parts need them."""

from typing import Any

from avtomatika_common import ids
from avtomatika_common.backend.ports import Backend
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_core.job import Job, JobId, Origin, new_job
from tests.support import until


async def create_job(
    backend: Backend, blueprint: StateMachineBlueprint, **initial_data: Any
) -> JobId:
    assert blueprint.start_state is not None
    origin = Origin(
        blueprint=blueprint.name,
        group="default",
        start_state=blueprint.start_state,
        initial_data=initial_data,
        created_at=backend.clock.now(),
    )
    return (await backend.jobs.create(new_job(JobId(ids.new_id()), origin))).job_id


async def ended(backend: Backend, job_id: JobId, timeout: float = 10.0) -> Job:  # noqa: ASYNC109
    """The job, once it is terminal."""
    found: list[Job] = []

    async def is_terminal() -> bool:
        stored = await backend.jobs.load(job_id)
        assert stored is not None, f"job {job_id} is gone"
        found[:] = [stored.job]
        return stored.job.is_terminal

    await until(is_terminal, timeout, f"job {job_id} did not end")
    return found[0]
