"""Two workers that speak HTTP themselves, and too often: `python -m tests.chaos.raw_worker <door>`.

They repeat results, also long after, and send results of each other's tasks. Every answer is noted.
"""

import asyncio
import random
import signal
import sys
from typing import Any, Final

import aiohttp

from tests.chaos.marks import mark
from tests.chaos.worker import HANG_SECONDS, brought, fate

TOKEN: Final = "secure-worker-token"
PLACES: Final = 4


class RawWorker:
    def __init__(self, session: aiohttp.ClientSession, worker_id: str, impostor: str) -> None:
        self._session = session
        self._id = worker_id
        self._impostor = impostor
        self._in_hand: dict[str, asyncio.Task[None]] = {}
        self._group = asyncio.TaskGroup()
        self._is_stopping = False

    async def _ask(
        self, method: str, path: str, body: Any = None, *, sender: str = ""
    ) -> tuple[int, Any]:
        """One request; an OSError or a TimeoutError stands for an answer that never came."""
        headers = {"X-Worker-Token": TOKEN, "X-Worker-ID": sender or self._id}
        try:
            async with self._session.request(
                method, f"/_worker{path}", json=body, headers=headers
            ) as answer:
                text = await answer.text()
                has_json = answer.content_type == "application/json"
                return answer.status, await answer.json() if has_json and text else None
        except aiohttp.ClientError as error:
            raise OSError(str(error)) from error

    async def _register(self) -> bool:
        status, _ = await self._ask(
            "POST",
            "/workers/register",
            {
                "worker_id": self._id,
                "supported_tasks": ["work"],
                "resources": {"max_concurrent_tasks": PLACES},
            },
        )
        return status == 200

    async def run(self) -> None:
        async with self._group:
            beats = self._group.create_task(self._beat())
            while not self._is_stopping:
                try:
                    if not await self._register():
                        await asyncio.sleep(0.2)
                        continue
                    await self._poll_until_forgotten()
                except (OSError, TimeoutError):
                    await asyncio.sleep(0.2)
            beats.cancel()
        await self._leave()

    def stop(self) -> None:
        self._is_stopping = True

    async def _leave(self) -> None:
        for _ in range(100):
            try:
                await self._ask("DELETE", f"/workers/{self._id}")
            except (OSError, TimeoutError):
                await asyncio.sleep(0.2)
            else:
                return

    async def _poll_until_forgotten(self) -> None:
        while not self._is_stopping:
            room = PLACES - len(self._in_hand)
            if room <= 0:
                await asyncio.wait(self._in_hand.values(), return_when=asyncio.FIRST_COMPLETED)
                continue
            status, body = await self._ask("GET", f"/workers/{self._id}/tasks/next?max={room}")
            if status == 404:
                return
            if status not in {200, 204}:
                await asyncio.sleep(0.2)
            for task in body["tasks"] if status == 200 else ():
                self._start(task)

    def _start(self, task: dict[str, Any]) -> None:
        if task["task_id"] in self._in_hand:
            return
        doing = self._group.create_task(self._do(task))
        self._in_hand[task["task_id"]] = doing
        doing.add_done_callback(lambda _: self._in_hand.pop(task["task_id"]))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            try:
                await self._ask(
                    "PATCH", f"/workers/{self._id}", {"current_tasks": list(self._in_hand)}
                )
            except (OSError, TimeoutError):
                continue

    async def _do(self, task: dict[str, Any]) -> None:
        chosen = fate(task["params"]["key"], task["params"]["name"])
        mark(
            "task",
            job=task["job_id"],
            task=task["task_id"],
            key=task["params"]["key"],
            worker=self._id,
            fate=chosen,
            attempt=task["attempt"],
        )
        await asyncio.sleep({"hangs": HANG_SECONDS, "slow": 1.5}.get(chosen, random.random() * 0.1))
        result: dict[str, Any] = {
            "job_id": task["job_id"],
            "task_id": task["task_id"],
            "worker_id": self._id,
            "status": "success",
        }
        match chosen:
            case "fails":
                result |= {
                    "status": "failure",
                    "error": {"code": "TRANSIENT_ERROR", "message": "?"},
                }
            case "refuses":
                result |= {
                    "status": "failure",
                    "error": {"code": "PERMANENT_ERROR", "message": "!"},
                }
            case _:
                result["data"] = brought(task["params"]["name"], task["task_id"], self._id)
        if random.random() < 0.1:
            await self._send({**result, "worker_id": self._impostor})
        await self._send(result)
        if random.random() < 0.4:
            self._group.create_task(self._repeat(result, random.choice((0.0, 0.1, 3.0))))

    async def _repeat(self, result: dict[str, Any], seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._send(result)

    async def _send(self, result: dict[str, Any]) -> None:
        """Until there is an answer, as the protocol has it."""
        while True:
            try:
                status, answer = await self._ask(
                    "POST", "/tasks/result", result, sender=result["worker_id"]
                )
            except (OSError, TimeoutError):
                status, answer = 0, None
            if status not in {0, 500, 502, 503}:
                break
            if status == 500:
                mark("answered", task=result["task_id"], worker=result["worker_id"], status=500)
            await asyncio.sleep(0.3)
        mark(
            "answered",
            job=result["job_id"],
            task=result["task_id"],
            worker=result["worker_id"],
            status=status,
            answer=answer,
        )


async def main(door: str) -> None:
    timeout = aiohttp.ClientTimeout(total=12)
    async with aiohttp.ClientSession(door, timeout=timeout) as session:
        pair = [RawWorker(session, "raw-1", "raw-2"), RawWorker(session, "raw-2", "raw-1")]
        loop = asyncio.get_running_loop()

        def stop() -> None:
            for one in pair:
                one.stop()

        loop.add_signal_handler(signal.SIGTERM, stop)
        await asyncio.gather(*(one.run() for one in pair))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
