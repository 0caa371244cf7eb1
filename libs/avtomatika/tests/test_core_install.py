"""Without any extra the library imports and runs jobs on memory."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
EXTRAS = (
    "redis",
    "hiredis",
    "aiosqlite",
    "asyncpg",
    "prometheus_client",
    "opentelemetry",
    "obstore",
)
BLOCKED = f"""
import sys
from importlib.machinery import PathFinder

class WithoutExtras(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        blocked = name.partition(".")[0] in {EXTRAS!r}
        return None if blocked else super().find_spec(name, path, target)

sys.meta_path[:] = [WithoutExtras if one is PathFinder else one for one in sys.meta_path]
"""
RUN_QUICK_START = """
import asyncio, os, runpy

os.environ |= {"API_HOST": "127.0.0.1", "API_PORT": "0"}
quick_start = runpy.run_path("examples/quick_start.py")
engine = quick_start["engine"]

async def main():
    ended = asyncio.Event()

    async def on_job_finished(job_id, status, job):
        print("JOB", status, job["current_state"])
        ended.set()

    engine.on_job_finished.append(on_job_finished)
    await engine.start()
    await engine.create_background_job("my_first_blueprint", {"type": "urgent"})
    async with asyncio.timeout(20):
        await ended.wait()
    await engine.stop()

asyncio.run(main())
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + program],
        cwd=ROOT,
        env={"PATH": ""},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


def test_the_quick_start_finishes_its_job_with_no_extra_installed() -> None:  # R71
    ran = run(RUN_QUICK_START)

    assert ran.returncode == 0, ran.stderr
    assert "JOB finished end" in ran.stdout


def test_everything_that_is_exported_can_be_imported_with_no_extra_installed() -> None:
    ran = run(
        "from avtomatika import *\n"
        "from avtomatika.storage import *\n"
        "import avtomatika_worker\n"
        "print(MemoryStorage, 'RedisStorage' in globals())"
    )

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip().endswith("False")


def test_a_redis_that_is_configured_asks_for_its_extra() -> None:
    ran = run(
        "from avtomatika import OrchestratorEngine\n"
        "from avtomatika.config import Config\n"
        "OrchestratorEngine(config=Config({'REDIS_HOST': 'localhost'}))"
    )

    assert ran.returncode == 1
    assert "StartupError: Redis needs the extra 'redis': pip install" in ran.stderr


def test_a_history_that_is_configured_asks_for_its_extra() -> None:
    ran = run(
        "from avtomatika import OrchestratorEngine\n"
        "from avtomatika.config import Config\n"
        "OrchestratorEngine(config=Config({'HISTORY_DATABASE_URI': 'sqlite:h.db'}))"
    )

    assert ran.returncode == 1
    assert "StartupError: History needs the extra 'history': pip install" in ran.stderr
