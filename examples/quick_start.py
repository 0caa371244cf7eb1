# my_app.py
import asyncio

from avtomatika import OrchestratorEngine, StateMachineBlueprint
from avtomatika.config import Config
from avtomatika.context import ActionFactory, JobContext
from avtomatika.storage import MemoryStorage

# 1. Storage and settings
storage = MemoryStorage()
config = Config()  # reads the environment

# Tokens of this example: clients send theirs as X-Client-Token, workers as X-Worker-Token.
config.CLIENT_TOKEN = "my-secret-client-token"  # noqa: S105
config.GLOBAL_WORKER_TOKEN = "my-secret-worker-token"  # noqa: S105

# 2. The blueprint: what a job does, state by state
my_blueprint = StateMachineBlueprint(
    name="my_first_blueprint",
    api_version="v1",
    api_endpoint="/jobs/my_flow",
)


# A handler gets what its parameters name.
@my_blueprint.handler_for("start", is_start=True)
async def start_handler(
    job_id: str, initial_data: dict[str, object], actions: ActionFactory
) -> None:
    """Every new job begins here."""
    print(f"Job {job_id} | Start: {initial_data}")
    actions.transition_to("end")


# Or it takes everything as `context`.
@my_blueprint.handler_for("end", is_end=True)
async def end_handler(context: JobContext) -> None:
    """A job that arrives here is finished."""
    print(f"Job {context.job_id} | Complete.")


# 3. The engine
engine = OrchestratorEngine(storage, config)
engine.register_blueprint(my_blueprint)


# 4. Run it inside an asyncio application; `engine.run()` does it for a script.
async def main() -> None:
    await engine.start()
    try:
        await asyncio.Event().wait()
    finally:
        await engine.stop()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("\nStopping server.")
