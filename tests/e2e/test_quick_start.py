"""The quick start and the worker example, run as the README tells."""

import signal
from pathlib import Path

import pytest

from tests.e2e.markdown import python_blocks
from tests.e2e.programs import ROOT, Client, door_is_open, program, said_in
from tests.servers import free_port

pytestmark = pytest.mark.e2e


async def test_the_quick_start_of_the_readme_runs_a_job_to_its_end(tmp_path: Path) -> None:
    script = tmp_path / "my_app.py"
    script.write_text(python_blocks(ROOT / "README.md")[0][1])
    port, log = free_port(), tmp_path / "log"
    door = f"http://127.0.0.1:{port}"
    client = Client(door, "my-secret-client-token")

    async with program(str(script), variables={"API_PORT": str(port)}, log=log) as process:
        await door_is_open(door, process, log)
        status, answer = await client.ask(
            "POST", "/api/v1/jobs/my_flow", {"initial_data": {"type": "urgent"}}
        )
        job = await client.ended(answer["job_id"])
        process.send_signal(signal.SIGINT)
        code = await process.wait()

    assert (status, answer["status"]) == (202, "accepted")
    assert (job["status"], job["current_state"]) == ("finished", "end")
    said = said_in(log)
    assert f"Job {job['id']} | Start: {{'type': 'urgent'}}" in said
    assert f"Job {job['id']} | Complete." in said
    assert "Stopping server." in said
    assert "Traceback" not in said
    assert code == 0


async def test_the_quick_start_refuses_another_token(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    door = f"http://127.0.0.1:{port}"

    async with program(
        "examples/quick_start.py", variables={"API_PORT": str(port)}, log=log
    ) as process:
        await door_is_open(door, process, log)
        answer = await Client(door, "another").ask("POST", "/api/v1/jobs/my_flow", {})

    assert answer == (401, {"error": "Unauthorized: Invalid token"})


async def test_the_worker_example_greets(tmp_path: Path) -> None:
    port = free_port()
    door = f"http://127.0.0.1:{port}"
    engine_log, worker_log = tmp_path / "engine", tmp_path / "worker"
    worker_command = ("-m", "avtomatika_worker", "run", "--app", "examples.greetings_worker:worker")
    tokens = {"WORKER_TOKEN": "secure-worker-token", "ORCHESTRATOR_URL": door}
    client = Client(door, "secure-orchestrator-token")

    async with program(
        "examples/greetings.py", variables={"API_PORT": str(port)}, log=engine_log
    ) as engine:
        await door_is_open(door, engine, engine_log)
        async with program(*worker_command, variables=tokens, log=worker_log) as worker:
            _, answer = await client.ask("POST", "/api/v1/jobs/greetings", {"name": "Ada"})
            job = await client.ended(answer["job_id"])
            worker.send_signal(signal.SIGTERM)
            worker_code = await worker.wait()
        engine.send_signal(signal.SIGTERM)
        engine_code = await engine.wait()

    assert job["status"] == "finished"
    assert job["state_history"]["greeting"] == "Hello, Ada!"
    assert "Hello, Ada!" in said_in(engine_log)
    assert (worker_code, engine_code) == (0, 0)
