"""The documentation is true: its code runs, its tables are current, its links lead somewhere."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from scripts.write_configuration import PAGE, WITHOUT_EFFECT_YET, page

from avtomatika import MemoryStorage, OrchestratorEngine, StateMachineBlueprint
from avtomatika.config import Config
from avtomatika_worker import Worker
from avtomatika_worker.config import WorkerConfig
from tests.e2e.markdown import module_of, python_blocks
from tests.e2e.programs import ROOT, Client
from tests.support import until

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SOURCES = {
    path: path.read_text()
    for part in ("libs/common", "libs/avtomatika", "services/*")
    for path in ROOT.glob(f"{part}/src/**/*.py")
}
"""All but the worker SDK, which has settings of its own."""


@pytest.mark.parametrize("page_path", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_that_exist(page_path: Path) -> None:
    links: list[str] = re.findall(r"\]\(([^)#]+)[^)]*\)", page_path.read_text())

    missing = [
        link
        for link in links
        if not link.startswith("http") and not (page_path.parent / link).exists()
    ]

    assert missing == []


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
    assert len(blueprints) == {"blueprints": 4, "workers": 1, "configuration": 0}[name]


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
