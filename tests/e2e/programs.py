"""Programs as a user runs them: processes of their own, ended when the block ends."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.support import until

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 20.0


def environment(**variables: str) -> dict[str, str]:
    """This process's own, with `variables` and without a setting of ours that is set around us."""
    ours = ("REDIS_URL", "REDIS_HOST", "HISTORY_DATABASE_URI", "ORCHESTRATORS_CONFIG")
    around = {key: value for key, value in os.environ.items() if key not in ours}  # noqa: TID251 - handed on
    return {**around, "API_HOST": "127.0.0.1", **variables}


@asynccontextmanager
async def program(
    *arguments: str, variables: Mapping[str, str], log: Path
) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    """Run Python with `arguments` at the root of the project; its output goes to `log`."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-u", *arguments,
            cwd=ROOT, env=environment(**variables), stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def said_in(log: Path) -> str:
    return log.read_text(errors="replace")


async def door_is_open(door: str, process: asyncio.subprocess.Process, log: Path) -> None:
    """Return once the program answers at `door`; fail with its output if it does not."""

    async def answers() -> bool:
        assert process.returncode is None, said_in(log)
        try:
            async with session.get(f"{door}/_public/status") as response:
                return response.status == 200
        except aiohttp.ClientConnectionError:
            return False

    async with aiohttp.ClientSession() as session:
        await until(answers, START_SECONDS, f"nothing answers at {door}")


class Client:
    """A client of a program that runs."""

    def __init__(self, door: str, token: str) -> None:
        self._door = door
        self._headers = {"X-Client-Token": token}

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """The status and the JSON of the answer."""
        async with (
            aiohttp.ClientSession(headers=self._headers) as session,
            session.request(method, self._door + path, json=body) as response,
        ):
            return response.status, await response.json()

    async def ended(self, job_id: str, timeout: float = 20.0) -> dict[str, Any]:  # noqa: ASYNC109
        """The document of the job once it has ended."""
        document: dict[str, Any] = {}

        async def has_ended() -> bool:
            nonlocal document
            _, document = await self.ask("GET", f"/api/v1/jobs/{job_id}")
            return document["finished_at"] is not None

        await until(has_ended, timeout, f"job {job_id} has not ended")
        return document
