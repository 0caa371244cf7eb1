"""What an executor hosts is in the catalogue, whatever becomes of the store."""

from services.executor.tests.world import World, a_blueprint, go_to

from avtomatika_common.backend.ports import StoreOptions
from avtomatika_common.context import JobContext
from avtomatika_common.lifecycle import running
from avtomatika_core.job import JobStatus
from avtomatika_core.retry_policy import RetryPolicy
from tests.support import until


async def test_a_flush_while_running_takes_no_blueprint_away(world: World) -> None:
    """R25."""
    await world.store.open(StoreOptions(block_seconds=0.02))
    blueprint = a_blueprint({"start": go_to("end")})

    async def is_known() -> bool:
        _, entries = await world.store.catalogue.entries()
        return [entry.name for entry in entries] == [blueprint.name]

    async with running(world.executor(blueprint)):
        await until(is_known)
        await world.store.flush_all()
        await until(is_known, message="the catalogue stays empty")

        job = await world.end_of(await world.create(blueprint))

    assert job.status is JobStatus.FINISHED


async def test_the_event_of_a_branch_waits_for_who_hosts_its_blueprint(world: World) -> None:
    """Another one does not know how often its tasks may be tried."""

    def spread(context: JobContext) -> None:
        context.actions.dispatch_parallel([{"type": "t"}], "join")

    blueprint = a_blueprint({"spread": spread, "join": go_to("end")})
    blueprint.retry = RetryPolicy(attempts=1)
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        task = await world.take()
    async with running(world.executor(a_blueprint({"start": go_to("end")}, name="other"))):
        await world.fail(task)
        await until(lambda: world.tables.deferred, message="it was not put off")
        assert (await world.job(job_id)).status is JobStatus.WAITING_FOR_PARALLEL_TASKS
    async with running(world.executor(blueprint)):
        await world.fire_next()
        job = await world.end_of(job_id)

    assert job.status is JobStatus.FINISHED
    assert await world.board() == []
