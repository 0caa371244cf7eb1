"""The documentation is true: its code runs, its tables are current, its links lead somewhere."""

import asyncio
import json
import re
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest
from scripts.write_configuration import PAGE, WITHOUT_EFFECT_YET, page

from avtomatika import ActionFactory, MemoryStorage, OrchestratorEngine, StateMachineBlueprint
from avtomatika.config import Config
from avtomatika_worker import Worker
from avtomatika_worker.config import WorkerConfig
from tests.e2e.markdown import module_of, python_blocks
from tests.e2e.programs import ROOT, Client, environment
from tests.support import until

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SOURCES = {
    path: path.read_text()
    for part in ("libs/common", "libs/avtomatika", "services/*")
    for path in ROOT.glob(f"{part}/src/**/*.py")
}
"""All but the worker SDK, which has settings of its own."""
EXCHANGES: list[tuple[str, str]] = re.findall(
    r"^```bash\n((?:(?!```).*\n)+)```\n```json\n((?:(?!```).*\n)+)```$",
    (ROOT / "docs" / "http_api.md").read_text(),
    re.MULTILINE,
)
"""Commands of the page, each with the answer below it."""


@pytest.mark.parametrize("page_path", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_that_exist(page_path: Path) -> None:
    links: list[str] = re.findall(r"\]\(([^)#]+)[^)]*\)", page_path.read_text())

    missing = [
        link
        for link in links
        if not link.startswith("http") and not (page_path.parent / link).exists()
    ]

    assert missing == []


def test_a_word_of_the_glossary_has_one_meaning() -> None:
    words = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)

    assert words[1:] == sorted(set(words[1:]))


def test_the_code_in_the_readme_is_that_of_the_examples() -> None:
    blocks = python_blocks(ROOT / "README.md")

    assert [file for file, _ in blocks] == [
        "examples/quick_start.py",
        "examples/greetings.py",
        "examples/greetings_worker.py",
    ]
    for file, code in blocks:
        assert file is not None
        assert code == re.sub(r"  # noqa: \S+", "", (ROOT / file).read_text()), file


@pytest.mark.parametrize("name", ["blueprints", "workers", "configuration"])
def test_the_code_of_a_page_runs_and_its_blueprints_are_valid(name: str, tmp_path: Path) -> None:
    module = module_of(ROOT / "docs" / f"{name}.md", tmp_path)

    blueprints = [v for v in vars(module).values() if isinstance(v, StateMachineBlueprint)]
    for blueprint in blueprints:
        blueprint.validate()
    assert len(blueprints) == {"blueprints": 6, "workers": 1, "configuration": 0}[name]


def test_the_table_of_settings_is_current() -> None:
    assert PAGE.read_text() == page(), "run: python scripts/write_configuration.py"


@pytest.mark.parametrize("name", [row.name for row in Config.describe()])
def test_a_setting_is_said_to_be_without_effect_just_where_nothing_reads_it(name: str) -> None:
    reads = re.compile(rf"\b(?:config|self)\.{name}\b")

    readers = [path.name for path, source in SOURCES.items() if reads.search(source)]

    if name in WITHOUT_EFFECT_YET:
        assert set(readers) <= {"config.py"}
    else:
        assert readers


def tomls_of(page_path: Path) -> str:
    """The TOML on a page, as one file."""
    return "\n".join(
        re.findall(r"^```toml\n(.*?)^```$", page_path.read_text(), re.MULTILINE | re.DOTALL)
    )


