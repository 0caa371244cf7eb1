"""What an executor hosts is in the catalogue, whatever becomes of the store."""

from services.executor.tests.world import World, a_blueprint, go_to

from avtomatika_common.backend.ports import StoreOptions
from avtomatika_common.lifecycle import running
from avtomatika_core.job import JobStatus
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