@pytest.mark.e2e
async def test_the_schedules_of_the_page_make_jobs_of_its_blueprint(tmp_path: Path) -> None:
    guide, path = ROOT / "docs" / "schedules.md", tmp_path / "schedules.toml"
    path.write_text(tomls_of(guide))
    config = Config(
        {
            "API_HOST": "127.0.0.1",
            "API_PORT": "0",
            "CLIENT_TOKEN": "c",
            "SCHEDULES_CONFIG_PATH": str(path),
        }
    )
    engine = OrchestratorEngine(MemoryStorage(), config)
    engine.register_blueprint(module_of(guide, tmp_path).report)
    await engine.start()
    client = Client(f"http://127.0.0.1:{engine.port}", "c")
    schedules: dict[str, Any] = {}

    async def heartbeat_ran() -> bool:
        _, found = await client.ask("GET", "/api/schedules")
        schedules.update({schedule["name"]: schedule for schedule in found})
        return bool(schedules and schedules["heartbeat"]["last_job_id"])

    try:
        await until(heartbeat_ran, message="no job was made")
        by_time = await client.ended(schedules["heartbeat"]["last_job_id"])
        _, paused = await client.ask("POST", "/api/schedules/nightly_report/pause")
        status, run = await client.ask("POST", "/api/schedules/nightly_report/run")
        by_hand = await client.ended(run["job_id"])
    finally:
        await engine.stop()

    assert set(schedules) == {"heartbeat", "nightly_report", "salaries", "office_hours"}
    assert all(len(schedule["next"]) == 5 for schedule in schedules.values())
    assert by_time["status"] == by_hand["status"] == "finished"
    assert by_hand["initial_data"] == {"kind": "full"}
    assert (paused["paused"], status) == (True, 202)


@pytest.mark.e2e
async def test_the_blueprint_of_the_guide_sells_a_book(tmp_path: Path) -> None:
    orders: StateMachineBlueprint = module_of(ROOT / "docs" / "blueprints.md", tmp_path).orders
    config = Config(
        {"API_HOST": "127.0.0.1", "API_PORT": "0", "CLIENT_TOKEN": "c", "GLOBAL_WORKER_TOKEN": "w"}
    )
    engine = OrchestratorEngine(MemoryStorage(), config)
    engine.register_blueprint(orders)
    await engine.start()
    door = f"http://127.0.0.1:{engine.port}"
    client = Client(door, "c")
    worker = packer(door)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.main())
            small = await sold(client, {"item": "book"})
            large = await sold(client, {"item": "book", "quantity": 10}, decision="approved")
            unknown = await sold(client, {"item": "moon"})
            worker.stop()
    finally:
        await engine.stop()

    assert (small["status"], small["state_history"]["sent"]) == ("finished", 1)
    assert (large["status"], large["state_history"]["total"]) == ("finished", 120)
    assert (unknown["status"], unknown["error_message"]) == ("failed", "There is no 'moon'.")


@pytest.mark.e2e
async def test_the_requests_of_the_worker_api_are_answered_as_its_page_says() -> None:
    films = StateMachineBlueprint("films", api_version="v1", api_endpoint="/jobs/films")

    @films.handler_for("start", is_start=True)
    async def start(actions: ActionFactory) -> None:  # pyright: ignore[reportUnusedFunction]
        params = {"path": "a.png", "width": 200}
        actions.dispatch_task("resize", params, transitions={"success": "end"})

    @films.handler_for("end", is_end=True)
    async def end() -> None:  # pyright: ignore[reportUnusedFunction]
        pass

    engine = OrchestratorEngine(
        MemoryStorage(), Config({"API_HOST": "127.0.0.1", "API_PORT": "0", "CLIENT_TOKEN": "c"})
    )
    engine.register_blueprint(films)
    await engine.start()
    door = f"http://127.0.0.1:{engine.port}"
    client = Client(door, "c")
    variables = {"DOOR": door}
    answers: list[tuple[Any, Any]] = []
    try:
        for command, promised in EXCHANGES:
            if "tasks/next" in command:
                await client.ask("POST", "/api/v1/jobs/films", {})
            answer = await answered(command, variables)
            for task in [answer, *answer.get("tasks", ())]:
                if "task_id" in task:
                    variables |= {"JOB": task["job_id"], "TASK": task["task_id"]}
            answers.append((as_printed(answer), as_printed(json.loads(promised))))
    finally:
        await engine.stop()

    assert len(answers) == 9
    assert [answer for answer, _ in answers] == [promised for _, promised in answers]


async def answered(command: str, variables: dict[str, str]) -> dict[str, Any]:
    """What a shell command prints, which is JSON."""
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", command, env={**environment(), **variables}, stdout=PIPE, stderr=PIPE
    )
    said, complained = await process.communicate()
    assert process.returncode == 0, complained
    answer: dict[str, Any] = json.loads(said)
    return answer


def as_printed(value: Any) -> Any:
    """Without what differs each time."""
    if isinstance(value, list):
        return [as_printed(one) for one in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        new = {"job_id": "…", "task_id": "…", "deadline": 0}
        return {key: new.get(key, as_printed(one)) for key, one in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return value


@pytest.mark.e2e
async def test_the_rental_of_the_guide_is_paid_by_a_signal_and_ends_after_its_time(
    tmp_path: Path,
) -> None:
    rentals: StateMachineBlueprint = module_of(ROOT / "docs" / "blueprints.md", tmp_path).rentals
    config = Config({"API_HOST": "127.0.0.1", "API_PORT": "0", "CLIENT_TOKEN": "c"})
    engine = OrchestratorEngine(MemoryStorage(), config)
    engine.register_blueprint(rentals)
    await engine.start()
    client = Client(f"http://127.0.0.1:{engine.port}", "c")
    try:
        _, paid = await client.ask("POST", "/api/v1/jobs/rentals", {})
        late = {"initial_data": {}, "timeout_seconds": 0.2}
        _, unpaid = await client.ask("POST", "/api/v1/jobs/rentals", late)
        path = f"/api/v1/jobs/{paid['job_id']}/signals/paid"
        answer = await client.ask("POST", path, {"seconds": 0.2})
        returned, timed_out = [await client.ended(job["job_id"]) for job in (paid, unpaid)]
    finally:
        await engine.stop()

    assert answer == (202, {"status": "accepted"})
    assert (returned["status"], returned["current_state"]) == ("finished", "returned")
    assert returned["finished_at"] - returned["created_at"] >= 0.2
    assert (timed_out["status"], timed_out["error_message"]) == (
        "failed",
        "Job timed out after 0.2 seconds.",
    )


async def test_the_worker_beside_its_engine_shouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"API_HOST": "127.0.0.1", "API_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TASK_FILES_DIR", str(tmp_path))
    module = module_of(ROOT / "docs" / "workers.md", tmp_path)

    await module.in_one_process()

    assert capsys.readouterr().out == "HELLO\n"


def packer(door: str) -> Worker:
    """Packs, and sends one of two messages."""
    worker = Worker(config=WorkerConfig({"ORCHESTRATOR_URL": door, "WORKER_TOKEN": "w"}))

    @worker.task("pack_parcel")
    async def pack_parcel(params: dict[str, Any]) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        return {"parcel": params["item"]}

    @worker.task("send")
    async def send(params: dict[str, Any]) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        if params["by"] == "sms":
            return {"status": "failure", "error": {"code": "PERMANENT_ERROR", "message": "no sms"}}
        return {}

    return worker


async def sold(
    client: Client, order: dict[str, Any], decision: str | None = None
) -> dict[str, Any]:
    _, answer = await client.ask("POST", "/api/v1/jobs/orders", order)
    job_id = answer["job_id"]
    if decision is not None:
        await decided(client, job_id, decision)
    return await client.ended(job_id)


async def decided(client: Client, job_id: str, decision: str) -> None:
    async def accepted() -> bool:
        path = f"/_public/webhooks/approval/{job_id}"
        status, _ = await client.ask("POST", path, {"decision": decision})
        return status == 200

    await until(accepted, message=f"job {job_id} asks nobody")
